"""Files that are whole or not there: written under another name in the same folder, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
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
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            yield file
            _flush(file)
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        _remove(temporary)


def write_together(files: Mapping[Path, bytes], *, overwrite: bool = True) -> None:
    """Writes files that belong together, all or none. The last one gets its name last: where it is, the others are.

    Args:
        files: What each file is to hold.
        overwrite: Whether files that are there may be replaced. If not, of two programs that want the same names at the
            same moment one gets all of them, and the other the FileExistsError.

    Raises:
        LGMError: (kind 'output') if one can't be written or replaced; all are then as they were.
        FileExistsError: If one is there that may not be replaced; all are then as they were.
    """
    path = Path()
    try:
        with ExitStack() as scraps, ExitStack() as undo:
            whole = {}
            for path, data in files.items():
                whole[path] = _temporary_name(path)
                scraps.callback(_remove, whole[path])
                with whole[path].open("xb") as file:
                    file.write(data)
                    _flush(file)
            for path, temporary in whole.items():
                if not overwrite:
                    _take_name(temporary, path)
                    undo.callback(_remove, path)
                elif path.exists():
                    old = _temporary_name(path)
                    scraps.callback(_remove, old)
                    _keep(path, old)
                    temporary.replace(path)
                    undo.callback(old.replace, path)
                else:
                    temporary.replace(path)
                    undo.callback(_remove, path)
            undo.pop_all()
    except FileExistsError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def _temporary_name(path: Path) -> Path:
    # Not the file's own name plus a suffix: a name may already be as long as the file system allows.
    return path.parent / f".lgm-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())  # a full network disk reports it only here


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder itself is gone or not a folder: nothing of ours is in it
        path.unlink(missing_ok=True)


def _keep(path: Path, other: Path) -> None:
    """Gives a file a second name; where the disk has no links (exFAT, some network disks), copies it."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _take_name(temporary: Path, path: Path) -> None:
    """Gives a file a name that no other has, or raises FileExistsError: no other program can come in between."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # no links here
        path.open("xb").close()
        try:
            temporary.replace(path)
        except OSError:
            _remove(path)
            raise


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
