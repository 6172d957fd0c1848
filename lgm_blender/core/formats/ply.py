"""3D Gaussians as PLY, the form of INRIA's 3D Gaussian Splatting that every splat viewer reads.

One vertex per Gaussian: x y z; f_dc_0..2, the zeroth spherical harmonics coefficients, (colour - 0.5) / 0.282...;
opacity as its logit; scale_0..2 as natural logarithms; rot_0..3, a quaternion w x y z. Optional in files: normals
(always zero) and f_rest_*, the higher spherical harmonics. LGM has neither, but some importers insist on them
(KIRI 3DGS Render up to 4.x), so `write_ply` can pad both with zeros.

Positions are written as they are: a PLY has no axes of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import LGMError
from ..files import replacing
from ..gaussians import SH_C0, Gaussians

PROPERTIES = (
    *("x", "y", "z"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity",
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)

# The published code adds it to a scale before the logarithm, so a scale of zero becomes -18.4 and not -inf.
SCALE_EPSILON = 1e-8

# The opacities nearest to 0 and 1 whose logit is a finite float32: -87.3 and 16.6.
MIN_OPACITY = float(np.finfo(np.float32).tiny)
MAX_OPACITY = float(np.nextafter(np.float32(1), np.float32(0)))

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float32": "f4", "float64": "f8"},
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_HEADER_LIMIT = 1 << 20  # bytes; a 3DGS header has about 1,500


def write_ply(
    path: str | os.PathLike, gaussians: Gaussians, *, sh_degree: Literal[0, 3] = 0, normals: bool = False
) -> None:
    """Write Gaussians as a PLY file, replaced if it is there. It is whole or not there at all.

    Args:
        path: The file.
        gaussians, sh_degree, normals: See `encode_ply`.

    Raises:
        LGMError: (kind 'output') if the file can't be written.
        ValueError: If a value is not finite, or there are no Gaussians.
    """
    data = encode_ply(gaussians, sh_degree=sh_degree, normals=normals)
    with replacing(path) as file:
        file.write(data)


def encode_ply(gaussians: Gaussians, *, sh_degree: Literal[0, 3] = 0, normals: bool = False) -> bytes:
    """Gaussians as a binary little-endian PLY; with the default options what the published code writes.

    Where a logarithm has no finite value, the nearest one is written: an opacity of 0 or 1 becomes the float32 next
    to it (logit -87.3 or 16.6), and every scale has 1e-8 added first, as published.

    Args:
        gaussians: What to write, in any frame, every value finite; prune it first.
        sh_degree: 3 adds the 45 properties f_rest_*, all zero.
        normals: Adds nx, ny, nz, all zero.

    Raises:
        ValueError: If a value is not finite, or there are no Gaussians.
    """
    if not len(gaussians):
        raise ValueError("a PLY needs at least one Gaussian")
    if not gaussians.finite().all():
        raise ValueError("a PLY can't hold values that are not finite; select gaussians.finite() first")

    names = list(PROPERTIES)
    if sh_degree:
        names[6:6] = [f"f_rest_{i}" for i in range(3 * ((sh_degree + 1) ** 2 - 1))]
    if normals:
        names[3:3] = ["nx", "ny", "nz"]

    # The arguments are rounded to float32 as in the published code, the logarithms only at the end.
    opacities = np.clip(gaussians.opacities, MIN_OPACITY, MAX_OPACITY)
    logits = np.log(opacities / (1 - opacities), dtype=np.float64)
    log_scales = np.log(np.maximum(gaussians.scales, 0) + SCALE_EPSILON, dtype=np.float64)
    values = {
        **dict(zip(PROPERTIES[0:3], gaussians.positions.T, strict=True)),
        **dict(zip(PROPERTIES[3:6], gaussians.f_dc.T, strict=True)),
        "opacity": logits,
        **dict(zip(PROPERTIES[7:10], log_scales.T, strict=True)),
        **dict(zip(PROPERTIES[10:14], gaussians.rotations.T, strict=True)),
    }
    rows = np.zeros((len(gaussians), len(names)), dtype="<f4")
    for column, name in enumerate(names):
        if name in values:
            rows[:, column] = values[name]

    properties = "".join(f"property float {name}\n" for name in names)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(gaussians)}\n{properties}end_header\n"
    return header.encode("ascii") + rows.tobytes()


def read_ply(path: str | os.PathLike, on_warning: Callable[[str], None] | None = None) -> Gaussians:
    """Read Gaussians from a 3DGS PLY: binary of either byte order or ascii, properties in any order and of any type.

    Properties and elements that are not part of a Gaussian are passed over, higher spherical harmonics among them:
    the colour is the one all directions share, clipped to 0..1. Quaternions are normalised; one of length zero
    becomes the identity. Gaussians with a value that is not a finite number are left out.

    Args:
        path: The file.
        on_warning: Called with a sentence for the user if Gaussians were left out.

    Raises:
        LGMError: If there is no such file, it is not a PLY of Gaussians, or its header promises what it doesn't hold.
    """
    path = Path(path)
    if path.is_dir():
        raise LGMError(f"{path} is a folder. Choose a PLY file.")
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            size = os.fstat(file.fileno()).st_size - header.length
            vertices = header.vertices
            if header.format == "ascii":
                file.seek(header.length)
                table = _read_ascii(file.read(), header, path)
            else:
                offset = _vertices_offset(file, header, path)
                if offset + vertices.count * vertices.dtype.itemsize > size:
                    raise _cut_short(path, vertices.count)
                file.seek(header.length + offset)
                table = np.fromfile(file, dtype=vertices.dtype, count=vertices.count)
    except FileNotFoundError:
        raise LGMError(f"There is no file {path}.") from None
    except OSError as error:
        raise LGMError(f"{path} could not be read ({error.strerror or error}).") from error

    gaussians = _activate(table)
    finite = gaussians.finite()
    if not finite.any():
        raise LGMError(f"{path} holds no Gaussian whose values are all finite numbers.")
    if not finite.all():
        if on_warning:
            on_warning(
                f"{len(finite) - finite.sum():,} of {len(finite):,} Gaussians in {path} were left out: not finite."
            )
        gaussians = gaussians.select(finite)
    return gaussians


def _activate(table: np.ndarray) -> Gaussians:
    """Gaussians from the structured array of a file's vertices, values not finite kept as they come."""

    def columns(*names: str) -> np.ndarray:
        return np.stack([table[name].astype(np.float64) for name in names], axis=-1)

    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and left out by the caller
        rotations = columns(*PROPERTIES[10:14])
        lengths = np.linalg.norm(rotations, axis=1, keepdims=True)
        rotations = np.where(lengths == 0, [1.0, 0.0, 0.0, 0.0], rotations / np.where(lengths == 0, 1, lengths))
        # A scale of exactly zero would divide by zero in any renderer.
        scales = np.maximum(np.exp(columns(*PROPERTIES[7:10])), np.finfo(np.float32).tiny)
        return Gaussians(
            positions=columns(*PROPERTIES[0:3]),
            opacities=1 / (1 + np.exp(-table["opacity"].astype(np.float64))),
            scales=scales,
            rotations=rotations,
            colors=np.clip(0.5 + SH_C0 * columns(*PROPERTIES[3:6]), 0, 1),
        )


