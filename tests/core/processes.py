"""What tests ask of other processes."""

from __future__ import annotations

import psutil


def is_running(number: int) -> bool:
    """Whether a process is there and at work: one that has ended may stay in the list until somebody asks for it."""
    try:
        return psutil.Process(number).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:  # while it is being asked it can go too
        return False
