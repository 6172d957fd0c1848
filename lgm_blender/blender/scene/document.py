"""A new .blend with what a job made, a camera, and settings that show it."""

from __future__ import annotations

import os
from pathlib import Path

import bpy

from ...core.errors import LGMError
from ...core.messages import GenerateResult
from .. import compat
from . import render, results, splats

LIT_SAMPLES = 64  # where light falls on a mesh, which has noise
SPLAT_SAMPLES = 3  # exact splats have none; native ones are given what they need


def new_document(result: GenerateResult, object_size: float, size: int, samples: int | None) -> list[bpy.types.Object]:
    """Opens a new file with nothing but the splats, the mesh or both, and a camera; gives the objects.

    Args:
        result: What it names is shown; its files are meant to lie beside the .blend.
        object_size: Longest side of each object in metres; 0 leaves LGM's own.
        size, samples: Pixels a side and samples a pixel of a render, or None for the usual ones.

    Raises:
        LGMError: If a file can't be read.
    """
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    scene = bpy.context.scene
    made = results.add_result(result, scene, max(0.0, object_size) or None)
    beside = {kind: f"//{Path(path).name}" for kind in ("ply", "glb") if (path := getattr(result, kind))}
    for thing in made:
        splats.write_settings(thing, splats.read_settings(thing) | beside)
    results.select(made, scene)
    scene.camera = render.camera_from_pose(render.fitted_pose(made))
    scene.collection.objects.link(scene.camera)
    scene.world = bpy.data.worlds.new("White")
    background = next(node for node in compat.node_tree(scene.world).nodes if node.type == "BACKGROUND")
    background.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = size
    lit = not all(map(splats.is_splats, made))
    scene.cycles.samples = samples or (LIT_SAMPLES if lit else SPLAT_SAMPLES)
    splats.prepare_scene_for_splats(scene)
    scene.view_settings.view_transform = "Standard"  # AgX would mute colours that are meant for the display as they are
    _look_through_the_camera()
    return made


def _look_through_the_camera() -> None:
    for view in (area.spaces.active for screen in bpy.data.screens for area in screen.areas if area.type == "VIEW_3D"):
        view.shading.type = "MATERIAL"
        view.region_3d.view_perspective = "CAMERA"


def save_document(path: Path) -> None:
    """Saves the open file as a compressed .blend whose paths are relative to it.

    Raises:
        LGMError: (kind 'output') If it can't be written.
    """
    partial = path.with_name(f".lgm-{os.getpid()}.blend")  # Blender would keep the old file as a backup
    try:
        bpy.ops.wm.save_as_mainfile(filepath=str(partial), compress=True, relative_remap=True, copy=True)
        partial.replace(path)
    except (RuntimeError, OSError) as error:
        raise LGMError(
            f"{path} could not be written: {str(error).strip()}. Choose another folder or name.", "output"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
