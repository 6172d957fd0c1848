"""Splats as a render draws them: quads through their centres for the camera, and tiles for shadows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import bpy

from ... import compat
from .build import Builder, node_group
from .splat_points import AXES, FACTORS, SOLID_ALPHA, gaussian, is_shortest, opaque

FAR_AWAY = 1e3  # where an orthographic camera's eye is taken to be


@node_group(".LGM Camera", {}, dict.fromkeys(("Right", "Up", "Back", "Eye"), "Vector"))
def camera(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """The active camera in the object's space: its picture's right and up, the normal back to it, and its eye."""
    active = b.node("GeometryNodeInputActiveCamera").outputs["Active Camera"]
    info = b.node("GeometryNodeObjectInfo", {"Object": active}, transform_space="RELATIVE").outputs
    axes = ({"Direction": axis, "Transform": info["Transform"]} for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    right, up, behind = (b.node("FunctionNodeTransformDirection", axis).outputs["Direction"] for axis in axes)
    normal = b.vector("CROSS_PRODUCT", right, up)
    side = b.math("SIGN", b.vector("DOT_PRODUCT", normal, behind))  # in the space of a mirrored object it points ahead
    back = b.vector("NORMALIZE", b.vector("SCALE", normal, side))
    eye = info["Location"]
    if compat.has_node("GeometryNodeCameraInfo"):
        orthographic = b.node("GeometryNodeCameraInfo", {"Camera": active}).outputs["Is Orthographic"]
        eye = b.switch(orthographic, eye, b.vector("ADD", eye, b.vector("SCALE", back, FAR_AWAY)), "VECTOR")
    return {"Right": right, "Up": up, "Back": back, "Eye": eye}


INPUTS = {"Points": "Geometry", "Scale": "Vector", "Rotation": "Rotation", "Reach": "Float"}


@node_group(".LGM Quads", INPUTS, {"Quads": "Geometry"})
def quads(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """A quad for each point that the active camera can see, parallel to its picture.

    The points have the attribute splat:center; scale, rotation and reach (so many standard deviations out a Gaussian
    can be seen) are fields on them.
    """
    view = camera(b, {})
    center = b.attribute("splat:center", "FLOAT_VECTOR")
    sight = b.vector("SUBTRACT", center, view["Eye"])
    depth = b.vector("DOT_PRODUCT", sight, view["Back"])  # negative in front of the camera
    in_front = b.math("LESS_THAN", depth, b.math("MULTIPLY", b.vector("LENGTH", sight), -0.1))
    axes = _Axes(b, given["Scale"], b.node("FunctionNodeInvertRotation", {"Rotation": given["Rotation"]}))
    half_x, half_y = _half_axes(b, view["Right"], view["Up"], sight, axes)
    # What is nearer than the centre looks larger: at most by this much, at the Gaussian's near end.
    nearer = b.math("DIVIDE", b.vector("LENGTH", axes.along(view["Back"])), b.math("ABSOLUTE", depth))
    larger = b.math("SUBTRACT", 1.0, b.math("MINIMUM", b.math("MULTIPLY", nearer, given["Reach"]), 0.8))
    reach = b.math("DIVIDE", given["Reach"], larger)

    half_x, half_y = b.vector("SCALE", half_x, reach), b.vector("SCALE", half_y, reach)
    made = _spanned(b, given["Points"], in_front, half_x, half_y)
    return {"Quads": b.store(made, "splat:quad", "FLOAT", 1.0)}


@node_group(".LGM Tiles", {"Points": "Geometry", **FACTORS}, {"Tiles": "Geometry"})
def tiles(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """A small opaque square across the shortest axis of each point that is not faint: a ray ends at the first one."""
    own = gaussian(b, {name: given[name] for name in FACTORS})
    ratio = b.math("DIVIDE", own["Opacity"], SOLID_ALPHA)
    seen = b.math("GREATER_THAN", ratio, 1.01)
    reach = b.math("SQRT", b.math("MULTIPLY", b.math("LOGARITHM", ratio, math.e), 2.0))
    side = b.math("MULTIPLY", reach, math.sqrt(math.pi) / 2)  # as large as the ellipse
    axes = zip(AXES, b.channels(own["Scale"]), strict=True)
    x, y, z = (b.vector("SCALE", own[name], b.math("MULTIPLY", length, side)) for name, length in axes)
    is_x, _, is_z = (is_shortest(b, length, own["Shortest"]) for length in b.channels(own["Scale"]))
    made = _spanned(b, given["Points"], seen, b.switch(is_x, x, y, "VECTOR"), b.switch(is_z, z, y, "VECTOR"))
    for letter in "xyz":  # no falloff
        made = b.store(made, f"splat:whiten_{letter}", "FLOAT_VECTOR", (0.0, 0.0, 0.0))
    return {"Tiles": opaque(b, made)}


def _spanned(b: Builder, points, chosen, half_x, half_y) -> bpy.types.NodeSocket:
    """A quad about splat:center for each point that is chosen, spanned by two vectors, fields on the points."""
    carriers = b.store(points, "splat:half_x", "FLOAT_VECTOR", half_x)
    carriers = b.store(carriers, "splat:half_y", "FLOAT_VECTOR", half_y)
    square = b.node("GeometryNodeMeshGrid", {"Size X": 2.0, "Size Y": 2.0, "Vertices X": 2, "Vertices Y": 2})
    inputs = {"Points": carriers, "Selection": chosen, "Instance": square.outputs["Mesh"]}
    made = b.node("GeometryNodeInstanceOnPoints", inputs).outputs["Instances"]
    made = b.node("GeometryNodeRealizeInstances", {"Geometry": made}).outputs["Geometry"]
    center = b.attribute("splat:center", "FLOAT_VECTOR")
    x, y, _ = b.channels(b.vector("SUBTRACT", b.node("GeometryNodeInputPosition").outputs["Position"], center))
    along_x = b.vector("SCALE", b.attribute("splat:half_x", "FLOAT_VECTOR"), x)
    along_y = b.vector("SCALE", b.attribute("splat:half_y", "FLOAT_VECTOR"), y)
    corner = b.vector("ADD", center, b.vector("ADD", along_x, along_y))
    return b.node("GeometryNodeSetPosition", {"Geometry": made, "Position": corner}).outputs["Geometry"]


class _Axes(NamedTuple):
    """The three half-axes, of one standard deviation, of a Gaussian."""

    b: Builder
    scale: bpy.types.NodeSocket
    unrotate: bpy.types.Node

    def along(self, direction: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
        """The component of each along `direction`, a vector."""
        inputs = {"Vector": direction, "Rotation": self.unrotate.outputs["Rotation"]}
        turned = self.b.node("FunctionNodeRotateVector", inputs).outputs["Vector"]
        return self.b.vector("MULTIPLY", turned, self.scale)


def _half_axes(b: Builder, right, up, sight, axes: _Axes) -> tuple[bpy.types.NodeSocket, bpy.types.NodeSocket]:
    """Two vectors in the plane of `right` and `up` that span the Gaussian's outline as seen along `sight`.

    Projected there along the line of sight, the Gaussian's own half-axes are the columns of a matrix [2, 3] and its
    covariance is that matrix times its transpose. The Cholesky factor spans a parallelogram about the ellipse.
    """
    up_sight = b.vector("CROSS_PRODUCT", up, sight)
    sight_right = b.vector("CROSS_PRODUCT", sight, right)
    inverse_det = b.math("DIVIDE", 1.0, b.vector("DOT_PRODUCT", right, up_sight))
    x = axes.along(b.vector("SCALE", up_sight, inverse_det))
    y = axes.along(b.vector("SCALE", sight_right, inverse_det))
    xx = b.math("SQRT", b.vector("DOT_PRODUCT", x, x))
    yx = b.math("DIVIDE", b.vector("DOT_PRODUCT", x, y), xx)
    yy = b.math("SUBTRACT", b.vector("DOT_PRODUCT", y, y), b.math("MULTIPLY", yx, yx))
    yy = b.math("SQRT", b.math("MAXIMUM", yy, 0.0))
    return b.vector("ADD", b.vector("SCALE", right, xx), b.vector("SCALE", up, yx)), b.vector("SCALE", up, yy)
