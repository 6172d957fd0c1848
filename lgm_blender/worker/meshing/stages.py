"""The stages of a mesh's making, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...core.errors import Cancelled

STAGE_LABELS = {
    "render": "Rendering the Gaussians from all round",
    "fuse": "Finding the surface",
    "simplify": "Simplifying the mesh",
    "refine": "Fitting its outlines",
    "unwrap": "Unwrapping it",
    "bake": "Painting the texture",
}
STAGES = tuple(STAGE_LABELS)

OnStep = Callable[[int, int], None]  # hears of a step and how many there are, and raises where the work is to stop


def silent(step: int, steps: int) -> None:
    """An OnStep when nobody listens."""


class Stages:
    """Tells how far the work is, asks whether it goes on, and keeps the seconds that each stage took in `timings`."""

    def __init__(self, device: str, progress: Callable[[str, int, int], None], cancelled: Callable[[], bool]):
        self.device, self.progress, self.cancelled = device, progress, cancelled
        self.timings: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[OnStep]:
        """While the stage lasts."""
        told = None

        def on_step(step: int, steps: int) -> None:
            nonlocal told
            if self.cancelled():
                raise Cancelled
            if told != (step, steps):
                told = (step, steps)
                self.progress(stage, step, steps)

        began = time.perf_counter()
        on_step(0, 0)
        yield on_step
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.timings[stage] = round(time.perf_counter() - began, 3)
