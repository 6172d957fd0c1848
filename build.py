#!/usr/bin/env python3
"""Installs, tests and packages LGM for Blender. Needs Python 3.11 or 3.13, and nothing else.

python build.py demo [--image FILE] [--elevation E] [--out DIR] [--seed N]   one image becomes splats in a Blender scene
python build.py test [pytest arguments]                      all tests, in every Blender whose Python is here
python build.py lint                                         ruff's rules and format
python build.py package                                      the extension zip, in dist/
python build.py clean [--out]                                gives back everything the others made
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - this file is what tells the user so
    sys.exit(f"build.py needs Python 3.11 or 3.13; this is {sys.version.split()[0]} ({sys.executable}).")

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

from lgm_blender.core import environment  # noqa: E402
from lgm_blender.core.version import VERSION  # noqa: E402

BUILD, DIST = ROOT / "build", ROOT / "dist"
SAMPLE = ROOT / "docs" / "samples" / "cactus.png"
SAMPLE_ELEVATION = 10.0  # degrees that its camera was above the cactus

# The Blenders that are tested, by the Python they have inside, the newest of each last: the oldest we support, the last
# with long support and the newest.
BLENDERS = {(3, 11): ("4.2",), (3, 13): ("5.2", "5.3")}

TEST_REQUIREMENTS = ("pytest>=8.3", "pytest-timeout>=2.3", "ruff>=0.12", "pillow>=11", "moderngl>=5.12", "trimesh>=5.0")
# What training needs beside TEST_REQUIREMENTS: into the worker's environment only, after its torch, since accelerate
# brings PyPI's torch where there is none (4 GB with CUDA's libraries).
TRAINING_REQUIREMENTS = ("accelerate>=1.8",)
TEST_TIMEOUT = 300  # seconds that one test may take on a busy machine

# What `import bpy` and a render without a screen need from Debian and its relatives.
APT_PACKAGES = (
    *("libegl1", "libgl1", "libgl1-mesa-dri", "libgomp1", "libice6", "libsm6", "libx11-6", "libxext6", "libxfixes3"),
    *("libxi6", "libxkbcommon0", "libxrender1", "libxxf86vm1"),
)


PIP_TELLING = "(Collecting|Downloading|Using cached|Building|Installing) "  # pip's lines worth showing while it works

BLENDER_EXT = "bpy/*/scripts/addons_core/bl_pkg/cli/blender_ext.py"  # Blender's own builder and validator of extensions

# In bpy nothing is enabled at the start and a left-over handler can hang the exit: so enable, and leave at once.
INSTALL_EXTENSION = """
import os, sys, traceback
import bpy
try:
    bpy.ops.extensions.package_install_files(filepath=sys.argv[1], repo="user_default", enable_on_install=True)
except RuntimeError:
    traceback.print_exc()
enabled = "bl_ext.user_default.lgm_blender" in bpy.context.preferences.addons
print("enabled" if enabled else "The extension could not be enabled.", flush=True)
os._exit(0 if enabled else 1)
"""
RUN_BATCH = """
import runpy, sys
import bpy
bpy.ops.preferences.addon_enable(module="bl_ext.user_default.lgm_blender")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# pytest, counting, in a process that can't hang at its end as Blender may (it does if a timer or handler is left).
RUN_PYTEST = """
import json, os, pathlib, sys
import pytest

class Counter:
    def pytest_terminal_summary(self, terminalreporter):
        counts = {kind: len(terminalreporter.getreports(kind)) for kind in ("passed", "failed", "error", "skipped")}
        pathlib.Path(sys.argv[1]).write_text(json.dumps(counts), encoding="utf-8")

code = pytest.main(sys.argv[2:], plugins=[Counter()])
sys.stdout.flush()
sys.stderr.flush()
os._exit(int(code))
"""
ROOMS = {room: room for room in ("core", "blender", "worker", "training")} | {"build": "test_build.py"}  # their tests
NO_TESTS = 5  # pytest's exit code when no test was chosen

