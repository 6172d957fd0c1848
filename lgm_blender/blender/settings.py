"""The add-on's preferences as values, whether it is enabled or not, and the worker that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy

from ..core.errors import LGMError
from ..core.system import folders
from . import install

ADDON = __package__.rpartition(".blender")[0]  # lgm_blender, or bl_ext.user_default.lgm_blender as an extension
DEFAULTS = {"worker_python": "", "device": "auto", "load_ahead": True, "idle_minutes": 10, "output": ""}


def preference(name: str) -> Any:
    """One preference, or its default where the add-on is not enabled, as in a batch from a clone."""
    addon = bpy.context.preferences.addons.get(ADDON)
    return getattr(addon.preferences, name) if addon and addon.preferences else DEFAULTS[name]


def user_folder() -> Path:
    """Where the extension may write: its own folder in Blender's user files."""
    try:
        return Path(bpy.utils.extension_path_user(ADDON))
    except ValueError:  # not run as an extension
        return folders.data_folder()


def output_folder(chosen: str = "") -> Path:
    """Where results go: what was chosen, else the preference, else beside the .blend, else the user's own folder."""
    if chosen := chosen or preference("output"):
        return Path(bpy.path.abspath(chosen)).absolute()
    if bpy.data.filepath:
        return Path(bpy.data.filepath).parent / "lgm"
    return user_folder() / "results"


def find_worker() -> install.WorkerPython:
    """The Python the worker runs on, or why there is none."""
    return install.worker_python(bpy.path.abspath(preference("worker_python")))


def worker_python() -> Path:
    """The Python the worker runs on.

    Raises:
        LGMError: (kind 'worker') If there is none.
    """
    python, where = find_worker()
    if python is None:
        raise LGMError(where, "worker")
    return python


def worker_variables() -> dict[str, str]:
    """Environment variables that tell the worker what Blender allows."""
    # The hub's client asks the network even for what it has; Blender's switch is meant for everyone in it.
    return {} if bpy.app.online_access else {"HF_HUB_OFFLINE": "1"}
