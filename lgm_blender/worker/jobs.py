"""A job under way: its stages, who hears of them, whether it goes on, and how long each took."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..core.errors import Cancelled
from ..core.messages import Progress

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]
IsCancelled = Callable[[], bool]
OnStep = Callable[[int, int], None]  # hears of a step and how many there are, and raises where the work is to stop


def silent(step: int, steps: int) -> None:
    """An OnStep when nobody listens."""


class Job:
    """What the stages of a request share.

    Args:
        name: The request's.
        stages: Their names, in order.
        progress: Called at the start of each stage and after each step of it.
        cancelled: Asked as often.

    Attributes:
        warnings: Sentences for the user.
        timings: Seconds of each stage that is over.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[str],
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ):
        self.name = name
        self.stages = stages
        self.progress = progress
        self.cancelled = cancelled
        self.warnings: list[str] = []
        self.timings: dict[str, float] = {}
        self.current, self.told = stages[0], (0, 0)
        self.began = self.stage_began = time.perf_counter()

    def check(self) -> None:
        """Raises Cancelled if the job should not go on."""
        if self.cancelled():
            raise Cancelled

    def report(self, step: int = 0, steps: int = 0, preview: str | None = None) -> None:
        """Tells how far the current stage is."""
        self.told = step, steps
        index = self.stages.index(self.current)
        self.progress(Progress(self.name, self.current, index, len(self.stages), step, steps, preview))

    def step(self, step: int, steps: int) -> None:
        """Tells how far the current stage is, unless that is known, and raises Cancelled if it should not go on."""
        self.check()
        if self.told != (step, steps):
            self.report(step, steps)

    @contextmanager
    def stage(self, name: str, steps: int = 0) -> Iterator[None]:
        """A stage, its start told and its time taken.

        Raises:
            Cancelled: If the job should not go on.
        """
        self.check()
        self.current, self.stage_began = name, time.perf_counter()
        self.report(0, steps)
        yield
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what the GPU was asked to do is part of the stage
        self.timings[name] = round(time.perf_counter() - self.stage_began, 3)
        log.info("job %s: %s took %.2f s", self.name, name, self.timings[name])

    def timings_until_now(self) -> dict[str, float]:
        """The timings, with those of the current stage and the total so far."""
        now = time.perf_counter()
        return self.timings | {self.current: round(now - self.stage_began, 3), "total": round(now - self.began, 3)}