RESULTS = {  # what the batch's line calls the files of one image
    "ply": "the splats, a 3DGS PLY",
    "blend": "the scene",
    "png": "the splats, rendered by Blender",
    "views": "the four views they were made from",
    "json": "every setting, the seed, the versions, the times",
}


class Failure(Exception):
    """Something the person at the terminal must know; the text says what to do."""


# ------------------------------------------------------------------------------------------------ running commands


def run(command: Sequence[object], label: str, log: str, variables: dict[str, str] | None = None) -> None:
    """Runs a command with its output in build/logs/LOG, and shows that it is alive.

    Raises:
        Failure: If it ends with an error: the command, and the last lines it wrote.
    """
    command = [str(part) for part in command]
    path = BUILD / "logs" / f"{log}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    start = time.monotonic()
    with path.open("w", encoding="utf-8") as file:
        file.write(shown(command) + "\n")
        child = start_child(command, variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

        def read() -> None:
            for line in child.stdout:
                file.write(line)
                lines.append(line.rstrip())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        with Ticker(label, lines, start):
            code = wait(child)
            reader.join(5)
    if code:
        tail = "\n".join("    " + line for line in lines[-15:])
        raise Failure(
            f"{label}: this command ended with code {code}.\n\n    {shown(command)}\n\nIts last lines:\n{tail}\n\n"
            f"All of it is in {relative(path)}."
        )
    print(f"  {label}: {time.monotonic() - start:.1f} s", flush=True)


def start_child(command: list[str], variables: dict[str, str] | None, **options) -> subprocess.Popen:
    """A child process without this Python's own settings, its output read as UTF-8."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")}
    settings = inherited | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"} | (variables or {})
    return subprocess.Popen(
        command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, encoding="utf-8", errors="replace", **options
    )


def wait(child: subprocess.Popen) -> int:
    """The child's exit code; a child that is left behind by Ctrl-C is ended."""
    try:
        return child.wait()
    except BaseException:
        child.kill()
        raise


class Ticker:
    """Shows a label, the seconds and the last line of output: in a terminal twice a second, elsewhere every 10 s."""

    def __init__(self, label: str, lines: list[str], start: float):
        self.label, self.lines, self.start = label, lines, start
        self.terminal = sys.stdout.isatty()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.tick, daemon=True)

    def tick(self) -> None:
        while not self.done.wait(0.5 if self.terminal else 10.0):
            text = f"  {self.label}: {time.monotonic() - self.start:.0f} s"
            width = shutil.get_terminal_size().columns - 1
            if self.terminal:
                telling = (line.strip() for line in reversed(self.lines) if re.match(PIP_TELLING, line.strip()))
                last = next(telling, "")
                print("\r" + f"{text}  {last}"[:width].ljust(width), end="", flush=True)
            else:
                print(text, flush=True)

    def __enter__(self) -> Ticker:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()
        if self.terminal:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", flush=True)


def shown(command: Sequence[str]) -> str:
    """A command as one can type it."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def relative(path: Path) -> str:
    """A path as seen from where the user is, if it lies below."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


# --------------------------------------------------------------------------------------------- finding interpreters


@dataclass(frozen=True)
class Interpreter:
    """A Python on this machine."""

    path: Path
    version: tuple[int, int]

    def __str__(self) -> str:
        return "Python {}.{}".format(*self.version)


def this_python() -> Interpreter:
    """The running interpreter, or the one that made the environment it runs in."""
    return Interpreter(Path(getattr(sys, "_base_executable", "") or sys.executable), sys.version_info[:2])


def find_pythons(versions: Sequence[tuple[int, int]]) -> Iterator[Interpreter]:
    """One interpreter of each of these versions, as far as there are any on this machine."""
    for version in versions:
        paths = [this_python().path] if this_python().version == version else candidates(version)
        if path := next((path for path in paths if works(path, version)), None):
            yield Interpreter(path, version)


