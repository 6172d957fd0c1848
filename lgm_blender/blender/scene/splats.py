"""Gaussians to a Blender object, and back.

The object carries the point attributes of Blender 5.3's own splats, so that a scene made in 4.2 moves up by itself:

    position       FLOAT_VECTOR  centres
    scale          FLOAT_VECTOR  standard deviations along the Gaussian's own axes
    rotation       QUATERNION    (w, x, y, z)
    radiance:base  FLOAT4        f_dc red, green, blue as raw coefficients, and opacity 0 to 1 (FLOAT_COLOR before 5.2)

They are the vertices of a mesh without faces, with the node group "LGM Splats" (nodes/splat_geometry.py) to show them,
in every Blender: 5.3's own display blends in linear light, where they were trained to be blended as they are seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import bpy
import numpy as np

from ...core.affine import transformed
from ...core.cameras import from_blender, to_blender
from ...core.errors import LGMError
from ...core.gaussians import SH_C0, Gaussians
from .. import compat
from .nodes.splat_geometry import NAME as MODIFIER
from .nodes.splat_geometry import splat_geometry
from .nodes.splat_material import splat_material

SETTINGS = "lgm"  # custom property: a group of what made the object, for reading
SETTINGS_JSON = "lgm_json"  # the same as JSON text, whole and of any size
FRAME = "lgm_frame"  # custom property: [scale, x, y, z] that took the Gaussians to where the object's data has them

# A ray that meets more surfaces than the first stops: Blender's 8 give 12.8 dB against exact compositing. After the
# second Cycles begins to give up rays by lot: with Blender's 0 the picture is all noise, and with 128 it had speckles
# where a small model's Gaussians lie one behind the other by the hundred.
MAX_TRANSPARENT_BOUNCES = 512
MIN_TRANSPARENT_BOUNCES = 256


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
    gaussians = gaussians.select(gaussians.finite())
    if len(gaussians) == 0:
        raise LGMError(f"{name} holds no Gaussian that could be shown.")
    scene = scene or bpy.context.scene
    factor, offset = _frame(gaussians, size, stand)
    placed = to_blender(gaussians)
    positions = placed.positions * factor + offset
    data = new_splat_data(name, positions.astype(np.float32), placed.scales * factor, placed.rotations, placed)
    made = bpy.data.objects.new(name, data)
    made.location = location
    made[FRAME] = [factor, *offset.tolist()]
    write_settings(made, settings or {})
    (collection or active_collection(scene)).objects.link(made)
    show_splats(made)
    for sentence in prepare_scene_for_splats(scene):
        if on_change is not None:
            on_change(sentence)
    return made


def new_splat_data(
    name: str, positions: np.ndarray, scales: np.ndarray, rotations: np.ndarray, looks: Gaussians
) -> bpy.types.Mesh:
    """A mesh without faces that has the splat attributes.

    Args:
        positions: [N, 3] float32, in the object's space.
        scales: [N, 3], in the object's units.
        rotations: [N, 4], wxyz.
        looks: N Gaussians, of which the colours and opacities are taken.
    """
    data = bpy.data.meshes.new(name)
    data.vertices.add(len(positions))
    data.materials.append(splat_material())
    _put(data, "position", "FLOAT_VECTOR", positions)
    _put(data, "scale", "FLOAT_VECTOR", scales)
    _put(data, "rotation", "QUATERNION", rotations)
    _put(data, "radiance:base", compat.radiance_type(), np.column_stack([looks.f_dc, looks.opacities]))
    data.update_tag()
    return data


def show_splats(made: bpy.types.Object) -> bpy.types.NodesModifier:
    """The modifier that shows an object's splats, added if it isn't there. See `compat.set_modifier_input`."""
    group = splat_geometry()
    modifier = next((m for m in made.modifiers if m.type == "NODES" and m.node_group == group), None)
    if modifier is None:
        modifier = made.modifiers.new(MODIFIER, "NODES")
        modifier.node_group = group
    return modifier


def is_splats(candidate: bpy.types.Object | None) -> bool:
    """Whether an object holds Gaussians: ours, or Blender 5.3's."""
    if candidate is None or candidate.type not in ("MESH", "POINTCLOUD"):
        return False
    attributes = candidate.data.attributes
    return all(n in attributes and attributes[n].domain == "POINT" for n in ("scale", "rotation", "radiance:base"))


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
    if source.mode == "EDIT":
        source.update_from_editmode()
        copy = source.data.copy()  # attributes can't be read of what is being edited, but of its copy
        found = _read_data(copy)
        bpy.data.batch_remove([copy])
    else:
        found = _read_data(source.data)
    if world:
        return from_blender(transformed(found, np.array(source.matrix_world, dtype=np.float64)))
    factor, *offset = source.get(FRAME, (1.0, 0.0, 0.0, 0.0))
    positions = (found.positions - np.array(offset, dtype=np.float32)) / factor
    return from_blender(Gaussians(positions, found.opacities, found.scales / factor, found.rotations, found.colors))


