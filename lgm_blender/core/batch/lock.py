"""A lock that dies with its process, on the journal itself: no file is left behind that could be stale."""

from __future__ import annotations

import errno
import os
import sys
from typing import BinaryIO

_BEYOND = 1 << 40  # Windows keeps others from what is locked: a byte that no file ever has


def take_lock(file: BinaryIO) -> bool:
    """Locks an open file until it is closed; False if another process has done so.

    Where the disk knows no locks (some network disks) it is taken as locked.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file.fileno(), _BEYOND, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True
