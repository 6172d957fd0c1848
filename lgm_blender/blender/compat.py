"""Everything that differs between Blender versions (4.2 to 5.3), and nothing else.

What can be asked of Blender is asked; no version number is compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import bpy


def _enum_items(owner: type, name: str) -> set[str]:
    prop = owner.bl_rna.properties.get(name)
    return {item.identifier for item in prop.enum_items} if prop is not None and prop.type == "ENUM" else set()


def eevee_engine() -> str:
    """The identifier of EEVEE: 'BLENDER_EEVEE_NEXT' in 4.x, 'BLENDER_EEVEE' in 5.x."""
    # 4.2 lists EEVEE alone among the built-in engines, under its own name.
    engines = _enum_items(bpy.types.RenderSettings, "engine")
    return "BLENDER_EEVEE_NEXT" if "BLENDER_EEVEE_NEXT" in engines else "BLENDER_EEVEE"


def has_native_splats() -> bool:
    """Whether point clouds can be Gaussian splats by themselves (Blender 5.3)."""
    return "GAUSSIAN_SPLAT" in _enum_items(bpy.types.PointCloud, "type")


def node_variant() -> str:
    """Names what this Blender's nodes can do: node groups in a file that were built for another are built anew."""
    return " ".join(["splats"] * has_native_splats() + ["camera"] * has_node("GeometryNodeCameraInfo"))


NATIVE_SPLATS = "3D Gaussian Splat"  # what the node Set Point Cloud Type calls them


def radiance_type() -> str:
    """The attribute type of `radiance:base`: 'FLOAT4' where there is one (5.2), else 'FLOAT_COLOR'.

    Both hold four floats as they are, and geometry nodes read either as a colour.
    """
    return "FLOAT4" if "FLOAT4" in _enum_items(bpy.types.Attribute, "data_type") else "FLOAT_COLOR"


def attribute_property(attribute: bpy.types.Attribute) -> str:
    """The name by which `foreach_get` and `foreach_set` reach an attribute's values."""
    return next(
        name
        for name in ("value", "vector", "color")
        if name in attribute.bl_rna.properties["data"].fixed_type.properties
    )


@contextlib.contextmanager
def writing_png(settings: bpy.types.ImageFormatSettings) -> Iterator[None]:
    """Has `save_render` write a PNG with alpha, as the scene shows it, whatever it is set to; afterwards as it was.

    From 5.0 pictures and films are different kinds of formats.
    """
    wanted = {"media_type": "IMAGE", "file_format": "PNG", "color_mode": "RGBA", "color_depth": "8"}
    wanted["color_management"] = "FOLLOW_SCENE"
    wanted = {name: value for name, value in wanted.items() if hasattr(settings, name)}
    before = {name: getattr(settings, name) for name in wanted}  # of the format that there was
    try:
        for name, value in wanted.items():
            setattr(settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def node_tree(owner: bpy.types.Material | bpy.types.World) -> bpy.types.NodeTree:
    """The node tree of a material or world; up to 4.x it has to be asked for, from 5.0 it is always there."""
    if owner.node_tree is None:
        owner.use_nodes = True
    return owner.node_tree


def modifier_inputs(group: bpy.types.NodeTree) -> dict[str, bpy.types.NodeTreeInterfaceSocket]:
    """The inputs of a node group by name."""
    return {
        item.name: item for item in group.interface.items_tree if item.item_type == "SOCKET" and item.in_out == "INPUT"
    }


def modifier_input_property(modifier: bpy.types.NodesModifier, name: str) -> tuple[Any, str]:
    """What a layout's `prop` takes to draw a geometry nodes modifier's input: its owner and its path."""
    identifier = modifier_inputs(modifier.node_group)[name].identifier
    if hasattr(modifier, "properties"):  # 5.2
        return getattr(modifier.properties.inputs, identifier), "value"
    return modifier, f'["{identifier}"]'


def get_modifier_input(modifier: bpy.types.NodesModifier, name: str) -> Any:
    """The value of a geometry nodes modifier's input; a menu's is the item's name."""
    socket = modifier_inputs(modifier.node_group)[name]
    if hasattr(modifier, "properties"):  # 5.2
        return getattr(modifier.properties.inputs, socket.identifier).value
    value = modifier[socket.identifier]
    return menu_items(modifier.node_group, name)[value] if socket.socket_type == "NodeSocketMenu" else value


def set_modifier_input(modifier: bpy.types.NodesModifier, name: str, value: Any) -> None:
    """Set a geometry nodes modifier's input; a menu takes the item's name.

    Raises:
        KeyError: If the group has no such input.
        ValueError: If the menu has no such item.
    """
    socket = modifier_inputs(modifier.node_group)[name]
    menu = socket.socket_type == "NodeSocketMenu"
    if menu and value not in (items := menu_items(modifier.node_group, name)):
        raise ValueError(f"{name!r} is one of {', '.join(items)}, not {value!r}")
    if hasattr(modifier, "properties"):  # 5.2
        getattr(modifier.properties.inputs, socket.identifier).value = value
    else:
        modifier[socket.identifier] = items.index(value) if menu else value
    modifier.id_data.update_tag()


def menu_items(group: bpy.types.NodeTree, name: str) -> list[str]:
    """A menu input's items: those of the Menu Switch that it is linked to."""
    for link in group.links:
        if (
            link.from_node.type == "GROUP_INPUT"
            and link.from_socket.name == name
            and link.to_node.type == "MENU_SWITCH"
        ):
            return [item.name for item in link.to_node.enum_items]
    raise KeyError(f"{group.name!r} has no menu {name!r}")


def has_node(kind: str) -> bool:
    """Whether there is a node of that type, e.g. 'GeometryNodeCameraInfo' (5.x)."""
    return hasattr(bpy.types, kind)


def uses_nodes(material: bpy.types.Material) -> bool:
    """Whether a material looks as its nodes say; up to 4.x it may have none, or they may be turned off."""
    if getattr(material.bl_rna.properties["use_nodes"], "is_deprecated", False):  # from 5.0 it is always on
        return True
    return material.node_tree is not None and material.use_nodes


def import_fbx(path: str) -> None:
    """Import an FBX file: Blender's own importer from 4.5, before that the add-on's."""
    try:
        bpy.ops.wm.fbx_import.get_rna_type()
    except KeyError:
        bpy.ops.import_scene.fbx(filepath=path)
    else:
        bpy.ops.wm.fbx_import(filepath=path)


def copy_modifier_inputs(source: bpy.types.NodesModifier, target: bpy.types.NodesModifier) -> None:
    """Gives a geometry nodes modifier the inputs of another of the same group, attributes that they name included."""
    if not hasattr(source, "properties"):  # before 5.2
        for key in source.keys():  # noqa: SIM118 - a modifier is no dictionary
            target[key] = source[key]
        return
    items = source.node_group.interface.items_tree
    for socket in (item for item in items if item.item_type == "SOCKET" and item.in_out == "INPUT"):
        there = getattr(source.properties.inputs, socket.identifier, None)
        if there is None:  # geometry is no value
            continue
        here = getattr(target.properties.inputs, socket.identifier)
        for prop in there.bl_rna.properties:
            if not prop.is_readonly:
                setattr(here, prop.identifier, getattr(there, prop.identifier))
