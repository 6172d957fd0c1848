"""Gaussians to a Blender object, and back.

In Blender 5.3 the object is a point cloud of native splats, before that a mesh without faces (splat_data.py). On either
the node group "LGM Splats" (nodes/splat_geometry.py) shows what the user asks for: native splats, which blend in linear
light, or the exact picture, blended as they were trained to be, in display space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import bpy
import numpy as np

from ...core.affine import transformed
from ...core.cameras import from_blender, to_blender
from ...core.errors import LGMError
from ...core.gaussians import Gaussians
from .. import compat
from . import splat_data
from .nodes.build import VERSION_KEY
from .nodes.splat_geometry import NAME as MODIFIER
from .nodes.splat_geometry import splat_geometry
from .nodes.splat_inputs import ALL_INPUTS, inputs

SETTINGS = "lgm"  # custom property: a group of what made the object, for reading
SETTINGS_JSON = "lgm_json"  # the same as JSON text, whole and of any size
FRAME = "lgm_frame"  # custom property: [scale, x, y, z] that took the Gaussians to where the object's data has them

# A ray that meets more surfaces than the first stops: Blender's 8 give 12.8 dB against exact compositing. After the
# second Cycles begins to give up rays by lot: with Blender's 0 the picture is all noise, and with 128 it had speckles
# where a small model's Gaussians lie one behind the other by the hundred.
MAX_TRANSPARENT_BOUNCES = 512
MIN_TRANSPARENT_BOUNCES = 256
MOST_IN_VIEWPORT = {"Native": 2_000_000, "Exact": 500_000}  # Gaussians of an object, or the viewport becomes slow
NATIVE_SAMPLES = 16  # a ray meets native splats by lot: with denoising so many look clean


def add_splats(
    gaussians: Gaussians,
    name: str,
    *,
    scene: bpy.types.Scene | None = None,
    collection: bpy.types.Collection | None = None,
    settings: dict[str, Any] | None = None,
    size: float | None = None,
    location: tuple[float, float, float] = (0.0, 0.0, 0.0),
    stand: bool = True,
    on_change: Callable[[str], None] | None = None,
) -> bpy.types.Object:
    """Adds Gaussians to a scene as one object whose front faces -y.

    Works without a window, and calls no operator.

    Args:
        gaussians: In LGM's frame.
        name: Of the object and its data; Blender adds a number if it is taken.
        scene: Which gets the object, and whose render settings are raised to what splats need; the current one.
        collection: Which gets the object; the active one of the scene.
        settings: What made the Gaussians (seed, prompt, ...), kept on the object: `read_settings`.
        size: Longest side of the object in metres, stray Gaussians aside; None leaves LGM's own, 1 unit a metre.
        location: Of the object's origin.
        stand: Whether the origin is under the object, so that it stands on the ground there; else in LGM's centre.
        on_change: Is told, in a sentence, each render setting that was raised.

    Raises:
        LGMError: If there is no Gaussian, or none whose numbers are finite.
    """
    gaussians = gaussians.only_finite([])
    if len(gaussians) == 0:
        raise LGMError(f"{name} holds no Gaussian that could be shown. Choose another file.")
    scene = scene or bpy.context.scene
    placed = to_blender(gaussians)
    factor, offset = _frame(placed, size, stand)
    placed = replace(placed, positions=placed.positions * factor + offset, scales=placed.scales * factor)
    data = splat_data.new_data(name, placed, native=compat.has_native_splats())
    made = bpy.data.objects.new(name, data)
    made.location = location
    made[FRAME] = [factor, *offset.tolist()]
    write_settings(made, settings or {})
    (collection or active_collection(scene)).objects.link(made)
    show_splats(made)
    changes = prepare_scene_for_splats(scene)
    most = MOST_IN_VIEWPORT["Native" if splat_data.is_native(data) else "Exact"]
    if len(gaussians) > most:
        set_display(made, viewport_amount=most / len(gaussians))
        changes.append(
            f"{name} has {len(gaussians):,} Gaussians; the viewport shows {most:,} of them (its Viewport Amount)."
        )
    for sentence in changes:
        if on_change is not None:
            on_change(sentence)
    return made


def replace_splats(target: bpy.types.Object, gaussians: Gaussians) -> None:
    """Gives an object other Gaussians, in the size and place of those it has.

    Args:
        target: As `add_splats` made it.
        gaussians: In LGM's frame, like those it was made of.

    Raises:
        LGMError: If there is none that could be shown, or the object can't be changed.
    """
    if not is_splats(target) or target.library or target.data.library or target.mode != "OBJECT":
        raise LGMError(
            f"{target.name} can't be changed: it is linked, being edited, or holds no splats. Choose another."
        )
    gaussians = gaussians.only_finite([])
    if len(gaussians) == 0:
        raise LGMError(f"{target.name} would hold no Gaussian that could be shown. Change the views.")
    factor, *offset = target.get(FRAME, (1.0, 0.0, 0.0, 0.0))
    placed = to_blender(gaussians)
    positions = placed.positions * factor + np.array(offset, np.float32)
    placed = replace(placed, positions=positions, scales=placed.scales * factor)
    before, native = target.data, splat_data.is_native(target.data)
    target.data = splat_data.new_data(before.name, placed, native=native)
    for material in before.materials:
        target.data.materials.append(material)
    if not before.users:
        name = before.name
        bpy.data.batch_remove([before])
        target.data.name = name


def show_splats(made: bpy.types.Object) -> bpy.types.NodesModifier:
    """The modifier that shows an object's splats, added if it isn't there. See `compat.set_modifier_input`."""
    group = splat_geometry()  # made anew in place where it is older
    modifier = display_modifier(made)
    if modifier is None:
        modifier = made.modifiers.new(MODIFIER, "NODES")
        modifier.node_group = group
        if splat_data.is_native(made.data):
            compat.set_modifier_input(modifier, "Display", "Native")
        if splat_data.harmonic_count(made.data):
            compat.set_modifier_input(modifier, "View-Dependent", True)
    return modifier


def display_modifier(made: bpy.types.Object) -> bpy.types.NodesModifier | None:
    """The modifier that shows an object's splats, if it has one."""
    groups = (m for m in made.modifiers if m.type == "NODES" and m.node_group is not None)
    return next((m for m in groups if m.node_group.get(VERSION_KEY) is not None), None)


