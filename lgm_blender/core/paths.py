"""Paths from outside, and what they may lead to."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def expanded(path: str | os.PathLike) -> Path:
    """A path whose ~ is the user's home; as it is, where no such user or no home is known."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Through a link there may be a device that never ends, or a pipe
    that never begins; they are not opened.

    Raises:
        OSError: If it can't be read, is larger, or no regular file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(path))
    with path.open("rb") as file:
        return file.read(limit)
