"""Gaussians in a data-block of Blender: a mesh without faces, or a point cloud that is Gaussian splats by itself (5.3).

Both carry the point attributes of Blender 5.3's own splats, in Blender's axes and the object's space:

    position       FLOAT_VECTOR  centres
    scale          FLOAT_VECTOR  standard deviations along the Gaussian's own axes
    rotation       QUATERNION    (w, x, y, z)
    radiance:base  FLOAT4        f_dc red, green, blue as raw coefficients, and opacity 0 to 1 (FLOAT_COLOR before 5.2)
    radiance:sh_0  FLOAT_VECTOR  red, green, blue of the first harmonic; up to sh_14 of degree 3; may be missing

Blender's own tools move points and leave all else as it was. For repair.py, which mends that, there are two more:

    splat:rest     FLOAT_VECTOR  the position that scale, rotation and harmonics are right for
    splat:part     INT           a number of the data-block that the point was made in; never 0
"""

from __future__ import annotations

import random
from typing import Any

import bpy
import numpy as np

from ...core.gaussians import SH_C0, Gaussians
from ...core.harmonics import COUNTS
from .. import compat

ATTRIBUTES = ("position", "scale", "rotation", "radiance:base")
HARMONIC = "radiance:sh_{}"
REST, PART = "splat:rest", "splat:part"
_WIDTHS = {
    **{"FLOAT": 1, "INT": 1, "BOOLEAN": 1, "INT8": 1, "FLOAT2": 2, "INT32_2D": 2, "FLOAT_VECTOR": 3},
    **{"QUATERNION": 4, "FLOAT_COLOR": 4, "BYTE_COLOR": 4, "FLOAT4": 4, "FLOAT4X4": 16},
}
_DTYPES = {"INT": np.int32, "INT8": np.int32, "INT32_2D": np.int32, "BOOLEAN": bool}


def new_data(name: str, gaussians: Gaussians, *, native: bool) -> bpy.types.Mesh | bpy.types.PointCloud:
    """A data-block of Gaussians.

    Args:
        name: Of the data-block; Blender adds a number if it is taken.
        gaussians: In Blender's axes and the space of the object that will have them.
        native: Whether it is a point cloud of splats, which only Blender 5.3 has, or a mesh of points.
    """
    data = _points(name, len(gaussians), native)
    write_data(data, gaussians)
    put(data, PART, "INT", np.full(len(gaussians), new_part()))
    return data


def _points(name: str, count: int, native: bool) -> bpy.types.Mesh | bpy.types.PointCloud:
    """A data-block with so many points and nothing about them."""
    if native:
        data = bpy.data.pointclouds.new(name)
        data.resize(count)
        data.type = "GAUSSIAN_SPLAT"
    else:
        data = bpy.data.meshes.new(name)
        data.vertices.add(count)
    return data


def new_part() -> int:
    """A number for `splat:part`, that no other data-block is likely to have, of this file or of one joined later."""
    return random.SystemRandom().randrange(1, 1 << 31)


def write_data(data: bpy.types.ID, gaussians: Gaussians) -> None:
    """Puts Gaussians into a data-block that has as many points; what other attributes it has stay."""
    put(data, "position", "FLOAT_VECTOR", gaussians.positions)
    put(data, REST, "FLOAT_VECTOR", gaussians.positions)
    put(data, "scale", "FLOAT_VECTOR", gaussians.scales)
    put(data, "rotation", "QUATERNION", gaussians.rotations)
    put(data, "radiance:base", compat.radiance_type(), np.column_stack([gaussians.f_dc, gaussians.opacities]))
    for i in range(gaussians.harmonics.shape[1]):
        put(data, HARMONIC.format(i), "FLOAT_VECTOR", gaussians.harmonics[:, i])
    data.update_tag()


def read_data(data: bpy.types.ID) -> Gaussians:
    """The Gaussians of a data-block, in Blender's axes and the object's space."""
    radiance = get(data, "radiance:base")
    count = harmonic_count(data)
    harmonics = np.empty((len(radiance), count, 3), np.float32)
    for i in range(count):
        harmonics[:, i] = get(data, HARMONIC.format(i))
    return Gaussians(
        positions=get(data, "position"),
        opacities=np.clip(radiance[:, 3], 0, 1),
        scales=get(data, "scale"),
        rotations=get(data, "rotation"),
        colors=radiance[:, :3] * np.float32(SH_C0) + np.float32(0.5),
        harmonics=harmonics,
    )


def is_splat_data(data: bpy.types.ID | None) -> bool:
    """Whether a mesh or a point cloud holds Gaussians: ours, or Blender 5.3's."""
    if not isinstance(data, bpy.types.Mesh | bpy.types.PointCloud):
        return False
    attributes = data.attributes
    return all(name in attributes and attributes[name].domain == "POINT" for name in ATTRIBUTES[1:])


def is_native(data: bpy.types.ID) -> bool:
    """Whether Blender draws a data-block as splats by itself."""
    return isinstance(data, bpy.types.PointCloud) and getattr(data, "type", "") == "GAUSSIAN_SPLAT"


def point_count(data: bpy.types.ID) -> int:
    """How many Gaussians a data-block has."""
    return len(data.points if isinstance(data, bpy.types.PointCloud) else data.vertices)


def is_kept(attribute: bpy.types.Attribute) -> bool:
    """Whether an attribute goes along when points are copied: all that points have but Blender's own notes on them."""
    return attribute.domain == "POINT" and attribute.data_type in _WIDTHS and not attribute.name.startswith(".")


def harmonic_count(data: bpy.types.ID) -> int:
    """How many harmonics a data-block has: 0, 3, 8 or 15, those of whole degrees."""
    present = next((i for i in range(COUNTS[-1]) if HARMONIC.format(i) not in data.attributes), COUNTS[-1])
    return max(count for count in COUNTS if count <= present)


def converted(data: bpy.types.ID, *, native: bool) -> bpy.types.ID:
    """A data-block of the other kind with all that this one has: its attributes, materials and custom properties."""
    made = _points(data.name, point_count(data), native)
    for attribute in list(data.attributes):
        if is_kept(attribute):
            put(made, attribute.name, attribute.data_type, get(data, attribute.name))
    for material in data.materials:
        made.materials.append(material)
    for key in data.keys():  # noqa: SIM118 - a data-block is no dictionary
        made[key] = data[key]
    made.update_tag()
    return made


def put(data: bpy.types.ID, name: str, kind: str, values: np.ndarray) -> None:
    """Gives a point attribute its values [N] or [N, width], made if it isn't there."""
    attribute = data.attributes.get(name) or data.attributes.new(name, kind, "POINT")
    dtype = _DTYPES.get(attribute.data_type, np.float32)
    values = np.ascontiguousarray(values, dtype=dtype).ravel()
    attribute.data.foreach_set(compat.attribute_property(attribute), values)


def get(data: bpy.types.ID, name: str) -> Any:
    """The values of a point attribute, [N] or [N, width]."""
    attribute = data.attributes[name]
    width = _WIDTHS[attribute.data_type]
    dtype = _DTYPES.get(attribute.data_type, np.float32)
    values = np.empty(len(attribute.data) * width, dtype=dtype)
    attribute.data.foreach_get(compat.attribute_property(attribute), values)
    return values.reshape(-1, width) if width > 1 else values
