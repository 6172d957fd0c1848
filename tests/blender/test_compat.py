"""What differs between Blender versions. Run: python build.py test tests/blender/test_compat.py"""

from __future__ import annotations

import bpy
import pytest

from lgm_blender.blender import compat


@pytest.fixture
def modifier():
    """A geometry nodes modifier with a number, a switch and a menu of three items."""
    group = bpy.data.node_groups.new("Group", "GeometryNodeTree")
    group.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    group.interface.new_socket("Number", in_out="INPUT", socket_type="NodeSocketFloat")
    group.interface.new_socket("Switch", in_out="INPUT", socket_type="NodeSocketBool")
    group.interface.new_socket("Menu", in_out="INPUT", socket_type="NodeSocketMenu")
    inputs = group.nodes.new("NodeGroupInput")
    menu = group.nodes.new("GeometryNodeMenuSwitch")
    menu.enum_items[0].name, menu.enum_items[1].name = "One", "Two"
    menu.enum_items.new("Three")
    group.links.new(inputs.outputs["Menu"], menu.inputs[0])
    holder = bpy.data.objects.new("Object", bpy.data.meshes.new("Mesh"))
    bpy.context.scene.collection.objects.link(holder)
    modifier = holder.modifiers.new("Nodes", "NODES")
    modifier.node_group = group
    return modifier


def test_eevee_can_be_chosen():
    bpy.context.scene.render.engine = compat.eevee_engine()
    assert bpy.context.scene.render.engine.startswith("BLENDER_EEVEE")


def test_radiance_type_holds_four_floats_as_they_are():
    mesh = bpy.data.meshes.new("Mesh")
    mesh.vertices.add(1)
    attribute = mesh.attributes.new("radiance:base", compat.radiance_type(), "POINT")
    values = [-3.5, 0.25, 7.0, 1.5]
    attribute.data.foreach_set(compat.attribute_property(attribute), values)
    found = [0.0] * 4
    attribute.data.foreach_get(compat.attribute_property(attribute), found)
    assert found == values


@pytest.mark.parametrize(
    ("kind", "name"),
    [("FLOAT", "value"), ("FLOAT_VECTOR", "vector"), ("QUATERNION", "value"), ("FLOAT_COLOR", "color")],
)
def test_attribute_property(kind, name):
    mesh = bpy.data.meshes.new("Mesh")
    assert compat.attribute_property(mesh.attributes.new("a", kind, "POINT")) == name


def test_native_splats_are_found_where_a_point_cloud_has_a_type():
    assert compat.has_native_splats() == hasattr(bpy.data.pointclouds.new("Points"), "type")


@pytest.mark.parametrize("collection", ["materials", "worlds"])
def test_node_tree(collection):
    tree = compat.node_tree(getattr(bpy.data, collection).new("New"))
    assert len(tree.nodes) > 0


def test_has_node():
    assert compat.has_node("GeometryNodeMeshToPoints")
    assert not compat.has_node("GeometryNodeNoSuchThing")


@pytest.mark.parametrize(("name", "value"), [("Number", 2.5), ("Switch", True), ("Menu", "Three"), ("Menu", "One")])
def test_modifier_input(modifier, name, value):
    compat.set_modifier_input(modifier, name, value)
    assert compat.get_modifier_input(modifier, name) == value


def test_modifier_input_refuses_what_is_not_there(modifier):
    with pytest.raises(KeyError):
        compat.set_modifier_input(modifier, "Nonsense", 1)
    with pytest.raises(ValueError, match="'Menu' is one of One, Two, Three, not 'Four'"):
        compat.set_modifier_input(modifier, "Menu", "Four")