def candidates(version: tuple[int, int]) -> Iterator[Path]:
    """Where a Python of this version may be: on PATH, pyenv's, the py launcher's, uv's. Nothing is downloaded."""
    name = "python{}.{}".format(*version)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from (path for path in (Path(folder) / name, Path(folder) / f"{name}.exe") if path.is_file())
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from sorted(pyenv.glob("{}.{}.*/bin/python".format(*version)), reverse=True)
    for finder in (
        ["py", "-{}.{}".format(*version), "-c", "import sys; print(sys.executable)"],
        ["uv", "python", "find", "--no-python-downloads", "--system", "{}.{}".format(*version)],
    ):
        if shutil.which(finder[0]):
            yield from (Path(line) for line in ask(finder).splitlines()[:1])


def works(python: Path, version: tuple[int, int]) -> bool:
    """Whether this is a Python of this version that can make environments (pyenv's and Windows' stand-ins can't)."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    return ask([str(python), "-c", code]).strip() == "{}.{}".format(*version)


def ask(command: list[str]) -> str:
    """What a command prints, or '' if it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def blender_python() -> Interpreter:
    """The interpreter that bpy is installed for: the running one if there is a bpy for it, else one that is found.

    Raises:
        Failure: If there is none.
    """
    if this_python().version in BLENDERS:
        return this_python()
    wanted = " or ".join("{}.{}".format(*version) for version in BLENDERS)
    for found in find_pythons(list(BLENDERS)):
        print(f"There is no Blender for {this_python()}, so {found.path} is used.")
        return found
    raise Failure(
        f"Blender comes for Python {wanted}; this is {this_python()}. Install one of them (python.org, your system's "
        f"packages, or 'uv python install 3.11') and run:\n\n    python3.11 build.py {' '.join(sys.argv[1:])}"
    )


# ---------------------------------------------------------------------------------------------------- environments


@dataclass(frozen=True)
class Environment:
    """A virtual environment beside build.py, and the interpreter it is made with."""

    folder: Path
    base: Interpreter
    blender: str = ""  # the version of the Blender that is installed in it, if one is

    @property
    def python(self) -> Path:
        return environment.environment_python(self.folder)

    @property
    def stamp(self) -> Path:
        return self.folder / "build.json"

    def installed(self) -> dict[str, str]:
        """Groups of packages that were installed whole, and what for."""
        if not self.python.exists():
            return {}
        try:
            return json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def version_of(self, package: str) -> str:
        """The installed version of a package, from its metadata, or ''."""
        for libraries in environment.site_packages(self.folder):
            for info in libraries.glob(f"{package}-*.dist-info"):
                return info.name.removesuffix(".dist-info").removeprefix(f"{package}-")
        return ""

    def __str__(self) -> str:
        parts = [f"{name} {self.version_of(name)}" for name in ("bpy", "torch") if self.version_of(name)]
        return ", ".join([str(self.base), *parts])


def environment_for(base: Interpreter, blender: str = "") -> Environment:
    """The environment for a Python version and its newest Blender, or the one that is named.

    That of the newest is the one there is, else `.venv`, else for example `.venv-3.13`. Another of the same Python has
    its own, for example `.venv-blender-5.2`.
    """
    newest = BLENDERS.get(base.version, ("",))[-1]
    if blender not in ("", newest):
        return Environment(ROOT / f".venv-blender-{blender}", base, blender)
    named = ROOT / ".venv-{}.{}".format(*base.version)
    for folder in (ROOT / ".venv", named):
        exists = environment.environment_python(folder).exists()
        if not exists or environment.environment_version(folder) == base.version:
            return Environment(folder, base, newest)
    return Environment(named, base, newest)


def requirements(group: str, blender: str) -> tuple[str, ...]:
    """What a group of packages asks pip for; the worker's torch comes on top."""
    groups = {
        "blender": (f"bpy=={blender}.*",),
        "worker": environment.WORKER_REQUIREMENTS,
        "training": TRAINING_REQUIREMENTS,
        "test": TEST_REQUIREMENTS,
    }
    return groups[group]


