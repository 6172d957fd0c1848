"""The displays of splats as points: soft ones, solids, and Blender 5.3's own."""

from __future__ import annotations

import math
from typing import Any

import bpy

from ....core.gaussians import SH_C0
from ....core.harmonics import COUNTS
from ... import compat
from . import splat_material
from .build import Builder, node_group
from .splat_color import GRADE, base_color, color, grade
from .splat_material import CUTOFF

MIN_SCALE = 1e-6  # a standard deviation of 0 could not be inverted
MAX_REACH = 3.0  # standard deviations, 3DGS's
SOLID_ALPHA = 0.25  # solids end where their Gaussian is that opaque
SOLID = 50.0  # logarithm of the opacity that makes a solid's edge of the material's falloff
STEEP = math.sqrt(2 * (SOLID - math.log(CUTOFF)))  # so many standard deviations out that falloff reaches the cutoff
FLAT = 20.0  # how much thinner a disc is than its Gaussian
DOT = 0.3  # radius of a point's ball, of the Gaussian's largest standard deviation
DIAMOND = math.sqrt(2.0)  # EEVEE draws a point as a diamond of its radius; one that covers the disc is larger
AXES = ("Axis X", "Axis Y", "Axis Z")
GAUSSIAN = {
    **{"Scale": "Vector", "Rotation": "Rotation", "Opacity": "Float", "Base": "Vector"},
    **{"Reach": "Float", "Longest": "Float", "Shortest": "Float", "Importance": "Float", "Normal": "Vector"},
    **dict.fromkeys(AXES, "Vector"),
}
FACTORS = {"Scale": "Float", "Opacity": "Float"}


