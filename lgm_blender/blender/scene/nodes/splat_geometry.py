"""The node group "LGM Splats": points with the attributes of Gaussians become something to draw."""

from __future__ import annotations

import math
from typing import Literal

import bpy

from ....core.gaussians import SH_C0
from ... import compat
from .build import Builder, enabled, reuse_or_build
from .splat_material import CUTOFF, splat_material

NAME = "LGM Splats"
VERSION = 1
ViewportDisplay = Literal["Splats", "Points", "As Rendered"]
ColorSpace = Literal["Linear", "Exact"]
MIN_SCALE = 1e-6  # a standard deviation of 0 could not be inverted
RGB = ("Red", "Green", "Blue")
FAR_AWAY = 1e3  # where an orthographic camera's eye is taken to be
MAX_REACH = 3.0  # standard deviations, 3DGS's
OTHER_REACH = (
    2.0  # standard deviations that shadows and reflections see: the rest is faint, and more than half of the cost
)
SOLID_ALPHA = 0.25  # dots are drawn out to where their Gaussian is that opaque
DIAMOND = math.sqrt(2.0)  # EEVEE draws a point as a diamond of its radius; one that covers the disc is larger


def splat_geometry() -> bpy.types.GeometryNodeTree:
    """The node group that displays Gaussians, built if it isn't there or is older.

    It reads the point attributes of Blender 5.3's splats: `position`, `scale` (standard deviations), `rotation`
    (quaternion) and `radiance:base` (f_dc red, green, blue, then opacity 0 to 1).

    Inputs:
        Viewport: "Splats" draws soft splats, as a point cloud, which stays quick; "Points" small opaque dots, which
            have no noise; "As Rendered" what a render draws, right from the active camera only.
        Viewport Amount, Render Amount: Share of the Gaussians that is shown, 0 to 1.
        Scale: Factor on the standard deviations.
        Opacity: Factor on the opacities.
        Min Opacity: Gaussians of lower opacity are left out.
        Colors: Gaussians are trained in display space. "Linear" converts their colours to the scene's linear space,
            as Blender does with an sRGB texture: under the Standard view transform they show as trained, under AgX
            (Blender's default) as muted as everything else in the scene. "Exact" hands out the trained values as they
            are: with the view transform Raw the picture is 3DGS's own, blending included.
        Shadows and Reflections: Whether a render shows the splats to shadow rays, reflections and indirect light, not
            to the camera alone. It takes about twice the time.

    Two displays, for a reason. 3DGS sorts Gaussians by the depth of their centres. A closed surface about a Gaussian,
    the same from all sides, is met where it begins, not at its centre: sorted so, the golden set comes to 28 dB
    against gsplat. So a render puts a quad through every centre, parallel to the active camera's picture and as large
    as the Gaussian's outline; the material integrates along the true ray, wherever on the quad it meets it. That is
    sorted as gsplat sorts, at one hit for each Gaussian. The viewport, which looks from anywhere, and rays other than
    the camera's meet a point of a point cloud instead, a sphere about the Gaussian with the same integral.
    """
    return reuse_or_build(
        bpy.data.node_groups, NAME, VERSION, lambda: bpy.data.node_groups.new(NAME, "GeometryNodeTree"), _build
    )