@functools.cache
def has_gpu() -> bool:
    """Whether torch should be able to use CUDA. The driver is asked once: it may take seconds to wake up."""
    return environment.has_nvidia_gpu()


def fingerprint(group: str, blender: str) -> str:
    """Changes when a group must be installed anew."""
    parts = [*requirements(group, blender)]
    if group == "worker":
        parts += [environment.TORCH, environment.torch_tag(has_gpu())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def install(target: Environment, *groups: str) -> Environment:
    """Makes the environment if needed and brings these groups of packages up to date. Does nothing if they are."""
    done = target.installed()
    wanted = {group: fingerprint(group, target.blender) for group in groups}
    missing = [group for group in groups if done.get(group) != wanted[group]]
    if not missing:
        return target
    make(target)
    packages, options = [], []
    for group in missing:
        packages += requirements(group, target.blender)
    if "worker" in missing:
        torch = environment.choose_torch(target.python, has_gpu())
        if has_gpu() and target.version_of("torch").endswith("+cpu"):  # a GPU has come since; pip would be content
            run([target.python, "-m", "pip", "uninstall", "-y", "torch"], "Removing torch for the CPU", "uninstall")
        packages += [torch.requirement]
        options += torch.options
        if torch.note:
            print(f"  {torch.note}", flush=True)
    names = ", ".join(re.split(r"[<>=~]", package)[0] for package in packages)
    command = [target.python, "-m", "pip", "install", "--disable-pip-version-check", *packages, *options]
    run(command, f"Installing {names} into {target.folder.name}", f"pip{target.folder.name}")
    if "blender" in missing:
        check_bpy(target)
    target.stamp.write_text(json.dumps(done | wanted, indent=1), encoding="utf-8")
    return target


def make(target: Environment) -> None:
    """An environment with pip, over a broken or half-made one if need be."""
    if target.python.exists() and environment.has_package(target.folder, "pip"):
        return
    command = [target.base.path, "-m", "venv", "--clear", target.folder]
    run(command, f"Making {target.folder.name} with {target.base}", f"venv{target.folder.name}")


def check_bpy(target: Environment) -> None:
    """Imports bpy once, where a missing system library shows."""
    code = "import bpy, os; print(bpy.app.version_string, flush=True); os._exit(0)"
    command = [str(target.python), "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    if answer.returncode == 0:
        return
    problem = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
    raise Failure(
        f"Blender does not start: {problem}\nIf a library is missing, on Debian and Ubuntu this brings what it needs:"
        f"\n\n    apt-get install -y {' '.join(APT_PACKAGES)}\n\nThen run the same command again."
    )


def worker_environment(main: Environment) -> Environment:
    """The environment that has the worker's packages, made if there is none.

    Without an NVIDIA GPU the CPU build of torch is 200 MB and PyPI's default several GB. Where only another Python on
    this machine has a CPU build in reach, the worker runs on that one.
    """
    if folder := environment.worker_environment(ROOT):
        version = environment.environment_version(folder)
        return install(Environment(folder, Interpreter(environment.environment_python(folder), version)), "worker")
    make(main)
    if not environment.choose_torch(main.python, has_gpu()).note:
        return install(main, "worker")
    oldest, newest = environment.WORKER_PYTHONS
    others = [(3, minor) for minor in range(oldest[1], newest[1] + 1) if (3, minor) != main.base.version]
    for other in find_pythons(others):
        if not environment.choose_torch(other.path, has_gpu(), pip=main.python).note:
            print(f"  A torch that fits this machine is in reach for {other} only, so the worker runs on that.")
            return install(environment_for(other), "worker")
    return install(main, "worker")


# ------------------------------------------------------------------------------------------------------ the package


def check_versions() -> None:
    """The version stands in three files, each of which something outside reads.

    Raises:
        Failure: If they differ.
    """
    import tomllib

    manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text(encoding="utf-8"))["version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if len({manifest, project, VERSION}) > 1:
        raise Failure(
            f"The version is {manifest} in blender_manifest.toml, {project} in pyproject.toml and {VERSION} in "
            "lgm_blender/core/version.py: make them the same."
        )


def package(target: Environment) -> Path:
    """The extension zip, built and validated by the tool that comes with Blender.

    In the zip the package's content lies at the root, with the manifest, the licence and the wheels beside it.
    """
    check_versions()
    stage = BUILD / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(ROOT / "lgm_blender", stage, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    for name in ("blender_manifest.toml", "LICENSE"):
        shutil.copy2(ROOT / name, stage / name)
    for wheel in (ROOT / "wheels").glob("*.whl"):
        (stage / "wheels").mkdir(exist_ok=True)
        shutil.copy2(wheel, stage / "wheels")
    tool = next(path for libraries in environment.site_packages(target.folder) for path in libraries.glob(BLENDER_EXT))
    made, result = BUILD / "new.zip", DIST / f"lgm_blender-{VERSION}.zip"
    DIST.mkdir(exist_ok=True)
    build = [target.python, tool, "build", "--source-dir", stage, "--output-filepath", made]
    run(build, "Building the extension", "package")
    run([target.python, tool, "validate", made], "Validating it with Blender's own tool", "validate")
    made.replace(result)
    return result


def current_package(target: Environment) -> Path:
    """The extension zip in dist/, built anew only if a source file is newer or other than the last time."""
    sources = [*(ROOT / "lgm_blender").rglob("*"), *(ROOT / "wheels").glob("*.whl"), ROOT / "blender_manifest.toml"]
    lines = [
        f"{path.relative_to(ROOT)} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(sources)
        if path.is_file() and "__pycache__" not in path.parts
    ]
    state = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    result, stamp = DIST / f"lgm_blender-{VERSION}.zip", BUILD / "package.txt"
    if not (result.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == state):
        package(target)
        stamp.write_text(state, encoding="utf-8")
    return result


# --------------------------------------------------------------------------------------------------------- the demo


def install_extension(target: Environment, archive: Path) -> Path:
    """Installs and enables the extension in a Blender user folder of its own, under build/; returns that folder."""
    blender = ".".join(target.version_of("bpy").split(".")[:2])
    user = BUILD / f"blender-{blender}"
    state = hashlib.sha256(archive.read_bytes()).hexdigest()
    stamp = user / "installed.txt"
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == state):
        shutil.rmtree(user, ignore_errors=True)
        user.mkdir(parents=True)
        command = [target.python, "-c", INSTALL_EXTENSION, archive]
        label = f"Installing the extension in Blender {blender}"
        run(command, label, "extension", {"BLENDER_USER_RESOURCES": str(user)})
        stamp.write_text(state, encoding="utf-8")
    return user


def demo(image: Path, elevation: float | None, out: Path, seed: int) -> None:
    """One image becomes splats in a Blender scene, the way a user's would: through the installed extension."""
    start = time.monotonic()
    if not image.is_file():
        raise Failure(f"There is no file {image}.")
    main = install(environment_for(blender_python()), "blender")
    worker = worker_environment(main)
    user = install_extension(main, current_package(main))
    ready = time.monotonic()
    print(f"Blender: {main} in {main.folder.name}. Worker: {worker} in {worker.folder.name}.", flush=True)
    batch = user / "extensions" / "user_default" / "lgm_blender" / "blender" / "batch.py"
    if elevation is None:
        elevation = SAMPLE_ELEVATION if image == SAMPLE else 0.0
    options = ["--input", image.absolute(), "--output", out.absolute(), "--seed", seed, "--overwrite"]
    options.append(f"--elevation={elevation}")  # a negative one would be taken for an option
    command = [str(part) for part in (main.python, "-c", RUN_BATCH, batch, "--", *options)]
    variables = {
        "BLENDER_USER_RESOURCES": str(user),
        environment.PYTHON_VARIABLE: str(worker.python),
        "LGM_BLENDER_LOG_DIR": str(BUILD / "logs"),
    }
    child = start_child(command, variables, stdout=subprocess.PIPE)
    # In a terminal the batch shows how far it is.
    with contextlib.nullcontext() if sys.stderr.isatty() else Ticker("Making the splats", [], ready):
        said = [line for line in child.stdout if line.startswith("{")]
        code = wait(child)
    if code or not said:
        raise Failure(f"The demo ended with code {code}. Its logs are in {relative(BUILD / 'logs')}.")
    show_result(json.loads(said[-1]))
    print(f"Installing took {ready - start:.1f} s, the image {time.monotonic() - ready:.1f} s.")


def show_result(record: dict) -> None:
    """Says where the files are, and how long each stage took. `record` is what the batch says of an image."""
    timings = json.loads(Path(record["json"]).read_text(encoding="utf-8"))["timings"]
    timings["total"] = timings.pop("total")  # last
    print("\n" + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in timings.items()))
    files = {relative(Path(record[kind])): what for kind, what in RESULTS.items()}
    for name, what in files.items():
        print(f"  {name:<{max(map(len, files))}}  {what}")


# -------------------------------------------------------------------------------------------------------- the tests


@dataclass(frozen=True)
class Session:
    """One run of pytest: with bpy or with torch, in an environment, for some of the rooms."""

    package: str
    target: Environment
    rooms: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.target.base} with {self.package} {self.target.version_of(self.package)}"


