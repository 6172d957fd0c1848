"""The worker's textured meshes to Blender objects."""

from __future__ import annotations

import math
from typing import Any

import bpy
import numpy as np

from ...core.cameras import points_to_blender
from ...core.errors import LGMError
from ...core.formats.gltf import QUAD, GlbMesh
from .. import compat
from . import splats

SHARP = math.radians(60)  # edges between faces that lean farther from each other are shaded as edges


def add_mesh(
    mesh: GlbMesh,
    name: str,
    *,
    scene: bpy.types.Scene | None = None,
    collection: bpy.types.Collection | None = None,
    settings: dict[str, Any] | None = None,
    size: float | None = None,
    location: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
) -> bpy.types.Object:
    """Adds a mesh to a scene as one object whose front faces -y, with its origin in the middle of its base.

    Works without a window, and calls no operator. The texture is packed into the .blend.

    Args:
        mesh: In LGM's frame.
        name: Of the object, its data, its material and its image; Blender adds a number if it is taken.
        scene: Which gets the object; the current one.
        collection: Which gets the object; the active one of the scene.
        settings: What made the mesh, kept on the object: `splats.read_settings`.
        size: Longest side of the object in metres; None leaves the mesh's own, 1 unit a metre.
        location: Of the object's origin; None leaves the object where the mesh's vertices are.
    """
    scene = scene or bpy.context.scene
    points = points_to_blender(mesh.vertices.astype(np.float64))
    low, high = points.min(0), points.max(0)
    base = np.array([*(low + high)[:2] / 2, low[2]])
    side = float((high - low).max())
    factor = 1.0 if size is None or side == 0 else size / side
    data = _mesh_data(name, ((points - base) * factor).astype(np.float32), mesh)
    data.materials.append(_material(name, mesh))
    made = bpy.data.objects.new(name, data)
    made.location = base if location is None else location
    splats.write_settings(made, settings or {})
    (collection or splats.active_collection(scene)).objects.link(made)
    return made


def _mesh_data(name: str, points: np.ndarray, mesh: GlbMesh) -> bpy.types.Mesh:
    data = bpy.data.meshes.new(name)
    data.vertices.add(len(points))
    data.vertices.foreach_set("co", points.ravel())
    corners = np.arange(mesh.faces.size)
    quads = corners[: 6 * mesh.quads].reshape(-1, 6)[:, QUAD].ravel()
    corners = np.concatenate([quads, corners[6 * mesh.quads :]])
    starts = np.concatenate([np.arange(0, len(quads), 4), np.arange(len(quads), len(corners), 3)])
    data.loops.add(len(corners))
    data.loops.foreach_set("vertex_index", mesh.faces.ravel()[corners])
    data.polygons.add(len(starts))
    data.polygons.foreach_set("loop_start", starts.astype(np.int32))
    layer = data.uv_layers.new(name="UVMap", do_init=False)
    layer.uv.foreach_set("vector", mesh.corner_uvs.reshape(-1, 2)[corners].astype(np.float32).ravel())
    data.update(calc_edges=True)
    if data.validate():
        raise LGMError(f"{name} is no mesh that Blender could show. Please report this, with the file.", "internal")
    # Sharp edges rather than the file's normals: these would stay as they are when the mesh is edited.
    data.shade_smooth()
    data.set_sharp_from_angle(angle=SHARP)
    return data


def _material(name: str, mesh: GlbMesh) -> bpy.types.Material:
    """Principled, with the texture as its base colour and neither metal nor emission."""
    image = bpy.data.images.new(f"{name} Texture", 1, 1)
    image.pack(data=mesh.texture, data_len=len(mesh.texture))
    image.source = "FILE"  # of which the packed bytes are the content; they are decoded when they are first seen
    image.alpha_mode = "NONE"
    image.use_fake_user = False
    material = bpy.data.materials.new(name)
    tree = compat.node_tree(material)
    shader = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Roughness"].default_value = mesh.roughness
    shader.inputs["Metallic"].default_value = 0.0
    shader.inputs["Emission Strength"].default_value = 0.0
    texture = tree.nodes.new("ShaderNodeTexImage")
    texture.image = image
    texture.location = (shader.location.x - 300, shader.location.y)
    tree.links.new(texture.outputs["Color"], shader.inputs["Base Color"])
    return material
