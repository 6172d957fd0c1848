"""The node group "LGM Splats": points with the attributes of Gaussians become something to draw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import bpy

from ... import compat
from . import splat_material, splat_points
from .build import Builder, enabled, node_group, reuse_or_build
from .splat_color import GRADE, color, grade, side_color
from .splat_inputs import Shadows, ViewportDisplay, add_sockets, inputs
from .splat_material import CUTOFF
from .splat_points import FACTORS, gaussian
from .splat_quads import camera, quads, tiles

NAME = "LGM Splats"
OTHER_REACH = 2.0  # standard deviations that soft shadows see: the rest is faint, and over half of the cost


def splat_geometry() -> bpy.types.GeometryNodeTree:
    """The node group that displays Gaussians, built if it isn't there or is older.

    It reads the point attributes of Blender 5.3's splats (splat_data.py), of a mesh or a point cloud. Its inputs are
    those of splat_inputs.py.

    *Colors*: Gaussians are trained in display space. "Linear" converts their colours to the scene's linear space, as
    Blender does with an sRGB texture: under the Standard view transform they show as trained, under AgX (Blender's
    default) as muted as everything else in the scene. "Exact" hands out the trained values as they are: with the view
    transform Raw the picture is 3DGS's own, blending included.

    An exact display draws two things, for a reason. 3DGS sorts Gaussians by the depth of their centres. A closed
    surface about a Gaussian, the same from all sides, is met where it begins, not at its centre: sorted so, the golden
    set comes to 28 dB against gsplat. So a render puts a quad through every centre, parallel to the active camera's
    picture and as large as the Gaussian's outline; the material integrates along the true ray, wherever on the quad it
    meets it. That is sorted as gsplat sorts, at one hit for each Gaussian. The viewport, which looks from anywhere,
    meets a point of a point cloud instead, a sphere about the Gaussian with the same integral. Rays other than the
    camera's meet tiles: where a hundred soft splats lie behind each other, they would have to go through all of them.
    """
    new = lambda: bpy.data.node_groups.new(NAME, "GeometryNodeTree")  # noqa: E731
    return reuse_or_build(bpy.data.node_groups, NAME, new, _build)


def build_in_pieces() -> Iterator[None]:
    """Builds what `splat_geometry` then finds, none of it for longer than Blender's window may stand still."""
    parts = [gaussian, camera, side_color, grade, color, quads, tiles, _chosen, _rendered]
    parts += [splat_points.soft, splat_points.solids, splat_points.dots]
    parts += [splat_points.native] if compat.has_native_splats() else []
    for build in (splat_material.splat_material, splat_material.relit_material, *(part.group for part in parts)):
        build()
        yield
    splat_geometry()


