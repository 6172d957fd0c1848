"""Writes the lock, lgm_blender/worker/locked/: see lgm_blender/core/lock.py.

uv resolves the worker's list of packages for all systems at once and tells of each file its SHA-256 and its size. What
has no wheel for one of the systems and Pythons of the lock is left out.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tools
from lgm_blender.blender.recipe import UV_VERSION, uv_path, uv_steps
from lgm_blender.blender.tasks import Step, Task
from lgm_blender.core import environment, lock
from lgm_blender.core.environment import package_name

from .environments import TOOLS, this_python
from .terminal import follow

TORCH = "2.13.0"  # the newest that all tests have passed with, and that is there for all systems

# Builds of torch that only PyTorch's index has, which answers no machine that this was written on: SHA-256 and bytes.
# Each SHA-256 stands in at least two independent public repositories (nixpkgs' binary-hashes.nix, and locks of other
# projects); that of Linux x86-64 with Python 3.11 was compared with the file. For another version take them from
# https://download.pytorch.org/whl/BUILD/torch/, whose links end in #sha256=...
TORCH_FILES = {
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        191_794_682,
    ),
    "torch-2.13.0+cpu-cp313-cp313-manylinux_2_28_x86_64.whl": (
        "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
        191_815_667,
    ),
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl": (
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
        155_005_253,
    ),
    "torch-2.13.0+cpu-cp313-cp313-manylinux_2_28_aarch64.whl": (
        "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
        155_005_253,
    ),
    "torch-2.13.0+cu130-cp313-cp313-win_amd64.whl": (
        "cf23236e9deed7d3510d14d9b9592d75d272ef7b35bbfee31a02bea339c73971",
        1_915_517_499,
    ),
}

BESIDE = lock.Size(50_000_000, 170_000_000)  # uv, and the Python that it fetches


class Wheel(NamedTuple):
    """A file of a package."""

    name: str
    sha256: str
    size: int


class Package(NamedTuple):
    """A package of the lock, with those of its files that are for one of the lock's systems and Pythons."""

    name: str
    version: str
    marker: str
    wheels: tuple[Wheel, ...]


