"""A short hand for building node trees, and for finding the ones that are already there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bpy

VERSION_KEY = "lgm_version"  # custom property of what was built here

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
    blocks: Any, name: str, version: int, new: Callable[[], bpy.types.ID], build: Callable[[bpy.types.ID], None]
) -> bpy.types.ID:
    """The data-block `name` built here before; built anew, in place, if it is missing or of an older version.

    A data-block of that name from somewhere else, a linked one or one that a newer version built is left alone.
    """
    block = next(
        (b for b in blocks if b.get(VERSION_KEY) is not None and b.name.split(".")[0] == name and not b.library), None
    )
    if block is None:
        block = new()
    elif block[VERSION_KEY] >= version:
        return block
    build(block)
    block[VERSION_KEY] = version
    return block
