"""Node sockets are addressed by name, never by number. Run: python build.py test tests/blender/test_sockets.py

Blender 5.3 put hidden sockets before the ones that there were: what went into number 0 went nowhere, and splats were
not drawn.
"""

from __future__ import annotations

import ast
from pathlib import Path

import bpy
import pytest

from lgm_blender import blender
from lgm_blender.blender.scene.nodes.build import Builder, enabled
from lgm_blender.blender.scene.nodes.even_light import EvenLight
from lgm_blender.blender.scene.nodes.splat_geometry import splat_geometry
from lgm_blender.blender.scene.nodes.splat_material import splat_material


def numbered(source: str) -> list[int]:
    """The lines of a module that pick a node's socket by a number, written out or counted.

    Sockets are whatever is called `.inputs` or `.outputs`, and names that stand for those.
    """
    nodes = list(ast.walk(ast.parse(source)))

    def is_socket_list(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:  # list(node.inputs)
            return node.func.id in ("list", "tuple") and is_socket_list(node.args[0])
        return getattr(node, "attr", None) in ("inputs", "outputs") or getattr(node, "id", None) in names

    def is_number(node: ast.AST) -> bool:
        if isinstance(node, ast.UnaryOp | ast.BinOp):
            return True  # -1, i + 1
        return isinstance(getattr(node, "value", None), int) or getattr(node, "id", None) in counters

    names, counters = set(), set()
    for node in nodes:
        if isinstance(node, ast.Assign) and is_socket_list(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Call):
            called, target = getattr(node.iter.func, "id", ""), node.target
            first = target.elts[0] if called == "enumerate" and isinstance(target, ast.Tuple) else target
            if called in ("range", "enumerate") and isinstance(first, ast.Name):
                counters.add(first.id)
    found = []
    for node in nodes:
        if isinstance(node, ast.Subscript) and is_socket_list(node.value):
            if isinstance(node.slice, ast.Slice) or is_number(node.slice):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "node":  # Builder.node
            tables = [part for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Dict)]
            found += [key.lineno for table in tables for key in table.keys if key is not None and is_number(key)]
    return found


@pytest.mark.parametrize(
    "line",
    [
        "x = node.outputs[0]",
        "tree.links.new(a.outputs['Color'], b.inputs[-1])",
        "x = node.inputs[1:]",
        "x = list(node.inputs)[0]",
        "given = b.node('NodeGroupInput').outputs\nx = given[2]",
        "parts = node.outputs\nx = [parts[i] for i in range(3)]",
        "for i, axis in enumerate('xyz'):\n    x = node.outputs[i]",
        "b.node('ShaderNodeMixShader', {0: a, 'Shader': c})",
    ],
)
def test_a_number_is_seen(line):
    assert numbered(line)


@pytest.mark.parametrize(
    "line",
    [
        "x = node.outputs['Color'].links[0]",
        "parts = node.outputs\nx = [parts[axis] for axis in 'XYZ']",
        "b.node('ShaderNodeMath', {'Value': 0, 'Value_001': 1}, count=2)",
        "x = rows[0]",
    ],
)
def test_a_name_is_let_through(line):
    assert not numbered(line)


def test_no_socket_is_addressed_by_number():
    modules = sorted(Path(blender.__file__).parent.rglob("*.py"))
    assert {"splat_geometry.py", "splat_material.py", "even_light.py"} <= {path.name for path in modules}
    found = {path.name: numbered(path.read_text(encoding="utf-8")) for path in modules}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_every_link_leads_from_and_to_a_socket_that_is_in_use():
    """Blender takes a link into a hidden socket without a word, and nothing goes through."""
    trees = [splat_geometry(), splat_material().node_tree, EvenLight().shader]
    for tree in trees:
        assert len(tree.links) > 10
        for link in tree.links:
            for node, socket in ((link.from_node, link.from_socket), (link.to_node, link.to_socket)):
                assert socket.enabled, f"{tree.name}: {node.name}, {socket.identifier}"


def test_sockets_are_found_by_name_or_identifier_and_hidden_ones_are_not():
    tree = splat_material().node_tree
    transform = tree.nodes.new("ShaderNodeVectorTransform")
    assert enabled(transform.inputs, "Vector") == transform.inputs["Vector"]
    mix = tree.nodes.new("ShaderNodeMixShader")  # its first input is called Fac in 4.2, and Factor in 5.x
    assert enabled(mix.inputs, "Fac").type == "VALUE"
    assert enabled(mix.inputs, "Shader_001") != enabled(mix.inputs, "Shader")
    for name in ("Nonsense", "Weight"):  # a hidden one of Emission
        with pytest.raises(KeyError, match=name):
            enabled(tree.nodes.new("ShaderNodeEmission").inputs, name)


@pytest.mark.parametrize("operation", ["SUBTRACT", "SQRT", "MULTIPLY_ADD"])
def test_operands_go_where_they_belong(operation):
    b = Builder(bpy.data.node_groups.new("Group", "GeometryNodeTree"))
    values = [2.0, 3.0, 4.0][: {"SQRT": 1, "SUBTRACT": 2}.get(operation, 3)]
    node = b.math(operation, *values).node
    assert [socket.default_value for socket in node.inputs if socket.enabled] == values


def test_vectors_and_their_scale_go_where_they_belong():
    b = Builder(bpy.data.node_groups.new("Group", "GeometryNodeTree"))
    scaled = b.vector("SCALE", (1, 2, 3), 4.0)
    assert tuple(scaled.node.inputs["Vector"].default_value) == (1, 2, 3)
    assert scaled.node.inputs["Scale"].default_value == 4
    dot = b.vector("DOT_PRODUCT", (1, 2, 3), (4, 5, 6))
    assert (dot.type, scaled.type) == ("VALUE", "VECTOR")
    assert [tuple(s.default_value) for s in dot.node.inputs if s.enabled] == [(1, 2, 3), (4, 5, 6)]
