"""The worker's Python environment: what goes into it, and on which machines it can be made.

Standard library only: build.py reads this with nothing installed.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON_VARIABLE = "LGM_BLENDER_PYTHON"  # the worker's Python executable
MARKER = "installed.json"  # written last: an environment without it is half made

PACKAGE = Path(__file__).resolve().parents[1]
MODULES = {"pillow": "PIL", "scikit-image": "skimage"}  # where `import` has another name than pip
GLIBC = (2, 28)  # what the wheels of torch and its kin ask of a Linux
# The worker does without these; the glibc their wheels ask for.
OPTIONAL = {"pymeshlab": (2, 35), "onnxruntime": (2, 28)}


def requirements(room: str = "worker", libc: tuple[str, str] | None = None) -> list[str]:
    """What a subpackage needs, as pip reads it, from its requirements.txt, less what has no wheels for this machine.

    Args:
        room: 'worker', 'worker/scale' or 'training'.
        libc: See `glibc_version`.
    """
    glibc = glibc_version(libc)
    wanted = read_requirements(PACKAGE / room / "requirements.txt")
    return [line for line in wanted if glibc is None or glibc >= OPTIONAL.get(package_name(line), (0, 0))]


def read_requirements(path: Path) -> list[str]:
    """The lines of a requirements.txt, without its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def package_name(requirement: str) -> str:
    """'torch>=2.6' -> 'torch'."""
    return re.match(r"[\w.-]+", requirement)[0].lower()


def modules(room: str = "worker") -> list[str]:
    """The modules that a subpackage can't do without, by the names that `import` knows."""
    names = [package_name(line) for line in requirements(room)]
    return [MODULES.get(name, name) for name in names if name not in OPTIONAL]


def glibc_version(libc: tuple[str, str] | None = None) -> tuple[int, ...] | None:
    """The (major, minor) version of glibc, (0, 0) if a Linux has another C library, None elsewhere.

    Args:
        libc: Name and version as platform.libc_ver gives them; this machine's if None.
    """
    if libc is None:
        if not sys.platform.startswith("linux"):
            return None
        libc = platform.libc_ver()
    name, version = libc
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0, 0)


def unsupported(system: str = sys.platform, machine: str = "", libc: tuple[str, str] | None = None) -> str:
    """Why the worker can't be installed on such a machine and what to do, a sentence, or ''.

    Args:
        system: As sys.platform names it.
        machine: As platform.machine() names it; this one's if ''.
        libc: See `glibc_version`.
    """
    machine = (machine or platform.machine()).lower()
    elsewhere = "Use another computer to make splats and meshes, and open their files here."
    if system == "darwin" and machine == "x86_64":
        return (
            "PyTorch has no packages for Macs with Intel processors. If this one has an Apple processor, use the "
            f"Blender and the Python that are made for it. {elsewhere}"
        )
    if system == "win32" and machine in ("arm64", "aarch64"):
        return f"PyTorch has no packages for Windows on ARM. {elsewhere}"
    if not system.startswith("linux"):
        return ""
    if machine not in ("x86_64", "aarch64"):
        return f"PyTorch has no packages for Linux on {machine} processors. {elsewhere}"
    glibc = glibc_version(libc)
    if glibc is not None and glibc < GLIBC:
        has = "this one has glibc {}.{}".format(*glibc) if any(glibc) else "this one has another C library"
        needed = "{}.{}".format(*GLIBC)
        return f"PyTorch needs a Linux with glibc {needed} or newer, and {has}. Use Debian 10, Ubuntu 20.04 or newer."
    return ""


def environment_python(folder: Path, system: str = sys.platform) -> Path:
    """The Python executable of a virtual environment, whether it exists or not."""
    return folder / "Scripts" / "python.exe" if system == "win32" else folder / "bin" / "python"


def site_packages(folder: Path) -> list[Path]:
    """The site-packages folders of a virtual environment."""
    return [*folder.glob("lib/python3.*/site-packages"), *folder.glob("Lib/site-packages")]


def read_marker(folder: Path) -> dict | None:
    """What a finished environment was made of, or None if there is none."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return marker if isinstance(marker, dict) and environment_python(folder).exists() else None


def has_nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU whose driver answers. Hidden ones (CUDA_VISIBLE_DEVICES) count."""
    return "GPU " in _ask_nvidia("-L")


def nvidia_gpu() -> tuple[tuple[int, ...], float] | None:
    """The driver's version and the newest GPU's compute capability: ((580, 65, 6), 8.9); None if there is none.

    Both are 0 where a GPU answers and the driver is too old to tell.
    """
    told = _ask_nvidia("--query-gpu=driver_version,compute_cap", "--format=csv,noheader")
    gpus = re.findall(r"^([\d.]+), *([\d.]+)$", told, re.MULTILINE)
    if not gpus:
        return ((0,), 0.0) if has_nvidia_gpu() else None
    driver = tuple(int(number) for number in gpus[0][0].split(".") if number)
    return driver, max(float(capability) for _, capability in gpus)


def _ask_nvidia(*arguments: str) -> str:
    """What nvidia-smi says, '' if there is none or it fails."""
    tool = shutil.which("nvidia-smi")
    if not tool or Path(tool).parent == Path.cwd():  # Windows looks beside the opened .blend first
        return ""
    try:
        answer = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
