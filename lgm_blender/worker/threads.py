"""torch on a CPU that others use as well: in each thread a task of its own, and torch itself works in one.

torch's own threads wait for each other after each of thousands of small operations. That gains little on idle cores,
and on cores that Blender keeps busy it takes ten to twenty times as long as one thread does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def one_thread(device: torch.device | str) -> Iterator[int]:
    """On a CPU torch works in one thread meanwhile. Gives how many threads it had; on other devices 1."""
    if torch.device(device).type != "cpu":
        yield 1
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def parallel(device: torch.device | str) -> Iterator[tuple[Callable, int]]:
    """A `map` whose tasks work side by side on a CPU, without gradients, and how many do; see `one_thread`."""
    with one_thread(device) as threads:
        if torch.device(device).type != "cpu":
            yield map, 1
            return
        with ThreadPoolExecutor(threads) as pool:
            try:
                yield lambda work, *parts: pool.map(torch.no_grad()(work), *parts), threads
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # a job that is cancelled needs no more of them
                raise
