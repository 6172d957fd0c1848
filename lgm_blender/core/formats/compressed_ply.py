"""The compressed PLY of SuperSplat and PlayCanvas: 16 bytes a Gaussian, each of whose values lies within its chunk.

    element chunk    N / 256 rows: the lowest and highest position, log scale and (since 2024) colour of 256 Gaussians
    element vertex   packed_position 11 + 10 + 11 bits, packed_rotation 2 + 3 x 10, packed_scale as the position,
                     packed_color 4 x 8: red, green, blue, opacity; all as fractions of the chunk's range
    element sh       optional: 9, 24 or 45 bytes a Gaussian, f_rest_* from -4 to 4

The rotation is the place of its largest component (w, x, y, z), and the others over sqrt(2) as 10 bits each.
By the readers and writers of playcanvas/splat-transform (MIT).
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import LGMError
from ..gaussians import Gaussians
from .checks import AGAIN
from .ply_table import ROWS, Header, columns

CHUNK = 256
_BOUNDS = [f"{end}_{name}" for end in ("min", "max") for name in "xyz"]
_SCALES = [f"{end}_scale_{name}" for end in ("min", "max") for name in "xyz"]
_COLORS = [f"{end}_{name}" for end in ("min", "max") for name in "rgb"]
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_RANGE = 8.0  # of the harmonics' bytes
_SCALE_LIMIT = 20.0  # of log scales; SuperSplat's too


def is_compressed(header: Header) -> bool:
    """Whether a PLY's vertices are packed."""
    return "packed_position" in header.find("vertex").names


