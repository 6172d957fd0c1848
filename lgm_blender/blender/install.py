"""Makes Python environments with uv: the worker's, in a folder that no Blender version owns, and build.py's.

No bpy here: build.py and the tests use it as it is. Whether Blender may go online is for the caller to ask.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..core import environment
from ..core.environment import environment_python, package_name
from ..core.errors import LGMError
from ..core.files import replacing
from ..core.paths import expanded
from ..core.system import folders
from ..core.system.processes import NO_WINDOW, program
from .process import clean_variables
from .tasks import Step, Task, Way

UV_VERSION = "0.13.9"
PYTHON_VERSION = "3.12"  # every package the worker needs has wheels for it on every system
# Everything the extension ever puts in its data folder; the last is the worker's memory of which weights are whole.
CONTENTS = ("environment", "python", "tools", "cache", "logs", "checked_files.json")
DISK_NEEDED = {False: 3 << 30, True: 12 << 30}  # bytes for the worker without and with CUDA, downloads included
ALL_OF_CUDA = (
    "No CPU-only torch is in reach, so PyPI's is taken: it brings several GB of CUDA packages that this machine has no "
    "use for. With https://download.pytorch.org/whl/cpu in reach, it would be 200 MB."
)
NO_CUDA = "No CUDA build of torch is in reach: it will run on the CPU."

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
    for folder, where in [*made, (folders.data_folder() / "environment", "installed")]:
        if environment.read_marker(folder):
            return WorkerPython(environment_python(folder), where)
    missing = "The worker is not installed yet. Press Install in the preferences of LGM."
    return WorkerPython(None, environment.unsupported() or missing)


def installed_python() -> Path:
    """The Python of the environment that the panel's button makes, whether it exists or not."""
    return environment_python(folders.data_folder() / "environment")


def is_outdated() -> bool:
    """Whether the environment that the panel's button has made is there and lacks something of today's list."""
    marker = environment.read_marker(folders.data_folder() / "environment")
    return marker is not None and not {*environment.requirements()} <= {*marker.get("requirements", ())}


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


@dataclass(frozen=True)
class Plan:
    """An environment to be made.

    Attributes:
        folder: Where it lies.
        requirements: What goes into it; if torch is among them, the build that suits the machine.
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
    def torch(self) -> tuple[str, ...]:
        """The requirement for torch, or none."""
        return tuple(line for line in self.requirements if package_name(line) == "torch")

    @property
    def own_python(self) -> str:
        """The first Python that need not be fetched."""
        return next(python for python in self.pythons if not _is_version(python))


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


def worker_trial() -> str:
    """See `Plan.trial`."""
    said = "print('torch', torch.__version__, 'on Python', platform.python_version())"
    return f"import platform, {', '.join(environment.modules())}; {said}"


def install_steps(plan: Plan, gpu: bool, settings: Mapping[str, str]) -> list[Step]:
    """What is run to make an environment, or to bring it up to date.

    Args:
        plan: What is made.
        gpu: Whether torch must be able to use a GPU.
        settings: pip's, as variables for uv: see `pip_settings`.
    """
    uv, python = str(uv_path(plan.tools)), str(environment_python(plan.folder))
    install = (uv, "pip", "install", "--python", python)
    steps = uv_steps(plan.tools, plan.own_python)
    ways = _torch_ways(gpu, bool(settings.get("UV_FIND_LINKS"))) if plan.torch else [((), "")]
    # A GPU has come since, and uv would be content with the torch that is there.
    marker = environment.read_marker(plan.folder)
    other = ("--reinstall-package", "torch") if marker and gpu and not marker.get("gpu") else ()
    makings = [()] if _has_python(plan) else [((uv, *_make(plan.folder, python)),) for python in plan.pythons]
    # All Pythons before the next kind of torch: where one of them is all that has a small one, the worker runs on that.
    steps.append(
        Step(
            "Making a Python environment" + (" with torch" if plan.torch else ""),
            tuple(
                Way((*making, *([(*install, *options, *other, *plan.torch)] if plan.torch else [])), note)
                for options, note in ways
                for making in makings
            ),
        )
    )
    steps.append(Step("Fetching packages", (Way(((*install, *plan.requirements, "pip"),)),)))
    steps.append(Step("Trying the packages", (Way(((python, "-I", "-c", plan.trial),)),)))
    return steps


def uv_path(tools: Path) -> Path:
    """Where uv lies in a folder that it was fetched to."""
    return tools / "bin" / program("uv")


def uv_steps(tools: Path, python: str) -> list[Step]:
    """What fetches uv with a Python, or with another uv; nothing if the one that this was written for is there."""
    if uv_path(tools).is_file() and (tools / f"uv-{UV_VERSION}.dist-info").is_dir():
        return []
    package = ("--upgrade", "--target", str(tools), f"uv=={UV_VERSION}")
    ways = [Way(((python, *pip, "install", "--no-input", "--only-binary=:all:", *package),)) for pip in _PIPS]
    if other := shutil.which("uv"):
        ways.append(Way(((other, "pip", "install", "--python", python, *package),)))
    return [Step("Fetching the installer, uv", tuple(ways))]


def _is_version(python: str) -> bool:
    return bool(re.fullmatch(r"3\.\d+", python))


def _has_python(plan: Plan) -> bool:
    """Whether the environment is good enough to be kept: one without its torch may be of a Python that has none."""
    has_torch = any((libraries / "torch").is_dir() for libraries in environment.site_packages(plan.folder))
    return environment_python(plan.folder).exists() and (has_torch or not plan.torch)


def _make(folder: Path, python: str) -> tuple[str, ...]:
    origin = "--managed-python" if _is_version(python) else "--no-python-downloads"
    return ("venv", "--no-project", "--clear", str(folder), origin, "--python", python)


def _torch_ways(gpu: bool, has_links: bool) -> list[tuple[tuple[str, ...], str]]:
    """uv's options for torch, best first, each with what the user should know."""
    if sys.platform == "darwin":
        return [((), "")]
    if gpu:  # uv reads the driver's version and picks the CUDA that suits it
        return [(("--torch-backend", "auto"), ""), ((), NO_CUDA if sys.platform == "win32" else "")]
    local = [(("--no-index", "--no-deps"), "")] if has_links else []
    return [*local, (("--torch-backend", "cpu"), ""), ((), ALL_OF_CUDA if sys.platform == "linux" else "")]


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


