"""Splats edited: transforms applied, objects joined, cropped, parted, and Gaussians chosen by what they are.

All of it works on the data itself, without a window and whatever is selected. What is not said otherwise raises
LGMError where data can't be changed: linked from another file, or being edited.
"""

from __future__ import annotations

from collections.abc import Sequence

import bmesh
import bpy
import numpy as np
from mathutils import Matrix, Vector

from ...core import clusters
from ...core.affine import transformed
from ...core.errors import LGMError
from ...core.inside import inside
from . import repair, splat_data, splats
from .splat_data import HARMONIC, REST, get, put

FAINT = 0.1  # opacity under which a Gaussian adds little


def apply_transform(
    target: bpy.types.Object, *, location: bool = True, rotation: bool = True, scale: bool = True
) -> None:
    """Moves an object's transform into its Gaussians, which stay as they are seen; so do the object's children.

    Data that several objects share become this one's own.
    """
    own_data(target)
    before = target.matrix_basis.copy()
    if abs(before.determinant()) < 1e-30:
        raise LGMError(f"{target.name} has a scale of 0 and can't be applied. Set another scale first.")
    if location:
        target.location, target.delta_location = (0, 0, 0), (0, 0, 0)
    if rotation:
        target.rotation_euler, target.delta_rotation_euler = (0, 0, 0), (0, 0, 0)
        target.rotation_quaternion, target.delta_rotation_quaternion = (1, 0, 0, 0), (1, 0, 0, 0)
        target.rotation_axis_angle = (0, 0, 1, 0)
    if scale:
        target.scale, target.delta_scale = (1, 1, 1), (1, 1, 1)
    matrix = target.matrix_basis.inverted() @ before
    _transform(target.data, np.array(matrix, np.float64))
    for child in target.children:
        child.matrix_parent_inverse = matrix @ child.matrix_parent_inverse
    target.pop(splats.FRAME, None)


def join(target: bpy.types.Object, others: Sequence[bpy.types.Object]) -> None:
    """Puts the Gaussians of other objects into one, where they are in the world, and removes those objects.

    Meshes of points and native splats may be mixed; what comes out is of the target's kind. Who lacks an attribute that
    another has gets zeros. Harmonics too: of different degrees, the highest one stays. What a modifier shows of them
    (factors, crops) is the target's.
    """
    others = [other for other in others if other != target]
    if not others:
        raise LGMError("Select the splats that are to be joined, the one that stays last.")
    own_data(target)
    for other in others:
        _editable(other)
    if abs(target.matrix_world.determinant()) < 1e-30:
        raise LGMError(f"{target.name} has a scale of 0; nothing can be joined to it. Set another scale first.")
    into = np.linalg.inv(np.array(target.matrix_world, np.float64))
    tables = [_attributes(target.data)]
    for other in others:
        moved = transformed(splat_data.read_data(other.data), into @ np.array(other.matrix_world, np.float64))
        tables.append(_attributes(other.data) | _as_attributes(moved))
    sides = splat_data.harmonic_count(target.data) < max(splat_data.harmonic_count(other.data) for other in others)
    _resize(target.data, sum(len(table["position"][1]) for table in tables))
    for name in dict.fromkeys(name for table in tables for name in table):
        kind, like = next(table[name] for table in tables if name in table)
        blank = lambda table, like=like: np.zeros((len(table["position"][1]), *like.shape[1:]), like.dtype)  # noqa: E731
        values = [table[name][1] if name in table else blank(table) for table in tables]
        if any(value.shape[1:] != like.shape[1:] for value in values):
            continue  # two things of one name
        put(target.data, name, kind, np.concatenate(values))
    repair.adopt(target.data)
    if sides:
        splats.set_display(target, view_dependent=True)
    target.pop(splats.FRAME, None)
    for other in others:
        _remove(other)


def crop(target: bpy.types.Object, cutters: Sequence[bpy.types.Object], *, keep_inside: bool = True) -> int:
    """Deletes the Gaussians whose centres are outside of all of some closed meshes, or those inside of any.

    Args:
        cutters: Objects with faces, as they are displayed: modifiers and transforms count.

    Returns:
        How many were deleted.

    Raises:
        LGMError: Also if a mesh is not closed, or no Gaussian would be left. Choose a larger part.
    """
    triangles = np.concatenate([surface(cutter) for cutter in cutters])
    own_data(target)
    matrix = np.array(target.matrix_world, np.float64)
    within = inside(get(target.data, "position") @ matrix[:3, :3].T + matrix[:3, 3], triangles)
    keep = within if keep_inside else ~within
    if not keep.any():
        raise LGMError(f"No Gaussian of {target.name} would be left. Choose a larger part.")
    remove_points(target.data, keep)
    return int((~keep).sum())


