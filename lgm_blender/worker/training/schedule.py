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
    """The progress of a run that is bounded by time or by steps: 0 at its start, 1 at its end.

    A timed run's first steps are free: they compile the model, which can take two minutes.

    Args:
        seconds: The run's length.
        steps: The run's length in steps instead; such a run gives the same numbers each time.
        free_steps: Steps before a timed run's time starts.
    """

    def __init__(self, seconds: float = math.inf, steps: int | None = None, free_steps: int = 3):
        self.seconds = seconds
        self.steps = steps
        self.free_steps = free_steps
        self.ticks = 0
        self.start = time.monotonic()

    def tick(self) -> float:
        """How much of the run is over, 0 to 1; called once before each step."""
        self.ticks += 1
        if self.steps is not None:
            return min(1.0, (self.ticks - 1) / self.steps)
        if self.ticks <= self.free_steps:
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