class Installation(Task):
    """One run of the installer.

    Args:
        plan: What is made; the worker's environment for all Blender versions if None.
        gpu: Whether torch must be able to use a GPU; looked up if None.
    """

    def __init__(self, plan: Plan | None = None, gpu: bool | None = None):
        self.plan = plan or shared_plan()
        # The system's certificates, as pip: a company's proxy has its own.
        variables = {"UV_NO_PROGRESS": "1", "UV_HTTP_TIMEOUT": "120", "UV_SYSTEM_CERTS": "1", **self.plan.variables}
        super().__init__([], self.plan.log, variables)
        self.label = "Looking at this machine"
        self._gpu = gpu
        self._settings: dict[str, str] = {}
        # nvidia-smi may take seconds to wake the driver.
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def _look(self) -> None:
        if self._gpu is None:
            self._gpu = environment.has_nvidia_gpu()
        self._settings = pip_settings(self.plan.own_python)

    def _run(self) -> Iterator[bool]:
        while self._looking.is_alive():
            yield False
        plan = self.plan
        marker = environment.read_marker(plan.folder)
        if plan.torch and (sentence := environment.unsupported()):
            raise LGMError(sentence, "worker")
        plan.folder.mkdir(parents=True, exist_ok=True)
        needed = DISK_NEEDED[self._gpu] if plan.torch else 0
        if (free := shutil.disk_usage(plan.folder).free) < needed and marker is None:
            raise LGMError(
                f"The worker needs {needed >> 30} GB in {plan.folder.parent}, and {free / (1 << 30):.1f} GB are free "
                "there. Make room and try again.",
                "output",
            )
        self._variables |= self._settings
        self._steps = install_steps(plan, self._gpu, self._settings)
        yield from super()._run()
        # The environment keeps its files: uv links them from the cache.
        if cache := plan.variables.get("UV_CACHE_DIR"):
            shutil.rmtree(cache, ignore_errors=True)
        names = {package_name(line) for line in plan.requirements}
        older = [line for line in (marker or {}).get("requirements", ()) if package_name(line) not in names]
        made = [*older, *plan.requirements]
        marker = {"requirements": made, "gpu": self._gpu, "trial": (self.output or ["?"])[-1]}
        with replacing(plan.folder / environment.MARKER) as file:
            file.write(json.dumps(marker, indent=2).encode() + b"\n")
        self.message, self.label = marker["trial"], "Installed"
        yield True

    def _explain(self) -> str:
        said = "\n".join(self.output).lower()
        errors = [line for line in self.output if "error" in line.lower()]
        if any(words in said for words in ("dns error", "failed to lookup", "name or service", "connection refused")):
            reason = "the package index can't be reached. Is this computer online, behind a proxy or a firewall?"
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
