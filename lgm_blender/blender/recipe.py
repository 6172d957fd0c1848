"""How a Python environment is made with uv: which commands, in which order, and what is tried if one fails.

No bpy here: build.py and the tests use it as it is.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..core import environment, installed, lock
from ..core.environment import environment_python, package_name
from ..core.errors import LGMError
from ..core.lock import TorchBuild
from ..core.system.processes import NO_WINDOW, program
from .process import clean_variables
from .tasks import Step, Way

UV_VERSION = "0.13.9"
ALL_OF_CUDA = (
    "No CPU-only torch is in reach, so PyPI's is taken: it brings several GB of CUDA packages that this machine has no "
    "use for. With https://download.pytorch.org/whl/cpu in reach, it would be 200 MB."
)
NO_CUDA = "No CUDA build of torch is in reach: it will run on the CPU."
OLD_CUDA = (
    "The graphics driver or the GPU is too old for the PyTorch whose SHA-256 is known here, so one with CUDA 12.6 is "
    "fetched from PyTorch's index and trusted. Drivers from 580 on, with a GPU from Turing (RTX) on, get the known one."
)

# Blender's Python has no pip installed, but ensurepip carries one as a wheel, which runs as it is; Debian keeps that
# wheel elsewhere.
_BUNDLED_PIP = """\
import ensurepip, runpy, sys, sysconfig
from pathlib import Path
places = [Path(ensurepip.__file__).parent / "_bundled", Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or "/none")]
sys.path.insert(0, next((str(wheel) for place in places for wheel in place.glob("pip-*.whl")), ""))
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_PIPS = (("-I", "-m", "pip"), ("-I", "-c", _BUNDLED_PIP))

# pip's settings and the variables by which uv has the same.
_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


@dataclass(frozen=True)
class Plan:
    """An environment to be made.

    Attributes:
        folder: Where it lies.
        requirements: What goes into it; if torch is among them, it is a worker's, and made of the lock: of every file
            that the lock has, by its SHA-256, then what is required beside.
        pythons: What it may be built on, best first: executables, or versions ('3.12') for uv to fetch.
        trial: Python code that fails if it doesn't work and else prints what it is, in one line.
        tools: Where uv lies or is fetched to.
        log: What receives everything that is run and printed.
        again: What the user does if it fails.
        variables: Environment variables for uv.
    """

    folder: Path
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    trial: str
    tools: Path
    log: Path
    again: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def locked(self) -> bool:
        """Whether it is made of the lock."""
        return any(package_name(line) == "torch" for line in self.requirements)

    @property
    def beside(self) -> list[str]:
        """What is required that is not in the lock."""
        if not self.locked:
            return [*self.requirements, "pip"]
        known = {*environment.requirements(libc=("glibc", "99.0"))}
        return [line for line in self.requirements if line not in known]

    @property
    def own_python(self) -> str:
        """The first Python that need not be fetched."""
        return next(python for python in self.pythons if not _is_version(python))


def check_wheels(folder: Path, plan: Plan) -> None:
    """Looks whether a folder has a wheel of all that an environment of this Blender's Python needs.

    Raises:
        LGMError: If not: what is missing.
    """
    if sys.version_info[:2] not in lock.PYTHONS:
        this, *known = ("{}.{}".format(*python) for python in (sys.version_info[:2], *lock.PYTHONS))
        raise LGMError(
            f"A folder of wheels serves Python {' and '.join(known)}, and this is {this}. Use another Blender.",
            "worker",
        )
    here = lock.marker_values()
    tools = [] if not uv_steps(plan.tools, "") else [lock.FOLDER / "uv.txt"]
    missing = lock.missing_wheels(folder, lock.wanted([*tools, *lock.files()], here))
    of_torch = [lock.missing_wheels(folder, lock.wanted([lock.torch_file(build)], here)) for build in ("cpu", "cu130")]
    if lacking := [*min(of_torch, key=len), *missing]:
        rest = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise LGMError(
            f"{folder} lacks wheels of {', '.join(lacking[:5])}{rest}. Add them: docs/install.md says how.",
            "worker",
        )


