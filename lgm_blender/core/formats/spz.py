"""SPZ, Niantic's packed splats: 19 to 64 bytes a Gaussian, then gzip (versions 1 to 3) or zstd (version 4).

By attribute, one after the other: positions as 24-bit fixed point, opacities as bytes, colours as bytes
((f_dc * 0.15 + 0.5) * 255, which is -0.44 to 1.44 of a colour), scales as bytes ((log + 10) * 16), rotations as the
smallest three of x y z w with 10 bits each (version 2: x y z as bytes), harmonics as bytes (value * 128 + 128), the
channels of each coefficient together. Axes are RUB: x right, y up, z towards the viewer, which are LGM's.

Format: github.com/nianticlabs/spz, README.md (MIT).
"""

from __future__ import annotations

import gzip
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import LGMError
from ..gaussians import SH_C0, Gaussians
from .checks import AGAIN, OnWarning, gunzip, too_large, unpack_limit, unzstd
from .compressed_ply import from_smallest_three, smallest_three

MAGIC = b"NGSP"
COLORS = (0.5 - SH_C0 / 0.3, 0.5 + SH_C0 / 0.3)  # the colours that its bytes reach: f_dc from -3.33 to 3.33
_COLOR_SCALE = 0.15
_COEFFICIENTS = (0, 3, 8, 15, 24)
_XYZW = [1, 2, 3, 0]  # quaternions as they are stored, of w x y z
_WXYZ = [3, 0, 1, 2]
_LEVEL = 6  # of gzip; 9 takes three times as long for 1% less


def decode(data: bytes, path: Path, on_warning: OnWarning | None = None) -> Gaussians:
    """The Gaussians in an SPZ file of version 1 to 4.

    Raises:
        LGMError: If it is damaged, cut short, or promises more than a file of its size can hold.
    """
    packed = len(data)
    if data[:4] != MAGIC:
        data = gunzip(data, path)
    if len(data) < 16 or data[:4] != MAGIC:
        raise LGMError(f"{path} is not an SPZ file. {AGAIN}")
    version, count, degree, fraction, _ = struct.unpack_from("<IIBBB", data, 4)
    if not 1 <= version <= 4:
        raise LGMError(f"{path} is SPZ of version {version}, and 1 to 4 are known. Save it as version 4 or as PLY.")
    if degree >= len(_COEFFICIENTS):
        raise LGMError(f"{path} is damaged: it promises spherical harmonics of degree {degree}. {AGAIN}")
    if not count:
        raise LGMError(f"{path} holds no Gaussians. Choose another file.")
    coefficients = _COEFFICIENTS[degree]
    sizes = [6 if version == 1 else 9, 1, 3, 3, 4 if version >= 3 else 3, 3 * coefficients]
    sizes = [count * size for size in sizes]
    if sum(sizes) > unpack_limit(packed):
        raise too_large(path)
    streams = _streams(data, sizes, path) if version == 4 else _split(data[16:], sizes, path)
    places, opacities, colors, scales, turns, harmonics = (np.frombuffer(stream, np.uint8) for stream in streams)
    if version == 1:
        positions = places.view("<f2").astype(np.float32).reshape(count, 3)
    else:
        low, middle, high = places.reshape(-1, 3).T
        fixed = high.view(np.int8).astype(np.int32) << 16 | middle.astype(np.int32) << 8 | low
        positions = np.ldexp(fixed.astype(np.float32), -fraction).reshape(count, 3)
    bytes_to_color = np.float32((np.arange(256) / 255 - 0.5) / _COLOR_SCALE * SH_C0 + 0.5)
    bytes_to_scale = np.float32(np.exp(np.arange(256) / 16 - 10))
    if on_warning and degree > 3:
        on_warning(f"The spherical harmonics above degree 3 in {path} were left out.")
    levels = harmonics.reshape(count, coefficients, 3)[:, :15]
    values = np.empty(levels.shape, np.float32)
    np.subtract(levels, np.float32(128), out=values)
    values /= 128
    return Gaussians(
        positions,
        opacities / np.float32(255),
        bytes_to_scale[scales].reshape(count, 3),
        (_smallest_three if version >= 3 else _first_three)(turns),
        bytes_to_color[colors].reshape(count, 3),
        values if levels.size and (levels != 128).any() else None,
    )


