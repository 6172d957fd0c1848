"""Files that are whole or not there: written under another name in the same folder, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import LGMError

TEMPORARY_SUFFIX = ".part"


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write to, which becomes `path` when the block ends and vanishes when the block fails.

    A reader, or a crash in the middle, sees the old file or the new one, never half of one.

    Raises:
        LGMError: (kind 'output') if the folder can't be written to, the disk is full, or `path` is a folder.
    """
    path = Path(path)
    # Not the file's own name plus a suffix: a name may already be as long as the file system allows.
    temporary = path.parent / f".lgm-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full network disk reports it only here
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):  # the folder itself is gone or not a folder: nothing of ours is in it
            temporary.unlink(missing_ok=True)


def write_together(files: dict[Path, bytes]) -> None:
    """Write files that belong together: all are on the disk before the first gets its name, the last one named last.

    Raises:
        LGMError: (kind 'output') if one can't be written; then none is there.
    """
    with ExitStack() as stack:
        for path, data in reversed(files.items()):  # a stack ends with what was put on it first
            file = stack.enter_context(replacing(path))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def output_error(path: Path, error: OSError) -> LGMError:
    """The sentence for a file that could not be written."""
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LGMError(f"The disk is full: {path} could not be written. Free some space and try again.", "output")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return LGMError(f"{path} could not be written: no permission. Choose another output folder.", "output")
    if not folder.is_dir():
        return LGMError(f"{path} could not be written: {folder} is not a folder. Choose another one.", "output")
    reason = error.strerror or str(error)
    return LGMError(f"{path} could not be written ({reason}). Choose another output folder or name.", "output")