@node_group(".LGM Gaussian", FACTORS, GAUSSIAN)
def gaussian(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """What is computed of a Gaussian's attributes and two factors, as fields on points and on vertices.

    Scale (standard deviations), Rotation, Opacity and Base (display colour) are the Gaussian's own. Reach: so many
    standard deviations out its alpha is under the cutoff. Longest, Shortest: of the standard deviations. Importance:
    how much of a picture it makes up, opacity times the largest area that it shows. Axis X to Z: unit vectors of its
    own axes in the object's space. Normal: the shortest of them, across the surface that it is part of.
    """
    scale = b.vector("SCALE", b.attribute("scale", "FLOAT_VECTOR"), given["Scale"])
    scale = b.vector("MAXIMUM", scale, (MIN_SCALE,) * 3)
    rotation = b.attribute("rotation", "QUATERNION")
    radiance = b.attribute("radiance:base", "FLOAT_COLOR")
    alpha = b.node("FunctionNodeSeparateColor", {"Color": radiance}).outputs["Alpha"]
    opacity = b.math("MULTIPLY", alpha, given["Opacity"], clamp=True)
    reach = b.math("LOGARITHM", b.math("DIVIDE", opacity, CUTOFF), math.e)
    x, y, z = scales = b.channels(scale)
    longest = b.math("MAXIMUM", b.math("MAXIMUM", x, y), z)
    shortest = b.math("MINIMUM", b.math("MINIMUM", x, y), z)
    area = b.math("DIVIDE", b.math("MULTIPLY", b.math("MULTIPLY", x, y), z), shortest)
    own_axes, normal = [], None
    for i, length in enumerate(scales):
        inputs = {"Vector": tuple(float(i == other) for other in range(3)), "Rotation": rotation}
        own_axes.append(b.node("FunctionNodeRotateVector", inputs).outputs["Vector"])
        part = b.vector("SCALE", own_axes[-1], is_shortest(b, length, shortest))
        normal = part if normal is None else b.vector("ADD", normal, part)
    return {
        "Scale": scale,
        "Rotation": rotation,
        "Opacity": opacity,
        "Base": base_color(b, radiance),
        "Reach": b.math("MINIMUM", b.math("SQRT", b.math("MULTIPLY", reach, 2.0)), MAX_REACH),
        "Longest": longest,
        "Shortest": shortest,
        "Importance": b.math("MULTIPLY", opacity, area),
        "Normal": b.vector("NORMALIZE", normal),
        **dict(zip(AXES, own_axes, strict=True)),
    }


def is_shortest(b: Builder, length, shortest) -> bpy.types.NodeSocket:
    """1 for the shortest axis, else 0."""
    return b.math("SUBTRACT", 1.0, b.math("GREATER_THAN", length, shortest))


@node_group(
    ".LGM Soft Splats", {"Points": "Geometry", "Exact": "Bool", **FACTORS, **GRADE}, {"Points": "Geometry"},
)  # fmt: skip
def soft(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """Points of a point cloud with what the material integrates, as large as what can be seen of them."""
    own = gaussian(b, {name: given[name] for name in FACTORS})
    points = given["Points"]
    if compat.has_native_splats():
        points = b.node("GeometryNodePointsSetType", {"Points": points, "Type": "Points"}).outputs["Points"]
    points = b.set_radius(points, b.math("MULTIPLY", b.math("MULTIPLY", own["Reach"], own["Longest"]), DIAMOND))
    looks = {"RGB": own["Base"], "Opacity": own["Opacity"], "Exact": given["Exact"]}
    looks = color(b, looks | {name: given[name] for name in GRADE})["Color"]
    points = b.store(points, "splat:color", "FLOAT_COLOR", looks)
    position = b.node("GeometryNodeInputPosition").outputs["Position"]
    points = b.store(points, "splat:center", "FLOAT_VECTOR", position)
    for letter, axis, length in zip("xyz", AXES, b.channels(own["Scale"]), strict=True):
        row = b.vector("SCALE", own[axis], b.math("DIVIDE", 1.0, length))
        points = b.store(points, f"splat:whiten_{letter}", "FLOAT_VECTOR", row)
    return {"Points": points}


@node_group(".LGM Solids", {"Points": "Geometry", "Flat": "Float", **FACTORS}, {"Points": "Geometry"})
def solids(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """Opaque ellipsoids of soft splats, `Flat` times thinner than these, that end where alpha is SOLID_ALPHA."""
    own = gaussian(b, {name: given[name] for name in FACTORS})
    ratio = b.math("DIVIDE", own["Opacity"], SOLID_ALPHA)
    points = b.delete_points(given["Points"], b.math("LESS_THAN", ratio, 1.01))
    reach = b.math("SQRT", b.math("MULTIPLY", b.math("LOGARITHM", ratio, math.e), 2.0))
    points = b.set_radius(points, b.math("MULTIPLY", b.math("MULTIPLY", reach, own["Longest"]), DIAMOND))
    steep = b.math("DIVIDE", STEEP, reach)
    more = b.math("SUBTRACT", given["Flat"], 1.0)
    for letter, length in zip("xyz", b.channels(own["Scale"]), strict=True):
        row = b.vector("SCALE", b.attribute(f"splat:whiten_{letter}", "FLOAT_VECTOR"), steep)
        row = b.vector("SCALE", row, b.math("MULTIPLY_ADD", is_shortest(b, length, own["Shortest"]), more, 1.0))
        points = b.store(points, f"splat:whiten_{letter}", "FLOAT_VECTOR", row)
    return {"Points": opaque(b, points)}


@node_group(".LGM Dots", {"Points": "Geometry", **FACTORS}, {"Points": "Geometry"})
def dots(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """Opaque balls at the centres of soft splats, between which one sees how these lie."""
    own = gaussian(b, {name: given[name] for name in FACTORS})
    points = b.delete_points(given["Points"], b.math("LESS_THAN", own["Opacity"], SOLID_ALPHA))
    radius = b.math("MULTIPLY", own["Longest"], DOT)
    points = b.set_radius(points, b.math("MULTIPLY", radius, DIAMOND))
    steep = b.math("DIVIDE", STEEP, radius)
    for i, letter in enumerate("xyz"):
        row = b.vector("SCALE", tuple(float(i == other) for other in range(3)), steep)
        points = b.store(points, f"splat:whiten_{letter}", "FLOAT_VECTOR", row)
    return {"Points": opaque(b, points)}


def opaque(b: Builder, geometry) -> bpy.types.NodeSocket:
    """The geometry with an opacity that the material's falloff turns into a solid's."""
    rgb = b.vector("MULTIPLY", b.attribute("splat:color", "FLOAT_COLOR"), (1.0, 1.0, 1.0))
    return b.store(geometry, "splat:color", "FLOAT_COLOR", b.color(rgb, math.exp(SOLID)))


NATIVE = {"Points": "Geometry", "Exact": "Bool", "View-Dependent": "Bool", "Relight": "Bool", **FACTORS, **GRADE}


@node_group(".LGM Native Splats", NATIVE, {"Splats": "Geometry"})
def native(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """Blender 5.3's own splats, with what the inputs change about them."""
    own = gaussian(b, {name: given[name] for name in FACTORS})
    grading = {name: given[name] for name in GRADE}
    graded = grade(b, {"RGB": own["Base"], **grading})
    f_dc = b.vector("SCALE", b.vector("SUBTRACT", graded["RGB"], (0.5, 0.5, 0.5)), 1 / SH_C0)
    splats = b.store(given["Points"], "radiance:base", "FLOAT_COLOR", b.color(f_dc, own["Opacity"]))
    splats = b.store(splats, "scale", "FLOAT_VECTOR", own["Scale"])
    sides = splats
    for i in range(COUNTS[-1]):
        name = f"radiance:sh_{i}"
        side = grade(b, {"RGB": b.attribute(name, "FLOAT_VECTOR"), **grading})["RGB"]
        sides = b.store(sides, name, "FLOAT_VECTOR", side)
    sides = b.switch(graded["Changed"], splats, sides, "GEOMETRY")
    inputs = {"Geometry": splats, "Pattern Mode": "Wildcard", "Name": "radiance:sh_*"}
    alike = b.node("GeometryNodeRemoveAttribute", inputs).outputs["Geometry"]
    splats = b.switch(given["View-Dependent"], alike, sides, "GEOMETRY")
    inputs = {"Points": splats, "Type": compat.NATIVE_SPLATS}
    splats = b.node("GeometryNodePointsSetType", inputs).outputs["Points"]
    exact = b.set_material(splats, splat_material.native_exact_material())
    relit = b.set_material(splats, splat_material.native_relit_material())
    splats = b.switch(given["Exact"], splats, exact, "GEOMETRY")
    return {"Splats": b.switch(given["Relight"], splats, relit, "GEOMETRY")}
