"""Files of splats as other programs write them, made without the modules under test."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from test_ply import random_gaussians

from lgm_blender.core.gaussians import Gaussians

COEFFICIENTS = (0, 3, 8, 15)


def gaussians_of(coefficients: int, count: int = 300, seed: int = 0) -> Gaussians:
    plain, r = random_gaussians(count, seed), np.random.default_rng(seed + 1)
    harmonics = r.uniform(-0.4, 0.4, (count, coefficients, 3))
    return Gaussians(
        plain.positions, plain.opacities, plain.scales, plain.rotations, plain.colors, harmonics.astype(np.float32)
    )


def spz_parts(gaussians: Gaussians, version: int) -> tuple[bytes, list[bytes]]:
    """Header of 16 bytes and attributes, made without the module under test."""
    count, coefficients, _ = gaussians.harmonics.shape
    fixed = np.rint(gaussians.positions * 4096).astype(np.int64)
    if version == 1:
        places = gaussians.positions.astype("<f2").tobytes()
    else:
        places = b"".join(int(v).to_bytes(3, "little", signed=True) for v in fixed.ravel())
    f_dc = (gaussians.colors - 0.5) / 0.28209479177387814
    turns = b""
    for w, x, y, z in gaussians.rotations.tolist():
        if version < 3:
            turns += bytes(round((v if w >= 0 else -v) * 127.5 + 127.5) for v in (x, y, z))
            continue
        values = [x, y, z, w]
        largest = max(range(4), key=lambda i: abs(values[i]))
        code = largest
        for i in range(4):
            if i != largest:
                negative = (values[i] < 0) != (values[largest] < 0)
                code = code << 10 | negative << 9 | int(511 * abs(values[i]) * 2**0.5 + 0.5)
        turns += struct.pack("<I", code)
    parts = [
        places,
        np.rint(gaussians.opacities * 255).astype(np.uint8).tobytes(),
        np.rint((f_dc * 0.15 + 0.5) * 255).astype(np.uint8).tobytes(),
        np.rint((np.log(gaussians.scales) + 10) * 16).astype(np.uint8).tobytes(),
        turns,
        np.rint(gaussians.harmonics * 128 + 128).astype(np.uint8).tobytes(),
    ]
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, COEFFICIENTS.index(coefficients), 12, 0, 0), parts


def spz_file(gaussians: Gaussians, version: int) -> bytes:
    header, parts = spz_parts(gaussians, version)
    if version < 4:
        return gzip.compress(header + b"".join(parts))
    zstandard = pytest.importorskip("zstandard")
    parts = [part for part in parts if part]
    packed = [zstandard.ZstdCompressor().compress(part) for part in parts]
    table = b"".join(struct.pack("<QQ", len(p), len(part)) for p, part in zip(packed, parts, strict=True))
    return header[:15] + struct.pack("<BI12x", len(parts), 32) + table + b"".join(packed)


def ksplat_file(gaussians: Gaussians, level: int, bucket: int = 64) -> bytes:
    """Two sections; the buckets of level 1 and 2 hold 64 each, the last one of a section fewer."""
    sections, data = [gaussians.select(np.arange(100)), gaussians.select(np.arange(100, len(gaussians)))], b""
    degree = COEFFICIENTS.index(gaussians.harmonics.shape[1])
    header = bytearray(4096)
    header[1] = 1
    struct.pack_into("<IIIIH", header, 4, 2, 2, len(gaussians), len(gaussians), level)
    struct.pack_into("<2f", header, 36, -0.5, 0.5)
    heads = b""
    for section in sections:
        count, block, reach = len(section), 5.0, 32767
        starts = range(0, count, bucket)
        full, partial = divmod(count, bucket)
        centers = np.float32([section.positions[i : i + bucket].mean(axis=0) for i in starts])
        head = bytearray(1024)
        struct.pack_into("<4IfH", head, 0, count, count, bucket, len(starts) if level else 0, block, 12 if level else 0)
        struct.pack_into("<I", head, 24, reach)
        struct.pack_into("<2IH", head, 32, full if level else 0, bool(partial) if level else 0, degree)
        heads += head
        if level:
            data += struct.pack("<I", partial) * bool(partial) + centers.tobytes()
        kind = "<f4" if level == 0 else "<f2"
        for i in range(count):
            if level:
                offset = section.positions[i] - centers[i // bucket]
                data += np.rint(offset / (block / 2 / reach) + reach).astype("<u2").tobytes()
            else:
                data += section.positions[i].astype("<f4").tobytes()
            data += section.scales[i].astype(kind).tobytes() + section.rotations[i].astype(kind).tobytes()
            data += bytes(np.rint([*section.colors[i] * 255, section.opacities[i] * 255]).astype(np.uint8))
            for first, end in ((0, 3), (3, 8), (8, 15))[:degree]:
                values = section.harmonics[i, first:end].T.ravel()
                data += (
                    np.rint((values + 0.5) * 255).astype(np.uint8).tobytes()
                    if level == 2
                    else values.astype(kind).tobytes()
                )
    return bytes(header) + heads + data
