"""A textured mesh as GLB, as OBJ with its MTL and PNG, and as PLY with vertex colours.

All three come into Blender the right way up and with their front towards -y, by its own importers' default settings:
glTF's axes are LGM's, Blender turns OBJ from y up to z up too, and takes PLY as it is, so a PLY is written z up.
"""

from __future__ import annotations

import numpy as np

from ...core.cameras import points_to_blender
from ...core.formats import gltf
from ...core.formats.obj import encode_obj, obj_name
from ..outputs import encode_png
from . import TexturedMesh

FORMATS = ("glb", "obj", "ply")
SUFFIXES = (".glb", ".obj", ".mtl", "_texture.png", "_mesh.ply")  # of every file that a mesh may have


def file_name(name: str, suffix: str) -> str:
    """What a mesh's file of NAME and a suffix is called: those that OBJ and MTL name, so that readers find them."""
    return f"{obj_name(name) if suffix in ('.mtl', '_texture.png') else name}{suffix}"


def encode_files(mesh: TexturedMesh, name: str, formats: tuple[str, ...] = FORMATS) -> dict[str, bytes]:
    """NAME.glb; NAME.obj, NAME.mtl and NAME_texture.png; NAME_mesh.ply: suffix to content, each format's main file
    first."""
    files: dict[str, bytes] = {}
    coded = _coded(mesh) if {"glb", "obj"} & {*formats} else None
    if "glb" in formats:
        files[".glb"] = gltf.encode_glb(coded, name)
    if "obj" in formats:
        obj, mtl = encode_obj(coded, name)
        files |= {".obj": obj, ".mtl": mtl, "_texture.png": coded.texture}
    if "ply" in formats:
        files["_mesh.ply"] = encode_ply_mesh(mesh)
    return files


def _coded(mesh: TexturedMesh) -> gltf.GlbMesh:
    """The mesh with its texture as PNG."""
    texture = encode_png(mesh.texture, level=4)  # 6, the default, takes twice as long for 2% less
    return gltf.GlbMesh(mesh.vertices, mesh.faces, mesh.corner_uvs, texture, mesh.corner_normals, quads=mesh.quads)


def encode_ply_mesh(mesh: TexturedMesh) -> bytes:
    """A binary PLY with vertex colours, z up."""
    vertices = np.empty(len(mesh.vertices), [("position", "<f4", 3), ("color", "u1", 3)])
    vertices["position"], vertices["color"] = points_to_blender(mesh.vertices), mesh.vertex_colors
    binary = vertices.tobytes()
    split = 2 * mesh.quads
    for polygons in (mesh.faces[:split].reshape(-1, 6)[:, gltf.QUAD], mesh.faces[split:]):
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
