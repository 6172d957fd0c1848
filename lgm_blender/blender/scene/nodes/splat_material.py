"""The materials of splats: what one Gaussian adds to a ray that meets it, and what native splats look like."""

from __future__ import annotations

from collections.abc import Callable

import bpy

from ... import compat
from .build import Builder, enabled, reuse_or_build
from .splat_color import display

NAME = "LGM Splat"
RELIT = "LGM Splat Relit"
NATIVE_EXACT = "LGM Native Exact"
NATIVE_RELIT = "LGM Native Relit"
CUTOFF = 1 / 255  # opacity below which gsplat, like 3DGS, draws nothing
MAX_ALPHA = 0.999  # gsplat's cap
MIN_FACING = 0.3  # cosine between a ray and the camera's axis under which quads are too oblique (panoramas)
TOLERANCE = 0.05  # how far from the camera a ray may pass, as a share of the camera's distance (depth of field)
ROUGHNESS = 0.8  # of what is relit: nothing is known of how an object shines


def splat_material() -> bpy.types.Material:
    """The material that draws splats in Cycles and EEVEE, built if it isn't there or is older.

    It needs of a surface only that the ray meets it: the Gaussian is integrated along the ray itself. With the ray
    x + t d in object space, centre c and whitening W = S^-1 R^T (S the standard deviations, R the rotation),

        o = W (x - c),  d' = W d,  q = |o × d'|² / |d'|²,  alpha = min(0.999, opacity · exp(-q / 2)),

    q being the squared distance of the ray from the centre in standard deviations: 3DGS's footprint without its
    approximation by an affine projection. The cross product keeps its precision where the difference of squares
    (o·o - (o·d')²) loses it: in flat Gaussians seen from the side.

    The attributes come from the node group "LGM Splats" (splat_geometry.py).
    """
    return _material(NAME, lambda b: _splat(b, _emission))


def relit_material() -> bpy.types.Material:
    """As `splat_material`, but lit by the scene: its colour is that of a rough surface across the shortest axis.

    An approximation: the light that the pictures were taken in stays in the colour, and a Gaussian has no surface.
    """
    return _material(RELIT, lambda b: _splat(b, _principled))


def native_exact_material() -> bpy.types.Material:
    """Native splats whose colours are display values: under the view transform Raw they blend as they were trained."""
    return _material(NATIVE_EXACT, lambda b: _emission(b, display(b, _native_color(b))))


def native_relit_material() -> bpy.types.Material:
    """Native splats lit by the scene, as `relit_material` does it."""
    return _material(NATIVE_RELIT, lambda b: _principled(b, _native_color(b)))


def _material(name: str, surface: Callable[[Builder], bpy.types.NodeSocket]) -> bpy.types.Material:
    def build(material: bpy.types.Material) -> None:
        tree = compat.node_tree(material)
        tree.nodes.clear()
        b = Builder(tree)
        b.node("ShaderNodeOutputMaterial", {"Surface": surface(b)})
        b.arrange()
        material.surface_render_method = "DITHERED"  # the only one that sorts within an object
        material.use_transparent_shadow = True
        if hasattr(material, "cycles"):  # an add-on that can be turned off
            material.cycles.emission_sampling = "NONE"  # or Cycles makes a lamp of every splat
        material.diffuse_color = (0.8, 0.8, 0.8, 1.0)

    return reuse_or_build(bpy.data.materials, name, lambda: bpy.data.materials.new(name), build)


def _attribute(b: Builder, name: str) -> bpy.types.Node:
    return b.node("ShaderNodeAttribute", attribute_type="GEOMETRY", attribute_name=name)


def _native_color(b: Builder) -> bpy.types.NodeSocket:
    return _attribute(b, "radiance").outputs["Color"]  # linear, the harmonics in it


