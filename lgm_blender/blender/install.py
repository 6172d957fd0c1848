"""Makes Python environments with uv: the worker's, in a folder that no Blender version owns, and build.py's.

No bpy here: build.py and the tests use it as it is. Whether Blender may go online is for the caller to ask.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core import environment, installed, lock
from ..core.environment import environment_python, package_name
from ..core.errors import LGMError
from ..core.files import replacing
from ..core.lock import TorchBuild
from ..core.paths import expanded
from ..core.system import folders
from .recipe import Machine, Plan, check_wheels, install_steps, is_dead, pip_settings, worker_trial
from .tasks import Step, Task

PYTHON_VERSION = "{}.{}".format(*lock.PYTHONS[0])
# Everything the extension ever puts in its data folder; the last is the worker's memory of which weights are whole.
CONTENTS = ("environment", "python", "tools", "cache", "logs", "checked_files.json")
SPARE_DISK = 1 << 30  # bytes that must stay free beside what the worker takes


class WorkerPython(NamedTuple):
    """The Python the worker runs on, or None; and where it was found, or a sentence that says what to do."""

    path: Path | None
    where: str


def worker_python(preference: str = "") -> WorkerPython:
    """The Python the worker runs on.

    In this order: the preference; the environment variable LGM_BLENDER_PYTHON; the environment that build.py made,
    `.venv`, if this package lies in a clone of the repository or below it; the one that the panel's button made. A
    choice that leads nowhere is a problem and not passed over: the user meant it.
    """
    variable = os.environ.get(environment.PYTHON_VARIABLE, "")
    for named, where in ((preference, "the preferences"), (variable, f"the variable {environment.PYTHON_VARIABLE}")):
        if named:
            path = expanded(named)
            path = environment_python(path) if path.is_dir() else path
            if not path.is_file():
                return WorkerPython(None, f"The worker's Python set in {where} does not exist: {path}")
            return WorkerPython(path, where)
    clones = (root for root in environment.PACKAGE.parents if (root / "build.py").is_file())
    made = [(root / ".venv", "build.py") for root in clones if (root / "lgm_blender").is_dir()]
    for folder, where in [*made, (environment_folder(), "installed")]:
        if environment.read_marker(folder) and not (where == "installed" and installed.python_problem(folder)):
            return WorkerPython(environment_python(folder), where)
    return WorkerPython(None, environment.unsupported() or _what_is_missing())


def _what_is_missing() -> str:
    """Why the panel's own environment can't be used, and what to do."""
    if not is_started():
        what = "The worker is not installed yet"
    elif not is_finished():
        what = "The worker's installation was not finished"
    else:
        problem = installed.python_problem(environment_folder()) or "its list of contents can't be read"
        what = f"The worker's environment is damaged: {problem}"
    return f"{what}. Press {label()} in the preferences of LGM."


def environment_folder() -> Path:
    """Where the environment lies that the panel's button makes, whether it exists or not."""
    return folders.data_folder() / "environment"


def is_outdated() -> bool:
    """Whether the environment that the panel's button has made is there, and was made of another lock than today's."""
    marker = environment.read_marker(environment_folder())
    return marker is not None and not is_current(marker, environment.requirements())


def is_current(marker: Mapping[str, Any], requirements: Iterable[str], locked: bool = True) -> bool:
    """Whether an environment with this marker has what is required, in the versions of today's lock."""
    has_all = {*requirements} <= {*marker.get("requirements", ())}
    return has_all and (not locked or marker.get("lock") == lock.digest())


def is_started() -> bool:
    """Whether anything of the panel's own environment is there, whole or not."""
    return environment_folder().is_dir()


def is_finished() -> bool:
    """Whether it was made to the end once, damaged since or not."""
    return (environment_folder() / environment.MARKER).is_file()


