"""What tests ask of other processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def is_running(number: int) -> bool:
    """Whether a process is there and at work: one that has ended may stay in the list until somebody asks for it."""
    try:
        if sys.platform == "linux":
            return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        os.kill(number, 0)
    except OSError:  # while it is being read it can go too
        return False
    return True
