"""The inputs of the node group "LGM Splats": what a user sets of how splats look."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import bpy

from ... import compat

Display = Literal["Exact", "Native"]
ViewportDisplay = Literal["Splats", "Ellipsoids", "As Rendered", "Points", "Discs"]
Shadows = Literal["None", "Solid", "Soft"]
ColorSpace = Literal["Linear", "Exact"]


class Input(NamedTuple):
    """An input of the node group. The kind 'Factor' is a float of 0 to 1, others are as in NodeSocketFloat."""

    name: str
    kind: str
    default: Any
    about: str
    largest: float | None = None
    panel: str = ""


WHITE = (1.0, 1.0, 1.0, 1.0)
VIEWPORT = (
    "What the viewport draws. Splats: soft ones. Ellipsoids, Points, Discs: solid ones, without noise. As Rendered: "
    "what a render draws, right from the active camera only"
)
COLORS = (
    "Linear: as Blender shows a picture, beside other objects. Exact: the trained values as they are, for the view "
    "transform Raw"
)
NUMBER = "So many Gaussians are shown, rather those that show much, and larger, so that no holes are left. 0: all"
SIDES = "Colours change with the side that is looked at, where a capture has learnt that"
RELIGHT = (
    "The scene's lights fall on the splats. An approximation: the light of the pictures stays in them, and a "
    "Gaussian's surface is taken to lie across its shortest axis"
)
SHADOWS = (
    "What shadows, reflections and indirect light see of exact splats. Solid: small tiles, which is quick. Soft: the "
    "splats themselves, right in a mirror, slow. None: nothing"
)
CROP_BOX = "An object, such as an empty displayed as a cube, whose cube from -1 to 1 is the box"
NATIVE_OR_EXACT = (
    "Native: Blender's own splats: fast, and blended in linear light. Exact: blended as they were trained to be, slower"
)

INPUTS = (
    Input("Viewport", "Menu", "Splats", VIEWPORT),
    Input("Viewport Amount", "Factor", 1.0, "Share of the Gaussians that the viewport draws"),
    Input("Render Amount", "Factor", 1.0, "Share of the Gaussians that a render draws"),
    Input("Number", "Int", 0, NUMBER),
    Input("Min Opacity", "Factor", 0.0, "Gaussians of lower opacity are left out"),
    Input("Scale", "Float", 1.0, "Factor on the sizes of the Gaussians", 100.0),
    Input("Opacity", "Float", 1.0, "Factor on the opacities", 100.0),
    Input("Colors", "Menu", "Linear", COLORS, panel="Color"),
    Input("View-Dependent", "Bool", False, SIDES, panel="Color"),
    Input("Brightness", "Float", 1.0, "Factor on the colours", 10.0, "Color"),
    Input("Saturation", "Float", 1.0, "0 is grey, 1 as it is", 10.0, "Color"),
    Input("Tint", "Color", WHITE, "A colour that all others are multiplied by", panel="Color"),
    Input("Relight", "Bool", False, RELIGHT, panel="Light"),
    Input("Shadows", "Menu", "Solid", SHADOWS, panel="Light"),
    Input("Crop", "Bool", False, "Only what lies in the crop box is shown", panel="Crop"),
    Input("Crop Box", "Object", None, CROP_BOX, panel="Crop"),
)


DISPLAY = Input("Display", "Menu", "Exact", NATIVE_OR_EXACT)  # from Blender 5.3 on
ALL_INPUTS = (DISPLAY, *INPUTS)


def inputs() -> tuple[Input, ...]:
    """The inputs that the node group has in this Blender."""
    return ALL_INPUTS if compat.has_native_splats() else INPUTS


def add_sockets(group: bpy.types.GeometryNodeTree) -> None:
    """Gives the group its inputs and output; those that are there stay, and with them the values in modifiers.

    Those that an older version had, or that another Blender has, go.
    """
    tree = group.interface
    names = {"Geometry", *(row.name for row in inputs())}
    for item in [item for item in tree.items_tree if item.item_type == "SOCKET" and item.name not in names]:
        tree.remove(item)
    there = {(item.name, item.in_out): item for item in tree.items_tree if item.item_type == "SOCKET"}
    panels = {item.name: item for item in tree.items_tree if item.item_type == "PANEL"}
    if not there:
        panels = {name: tree.new_panel(name) for name in dict.fromkeys(row.panel for row in INPUTS) if name}
    for in_out in ("OUTPUT", "INPUT"):
        if ("Geometry", in_out) not in there:
            tree.new_socket("Geometry", in_out=in_out, socket_type="NodeSocketGeometry")
    for row in inputs():
        socket = there.get((row.name, "INPUT"))
        if socket is None:
            kind = "Float" if row.kind == "Factor" else row.kind
            parent = {"parent": panels[row.panel]} if row.panel in panels else {}
            socket = tree.new_socket(row.name, in_out="INPUT", socket_type=f"NodeSocket{kind}", **parent)
        socket.description = row.about
        if row.kind in ("Factor", "Float", "Int"):
            socket.min_value = 0
            socket.subtype = "FACTOR" if row.kind == "Factor" else "NONE"
            socket.max_value = 1.0 if row.kind == "Factor" else row.largest or socket.max_value
        if row.kind not in ("Menu", "Object"):
            socket.default_value = row.default