def suitable_build() -> TorchBuild:
    """The build of torch for this machine. Asks the driver, which may take seconds to wake up.

    CUDA 13.0 is for drivers from 580 on, and PyTorch's is for GPUs from Turing on; CUDA 12.6 runs on drivers from 525
    on.
    """
    if (gpu := environment.nvidia_gpu()) is None:
        return "cpu"
    driver, capability = gpu
    if driver >= (580,) and capability >= 7.5:
        return "cu130"
    return "cu126" if driver >= (525,) or driver == (0,) else "cpu"


def size() -> int:
    """Bytes on disk that `remove` gives back; a file with several links counts once."""
    files = {}
    for name in CONTENTS:
        for parent, _, names in os.walk(folders.data_folder() / name):
            for file in names:
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(parent, file), follow_symlinks=False)  # noqa: PTH116, PTH118
                    files[status.st_dev, status.st_ino or len(files)] = status.st_size
    return sum(files.values())


def remove() -> None:
    """Deletes everything that was installed, and the logs.

    Raises:
        LGMError: If something could not be deleted, as on Windows while a worker runs from it.
    """
    folder = folders.data_folder()
    # Whatever happens next, it is not whole any more.
    (folder / "environment" / environment.MARKER).unlink(missing_ok=True)
    try:
        for path in (folder / name for name in CONTENTS):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
    except OSError as error:
        message = (
            f"{error.filename or folder} could not be deleted ({error.strerror}). Close other Blenders and try again."
        )
        raise LGMError(message, "output") from error
    with contextlib.suppress(OSError):  # not empty: somebody else's files
        folder.rmdir()


def shared_plan() -> Plan:
    """The worker's environment for all Blender versions, as the panel's button makes it."""
    folder = folders.data_folder()
    log = folder / "logs" / "install.log"
    return Plan(
        folder / "environment",
        tuple(environment.requirements()),
        # A Python of its own where possible, so that the environment outlives the Blender that made it.
        (PYTHON_VERSION, sys.executable),
        worker_trial(),
        folder / "tools",
        log,
        f"Press Install to try again. The log is {log}",
        {"UV_CACHE_DIR": str(folder / "cache"), "UV_PYTHON_INSTALL_DIR": str(folder / "python")},
    )


def label() -> str:
    """What installing is called, by what is there."""
    if not is_started():
        return "Install Worker"
    if not is_finished():
        return "Go On Installing"
    return "Repair Worker" if installed.python_problem(environment_folder()) or not is_outdated() else "Update Worker"


class BuildLookup:
    """Finds out in a thread which build of torch suits this machine.

    Attributes:
        build: None as long as it is not known.
    """

    def __init__(self) -> None:
        self.build: TorchBuild | None = None
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        self.build = suitable_build()