def _build(group: bpy.types.GeometryNodeTree) -> None:
    group.nodes.clear()
    _socket(group, "Geometry", "OUTPUT", "NodeSocketGeometry")
    _socket(group, "Geometry", "INPUT", "NodeSocketGeometry")
    _socket(group, "Viewport", "INPUT", "NodeSocketMenu")
    for name in ("Viewport Amount", "Render Amount"):
        _socket(group, name, "INPUT", "NodeSocketFloat", default=1.0, maximum=1.0, factor=True)
    for name in ("Scale", "Opacity"):
        _socket(group, name, "INPUT", "NodeSocketFloat", default=1.0, maximum=100.0)
    _socket(group, "Min Opacity", "INPUT", "NodeSocketFloat", default=0.0, maximum=1.0, factor=True)
    _socket(group, "Colors", "INPUT", "NodeSocketMenu")
    _socket(group, "Shadows and Reflections", "INPUT", "NodeSocketBool", default=True)

    b = Builder(group)
    given = b.node("NodeGroupInput").outputs
    in_viewport = b.node("GeometryNodeIsViewport").outputs["Is Viewport"]

    scale = b.vector("SCALE", _attribute(b, "scale", "FLOAT_VECTOR"), given["Scale"])
    scale = b.vector("MAXIMUM", scale, (MIN_SCALE,) * 3)
    rotation = _attribute(b, "rotation", "QUATERNION")
    radiance = _attribute(b, "radiance:base", "FLOAT_COLOR")
    radiance = b.node("FunctionNodeSeparateColor", {"Color": radiance}).outputs
    opacity = b.math("MULTIPLY", radiance["Alpha"], given["Opacity"], clamp=True)
    exact = _menu(b, given["Colors"], "INT", {"Linear": 0, "Exact": 1})
    color = {channel: _color(b, radiance[channel], exact) for channel in RGB} | {"Alpha": opacity}
    color = b.node("FunctionNodeCombineColor", color).outputs["Color"]

    # So many standard deviations out alpha is under the cutoff.
    reach = b.math("SQRT", b.math("MULTIPLY", b.math("LOGARITHM", b.math("DIVIDE", opacity, CUTOFF), math.e), 2.0))
    reach = b.math("MINIMUM", reach, MAX_REACH)
    amount = _switch(b, in_viewport, given["Render Amount"], given["Viewport Amount"], "FLOAT")
    lot = b.node("FunctionNodeRandomValue", data_type="FLOAT")
    drawn = b.math("LESS_THAN", enabled(lot.outputs, "Value"), amount)
    lowest = b.math("MAXIMUM", given["Min Opacity"], CUTOFF)
    shown = b.math("MULTIPLY", drawn, b.math("SUBTRACT", 1.0, b.math("LESS_THAN", opacity, lowest)))

    position = b.node("GeometryNodeInputPosition").outputs["Position"]
    longest = b.node("ShaderNodeSeparateXYZ", {"Vector": scale}).outputs
    longest = b.math("MAXIMUM", b.math("MAXIMUM", longest["X"], longest["Y"]), longest["Z"])
    radius = b.math("MULTIPLY", b.math("MULTIPLY", reach, longest), DIAMOND)
    to_points = b.node("GeometryNodeMeshToPoints", {"Mesh": given["Geometry"], "Selection": shown, "Radius": radius})
    points = _store(b, to_points.outputs["Points"], "splat:color", "FLOAT_COLOR", color)
    points = _store(b, points, "splat:center", "FLOAT_VECTOR", position)
    inverse = b.vector("DIVIDE", (1.0, 1.0, 1.0), scale)
    inverse = b.node("ShaderNodeSeparateXYZ", {"Vector": inverse}).outputs
    for axis in "xyz":
        unit = tuple(float(axis == other) for other in "xyz")
        own_axis = b.node("FunctionNodeRotateVector", {"Vector": unit, "Rotation": rotation}).outputs["Vector"]
        row = b.vector("SCALE", own_axis, inverse[axis.upper()])
        points = _store(b, points, f"splat:whiten_{axis}", "FLOAT_VECTOR", row)

    rendered = _rendered(b, points, position, scale, rotation, reach, longest, given["Shadows and Reflections"])
    dots = _dots(b, points, longest, color)
    shown_here = _menu(b, given["Viewport"], "GEOMETRY", {"Splats": points, "Points": dots, "As Rendered": rendered})
    result = _switch(b, in_viewport, rendered, shown_here, "GEOMETRY")
    result = b.node("GeometryNodeSetMaterial", {"Geometry": result, "Material": splat_material()}).outputs["Geometry"]
    b.node("NodeGroupOutput", {"Geometry": result})
    for name, item in (("Viewport", "Splats"), ("Colors", "Linear")):  # a menu knows its items only once it is linked
        next(s for s in group.interface.items_tree if s.name == name).default_value = item
    b.arrange()


