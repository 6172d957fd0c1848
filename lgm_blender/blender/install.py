"""Makes the worker's Python environment, with uv, in a folder that no Blender version owns, and takes it away again.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..core import environment
from ..core.errors import LGMError
from ..core.files import replacing
from .process import Process, clean_variables

PYTHON_VERSION = "3.12"  # every package the worker needs has wheels for it on every system
MARKER = "installed.json"  # written last: an environment without it is half made
IMPORTS = (
    "import torch, diffusers, transformers, safetensors, PIL, scipy, skimage, uvunwrap; "
    "print('torch', torch.__version__)"
)
# Everything the extension ever puts in its data folder; the last is the worker's memory of which weights are whole.
CONTENTS = ("environment", "python", "tools", "cache", "logs", "checked_files.json")
DISK_NEEDED = {False: 3 << 30, True: 12 << 30}  # bytes without and with CUDA, downloads included

# Blender's Python has no pip installed, but ensurepip carries one as a wheel, which runs as it is.
_BUNDLED_PIP = """\
import ensurepip, pathlib, runpy, sys
sys.path.insert(0, str(next((pathlib.Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))))
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


class WorkerPython(NamedTuple):
    """The Python the worker runs on, or None; and where it was found, or a sentence that says what to do."""

    path: Path | None
    where: str


def worker_python(preference: str = "") -> WorkerPython:
    """The Python the worker runs on: the preference, LGM_BLENDER_PYTHON, build.py's, or the one installed here.

    A choice that leads nowhere is a problem and not passed over: the user meant it.
    """
    path = environment.find_worker_python(preference)
    chosen = ""
    if preference:
        chosen = "the preferences"
    elif os.environ.get(environment.PYTHON_VARIABLE):
        chosen = f"the variable {environment.PYTHON_VARIABLE}"
    if chosen:
        path = environment.environment_python(path) if path.is_dir() else path
        if not path.is_file():
            return WorkerPython(None, f"The worker's Python set in {chosen} does not exist: {path}")
        return WorkerPython(path, chosen)
    if path is None or (path == installed_python() and read_marker() is None):
        return WorkerPython(None, "The worker is not installed yet. Press Install in the preferences of LGM.")
    return WorkerPython(path, "installed" if path == installed_python() else "build.py")


def installed_python(folder: Path | None = None) -> Path:
    """The Python of the environment that is made here, whether it exists or not."""
    return environment.environment_python((folder or environment.data_folder()) / "environment")


def requirements() -> list[str]:
    """What the worker needs, torch first."""
    return [environment.TORCH, *environment.WORKER_REQUIREMENTS]


def read_marker(folder: Path | None = None) -> dict | None:
    """What the finished environment was made of, or None if there is none."""
    path = (folder or environment.data_folder()) / "environment" / MARKER
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def is_outdated(folder: Path | None = None) -> bool:
    """Whether the environment was made for other requirements than today's."""
    marker = read_marker(folder)
    return marker is not None and marker.get("requirements") != requirements()


def size(folder: Path | None = None) -> int:
    """Bytes on disk that `remove` gives back; a file with several links counts once."""
    folder = folder or environment.data_folder()
    files = {}
    for name in CONTENTS:
        for parent, _, names in os.walk(folder / name):
            for file in names:
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(parent, file), follow_symlinks=False)  # noqa: PTH116, PTH118
                    files[status.st_dev, status.st_ino or len(files)] = status.st_size
    return sum(files.values())


def remove(folder: Path | None = None) -> None:
    """Deletes everything that was installed, and the logs.

    Raises:
        LGMError: If something could not be deleted, as on Windows while a worker runs from it.
    """
    folder = folder or environment.data_folder()
    (folder / "environment" / MARKER).unlink(missing_ok=True)  # whatever happens next, it is not whole any more
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
class Step:
    """One step of the installation.

    Attributes:
        label: What it does, for the user.
        alternatives: Commands that all lead there; the first that succeeds ends the step.
        attached: Whether a command keeps its stdin, by whose end it notices that Blender is gone.
    """

    label: str
    alternatives: tuple[tuple[str, ...], ...]
    attached: bool = False


