"""Where a user's data go: home and data folder, also of a user who has none, and folders that nobody else can open."""

from __future__ import annotations

import getpass
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def home_folder() -> Path:
    """The user's home; where the system knows none, as for a container's unknown user, a private folder among the
    temporary files."""
    with suppress(RuntimeError):
        return Path.home()
    return private_folder("lgm_blender_home")


def private_folder(name: str) -> Path:
    """A folder among the temporary files that only this user can open: of that name, or of a new one if a neighbour has
    taken it."""
    own = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"{name}_{own}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and (
        sys.platform == "win32" or (status.st_uid, status.st_mode & 0o077) == (own, 0)
    ):
        return folder  # the folder of temporary files is the user's own on Windows
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


def ensure_home() -> None:
    """Gives this process a home and a user's name where it has none: libraries put their caches there.

    Call it before they are imported: some look once.
    """
    if sys.platform != "win32":
        os.environ["HOME"] = str(home_folder())  # the same, where there is one
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = "nobody"


def data_folder() -> Path:
    """Where the extension keeps what all Blender versions share, such as the worker's environment."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home_folder() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home_folder() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or home_folder() / ".local" / "share"
    return Path(base) / "lgm_blender"
