"""Four cameras around objects, as LGM's stand: they render the four views of what is in the scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Vector

from ...core.cameras import OBJECT_RADIUS, VIEW_AZIMUTHS, orbit_camera, pose_to_blender
from ...core.errors import LGMError
from ...core.messages import VIEW_NAMES
from . import splats, stage, view_maker
from .render import camera_from_pose

NAME = "LGM Views"
SIZE = 256  # pixels of a view's side
SAMPLES = 16  # per pixel; there is no noise but at edges
MESHES = ("MESH", "CURVE", "SURFACE", "META", "FONT")


def add_rig(scene: bpy.types.Scene, objects: Sequence[bpy.types.Object], elevation: float = 0.0) -> bpy.types.Object:
    """An empty with four cameras around objects, which it remembers; without any, at the 3D cursor, one unit large.

    Where it is moved, turned and scaled to, the cameras go along, and so does what is reconstructed.

    Args:
        scene: Gets it.
        objects: What the views are to show; else all that can be rendered but splats.
        elevation: Degrees of the cameras above the middle.
    """
    rig = bpy.data.objects.new(NAME, None)
    rig.empty_display_type = "SPHERE"
    rig.empty_display_size = OBJECT_RADIUS  # what the cameras see whole
    collection = splats.active_collection(scene)
    collection.objects.link(rig)
    for name, azimuth in zip(VIEW_NAMES, VIEW_AZIMUTHS, strict=True):
        camera = camera_from_pose(orbit_camera(elevation, azimuth), name=f"LGM {name.capitalize()}")
        camera.data.display_size = 0.2
        camera.parent = rig
        collection.objects.link(camera)
    for thing in objects:
        rig.lgm_rig.objects.add().object = thing
    rig.lgm_rig.elevation = elevation
    low, high = _bounds(objects)
    rig.location = (low + high) / 2 if objects else scene.cursor.location
    size = (high - low).length / (2 * OBJECT_RADIUS) or 1.0
    rig.scale = (size, size, size)
    return rig


def is_rig(thing: bpy.types.Object | None) -> bool:
    """Whether an object is such an empty, with its four cameras."""
    return thing is not None and thing.type == "EMPTY" and len(cameras(thing)) == len(VIEW_NAMES)


def cameras(rig: bpy.types.Object) -> list[bpy.types.Object]:
    """Its cameras, in the order of VIEW_NAMES; fewer where some are gone."""
    found = {child.name.partition(".")[0]: child for child in rig.children if child.type == "CAMERA"}
    names = [f"LGM {name.capitalize()}" for name in VIEW_NAMES]
    return [found[name] for name in names if name in found]


def set_elevation(rig: bpy.types.Object, elevation: float) -> None:
    """Raises its cameras so many degrees above the middle."""
    for camera, azimuth in zip(cameras(rig), VIEW_AZIMUTHS, strict=False):
        pose = pose_to_blender(orbit_camera(elevation, azimuth).astype(np.float64))
        camera.matrix_parent_inverse.identity()
        camera.matrix_basis = Matrix(pose.tolist())


def seen_objects(rig: bpy.types.Object, scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """What its views show: the objects it remembers and their children, else all that can be rendered but splats."""
    chosen = [row.object for row in rig.lgm_rig.objects if row.object is not None]
    everything = [*chosen, *(child for thing in chosen for child in thing.children_recursive)]
    if not chosen:
        everything = list(scene.objects)
    here = set(scene.objects)
    found = dict.fromkeys(thing for thing in everything if thing in here and not thing.hide_render)
    return [thing for thing in found if thing.type in MESHES and not splats.is_splats(thing)]


def render_views(
    rig: bpy.types.Object, scene: bpy.types.Scene, folder: Path, *, size: int = SIZE, samples: int = SAMPLES
) -> list[Path]:
    """Renders the four views as LGM was trained on them: evenly lit, by Cycles. All that was made for it is removed.

    Args:
        rig: Its cameras look.
        scene: What is in it is seen.
        folder: Gets a PNG with alpha for each view, named by VIEW_NAMES.
        size: Width and height of a view in pixels.
        samples: Per pixel.

    Raises:
        LGMError: If there is nothing to see, or Cycles is turned off.
    """
    if not hasattr(scene, "cycles"):
        raise LGMError("Cycles is turned off. Turn the add-on 'Cycles Render Engine' on in Blender's preferences.")
    objects = seen_objects(rig, scene)
    if not objects:
        raise LGMError("There is nothing that the cameras could see. Select objects and add the cameras again.")
    paths = [folder / f"{name}.png" for name in VIEW_NAMES]
    scale = rig.matrix_world.median_scale
    with stage.own_scene(NAME) as (own, light, made):
        own.frame_set(scene.frame_current, subframe=scene.frame_subframe)
        view_maker.realise(objects, own, light, made)
        stage.put_camera(own, camera_from_pose(np.eye(4), near=0.05 * scale, far=10 * scale), made)
        view_maker.set_up(own, size)
        own.cycles.samples = samples
        for camera, path in zip(cameras(rig), paths, strict=True):
            own.camera.matrix_world = level(camera.matrix_world)
            own.render.filepath = str(path)
            bpy.ops.render.render(write_still=True, scene=own.name)
            if not path.is_file():
                raise LGMError("It could not be rendered. Look into the system console, which says why.", "internal")
    return paths


def level(matrix: Matrix) -> Matrix:
    """A camera's matrix without scale, which Cycles would take for that of the picture."""
    place, turn, _ = matrix.decompose()
    return Matrix.LocRotScale(place, turn, None)


def place(made: bpy.types.Object, rig: bpy.types.Object) -> None:
    """Puts splats or a mesh of LGM's own size and place to where the rig's views have seen them."""
    made.matrix_world = rig.matrix_world


def _bounds(objects: Sequence[bpy.types.Object]) -> tuple[Vector, Vector]:
    """Lowest and highest corner of objects and their children in the world; zeros of none."""
    everything = [*objects, *(child for thing in objects for child in thing.children_recursive)]
    corners = [
        thing.matrix_world @ Vector(corner)
        for thing in everything
        if thing.type in MESHES
        for corner in thing.bound_box
    ]
    if not corners:
        return Vector(), Vector()
    return Vector(map(min, zip(*corners, strict=True))), Vector(map(max, zip(*corners, strict=True)))
