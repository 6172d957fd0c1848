"""The Pythons on this machine, and the environments beside build.py: the worker's and one for each Blender."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tools
from lgm_blender.blender.install import Installation, is_current
from lgm_blender.blender.recipe import Plan, uv_path, uv_steps, worker_trial
from lgm_blender.blender.tasks import Task
from lgm_blender.core import environment, lock

from .terminal import Failure, follow

TOOLS = tools.BUILD / "tools"  # uv

# The Blenders that are tested, by the Python they have inside, the newest of each last: the oldest we support, the last
# with long support and the newest.
BLENDERS = {(3, 11): ("4.2",), (3, 13): ("5.2", "5.3")}

# What `import bpy` and a render without a screen need from Debian and its relatives.
APT_PACKAGES = (
    *("libegl1", "libgl1", "libgl1-mesa-dri", "libgomp1", "libice6", "libsm6", "libx11-6", "libxext6", "libxfixes3"),
    *("libxi6", "libxkbcommon0", "libxrender1", "libxxf86vm1"),
)

# Leaves at once: Blender may hang at its end.
BLENDER_TRIAL = """
import bpy, os, platform
print("bpy", bpy.app.version_string, "on Python", platform.python_version(), flush=True)
os._exit(0)
"""


def test_requirements() -> list[str]:
    """What the tests need beside what they test."""
    return environment.read_requirements(tools.ROOT / "tests" / "requirements.txt")


# --------------------------------------------------------------------------------------------- finding interpreters


def this_python() -> tuple[tuple[int, int], Path]:
    """The version and path of the running interpreter, or of the one that made the environment it runs in."""
    return sys.version_info[:2], Path(getattr(sys, "_base_executable", "") or sys.executable)


@functools.cache
def find_pythons() -> dict[tuple[int, int], Path]:
    """The Pythons on this machine by their versions, this one first. None is downloaded."""
    this, path = this_python()
    follow(Task(uv_steps(TOOLS, str(path)), tools.BUILD / "logs" / "uv.txt"))
    # pyenv's commands on PATH may only say that they are not there.
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob("versions/3.*/bin")
    places = [*map(str, sorted(pyenv, reverse=True)), os.environ.get("PATH", "")]
    answer = subprocess.run(
        [uv_path(TOOLS), "python", "list", "--only-installed", "--output-format", "json"],
        env=os.environ | {"PATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
    )
    found = {this: path}
    for python in json.loads(answer.stdout or "[]"):
        if python["implementation"] == "cpython" and python["variant"] == "default":
            version = python["version_parts"]
            found.setdefault((version["major"], version["minor"]), Path(python["path"]))
    return found


def blender_python() -> tuple[tuple[int, int], Path]:
    """The version and path of the interpreter that bpy is installed for: that of the newest Blender, if it is here.

    Raises:
        Failure: If there is none that a Blender comes for.
    """
    this = "Python {}.{}".format(*this_python()[0])
    found = find_pythons()
    if version := max(found.keys() & BLENDERS.keys(), default=None):
        if version != this_python()[0]:
            print(f"Blender {BLENDERS[version][-1]} is for Python {version[0]}.{version[1]}: {found[version]} is used.")
        return version, found[version]
    wanted = " or ".join("{}.{}".format(*version) for version in BLENDERS)
    raise Failure(
        f"Blender comes for Python {wanted}; this is {this}. Install one of them (python.org, your system's packages, "
        f"or 'uv python install 3.11') and run:\n\n    python3.11 build.py {' '.join(sys.argv[1:])}"
    )


# ---------------------------------------------------------------------------------------------------- environments


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return environment.environment_python(self.folder)

    def __str__(self) -> str:
        """What its trial said, for example 'bpy 5.3.0 on Python 3.13.0'."""
        return environment.read_marker(self.folder)["trial"]


def blender_environment(blender: str, python: Path, more: Sequence[str] = ()) -> Environment:
    """The environment that has a Blender of this version, made if there is none, and more packages.

    Raises:
        Failure: If it can't be made, or if Blender doesn't start in it.
    """
    wanted = [f"bpy=={blender}.*", *more]
    try:
        return make(tools.ROOT / f".venv-blender-{blender}", wanted, lambda: [python], BLENDER_TRIAL)
    except Failure as failure:
        if "cannot open shared object file" not in str(failure):
            raise
        raise Failure(
            f"{failure}\n\nA library is missing. On Debian and Ubuntu this brings what Blender needs:\n\n"
            f"    apt-get install -y {' '.join(APT_PACKAGES)}\n\nThen run the same command again."
        ) from None


def main_blender() -> Environment:
    """That of the newest Blender whose Python is here."""
    version, python = blender_python()
    return blender_environment(BLENDERS[version][-1], python)


def worker_environment(more: Sequence[str] = ()) -> Environment:
    """The environment that has the worker's packages, as the panel's button makes it, and more packages.

    It is made for this Python; if only another one on this machine has a torch in reach that fits, for that one.

    Raises:
        Failure: If it can't be made.
    """
    if sentence := environment.unsupported():
        raise Failure(sentence)

    def pythons() -> list[Path]:
        return [path for version, path in find_pythons().items() if version in lock.PYTHONS]

    return make(tools.ROOT / ".venv", [*environment.requirements(), *more], pythons, worker_trial())


@functools.cache
def has_gpu() -> bool:
    """Whether torch should be able to use CUDA. The driver is asked once: it may take seconds to wake up."""
    return environment.has_nvidia_gpu()


def make(folder: Path, requirements: Sequence[str], pythons: Callable[[], Sequence[Path]], trial: str) -> Environment:
    """Makes an environment, or brings it up to date. Does nothing if it is.

    Args:
        folder, requirements, trial: See `lgm_blender.blender.install.Plan`.
        pythons: Gives what it may be built on, best first.

    Raises:
        Failure: If that fails; the same command goes on where it was.
    """
    marker = environment.read_marker(folder) or {}
    has_torch = any(line.startswith("torch") for line in requirements)
    fits = marker.get("gpu") or not (has_torch and has_gpu())
    if not (fits and is_current(marker, requirements, locked=has_torch)):
        plan = Plan(
            folder,
            tuple(requirements),
            tuple(map(str, pythons())),
            trial,
            TOOLS,
            tools.BUILD / "logs" / f"install-{folder.name.lstrip('.')}.txt",
            "The same command goes on where it was.",
        )
        follow(Installation(plan), f" for {folder.name}")
    return Environment(folder)