def surface(cutter: bpy.types.Object) -> np.ndarray:
    """[T, 3, 3] triangles of an object with faces, in the world, its modifiers applied.

    Raises:
        LGMError: If it has none, or they are not closed.
    """
    shown = cutter.evaluated_get(bpy.context.evaluated_depsgraph_get())
    mesh = shown.to_mesh()
    try:
        if mesh is None or not len(mesh.polygons):
            raise LGMError(f"{cutter.name} has no faces to crop with. Choose a closed mesh.")
        edges = np.empty(len(mesh.loops), np.int32)
        mesh.loops.foreach_get("edge_index", edges)
        if (np.bincount(edges) % 2).any():
            raise LGMError(f"{cutter.name} is not closed: it has edges with one face only. Fill its holes first.")
        mesh.calc_loop_triangles()
        corners = np.empty(3 * len(mesh.loop_triangles), np.int32)
        mesh.loop_triangles.foreach_get("vertices", corners)
        positions = np.empty(3 * len(mesh.vertices), np.float32)
        mesh.vertices.foreach_get("co", positions)
    finally:
        shown.to_mesh_clear()
    matrix = np.array(cutter.matrix_world, np.float64)
    return (positions.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])[corners.reshape(-1, 3)]


def separate(target: bpy.types.Object) -> bpy.types.Object:
    """Takes the selected Gaussians into a new object beside theirs, which it gives back.

    Raises:
        LGMError: Also if none is selected, or all are.
    """
    own_data(target)
    chosen = selection(target)
    if not chosen.any() or chosen.all():
        raise LGMError("Select some of the Gaussians in Edit Mode, and not all.")
    made = target.copy()
    made.data = target.data.copy()
    for collection in target.users_collection:
        collection.objects.link(made)
    remove_points(made.data, chosen)
    remove_points(target.data, ~chosen)
    return made


def floaters(target: bpy.types.Object, share: float = 0.01) -> np.ndarray:
    """[N] bool: an object's floaters. See `core.clusters.floaters`."""
    found = splats.read_splats(target)
    return clusters.floaters(found.positions, found.opacities, share)


