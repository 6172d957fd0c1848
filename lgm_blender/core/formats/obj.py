"""The worker's meshes as Wavefront OBJ, y up, with quads as quads."""

from __future__ import annotations

import numpy as np

from .gltf import QUAD, GlbMesh


def obj_name(name: str) -> str:
    """A name for an OBJ's MTL, texture and material.

    In OBJ and MTL a name ends at a space, a '#' begins a comment, a dash an option, and a backslash joins lines.
    """
    label = "".join("_" if c.isspace() or c in '#\\"' or not c.isprintable() else c for c in name)
    return f"_{label[1:]}" if label.startswith("-") else label


def encode_obj(mesh: GlbMesh, name: str) -> tuple[bytes, bytes]:
    """Wavefront OBJ and MTL, whose texture is NAME_texture.png beside them, NAME as of `obj_name`. The mesh must have
    normals."""
    name = obj_name(name)
    uvs, uv_index = np.unique(mesh.corner_uvs.reshape(-1, 2), axis=0, return_inverse=True)
    normals, normal_index = np.unique(mesh.corner_normals.reshape(-1, 3).round(4), axis=0, return_inverse=True)
    corners = np.stack([mesh.faces.reshape(-1), uv_index.reshape(-1), normal_index.reshape(-1)], 1).reshape(-1, 9) + 1
    joined, rest = corners[: 2 * mesh.quads].reshape(-1, 6, 3)[:, QUAD].reshape(-1, 12), corners[2 * mesh.quads :]
    lines = [f"# LGM for Blender, y up\nmtllib {name}.mtl\no {name}\n"]
    for word, array in (("v", mesh.vertices), ("vt", uvs), ("vn", normals)):
        row = f"{word} " + " ".join(["%.7g"] * array.shape[1]) + "\n"
        lines.append(row * len(array) % tuple(array.reshape(-1).tolist()))
    lines.append(f"usemtl {name}\ns 1\n")
    for polygons in (joined, rest):
        row = "f" + " %d/%d/%d" * (polygons.shape[1] // 3) + "\n"
        lines.append(row * len(polygons) % tuple(polygons.reshape(-1).tolist()))
    mtl = f"newmtl {name}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nPr {mesh.roughness}\nillum 1\nmap_Kd {name}_texture.png\n"
    return "".join(lines).encode(), mtl.encode()