def worker_trial() -> str:
    """See `Plan.trial`."""
    said = "print('torch', torch.__version__, 'on Python', platform.python_version())"
    return f"import platform, {', '.join(environment.modules())}; {said}"


@dataclass(frozen=True)
class Machine:
    """What an installation finds on this computer, beside what the plan says.

    Attributes:
        build: The build of torch that is wanted.
        settings: pip's, as variables for uv: see `pip_settings`.
        wheels: A folder that holds all that is needed, and nothing else is asked; or None.
        damaged: Packages of the environment that are not whole.
        dead: Whether there is an environment whose Python does not run: it is made anew.
    """

    build: TorchBuild = "cpu"
    settings: Mapping[str, str] = field(default_factory=dict)
    wheels: Path | None = None
    damaged: Sequence[str] = ()
    dead: bool = False


def install_steps(plan: Plan, machine: Machine) -> list[Step]:
    """What is run to make an environment, to bring it up to date, or to mend it."""
    uv, python = str(uv_path(plan.tools)), str(environment_python(plan.folder))
    install = (uv, "pip", "install", "--python", python)
    wheels = ("--no-index", "--find-links", str(machine.wheels)) if machine.wheels else ()
    steps = uv_steps(plan.tools, plan.own_python, machine.wheels)
    ways = [((*install, *way.options), way.note) for way in torch_ways(machine)] if plan.locked else [((), "")]
    again = [word for name in _damaged(plan, machine) for word in ("--reinstall-package", name)]
    pythons = [python for python in plan.pythons if not (machine.wheels and _is_version(python))]
    makings = (
        [()] if _has_python(plan) and not machine.dead else [((uv, *_make(plan.folder, python)),) for python in pythons]
    )
    # All Pythons before the next kind of torch: where one of them is all that has a small one, the worker runs on that.
    steps.append(
        Step(
            "Making a Python environment" + (" with torch" if plan.locked else ""),
            tuple(
                Way((*making, *([(*command, *again)] if command else [])), note)
                for command, note in ways
                for making in makings
            ),
        )
    )
    if plan.locked:
        listed = [word for path in lock.files() for word in ("-r", str(path))]
        exact = (*install, "--require-hashes", "--no-deps", *wheels, *again, *listed)
        steps.append(Step("Fetching packages" if not wheels else "Installing packages", (Way((exact,)),)))
        if plan.beside:
            more = (*install, *plan.beside, "-c", str(lock.files()[0]))
            steps.append(Step("Fetching more packages", (Way((more,)),)))
    else:
        steps.append(Step("Fetching packages", (Way(((*install, *plan.beside),)),)))
    steps.append(Step("Trying the packages", (Way(((python, "-I", "-c", plan.trial),)),)))
    return steps


class TorchWay(NamedTuple):
    """uv's options for torch, and what the user should know if it comes to that."""

    options: tuple[str, ...]
    note: str = ""


def torch_ways(machine: Machine, system: str = sys.platform) -> list[TorchWay]:
    """How torch can be had, best first. PyPI has CPU builds for Windows and macOS, and CUDA 13.0's for Linux; the
    others are in PyTorch's own index, which uv knows by the name of a build."""

    def locked(build: TorchBuild, *options: str) -> tuple[str, ...]:
        return ("--require-hashes", "--no-deps", *options, "-r", str(lock.torch_file(build)))

    linux, wanted = system == "linux", machine.build
    if machine.wheels:
        offline = ("--no-index", "--find-links", str(machine.wheels))
        builds = [wanted] if wanted not in lock.UNLOCKED else []
        builds += [build for build in ("cpu", "cu130") if build != wanted]
        notes = {build: NO_CUDA if wanted != "cpu" and build == "cpu" else "" for build in builds}
        return [TorchWay(locked(build, *offline), notes[build]) for build in builds]
    cpu = [TorchWay(locked("cpu", *(("--torch-backend", "cpu") if linux else ())))]
    if linux and machine.settings.get("UV_FIND_LINKS"):
        cpu.insert(0, TorchWay(locked("cpu", "--no-index")))
    if wanted == "cpu":
        return [*cpu, *([TorchWay(locked("cu130"), ALL_OF_CUDA)] if linux else [])]
    if wanted == "cu130":
        cuda = TorchWay(locked("cu130", *(() if linux else ("--torch-backend", "cu130"))))
    else:
        cuda = TorchWay(("--no-build", "--torch-backend", wanted, f"torch=={lock.torch_version()}+{wanted}"), OLD_CUDA)
    return [cuda, *(way._replace(note=NO_CUDA) for way in cpu)]


