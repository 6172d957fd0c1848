"""Types of command lines' arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def integer(least: int, most: int) -> Callable[[str], int]:
    """An argument's type: an integer within bounds."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    parse.__name__ = "integer"  # argparse says 'invalid integer value'
    return parse


def positive(text: str) -> float:
    """An argument's type: a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count_or_auto(text: str) -> int | None:
    """An argument's type: how many, or 'auto', which is None."""
    return None if text == "auto" else integer(1, 1024)(text)
