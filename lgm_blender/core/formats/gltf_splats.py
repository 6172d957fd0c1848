"""Splats in glTF 2.0 by the extension KHR_gaussian_splatting: GLB both ways, .gltf read.

A primitive of points with POSITION and, under the extension's name, ROTATION (x y z w), SCALE (linear), OPACITY and
SH_DEGREE_l_COEF_n. glTF is y up with its front towards +z, as LGM is. SPZ inside glTF is read as well.

Format: github.com/KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..affine import transformed
from ..errors import LGMError
from ..gaussians import SH_C0, Gaussians, joined, rotation_matrices
from ..harmonics import COUNTS
from ..paths import read_regular
from . import spz
from .checks import LARGEST, OnWarning, too_large, unit_quaternions, unpack_limit

EXTENSION = "KHR_gaussian_splatting"
_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_FLOAT, _VERTICES, _POINTS = 5126, 34962, 0
_XYZW, _WXYZ = [1, 2, 3, 0], [3, 0, 1, 2]


def _names() -> list[str]:
    """The attributes of the harmonics of degree 1 to 3."""
    return [f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{i}" for degree in (1, 2, 3) for i in range(2 * degree + 1)]


def encode(gaussians: Gaussians) -> bytes:
    """Gaussians in LGM's frame as GLB, every value as it is."""
    values = {
        "POSITION": gaussians.positions,
        f"{EXTENSION}:ROTATION": gaussians.rotations[:, _XYZW],
        f"{EXTENSION}:SCALE": gaussians.scales,
        f"{EXTENSION}:OPACITY": gaussians.opacities[:, None],
        f"{EXTENSION}:SH_DEGREE_0_COEF_0": gaussians.f_dc,
    }
    for index, name in enumerate(_names()[: gaussians.harmonics.shape[1]]):
        values[name] = gaussians.harmonics[:, index]
    parts, views, accessors, attributes = [], [], [], {}
    for index, (name, array) in enumerate(values.items()):
        data = np.ascontiguousarray(array, "<f4").tobytes()
        kind = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[array.shape[1]]
        start = sum(view["byteLength"] for view in views)
        views.append({"buffer": 0, "byteOffset": start, "byteLength": len(data), "target": _VERTICES})
        accessors.append({"bufferView": index, "componentType": _FLOAT, "count": len(array), "type": kind})
        if name == "POSITION":
            accessors[-1] |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        attributes[name] = index
        parts.append(data)
    size = sum(map(len, parts))
    how = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    how |= {"sortingMethod": "cameraDistance", "projection": "perspective"}
    document = {
        "asset": {"version": "2.0", "generator": "LGM for Blender"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "mode": _POINTS, "extensions": {EXTENSION: how}}]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": size}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + size, len(text), 0x4E4F534A)
    return b"".join([head, text, struct.pack("<II", size, 0x004E4942), *parts])


def decode(data: bytes, path: Path, on_warning: OnWarning | None = None) -> Gaussians:
    """The Gaussians of a GLB or .gltf, placed as its nodes say. Files that a .gltf names lie beside it.

    Raises:
        LGMError: If it holds no splats.
        Others, of any kind: If it is damaged; `splat_files.read_splat_file` says so.
    """
    document, binary = _document(data)
    buffers, parts, taken = _Buffers(document, binary, path), [], 0
    for primitive, matrix in _placed(document):
        if EXTENSION in primitive.get("extensions", {}):
            parts.append(transformed(_primitive(primitive, buffers, path, on_warning), matrix))
            taken += sum(getattr(parts[-1], field.name).nbytes for field in fields(Gaussians))
            if taken > unpack_limit(len(data) + buffers.beside):  # one mesh in very many places
                raise too_large(path)
    if not parts:
        raise LGMError(
            f"{path} is glTF without splats ({EXTENSION}). Import it with Blender's own File > Import > glTF."
        )
    return joined(parts)


def _document(data: bytes) -> tuple[dict, bytes | memoryview]:
    if data[:4] != b"glTF":
        return json.loads(data), b""
    total, size = struct.unpack_from("<II", data, 8)
    if total > len(data) or 20 + size > len(data):
        raise ValueError("the file ends too early")
    return json.loads(data[20 : 20 + size]), memoryview(data)[20 + size + 8 : total]  # no second copy of a large file