def _emission(b: Builder, color: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    return b.node("ShaderNodeEmission", {"Color": color}).outputs["Emission"]


def _principled(b: Builder, color: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    normal = _transform(b, _attribute(b, "splat:normal").outputs["Vector"], "NORMAL", "OBJECT", "WORLD")
    toward = b.vector("DOT_PRODUCT", normal, b.node("ShaderNodeNewGeometry").outputs["Incoming"])
    sign = b.math("SUBTRACT", b.math("MULTIPLY", b.math("GREATER_THAN", toward, 0.0), 2.0), 1.0)
    inputs = {"Base Color": color, "Roughness": ROUGHNESS, "Normal": b.vector("SCALE", normal, sign)}
    return b.node("ShaderNodeBsdfPrincipled", inputs).outputs["BSDF"]


def _transform(b: Builder, vector: bpy.types.NodeSocket, kind: str, source: str, target: str) -> bpy.types.NodeSocket:
    node = b.node(
        "ShaderNodeVectorTransform", {"Vector": vector}, vector_type=kind, convert_from=source, convert_to=target
    )
    return node.outputs["Vector"]


def _splat(b: Builder, look: Callable[[Builder, bpy.types.NodeSocket], bpy.types.NodeSocket]) -> bpy.types.NodeSocket:
    geometry = b.node("ShaderNodeNewGeometry")
    position = _transform(b, geometry.outputs["Position"], "POINT", "WORLD", "OBJECT")
    offset = b.vector("SUBTRACT", position, _attribute(b, "splat:center").outputs["Vector"])
    ray = b.vector("NORMALIZE", _transform(b, geometry.outputs["Incoming"], "VECTOR", "WORLD", "OBJECT"))
    rows = [_attribute(b, f"splat:whiten_{axis}").outputs["Vector"] for axis in "xyz"]
    o = b.xyz(*(b.vector("DOT_PRODUCT", row, offset) for row in rows))
    d = b.xyz(*(b.vector("DOT_PRODUCT", row, ray) for row in rows))
    cross = b.vector("CROSS_PRODUCT", o, d)
    q = b.math("DIVIDE", b.vector("DOT_PRODUCT", cross, cross), b.vector("DOT_PRODUCT", d, d))

    color = _attribute(b, "splat:color")
    alpha = b.math("MULTIPLY", color.outputs["Alpha"], b.math("EXPONENT", b.math("MULTIPLY", q, -0.5)))
    alpha = b.math("MULTIPLY", b.math("MINIMUM", alpha, MAX_ALPHA), b.math("GREATER_THAN", alpha, CUTOFF))
    alpha = b.math("MULTIPLY", alpha, b.math("SUBTRACT", 1.0, _unseen(b, position, ray)))

    transparent = b.node("ShaderNodeBsdfTransparent").outputs["BSDF"]
    inputs = {"Fac": alpha, "Shader": transparent, "Shader_001": look(b, color.outputs["Color"])}
    return b.node("ShaderNodeMixShader", inputs).outputs["Shader"]


def _unseen(b: Builder, position: bpy.types.NodeSocket, ray: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    """1 where a ray must not see the surface that it meets, else 0.

    In a render a Gaussian is there twice: as a quad for the camera's rays, as a tile or a point for all others. Which
    of them counts must depend on the ray alone, or a Gaussian would be drawn twice or not at all. A ray is the camera's
    if it passes by the camera that the quads were made for: instances of the object elsewhere have no quads of their
    own.
    """
    camera = _attribute(b, "splat:camera").outputs["Vector"]
    miss = b.vector("LENGTH", b.vector("CROSS_PRODUCT", b.vector("SUBTRACT", position, camera), ray))
    by_camera = b.math("LESS_THAN", miss, b.math("MULTIPLY", b.vector("LENGTH", camera), TOLERANCE))
    axis = _attribute(b, "splat:axis").outputs["Vector"]
    facing = b.math("GREATER_THAN", b.vector("DOT_PRODUCT", ray, axis), MIN_FACING)
    is_camera_ray = b.node("ShaderNodeLightPath").outputs["Is Camera Ray"]
    by_camera = b.math("MULTIPLY", by_camera, b.math("MULTIPLY", facing, is_camera_ray))
    return b.math("ABSOLUTE", b.math("SUBTRACT", by_camera, enabled(_attribute(b, "splat:quad").outputs, "Fac")))
