"""The worker's meshes as binary glTF (GLB): one mesh with UVs and one picture."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import LGMError

QUAD = [0, 1, 2, 5]  # the corners of a quad among the six of its halves (a, b, c) and (a, c, d)
_TYPES = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


@dataclass(frozen=True)
class GlbMesh:
    """A triangle mesh in LGM's frame, which is glTF's: y up, its front towards +z.

    Attributes:
        vertices: [V, 3] float32; those that glTF has more than once, for their UVs' sake, are here once.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        corner_uvs: [F, 3, 2] float32, v up.
        texture: The picture's bytes, a PNG or JPEG; sRGB.
        roughness: Of the material, 0 to 1.
        quads: The first 2 * quads faces are, two by two, the halves (a, b, c) and (a, c, d) of as many quads.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corner_uvs: np.ndarray
    texture: bytes
    roughness: float
    quads: int = 0


def read_glb(path: str | os.PathLike) -> GlbMesh:
    """Reads a GLB as the worker writes it: one primitive, its arrays packed tightly, its picture within the file.

    Raises:
        LGMError: If the file can't be read or is another sort of glTF.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LGMError(f"{path} can't be read: {error.strerror or error}.") from error
    try:
        return _decode(data)
    except (KeyError, IndexError, TypeError, ValueError, struct.error) as error:
        raise LGMError(f"{path} is damaged, or no mesh that LGM made.") from error


def _decode(data: bytes) -> GlbMesh:
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
    positions, uvs = (array(primitive["attributes"][name]) for name in ("POSITION", "TEXCOORD_0"))
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
        (uvs * np.float32([1, -1]) + np.float32([0, 1]))[index],  # glTF's v points down
        bytes(view(document["images"][texture]["bufferView"])),
        float(material.get("roughnessFactor", 1.0)),
        quads,
    )