def read(file: BinaryIO, header: Header, path: Path) -> Gaussians:
    """The Gaussians of an open file.

    Raises:
        LGMError: If it is damaged.
    """
    chunk, vertex, sh = (header.find(name) for name in ("chunk", "vertex", "sh"))
    count = vertex.count
    if (
        chunk is None
        or not {*_BOUNDS, *_SCALES} <= {*chunk.names}
        or not {*_PACKED} <= {*vertex.names}
        or (chunk.count != -(-count // CHUNK))
        or (sh is not None and (sh.count != count or sh.names != [f"f_rest_{i}" for i in range(len(sh.names))]))
        or (sh is not None and len(sh.names) not in (9, 24, 45))
        or any(element is not None and element.has_lists for element in (chunk, vertex, sh))
        or {type[1:] for name, type, _ in vertex.properties if name in _PACKED} != {"u4"}
    ):
        raise LGMError(f"{path} is a damaged compressed PLY: its parts don't fit each other. {AGAIN}")
    bounds = [*_BOUNDS, *_SCALES, *(_COLORS if {*_COLORS} <= {*chunk.names} else [])]
    ranges = columns(file, header, "chunk", bounds, np.float32, path)
    if len(bounds) < 18:  # older files have no range of colours
        ranges = np.concatenate([ranges, np.tile(np.float32([0, 0, 0, 1, 1, 1]), (len(ranges), 1))], 1)
    packed = columns(file, header, "vertex", _PACKED, np.uint32, path)
    harmonics = None
    if sh is not None:
        levels = columns(file, header, "sh", sh.names, np.uint8, path).reshape(count, 3, -1)
        # The middle of what is rounded to a level; the outermost levels are the ends.
        values = np.float32([0, *((np.arange(1, 255) + 0.5) / 256), 1]) * _RANGE - _RANGE / 2
        harmonics = np.empty((count, levels.shape[2], 3), np.float32)
        for first in range(0, count, ROWS):
            part = slice(first, first + ROWS)
            harmonics[part] = values[levels[part].transpose(0, 2, 1)]
    positions, scales, colors = (np.empty((count, 3), np.float32) for _ in range(3))
    opacities, rotations = np.empty(count, np.float32), np.empty((count, 4), np.float32)
    for first in range(0, count, ROWS):
        part = slice(first, first + ROWS)
        place, turn, size, color = packed[part].T
        own = ranges[np.arange(first, min(first + ROWS, count)) // CHUNK]
        positions[part] = _within(_three(place), own[:, 0:6])
        with np.errstate(over="ignore", invalid="ignore"):
            scales[part] = np.maximum(np.exp(_within(_three(size), own[:, 6:12])), np.finfo(np.float32).tiny)
        levels = np.stack([color >> 24, color >> 16 & 255, color >> 8 & 255, color & 255], 1).astype(np.float32) / 255
        colors[part], opacities[part] = _within(levels[:, :3], own[:, 12:18]), levels[:, 3]
        rest = np.stack([turn >> 20 & 1023, turn >> 10 & 1023, turn & 1023], 1)
        rotations[part] = from_smallest_three(turn >> 30, (rest / np.float32(1023) - 0.5) * np.float32(2**0.5))
    return Gaussians(positions, opacities, scales, rotations, colors, harmonics)


def encode(gaussians: Gaussians) -> bytes:
    """Gaussians, ordered so that those near each other share a chunk, as a compressed PLY."""
    gaussians = gaussians.select(morton_order(gaussians.positions))
    count, each = len(gaussians), gaussians.harmonics.shape[1]
    chunks = -(-count // CHUNK)
    ranges, packed = np.empty((chunks, 18), "<f4"), np.empty((count, 4), "<u4")
    for first in range(0, count, ROWS):
        part = slice(first, min(first + ROWS, count))
        logs = np.clip(np.log(np.maximum(gaussians.scales[part], 1e-30)), -_SCALE_LIMIT, _SCALE_LIMIT)
        place, own_places = _fractions(gaussians.positions[part])
        size, own_sizes = _fractions(logs)
        color, own_colors = _fractions(gaussians.colors[part])
        ranges[first // CHUNK : -(-part.stop // CHUNK)] = np.concatenate([own_places, own_sizes, own_colors], 1)
        largest, rest = smallest_three(gaussians.rotations[part])
        rest = _levels(rest * np.float32(0.5**0.5) + 0.5, 1023)
        packed[part, 0], packed[part, 2] = _pack_three(place), _pack_three(size)
        packed[part, 1] = largest.astype(np.uint32) << 30 | rest[:, 0] << 20 | rest[:, 1] << 10 | rest[:, 2]
        red, green, blue = _levels(color, 255).T
        packed[part, 3] = red << 24 | green << 16 | blue << 8 | _levels(gaussians.opacities[part], 255)
    lines = ["ply", "format binary_little_endian 1.0", "comment LGM for Blender", f"element chunk {chunks}"]
    lines += [f"property float {name}" for name in (*_BOUNDS, *_SCALES, *_COLORS)]
    lines += [f"element vertex {count}", *(f"property uint {name}" for name in _PACKED)]
    if each:
        lines += [f"element sh {count}", *(f"property uchar f_rest_{i}" for i in range(3 * each))]
    parts = ["\n".join([*lines, "end_header\n"]).encode(), ranges.tobytes(), packed.tobytes()]
    for first in range(0, count if each else 0, ROWS):
        levels = (gaussians.harmonics[first : first + ROWS].transpose(0, 2, 1) / np.float32(_RANGE) + 0.5) * 256
        parts.append(np.clip(levels, 0, 255).astype(np.uint8).tobytes())
    return b"".join(parts)


def smallest_three(quaternions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place [N] of the largest component of unit quaternions [N, 4], and the others [N, 3], where that is > 0."""
    largest = np.abs(quaternions).argmax(axis=1)
    signs = np.where(np.take_along_axis(quaternions, largest[:, None], 1) < 0, np.float32(-1), np.float32(1))
    others = quaternions[np.arange(4) != largest[:, None]].reshape(-1, 3)
    return largest, others * signs


def from_smallest_three(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N, 4] unit quaternions of what `smallest_three` gave."""
    result = np.empty((len(others), 4), np.float32)
    own = np.arange(4) == largest[:, None]
    result[~own] = others.ravel()
    result[own] = np.sqrt(np.maximum(0, 1 - (others * others).sum(1)))
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def morton_order(positions: np.ndarray) -> np.ndarray:
    """[N] indices along the Z-order curve: neighbours in it are neighbours in space."""
    low = positions.min(axis=0)
    cells = (positions - low) * np.float32(1023) / np.maximum(positions.max(axis=0) - low, np.finfo(np.float32).tiny)
    code = np.zeros(len(positions), np.uint32)
    for axis in range(3):
        bits = cells[:, axis].astype(np.uint32)
        for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
            bits = (bits | bits << shift) & mask
        code |= bits << axis
    return np.argsort(code, kind="stable")


def _three(packed: np.ndarray) -> np.ndarray:
    """[N, 3] fractions of 11, 10 and 11 bits."""
    levels = np.stack([packed >> 21, packed >> 11 & 1023, packed & 2047], 1)
    return levels / np.float32([2047, 1023, 2047])


def _pack_three(fractions: np.ndarray) -> np.ndarray:
    return _levels(fractions[:, 0], 2047) << 21 | _levels(fractions[:, 1], 1023) << 11 | _levels(fractions[:, 2], 2047)


def _levels(fractions: np.ndarray, most: int) -> np.ndarray:
    return np.clip(np.floor(fractions * np.float32(most) + 0.5), 0, most).astype(np.uint32)


def _within(fractions: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    return ranges[:, :3] * (1 - fractions) + ranges[:, 3:] * fractions


def _fractions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where values [N, 3] lie within those of their chunk, 0 to 1, and the chunks' ranges [N / 256, 6]."""
    starts = np.arange(0, len(values), CHUNK)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    own = np.arange(len(values)) // CHUNK
    span = np.where(high > low, high - low, 1)
    return (values - low[own]) / span[own], np.concatenate([low, high], 1)
