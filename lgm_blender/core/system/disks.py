"""Renaming, links and locks, and what the errors of disks mean."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from pathlib import Path
from typing import BinaryIO

LOCKED = 2.0  # seconds in which a virus scanner or an indexer lets go of a new file
_SHARING, _ACCESS = 32, 5  # Windows' errors for a file that is open, and for one that may not be touched
_BEYOND = 1 << 40  # Windows keeps others from reading what is locked: a byte that no file ever has


def replace(source: Path, target: Path, system: str = sys.platform) -> None:
    """Renames a file, whether its new name is taken or not. On Windows a file that is open can't be replaced: it is
    tried for LOCKED seconds.

    Raises:
        OSError: If it can't be done.
    """
    end = time.monotonic() + LOCKED
    while True:
        try:
            source.replace(target)
            return
        except PermissionError as error:
            # A file that is being deleted is refused like one that may not be touched.
            open_somewhere = is_locked(error, system) or getattr(error, "winerror", None) == _ACCESS
            if system != "win32" or not open_somewhere or target.is_dir() or time.monotonic() > end:
                raise
        time.sleep(0.05)


def is_locked(error: OSError, system: str = sys.platform) -> bool:
    """Whether an error means that another program has the file open, which only Windows minds."""
    return system == "win32" and getattr(error, "winerror", None) == _SHARING


def keep_under(path: Path, other: Path) -> None:
    """Gives a file a second name; where the disk has no links (exFAT, some network disks), copies it.

    Raises:
        OSError: If neither can be done.
    """
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def take_name(source: Path, target: Path) -> None:
    """Renames or links a file to a name that no other has: no other program can come in between.

    Where the disk has no links, `source` is gone afterwards.

    Raises:
        FileExistsError: If the name is taken.
        OSError: If it can't be done.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no links here
        target.open("xb").close()
        try:
            replace(source, target)
        except OSError:
            with contextlib.suppress(OSError):
                target.unlink()
            raise


def is_full(error: OSError) -> bool:
    """Whether an error means that the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or getattr(error, "winerror", None) in (39, 112)


def is_forbidden(error: OSError) -> bool:
    """Whether an error means that the user may not write there."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def take_lock(file: BinaryIO) -> bool:
    """Locks an open file until it is closed, or its process ends; False if another process has done so.

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