@dataclass
class _Element:
    """One element of a PLY: how many rows, and (name, type, type of a list's length or None) of each property."""

    name: str
    count: int
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(length is not None for _, _, length in self.properties)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype([(name, type) for name, type, _ in self.properties])


@dataclass(frozen=True)
class _Header:
    format: str
    elements: list[_Element]
    length: int  # bytes, the newline of end_header included

    @property
    def vertices(self) -> _Element:
        return next(element for element in self.elements if element.name == "vertex")

    @property
    def before(self) -> list[_Element]:
        """The elements whose rows come before the vertices."""
        return self.elements[: self.elements.index(self.vertices)]


def _read_header(file, path: Path) -> _Header:
    start = file.read(_HEADER_LIMIT)
    if not start:
        raise LGMError(f"{path} is an empty file.")
    if start[:3] != b"ply" or start[3:4] not in (b"\n", b"\r"):
        raise LGMError(f"{path} is not a PLY file.")
    format = order = ""
    elements: list[_Element] = []
    position = 0
    while True:
        end = start.find(b"\n", position)
        if end < 0:
            raise LGMError(f"{path} is not a whole PLY file: its header has no end.")
        line = start[position:end].decode("latin-1").strip()
        position = end + 1
        words = line.split()
        try:
            match words:
                case ["end_header"]:
                    break
                case ["format", format, _]:
                    order = _BYTE_ORDERS[format]
                case ["element", name, count]:
                    elements.append(_Element(name, _count(count)))
                case ["property", "list", length, type, name] if order and _TYPES[length][0] in "iu":
                    elements[-1].properties.append((name, order + _TYPES[type], order + _TYPES[length]))
                case ["property", type, name] if order:
                    elements[-1].properties.append((name, order + _TYPES[type], None))
                case [] | ["ply"] | ["comment" | "obj_info", *_]:
                    pass
                case _:
                    raise ValueError(line)
        except (KeyError, IndexError, ValueError):
            raise LGMError(f"{path} has a header that can't be understood: '{line[:80]}'.") from None
    if not order:
        raise LGMError(f"{path} has a header that can't be understood: it names no format.")

    header = _Header(format, elements, position)
    _check(header, path)
    return header


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ValueError(word)
    return int(word)