def by_opacity(target: bpy.types.Object, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """[N] bool: the Gaussians whose opacity is from `low` to `high`."""
    opacities = splats.read_splats(target).opacities
    return (opacities >= low) & (opacities <= high)


def selection(target: bpy.types.Object) -> np.ndarray:
    """[N] bool: the Gaussians that are selected in Edit Mode, or were when it was left."""
    if target.type == "POINTCLOUD":
        if ".selection" not in target.data.attributes:
            return np.ones(splat_data.point_count(target.data), bool)  # Blender's way of saying all
        return get(target.data, ".selection").astype(bool)
    if target.mode == "EDIT":
        return np.fromiter((v.select for v in bmesh.from_edit_mesh(target.data).verts), bool)
    chosen = np.empty(len(target.data.vertices), bool)
    target.data.vertices.foreach_get("select", chosen)
    return chosen


def select(target: bpy.types.Object, chosen: np.ndarray) -> None:
    """Selects the Gaussians of a mask [N] and no others, as Edit Mode shows it."""
    if target.type == "POINTCLOUD":
        put(target.data, ".selection", "BOOLEAN", chosen)
        target.data.update_tag()
    elif target.mode == "EDIT":
        edited = bmesh.from_edit_mesh(target.data)
        for vertex, yes in zip(edited.verts, chosen.tolist(), strict=True):
            vertex.select = yes
        edited.select_flush_mode()
        bmesh.update_edit_mesh(target.data, loop_triangles=False, destructive=False)
    else:
        target.data.vertices.foreach_set("select", chosen)
        target.data.update_tag()


def add_crop_box(target: bpy.types.Object) -> bpy.types.Object:
    """Adds an empty, a cube around an object's Gaussians that moves with it, and shows only what is in it."""
    low, high = splats.extent(get(target.data, "position"), get(target.data, "radiance:base")[:, 3])
    box = bpy.data.objects.new(f"{target.name} Crop Box", None)
    box.empty_display_type = "CUBE"  # from -1 to 1, as the modifier takes it
    box.parent = target
    box.location = Vector((low + high) / 2)
    box.scale = Vector(np.maximum((high - low) / 2 * 1.05, 1e-4))
    for collection in target.users_collection:
        collection.objects.link(box)
    splats.set_display(target, crop=True, crop_box=box)
    return box


def remove_points(data: bpy.types.ID, keep: np.ndarray) -> None:
    """Deletes the points of a data-block that are not in a mask [N]; all attributes of the others stay."""
    if isinstance(data, bpy.types.Mesh) and (data.edges or any(user.vertex_groups for user in _users(data))):
        edited = bmesh.new()
        edited.from_mesh(data)
        gone = [vertex for vertex, stays in zip(edited.verts, keep.tolist(), strict=True) if not stays]
        bmesh.ops.delete(edited, geom=gone, context="VERTS")
        edited.to_mesh(data)
        edited.free()
        return
    table = _attributes(data)
    if isinstance(data, bpy.types.Mesh):
        data.clear_geometry()
        data.vertices.add(int(keep.sum()))
    else:
        _resize(data, int(keep.sum()))
    for name, (kind, values) in table.items():
        put(data, name, kind, values[keep])
    if isinstance(data, bpy.types.PointCloud) and ".selection" in data.attributes:
        data.attributes.remove(data.attributes[".selection"])
    data.update_tag()


def own_data(target: bpy.types.Object) -> None:
    """Sees to it that an object's Gaussians can be changed, and are no other object's.

    Raises:
        LGMError: If they can't.
    """
    _editable(target)
    if target.data.users > 1:
        target.data = target.data.copy()


def _editable(target: bpy.types.Object) -> None:
    if not splats.is_splats(target):
        raise LGMError(f"{target.name} holds no splats. Select an object that does.")
    if target.library or target.data.library:
        raise LGMError(f"{target.name} is linked from another file and can't be changed here. Make it local first.")
    if target.mode != "OBJECT":
        raise LGMError(f"{target.name} is being edited. Leave Edit Mode first.")
    repair.mend(target.data)


def _users(data: bpy.types.ID) -> list[bpy.types.Object]:
    return [thing for thing in bpy.data.objects if thing.data == data]


def _transform(data: bpy.types.ID, matrix: np.ndarray) -> None:
    after = transformed(splat_data.read_data(data), matrix)
    for name, (kind, values) in _as_attributes(after).items():
        put(data, name, kind, values)
    data.update_tag()


def _as_attributes(gaussians) -> dict[str, tuple[str, np.ndarray]]:
    """What a transform changes of Gaussians, as attributes: kinds and values by name."""
    table = {
        "position": ("FLOAT_VECTOR", gaussians.positions),
        REST: ("FLOAT_VECTOR", gaussians.positions),
        "scale": ("FLOAT_VECTOR", gaussians.scales),
        "rotation": ("QUATERNION", gaussians.rotations),
    }
    for i in range(gaussians.harmonics.shape[1]):
        table[HARMONIC.format(i)] = ("FLOAT_VECTOR", gaussians.harmonics[:, i])
    return table


def _attributes(data: bpy.types.ID) -> dict[str, tuple[str, np.ndarray]]:
    """All attributes that points keep: kinds and values by name."""
    return {a.name: (a.data_type, get(data, a.name)) for a in data.attributes if splat_data.is_kept(a)}


def _resize(data: bpy.types.ID, count: int) -> None:
    """Gives a data-block so many points; a mesh can only get more."""
    if isinstance(data, bpy.types.Mesh):
        data.vertices.add(count - len(data.vertices))
    elif hasattr(data, "resize"):
        data.resize(count)
    else:
        raise LGMError("This Blender can't change how many points a point cloud has. Convert it to a mesh first.")


def _remove(thing: bpy.types.Object) -> None:
    """Removes an object, and its data if nobody else has them; its children stay where they are."""
    for child in thing.children:
        world: Matrix = child.matrix_world.copy()
        child.parent = None
        child.matrix_world = world
    data = thing.data
    bpy.data.objects.remove(thing)
    if not data.users:
        bpy.data.batch_remove([data])
