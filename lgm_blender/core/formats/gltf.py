"""The worker's meshes as binary glTF 2.0 (GLB), both ways: one mesh with UVs and normals, and one picture."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import LGMError
from .checks import DAMAGED

QUAD = [0, 1, 2, 5]  # the corners of a quad among the six of its halves (a, b, c) and (a, c, d)
ROUGHNESS = 0.8  # of the material: splats have no highlights of their own
_FLOAT, _UINT, _VERTICES, _INDICES = 5126, 5125, 34962, 34963  # glTF's numbers for them
_LINEAR, _TRILINEAR, _CLAMP = 9729, 9987, 33071
_TYPES = {5121: "u1", 5123: "<u2", _UINT: "<u4", _FLOAT: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


@dataclass(frozen=True)
class GlbMesh:
    """A triangle mesh in LGM's frame, which is glTF's: y up, its front towards +z.

    Attributes:
        vertices: [V, 3] float32; those that glTF has more than once, for their UVs' sake, are here once.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        corner_uvs: [F, 3, 2] float32, v up.
        texture: The picture's bytes, a PNG or JPEG; sRGB.
        corner_normals: [F, 3, 3] float32, unit length; None if the file has none.
        roughness: Of the material, 0 to 1.
        quads: The first 2 * quads faces are, two by two, the halves (a, b, c) and (a, c, d) of as many quads.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corner_uvs: np.ndarray
    texture: bytes
    corner_normals: np.ndarray | None = None
    roughness: float = ROUGHNESS
    quads: int = 0


def encode_glb(mesh: GlbMesh, name: str) -> bytes:
    """One binary file with the texture, a PNG, inside. The mesh must have normals.

    glTF knows triangles only: of how many quads the first ones are the halves is the primitive's extra 'quads'. A
    vertex of glTF has one UV and one normal, so those on seams and sharp edges are there more than once.
    """
    corners = np.concatenate([mesh.corner_uvs, mesh.corner_normals], 2).reshape(-1, 5)
    keys = np.concatenate([mesh.faces.reshape(-1, 1), np.round(corners * 2**20).astype(np.int32)], 1)
    rows = np.ascontiguousarray(keys.astype(np.int32)).view([("", np.int32)] * keys.shape[1])[:, 0]
    _, first, index = np.unique(rows, return_index=True, return_inverse=True)
    positions = mesh.vertices[mesh.faces.reshape(-1)[first]].astype("<f4")
    parts = [
        (index.astype("<u4"), _INDICES),
        (positions, _VERTICES),
        (corners[first, 2:].astype("<f4"), _VERTICES),
        (_flipped(corners[first, :2].astype("<f4")), _VERTICES),
        (np.frombuffer(mesh.texture, np.uint8), None),
    ]
    binary, views = bytearray(), []
    for array, target in parts:
        view = {"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes}
        views.append(view | ({"target": target} if target else {}))
        binary += array.tobytes()
        binary += b"\0" * (-len(binary) % 4)

    def accessor(view: int, kind: str, count: int, type: int = _FLOAT, **bounds) -> dict:
        return {"bufferView": view, "componentType": type, "count": count, "type": kind, **bounds}

    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    document = {
        "asset": {"version": "2.0", "generator": "LGM for Blender"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [
            {
                "name": name,
                "primitives": [
                    {"attributes": {"POSITION": 1, "NORMAL": 2, "TEXCOORD_0": 3}, "indices": 0, "material": 0}
                    | ({"extras": {"quads": mesh.quads}} if mesh.quads else {})
                ],
            }
        ],
        "materials": [
            {
                "name": name,
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicFactor": 0.0,
                    "roughnessFactor": mesh.roughness,
                },
            }
        ],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": _LINEAR, "minFilter": _TRILINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}],
        "images": [{"bufferView": 4, "mimeType": "image/png", "name": f"{name}_texture"}],
        "accessors": [
            accessor(0, "SCALAR", len(index), _UINT),
            accessor(1, "VEC3", len(positions), **bounds),
            accessor(2, "VEC3", len(positions)),
            accessor(3, "VEC2", len(positions)),
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return header + chunks


def read_glb(path: str | os.PathLike) -> GlbMesh:
    """Reads a GLB as `encode_glb` writes it: one primitive, its arrays packed tightly, its picture within the file.

    Raises:
        LGMError: If the file can't be read or is another sort of glTF.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LGMError(f"{path} can't be read ({error.strerror or error}). Choose another file.") from error
    try:
        return decode_glb(data)
    except DAMAGED as error:
        raise LGMError(
            f"{path} is damaged, or no mesh that LGM made. Import it with Blender's own importer of glTF, or make it "
            "again."
        ) from error


def decode_glb(data: bytes) -> GlbMesh:
    """What `encode_glb` made bytes of.

    Raises:
        Any of checks.DAMAGED: If it is damaged or another sort of glTF.
    """
    magic, _, total, size, kind = struct.unpack_from("<4sIII4s", data)
    if magic != b"glTF" or kind != b"JSON" or total != len(data):
        raise ValueError("no GLB, or not all of it")
    document = json.loads(data[20 : 20 + size])
    binary = memoryview(data)[20 + size + 8 :]

    def view(index: int) -> memoryview:
        entry = document["bufferViews"][index]
        start = entry.get("byteOffset", 0)
        if start + entry["byteLength"] > len(binary):
            raise ValueError("the file ends too early")
        return binary[start : start + entry["byteLength"]]

    def array(index: int) -> np.ndarray:
        entry = document["accessors"][index]
        width = _WIDTHS[entry["type"]]
        values = np.frombuffer(view(entry["bufferView"]), _TYPES[entry["componentType"]])
        return values[: entry["count"] * width].reshape(entry["count"], width)

    ((primitive,),) = (mesh["primitives"] for mesh in document["meshes"])
    attributes = primitive["attributes"]
    positions, uvs = array(attributes["POSITION"]), _flipped(array(attributes["TEXCOORD_0"]))
    index = array(primitive["indices"]).reshape(-1, 3)
    material = document["materials"][primitive["material"]]["pbrMetallicRoughness"]
    texture = document["textures"][material["baseColorTexture"]["index"]]["source"]
    extras = primitive.get("extras")
    quads = extras.get("quads", 0) if isinstance(extras, dict) else 0
    halves = index[: max(0, 2 * quads)].reshape(-1, 2, 3)
    if len(halves) != quads or (halves[:, 0][:, [0, 2]] != halves[:, 1, :2]).any():
        raise ValueError("no such quads")
    if len(index) == 0 or not np.isfinite(positions).all():
        raise ValueError("no faces, or none that can be shown")

    rows = np.ascontiguousarray(positions + np.float32(0)).view([("", "<f4")] * 3)[:, 0]  # -0 becomes 0
    _, first, merged = np.unique(rows, return_index=True, return_inverse=True)
    return GlbMesh(
        positions[first].astype(np.float32),
        merged.reshape(-1)[index].astype(np.int32),
        uvs[index],
        bytes(view(document["images"][texture]["bufferView"])),
        array(attributes["NORMAL"])[index] if "NORMAL" in attributes else None,
        float(material.get("roughnessFactor", 1.0)),
        quads,
    )


def _flipped(uvs: np.ndarray) -> np.ndarray:
    """UVs [N, 2] whose v points up, with v pointing down as glTF's does; and the other way round."""
    return uvs * np.float32([1, -1]) + np.float32([0, 1])