def _build(group: bpy.types.GeometryNodeTree) -> None:
    group.nodes.clear()
    add_sockets(group)
    b = Builder(group)
    given = b.node("NodeGroupInput").outputs
    factors, grading = ({name: given[name] for name in names} for names in (FACTORS, GRADE))
    in_viewport = b.node("GeometryNodeIsViewport").outputs["Is Viewport"]
    exact_colors = b.menu(given["Colors"], "BOOLEAN", {"Linear": False, "Exact": True})

    limits = {name: given[name] for name in ("Geometry", "Min Opacity", "Number", "Crop", "Crop Box")}
    amount = b.switch(in_viewport, given["Render Amount"], given["Viewport Amount"], "FLOAT")
    chosen = _chosen(b, {**limits, **factors, "Amount": amount})
    points = chosen["Points"]
    factors["Scale"] = b.math("MULTIPLY", factors["Scale"], chosen["Growth"])
    normals = b.store(points, "splat:normal", "FLOAT_VECTOR", gaussian(b, factors)["Normal"])
    points = b.switch(given["Relight"], points, normals, "GEOMETRY")

    soft = splat_points.soft(b, {"Points": points, "Exact": exact_colors, **factors, **grading})["Points"]
    shadows = b.menu(given["Shadows"], "INT", {name: i for i, name in enumerate(get_args(Shadows))})
    wanted = {"View-Dependent": given["View-Dependent"], "Shadows": shadows}
    rendered = _rendered(b, {"Points": soft, "Exact": exact_colors, **wanted, **factors, **grading})["Geometry"]
    displays = {
        "Splats": soft,
        "Ellipsoids": splat_points.solids(b, {"Points": soft, "Flat": 1.0, **factors})["Points"],
        "As Rendered": rendered,
        "Points": splat_points.dots(b, {"Points": soft, **factors})["Points"],
        "Discs": splat_points.solids(b, {"Points": soft, "Flat": splat_points.FLAT, **factors})["Points"],
    }
    names = get_args(ViewportDisplay)
    viewport = b.menu(given["Viewport"], "INT", {name: i for i, name in enumerate(names)})
    shown = b.index_switch(viewport, "GEOMETRY", [displays[name] for name in names])
    shown = b.switch(in_viewport, rendered, shown, "GEOMETRY")
    unlit, relit = splat_material.splat_material(), splat_material.relit_material()
    shown = b.set_material(shown, b.switch(given["Relight"], unlit, relit, "MATERIAL"))
    if compat.has_native_splats():
        wanted = {name: given[name] for name in ("View-Dependent", "Relight")}
        native = splat_points.native(b, {"Points": points, "Exact": exact_colors, **wanted, **factors, **grading})
        is_native = b.menu(given["Display"], "BOOLEAN", {"Exact": False, "Native": True})
        soft_here = b.index_switch(viewport, "BOOLEAN", [name in ("Splats", "As Rendered") for name in names])
        soft_here = b.switch(in_viewport, True, soft_here, "BOOLEAN")  # solids are drawn one way only
        both = b.node("FunctionNodeBooleanMath", {"Boolean": is_native, "Boolean_001": soft_here}, operation="AND")
        shown = b.switch(both.outputs["Boolean"], shown, native["Splats"], "GEOMETRY")
    b.node("NodeGroupOutput", {"Geometry": shown})
    defaults = {row.name: row.default for row in inputs()}
    for socket in group.interface.items_tree:  # a menu knows its items only once it is linked
        if getattr(socket, "socket_type", "") == "NodeSocketMenu":
            socket.default_value = defaults[socket.name]
    b.arrange()