def write_lock(upgrade: bool = False) -> None:
    """Resolves anew and writes all files of the lock.

    Args:
        upgrade: Whether to take the newest versions that the worker's list allows; else those of the lock stay.

    Raises:
        Failure: If uv finds no solution, or an index can't be reached.
    """
    pins = {} if upgrade else {package.name: package.version for path in lock.files() for package in lock.read(path)}
    wanted = environment.read_requirements(environment.PACKAGE / "worker" / "requirements.txt")
    found = {package.name: package for package in resolve([*wanted, "pip"], {**pins, "torch": TORCH})}
    torch = found.pop("torch")
    cuda = [found.pop(name) for name in sorted(found) if name.startswith(("nvidia-", "cuda-")) or name == "triton"]
    optional = [found.pop(name) for name in sorted(found) if name in environment.OPTIONAL]
    linux = "sys_platform == 'linux'"
    builds = {
        "cpu": [_at_pytorch("cpu", linux), _only(torch, "sys_platform != 'linux'")],
        "cu130": [_only(torch, linux), *cuda, _at_pytorch("cu130", "sys_platform == 'win32'")],
    }
    lock.FOLDER.mkdir(exist_ok=True)
    shared = [found[name] for name in sorted(found)]
    _write("packages", "every environment, beside torch", shared)
    _write("optional", "what the worker does without where glibc is too old", optional)
    for build, packages in builds.items():
        _write(f"torch_{build}", f"torch for {build}, and what only it needs", packages)
    _write("uv", "the installer", resolve([f"uv=={UV_VERSION}"], {}))
    sizes = {
        name: {
            build: _size([*shared, *optional, *packages], *system)
            for build, packages in builds.items()
            if build == "cpu" or system[0] != "darwin"
        }
        for system, name in lock.SYSTEMS.items()
    }
    for name in ("Linux x86-64", "Windows x64"):  # which has what CUDA 13.0's has, in other versions
        sizes[name]["cu126"] = sizes[name]["cu130"]
    text = json.dumps(sizes, indent=1)
    (lock.FOLDER / "sizes.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def resolve(requirements: Sequence[str], pins: dict[str, str]) -> list[Package]:
    """The packages that are needed for some requirements on all systems and Pythons of the lock."""
    python = this_python()[1]
    follow(Task(uv_steps(TOOLS, str(python)), tools.BUILD / "logs" / "uv.txt"))
    folder = tools.BUILD / "lock"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wanted.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    constraints = "".join(f"{name}=={version}\n" for name, version in pins.items())
    (folder / "pins.txt").write_text(constraints, encoding="utf-8")
    made = folder / "pylock.toml"
    made.unlink(missing_ok=True)
    oldest = "{}.{}".format(*min(lock.PYTHONS))
    command = [uv_path(TOOLS), "pip", "compile", folder / "wanted.txt", "-c", folder / "pins.txt", "-o", made]
    command += ["--universal", "--python-version", oldest, "--only-binary", ":all:", "--format", "pylock.toml"]
    label = f"Resolving {', '.join(package_name(line) for line in requirements[:3])} ..."
    # Nothing of this machine's own settings: what it has beside PyPI is nobody else's.
    follow(Task([Step.of(label, command)], tools.BUILD / "logs" / "lock.txt", {"UV_NO_CONFIG": "1"}))
    content = tomllib.loads(made.read_text(encoding="utf-8"))
    return [package for entry in content["packages"] if (package := _package(entry))]


def _package(entry: dict[str, Any]) -> Package | None:
    marker = entry.get("marker", "")
    targets = [target for target in _targets() if lock.fits(marker, target)]
    if not targets:
        return None
    wheels = []
    for wheel in entry.get("wheels", ()):
        name = wheel.get("name") or wheel["url"].rpartition("/")[2]
        if any(is_for(name, target) for target in targets):
            wheels.append(Wheel(name.replace("%2B", "+"), wheel["hashes"]["sha256"], wheel.get("size", 0)))
    marker = "" if len(targets) == len(list(_targets())) else marker
    return Package(entry["name"], entry["version"], marker, tuple(wheels))


def _targets() -> Iterator[dict[str, str]]:
    for system, machine in lock.SYSTEMS:
        for python in lock.PYTHONS:
            yield lock.marker_values(system, machine, (*python, 5))


def is_for(wheel: str, target: dict[str, str]) -> bool:
    """Whether a wheel's name says that it is for a system and a CPython."""
    python, abi, platforms = wheel.removesuffix(".whl").split("-")[-3:]
    wanted = "cp" + target["python_version"].replace(".", "")
    if abi == "abi3":
        fits = any(tag.startswith("cp3") and int(tag[3:]) <= int(wanted[3:]) for tag in python.split("."))
    else:
        fits = "py3" in python.split(".") or (wanted in python.split(".") and abi == wanted)
    endings = {
        "linux": ("_" + target["platform_machine"],),
        "win32": ("win_amd64",),
        "darwin": ("_arm64", "_universal2"),
    }[target["sys_platform"]]
    starts = {"linux": "manylinux", "win32": "win", "darwin": "macosx"}[target["sys_platform"]]
    return fits and any(
        name == "any" or (name.startswith(starts) and name.endswith(endings)) for name in platforms.split(".")
    )


def _at_pytorch(build: str, marker: str) -> Package:
    version = f"{TORCH}+{build}"
    wheels = [Wheel(name, *about) for name, about in TORCH_FILES.items() if name.split("-")[1] == version]
    return Package("torch", version, marker, tuple(wheels))


def _only(package: Package, marker: str) -> Package:
    """A package for some of the systems alone."""
    targets = [target for target in _targets() if lock.fits(marker, target)]
    wheels = tuple(wheel for wheel in package.wheels if any(is_for(wheel.name, target) for target in targets))
    return package._replace(marker=marker, wheels=wheels)


def _write(name: str, what: str, packages: Sequence[Package]) -> None:
    lines = [f"# {what[0].upper()}{what[1:]}. Written by `python build.py lock`."]
    for package in packages:
        pinned = f"{package.name}=={package.version}" + (f" ; {package.marker}" if package.marker else "")
        lines.append(" \\\n    ".join([pinned, *sorted(f"--hash=sha256:{wheel.sha256}" for wheel in package.wheels)]))
    (lock.FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _size(packages: Sequence[Package], system: str, machine: str) -> lock.Size:
    target = lock.marker_values(system, machine, (*lock.PYTHONS[0], 5))
    download, disk = BESIDE
    for package in packages:
        if lock.fits(package.marker, target):
            fitting = [wheel for wheel in package.wheels if is_for(wheel.name, target)]
            wheel = max(fitting, key=lambda wheel: wheel.size)
            download += wheel.size
            disk += round(wheel.size * _unpacking(wheel))
    return lock.Size(download, disk)


def _unpacking(wheel: Wheel) -> float:
    """How many times its size a wheel takes on disk: measured on Linux. Code of a GPU is packed tightly already."""
    if wheel.name.startswith("nvidia"):
        return 1.35
    return 2.1 if wheel.size > 300e6 else 3.5  # the larger ones are torch with CUDA inside
