"""Work in as many threads as torch would take, each with a part of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def parallel(device: torch.device | str) -> Iterator[Callable]:
    """A `map` for parts of some work. On a CPU, torch itself works in one thread meanwhile.

    Otherwise its threads wait for each other after each of thousands of small operations, which on cores that Blender
    keeps busy takes many times as long as one thread does.
    """
    if torch.device(device).type != "cpu":
        yield map
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield lambda work, *parts: pool.map(torch.no_grad()(work), *parts)
    finally:
        torch.set_num_threads(threads)
