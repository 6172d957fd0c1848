"""A short hand for building node trees, and for finding the ones that are already there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bpy

VERSION_KEY = "lgm_version"  # custom property of what was built here


class Builder:
    """Adds nodes to `tree`. Sockets and plain values may be given wherever an input is wanted."""

    def __init__(self, tree: bpy.types.NodeTree):
        self.tree = tree

    def node(self, kind: str, inputs: dict[str | int, Any] | None = None, **properties) -> bpy.types.Node:
        """A node of type `kind`, its properties set first, then its inputs by name (enabled ones) or by number."""
        node = self.tree.nodes.new(kind)
        for name, value in properties.items():
            setattr(node, name, value)
        for key, value in (inputs or {}).items():
            self.plug(value, node.inputs[key] if isinstance(key, int) else enabled(node.inputs, key))
        return node

    def plug(self, value: Any, socket: bpy.types.NodeSocket) -> None:
        """Link a socket to `socket`, or give it a value."""
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, socket)
        elif value is not None:
            socket.default_value = value

    def math(self, operation: str, *operands, clamp: bool = False) -> bpy.types.NodeSocket:
        """A float operation of one to three operands."""
        return self.node("ShaderNodeMath", dict(enumerate(operands)), operation=operation, use_clamp=clamp).outputs[0]

    def vector(self, operation: str, *operands) -> bpy.types.NodeSocket:
        """A vector operation; dot products, lengths and distances give a float."""
        inputs = dict(enumerate(operands))
        if operation == "SCALE":
            inputs = {0: operands[0], "Scale": operands[1]}
        node = self.node("ShaderNodeVectorMath", inputs, operation=operation)
        return enabled(node.outputs)

    def xyz(self, x: Any, y: Any, z: Any) -> bpy.types.NodeSocket:
        """The vector (x, y, z)."""
        return self.node("ShaderNodeCombineXYZ", {0: x, 1: y, 2: z}).outputs[0]

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


def enabled(sockets: Any, name: str | None = None) -> bpy.types.NodeSocket:
    """The first enabled socket, of that name if one is given: many nodes hide one of each data type under one name."""
    return next(s for s in sockets if s.enabled and name in (None, s.name))


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
