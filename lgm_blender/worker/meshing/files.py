"""A textured mesh as GLB, as OBJ with its MTL and PNG, and as PLY with vertex colours: bytes to write.

All three come into Blender the right way up and with their front towards -y, by its own importers' default settings:
glTF's axes are LGM's, Blender turns OBJ from y up to z up too, and takes PLY as it is, so a PLY is written z up.
"""

from __future__ import annotations

import io
import json
import struct

import numpy as np

from ...core.cameras import points_to_blender
from ...core.formats.gltf import QUAD
from . import TexturedMesh

FORMATS = ("glb", "obj", "ply")
SUFFIXES = (".glb", ".obj", ".mtl", "_texture.png", "_mesh.ply")  # of every file that a mesh may have
ROUGHNESS = 0.8  # of the material: splats have no highlights of their own
_FLOAT, _UINT, _VERTICES, _INDICES = 5126, 5125, 34962, 34963  # glTF's numbers for them
_LINEAR, _TRILINEAR, _CLAMP = 9729, 9987, 33071


def encode_files(mesh: TexturedMesh, name: str, formats: tuple[str, ...] = FORMATS) -> dict[str, bytes]:
    """NAME.glb; NAME.obj, NAME.mtl and NAME_texture.png; NAME_mesh.ply: suffix to content, each format's main file
    first."""
    files: dict[str, bytes] = {}
    if "glb" in formats:
        files[".glb"] = encode_glb(mesh, name)
    if "obj" in formats:
        obj, mtl = encode_obj(mesh, name)
        files |= {".obj": obj, ".mtl": mtl, "_texture.png": encode_png(mesh.texture)}
    if "ply" in formats:
        files["_mesh.ply"] = encode_ply_mesh(mesh)
    return files


def encode_png(texture: np.ndarray) -> bytes:
    """A picture [H, W, 3] uint8 as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(texture).save(buffer, "PNG", compress_level=4)  # 6, the default, takes twice as long for 2% less
    return buffer.getvalue()


def encode_glb(mesh: TexturedMesh, name: str) -> bytes:
    """glTF 2.0 as one binary file with its texture inside.

    glTF knows triangles only: of how many quads the first ones are the halves is the primitive's extra 'quads', for
    `core.formats.gltf.read_glb`.

    A vertex of glTF has one UV and one normal, so those on seams and sharp edges are there more than once.
    """
    corners = np.concatenate([mesh.corner_uvs, mesh.corner_normals], 2).reshape(-1, 5)
    keys = np.concatenate([mesh.faces.reshape(-1, 1), np.round(corners * 2**20).astype(np.int32)], 1)
    rows = np.ascontiguousarray(keys.astype(np.int32)).view([("", np.int32)] * keys.shape[1])[:, 0]
    _, first, index = np.unique(rows, return_index=True, return_inverse=True)
    positions = mesh.vertices[mesh.faces.reshape(-1)[first]].astype("<f4")
    uvs = corners[first, :2].astype("<f4") * np.float32([1, -1]) + np.float32([0, 1])  # glTF's v points down
    normals = corners[first, 2:].astype("<f4")
    parts = [
        (index.astype("<u4"), _INDICES),
        (positions, _VERTICES),
        (normals, _VERTICES),
        (np.ascontiguousarray(uvs), _VERTICES),
        (np.frombuffer(encode_png(mesh.texture), np.uint8), None),
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
                    "roughnessFactor": ROUGHNESS,
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


def encode_obj(mesh: TexturedMesh, name: str) -> tuple[bytes, bytes]:
    """Wavefront OBJ and MTL, whose texture is NAME_texture.png beside them."""
    uvs, uv_index = np.unique(mesh.corner_uvs.reshape(-1, 2), axis=0, return_inverse=True)
    normals, normal_index = np.unique(mesh.corner_normals.reshape(-1, 3).round(4), axis=0, return_inverse=True)
    corners = np.stack([mesh.faces.reshape(-1), uv_index.reshape(-1), normal_index.reshape(-1)], 1).reshape(-1, 9) + 1
    joined, rest = corners[: 2 * mesh.quads].reshape(-1, 6, 3)[:, QUAD].reshape(-1, 12), corners[2 * mesh.quads :]
    label = "".join("_" if c.isspace() else c for c in name)  # names in OBJ end at a space
    lines = [f"# LGM for Blender, y up\nmtllib {name}.mtl\no {label}\n"]
    for word, array in (("v", mesh.vertices), ("vt", uvs), ("vn", normals)):
        row = f"{word} " + " ".join(["%.7g"] * array.shape[1]) + "\n"
        lines.append(row * len(array) % tuple(array.reshape(-1).tolist()))
    lines.append(f"usemtl {label}\ns 1\n")
    for polygons in (joined, rest):
        row = "f" + " %d/%d/%d" * (polygons.shape[1] // 3) + "\n"
        lines.append(row * len(polygons) % tuple(polygons.reshape(-1).tolist()))
    mtl = f"newmtl {label}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nPr {ROUGHNESS}\nillum 1\nmap_Kd {name}_texture.png\n"
    return "".join(lines).encode(), mtl.encode()


def encode_ply_mesh(mesh: TexturedMesh) -> bytes:
    """A binary PLY with vertex colours, z up."""
    vertices = np.empty(len(mesh.vertices), [("position", "<f4", 3), ("color", "u1", 3)])
    vertices["position"], vertices["color"] = points_to_blender(mesh.vertices), mesh.vertex_colors
    binary = vertices.tobytes()
    split = 2 * mesh.quads
    for polygons in (mesh.faces[:split].reshape(-1, 6)[:, QUAD], mesh.faces[split:]):
        rows = np.empty(len(polygons), [("count", "u1"), ("vertices", "<i4", polygons.shape[1:])])
        rows["count"], rows["vertices"] = polygons.shape[1], polygons
        binary += rows.tobytes()
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment LGM for Blender, z up, front towards -y\n"
        f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\n"
        f"element face {mesh.polygons}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    return header.encode("ascii") + binary
