"""The workers of a batch, one for each GPU, and a thread for each that waits for it in Blender's place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any

from ..core.errors import LGMError
from ..core.messages import Initialized
from .engine import Engine

SPARE = 2  # items beside those that the workers make: the next ones, or finished ones that wait for Blender
PAUSE = 0.2  # seconds


class Pool:
    """Gives work to whichever worker is free. Used as a context; in the end the workers are ended.

    Args:
        engines: One or more, each with a worker of its own.
    """

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)
        self._threads = ThreadPoolExecutor(len(engines), "worker")
        self._tasks: dict[Future, Any] = {}  # in the order in which they were given

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        while True:
            for engine in self.engines:
                engine.close()  # whatever it makes is cancelled, and its thread goes on to its end
            if all(future.done() for future in self._tasks):
                break
            time.sleep(0.05)  # a thread may have been about to ask, and so to start a worker again
        self._threads.shutdown()

    @property
    def has_room(self) -> bool:
        """Whether another task may be given."""
        return len(self._tasks) < len(self.engines) + SPARE

    def give(self, task: Any, work: Callable[[Engine], Any]) -> None:
        """Has `work` done in a thread, with a worker that is free by then."""
        self._tasks[self._threads.submit(self._work, work)] = task

    def ended(self) -> Iterator[tuple[Any, Future]]:
        """The first task given of those that have ended, once there is one, and what came of it; or nothing yet."""
        wait(self._tasks, PAUSE, FIRST_COMPLETED) if self._tasks else time.sleep(PAUSE)
        if future := next((future for future in self._tasks if future.done()), None):
            yield self._tasks.pop(future), future

    def _work(self, work: Callable[[Engine], Any]) -> Any:
        engine = self._free.get()
        try:
            return work(engine)
        except LGMError as error:
            if error.kind == "out_of_memory":
                engine.stop()  # the next item gets a worker that holds nothing yet
            raise
        finally:
            self._free.put(engine)


def choose_workers(asked: int | None, device: str, info: Initialized) -> int:
    """How many workers there are to be: as many as asked for, else one for each GPU, or one on a CPU.

    Args:
        asked: None for what suits the machine.
        device: One of messages.DEVICES.
        info: What a first worker says about itself.
    """
    on_gpus = device != "cpu" and info.device == "cuda"
    return asked or (max(1, info.gpus) if on_gpus else 1)


def worker_share(number: int, workers: int, gpus: int) -> dict[str, str]:
    """Environment variables that give worker `number` of `workers` its GPU, and its share of the cores."""
    if workers == 1:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    variables = {"OMP_NUM_THREADS": str(max(1, cores // workers))}
    if gpus > 1:
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        seen = seen if len(seen) >= gpus else [str(gpu) for gpu in range(gpus)]
        variables["CUDA_VISIBLE_DEVICES"] = seen[number % gpus]
    return variables