def install_steps(folder: Path, base_python: str, gpu: bool) -> list[Step]:
    """What is run to make the environment in `folder`, or to bring it up to date.

    Args:
        base_python: The Python that fetches uv, and that the environment is built on where uv can't fetch another.
        gpu: Whether torch must be able to use a GPU.
    """
    uv = find_uv(folder)
    steps = []
    if uv is None:
        uv = folder / "tools" / "bin" / ("uv.exe" if os.name == "nt" else "uv")
        fetch = ("install", "--no-input", "--only-binary=:all:", "--upgrade", "--target", str(folder / "tools"), "uv")
        pips = ((base_python, "-I", "-m", "pip", *fetch), (base_python, "-I", "-c", _BUNDLED_PIP, *fetch))
        steps.append(Step("Fetching the installer, uv", pips))
    python = installed_python(folder)
    if not python.exists():
        venv = (str(uv), "venv", "--no-project", "--allow-existing", str(folder / "environment"))
        # A Python of its own where possible, so that the environment outlives the Blender that made it.
        own = (*venv, "--managed-python", "--python", PYTHON_VERSION)
        borrowed = (*venv, "--no-python-downloads", "--python", base_python)
        steps.append(Step("Making a Python environment", (own, borrowed)))
    install = (str(uv), "pip", "install", "--python", str(python))
    return [
        *steps,
        Step("Fetching torch", tuple(_torch_commands(install, gpu))),
        Step("Fetching diffusers and transformers", ((*install, *_find_links(), *requirements()),)),
        Step("Trying the packages", ((str(python), "-I", "-c", IMPORTS),)),
    ]


def find_uv(folder: Path) -> Path | None:
    """uv as fetched into `folder`, or the user's own."""
    name = "uv.exe" if os.name == "nt" else "uv"
    own = folder / "tools" / "bin" / name
    found = own if own.is_file() else shutil.which(name)
    return Path(found) if found else None


def _torch_commands(install: tuple[str, ...], gpu: bool) -> list[tuple[str, ...]]:
    default = (*install, *_find_links(), environment.TORCH)
    if sys.platform == "darwin":
        return [default]
    if gpu:  # uv reads the driver's version and picks the CUDA that suits it
        return [(*install, "--torch-backend", "auto", environment.TORCH), default]
    # Last comes the package index's own torch, which on Linux brings several GB of CUDA.
    local = (*install, "--no-index", "--no-deps", *_find_links(), environment.TORCH)
    return [*([local] if _find_links() else []), (*install, "--torch-backend", "cpu", environment.TORCH), default]


def _find_links() -> tuple[str, ...]:
    """pip's folders of wheels, which uv does not look into by itself."""
    return tuple(word for place in os.environ.get("PIP_FIND_LINKS", "").split() for word in ("--find-links", place))


def _variables(folder: Path) -> dict[str, str]:
    variables = {
        "UV_CACHE_DIR": str(folder / "cache"),
        "UV_PYTHON_INSTALL_DIR": str(folder / "python"),
        "UV_NO_PROGRESS": "1",
        "UV_HTTP_TIMEOUT": "120",
    }
    if index := os.environ.get("PIP_INDEX_URL"):
        variables["UV_DEFAULT_INDEX"] = index
    return variables


State = Literal["running", "done", "failed", "cancelled"]


