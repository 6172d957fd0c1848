"""The worker's Python environment: what goes into it, which build of torch, and where it is found.

Standard library only: build.py reads this with nothing installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PYTHON_VARIABLE = "LGM_BLENDER_PYTHON"  # the worker's Python executable
WORKER_PYTHONS = ((3, 11), (3, 14))  # oldest and newest Python the worker runs on

TORCH = "torch>=2.6"
# The worker's packages beside torch and numpy; pyproject.toml names the same ones.
WORKER_REQUIREMENTS = (
    "numpy",
    "diffusers>=0.37",
    "transformers>=5.0",
    "safetensors>=0.5",
    "pillow>=11",
    "scipy>=1.13",
    "scikit-image>=0.25",
    "uvunwrap==0.3.*",
)
TORCH_INDEX = "https://download.pytorch.org/whl"  # PyTorch's own builds: /cpu, /cu128 and so on
WINDOWS_CUDA = "cu128"  # on Windows PyPI has torch without CUDA only


@dataclass(frozen=True)
class TorchBuild:
    """Which torch to ask pip for.

    Attributes:
        requirement: For example 'torch==2.13.0+cpu'.
        options: pip options that go with it.
        note: A sentence for the user, or ''.
    """

    requirement: str = TORCH
    options: tuple[str, ...] = ()
    note: str = ""


def environment_python(folder: Path) -> Path:
    """The Python executable of a virtual environment, whether it exists or not."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def has_package(folder: Path, name: str) -> bool:
    """Whether a package lies in a virtual environment. Nothing is imported or run."""
    return any((libraries / name).is_dir() for libraries in site_packages(folder))


def site_packages(folder: Path) -> list[Path]:
    """The site-packages folders of a virtual environment."""
    return [*folder.glob("lib/python3.*/site-packages"), *folder.glob("Lib/site-packages")]


def has_nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU whose driver answers. Hidden ones (CUDA_VISIBLE_DEVICES) count."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return False
    try:
        answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU " in answer.stdout


def torch_tag(gpu: bool, system: str = sys.platform, machine: str = "") -> str:
    """The local version of the torch build that fits: 'cpu', 'cu128', or '' where PyPI's own fits.

    PyPI's torch has CUDA on Linux and none on Windows and macOS.
    """
    if system.startswith("linux"):
        return "" if gpu else "cpu"
    if system == "win32" and (machine or platform.machine()).upper() in ("AMD64", "X86_64"):
        return WINDOWS_CUDA if gpu else ""
    return ""


def choose_torch(python: Path, gpu: bool, pip: Path | None = None) -> TorchBuild:
    """The build of torch that suits this machine, from PyTorch's own index or from wherever pip is set up to look.

    Args:
        python: The Python that torch is for.
        gpu: Whether there is an NVIDIA GPU.
        pip: A Python that has pip, if `python` may have none.
    """
    tag = torch_tag(gpu)
    if not tag:
        return TorchBuild()
    index = f"{TORCH_INDEX}/{tag}"
    options = ("--extra-index-url", index) if is_reachable(index + "/torch/") else ()
    if version := newest_build(available_versions(python, "torch", options, pip), tag):
        return TorchBuild(f"torch=={version}", options)
    if gpu:
        return TorchBuild(note=f"No CUDA build of torch for {describe(python)} is in reach: it will run on the CPU.")
    return TorchBuild(
        note=f"No CPU-only torch for {describe(python)} is in reach, so PyPI's is taken: it brings several GB of "
        f"CUDA packages that this machine has no use for. With {TORCH_INDEX}/cpu in reach, it would be 200 MB."
    )


def newest_build(versions: list[str], tag: str, oldest: tuple[int, int] = (2, 6)) -> str:
    """The newest of `versions` with the local version `tag`, or ''."""
    builds = [(release(version), version) for version in versions if version.endswith("+" + tag)]
    return max(((r, v) for r, v in builds if r >= oldest), default=((), ""))[1]


def release(version: str) -> tuple[int, ...]:
    """'2.13.0+cpu' -> (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def available_versions(python: Path, package: str, options: tuple[str, ...] = (), pip: Path | None = None) -> list[str]:
    """The versions of a package that pip, as it is set up, could install for `python`; [] if it can't tell."""
    borrowed = [str(pip), "-m", "pip", "--python", str(python)]
    command = [*(borrowed if pip else [str(python), "-m", "pip"]), "index", "versions", package, *options]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return []
    line = re.search(r"^Available versions:(.*)$", answer.stdout, re.MULTILINE)
    return [version.strip() for version in line[1].split(",")] if line else []


def is_reachable(url: str, timeout: float = 5.0) -> bool:
    """Whether a web address answers within `timeout` seconds."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False


def describe(python: Path) -> str:
    """'Python 3.11' for an environment's Python, from its pyvenv.cfg."""
    version = environment_version(python.parent.parent)
    return "Python {}.{}".format(*version) if version else "this Python"


def environment_version(folder: Path) -> tuple[int, int] | None:
    """The (major, minor) Python version of a virtual environment, or None if it is none."""
    try:
        config = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", config, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def worker_environment(root: Path) -> Path | None:
    """The virtual environment in the repository at `root` that build.py put the worker's packages into."""
    for folder in sorted(root.glob(".venv*")):
        if has_package(folder, "torch") and has_package(folder, "diffusers") and environment_python(folder).exists():
            return folder
    return None


def data_folder() -> Path:
    """Where the extension keeps what all Blender versions share, such as the worker's environment."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "lgm_blender"


def find_worker_python(preference: str = "", environ: Mapping[str, str] = os.environ) -> Path | None:
    """The Python that the worker runs on, or None if none was made yet.

    In this order: the preference; the environment variable LGM_BLENDER_PYTHON; the environment that build.py made, if
    this package lies in a clone of the repository or below it; the environment in `data_folder()`.

    Raises nothing; whether the Python named by the preference or the variable exists is for the caller to say.
    """
    if named := preference or environ.get(PYTHON_VARIABLE, ""):
        return Path(named).expanduser()
    for root in Path(__file__).resolve().parents:
        if (root / "build.py").is_file() and (root / "lgm_blender").is_dir() and (found := worker_environment(root)):
            return environment_python(found)
    shared = environment_python(data_folder() / "environment")
    return shared if shared.exists() else None