def _check(header: _Header, path: Path) -> None:
    """That the header is one of Gaussians."""
    found = [element for element in header.elements if element.name == "vertex"]
    if not found or not found[0].count:
        raise LGMError(f"{path} holds no Gaussians: it has no vertices.")
    names = [name for name, _, _ in found[0].properties]
    missing = [name for name in PROPERTIES if name not in names]
    if missing:
        hint = " It is a compressed PLY: save it as an uncompressed one." if "packed_position" in names else ""
        raise LGMError(f"{path} is a PLY file, but not of 3D Gaussians: it lacks {', '.join(missing)}.{hint}")
    if found[0].has_lists:
        raise LGMError(f"{path} is a PLY file, but not of 3D Gaussians: its vertices hold lists.")
    for names in (
        [element.name for element in header.elements],
        *([name for name, _, _ in element.properties] for element in header.elements),
    ):
        if len(set(names)) < len(names):
            raise LGMError(f"{path} has a header that can't be understood: a name appears in it twice.")


def _cut_short(path: Path, count: int) -> LGMError:
    return LGMError(f"{path} is cut short or its header is wrong: it promises {count:,} Gaussians and holds fewer.")


def _vertices_offset(file, header: _Header, path: Path) -> int:
    """How many bytes after the header a binary file's vertices begin."""
    if not any(element.has_lists for element in header.before):
        return sum(element.count * element.dtype.itemsize for element in header.before)
    # Rows with lists differ in length, so they must be walked one by one. Each takes at least a byte, so the walk ends
    # with the file whatever the header promises.
    file.seek(header.length)
    data = memoryview(file.read())
    offset = 0
    for element in header.before:
        if not element.has_lists:
            offset += element.count * element.dtype.itemsize
            continue
        for _ in range(element.count):
            for _, type, length in element.properties:
                items = 1
                if length is not None:
                    end = offset + np.dtype(length).itemsize
                    if end > len(data):
                        raise _cut_short(path, header.vertices.count)
                    items = max(0, int(np.frombuffer(data[offset:end], dtype=length)[0]))
                    offset = end
                offset += items * np.dtype(type).itemsize
    return offset


def _read_ascii(data: bytes, header: _Header, path: Path) -> np.ndarray:
    """The vertices of an ascii file, one line each."""
    vertices = header.vertices
    lines = [line for line in data.splitlines() if line.strip()]
    first = sum(element.count for element in header.before)
    lines = lines[first : first + vertices.count]
    words = b" ".join(lines).split()
    if len(lines) < vertices.count:
        raise _cut_short(path, vertices.count)
    try:
        rows = np.array(words, dtype=np.float64).reshape(vertices.count, len(vertices.properties))
    except ValueError:
        raise LGMError(f"{path} is damaged: a line is not {len(vertices.properties)} numbers.") from None
    return rows.view([(name, np.float64) for name, _, _ in vertices.properties])[:, 0]
