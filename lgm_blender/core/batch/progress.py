"""How far a batch is, in lines on stderr: '[12/340] name: ...', and when it will be done."""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Mapping


class Progress:
    """Says how each item went, a line each; in a terminal, one more that says what is being done now.

    Args:
        total: How many items there are.
        workers: How many are made at once.
    """

    def __init__(self, total: int, workers: int = 1):
        self.total, self.workers = total, workers
        self.ended = 0
        self._paces: list[float] = []  # of those that were made: seconds until the next one can be expected
        self._live = sys.stderr.isatty()
        self._lock = threading.Lock()

    def show(self, name: str, state: str) -> None:
        """What is being done now, in a terminal. Any thread may say so."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            text = f"[{min(self.ended + 1, self.total)}/{self.total}] {name}: {state}{self._left()}"
            with self._lock:
                print(f"\r{text[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    def end(self, name: str, state: str, spent: Mapping[str, float] | None = None) -> None:
        """An item has ended so.

        Args:
            spent: If it was made, seconds in a worker ('worker') and in Blender ('blender'), of which there is one and
                which works beside the workers.
        """
        self.ended += 1
        if spent:
            self._paces.append(max(spent.get("worker", 0.0) / self.workers, spent.get("blender", 0.0)))
        self.say(f"[{self.ended}/{self.total}] {name}: {state}{self._left()}")

    def say(self, sentence: str) -> None:
        """A line of its own."""
        with self._lock:
            if self._live:
                print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", file=sys.stderr)
            print(sentence, file=sys.stderr, flush=True)

    @property
    def seconds_left(self) -> float | None:
        """How long it takes from here if all others take the median of those that were made; None if none was."""
        return statistics.median(self._paces) * (self.total - self.ended) if self._paces else None

    def _left(self) -> str:
        left = self.seconds_left
        if not left:
            return ""
        then = time.strftime("%H:%M" if left < 86_400 else "%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        return f" (about {in_words(left)} left, until {then})"


def in_words(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