def renew_displays() -> None:
    """Makes the node group of this file anew if an older version or another Blender has made it, whose nodes differ."""
    if any(group.get(VERSION_KEY) is not None and not group.library for group in bpy.data.node_groups):
        splat_geometry()


def set_display(made: bpy.types.Object, **values: Any) -> bpy.types.NodesModifier:
    """Sets how an object's splats are shown; inputs that this Blender hasn't (`display` before 5.3) are passed over.

    Args:
        values: Of the inputs of nodes/splat_inputs.py, in snake case: display="Exact", min_opacity=0.1.

    Raises:
        KeyError: If there is no such input in any Blender.
        ValueError: If a menu has no such item.
    """
    modifier = show_splats(made)
    names = {row.name.lower().replace(" ", "_").replace("-", "_"): row.name for row in ALL_INPUTS}
    here = {row.name for row in inputs()}
    for key, value in values.items():
        if names[key] in here:
            compat.set_modifier_input(modifier, names[key], value)
    return modifier


def is_splats(candidate: bpy.types.Object | None) -> bool:
    """Whether an object holds Gaussians: ours, or Blender 5.3's."""
    return candidate is not None and splat_data.is_splat_data(candidate.data)


def read_splats(source: bpy.types.Object, *, world: bool = False) -> Gaussians:
    """The Gaussians of an object, in LGM's frame.

    Args:
        source: As `add_splats` made it; its modifiers are not applied.
        world: Whether they stay where they are in the world, the object's transform applied. Otherwise that, the size
            and the standing that `add_splats` gave are undone: what went in comes out.

    Raises:
        LGMError: If the object holds no Gaussians.
    """
    if not is_splats(source):
        raise LGMError("That object holds no Gaussian splats. Choose one that LGM made or imported.")
    if source.mode == "EDIT" and source.type == "MESH":
        source.update_from_editmode()
        copy = source.data.copy()  # attributes can't be read of what is being edited, but of its copy
        found = splat_data.read_data(copy)
        bpy.data.batch_remove([copy])
    else:
        found = splat_data.read_data(source.data)
    if world:
        return from_blender(transformed(found, np.array(source.matrix_world, dtype=np.float64)))
    factor, *offset = source.get(FRAME, (1.0, 0.0, 0.0, 0.0))
    positions = (found.positions - np.array(offset, dtype=np.float32)) / factor
    return from_blender(replace(found, positions=positions, scales=found.scales / factor))


def write_settings(made: bpy.types.Object, settings: dict[str, Any]) -> None:
    """Keeps `settings` on an object: as a group of custom properties to look at, and whole as JSON text."""
    made[SETTINGS] = {key: _as_property(value) for key, value in settings.items() if value is not None}
    made[SETTINGS_JSON] = json.dumps(settings, ensure_ascii=False, default=str)