@node_group(
    ".LGM Chosen",
    {"Geometry": "Geometry", "Amount": "Float", "Min Opacity": "Float", "Number": "Int", "Crop": "Bool",
     "Crop Box": "Object", **FACTORS},
    {"Points": "Geometry", "Growth": "Float"},
)  # fmt: skip
def _chosen(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """The points to be shown, of a mesh's vertices and a point cloud's points, and the factor by which they grow.

    Of a limited number, the likelier one is to be kept the more it shows: of the keys log(u) / w, u random and w the
    root of the importance, the largest ones win (Efraimidis and Spirakis, 2006). The most important ones alone would
    leave holes: they lie deep inside. What is kept grows to the area of all.
    """
    own = gaussian(b, {name: given[name] for name in FACTORS})
    both = b.node("GeometryNodeJoinGeometry")
    b.plug(b.node("GeometryNodeMeshToPoints", {"Mesh": given["Geometry"]}).outputs["Points"], both.inputs["Geometry"])
    parts = b.node("GeometryNodeSeparateComponents", {"Geometry": given["Geometry"]}).outputs
    b.plug(parts["Point Cloud"], both.inputs["Geometry"])

    lot = enabled(b.node("FunctionNodeRandomValue", data_type="FLOAT").outputs, "Value")
    shown = b.math("LESS_THAN", lot, given["Amount"])
    lowest = b.math("MAXIMUM", given["Min Opacity"], CUTOFF)
    shown = b.math("MULTIPLY", shown, b.math("SUBTRACT", 1.0, b.math("LESS_THAN", own["Opacity"], lowest)))
    inside = b.switch(given["Crop"], 1.0, _inside(b, given["Crop Box"]), "FLOAT")
    hidden = b.math("SUBTRACT", 1.0, b.math("MULTIPLY", shown, inside))
    points = b.delete_points(both.outputs["Geometry"], hidden)

    lot = b.node("FunctionNodeRandomValue", {"Min": 1e-6, "Seed": 1}, data_type="FLOAT")
    key = b.math("LOGARITHM", enabled(lot.outputs, "Value"), math.e)
    key = b.math("DIVIDE", key, b.math("SQRT", own["Importance"]))
    inputs = {"Geometry": points, "Sort Weight": b.math("MULTIPLY", key, -1.0)}
    ordered = b.node("GeometryNodeSortElements", inputs, domain="POINT").outputs["Geometry"]
    index = b.node("GeometryNodeInputIndex").outputs["Index"]
    few = b.delete_points(ordered, b.math("GREATER_THAN", index, b.math("SUBTRACT", given["Number"], 0.5)))
    inputs = ({"Geometry": part, "Attribute": own["Importance"]} for part in (points, few))
    sums = (enabled(b.node("GeometryNodeAttributeStatistic", part).outputs, "Sum") for part in inputs)
    limited = b.math("GREATER_THAN", given["Number"], 0.0)
    growth = b.switch(limited, 1.0, b.math("SQRT", b.math("DIVIDE", *sums)), "FLOAT")
    return {"Points": b.switch(limited, points, few, "GEOMETRY"), "Growth": growth}


def _inside(b: Builder, box: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    """1 where a point is inside of the cube from -1 to 1 of an object, else 0."""
    transform = b.node("GeometryNodeObjectInfo", {"Object": box}, transform_space="RELATIVE").outputs["Transform"]
    inverse = b.node("FunctionNodeInvertMatrix", {"Matrix": transform}).outputs["Matrix"]
    inputs = {"Vector": b.node("GeometryNodeInputPosition").outputs["Position"], "Transform": inverse}
    x, y, z = b.channels(b.vector("ABSOLUTE", b.node("FunctionNodeTransformPoint", inputs).outputs["Vector"]))
    return b.math("LESS_THAN", b.math("MAXIMUM", b.math("MAXIMUM", x, y), z), 1.0)


@node_group(
    ".LGM Rendered",
    {"Points": "Geometry", "Exact": "Bool", "View-Dependent": "Bool", "Shadows": "Int", **FACTORS, **GRADE},
    {"Geometry": "Geometry"},
)  # fmt: skip
def _rendered(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """A quad for each point that the active camera can see, and what other rays than its own see."""
    own = gaussian(b, {name: given[name] for name in FACTORS})
    view = camera(b, {})
    sight = b.vector("SUBTRACT", b.attribute("splat:center", "FLOAT_VECTOR"), view["Eye"])
    side = side_color(b, {"Direction": b.vector("NORMALIZE", sight)})["RGB"]
    looks = {"RGB": b.vector("ADD", own["Base"], side), "Opacity": own["Opacity"], "Exact": given["Exact"]}
    looks = color(b, looks | {name: given[name] for name in GRADE})["Color"]
    seen = b.store(given["Points"], "splat:color", "FLOAT_COLOR", looks)
    points = b.switch(given["View-Dependent"], given["Points"], seen, "GEOMETRY")
    points = b.store(points, "splat:camera", "FLOAT_VECTOR", view["Eye"])
    points = b.store(points, "splat:axis", "FLOAT_VECTOR", view["Back"])
    both = b.node("GeometryNodeJoinGeometry")
    outlines = {"Points": points} | {name: own[name] for name in ("Scale", "Rotation", "Reach")}
    b.plug(quads(b, outlines)["Quads"], both.inputs["Geometry"])
    radius = b.math("MULTIPLY", b.math("MINIMUM", own["Reach"], OTHER_REACH), own["Longest"])
    for_others = {"None": None, "Soft": b.set_radius(points, radius)}
    for_others["Solid"] = tiles(b, {"Points": points, **{name: given[name] for name in FACTORS}})["Tiles"]
    others = b.index_switch(given["Shadows"], "GEOMETRY", [for_others[name] for name in get_args(Shadows)])
    b.plug(others, both.inputs["Geometry"])
    return {"Geometry": both.outputs["Geometry"]}
