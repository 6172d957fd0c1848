"""A limit for the memory that a worker holds: one item must not take what the others and the computer need."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil

INTERVAL = 0.2  # seconds
GB = 1 << 30


def resident_memory() -> int:
    """Bytes of the computer's memory that this process holds now, its children left out; a GPU's doesn't count."""
    return psutil.Process().memory_info().rss


def free_memory() -> int:
    """Bytes of the computer's memory that programs can still have without making others swap."""
    return psutil.virtual_memory().available


def watch_memory(limit: float, exceeded: Callable[[str], None], interval: float = INTERVAL) -> threading.Event:
    """Looks at this process's resident memory every `interval` seconds, in a thread of its own.

    Args:
        limit: In GB.
        exceeded: Called in that thread, with a sentence, as often as there is more.

    Returns:
        Set it, and the watching ends.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(interval):
            if (held := resident_memory()) > limit * GB:
                exceeded(
                    f"It needs more memory than it may have ({held / GB:.1f} of {limit:g} GB), so its worker was "
                    "ended. Give it more by --memory, or ask for a smaller mesh or fewer view samples."
                )

    threading.Thread(target=watch, name="memory", daemon=True).start()
    return ended
