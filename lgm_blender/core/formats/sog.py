"""SOG, PlayCanvas' splats as pictures: 14 bytes a Gaussian and less, the smallest of the formats here for large scenes.

A zip, or a folder, with meta.json and lossless WebP pictures in which each pixel is a Gaussian: positions as 16 bits of
their signed logarithm (means_l, means_u), the smallest three of the quaternion and the place of the largest, scales and
colours as bytes that index a codebook of 256 values each, opacity as a byte, and the harmonics as the number of one
of up to 65,536 centroids, whose values index a codebook too.

Format: developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog, version 2.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import LGMError
from ..gaussians import SH_C0, Gaussians
from ..harmonics import COUNTS
from ..paths import read_regular
from .checks import LARGEST, OnWarning, too_large, unpack_limit
from .compressed_ply import from_smallest_three, morton_order, smallest_three

_LARGEST = 252  # of a quaternion's alpha: w is the largest; 253 to 255 are x, y and z
_CODES = 256
_SAMPLE = 1 << 18  # Gaussians that codebooks and centroids are made from
_DEPTH = 16  # of the tree of centroids
_IN_ROW = 64  # centroids in a row of their picture


class WebP(Protocol):
    """Who reads and writes pictures here: Pillow in the worker, Blender in Blender. Both without loss."""

    def decode(self, data: bytes) -> np.ndarray:
        """[H, W, 4] uint8 of a WebP file."""

    def encode(self, pixels: np.ndarray) -> bytes:
        """A lossless WebP file of [H, W, 4] uint8."""


def decode(
    data: bytes, path: Path, on_warning: OnWarning | None = None, *, webp: WebP | None, folder: Path | None = None
) -> Gaussians:
    """The Gaussians in a zip, or where `folder` is given in that and the meta.json whose content `data` is.

    Raises:
        LGMError: If it is of version 1, would fill the memory, or there is nothing that reads WebP.
        Others, of any kind: If it is damaged; `splat_files.read_splat_file` says so.
    """
    if webp is None:
        raise LGMError(f"{path} can't be read here: nothing reads WebP pictures. Save it as SPZ or PLY.")
    if folder is None:
        meta, load = _zip_loader(data, path)
    else:
        meta = data

        def load(name: str) -> bytes:
            return read_regular(folder / Path(name).name, LARGEST)  # whatever it says, no file elsewhere

    meta = json.loads(meta)
    if meta.get("version") != 2:
        raise LGMError(f"{path} is SOG of version {meta.get('version', 1)}, and 2 is known. Save it as that or PLY.")
    return _decode(meta, lambda name: _picture(load(name), webp, path))


def _zip_loader(data: bytes, path: Path) -> tuple[bytes, Callable[[str], bytes]]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = {entry.filename.rpartition("/")[2]: entry for entry in archive.infolist()}
    if "meta.json" not in entries:
        raise LGMError(f"{path} is a zip without a meta.json, so it is not SOG. Choose another file.")

    def load(name: str) -> bytes:
        entry = entries[name.rpartition("/")[2]]
        if entry.file_size > unpack_limit(len(data)):
            raise too_large(path)
        return archive.read(entry)

    return load("meta.json"), load


def _picture(data: bytes, webp: WebP, path: Path) -> np.ndarray:
    """[pixels, 4] of a WebP whose size, as its first bytes tell it, fits its bytes."""
    width, height = webp_size(data)
    if 4 * width * height > unpack_limit(len(data)):
        raise too_large(path)
    pixels = webp.decode(data)
    if pixels.shape != (height, width, 4) or pixels.dtype != np.uint8:
        raise ValueError(f"a picture of {width} x {height} became {pixels.shape}")
    return pixels


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP from its first bytes.

    Raises:
        ValueError: If it is not one.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("no WebP picture")
    if data[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    raise ValueError("a WebP picture with losses")


def _decode(meta: dict, load: Callable[[str], np.ndarray]) -> Gaussians:
    count = meta["count"]
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{count!r} Gaussians")

    def pixels(part: str, index: int = 0) -> np.ndarray:
        picture = load(meta[part]["files"][index]).reshape(-1, 4)
        if len(picture) < count:
            raise ValueError(f"{part} has {len(picture):,} pixels, and {count:,} are needed")
        return picture[:count]

    low, high = (np.asarray(meta["means"][name], np.float32).reshape(3) for name in ("mins", "maxs"))
    places = pixels("means", 1)[:, :3].astype(np.float32) * 256 + pixels("means")[:, :3]
    logs = low + places * ((high - low) / np.float32(65535))
    with np.errstate(over="ignore"):
        positions = np.copysign(np.expm1(np.abs(logs)), logs)
        scales = np.maximum(np.exp(_codes(meta["scales"])[pixels("scales")[:, :3]]), np.finfo(np.float32).tiny)
    turns = pixels("quats")
    others = (turns[:, :3] / np.float32(255) * 2 - 1) * np.float32(0.5**0.5)
    rotations = from_smallest_three(np.maximum(turns[:, 3], _LARGEST) - _LARGEST, others)
    rotations[turns[:, 3] < _LARGEST] = (1, 0, 0, 0)
    colors = pixels("sh0")
    harmonics = None
    if meta.get("shN"):
        coefficients = COUNTS[meta["shN"]["bands"]]
        labels = pixels("shN", 1)
        picture = load(meta["shN"]["files"][0])
        if picture.shape[1] != _IN_ROW * coefficients:
            raise ValueError("the centroids' picture has another width")
        values = _codes(meta["shN"])[picture.reshape(-1, coefficients, 4)[:, :, :3]]
        labels = labels[:, 0].astype(np.int32) | labels[:, 1].astype(np.int32) << 8
        harmonics = values[labels]
    return Gaussians(
        positions,
        colors[:, 3] / np.float32(255),
        scales,
        rotations,
        _codes(meta["sh0"])[colors[:, :3]] * np.float32(SH_C0) + np.float32(0.5),
        harmonics,
    )


def _codes(part: dict) -> np.ndarray:
    """The 256 values of a codebook; those that are missing are 0."""
    values = np.zeros(_CODES, np.float32)
    given = np.asarray(part["codebook"], np.float32)[:_CODES]
    values[: len(given)] = given
    return values


def encode(gaussians: Gaussians, *, webp: WebP | None) -> bytes:
    """Gaussians, ordered so that neighbours are neighbours, as a zip.

    Raises:
        LGMError: If there is nothing that writes WebP.
    """
    if webp is None:
        raise LGMError("SOG can't be written here: nothing writes WebP pictures. Choose SPZ or PLY.")
    gaussians = gaussians.select(morton_order(gaussians.positions))
    count, coefficients, _ = gaussians.harmonics.shape
    width = 4 * math.ceil(math.sqrt(count) / 4)
    height = math.ceil(count / width)
    files: dict[str, bytes] = {}

    def add(name: str, columns: Sequence[np.ndarray], size: tuple[int, int] = (height, width)) -> str:
        pixels = np.zeros((size[0] * size[1], 4), np.uint8)
        pixels[:, 3] = 255
        for channel, column in enumerate(columns):
            pixels[: len(column), channel] = column
        files[f"{name}.webp"] = webp.encode(pixels.reshape(*size, 4))
        return f"{name}.webp"

    logs = np.copysign(np.log1p(np.abs(gaussians.positions)), gaussians.positions)
    low, high = logs.min(axis=0), logs.max(axis=0)
    places = np.rint((logs - low) / np.where(high > low, high - low, 1) * 65535).astype(np.uint16)
    largest, others = smallest_three(gaussians.rotations)
    others = np.clip(np.rint((others * np.float32(2**0.5) + 1) * np.float32(127.5)), 0, 255)
    scales, scale_codes = _coded(np.log(np.maximum(gaussians.scales, np.float32(1e-30))))
    colors, color_codes = _coded((gaussians.colors - 0.5) / np.float32(SH_C0))
    opacities = np.clip(np.rint(gaussians.opacities * 255), 0, 255)
    meta = {
        "version": 2,
        "asset": {"generator": "LGM for Blender"},
        "count": count,
        "means": {
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": [add("means_l", places.T & 255), add("means_u", places.T >> 8)],
        },
        "scales": {"codebook": scale_codes, "files": [add("scales", scales.T)]},
        "quats": {"files": [add("quats", [*others.T, _LARGEST + largest])]},
        "sh0": {"codebook": color_codes, "files": [add("sh0", [*colors.T, opacities])]},
    }
    if coefficients:
        labels, centroids = palette(gaussians.harmonics.reshape(count, -1))
        levels, codes = _coded(centroids.reshape(-1, 3))
        rows = math.ceil(len(centroids) / _IN_ROW)
        meta["shN"] = {
            "count": len(centroids),
            "bands": COUNTS.index(coefficients),
            "codebook": codes,
            "files": [
                add("shN_centroids", levels.T, (rows, _IN_ROW * coefficients)),
                add("shN_labels", [labels & 255, labels >> 8, np.zeros(count)]),
            ],
        }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # WebP is packed already
        for name, data in {**files, "meta.json": json.dumps(meta).encode()}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _coded(values: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Values as indices uint8 of the same shape, and the 256 codes.

    Half of the codes lie where the values are, as the cube root of their density, which is best for many codes; the
    others at even distances, since the largest Gaussians are few.
    """
    low, high = float(values.min()), float(values.max())
    high = max(high, low + 1e-6 * max(1, abs(low)))
    sample = values.ravel()[:: max(1, values.size // _SAMPLE)].astype(np.float64)  # float32 overflows at its own ends
    counts, edges = np.histogram(sample, 4096, (low, high))
    share = np.cbrt(counts)
    share = np.cumsum(share / share.sum() + 1 / len(share))
    codes = np.interp(np.linspace(0, share[-1], _CODES), [0, *share], edges).astype(np.float32)
    return np.searchsorted((codes[1:] + codes[:-1]) / 2, values).astype(np.uint8), codes.tolist()


def palette(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up to 65,536 centroids [C, D] of vectors [N, D], and the number [N] of the one that stands for each.

    Where there are no more vectors, they are the centroids. Else they are the leaves of a on the principal axes of a
    sample: each node is cut at the median of the axis along which it varies most. k-means would be a little better, and
    takes minutes on a CPU.
    """
    count = len(values)
    if count <= 2**_DEPTH:
        return np.arange(count), values
    sample = values[np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)]
    mean = sample.mean(axis=0)
    _, axes = np.linalg.eigh((sample - mean).T.astype(np.float64) @ (sample - mean))
    axes = axes.astype(np.float32)
    turned = (sample - mean) @ axes
    order, cuts = np.arange(len(sample)), []
    for level in range(_DEPTH):
        bounds = np.linspace(0, len(sample), 2**level + 1).astype(np.int64)
        sizes = np.diff(bounds)
        nodes = np.repeat(np.arange(2**level), sizes)
        means = np.add.reduceat(turned[order], bounds[:-1]) / sizes[:, None]
        squares = np.add.reduceat(turned[order] ** 2, bounds[:-1]) / sizes[:, None]
        axis = (squares - means**2).argmax(axis=1)
        keys = turned[order, axis[nodes]]
        place = np.lexsort((keys, nodes))
        order, keys = order[place], keys[place]
        middle = np.linspace(0, len(sample), 2 ** (level + 1) + 1).astype(np.int64)[1::2]
        cuts.append((axis, (keys[middle - 1] + keys[middle]) / 2))
    bounds = np.linspace(0, len(sample), 2**_DEPTH + 1).astype(np.int64)
    centroids = np.add.reduceat(sample[order], bounds[:-1]) / np.diff(bounds)[:, None]
    labels = np.empty(count, np.int64)
    for first in range(0, count, _SAMPLE):
        part = (values[first : first + _SAMPLE] - mean) @ axes
        node, row = np.zeros(len(part), np.int64), np.arange(len(part))
        for axis, cut in cuts:
            node = 2 * node + (part[row, axis[node]] > cut[node])
        labels[first : first + _SAMPLE] = node
    return labels, centroids