class Installation(Task):
    """One run of the installer: it makes an environment, goes on with one that is half made, or mends one.

    Args:
        plan: What is made; the worker's environment for all Blender versions if None.
        build: The build of torch; what suits this machine if None.
        wheels: A folder that holds everything, for a computer without a network, or None.
    """

    def __init__(self, plan: Plan | None = None, build: TorchBuild | None = None, wheels: Path | None = None):
        self.plan = plan or shared_plan()
        # The system's certificates, as pip: a company's proxy has its own.
        variables = {"UV_NO_PROGRESS": "1", "UV_HTTP_TIMEOUT": "120", "UV_SYSTEM_CERTS": "1", **self.plan.variables}
        if wheels:
            variables["UV_OFFLINE"] = "1"
        super().__init__([], self.plan.log, variables)
        self.label = "Looking at this machine"
        self._build, self._wheels = build, wheels
        self._settings: dict[str, str] = {}
        self._damaged: list[str] = []
        self._dead = False
        # nvidia-smi may take seconds to wake the driver, and so may 20,000 files on a slow disk.
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def _look(self) -> None:
        if self._build is None:
            self._build = suitable_build() if self.plan.locked else "cpu"
        if self._wheels is None:
            self._settings = pip_settings(self.plan.own_python)
        self._dead = is_dead(environment_python(self.plan.folder))
        if not self._dead:  # one that is half made too: it may have been cut off anywhere
            self._damaged = installed.damaged_packages(self.plan.folder)

    def _run(self) -> Iterator[bool]:
        while self._looking.is_alive():
            yield False
        plan = self.plan
        marker = environment.read_marker(plan.folder)
        if plan.locked:
            self._check(marker)
        plan.folder.mkdir(parents=True, exist_ok=True)
        if self._damaged:
            self.notes.append(f"Not whole, and installed again: {', '.join(self._damaged)}.")
        self._variables |= self._settings
        self._steps = install_steps(plan, Machine(self._build, self._settings, self._wheels, self._damaged, self._dead))
        yield from super()._run()
        # The environment keeps its files: uv links them from the cache.
        if cache := plan.variables.get("UV_CACHE_DIR"):
            shutil.rmtree(cache, ignore_errors=True)
        names = {package_name(line) for line in plan.requirements}
        older = [line for line in (marker or {}).get("requirements", ()) if package_name(line) not in names]
        marker = {
            "requirements": [*older, *plan.requirements],
            "gpu": self._build != "cpu",
            "build": self._build,
            "lock": lock.digest() if plan.locked else "",
            "trial": (self.output or ["?"])[-1],
        }
        with replacing(plan.folder / environment.MARKER) as file:
            file.write(json.dumps(marker, indent=2).encode() + b"\n")
        self.message, self.label = marker["trial"], "Installed"
        yield True

    def _check(self, marker: Mapping[str, Any] | None) -> None:
        """Raises an LGMError if it can't succeed, before anything is fetched."""
        if sentence := environment.unsupported():
            raise LGMError(sentence, "worker")
        self.plan.folder.parent.mkdir(parents=True, exist_ok=True)
        size, free = lock.size(self._build), shutil.disk_usage(self.plan.folder.parent).free
        needed = size.disk + SPARE_DISK if size else 0
        if free < needed and marker is None:
            raise LGMError(
                f"The worker needs {needed / 1e9:.1f} GB in {self.plan.folder.parent}, and {free / 1e9:.1f} GB are "
                "free there. Make room and try again.",
                "output",
            )
        if self._wheels:
            check_wheels(self._wheels, self.plan)

    def _explain(self) -> str:
        said = "\n".join(self.output).lower()
        errors = [line for line in self.output if "error" in line.lower()]
        if any(words in said for words in ("dns error", "failed to lookup", "name or service", "connection refused")):
            reason = "the package index can't be reached. Is this computer online, behind a proxy or a firewall?"
        elif "hash mismatch" in said:
            reason = (
                "what was fetched is not the file that this version of LGM was made with (its SHA-256 is another), and "
                "was not installed."
            )
        elif "no space left" in said or "os error 112" in said:
            reason = "the disk is full."
        elif re.search(r"no module named '?(ensurepip|pip)\b", said):
            reason = (
                "this Python has no pip and no ensurepip to fetch packages with. On Debian and Ubuntu, "
                "apt-get install python3-venv brings it."
            )
        else:
            reason = (errors or self.output or ["it said nothing"])[-1].rstrip(".") + "."
        return f"{self.label} failed: {reason} {self.plan.again}"


class Download(Task):
    """Fetches a preset's published weights; a download that was broken off goes on where it stopped.

    Args:
        command: The worker's `models --download PRESET --until-stdin-ends`.
        preset: Its name, for the label.
        log: See `Task`.
    """

    def __init__(self, command: Sequence[str], preset: str, log: Path):
        super().__init__([Step.of(f"Fetching the models of '{preset}'", command, attached=True)], log)

    @property
    def factor(self) -> float:
        """How much of the current file is here, as the last line tells: '[2/7] NAME: 120 of 830 MB'."""
        found = re.search(r": ([\d,]+) of ([\d,]+) MB$", self.message)
        done, total = (int(number.replace(",", "")) for number in found.groups()) if found else (0, 1)
        return done / max(1, total)

    def _explain(self) -> str:
        told = [line.removeprefix("Error: ") for line in self.output if line.startswith("Error: ")]
        return told[-1] if told else super()._explain()