def read_settings(made: bpy.types.Object) -> dict[str, Any]:
    """The settings that `add_splats` kept on an object; empty if there are none."""
    return json.loads(made.get(SETTINGS_JSON, "{}"))


def prepare_scene_for_splats(scene: bpy.types.Scene, *, chosen: bool = True) -> list[str]:
    """Raises those render settings of a scene that are too low for splats; lowers none.

    Args:
        chosen: Whether also those that somebody has set; else only what is as Blender sets it, or lower still.

    Returns:
        A sentence for each one that was raised.
    """
    changes = []
    for setting, least, reason in _too_low(scene):
        rna, before = scene.cycles.bl_rna.properties[setting], getattr(scene.cycles, setting)
        if chosen or before <= rna.default:
            setattr(scene.cycles, setting, least)
            changes.append(
                f"Cycles' {rna.name!r} in {scene.name} went from {_told(before)} to {_told(least)}, {reason}."
            )
    return changes


def settings_too_low(scene: bpy.types.Scene) -> list[str]:
    """A sentence for each render setting of a scene that is too low for the splats that it holds; changes nothing."""
    low = _too_low(scene)
    if not low or next(shown_splats(scene), None) is None:
        return []
    cycles = scene.cycles
    return [
        f"Cycles' {cycles.bl_rna.properties[setting].name!r} is {_told(getattr(cycles, setting))}, and should be "
        f"{_told(least)}, {reason}."
        for setting, least, reason in low
    ]


def shown_splats(scene: bpy.types.Scene) -> Iterator[bpy.types.Object]:
    """The objects of a scene that hold splats, linked ones and those of instanced collections among them."""
    if not len(bpy.data.pointclouds) and all(group.get(VERSION_KEY) is None for group in bpy.data.node_groups):
        return  # a file without any, as most are: its objects need not be looked at
    instanced = set()
    waiting = [scene.objects]
    while waiting:
        for thing in waiting.pop():
            if is_splats(thing):
                yield thing
            elif thing.instance_type == "COLLECTION" and thing.instance_collection not in {None, *instanced}:
                instanced.add(thing.instance_collection)
                waiting.append(thing.instance_collection.all_objects)


def shown_native(thing: bpy.types.Object) -> bool:
    """Whether an object's splats are rendered as Blender's own."""
    if not splat_data.is_native(thing.data):
        return False
    modifier = display_modifier(thing)
    if modifier is None:
        return True
    if "Display" not in compat.modifier_inputs(modifier.node_group):  # a group that an older Blender made
        return False
    return compat.get_modifier_input(modifier, "Display") == "Native"


def _too_low(scene: bpy.types.Scene) -> list[tuple[str, int | bool, str]]:
    """Cycles' settings that are too low, each with what it has to be at least and why."""
    cycles = getattr(scene, "cycles", None)  # an add-on that can be turned off
    limits = [
        ("transparent_max_bounces", MAX_TRANSPARENT_BOUNCES, "or rays end before they are through the splats"),
        ("min_transparent_bounces", MIN_TRANSPARENT_BOUNCES, "or splats are full of noise"),
    ]
    natively = [("samples", NATIVE_SAMPLES, "or native splats are full of noise")]
    natively += [("use_denoising", True, "or native splats are full of noise")]
    low = [row for row in limits if getattr(cycles, row[0], row[1]) < row[1]]
    low_natively = [row for row in natively if getattr(cycles, row[0], row[1]) < row[1]]
    if low_natively and compat.has_native_splats() and any(map(shown_native, shown_splats(scene))):
        low += low_natively
    return low


def _told(value: int | bool) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def extent(positions: np.ndarray, opacities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner [3] of what is solid among the Gaussians, a few stray ones left out."""
    solid = positions[opacities > 0.2]
    low, high = np.quantile(solid if len(solid) else positions, (0.002, 0.998), axis=0)
    return low, high


def _frame(placed: Gaussians, size: float | None, stand: bool) -> tuple[float, np.ndarray]:
    """The factor and the offset [3] that give Gaussians in Blender's axes their size, and stand them on the ground."""
    low, high = extent(placed.positions, placed.opacities)
    side = float((high - low).max())
    factor = 1.0 if size is None or side == 0 else size / side
    return factor, np.array([0.0, 0.0, -factor * low[2] if stand else 0.0])


def active_collection(scene: bpy.types.Scene) -> bpy.types.Collection:
    """Where new objects of a scene go."""
    if scene == bpy.context.scene and bpy.context.collection is not None:
        return bpy.context.collection
    return scene.collection


def _as_property(value: Any) -> Any:
    """A value as a custom property can hold it: integers have 32 bits there, and only flat things are readable."""
    if isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**31):
        return value
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False, default=str)
