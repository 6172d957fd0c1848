"""Splat objects from Blender 5.3's native splats to points of a mesh, and back, with all that they are."""

from __future__ import annotations

from typing import Any

import bpy

from ...core.errors import LGMError
from .. import compat
from . import repair, splat_data, splats

_NOT_COPIED = {"name", "data", "rna_type", "active_material", "active_material_index", "parent", "mode"}


def convert(source: bpy.types.Object, *, native: bool, data: dict[bpy.types.ID, bpy.types.ID] | None = None):
    """Makes an object's splats native ones, or points of a mesh that are displayed exactly.

    Blender has no way to change an object's type that leaves its modifiers alone, so that another object takes its
    place: with its name, transform, parent, children, collections, modifiers, materials, constraints, animation and
    custom properties. Whatever referred to the old one refers to it.

    Args:
        native: Whether they become native; only Blender 5.3 has those.
        data: Data-blocks that were converted already, by what they were: objects that share one still do.

    Returns:
        The new object, or the old one if it is of that kind.

    Raises:
        LGMError: If it holds no splats or can't be changed, or if there are no native splats in this Blender.
    """
    if not compat.has_native_splats():
        raise LGMError("Native splats are there from Blender 5.3 on. Use that, or leave them as they are.")
    if not splats.is_splats(source):
        raise LGMError(f"{source.name} holds no splats. Select an object that does.")
    if source.library or source.data.library or source.override_library:
        raise LGMError(f"{source.name} is linked from another file and can't be changed here. Make it local first.")
    if source.mode != "OBJECT":
        raise LGMError(f"{source.name} is being edited. Leave Edit Mode first.")
    old, name, data_name = source.data, source.name, source.data.name
    if splat_data.is_native(old) == native:
        return source
    data = {} if data is None else data
    if old not in data:
        repair.mend(old)
        data[old] = splat_data.converted(old, native=native)
    made = bpy.data.objects.new(name, data[old])
    states = [
        (layer, source.select_get(view_layer=layer), layer.objects.active == source, source.hide_get(view_layer=layer))
        for scene in bpy.data.scenes
        for layer in scene.view_layers
        if source.name in layer.objects
    ]
    _copy_properties(source, made, _NOT_COPIED)
    made.parent, made.matrix_parent_inverse = source.parent, source.matrix_parent_inverse
    _copy_custom_properties(source, made)
    for constraint in source.constraints:
        made.constraints.copy(constraint)
    for modifier in source.modifiers:
        _copy_modifier(modifier, made)
    for slot, own in zip(source.material_slots, made.material_slots, strict=True):
        own.link = slot.link
        if slot.link == "OBJECT":
            own.material = slot.material
    _copy_animation(source, made)
    splats.set_display(made, display="Native" if native else "Exact")
    source.user_remap(made)
    bpy.data.objects.remove(source)
    made.name = name
    for layer, selected, active, hidden in states:
        layer.update()  # else it does not know the object yet
        if made.name in layer.objects:
            made.select_set(selected, view_layer=layer)
            made.hide_set(hidden, view_layer=layer)
            if active:
                layer.objects.active = made
    if not old.users:
        del data[old]
        bpy.data.batch_remove([old])
        made.data.name = data_name
    return made


def _copy_properties(source: Any, target: Any, leave: set[str]) -> None:
    """Sets what can be set of a thing as it is on another of its type."""
    for prop in source.bl_rna.properties:
        if prop.identifier in leave or prop.is_readonly:
            continue
        try:
            setattr(target, prop.identifier, getattr(source, prop.identifier))
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue  # what only one kind of object has


def _copy_custom_properties(source: Any, target: Any) -> None:
    for key in source.keys():  # noqa: SIM118 - an object is no dictionary
        value = source[key]
        target[key] = value.to_dict() if hasattr(value, "to_dict") else value


def _copy_modifier(modifier: bpy.types.Modifier, target: bpy.types.Object) -> None:
    try:
        made = target.modifiers.new(modifier.name, modifier.type)
    except (RuntimeError, TypeError):
        made = None
    if made is None:
        print(f"LGM: {modifier.name!r} of {target.name!r} is a modifier that this kind of object can't have.")
        return
    _copy_properties(modifier, made, {"name"})
    if modifier.type == "NODES" and modifier.node_group:
        compat.copy_modifier_inputs(modifier, made)


def _copy_animation(source: bpy.types.Object, target: bpy.types.Object) -> None:
    old = source.animation_data
    if old is None:
        return
    new = target.animation_data_create()
    _copy_properties(old, new, set())
    if old.action is not None:
        new.action = old.action
        new.action_slot = old.action_slot
    for driver in old.drivers:
        new.drivers.from_existing(src_driver=driver)
    for track in old.nla_tracks:
        made = new.nla_tracks.new()
        _copy_properties(track, made, set())
        for strip in track.strips:
            if strip.action is not None:
                copy = made.strips.new(strip.name, int(strip.frame_start), strip.action)
                _copy_properties(strip, copy, {"name"})