def _damaged(plan: Plan, machine: Machine) -> list[str]:
    """What is installed anew: what is not whole, and torch if it was another build's."""
    marker = environment.read_marker(plan.folder) or {}
    other = ["torch"] if plan.locked and marker and marker.get("build", machine.build) != machine.build else []
    return [*machine.damaged, *other]


def uv_path(tools: Path) -> Path:
    """Where uv lies in a folder that it was fetched to."""
    return tools / "bin" / program("uv")


def uv_steps(tools: Path, python: str, wheels: Path | None = None) -> list[Step]:
    """What fetches uv with a Python, or with another uv; nothing if the one that this was written for is there.

    Args:
        tools: Where it goes.
        python: One that has pip or ensurepip.
        wheels: A folder to take it from, or None.
    """
    if uv_path(tools).is_file() and (tools / f"uv-{UV_VERSION}.dist-info").is_dir():
        return []
    offline = ("--no-index", "--find-links", str(wheels)) if wheels else ()
    package = (*offline, "--upgrade", "--target", str(tools), "--require-hashes", "-r", str(lock.FOLDER / "uv.txt"))
    ways = [Way(((python, *pip, "install", "--no-input", "--only-binary=:all:", *package),)) for pip in _PIPS]
    if other := shutil.which("uv"):
        ways.append(Way(((other, "pip", "install", "--python", python, *package),)))
    return [Step("Fetching the installer, uv", tuple(ways))]


def _is_version(python: str) -> bool:
    return bool(re.fullmatch(r"3\.\d+", python))


def _has_python(plan: Plan) -> bool:
    """Whether the environment is good enough to be kept: one without its torch may be of a Python that has none."""
    has_torch = any((libraries / "torch").is_dir() for libraries in environment.site_packages(plan.folder))
    return not installed.python_problem(plan.folder) and (has_torch or not plan.locked)


def _make(folder: Path, python: str) -> tuple[str, ...]:
    origin = "--managed-python" if _is_version(python) else "--no-python-downloads"
    return ("venv", "--no-project", "--clear", str(folder), origin, "--python", python)


def is_dead(python: Path) -> bool:
    """Whether there is a Python that does not run: a file of its own is missing, for example."""
    try:
        command = [str(python), "-I", "-c", ""]
        return python.exists() and bool(
            subprocess.run(
                command, capture_output=True, timeout=60, env=clean_variables(), creationflags=NO_WINDOW
            ).returncode
        )
    except (OSError, subprocess.TimeoutExpired):
        return True


def pip_settings(python: str) -> dict[str, str]:
    """The settings that pip has on this machine, from its files and variables, as variables for uv, which reads none.

    Args:
        python: A Python that has pip or ensurepip; one without has no settings.
    """
    listed = ""
    for pip in _PIPS:
        command = [python, *pip, "config", "list"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=60, env=clean_variables(), creationflags=NO_WINDOW
            )
            if answer.returncode == 0:
                listed = answer.stdout
                break
    found = {}
    for section in ("global", "install", ":env:"):  # each may override the one before
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(.+)$", listed, re.MULTILINE):
            if name in _SETTINGS:
                separator = "," if name == "find-links" else " "
                found[_SETTINGS[name]] = separator.join(str(ast.literal_eval(value)).split())
    if "UV_INDEX" in found:
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip: whichever index has the newest
    return {name: value for name, value in found.items() if name not in os.environ}