def write_settings(made: bpy.types.Object, settings: dict[str, Any]) -> None:
    """Keeps `settings` on an object: as a group of custom properties to look at, and whole as JSON text."""
    made[SETTINGS] = {key: _as_property(value) for key, value in settings.items() if value is not None}
    made[SETTINGS_JSON] = json.dumps(settings, ensure_ascii=False, default=str)


def read_settings(made: bpy.types.Object) -> dict[str, Any]:
    """The settings that `add_splats` kept on an object; empty if there are none."""
    return json.loads(made.get(SETTINGS_JSON, "{}"))


def prepare_scene_for_splats(scene: bpy.types.Scene) -> list[str]:
    """Raises those render settings of a scene that are too low for splats; lowers none.

    Returns:
        A sentence for each one that was raised.
    """
    changes = []
    cycles = getattr(scene, "cycles", None)  # an add-on that can be turned off
    limits = {
        "transparent_max_bounces": (MAX_TRANSPARENT_BOUNCES, "or rays end before they are through the splats"),
        "min_transparent_bounces": (MIN_TRANSPARENT_BOUNCES, "or splats are full of noise"),
    }
    for setting, (least, reason) in limits.items():
        before = getattr(cycles, setting, least)
        if before < least:
            setattr(cycles, setting, least)
            label = cycles.bl_rna.properties[setting].name
            changes.append(f"Cycles' {label!r} in {scene.name} went from {before} to {least}, {reason}.")
    return changes


def extent(positions: np.ndarray, opacities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner [3] of what is solid among the Gaussians, a few stray ones left out."""
    solid = positions[opacities > 0.2]
    low, high = np.quantile(solid if len(solid) else positions, (0.002, 0.998), axis=0)
    return low, high


def _frame(gaussians: Gaussians, size: float | None, stand: bool) -> tuple[float, np.ndarray]:
    low, high = extent(to_blender(gaussians).positions, gaussians.opacities)
    side = float((high - low).max())
    factor = 1.0 if size is None or side == 0 else size / side
    return factor, np.array([0.0, 0.0, -factor * low[2] if stand else 0.0])


def active_collection(scene: bpy.types.Scene) -> bpy.types.Collection:
    """Where new objects of a scene go."""
    if scene == bpy.context.scene and bpy.context.collection is not None:
        return bpy.context.collection
    return scene.collection


def _read_data(data: bpy.types.ID) -> Gaussians:
    """The Gaussians of a data-block, in the object's space."""
    radiance = _get(data, "radiance:base")
    return Gaussians(
        positions=_get(data, "position"),
        opacities=np.clip(radiance[:, 3], 0, 1),
        scales=_get(data, "scale"),
        rotations=_get(data, "rotation"),
        colors=np.clip(radiance[:, :3] * SH_C0 + 0.5, 0, 1),
    )


def _put(data: bpy.types.ID, name: str, kind: str, values: np.ndarray) -> None:
    attribute = data.attributes.get(name) or data.attributes.new(name, kind, "POINT")
    values = np.ascontiguousarray(values, dtype=np.float32).ravel()
    attribute.data.foreach_set(compat.attribute_property(attribute), values)


def _get(data: bpy.types.ID, name: str) -> np.ndarray:
    attribute = data.attributes[name]
    width = {"FLOAT_VECTOR": 3, "QUATERNION": 4, "FLOAT_COLOR": 4, "FLOAT4": 4}[attribute.data_type]
    values = np.empty(len(attribute.data) * width, dtype=np.float32)
    attribute.data.foreach_get(compat.attribute_property(attribute), values)
    return values.reshape(-1, width)


def _as_property(value: Any) -> Any:
    """A value as a custom property can hold it: integers have 32 bits there, and only flat things are readable."""
    if isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**31):
        return value
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False, default=str)
