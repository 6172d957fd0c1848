"""What differs between Linux, macOS and Windows: processes, names of files, paths, links, locked files, folders.

Standard library only: build.py reads this with nothing installed. Functions take the system as `sys.platform` names it,
so that each can be asked on any machine what it does on another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .errors import LGMError

# ------------------------------------------------------------------------------------------------------- processes


def child_options(system: str = sys.platform) -> dict[str, Any]:
    """What `subprocess.Popen` is given for a child of which `end_tree` ends everything.

    On Windows no console opens beside Blender, and elsewhere a session of its own has Ctrl-C in a terminal answered by
    us alone.
    """
    if system == "win32":
        return {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0x08000000)}
    return {"start_new_session": True}


def end_tree(child: subprocess.Popen, system: str = sys.platform) -> None:
    """Ends a child that was started with `child_options`, and its children, at once and without waiting for that."""
    with contextlib.suppress(OSError):
        if system != "win32":
            os.killpg(child.pid, signal.SIGKILL)
        elif child.poll() is None:  # the number of one that has ended may be another's by now
            ending = ["taskkill", "/F", "/T", "/PID", str(child.pid)]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen(ending, **quiet, **child_options(system))


def was_killed(code: int, system: str = sys.platform) -> bool:
    """Whether an exit code is that of a process which was ended by force, as systems do when memory runs out."""
    return system != "win32" and code == -9  # on Windows such an end looks like any other


def describe_exit(code: int) -> str:
    """An exit code in words: 'exit code 1', 'exit code 0xc0000005' as Windows writes its own, 'ended by SIGSEGV'."""
    if code >= 0:
        return f"exit code {code}" if code < 1 << 16 else f"exit code {code:#x}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-code).name}"
    return f"ended by signal {-code}"


# ----------------------------------------------------------------------------------------------------- names, paths

NAME_BYTES = 200  # of the 255 that most disks allow a name: the rest is for suffixes and numbers
WINDOWS_PATH = 259  # UTF-16 units of a path that every program on Windows opens
LONGEST_SUFFIX = 30  # letters that are appended to a stem, the names of files on their way to it among them
LEAST_STEM = 8  # letters of a name that are worth having

_RESERVED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)


def file_stem(name: str, default: str = "untitled") -> str:
    """A name as a file's stem on every system, since files travel: what one of them refuses becomes '_'.

    Letters of all languages and spaces are kept. Long ones are cut to NAME_BYTES.

    Args:
        name: Any text.
        default: What is taken where nothing is left of it.
    """
    stem = _RESERVED.sub("_", name).strip().rstrip(". ")
    while len(stem.encode()) > NAME_BYTES:
        stem = stem[:-1].rstrip(". ")
    return f"_{stem}" if _DEVICES.fullmatch(stem) else stem or default


def fitting_stem(stem: str, folder: Path, system: str = sys.platform) -> str:
    """A stem, cut to what fits into a folder with the longest of our suffixes: Windows has an end of paths.

    Raises:
        LGMError: (kind 'output') If the folder's own path leaves no room.
    """
    if system != "win32":
        return stem
    room = WINDOWS_PATH - _units(str(folder)) - 1 - LONGEST_SUFFIX
    if room < min(_units(stem), LEAST_STEM):
        raise LGMError(
            f"The path of {folder} is too long: Windows' programs open paths of {WINDOWS_PATH} letters at most. "
            "Choose a folder with a shorter path.",
            "output",
        )
    while _units(stem) > room:
        stem = stem[:-1].rstrip(". ")
    return stem


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


# ------------------------------------------------------------------------------------- renaming, links, locked files

LOCKED = 2.0  # seconds in which a virus scanner or an indexer lets go of a new file
_SHARING, _ACCESS = 32, 5  # Windows' errors for a file that another program has open


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
            if not is_locked(error, system) or target.is_dir() or time.monotonic() > end:
                raise
        time.sleep(0.05)


def is_locked(error: OSError, system: str = sys.platform) -> bool:
    """Whether an error may mean that another program has the file open, which only Windows minds."""
    return system == "win32" and getattr(error, "winerror", None) in (_SHARING, _ACCESS)


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


# --------------------------------------------------------------------------------------------------------- folders


def environment_python(folder: Path, system: str = sys.platform) -> Path:
    """The Python executable of a virtual environment, whether it exists or not."""
    return folder / "Scripts" / "python.exe" if system == "win32" else folder / "bin" / "python"


def program(name: str, system: str = sys.platform) -> str:
    """A program's name with the suffix that it has on a system."""
    return f"{name}.exe" if system == "win32" else name
