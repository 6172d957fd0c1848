"""The lock: every file that the worker's environment may be made of, by its SHA-256. `build.py lock` writes it.

Standard library only: build.py reads this with nothing installed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .environment import OPTIONAL, PACKAGE, glibc_version, package_name

FOLDER = PACKAGE / "worker" / "locked"
PYTHONS = ((3, 13), (3, 11))  # whose wheels it has, best first
SYSTEMS = {  # (sys.platform, platform.machine()): what sizes.json calls it
    ("linux", "x86_64"): "Linux x86-64",
    ("linux", "aarch64"): "Linux aarch64",
    ("win32", "AMD64"): "Windows x64",
    ("darwin", "arm64"): "macOS arm64",
}

# The builds of torch: for a CPU (or a Mac), for CUDA 13.0, and for the CUDA of older drivers and GPUs, which PyTorch's
# index has and whose files nobody could look at when the lock was made: it is fetched by its version alone.
TorchBuild = Literal["cpu", "cu130", "cu126"]
UNLOCKED: tuple[TorchBuild, ...] = ("cu126",)


class Locked(NamedTuple):
    """One package of the lock.

    Attributes:
        name, version: Of the package.
        marker: For which systems and Pythons it is, as PEP 508 writes it; '' for all.
        hashes: SHA-256 of each file that will do, in hexadecimal digits.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def files(libc: tuple[str, str] | None = None) -> list[Path]:
    """The lock's files of what every environment has beside torch, for uv and pip.

    Args:
        libc: See `environment.glibc_version`; where glibc is too old, optional packages are left out.
    """
    glibc = glibc_version(libc)
    new = glibc is None or glibc >= max(OPTIONAL.values())
    return [FOLDER / "packages.txt", *([FOLDER / "optional.txt"] if new else [])]


def torch_file(build: TorchBuild) -> Path:
    """The lock's file of torch and what only it needs, in one of the builds that are locked."""
    return FOLDER / f"torch_{build}.txt"


def torch_version() -> str:
    """The version of torch that is locked, without its build: '2.13.0'."""
    torch = next(package for package in read(torch_file("cpu")) if package.name == "torch")
    return torch.version.partition("+")[0]


def read(path: Path) -> list[Locked]:
    """The packages of one of the lock's files."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        requirement, *hashes = line.partition("#")[0].split("--hash=sha256:")
        if requirement.strip():
            pinned, _, marker = requirement.partition(";")
            name, _, version = pinned.partition("==")
            found.append(
                Locked(package_name(name.strip()), version.strip(), marker.strip(), tuple(h.strip() for h in hashes))
            )
    return found


def digest() -> str:
    """Changes when the lock does: what an environment was made of."""
    return _digest(FOLDER)


@cache
def _digest(folder: Path) -> str:
    contents = b"".join(path.read_bytes().replace(b"\r\n", b"\n") for path in sorted(folder.glob("*.txt")))
    return hashlib.sha256(contents).hexdigest()


def wanted(paths: Iterable[Path], here: Mapping[str, str]) -> list[Locked]:
    """The packages of some of the lock's files that are for one system and Python: see `marker_values`."""
    return [package for path in paths for package in read(path) if fits(package.marker, here)]


def marker_values(
    system: str = sys.platform, machine: str = "", python: tuple[int, ...] = sys.version_info[:3]
) -> dict[str, str]:
    """What a marker can ask for of a system and a CPython.

    Args:
        system, machine: As sys.platform and platform.machine() name them; this computer's by default.
        python: Its version, two or three numbers.
    """
    systems = {"linux": "Linux", "win32": "Windows", "darwin": "Darwin"}
    return {
        "sys_platform": system,
        "platform_system": systems.get(system, system),
        "os_name": "nt" if system == "win32" else "posix",
        "platform_machine": machine or platform.machine(),
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "python_version": "{}.{}".format(*python),
        "python_full_version": ".".join(map(str, python)),
    }


def fits(marker: str, values: Mapping[str, str]) -> bool:
    """Whether a marker is true, for example "python_full_version < '3.12' and sys_platform == 'linux'".

    Raises:
        ValueError: If it is not one of those that uv writes.
    """
    return not marker or bool(_evaluate(ast.parse(marker, mode="eval").body, values))


def _evaluate(node: ast.expr, values: Mapping[str, str]) -> Any:
    match node:
        case ast.BoolOp(op=op, values=parts):
            return (all if isinstance(op, ast.And) else any)(_evaluate(part, values) for part in parts)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = _evaluate(left, values), _evaluate(right, values)
            if any(isinstance(side, ast.Name) and side.id.startswith("python_") for side in (left, right)):
                a, b = _version(a), _version(b)
            return _OPERATORS[type(op)](a, b)
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=str(text)):
            return text
    raise ValueError(f"this is no marker that is known here: {ast.unparse(node)}")


_OPERATORS = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)) + (0,) * (2 - text.count("."))


# ---------------------------------------------------------------------------------------------- what it takes


class Size(NamedTuple):
    """Bytes that an environment is: to be fetched, and on disk."""

    download: int
    disk: int

    def __str__(self) -> str:
        return f"{self.download / 1e9:.1f} GB to fetch, {self.disk / 1e9:.1f} GB on disk"


def size(build: TorchBuild, system: str = sys.platform, machine: str = "") -> Size | None:
    """What the environment takes on a system, with a build of torch; None for systems that the lock is not for."""
    sizes = json.loads((FOLDER / "sizes.json").read_text(encoding="utf-8"))
    name = SYSTEMS.get((system, machine or platform.machine()), "")
    return Size(*sizes[name][build]) if build in sizes.get(name, {}) else None


# ---------------------------------------------------------------------------------------------- folders of wheels


def missing_wheels(folder: Path, packages: Iterable[Locked]) -> list[str]:
    """Which packages ('numpy 2.4.6') have no wheel of their version in a folder."""
    there = set()
    for path in folder.glob("*.whl"):
        name, version, *_ = [*path.name.split("-"), "", ""]
        there.add((_plain(name), version.replace("%2B", "+").replace("%2b", "+")))
    return [
        f"{package.name} {package.version}"
        for package in packages
        if (_plain(package.name), package.version) not in there
    ]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