def test(arguments: list[str]) -> int:
    """All tests: core's and blender's in every Blender whose Python is here, and the worker's where torch is."""
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    main = install(environment_for(blender_python()), "blender", "test")
    worker = install(worker_environment(main), "training", "test")
    bases = [main.base, *find_pythons([version for version in BLENDERS if version != main.base.version])]
    others = [environment_for(base, blender) for base in bases for blender in BLENDERS[base.version]]
    others = [install(target, "blender", "test") for target in others if target.blender != main.blender]
    # Blender and torch never share a process when they are used, so they don't here.
    sessions = [Session("torch", worker, ("worker", "training")), Session("bpy", main, ("core", "blender", "build"))]
    sessions += [Session("bpy", blender, ("core", "blender")) for blender in others]
    free = shutil.disk_usage(ROOT).free / 1e9
    print("Testing in " + "; ".join(map(str, sessions)) + f"; {free:.0f} GB of disk are free", flush=True)
    results = [(session, run_pytest(session, worker, arguments)) for session in sessions]
    print()
    for session, (code, counts) in results:
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or f"no tests (pytest's code {code})"
        print(f"{session}: {said}")
    passed, failed, errors, skipped = (
        sum(counts.get(kind, 0) for _, (_, counts) in results) for kind in ("passed", "failed", "error", "skipped")
    )
    print(f"{passed} passed, {failed + errors} failed, {skipped} skipped", flush=True)
    codes = {code for _, (code, _) in results}
    if codes <= {0, NO_TESTS}:
        return min(codes)  # a filter may leave one session without tests, but not all
    return 1