class Task:
    """Commands, one after the other. Call `step` often, from a timer or a loop, until `state` is not 'running'.

    Args:
        steps: What is run.
        log: File that receives everything that was run and printed.
        variables: Environment variables on top of the cleaned ones of this process.

    Attributes:
        state: 'running', 'done', 'failed' or 'cancelled'.
        index, count: Number of the current step from 0, and of steps.
        label: The current step.
        message: The last line that the current command printed.
        error: Once failed, a sentence for the user.
    """

    def __init__(self, steps: Sequence[Step], log: Path, variables: Mapping[str, str] | None = None):
        self.state: State = "running"
        self.index, self.count = -1, len(steps)
        self.label, self.message, self.error = "", "", ""
        self.log = log
        self._steps = list(steps)
        self._variables = clean_variables(variables)
        self._alternatives: list[tuple[str, ...]] = []
        self._process: Process | None = None
        self._output: list[str] = []

    @property
    def factor(self) -> float:
        """About how much of it is done, 0 to 1."""
        return (max(0, self.index) + 0.5) / max(1, self.count)

    def step(self) -> bool:
        """Goes on as far as is possible without waiting; whether anything changed."""
        if self.state != "running":
            return False
        try:
            if self._process is None:
                return self._begin()
            return self._poll()
        except (OSError, LGMError) as error:
            self._fail(error.message if isinstance(error, LGMError) else f"{self.log.parent} is not usable: {error}")
            return True

    def cancel(self) -> None:
        """Stops at once. What was fetched stays; another run goes on from there."""
        if self.state == "running":
            self.state = "cancelled"
            self._kill()

    def _begin(self) -> bool:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("", encoding="utf-8")
        self._next_step()
        return True

    def _poll(self) -> bool:
        changed = False
        code = self._process.exit_code()  # asked first: once it has ended, nothing comes after these lines
        for raw in self._process.lines():
            line = raw.decode("utf-8", "replace").strip()
            if line:
                self._output.append(line)
                self._note(line)
                self.message, changed = line, True
        if code is None:
            return changed
        self._note(f"exit code {code}")
        if code == 0:
            self._next_step()
        elif self._alternatives:
            self._next_alternative()
        else:
            self._fail(self._explain())
        return True

    def _next_step(self) -> None:
        self.index += 1
        if self.index == self.count:
            self._finish()
            return
        self.label = self._steps[self.index].label
        self._alternatives = list(self._steps[self.index].alternatives)
        self._next_alternative()

    def _next_alternative(self) -> None:
        command = self._alternatives.pop(0)
        self._output = []
        self.message = ""
        self._note("$ " + " ".join(word if "\n" not in word else "..." for word in command))
        try:
            self._process = Process(command, self._variables, merge_errors=True)
            if not self._steps[self.index].attached:
                self._process.close()
        except OSError as error:
            self._note(str(error))
            if not self._alternatives:
                raise LGMError(f"{command[0]} could not be started ({error.strerror}).", "worker") from error
            self._next_alternative()

    def _finish(self) -> None:
        self.state = "done"

    def _explain(self) -> str:
        """A sentence about the command that failed."""
        return f"{self.label} failed: {(self._output or ['it said nothing'])[-1]}"

    def _fail(self, sentence: str) -> None:
        self.state, self.error = "failed", sentence
        self._note(sentence)
        self._kill()

    def _kill(self) -> None:
        if self._process:
            self._process.kill()

    def _note(self, line: str) -> None:
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Installation(Task):
    """One run of the installer.

    Args:
        folder: Where to; the user's data folder if None.
        base_python: See `install_steps`; the running Python if None.
        gpu: Whether torch must be able to use a GPU; looked up if None.
    """

    def __init__(self, folder: Path | None = None, base_python: str | None = None, gpu: bool | None = None):
        self.folder = folder or environment.data_folder()
        super().__init__([], self.folder / "logs" / "install.log", _variables(self.folder))
        self.label = "Looking at this machine"
        self._base_python = base_python or sys.executable
        self._gpu = gpu
        # nvidia-smi may take seconds to wake the driver.
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def _look(self) -> None:
        if self._gpu is None:
            self._gpu = environment.has_nvidia_gpu()

    def _begin(self) -> bool:
        if self._looking.is_alive():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = DISK_NEEDED[self._gpu]
        if (free := shutil.disk_usage(self.folder).free) < needed and read_marker(self.folder) is None:
            raise LGMError(
                f"The worker needs {needed >> 30} GB in {self.folder}, and {free / (1 << 30):.1f} GB are free there. "
                "Make room and try again.",
                "output",
            )
        self._steps = install_steps(self.folder, self._base_python, self._gpu)
        self.count = len(self._steps)
        return super()._begin()

    def _finish(self) -> None:
        # The environment keeps its files: uv links them from the cache.
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        marker = {"requirements": requirements(), "gpu": self._gpu, "torch": (self._output or ["?"])[-1]}
        with replacing(self.folder / "environment" / MARKER) as file:
            file.write(json.dumps(marker, indent=2).encode() + b"\n")
        self.message, self.label = marker["torch"], "Installed"
        self.state = "done"

    def _explain(self) -> str:
        said = "\n".join(self._output).lower()
        errors = [line for line in self._output if "error" in line.lower()]
        if any(words in said for words in ("dns error", "failed to lookup", "name or service", "connection refused")):
            reason = "the package index can't be reached. Is this computer online, behind a proxy or a firewall?"
        elif "no space left" in said or "os error 112" in said:
            reason = "the disk is full."
        else:
            reason = (errors or self._output or ["it said nothing."])[-1]
        return f"{self.label} failed: {reason} Press Install to try again. The log is {self.log}"


class Download(Task):
    """Fetches a preset's published weights; a download that was broken off goes on where it stopped.

    Args:
        command: The worker's `models --download PRESET --until-stdin-ends`.
        preset: Its name, for the label.
        log: See `Task`.
    """

    def __init__(self, command: Sequence[str], preset: str, log: Path):
        super().__init__([Step(f"Fetching the models of '{preset}'", (tuple(command),), attached=True)], log)

    @property
    def factor(self) -> float:
        """How much of the current file is here, as the last line tells: '[2/7] NAME: 120 of 830 MB'."""
        found = re.search(r": ([\d,]+) of ([\d,]+) MB$", self.message)
        done, total = (int(number.replace(",", "")) for number in found.groups()) if found else (0, 1)
        return done / max(1, total)

    def _explain(self) -> str:
        told = [line.removeprefix("Error: ") for line in self._output if line.startswith("Error: ")]
        return told[-1] if told else super()._explain()
