"""Files that are whole or not there: written under another name in the same folder, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import LGMError
from .system.disks import is_forbidden, is_full, is_locked, keep_under, replace, take_name

TEMPORARY_SUFFIX = ".part"
OLD_SUFFIX = ".old.part"  # of a file that is being replaced
FOLDER_PREFIX = "lgm_blender_previews_"
# What the unfinished files of a process are called by, if another one is to remove them once it was killed.
OWNER_VARIABLE = "LGM_BLENDER_OWNER"
OLD = 86_400  # seconds after which nobody is at work on an unfinished file any more


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write to, which becomes `path` when the block ends and vanishes when the block fails.

    A reader, or a crash in the middle, sees the old file or the new one, never half of one.

    Raises:
        LGMError: (kind 'output') if the folder can't be written to, the disk is full, or `path` is a folder.
    """
    path = Path(path)
    temporary = temporary_file(path.parent)
    try:
        with temporary.open("xb") as file:
            yield file
            _flush(file)
        replace(temporary, path)
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
                whole[path] = temporary_file(path.parent)
                scraps.callback(_remove, whole[path])
                with whole[path].open("xb") as file:
                    file.write(data)
                    _flush(file)
            for path, temporary in whole.items():
                if not overwrite:
                    take_name(temporary, path)
                    undo.callback(_remove, path)
                elif path.exists():
                    old = temporary_file(path.parent, OLD_SUFFIX)
                    scraps.callback(_remove, old)
                    keep_under(path, old)
                    replace(temporary, path)
                    undo.callback(old.replace, path)
                else:
                    replace(temporary, path)
                    undo.callback(_remove, path)
            undo.pop_all()
    except FileExistsError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def temporary_file(folder: Path, suffix: str = TEMPORARY_SUFFIX) -> Path:
    """A name for a file in `folder` that is not finished; no other program takes it."""
    # Not a file's own name plus a suffix: a name may already be as long as the file system allows.
    return folder / f".lgm-{owner()}-{secrets.token_hex(4)}{suffix}"


def make_temporary_folder() -> Path:
    """A new folder for what this process needs only while it runs."""
    return Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{owner()}_"))


def owner() -> str:
    """What this process's unfinished files and folders are called by."""
    return os.environ.get(OWNER_VARIABLE) or str(os.getpid())


def remove_scraps(owner: str, folders: Iterable[str | os.PathLike]) -> None:
    """Removes what a process that was killed could not: its unfinished files in `folders`, and its temporary folders.

    Of files that belong together and of which only some had got their names, these go too, where the disk has links.

    Args:
        owner: Its OWNER_VARIABLE. A process's number would do for this machine only, and folders are shared.
        folders: Where it may have written to.
    """
    for folder in folders:
        scraps = _listed(folder, f".lgm-{owner}-*{TEMPORARY_SUFFIX}")
        with suppress(OSError):
            found = [path.stat() for path in scraps if not path.name.endswith(OLD_SUFFIX)]
            named = {status.st_ino for status in found if status.st_nlink > 1}
            if named and len(named) < len(found):
                for path in _listed(folder, "*"):
                    if path not in scraps and path.stat(follow_symlinks=False).st_ino in named:
                        _remove(path)
        for path in scraps:
            _remove(path)
    for path in _listed(None, f"{FOLDER_PREFIX}{owner}_*"):
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: str | os.PathLike | None = None) -> None:
    """Removes unfinished files in `folder`, or temporary folders if None, that are more than a day old.

    They are what is left where both processes were killed, or the power went.
    """
    pattern = f"{FOLDER_PREFIX}*" if folder is None else f".lgm-*{TEMPORARY_SUFFIX}"
    for path in _listed(folder, pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > OLD:
                shutil.rmtree(path) if folder is None else path.unlink()


def _listed(folder: str | os.PathLike | None, pattern: str) -> list[Path]:
    with suppress(OSError):  # there may be no temporary folder
        return list(Path(tempfile.gettempdir() if folder is None else folder).glob(pattern))
    return []


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())  # a full network disk reports it only here


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder itself is gone or not a folder: nothing of ours is in it
        path.unlink(missing_ok=True)


def output_error(path: Path, error: OSError) -> LGMError:
    """The sentence for a file that could not be written."""
    folder = path.parent
    if is_full(error):
        return LGMError(f"The disk is full: {path} could not be written. Free some space and try again.", "output")
    if is_locked(error):
        return LGMError(f"{path} could not be written: another program has it open. Close it there.", "output")
    if is_forbidden(error):
        return LGMError(f"{path} could not be written: no permission. Choose another output folder.", "output")
    if not folder.is_dir():
        return LGMError(f"{path} could not be written: {folder} is not a folder. Choose another one.", "output")
    reason = error.strerror or str(error)
    return LGMError(f"{path} could not be written ({reason}). Choose another output folder or name.", "output")
