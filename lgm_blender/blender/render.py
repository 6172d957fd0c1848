"""A picture of splats, for a README or beside a batch's results, in a scene of its own."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import bpy
import numpy as np
from mathutils import Matrix

from ..core.cameras import FOV_Y, orbit_camera, pose_to_blender
from ..core.errors import LGMError
from . import compat, splats

SAMPLES = {"CYCLES": 4, "EEVEE": 64}  # Cycles' splats are without noise, samples smooth edges; EEVEE's are drawn by lot
MIN_TRANSPARENT_BOUNCES = 64  # per sample the best picture for the time, measured by benchmarks/splats.py


def render_splats(
    objects: bpy.types.Object | Sequence[bpy.types.Object],
    filepath: str | Path,
    *,
    size: tuple[int, int] = (512, 512),
    samples: int | None = None,
    engine: Literal["CYCLES", "EEVEE"] = "CYCLES",
    background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    pose: np.ndarray | None = None,
    fov_y: float = FOV_Y,
    azimuth: float = 30.0,
    elevation: float = 15.0,
) -> Path:
    """Renders splats alone, with their colours as trained, and leaves nothing behind but the picture.

    Copies of the objects are rendered in a scene that is removed again; the user's are not touched.

    Args:
        objects: One or more, as `splats.add_splats` makes them.
        filepath: A PNG. It is written under another name first and then replaced.
        size: Width and height in pixels.
        samples: Per pixel; None takes 4 in Cycles and 64 in EEVEE.
        background: Its colour as display values 0 to 1, or None for a transparent one.
        pose: Camera-to-world [4, 4] (OpenGL axes, LGM's frame, y up) to look from, in the world's units. None looks
            at the middle of the objects from `azimuth` and `elevation`, from so far that all of them is in the picture.
        fov_y: Vertical field of view in degrees.
        azimuth: Degrees about the up axis; 0 is the front, 90 the object's left.
        elevation: Degrees above the horizon.

    Returns:
        The picture's path.

    Raises:
        LGMError: If there is nothing to render, or the picture can't be written.
    """
    objects = [objects] if isinstance(objects, bpy.types.Object) else list(objects)
    objects = [o for o in objects if splats.is_splats(o)]
    if not objects:
        raise LGMError("There are no splats to render.")
    path = Path(filepath)
    if pose is None:
        pose = _fitted_pose(objects, azimuth, elevation, fov_y, size[0] / size[1])
    with _scene_of_its_own(objects, pose, fov_y) as scene:
        _set_up(scene, size, engine, samples or SAMPLES[engine], background)
        partial = path.with_name(f".lgm-{os.getpid()}.png")
        scene.render.filepath = str(partial)
        try:
            bpy.ops.render.render(write_still=True, scene=scene.name)
            partial.replace(path)
        except (RuntimeError, OSError) as error:
            raise LGMError(f"{path} could not be written: {error}", "output") from error
        finally:
            partial.unlink(missing_ok=True)
    return path


def camera_from_pose(
    pose: np.ndarray, fov_y: float = FOV_Y, *, name: str = "Camera", near: float = 0.01, far: float = 100.0
) -> bpy.types.Object:
    """A camera object, in no collection yet.

    Args:
        pose: Camera-to-world [4, 4], OpenGL axes, in LGM's frame (y up).
        fov_y: Vertical field of view in degrees, whatever the picture's shape.
        near: Distance from the camera's plane up to which nothing is drawn.
        far: Distance beyond which nothing is drawn.
    """
    data = bpy.data.cameras.new(name)
    data.sensor_fit = "VERTICAL"
    data.angle_y = math.radians(fov_y)
    data.clip_start, data.clip_end = near, far
    camera = bpy.data.objects.new(name, data)
    camera.matrix_world = Matrix(pose_to_blender(np.asarray(pose, dtype=np.float64)).tolist())
    return camera


def _fitted_pose(objects, azimuth: float, elevation: float, fov_y: float, aspect: float) -> np.ndarray:
    """The pose from which every solid Gaussian is in the picture, with a margin."""
    points = np.concatenate([_solid_points(o) for o in objects])
    center = (points.min(0) + points.max(0)) / 2
    pose = orbit_camera(elevation, azimuth, radius=1.0).astype(np.float64)
    x, y, back = ((points - center) @ pose[:3, :3]).T
    tangent = 0.9 * math.tan(math.radians(fov_y) / 2)
    distance = max((back + np.abs(y) / tangent).max(), (back + np.abs(x) / (tangent * aspect)).max(), 1e-3)
    pose[:3, 3] = center + distance * pose[:3, 2]
    return pose


def _solid_points(source: bpy.types.Object) -> np.ndarray:
    """[N, 3] world positions, in LGM's frame, of the Gaussians that make up the object, stray ones left out."""
    gaussians = splats.read_splats(source, world=True)
    low, high = splats.extent(gaussians.positions, gaussians.opacities)
    inside = ((gaussians.positions >= low) & (gaussians.positions <= high)).all(1)
    return gaussians.positions[inside]


@contextlib.contextmanager
def _scene_of_its_own(objects, pose: np.ndarray, fov_y: float) -> Iterator[bpy.types.Scene]:
    """A scene with copies of the objects and a camera, all removed at the end."""
    scene = bpy.data.scenes.new("LGM Render")
    made: list[bpy.types.ID] = [scene]
    try:
        scene.world = bpy.data.worlds.new("LGM Render")
        made.append(scene.world)
        reach = float(np.linalg.norm(pose[:3, 3]))
        scene.camera = camera_from_pose(pose, fov_y, name="LGM Render", far=100.0 + 10.0 * reach)
        made += [scene.camera, scene.camera.data]
        scene.collection.objects.link(scene.camera)
        for source in objects:
            copy = source.copy()
            made.append(copy)
            copy.parent = None
            copy.matrix_world = source.matrix_world
            copy.hide_render = False
            scene.collection.objects.link(copy)
            if not compat.has_native_splats():
                modifier = splats.show_splats(copy)
                compat.set_modifier_input(modifier, "Colors", "Exact")
                compat.set_modifier_input(
                    modifier, "Shadows and Reflections", False
                )  # there is nothing to cast them on
        yield scene
    finally:
        bpy.data.batch_remove(made)


def _set_up(scene: bpy.types.Scene, size, engine: str, samples: int, background) -> None:
    """The render settings: a small, even picture of emitting surfaces that no light falls on."""
    render = scene.render
    render.engine = "CYCLES" if engine == "CYCLES" else compat.eevee_engine()
    render.resolution_x, render.resolution_y = size
    render.resolution_percentage = 100
    render.image_settings.file_format = "PNG"
    render.image_settings.color_depth = "8"
    render.image_settings.color_mode = "RGB" if background else "RGBA"
    render.film_transparent = background is None
    render.use_file_extension = False
    render.use_compositing = render.use_sequencer = False
    render.dither_intensity = 0.0
    color = background or (0.0, 0.0, 0.0)
    if compat.has_native_splats():
        scene.view_settings.view_transform = "Standard"
        color = tuple(c / 12.92 if c < 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
    else:
        scene.view_settings.view_transform = "Raw"  # with the trained values, blended as in training
    scene.view_settings.look = "None"
    shader = next(n for n in compat.node_tree(scene.world).nodes if n.type == "BACKGROUND")
    shader.inputs["Color"].default_value = (*color, 1.0)
    splats.prepare_scene_for_splats(scene)
    if engine == "CYCLES":
        cycles = scene.cycles
        cycles.samples = samples
        cycles.use_adaptive_sampling = cycles.use_denoising = False
        cycles.max_bounces = 0
        cycles.min_transparent_bounces = MIN_TRANSPARENT_BOUNCES
    else:
        scene.eevee.taa_render_samples = samples