def lint() -> int:
    """Ruff's rules and its format; 0 if both are kept."""
    target = install(environment_for(blender_python()), "test")
    ruff, cache = [str(target.python), "-m", "ruff"], {"RUFF_CACHE_DIR": str(BUILD / "ruff")}
    return max(wait(start_child([*ruff, *words, "."], cache)) for words in (["check"], ["format", "--check"]))


def run_pytest(session: Session, worker: Environment, arguments: list[str]) -> tuple[int, dict[str, int]]:
    """Runs a session's tests, or those of them that the arguments name; pytest's exit code, and how many did what."""
    chosen = [argument for argument in arguments if room_of(argument)]
    paths = [path for path in chosen or ["tests"] if room_of(path) in (*session.rooms, "all")]
    if not paths:
        return NO_TESTS, {}
    if any(room_of(path) == "all" for path in paths):
        paths = [str(path.relative_to(ROOT)) for room in session.rooms for path in (ROOT / "tests").glob(ROOMS[room])]
    report = BUILD / "logs" / f"pytest-{session.package}{session.target.folder.name}.json"
    report.unlink(missing_ok=True)
    rest = [argument for argument in arguments if argument not in chosen]
    settings = ["-o", f"cache_dir={BUILD / 'pytest'}", f"--timeout={TEST_TIMEOUT}"]
    # Where even that can't end a test (compiled code that waits), the run ends.
    settings += ["-o", f"faulthandler_timeout={2 * TEST_TIMEOUT}", "-o", "faulthandler_exit_on_timeout=true"]
    command = [str(session.target.python), "-c", RUN_PYTEST, str(report), *paths, *settings, *rest]
    print(f"\n{session}: {', '.join(paths)}", flush=True)
    code = wait(start_child(command, {environment.PYTHON_VARIABLE: str(worker.python)}))
    counts = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return code, {kind: count for kind, count in counts.items() if count}


