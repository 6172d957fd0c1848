"""What a job of the worker made, to the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bpy

from ...core.formats.gltf import GlbMesh, read_glb
from ...core.formats.ply import read_ply
from ...core.gaussians import Gaussians
from ...core.messages import GenerateResult, MeshResult, Result
from . import meshes, splats

SIZE = 1.0  # longest side in metres of what comes into the scene, if nobody says otherwise
GAP = 0.1  # between splats and their mesh, of the splats' width


class Files(NamedTuple):
    """What a result's files hold; None where there is no such file."""

    gaussians: Gaussians | None
    mesh: GlbMesh | None


def read_files(result: Result, on_warning: Callable[[str], None] | None = None) -> Files:
    """Reads a result's files. Any thread may: nothing of Blender's is touched.

    Raises:
        LGMError: If a file can't be read.
    """
    ply = getattr(result, "ply", None)
    mesh = read_glb(result.glb) if result.glb else None
    return Files(read_ply(ply, on_warning=on_warning) if ply else None, mesh)


def add_result(
    result: GenerateResult,
    scene: bpy.types.Scene,
    size: float | None = None,
    on_change: Callable[[str], None] | None = None,
    files: Files | None = None,
) -> list[bpy.types.Object]:
    """Adds what `generate` made: the splats, the mesh, or both next to each other, the splats first.

    Args:
        result: Its files are there.
        size: Longest side of each object in metres; None leaves LGM's own, 1 unit a metre.
        on_change: Is told, in sentences, what was amiss with a file, and what was changed in the scene.
        files: What they hold, where they have been read.

    Raises:
        LGMError: If a file can't be read.
    """
    made, settings = [], result_settings(result)
    gaussians, mesh = files or read_files(result, on_change)  # before anything is in the scene
    if gaussians is not None:
        name = Path(result.ply).stem
        made.append(splats.add_splats(gaussians, name, settings=settings, scene=scene, size=size, on_change=on_change))
    if mesh is not None:
        name = Path(result.glb).stem
        made.append(meshes.add_mesh(mesh, f"{name} Mesh" if made else name, settings=settings, scene=scene, size=size))
    if len(made) == 2:
        low, high = splats.extent(gaussians.positions, gaussians.opacities)
        factor = made[0][splats.FRAME][0]
        left = min(corner[0] for corner in made[1].bound_box)
        made[1].location.x = factor * float(high[0] + GAP * (high[0] - low[0])) - left
    return made


def add_converted(
    result: MeshResult,
    name: str,
    scene: bpy.types.Scene,
    source: bpy.types.Object | None,
    files: Files | None = None,
) -> bpy.types.Object:
    """Adds the mesh of splats that are in the scene: in their place and their collection. They are hidden.

    Args:
        result: Of a PLY of the splats as they are in the world (`splats.read_splats`).
        name: Of the new object.
        source: The splats' object, or None if it is gone by now. While the user edits it, it stays in sight.
        files: What they hold, where they have been read.

    Raises:
        LGMError: If the file can't be read.
    """
    homes = set(source.users_collection if source else ()) & {scene.collection, *scene.collection.children_recursive}
    made = meshes.add_mesh(
        (files or read_files(result)).mesh,
        name,
        scene=scene,
        collection=next(iter(homes), None),
        settings=result_settings(result),
        location=None,
    )
    if homes and source.mode == "OBJECT":
        source.hide_render = True
        for layer in scene.view_layers:
            layer.update()  # else it may not know the object yet
            if source.name in layer.objects:
                source.hide_set(True, view_layer=layer)
    return made


def select(made: Sequence[bpy.types.Object], scene: bpy.types.Scene) -> None:
    """Makes objects the selected ones and the first active, unless the user is in the middle of editing another."""
    for layer in scene.view_layers:
        layer.update()  # else it does not know the objects yet
        here = [thing for thing in made if thing.name in layer.objects]
        active = layer.objects.active
        if not here or (active and active.mode != "OBJECT"):
            continue
        for other in layer.objects.selected:
            other.select_set(False, view_layer=layer)
        for thing in here:
            thing.select_set(True, view_layer=layer)
        layer.objects.active = here[0]


def push_undo(message: str) -> None:
    """Makes what was done since the last step one step of Blender's undo history."""
    manager = bpy.context.window_manager
    window = bpy.context.window or (manager.windows[0] if manager and manager.windows else None)
    if window is None or bpy.app.background:
        return
    with bpy.context.temp_override(window=window):
        bpy.ops.ed.undo_push(message=message)


def result_settings(result: Result) -> dict[str, Any]:
    """What is stored on the object: the settings, the seed and the prompt, and what made it."""
    settings = {key: value for key, value in result.settings.items() if value is not None}
    if isinstance(result, MeshResult):
        del settings["ply"], settings["up"]  # a file for the worker that is gone by now
    facts = {"device": result.device, "versions": getattr(result, "versions", None)}
    facts |= {"ply": getattr(result, "ply", None), "glb": result.glb}
    return settings | {key: value for key, value in facts.items() if value}
