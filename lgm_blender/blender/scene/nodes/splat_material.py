"""The material "LGM Splat": what one Gaussian adds to a ray that meets it."""

from __future__ import annotations

import bpy

from ... import compat
from .build import Builder, enabled, reuse_or_build

NAME = "LGM Splat"
VERSION = 1
CUTOFF = 1 / 255  # opacity below which gsplat, like 3DGS, draws nothing
MAX_ALPHA = 0.999  # gsplat's cap
MIN_FACING = 0.3  # cosine between a ray and the camera's axis under which quads are too oblique (panoramas)
TOLERANCE = 0.05  # how far from the camera a ray may pass, as a share of the camera's distance (depth of field)


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
    return reuse_or_build(bpy.data.materials, NAME, VERSION, lambda: bpy.data.materials.new(NAME), _build)


def _build(material: bpy.types.Material) -> None:
    tree = compat.node_tree(material)
    tree.nodes.clear()
    b = Builder(tree)

    def attribute(name: str) -> bpy.types.Node:
        return b.node("ShaderNodeAttribute", attribute_type="GEOMETRY", attribute_name=name)

    def to_object(vector: bpy.types.NodeSocket, kind: str) -> bpy.types.NodeSocket:
        node = b.node(
            "ShaderNodeVectorTransform", {"Vector": vector}, vector_type=kind, convert_from="WORLD", convert_to="OBJECT"
        )
        return node.outputs["Vector"]

    geometry = b.node("ShaderNodeNewGeometry")
    position = to_object(geometry.outputs["Position"], "POINT")
    offset = b.vector("SUBTRACT", position, attribute("splat:center").outputs["Vector"])
    ray = b.vector("NORMALIZE", to_object(geometry.outputs["Incoming"], "VECTOR"))
    rows = [attribute(f"splat:whiten_{axis}").outputs["Vector"] for axis in "xyz"]
    o = b.xyz(*(b.vector("DOT_PRODUCT", row, offset) for row in rows))
    d = b.xyz(*(b.vector("DOT_PRODUCT", row, ray) for row in rows))
    cross = b.vector("CROSS_PRODUCT", o, d)
    q = b.math("DIVIDE", b.vector("DOT_PRODUCT", cross, cross), b.vector("DOT_PRODUCT", d, d))

    color = attribute("splat:color")
    alpha = b.math("MULTIPLY", color.outputs["Alpha"], b.math("EXPONENT", b.math("MULTIPLY", q, -0.5)))
    alpha = b.math("MULTIPLY", b.math("MINIMUM", alpha, MAX_ALPHA), b.math("GREATER_THAN", alpha, CUTOFF))

    # In a render a Gaussian is there twice: as a quad for the camera's rays, as a point for all others. Which of them
    # counts must depend on the ray alone, or a Gaussian would be drawn twice or not at all. A ray is the camera's if it
    # passes by the camera that the quads were made for: instances of the object elsewhere have no quads of their own.
    camera = attribute("splat:camera").outputs["Vector"]
    miss = b.vector("LENGTH", b.vector("CROSS_PRODUCT", b.vector("SUBTRACT", position, camera), ray))
    by_camera = b.math("LESS_THAN", miss, b.math("MULTIPLY", b.vector("LENGTH", camera), TOLERANCE))
    facing = b.math("GREATER_THAN", b.vector("DOT_PRODUCT", ray, attribute("splat:axis").outputs["Vector"]), MIN_FACING)
    by_camera = b.math(
        "MULTIPLY", by_camera, b.math("MULTIPLY", facing, b.node("ShaderNodeLightPath").outputs["Is Camera Ray"])
    )
    unseen = b.math("ABSOLUTE", b.math("SUBTRACT", by_camera, enabled(attribute("splat:quad").outputs, "Fac")))
    alpha = b.math("MULTIPLY", alpha, b.math("SUBTRACT", 1.0, unseen))

    emission = b.node("ShaderNodeEmission", {"Color": color.outputs["Color"]}).outputs["Emission"]
    transparent = b.node("ShaderNodeBsdfTransparent").outputs["BSDF"]
    mix = b.node("ShaderNodeMixShader", {"Fac": alpha, "Shader": transparent, "Shader_001": emission})
    b.node("ShaderNodeOutputMaterial", {"Surface": mix.outputs["Shader"]})
    b.arrange()

    material.surface_render_method = "DITHERED"  # the only one that sorts within an object
    material.use_transparent_shadow = True
    if hasattr(material, "cycles"):  # an add-on that can be turned off
        material.cycles.emission_sampling = "NONE"  # or Cycles makes a lamp of every splat
    material.diffuse_color = (0.8, 0.8, 0.8, 1.0)