def room_of(argument: str) -> str:
    """The room whose tests a pytest argument names, 'all' for tests/ itself, '' if it names none.

    For example 'core' for tests/core, or for tests/core/test_ply.py::test_round_trip.
    """
    path = (ROOT / argument.split("::")[0]).resolve()
    if path == ROOT / "tests":
        return "all"
    for room, pattern in ROOMS.items():
        top = ROOT / "tests" / pattern
        if path == top or (path.suffix == ".py" and top in path.parents):
            return room
    return ""


# ------------------------------------------------------------------------------------------------------ all of this


def clean(out: bool) -> None:
    """Removes what the other commands made; out/ holds results and is kept unless asked for."""
    folders = [*ROOT.glob(".venv*"), BUILD, DIST]
    folders += [path for room in ("lgm_blender", "tests") for path in (ROOT / room).rglob("__pycache__")]
    for folder in [*folders, *([ROOT / "out"] if out else [])]:
        if folder.is_dir():
            shutil.rmtree(folder)
            print(f"removed {relative(folder)}")


def seed(text: str) -> int:
    if not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**32 - 1}")
    return int(text)


def parse() -> argparse.Namespace:
    """The command line; everything after `test` is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo_options = commands.add_parser("demo", help="one image becomes splats in a Blender scene")
    demo_options.add_argument("--image", type=Path, default=SAMPLE, help="the image (default: %(default)s)")
    demo_options.add_argument(
        "--out", type=Path, default=ROOT / "out", help="where the files go (default: %(default)s)"
    )
    demo_options.add_argument(
        "--elevation", type=float, help="degrees that its camera is above the object (default: 0, the sample's 10)"
    )
    demo_options.add_argument("--seed", type=seed, default=0, help="0 to 4294967295 (default: %(default)s)")
    commands.add_parser("test", help="all tests; arguments go on to pytest")
    commands.add_parser("lint", help="ruff's checks and format")
    commands.add_parser("package", help="the extension zip, in dist/")
    clean_options = commands.add_parser("clean", help="gives back environments, build/ and dist/")
    clean_options.add_argument("--out", action="store_true", help="out/ too")
    commands.add_parser("apt-packages", help="prints the Debian packages that Blender needs without a screen")
    if sys.argv[1:2] == ["test"]:
        return argparse.Namespace(command="test", arguments=sys.argv[2:])
    return parser.parse_args()


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console of another code page must not stop us at a file's name
    arguments = parse()
    try:
        if arguments.command == "demo":
            demo(arguments.image, arguments.elevation, arguments.out, arguments.seed)
        elif arguments.command == "test":
            return test(arguments.arguments)
        elif arguments.command == "lint":
            return lint()
        elif arguments.command == "package":
            target = install(environment_for(blender_python()), "blender")
            print(f"Made {relative(package(target))}. In Blender: Preferences > Get Extensions > Install from Disk.")
        elif arguments.command == "clean":
            clean(arguments.out)
        else:
            print(" ".join(APT_PACKAGES))
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
