"""The points of splats in Edit Mode, as a user would choose and delete them: in meshes and in point clouds."""

from __future__ import annotations

import bpy
import numpy as np

from lgm_blender.blender.scene import splat_data


def delete_points(made: bpy.types.Object, chosen: np.ndarray) -> None:
    """Deletes the points of an object at a mask [N], in Edit Mode, in which it then is."""
    bpy.context.view_layer.objects.active = made
    if made.type == "POINTCLOUD":
        splat_data.put(made.data, ".selection", "BOOLEAN", chosen)
        bpy.ops.object.mode_set(mode="EDIT")
        bpy.ops.pointcloud.delete()
        return
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="DESELECT")
    bpy.ops.object.mode_set(mode="OBJECT")
    made.data.vertices.foreach_set("select", chosen)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.delete(type="VERT")