def _rendered(b, points, center, scale, rotation, reach, longest, other_rays) -> bpy.types.NodeSocket:
    """A quad for each point that the active camera can see, and, if `other_rays`, the points."""
    right, up, back, eye = _camera(b)
    sight = b.vector("SUBTRACT", center, eye)
    distance = b.vector("LENGTH", sight)
    depth = b.vector("DOT_PRODUCT", sight, back)  # negative in front of the camera
    in_front = b.math("LESS_THAN", depth, b.math("MULTIPLY", distance, -0.1))
    unrotate = b.node("FunctionNodeInvertRotation", {"Rotation": rotation}).outputs["Rotation"]

    def own_half_axes(direction: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
        """The component along `direction` of each of the Gaussian's three half-axes of one standard deviation."""
        turned = b.node("FunctionNodeRotateVector", {"Vector": direction, "Rotation": unrotate}).outputs["Vector"]
        return b.vector("MULTIPLY", turned, scale)

    half_x, half_y = _half_axes(b, right, up, sight, own_half_axes)
    # What is nearer than the centre looks larger: at most by this much, at the Gaussian's near end.
    nearer = b.math("DIVIDE", b.vector("LENGTH", own_half_axes(back)), b.math("ABSOLUTE", depth))
    larger = b.math("SUBTRACT", 1.0, b.math("MINIMUM", b.math("MULTIPLY", nearer, reach), 0.8))
    reach_here = b.math("DIVIDE", reach, larger)

    points = _store(b, points, "splat:camera", "FLOAT_VECTOR", eye)
    points = _store(b, points, "splat:axis", "FLOAT_VECTOR", back)
    carriers = _store(b, points, "splat:half_x", "FLOAT_VECTOR", b.vector("SCALE", half_x, reach_here))
    carriers = _store(b, carriers, "splat:half_y", "FLOAT_VECTOR", b.vector("SCALE", half_y, reach_here))
    square = b.node("GeometryNodeMeshGrid", {"Size X": 2.0, "Size Y": 2.0, "Vertices X": 2, "Vertices Y": 2})
    inputs = {"Points": carriers, "Selection": in_front, "Instance": square.outputs["Mesh"]}
    quads = b.node("GeometryNodeInstanceOnPoints", inputs).outputs["Instances"]
    quads = b.node("GeometryNodeRealizeInstances", {"Geometry": quads}).outputs["Geometry"]
    middle = _attribute(b, "splat:center", "FLOAT_VECTOR")
    corner = b.vector("SUBTRACT", b.node("GeometryNodeInputPosition").outputs["Position"], middle)
    corner = b.node("ShaderNodeSeparateXYZ", {"Vector": corner}).outputs
    along_x = b.vector("SCALE", _attribute(b, "splat:half_x", "FLOAT_VECTOR"), corner["X"])
    along_y = b.vector("SCALE", _attribute(b, "splat:half_y", "FLOAT_VECTOR"), corner["Y"])
    corner = b.vector("ADD", middle, b.vector("ADD", along_x, along_y))
    quads = b.node("GeometryNodeSetPosition", {"Geometry": quads, "Position": corner}).outputs["Geometry"]
    quads = _store(b, quads, "splat:quad", "FLOAT", 1.0)

    radius = b.math("MULTIPLY", b.math("MINIMUM", reach, OTHER_REACH), longest)
    points = b.node("GeometryNodeSetPointRadius", {"Points": points, "Radius": radius}).outputs["Points"]
    both = b.node("GeometryNodeJoinGeometry")
    b.plug(quads, both.inputs["Geometry"])
    b.plug(_switch(b, other_rays, None, points, "GEOMETRY"), both.inputs["Geometry"])
    return both.outputs["Geometry"]


def _camera(b) -> tuple[bpy.types.NodeSocket, ...]:
    """The active camera in object space: its picture's right and up, the normal towards it, and its position."""
    camera = b.node("GeometryNodeInputActiveCamera").outputs["Active Camera"]
    info = b.node("GeometryNodeObjectInfo", {"Object": camera}, transform_space="RELATIVE").outputs
    axes = ({"Direction": axis, "Transform": info["Transform"]} for axis in ((1, 0, 0), (0, 1, 0)))
    right, up = (b.node("FunctionNodeTransformDirection", inputs).outputs["Direction"] for inputs in axes)
    back = b.vector("NORMALIZE", b.vector("CROSS_PRODUCT", right, up))
    eye = info["Location"]
    if compat.has_node("GeometryNodeCameraInfo"):
        orthographic = b.node("GeometryNodeCameraInfo", {"Camera": camera}).outputs["Is Orthographic"]
        eye = _switch(b, orthographic, eye, b.vector("ADD", eye, b.vector("SCALE", back, FAR_AWAY)), "VECTOR")
    return right, up, back, eye


def _half_axes(b, right, up, sight, own_half_axes) -> tuple[bpy.types.NodeSocket, bpy.types.NodeSocket]:
    """Two vectors in the plane of `right` and `up` that span the Gaussian's outline as seen along `sight`.

    Projected there along the line of sight, the Gaussian's own half-axes are the columns of a matrix [2, 3] and its
    covariance is that matrix times its transpose. The Cholesky factor spans a parallelogram about the ellipse.
    """
    up_sight = b.vector("CROSS_PRODUCT", up, sight)
    sight_right = b.vector("CROSS_PRODUCT", sight, right)
    inverse_det = b.math("DIVIDE", 1.0, b.vector("DOT_PRODUCT", right, up_sight))
    x = own_half_axes(b.vector("SCALE", up_sight, inverse_det))
    y = own_half_axes(b.vector("SCALE", sight_right, inverse_det))
    xx = b.math("SQRT", b.vector("DOT_PRODUCT", x, x))
    yx = b.math("DIVIDE", b.vector("DOT_PRODUCT", x, y), xx)
    yy = b.math("SUBTRACT", b.vector("DOT_PRODUCT", y, y), b.math("MULTIPLY", yx, yx))
    yy = b.math("SQRT", b.math("MAXIMUM", yy, 0.0))
    return b.vector("ADD", b.vector("SCALE", right, xx), b.vector("SCALE", up, yx)), b.vector("SCALE", up, yy)


def _dots(b, points, longest, color) -> bpy.types.NodeSocket:
    """The points as opaque ellipsoids that end where the Gaussian's alpha is SOLID_ALPHA; fainter ones are left out."""
    parts = b.node("FunctionNodeSeparateColor", {"Color": color}).outputs
    ratio = b.math("DIVIDE", parts["Alpha"], SOLID_ALPHA)
    faint = b.math("LESS_THAN", ratio, 1.01)
    dots = b.node("GeometryNodeDeleteGeometry", {"Geometry": points, "Selection": faint}, domain="POINT")
    reach = b.math("SQRT", b.math("MULTIPLY", b.math("LOGARITHM", ratio, math.e), 2.0))
    radius = b.math("MULTIPLY", b.math("MULTIPLY", reach, longest), DIAMOND)
    dots = {"Points": dots.outputs["Geometry"], "Radius": radius}
    dots = b.node("GeometryNodeSetPointRadius", dots).outputs["Points"]
    # The material draws these as it draws all; a falloff from e^50 that reaches the cutoff at `reach` is a solid's.
    steep = b.math("DIVIDE", math.sqrt(2 * (50 - math.log(CUTOFF))), reach)
    for axis in "xyz":
        row = _attribute(b, f"splat:whiten_{axis}", "FLOAT_VECTOR")
        dots = _store(b, dots, f"splat:whiten_{axis}", "FLOAT_VECTOR", b.vector("SCALE", row, steep))
    solid = {channel: parts[channel] for channel in RGB} | {"Alpha": math.exp(50)}
    solid = b.node("FunctionNodeCombineColor", solid).outputs["Color"]
    return _store(b, dots, "splat:color", "FLOAT_COLOR", solid)


def _color(b: Builder, f_dc: bpy.types.NodeSocket, exact: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    """One channel: the zeroth harmonic as a display value, and unless `exact`, that made linear (IEC 61966-2-1)."""
    display = b.math("MULTIPLY_ADD", f_dc, SH_C0, 0.5, clamp=True)
    curve = b.math("POWER", b.math("DIVIDE", b.math("ADD", display, 0.055), 1.055), 2.4)
    linear = _switch(b, b.math("LESS_THAN", display, 0.04045), curve, b.math("DIVIDE", display, 12.92), "FLOAT")
    return _switch(b, exact, linear, display, "FLOAT")


def _socket(group, name, in_out, kind, default=None, maximum=None, factor=False) -> None:
    """An input or output of the group; one that is already there stays, and with it the values in modifiers."""
    there = [s for s in group.interface.items_tree if s.item_type == "SOCKET" and (s.name, s.in_out) == (name, in_out)]
    socket = there[0] if there else group.interface.new_socket(name, in_out=in_out, socket_type=kind)
    if maximum is not None:
        socket.min_value, socket.max_value = 0.0, maximum
        socket.subtype = "FACTOR" if factor else "NONE"
    if default is not None:
        socket.default_value = default


def _attribute(b: Builder, name: str, data_type: str) -> bpy.types.NodeSocket:
    return enabled(b.node("GeometryNodeInputNamedAttribute", {"Name": name}, data_type=data_type).outputs, "Attribute")


def _store(b: Builder, geometry, name: str, data_type: str, value) -> bpy.types.NodeSocket:
    inputs = {"Geometry": geometry, "Name": name, "Value": value}
    node = b.node("GeometryNodeStoreNamedAttribute", inputs, data_type=data_type, domain="POINT")
    return node.outputs["Geometry"]


def _switch(b: Builder, condition, no, yes, input_type: str) -> bpy.types.NodeSocket:
    node = b.node("GeometryNodeSwitch", {"Switch": condition, "False": no, "True": yes}, input_type=input_type)
    return enabled(node.outputs, "Output")


def _menu(b: Builder, choice: bpy.types.NodeSocket, data_type: str, items: dict) -> bpy.types.NodeSocket:
    node = b.node("GeometryNodeMenuSwitch", data_type=data_type)
    for i, name in enumerate(items):  # renaming the first two keeps the numbers 0, 1, 2 that modifiers store up to 5.1
        if i < len(node.enum_items):
            node.enum_items[i].name = name
        else:
            node.enum_items.new(name)
    b.plug(choice, node.inputs["Menu"])
    for name, value in items.items():
        b.plug(value, enabled(node.inputs, name))
    return enabled(node.outputs, "Output")
