"""A picture of splats and meshes, for a README or beside a batch's results, in a scene of its own."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import bpy
import numpy as np
from mathutils import Matrix

from ...core.cameras import FOV_Y, orbit_camera, points_from_blender, pose_to_blender
from ...core.errors import LGMError
from ...core.files import replacing
from ...core.gaussians import Gaussians
from .. import compat
from . import splats, stage

# Cycles' exact splats have neither noise nor hard edges: one sample at each pixel's centre, where gsplat takes its own,
# is the picture. The edges of meshes want more samples, and so does EEVEE, which picks splats at random.
SAMPLES = {"CYCLES": 1, "EEVEE": 64}
MESH_SAMPLES = 16


def render_objects(
    objects: bpy.types.Object | Sequence[bpy.types.Object],
    filepath: str | Path,
    *,
    size: tuple[int, int] = (512, 512),
    samples: int | None = None,
    engine: Literal["CYCLES", "EEVEE"] = "CYCLES",
    background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    pose: np.ndarray | None = None,
    fov_y: float = FOV_Y,
    near: float = 0.01,
    far: float | None = None,
    azimuth: float = 30.0,
    elevation: float = 15.0,
) -> Path:
    """Renders splats and meshes alone, and leaves nothing behind but the picture.

    Splats are displayed exactly, whatever they are displayed as in their scene, with their colours as trained. Meshes
    have the even light that training views have (nodes/even_light.py).

    Copies of the objects are rendered in a scene that is removed again; the user's are not touched.

    Args:
        objects: One or more, as `splats.add_splats` and `meshes.add_mesh` make them.
        filepath: A PNG. It is written under another name first and then replaced.
        size: Width and height in pixels.
        samples: Per pixel; 1 is at its centre, more are spread over it. None takes 1 in Cycles, 16 if there are meshes,
            and 64 in EEVEE.
        background: Its colour as display values 0 to 1, or None for a transparent one.
        pose: Camera-to-world [4, 4] (OpenGL axes, LGM's frame, y up) to look from, in the world's units. None looks
            at the middle of the objects from `azimuth` and `elevation`, from so far that all of them is in the picture.
        fov_y: Vertical field of view in degrees.
        near: Depth up to which nothing is rendered.
        far: Depth beyond which nothing is rendered; None renders everything.
        azimuth: Degrees about the up axis; 0 is the front, 90 the object's left.
        elevation: Degrees above the horizon.

    Returns:
        The picture's path.

    Raises:
        LGMError: If there is nothing to render, or the picture can't be written.
    """
    objects = [objects] if isinstance(objects, bpy.types.Object) else list(objects)
    objects = [o for o in objects if splats.is_splats(o) or (o.type == "MESH" and o.data.polygons)]
    if not objects:
        raise LGMError("There are no splats and no faces to render. Choose objects that have some.")
    path = Path(filepath)
    if pose is None:
        pose = fitted_pose(objects, azimuth, elevation, fov_y, size[0] / size[1])
    if far is None:
        far = 100.0 + 10.0 * float(np.linalg.norm(pose[:3, 3]))
    with _scene_of_its_own(objects, camera_from_pose(pose, fov_y, near=near, far=far)) as scene:
        _set_up(scene, size, engine, samples or _samples(objects, engine), background)
        with replacing(path) as file, tempfile.TemporaryDirectory(dir=bpy.app.tempdir) as folder:
            scene.render.filepath = str(Path(folder, "render.png"))
            bpy.ops.render.render(write_still=True, scene=scene.name)
            file.write(Path(scene.render.filepath).read_bytes())
    return path


def _samples(objects: Sequence[bpy.types.Object], engine: str) -> int:
    has_mesh = not all(map(splats.is_splats, objects))
    return MESH_SAMPLES if engine == "CYCLES" and has_mesh else SAMPLES[engine]


def camera_from_pose(
    pose: np.ndarray, fov_y: float = FOV_Y, *, name: str = "Camera", near: float = 0.01, far: float = 100.0
) -> bpy.types.Object:
    """A camera object, in no collection yet.

    Args:
        pose: Camera-to-world [4, 4], OpenGL axes, in LGM's frame (y up).
        fov_y: Vertical field of view in degrees, whatever the picture's shape.
        near: Distance from the camera's plane up to which nothing is rendered.
        far: Distance beyond which nothing is rendered.
    """
    data = bpy.data.cameras.new(name)
    data.sensor_fit = "VERTICAL"
    data.angle_y = math.radians(fov_y)
    data.clip_start, data.clip_end = near, far
    camera = bpy.data.objects.new(name, data)
    camera.matrix_world = Matrix(pose_to_blender(np.asarray(pose, dtype=np.float64)).tolist())
    return camera


def fitted_pose(
    objects: Sequence[bpy.types.Object],
    azimuth: float = 30.0,
    elevation: float = 15.0,
    fov_y: float = FOV_Y,
    aspect: float = 1.0,
) -> np.ndarray:
    """The pose [4, 4] in LGM's frame from which every solid Gaussian and every vertex is in the picture, with a margin.

    The arguments are `render_objects`'s; `aspect` is the picture's width by its height.
    """
    points, radii = (np.concatenate(parts) for parts in zip(*map(_points, objects), strict=True))
    center = (points.min(0) + points.max(0)) / 2
    pose = orbit_camera(elevation, azimuth, radius=1.0).astype(np.float64)
    x, y, back = ((points - center) @ pose[:3, :3]).T
    tangent = 0.9 * math.tan(math.radians(fov_y) / 2)
    across = np.maximum(np.abs(y) + radii, (np.abs(x) + radii) / aspect)
    pose[:3, 3] = center + (back + across / tangent).max() * pose[:3, 2]
    return pose


def _points(thing: bpy.types.Object) -> tuple[np.ndarray, np.ndarray]:
    """What there is to see of an object: centres [N, 3] in LGM's frame, in the world's units, and radii [N]."""
    if splats.is_splats(thing):
        solid = _solid(splats.read_splats(thing, world=True))
        return solid.positions, solid.scales.max(1)
    points = np.empty(3 * len(thing.data.vertices), np.float32)
    thing.data.vertices.foreach_get("co", points)
    matrix = np.array(thing.matrix_world)
    points = points.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    return points_from_blender(points), np.zeros(len(points))


def _solid(gaussians: Gaussians) -> Gaussians:
    """The Gaussians that make up the object, stray ones left out."""
    low, high = splats.extent(gaussians.positions, gaussians.opacities)
    return gaussians.select(((gaussians.positions >= low) & (gaussians.positions <= high)).all(1))


@contextlib.contextmanager
def _scene_of_its_own(objects: Sequence[bpy.types.Object], camera: bpy.types.Object) -> Iterator[bpy.types.Scene]:
    """A scene with the camera and copies of the objects, all removed at the end."""
    with stage.own_scene("LGM Render") as (scene, light, made):
        scene.world = bpy.data.worlds.new("LGM Render")
        made.append(scene.world)
        stage.put_camera(scene, camera, made)
        for source in objects:
            copy = source.copy()
            made.append(copy)
            copy.parent = None
            copy.matrix_world = source.matrix_world
            copy.hide_render = False
            scene.collection.objects.link(copy)
            if splats.is_splats(copy):
                # There is nothing to cast shadows on.
                splats.set_display(copy, display="Exact", colors="Exact", shadows="None", relight=False)
                continue
            for slot in copy.material_slots:
                material = light.material(slot.material)
                slot.link = "OBJECT"  # the copy's, where the mesh's own stays as it is
                slot.material = material
        yield scene


def _set_up(scene: bpy.types.Scene, size, engine: str, samples: int, background) -> None:
    stage.set_up_render(scene, size, samples, transparent=background is None)
    shader = next(n for n in compat.node_tree(scene.world).nodes if n.type == "BACKGROUND")
    shader.inputs["Color"].default_value = (*(background or (0.0, 0.0, 0.0)), 1.0)
    splats.prepare_scene_for_splats(scene)
    if engine == "EEVEE":
        scene.render.engine = compat.eevee_engine()
        scene.eevee.taa_render_samples = samples
    else:
        scene.cycles.min_transparent_bounces = splats.MIN_TRANSPARENT_BOUNCES
        if samples == 1:
            scene.cycles.pixel_filter_type = "BOX"
            scene.cycles.filter_width = 0.01
