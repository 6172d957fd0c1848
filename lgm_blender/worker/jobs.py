"""A job under way: its stages, who hears of them, whether it goes on, and how long each took."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from ..core.errors import Cancelled
from ..core.messages import Progress
from .devices import devices_in_use

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
        torch_listens: Whether in the next stages every call of torch asks too: see `listening`.
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
        self.torch_listens = False
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
        with self.listening() if self.torch_listens else nullcontext():
            yield
        for device in devices_in_use():
            device.synchronize()  # what the GPU was asked to do is part of the stage
        self.timings[name] = round(time.perf_counter() - self.stage_began, 3)
        log.info("job %s: %s took %.2f s", self.name, name, self.timings[name])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Has every call of torch raise Cancelled if the job should not go on: within a model that is one layer.

        Costs a CPU microseconds each, which is nothing to it and much to a GPU that waits for the next. Nothing may be
        imported meanwhile: a module whose import was broken off can't be imported again.
        """
        from torch import Tensor
        from torch.overrides import TorchFunctionMode

        cancelled = self.cancelled

        class Listening(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                # What computes has a tensor. What has none may be putting things back, as the end of `no_grad` does.
                if any(isinstance(arg, Tensor) for arg in args) and cancelled():
                    raise _Stopped
                return function(*args, **(kwargs or {}))

        try:
            with Listening():
                yield
        except _Stopped:
            raise Cancelled from None

    def timings_until_now(self) -> dict[str, float]:
        """The timings, with those of the current stage and the total so far."""
        now = time.perf_counter()
        return self.timings | {self.current: round(now - self.stage_began, 3), "total": round(now - self.began, 3)}


class _Stopped(BaseException):
    """No Exception, which a library in between might take for one of its own."""


class Imports:
    """Modules that take seconds to import, in a thread: a job that is cancelled meanwhile ends, the import goes on."""

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self, load: Callable[[], None], cancelled: IsCancelled) -> None:
        """Calls `load`, which imports.

        Raises:
            Cancelled: If `cancelled` says so meanwhile.
        """

        def work() -> None:
            try:
                load()
            except BaseException as error:
                self._error = error

        self._wait(cancelled)  # for what goes on since an earlier job
        self._error = None
        self._thread = threading.Thread(target=work, name="imports", daemon=True)
        self._thread.start()
        self._wait(cancelled)
        if self._error:
            raise self._error

    def _wait(self, cancelled: IsCancelled) -> None:
        while self._thread and self._thread.is_alive():
            if cancelled():
                raise Cancelled
            self._thread.join(0.02)
        self._thread = None
