"""Where a result comes into a scene, and how a new file shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import bpy
import numpy as np

from . import splat_data, splats
from .capture import SURFACES

GAP = 0.1  # between a result and its neighbour, of the result's size
DISTANCE = 4.0  # from which a result is looked at first, of its size
LARGE = 4.0  # so many times the result's size, and it is a ground or a room rather than a neighbour

ENOUGH = 5_000  # Gaussians that say how large all of them are

# The 3D view of Blender's own new file, in 4.2 and in 5.2: its distance, and the turn of its view (w, x, y, z).
FACTORY_DISTANCES = (17.987, 18.388)
FACTORY_ROTATION = (0.7124, 0.4411, 0.2874, 0.4641)


def place(made: Sequence[bpy.types.Object], scene: bpy.types.Scene) -> None:
    """Moves new objects, which are about the world's origin, to the 3D cursor.

    A cursor that nobody has moved is at the world's origin, where other things may be, the default cube or an earlier
    result: then they come beside these, towards +x.
    """
    low, high = _box_of(made)
    offset = np.array(scene.cursor.location)
    if not offset.any():
        size = float((high - low).max())
        others = [box for box in _boxes(scene, made) if (box[1] - box[0]).max() <= LARGE * size]
        offset = np.array([free_place(low, high, others, GAP * size), 0.0, 0.0])
    for thing in made:
        thing.location = np.array(thing.location) + offset


def free_place(low: np.ndarray, high: np.ndarray, boxes: Sequence[tuple[np.ndarray, np.ndarray]], gap: float) -> float:
    """How far along x a box from `low` [3] to `high` [3] must go so that it meets none of the others."""
    step = 0.0
    while True:
        shift = np.array([step, 0.0, 0.0])
        met = [box for box in boxes if (low + shift < box[1]).all() and (high + shift > box[0]).all()]
        if not met:
            return step
        step = float(max(box[1][0] for box in met) - low[0] + gap)


def show_first(made: Sequence[bpy.types.Object], scene: bpy.types.Scene) -> None:
    """In a new file, has its 3D views show the first result: framed, and with its colours.

    Only views that are as Blender's own new file has them: what somebody has turned or shaded is theirs. Nor does it
    do so in a file that was saved, or that holds a result already.
    """
    if bpy.app.background or bpy.data.filepath or _has_results(made):
        return
    low, high = _box_of(made)
    for window in bpy.context.window_manager.windows:
        if window.scene != scene:
            continue
        for area in window.screen.areas:
            if area.type == "VIEW_3D" and is_untouched(area.spaces.active):
                view = area.spaces.active.region_3d
                view.view_location = (low + high) / 2
                view.view_distance = DISTANCE * float((high - low).max())
                if not draws_without_gpu():
                    area.spaces.active.shading.type = "MATERIAL"  # Solid shows no colours of splats


def draws_without_gpu() -> bool:
    """Whether the processor draws Blender's window: then EEVEE's shaders take it seconds, and are only offered."""
    import gpu  # not there where Blender was built without it

    return gpu.platform.device_type_get() == "SOFTWARE"


def is_untouched(space: bpy.types.SpaceView3D) -> bool:
    """Whether a 3D view is as it is in Blender's own new file."""
    view = space.region_3d
    return (
        space.shading.type == "SOLID"
        and view.view_perspective == "PERSP"
        and any(abs(view.view_distance - distance) < 0.01 for distance in FACTORY_DISTANCES)
        and np.allclose(view.view_rotation, FACTORY_ROTATION, atol=1e-3)
        and np.allclose(view.view_location, 0.0, atol=0.05)
    )


def _has_results(besides: Sequence[bpy.types.Object]) -> bool:
    return any(splats.SETTINGS in thing and thing not in besides for thing in bpy.data.objects)


def _boxes(scene: bpy.types.Scene, besides: Sequence[bpy.types.Object]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The boxes of what a scene shows, but for some objects."""
    layer = scene.view_layers[0]
    for thing in layer.objects:
        if thing.type in SURFACES and thing not in besides and thing.visible_get(view_layer=layer):
            yield _box(thing, np.array(thing.matrix_world))


def _box_of(made: Sequence[bpy.types.Object]) -> tuple[np.ndarray, np.ndarray]:
    boxes = [_box(thing, np.array(thing.matrix_basis)) for thing in made]  # Blender may not know their world's yet
    lows, highs = zip(*boxes, strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _box(thing: bpy.types.Object, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest corner [3] of an object in the world; of splats, without stray ones."""
    if splats.is_splats(thing):
        some = slice(None, None, 1 + splat_data.point_count(thing.data) // ENOUGH)
        opacities = splat_data.get(thing.data, "radiance:base")[some, 3]
        low, high = splats.extent(splat_data.get(thing.data, "position")[some], opacities)
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    else:
        corners = np.array(thing.bound_box)
    corners = corners @ matrix[:3, :3].T + matrix[:3, 3]
    return corners.min(0), corners.max(0)
