"""A short hand for building node trees, and for finding the ones that are already there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import bpy

from ... import compat

VERSION = 2  # of all that is built here: raised with every change, so that files get what fits together
VERSION_KEY = "lgm_version"  # custom property of what was built here
VARIANT_KEY = "lgm_variant"

# The operands of a Math or Vector Math node share a name; what .blend files know them by tells them apart.
OPERANDS = {name: (name, f"{name}_001", f"{name}_002") for name in ("Value", "Vector")}


class Builder:
    """Adds nodes to `tree`. Sockets and plain values may be given wherever an input is wanted."""

    def __init__(self, tree: bpy.types.NodeTree):
        self.tree = tree

    def node(self, kind: str, inputs: dict[str, Any] | None = None, **properties) -> bpy.types.Node:
        """A node of type `kind`, its properties set first, then its inputs by name or identifier (`enabled`)."""
        node = self.tree.nodes.new(kind)
        for name, value in properties.items():
            setattr(node, name, value)
        for key, value in (inputs or {}).items():
            self.plug(value, enabled(node.inputs, key))
        return node

    def channels(self, vector: bpy.types.NodeSocket) -> list[bpy.types.NodeSocket]:
        """The three components of a vector."""
        parts = self.node("ShaderNodeSeparateXYZ", {"Vector": vector}).outputs
        return [parts[axis] for axis in "XYZ"]

    def plug(self, value: Any, socket: bpy.types.NodeSocket) -> None:
        """Link a socket to `socket`, or give it a value."""
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, socket)
        elif value is not None:
            socket.default_value = value

    def math(self, operation: str, *operands, clamp: bool = False) -> bpy.types.NodeSocket:
        """A float operation of one to three operands."""
        inputs = dict(zip(OPERANDS["Value"], operands, strict=False))
        return self.node("ShaderNodeMath", inputs, operation=operation, use_clamp=clamp).outputs["Value"]

    def vector(self, operation: str, *operands) -> bpy.types.NodeSocket:
        """A vector operation; dot products, lengths and distances give a float."""
        names = ("Vector", "Scale") if operation == "SCALE" else OPERANDS["Vector"]
        node = self.node("ShaderNodeVectorMath", dict(zip(names, operands, strict=False)), operation=operation)
        return node.outputs["Value" if operation in ("DOT_PRODUCT", "LENGTH", "DISTANCE") else "Vector"]

    def xyz(self, x: Any, y: Any, z: Any) -> bpy.types.NodeSocket:
        """The vector (x, y, z)."""
        return self.node("ShaderNodeCombineXYZ", {"X": x, "Y": y, "Z": z}).outputs["Vector"]

    def attribute(self, name: str, data_type: str) -> bpy.types.NodeSocket:
        """A named attribute of geometry nodes, as a field; zeros where there is none."""
        return enabled(
            self.node("GeometryNodeInputNamedAttribute", {"Name": name}, data_type=data_type).outputs, "Attribute"
        )

    def store(self, geometry, name: str, data_type: str, value) -> bpy.types.NodeSocket:
        """The geometry with an attribute more, on its points or vertices."""
        inputs = {"Geometry": geometry, "Name": name, "Value": value}
        return self.node("GeometryNodeStoreNamedAttribute", inputs, data_type=data_type, domain="POINT").outputs[
            "Geometry"
        ]

    def switch(self, condition, no, yes, input_type: str) -> bpy.types.NodeSocket:
        """One of two values; where the condition is no field, the other is not computed."""
        node = self.node("GeometryNodeSwitch", {"Switch": condition, "False": no, "True": yes}, input_type=input_type)
        return enabled(node.outputs, "Output")

    def menu(self, choice: bpy.types.NodeSocket, data_type: str, items: dict[str, Any]) -> bpy.types.NodeSocket:
        """The value that a menu socket chooses, of those by the names of its items."""
        node = self.node("GeometryNodeMenuSwitch", data_type=data_type)
        for i, name in enumerate(items):  # renaming the first two keeps the numbers that modifiers store up to 5.1
            if i < len(node.enum_items):
                node.enum_items[i].name = name
            else:
                node.enum_items.new(name)
        self.plug(choice, node.inputs["Menu"])
        for name, value in items.items():
            self.plug(value, enabled(node.inputs, name))
        return enabled(node.outputs, "Output")

    def index_switch(self, index, data_type: str, values: list[Any]) -> bpy.types.NodeSocket:
        """The value with that number; where the number is no field, the others are not computed."""
        node = self.node("GeometryNodeIndexSwitch", data_type=data_type)
        while len(node.index_switch_items) < len(values):
            node.index_switch_items.new()
        self.plug(index, node.inputs["Index"])
        for item, value in enumerate(values):
            self.plug(value, enabled(node.inputs, f"Item_{item}"))
        return node.outputs["Output"]

    def set_material(self, geometry, material) -> bpy.types.NodeSocket:
        """The geometry with a material."""
        return self.node("GeometryNodeSetMaterial", {"Geometry": geometry, "Material": material}).outputs["Geometry"]

    def set_radius(self, points, radius) -> bpy.types.NodeSocket:
        """The points with another radius."""
        return self.node("GeometryNodeSetPointRadius", {"Points": points, "Radius": radius}).outputs["Points"]

    def delete_points(self, geometry, selection) -> bpy.types.NodeSocket:
        """The geometry without the points that are selected."""
        inputs = {"Geometry": geometry, "Selection": selection}
        return self.node("GeometryNodeDeleteGeometry", inputs, domain="POINT").outputs["Geometry"]

    def color(self, rgb: bpy.types.NodeSocket, alpha: Any) -> bpy.types.NodeSocket:
        """A colour with alpha of a vector, in geometry nodes."""
        parts = self.node("ShaderNodeSeparateXYZ", {"Vector": rgb}).outputs
        inputs = {"Red": parts["X"], "Green": parts["Y"], "Blue": parts["Z"], "Alpha": alpha}
        return self.node("FunctionNodeCombineColor", inputs).outputs["Color"]

    def arrange(self) -> None:
        """Place the nodes in columns from left to right, so that an artist can read the tree."""
        depth: dict[bpy.types.Node, int] = {}
        feeds: dict[bpy.types.Node, list[bpy.types.Node]] = {node: [] for node in self.tree.nodes}
        for link in self.tree.links:
            feeds[link.from_node].append(link.to_node)

        def columns_after(node: bpy.types.Node) -> int:
            if node not in depth:
                depth[node] = 1 + max(map(columns_after, feeds[node]), default=-1)
            return depth[node]

        heights: dict[int, float] = {}
        for node in self.tree.nodes:
            column = columns_after(node)
            y = heights.get(column, 0.0)
            node.location = (-220 * column, y)
            heights[column] = y - 60 - 22 * (sum(s.enabled for s in node.inputs) + sum(s.enabled for s in node.outputs))


def enabled(sockets: Any, name: str) -> bpy.types.NodeSocket:
    """The first enabled socket of that name or identifier: many nodes hide one of each data type under one name.

    Never by number: Blender 5.3 put a hidden `LightIndex` before Vector Transform's `Vector`, which was number 0. The
    identifier stays where a name is changed (`Fac` is shown as `Factor` in 5.x) and where sockets share one.

    Raises:
        KeyError: If there is none.
    """
    for socket in sockets:
        if socket.enabled and name in (socket.name, socket.identifier):
            return socket
    raise KeyError(f"There is no socket {name!r} among {[s.identifier for s in sockets if s.enabled]}")


def reuse_or_build(
    blocks: Any,
    name: str,
    new: Callable[[], bpy.types.ID],
    build: Callable[[bpy.types.ID], None],
) -> bpy.types.ID:
    """The data-block `name` built here before; built anew, in place, if it is missing, older or for another Blender.

    A data-block of that name from somewhere else, a linked one or one that a newer version built is left alone.
    """
    variant = compat.node_variant()
    ours = (block for block in blocks if block.get(VERSION_KEY) is not None and not block.library)
    block = next((block for block in ours if re.sub(r"\.\d{3,}$", "", block.name) == name), None)
    if block is None:
        block = new()
    elif block[VERSION_KEY] > VERSION or (block[VERSION_KEY], block.get(VARIANT_KEY, "")) == (VERSION, variant):
        return block
    build(block)
    block[VERSION_KEY], block[VARIANT_KEY] = VERSION, variant
    return block


def node_group(
    name: str, inputs: dict[str, str], outputs: dict[str, str]
) -> Callable[[Callable], Callable[[Builder, dict[str, Any]], Any]]:
    """Makes a function that builds nodes a node group of its own; calling it adds that to a tree, its inputs plugged.

    Groups are not for reading alone: Blender looks through the whole tree after every node, link and value, so that one
    tree of 600 nodes takes 5 s to build and several small ones half a second.

    Args:
        name: Of the group; a dot at its front keeps it out of Blender's menus.
        inputs, outputs: Name to kind, as in NodeSocketFloat.

    The function gets a `Builder` and the group's inputs by name, and returns the outputs by name. Its attribute `group`
    builds the group alone.
    """

    def wrap(function: Callable[[Builder, Any], dict[str, bpy.types.NodeSocket]]):
        def build(group: bpy.types.NodeTree) -> None:
            group.nodes.clear()
            group.interface.clear()
            for in_out, sockets in (("INPUT", inputs), ("OUTPUT", outputs)):
                for socket, kind in sockets.items():
                    group.interface.new_socket(socket, in_out=in_out, socket_type=f"NodeSocket{kind}")
            b = Builder(group)
            b.node("NodeGroupOutput", function(b, b.node("NodeGroupInput").outputs))
            b.arrange()

        def group() -> bpy.types.NodeTree:
            new = lambda: bpy.data.node_groups.new(name, "GeometryNodeTree")  # noqa: E731
            return reuse_or_build(bpy.data.node_groups, name, new, build)

        def add(b: Builder, plugs: dict[str, Any]):
            return b.node("GeometryNodeGroup", plugs, node_tree=group()).outputs

        add.__doc__ = function.__doc__
        add.group = group
        return add

    return wrap
