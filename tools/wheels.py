"""All files that the worker is made of on this system, in a folder: for computers without a network."""

from __future__ import annotations

from pathlib import Path

from lgm_blender.blender.install import suitable_build
from lgm_blender.core import lock

from .environments import this_python
from .terminal import Failure, run


def fetch_wheels(folder: Path) -> None:
    """Fetches what the lock names for this system, this Python and this graphics card, and uv.

    Raises:
        Failure: If this Python is none of the lock's, or something can't be fetched.
    """
    version, python = this_python()
    if version not in lock.PYTHONS:
        known = " or ".join("{}.{}".format(*known) for known in lock.PYTHONS)
        raise Failure(f"The lock is for Python {known}: run it with one, that which your Blender has.")
    build = suitable_build()
    build = "cpu" if build in lock.UNLOCKED else build
    folder.mkdir(parents=True, exist_ok=True)
    index = ["--extra-index-url", f"https://download.pytorch.org/whl/{build}"]
    for path in (lock.FOLDER / "uv.txt", lock.torch_file(build), *lock.files()):
        command = [python, "-m", "pip", "download", "--require-hashes", "--no-deps", "-r", path, "-d", folder]
        run([*command, *(index if path == lock.torch_file(build) else [])], f"Fetching {path.stem}", "wheels")
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e9
    print(f"{folder} holds {size:.1f} GB. In Blender: Preferences > Add-ons > LGM > Install from Folder.")