def _split(data: bytes, sizes: list[int], path: Path) -> list[memoryview]:
    if len(data) < sum(sizes):
        raise LGMError(f"{path} is cut short or its header is wrong: it promises more Gaussians than it holds. {AGAIN}")
    ends = np.cumsum([0, *sizes])
    return [memoryview(data)[start:end] for start, end in pairwise(ends)]


def _streams(data: bytes, sizes: list[int], path: Path) -> list[bytes]:
    """The attributes of version 4, each packed by itself, those of no bytes left out."""
    number, table = data[15], struct.unpack_from("<I", data, 16)[0] if len(data) >= 32 else 0
    wanted = [size for size in sizes if size]
    place = table + 16 * number
    if number != len(wanted) or table < 32 or place > len(data):
        raise LGMError(f"{path} is damaged: its table of contents is not one. {AGAIN}")
    streams = []
    for index, size in enumerate(wanted):
        packed, unpacked = struct.unpack_from("<QQ", data, table + 16 * index)
        if unpacked != size or packed > len(data) - place:
            raise LGMError(
                f"{path} is cut short or damaged: its parts are not of the size that they should be. {AGAIN}"
            )
        streams.append(unzstd(data[place : place + packed], size, path))
        place += packed
    return [*streams, *([b""] * (len(sizes) - len(streams)))]


def _smallest_three(turns: np.ndarray) -> np.ndarray:
    """[N, 4] quaternions (w, x, y, z) of 32 bits each: the place of the largest, and sign and 9 bits of the others."""
    codes = turns.view("<u4")
    parts = np.stack([codes >> 20, codes >> 10, codes], 1) & 1023
    others = (parts & 511) * np.float32(0.5**0.5 / 511)
    np.negative(others, where=parts > 511, out=others)
    return from_smallest_three(codes >> 30, others)[:, _WXYZ]


def _first_three(turns: np.ndarray) -> np.ndarray:
    """[N, 4] quaternions (w, x, y, z) of bytes x y z, w being what is left, and not negative."""
    xyz = turns.reshape(-1, 3) / np.float32(127.5) - 1
    w = np.sqrt(np.maximum(0, 1 - (xyz * xyz).sum(1, keepdims=True)))
    result = np.concatenate([w, xyz], 1)
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def encode(gaussians: Gaussians) -> bytes:
    """Gaussians in LGM's frame as SPZ of version 3, which all readers of SPZ of today know.

    The positions get as many fractional bits as their range leaves, and the harmonics all 8 bits: Niantic's own writer
    has 12 and throws away 3 or 4 of the 8.
    """
    count, coefficients, _ = gaussians.harmonics.shape
    reach = max(float(np.abs(gaussians.positions).max()), 1e-6)
    fraction = int(np.clip(np.floor(np.log2((2**23 - 1) / reach)), 0, 23))
    fixed = np.clip(np.rint(gaussians.positions * np.float32(2**fraction)), -(2**23), 2**23 - 1).astype("<i4")
    places = fixed.reshape(-1, 1).view(np.uint8)[:, :3]
    f_dc = (gaussians.colors - 0.5) * np.float32(_COLOR_SCALE / SH_C0) + 0.5
    logs = np.log(np.maximum(gaussians.scales, np.float32(1e-30)))
    largest, others = smallest_three(gaussians.rotations[:, _XYZW])
    parts = _byte_levels(np.abs(others) * np.float32(2**0.5 * 511), 511).astype(np.uint32) | (others < 0) << np.uint32(
        9
    )
    codes = largest.astype(np.uint32) << 30 | parts[:, 0] << 20 | parts[:, 1] << 10 | parts[:, 2]
    header = struct.pack("<4sIIBBBB", MAGIC, 3, count, _COEFFICIENTS.index(coefficients), fraction, 0, 0)
    streams = [
        places,
        _byte_levels(gaussians.opacities * 255),
        _byte_levels(f_dc * 255),
        _byte_levels((logs + 10) * 16),
        codes.astype("<u4"),
        _byte_levels(gaussians.harmonics * 128 + 128),
    ]
    return gzip.compress(header + b"".join(stream.tobytes() for stream in streams), _LEVEL, mtime=0)


def _byte_levels(values: np.ndarray, most: int = 255) -> np.ndarray:
    return np.clip(np.rint(values), 0, most).astype(np.uint8 if most == 255 else np.uint16)
