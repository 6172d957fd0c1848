"""Small GLB files for tests, written by hand."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def piece(positions, faces, **look) -> dict:
    """One primitive. `look`: uv [V, 2] (v down), picture [H, W, 3 or 4] uint8, colors [V, 3 or 4] in linear light,
    and material, a glTF material to which the picture is added; None for a primitive without one."""
    return {"positions": np.asarray(positions, np.float32), "faces": np.asarray(faces, np.uint32), **look}


def write_glb(path: Path, *pieces: dict, **header) -> Path:
    """Writes pieces as a GLB; `header` adds to its JSON."""
    chunks: list[bytes] = []
    views, accessors, materials, images, primitives = [], [], [], [], []

    def view(data: bytes) -> int:
        views.append({"buffer": 0, "byteOffset": sum(map(len, chunks)), "byteLength": len(data)})
        chunks.append(data + b"\0" * (-len(data) % 4))
        return len(views) - 1

    def accessor(values: np.ndarray, kind: str) -> int:
        component = 5125 if values.dtype == np.uint32 else 5126
        entry = {"bufferView": view(values.tobytes()), "componentType": component, "count": len(values), "type": kind}
        if kind == "VEC3":
            entry |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        accessors.append(entry)
        return len(accessors) - 1

    for each in pieces:
        attributes = {"POSITION": accessor(each["positions"], "VEC3")}
        if "uv" in each:
            attributes["TEXCOORD_0"] = accessor(np.asarray(each["uv"], np.float32), "VEC2")
        if "colors" in each:
            colors = np.asarray(each["colors"], np.float32)
            attributes["COLOR_0"] = accessor(colors, f"VEC{colors.shape[1]}")
        primitive = {"attributes": attributes, "indices": accessor(each["faces"].ravel(), "SCALAR")}
        material = each.get("material", {"pbrMetallicRoughness": {}})
        if material is not None:
            if "picture" in each:
                file = io.BytesIO()
                Image.fromarray(each["picture"]).save(file, "PNG")
                images.append({"bufferView": view(file.getvalue()), "mimeType": "image/png"})
                pbr = material.setdefault("pbrMetallicRoughness", {})
                pbr["baseColorTexture"] = {"index": len(images) - 1, **pbr.get("baseColorTexture", {})}
            primitive["material"] = len(materials)
            materials.append(material)
        primitives.append(primitive)
    content = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, chunks))}],
        **({"materials": materials} if materials else {}),
        **({"images": images, "textures": [{"source": i} for i in range(len(images))]} if images else {}),
        **header,
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    data = b"".join(chunks)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(data), len(text), 0x4E4F534A)
    path.write_bytes(head + text + struct.pack("<II", len(data), 0x004E4942) + data)
    return path


def bumpy_ball(rows: int = 24, columns: int = 36) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions [V, 3], uv [V, 2] and faces [F, 3] of a ball with bumps, closed, no side like another."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    theta, phi = np.pi * v, 2 * np.pi * u
    radius = 0.5 * (1 + 0.25 * np.sin(3 * phi) * np.sin(theta) ** 2 + 0.15 * np.cos(2 * theta + 1))
    x, y, z = np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)
    positions = np.stack([1.4 * x * radius, y * radius, 0.8 * z * radius], -1).reshape(-1, 3)
    corner = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).ravel()
    a, b, c, d = corner, corner + 1, corner + columns + 1, corner + columns + 2
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    return positions, np.stack([u, v], -1).reshape(-1, 2), faces


def patchwork(size: int = 64) -> np.ndarray:
    """[size, size, 3] uint8: squares of many colours."""
    colors = np.random.default_rng(1).integers(20, 256, (8, 8, 3), dtype=np.uint8)
    return colors.repeat(size // 8, 0).repeat(size // 8, 1)


def box(low, high) -> tuple[np.ndarray, np.ndarray]:
    """Positions [8, 3] and faces [12, 3] of a box."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    positions = np.asarray(low) + corners * (np.asarray(high) - np.asarray(low))
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return positions, np.array([face for a, b, c, d in sides for face in ((a, b, c), (a, c, d))])
