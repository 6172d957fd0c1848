"""What every training loop shares: learning rate by time, averaged weights, a log."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import nn


class Clock:
    """The progress of a run that is bounded by time: 0 at its start, 1 when its seconds are over.

    Its first steps are free: they compile the model, which can take two minutes.
    """

    def __init__(self, seconds: float, free_steps: int = 3):
        self.seconds = seconds
        self.free_steps = free_steps
        self.start = time.monotonic()

    def tick(self) -> float:
        """How much of the run is over, 0 to 1; called once before each step."""
        if self.free_steps > 0:
            self.free_steps -= 1
            self.start = time.monotonic()
        return min(1.0, (time.monotonic() - self.start) / self.seconds)


def cosine_rate(step: int, progress: float, warmup: int = 300, floor: float = 0.02) -> float:
    """The factor of the learning rate: linear warm-up over steps, then a cosine over the run's progress."""
    decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (step + 1) / warmup) * decay


class AveragedWeights:
    """An exponential moving average of a model's weights, in fp32."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step; the first steps count more, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - decay)


class Log:
    """A JSON line per entry, in a file and on the console."""

    def __init__(self, path: Path):
        self.path = path
        self.start = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **values) -> None:
        """Write numbers; the seconds since the start are added."""
        values = {"seconds": round(time.monotonic() - self.start, 1), **values}
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()})
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")
