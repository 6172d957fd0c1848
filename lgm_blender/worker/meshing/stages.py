"""How the steps of a mesh's making tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

OnStep = Callable[[int, int], None]  # hears of a step and how many there are, and raises where the work is to stop


def silent(step: int, steps: int) -> None:
    """An OnStep when nobody listens."""