def _placed(document: dict) -> Iterator[tuple[dict, np.ndarray]]:
    """Each primitive of the scene and where it is [4, 4]."""
    nodes, scenes = document.get("nodes", []), document.get("scenes", [])
    roots = scenes[document.get("scene", 0)].get("nodes", []) if scenes else range(len(nodes))
    waiting, seen = [(index, np.eye(4)) for index in roots], set()
    while waiting:
        index, above = waiting.pop()
        if index in seen:
            raise ValueError("a node that is in two places")
        seen.add(index)
        node = nodes[index]
        matrix = above @ _matrix(node)
        waiting += [(child, matrix) for child in node.get("children", [])]
        if "mesh" in node:
            for primitive in document["meshes"][node["mesh"]]["primitives"]:
                yield primitive, matrix


def _matrix(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    turn = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)[_WXYZ]
    matrix[:3, :3] = rotation_matrices(turn) * np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


class _Buffers:
    """The numbers that a document's accessors stand for."""

    def __init__(self, document: dict, binary: bytes | memoryview, path: Path):
        self.document, self.binary, self.path = document, binary, path
        self.read: dict[int, bytes | memoryview] = {}
        self.beside = 0  # bytes in other files

    def buffer(self, index: int) -> bytes | memoryview:
        if index not in self.read:
            uri = self.document["buffers"][index].get("uri")
            if uri is None:
                self.read[index] = self.binary
            elif uri.startswith("data:"):
                self.read[index] = base64.b64decode(uri.partition(",")[2])
            else:
                # No file elsewhere.
                self.read[index] = read_regular(self.path.parent / Path(uri).name, LARGEST)
                self.beside += len(self.read[index])
        return self.read[index]

    def view(self, index: int) -> memoryview:
        entry = self.document["bufferViews"][index]
        data, start = memoryview(self.buffer(entry["buffer"])), entry.get("byteOffset", 0)
        if start < 0 or entry["byteLength"] < 0 or start + entry["byteLength"] > len(data):
            raise ValueError("the file ends too early")
        return data[start : start + entry["byteLength"]]

    def array(self, index: int) -> np.ndarray:
        """[N, width] float32 of an accessor; whole numbers that stand for fractions are these."""
        entry = self.document["accessors"][index]
        view = self.document["bufferViews"][entry["bufferView"]]
        dtype, width = np.dtype(_TYPES[entry["componentType"]]), _WIDTHS[entry["type"]]
        data, count = self.view(entry["bufferView"])[entry.get("byteOffset", 0) :], entry["count"]
        stride = view.get("byteStride", 0) or dtype.itemsize * width
        if count < 1 or stride < dtype.itemsize * width or (count - 1) * stride + dtype.itemsize * width > len(data):
            raise ValueError("an accessor without its data")
        values = np.ndarray((count, width), dtype, data, strides=(stride, dtype.itemsize))
        if entry.get("normalized"):
            return np.maximum(values / np.float32(np.iinfo(dtype).max), -1)
        return values.astype(np.float32)


def _primitive(primitive: dict, buffers: _Buffers, path: Path, on_warning: OnWarning | None) -> Gaussians:
    extension: dict[str, Any] = primitive["extensions"][EXTENSION]
    for name, packed in (extension.get("extensions") or {}).items():
        if "spz" in name:
            return spz.decode(bytes(buffers.view(packed["bufferView"])), path, on_warning)
    space = extension.get("colorSpace", "srgb_rec709_display")
    if space != "srgb_rec709_display" and on_warning:
        on_warning(f"The colours in {path} are meant for '{space}'; they were taken as sRGB and may look off.")
    if extension.get("kernel", "ellipse") != "ellipse" and on_warning:
        on_warning(f"The splats in {path} are of the kernel '{extension['kernel']}'; they were taken as ellipsoids.")
    attributes = primitive["attributes"]
    positions = buffers.array(attributes["POSITION"])
    values = {name: buffers.array(attributes[f"{EXTENSION}:{name}"]) for name in ("OPACITY", "SCALE", "ROTATION")}
    base = buffers.array(attributes[f"{EXTENSION}:SH_DEGREE_0_COEF_0"])
    names = _names()
    coefficients = max(n for n in COUNTS if all(name in attributes for name in names[:n]))
    harmonics = np.empty((len(positions), coefficients, 3), np.float32)
    for index, name in enumerate(names[:coefficients]):
        harmonics[:, index] = buffers.array(attributes[name])
    return Gaussians(
        positions,
        values["OPACITY"][:, 0],
        np.maximum(values["SCALE"], np.finfo(np.float32).tiny),
        unit_quaternions(values["ROTATION"][:, _WXYZ]),
        base * np.float32(SH_C0) + np.float32(0.5),
        harmonics,
    )
