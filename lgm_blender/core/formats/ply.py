"""3D Gaussians as PLY, the form of INRIA's 3D Gaussian Splatting that every splat viewer reads.

One vertex per Gaussian: x y z; f_dc_0..2, the zeroth spherical harmonics coefficients, (colour - 0.5) / 0.282...;
opacity as its logit; scale_0..2 as natural logarithms; rot_0..3, a quaternion w x y z. Optional in files: normals
(always zero) and f_rest_*, the higher spherical harmonics, all of red, then green, then blue. LGM has neither, but some
importers insist on them (KIRI 3DGS Render up to 4.x), so `write_ply` can pad both with zeros.

Positions are written as they are: a PLY has no axes of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import LGMError
from ..files import replacing
from ..gaussians import SH_C0, Gaussians
from . import compressed_ply
from .checks import OnWarning, unit_quaternions, usable
from .ply_table import ROWS, Element, Header, read_header, rows

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

_MANY = 16  # Gaussians; fewer may well all look activated by chance


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
    parts = ply_parts(gaussians, sh_degree=sh_degree, normals=normals)
    with replacing(path) as file:
        for part in parts:
            file.write(part)


def encode_ply(gaussians: Gaussians, *, sh_degree: Literal[0, 3] = 0, normals: bool = False) -> bytes:
    """Gaussians as a binary little-endian PLY; with the default options what the published code writes.

    Where a logarithm has no finite value, the nearest one is written: an opacity of 0 or 1 becomes the float32 next
    to it (logit -87.3 or 16.6), and every scale has 1e-8 added first, as published.

    Args:
        gaussians: What to write, in any frame, every value finite; prune it first.
        sh_degree: 3 pads the spherical harmonics with zeros to that degree; else they have the degree they have.
        normals: Adds nx, ny, nz, all zero.

    Raises:
        ValueError: If a value is not finite, or there are no Gaussians.
    """
    return b"".join(ply_parts(gaussians, sh_degree=sh_degree, normals=normals))


def ply_parts(gaussians: Gaussians, *, sh_degree: Literal[0, 3] = 0, normals: bool = False) -> Iterator[bytes]:
    """What `encode_ply` gives, part by part: it is checked at once, and made as it is asked for."""
    if not len(gaussians):
        raise ValueError("a PLY needs at least one Gaussian")
    if not gaussians.finite().all():
        raise ValueError("a PLY can't hold values that are not finite; select gaussians.finite() first")

    coefficients = max(gaussians.harmonics.shape[1], (sh_degree + 1) ** 2 - 1)
    names = list(PROPERTIES)
    names[6:6] = [f"f_rest_{i}" for i in range(3 * coefficients)]
    if normals:
        names[3:3] = ["nx", "ny", "nz"]
    properties = "".join(f"property float {name}\n" for name in names)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(gaussians)}\n{properties}end_header\n"
    return _parts(header.encode("ascii"), gaussians, names, coefficients)


def _parts(header: bytes, gaussians: Gaussians, names: list[str], coefficients: int) -> Iterator[bytes]:
    yield header
    columns = {name: column for column, name in enumerate(names)}
    rest = slice(columns["f_dc_2"] + 1, columns["opacity"])
    for first in range(0, len(gaussians), ROWS):
        part = slice(first, first + ROWS)
        # The arguments are rounded to float32 as in the published code, the logarithms only at the end.
        opacities = np.clip(gaussians.opacities[part], MIN_OPACITY, MAX_OPACITY)
        table = np.zeros((len(opacities), len(names)), dtype="<f4")
        table[:, :3] = gaussians.positions[part]
        table[:, rest.start - 3 : rest.start] = (gaussians.colors[part] - 0.5) / SH_C0
        harmonics = table[:, rest].reshape(len(table), 3, coefficients)
        harmonics[:, :, : gaussians.harmonics.shape[1]] = gaussians.harmonics[part].transpose(0, 2, 1)
        table[:, rest] = harmonics.reshape(len(table), -1)
        table[:, rest.stop] = np.log(opacities / (1 - opacities), dtype=np.float64)
        scales = np.maximum(gaussians.scales[part], 0) + SCALE_EPSILON
        table[:, rest.stop + 1 : rest.stop + 4] = np.log(scales, dtype=np.float64)
        table[:, rest.stop + 4 :] = gaussians.rotations[part]
        yield table.tobytes()


def read_ply(path: str | os.PathLike, on_warning: OnWarning | None = None) -> Gaussians:
    """Read Gaussians from a 3DGS PLY: binary of either byte order or ascii, properties in any order and of any type;
    or from a compressed one of SuperSplat.

    Properties and elements that are not part of a Gaussian are passed over. Spherical harmonics of a degree above 3 are
    left out, and those that are all zero. Quaternions are normalised; one of length zero becomes the identity.
    Gaussians with a value that is not a finite number are left out, and those of absurd sizes (`checks.usable`).

    Args:
        path: The file.
        on_warning: Called with a sentence for the user if something was left out or looks wrong.

    Raises:
        LGMError: If there is no such file, it is not a PLY of Gaussians, or its header promises what it doesn't hold.
    """
    path = Path(path)
    if path.is_dir():
        raise LGMError(f"{path} is a folder. Choose a PLY file.")
    try:
        with path.open("rb") as file:
            header = read_header(file, path)
            vertices = header.find("vertex")
            if vertices is None or not vertices.count:
                raise LGMError(f"{path} holds no Gaussians: it has no vertices. Choose another file.")
            if compressed_ply.is_compressed(header):
                gaussians = compressed_ply.read(file, header, path)
            else:
                _check(vertices, path)
                gaussians = _read(file, header, path, on_warning)
    except FileNotFoundError:
        raise LGMError(f"There is no file {path}. Choose another.") from None
    except OSError as error:
        raise LGMError(
            f"{path} could not be read ({error.strerror or error}). Choose another file, or copy it to another disk."
        ) from error
    return usable(gaussians, path, on_warning)


def _check(vertices: Element, path: Path) -> None:
    """That the vertices are 3D Gaussians."""
    names = {*vertices.names}
    missing = [name for name in PROPERTIES if name not in names]
    if not missing and not vertices.has_lists:
        return
    colored = {"red", "green", "blue"} <= names
    if missing == ["scale_2"]:
        kind = "It is one of 2D Gaussians (2DGS), flat discs: train or export it as 3D Gaussians (3DGS)."
    elif colored and {*missing} <= {"f_dc_0", "f_dc_1", "f_dc_2"}:
        kind = "Its colours are plain red, green and blue: export it with spherical harmonics (f_dc), as 3DGS does."
    elif not {"opacity", "scale_0", "rot_0"} & names and {"x", "y", "z"} <= names:
        kind = "It is a point cloud or a mesh: import it with Blender's own File > Import > Stanford PLY."
    else:
        kind = "Export it as 3D Gaussians (3DGS)."
    why = f"it lacks {', '.join(missing)}" if missing else "its vertices hold lists"
    raise LGMError(f"{path} is a PLY file, but not of 3D Gaussians: {why}. {kind}")


def _read(file, header: Header, path: Path, on_warning: OnWarning | None) -> Gaussians:
    """The Gaussians of a file, values not finite kept as they come."""
    vertices = header.find("vertex")
    count, rest = vertices.count, _harmonics_names(vertices)
    parts, activated = rows(file, header, "vertex", path), count >= _MANY
    for part, table in parts:  # the first one shows that the file holds them all
        if not part.start:
            arrays = [np.empty((count, width), np.float32) for width in (3, 1, 3, 4, 3, len(rest))]
        positions, opacities, scales, rotations, colors, harmonics = arrays
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and left out by the caller
            positions[part] = _columns(table, PROPERTIES[0:3])
            logits = _columns(table, ("opacity",))
            logarithms = _columns(table, PROPERTIES[7:10])
            activated = activated and bool((logits >= 0).all() and (logits <= 1).all() and (logarithms > 0).all())
            opacities[part] = 1 / (1 + np.exp(-logits))
            # A scale of exactly zero would divide by zero in any renderer.
            scales[part] = np.maximum(np.exp(logarithms), np.finfo(np.float32).tiny)
            rotations[part] = unit_quaternions(_columns(table, PROPERTIES[10:14]))
            colors[part] = 0.5 + SH_C0 * _columns(table, PROPERTIES[3:6])
        for column, name in enumerate(rest):
            harmonics[part, column] = table[name]
    if not rest and on_warning and any(name.startswith("f_rest_") for name in vertices.names):
        on_warning(f"The spherical harmonics in {path} were left out: their number is that of no degree.")
    if activated and on_warning:
        on_warning(
            f"The values in {path} look activated already: all opacities lie between 0 and 1 and all scales above 0, "
            "where this format has logits and logarithms. If it looks like fog, export it without activation."
        )
    if not any(harmonics[first : first + ROWS].any() for first in range(0, count, ROWS)):
        rest, harmonics = [], harmonics[:, :0]
    elif on_warning and len(rest) < sum(name.startswith("f_rest_") for name in vertices.names):
        on_warning(f"The spherical harmonics above degree 3 in {path} were left out.")
    by_channel = harmonics.reshape(count, 3, len(rest) // 3)
    return Gaussians(positions, opacities[:, 0], scales, rotations, colors, _channels_last(by_channel))


def _channels_last(harmonics: np.ndarray) -> np.ndarray:
    """[N, 3, K] -> [N, K, 3], within the memory it has."""
    count, _, coefficients = harmonics.shape
    result = harmonics.reshape(count, coefficients, 3)
    for first in range(0, count, ROWS):
        result[first : first + ROWS] = harmonics[first : first + ROWS].transpose(0, 2, 1).copy()
    return result


def _harmonics_names(vertices: Element) -> list[str]:
    """The properties of a file's harmonics of degree 1 to 3, all of red first; none if their number is no degree's."""
    present = {name for name in vertices.names if name.startswith("f_rest_")}
    each, more = divmod(len(present), 3)
    kept = min(each, 15)
    if more or each not in (3, 8, 15, 24) or present != {f"f_rest_{i}" for i in range(3 * each)}:
        return []
    return [f"f_rest_{channel * each + i}" for channel in range(3) for i in range(kept)]


def _columns(table: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """[N, len(names)] float64 of a structured array."""
    result = np.empty((len(table), len(names)))
    for column, name in enumerate(names):
        result[:, column] = table[name]
    return result
