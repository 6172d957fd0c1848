"""What colour a Gaussian has: its base colour, what the side adds that it is seen from, and how the user grades it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bpy

from ....core.gaussians import SH_C0
from ....core.harmonics import basis_terms
from .build import Builder, node_group

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of display values, as grading tools take it
GRADE = {"Brightness": "Float", "Saturation": "Float", "Tint": "Color"}


@node_group(".LGM Grade", {"RGB": "Vector", **GRADE}, {"RGB": "Vector", "Changed": "Bool"})
def grade(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """Brightness, saturation and tint: a linear map of display colours, so base colour and harmonics take it alike."""
    luminance = b.vector("DOT_PRODUCT", given["RGB"], LUMINANCE)
    gray = b.xyz(luminance, luminance, luminance)
    vivid = b.vector("SCALE", b.vector("SUBTRACT", given["RGB"], gray), given["Saturation"])
    tint = display(b, b.vector("MULTIPLY", given["Tint"], (1.0, 1.0, 1.0)))  # a colour that is picked is linear
    factor = b.vector("SCALE", tint, given["Brightness"])
    change = b.math("ABSOLUTE", b.math("SUBTRACT", given["Saturation"], 1.0))
    change = b.math("ADD", change, b.vector("DISTANCE", factor, (1.0, 1.0, 1.0)))
    graded = b.vector("MULTIPLY", b.vector("ADD", gray, vivid), factor)
    return {"RGB": graded, "Changed": b.math("GREATER_THAN", change, 1e-5)}


@node_group(".LGM Color", {"RGB": "Vector", "Opacity": "Float", "Exact": "Bool", **GRADE}, {"Color": "Color"})
def color(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """Display values as the material takes them: graded, linear unless they are to be exact, with the opacity."""
    graded = grade(b, {name: given[name] for name in ("RGB", *GRADE)})["RGB"]
    graded = b.vector("MAXIMUM", graded, (0.0, 0.0, 0.0))
    shown = b.switch(given["Exact"], linear(b, graded), graded, "VECTOR")
    return {"Color": b.color(shown, given["Opacity"])}


@node_group(".LGM Side Color", {"Direction": "Vector"}, {"RGB": "Vector"})
def side_color(b: Builder, given: Any) -> dict[str, bpy.types.NodeSocket]:
    """What the harmonics add to the display colour, seen along a unit vector of the object's space.

    core/harmonics.py, in nodes. Where Gaussians have no harmonics, it is zero.
    """
    total = None
    for i, value in enumerate(basis_terms(*(_Scalar(b, part) for part in b.channels(given["Direction"])))):
        added = b.vector("SCALE", b.attribute(f"radiance:sh_{i}", "FLOAT_VECTOR"), value.socket)
        total = added if total is None else b.vector("ADD", total, added)
    return {"RGB": total}


class _Scalar:
    """A float socket that can be calculated with, so that the formulas stand in one place."""

    def __init__(self, b: Builder, socket: Any):
        self.b, self.socket = b, socket

    def _with(self, operation: str, other: Any) -> _Scalar:
        other = other.socket if isinstance(other, _Scalar) else float(other)
        return _Scalar(self.b, self.b.math(operation, self.socket, other))

    def __add__(self, other):
        return self._with("ADD", other)

    def __sub__(self, other):
        return self._with("SUBTRACT", other)

    def __mul__(self, other):
        return self._with("MULTIPLY", other)

    __rmul__ = __mul__


def base_color(b: Builder, radiance: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    """The display colour, a vector, of f_dc in the attribute `radiance:base`."""
    return b.vector("ADD", b.vector("MULTIPLY", radiance, (SH_C0,) * 3), (0.5, 0.5, 0.5))


def linear(b: Builder, rgb: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    """Display values as linear light (IEC 61966-2-1), of a vector; the same nodes in shaders and in geometry."""

    def curve(value: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
        high = b.math("POWER", b.math("DIVIDE", b.math("ADD", value, 0.055), 1.055), 2.4)
        return _above(b, value, 0.04045, b.math("DIVIDE", value, 12.92), high)

    return _by_channel(b, rgb, curve)


def display(b: Builder, rgb: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    """Linear light as display values (IEC 61966-2-1), of a vector; the same nodes in shaders and in geometry."""

    def curve(value: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
        high = b.math("SUBTRACT", b.math("MULTIPLY", b.math("POWER", value, 1 / 2.4), 1.055), 0.055)
        return _above(b, value, 0.0031308, b.math("MULTIPLY", value, 12.92), high)

    return _by_channel(b, rgb, curve)


def _by_channel(b: Builder, rgb, curve: Callable) -> bpy.types.NodeSocket:
    return b.xyz(*(curve(b.math("MAXIMUM", part, 0.0)) for part in b.channels(rgb)))


def _above(b: Builder, value, threshold: float, low, high) -> bpy.types.NodeSocket:
    is_high = b.math("GREATER_THAN", value, threshold)
    return b.math("MULTIPLY_ADD", is_high, b.math("SUBTRACT", high, low), low)
