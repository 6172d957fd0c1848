"""The two formats of early viewers in browsers: .splat (antimatter15), written and read, and .ksplat, only read.

.splat: 32 bytes a Gaussian and no header: position and scale as three float32 each, red, green, blue and opacity as
bytes, and the quaternion w x y z as bytes, value * 128 + 128.

.ksplat (mkkellogg's GaussianSplats3D, version 0.1): a header of 4,096 bytes, one of 1,024 for each section, then the
sections: sizes of the buckets that are not full, the buckets' centres, and the Gaussians. Of level 0 all are float32;
of level 1 and 2 positions are 16 bits within their bucket, scales, rotations and harmonics float16, the harmonics of
level 2 bytes. The harmonics are by degree, within it all of red first.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import LGMError
from ..gaussians import Gaussians
from ..harmonics import COUNTS
from .checks import AGAIN, OnWarning, unit_quaternions

_SPLAT = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])
_HEADER, _SECTION = 4096, 1024
_TINY = np.finfo(np.float32).tiny  # a scale of exactly zero would divide by zero in any renderer


def decode_splat(data: bytes, path: Path, on_warning: OnWarning | None = None) -> Gaussians:
    """The Gaussians in a .splat file.

    Raises:
        LGMError: If its size is not one of such a file.
    """
    if not data or len(data) % _SPLAT.itemsize:
        raise LGMError(
            f"{path} is cut short or not a .splat file: its size is no multiple of {_SPLAT.itemsize} bytes. {AGAIN}"
        )
    table = np.frombuffer(data, _SPLAT)
    return Gaussians(
        table["position"],
        table["color"][:, 3] / np.float32(255),
        np.maximum(table["scale"], _TINY),
        unit_quaternions((table["rotation"].astype(np.float32) - 128) / 128),
        table["color"][:, :3] / np.float32(255),
    )


def encode_splat(gaussians: Gaussians) -> bytes:
    """Gaussians as a .splat file; it holds no harmonics, and colours from 0 to 1."""
    table = np.empty(len(gaussians), _SPLAT)
    table["position"], table["scale"] = gaussians.positions, gaussians.scales
    colors = np.concatenate([gaussians.colors, gaussians.opacities[:, None]], 1)
    table["color"] = np.clip(np.rint(colors * 255), 0, 255)
    table["rotation"] = np.clip(np.rint(gaussians.rotations * 128 + 128), 0, 255)
    return table.tobytes()


def decode_ksplat(data: bytes, path: Path, on_warning: OnWarning | None = None) -> Gaussians:
    """The Gaussians in a .ksplat file of version 0.1 and any level.

    Raises:
        LGMError: If it is damaged, cut short or of another version.
    """
    if len(data) < _HEADER or data[0] != 0 or not data[1]:
        raise LGMError(f"{path} is not a .ksplat file of version 0.1. Save it as SPZ or PLY.")
    (sections,), (level,) = struct.unpack_from("<I", data, 4), struct.unpack_from("<H", data, 20)
    low, high = struct.unpack_from("<2f", data, 36)
    bounds = (low or -1.5, high or 1.5)  # of the harmonics of level 2
    if level > 2 or sections > (len(data) - _HEADER) // _SECTION:
        raise LGMError(f"{path} is damaged: its header makes no sense. {AGAIN}")
    place = _HEADER + sections * _SECTION
    parts = []
    for number in range(sections):
        part, place = _section(data, _HEADER + number * _SECTION, place, level, bounds, path)
        if part is not None:
            parts.append(part)
    if not parts:
        raise LGMError(f"{path} holds no Gaussians. Choose another file.")
    most = max(part[-1].shape[1] for part in parts)
    harmonics = [np.pad(part[-1], ((0, 0), (0, most - part[-1].shape[1]), (0, 0))) for part in parts]
    columns = [np.concatenate(column) for column in zip(*(part[:-1] for part in parts), strict=True)]
    return Gaussians(*columns, np.concatenate(harmonics))


def _section(
    data: bytes, header: int, place: int, level: int, bounds: tuple[float, float], path: Path
) -> tuple[list[np.ndarray] | None, int]:
    """The values of one section's Gaussians, in the order of Gaussians' fields, and where the next section begins."""
    count, most, capacity, buckets = struct.unpack_from("<4I", data, header)
    (block,), (storage,) = struct.unpack_from("<f", data, header + 16), struct.unpack_from("<H", data, header + 20)
    reach, _, full, partial = struct.unpack_from("<4I", data, header + 24)
    degree = struct.unpack_from("<H", data, header + 40)[0]
    damaged = LGMError(f"{path} is cut short or damaged: a section of it makes no sense. {AGAIN}")
    if degree > 3 or count > most:
        raise damaged
    kind, rest = ("<f4", "<f4") if level == 0 else ("<f2", "<f2" if level == 1 else "u1")
    row = np.dtype(
        [
            ("position", "<f4" if level == 0 else "<u2", 3),
            ("scale", kind, 3),
            ("rotation", kind, 4),
            ("color", "u1", 4),
            ("harmonics", rest, 3 * COUNTS[degree]),
        ]
    )
    rows = place + 4 * partial + storage * buckets
    end = rows + row.itemsize * most
    if rows + row.itemsize * count > len(data) or (level and (storage < 12 or full + partial > buckets)):
        raise damaged
    if not count:
        return None, end
    table = np.frombuffer(data, row, count, rows)
    positions = table["position"].astype(np.float32)
    if level:
        centers = np.frombuffer(data, "u1", storage * buckets, place + 4 * partial).reshape(buckets, storage)
        centers = np.ascontiguousarray(centers[:, :12]).view("<f4")
        sizes = np.frombuffer(data, "<u4", partial, place)
        ends = np.concatenate([capacity * np.arange(1, full + 1, dtype=np.int64), capacity * full + np.cumsum(sizes)])
        own = np.searchsorted(ends, np.arange(count), side="right")
        if own[-1] >= len(ends):
            raise damaged
        reach = reach or 32767
        positions = (positions - reach) * np.float32(block / 2 / reach) + centers[own]
    harmonics = table["harmonics"].astype(np.float32)
    if level == 2:
        harmonics = bounds[0] + harmonics / 255 * (bounds[1] - bounds[0])
    by_degree = [
        harmonics[:, 3 * first : 3 * last].reshape(count, 3, last - first).transpose(0, 2, 1)
        for first, last in pairwise(COUNTS[: degree + 1])
    ]
    by_degree.append(np.zeros((count, 0, 3), np.float32))
    colors = table["color"] / np.float32(255)
    values = [positions, colors[:, 3], np.maximum(table["scale"].astype(np.float32), _TINY)]
    values += [unit_quaternions(table["rotation"].astype(np.float32)), colors[:, :3]]
    return [*values, np.concatenate(by_degree, 1)], end
