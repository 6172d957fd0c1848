"""What a 3D view shows of its objects as an image: with alpha, without overlays, from where the view looks.

The picture is cut to the objects, so that they are as large in it as can be, however small they are in the view. It is
taken of a copy of the scene, in which what is not wanted is hidden: nothing of the user's is changed but how the view
is shaded, for the moment of the capture.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import bpy
import numpy as np
from mathutils import Matrix

from ...core.errors import LGMError

SIZE = 512  # pixels of the picture's side; the models see 256
MARGIN = 1.1  # the picture's side by that of what is in it
SURFACES = {"MESH", "CURVE", "SURFACE", "META", "FONT", "CURVES", "POINTCLOUD", "VOLUME", "GREASEPENCIL", "GPENCIL"}
_NOTHING = "There is nothing to be seen in the 3D view. Select an object that is visible, or point the view at one."


class View(NamedTuple):
    """Where a 3D view looks from: Blender's world-to-view matrix [4, 4], its projection [4, 4], and width by height."""

    matrix: np.ndarray
    projection: np.ndarray
    aspect: float


def capture(context: bpy.types.Context, area: bpy.types.Area) -> tuple[bpy.types.Image, float]:
    """The objects of a 3D view, packed into the file, and how many degrees above them the view looks from.

    These are the selected objects that can be seen, with what is parented to them; all that can be seen if there are
    none. The view is shaded as it is, but for wires, X-ray and outlines, and what only Cycles renders: that is shown as
    in Material Preview.

    Args:
        context: Whose scene and selection it is.
        area: Of a 3D view.

    Raises:
        LGMError: If nothing is to be seen, or there is no window.
    """
    if bpy.app.background:
        raise LGMError("A 3D view can only be captured in a window. Render the scene instead, or choose a picture.")
    space, region = area.spaces.active, _region(area)
    there = space.region_3d
    view = View(np.array(there.view_matrix), np.array(there.window_matrix), region.width / region.height)
    wanted, selected = wanted_objects(context)
    with _alone(context, wanted) as (scene, layer), _bare(space, scene):
        corners = _corners(layer.depsgraph)
        if not len(corners):
            raise LGMError(_NOTHING)
        pixels = _draw(scene, layer, space, region, view.matrix, cut(view, corners))
    area.tag_redraw()
    if not pixels[..., 3].any():
        raise LGMError(_NOTHING)
    name = wanted[0].name if len(wanted) == 1 else "Object"
    target = (corners.min(0) + corners.max(0)) / 2 if selected else None
    return _image(f"{name} in View", pixels), elevation(view, target)


def capture_cameras(
    context: bpy.types.Context,
    area: bpy.types.Area,
    cameras: Sequence[bpy.types.Object],
    wanted: Sequence[bpy.types.Object],
    size: int,
) -> list[np.ndarray]:
    """What cameras see of objects, shaded as a 3D view shows them: takes a few milliseconds where there is a GPU.

    Args:
        context: Whose scene it is.
        area: Of the 3D view.
        cameras: Their scale is not asked for.
        wanted: What is to be seen.
        size: Width and height of a picture in pixels.

    Returns:
        Of each camera [size, size, 4] float32, display values 0 to 1 with straight alpha, from below upwards.
    """
    space, region = area.spaces.active, _region(area)
    with _alone(context, list(wanted)) as (scene, layer), _bare(space, scene):
        pictures = []
        for camera in cameras:
            place, turn, _ = camera.matrix_world.decompose()
            matrix = np.linalg.inv(np.array(Matrix.LocRotScale(place, turn, None)))
            projection = np.array(camera.calc_matrix_camera(layer.depsgraph, x=size, y=size))
            pictures.append(_draw(scene, layer, space, region, matrix, projection, size))
    area.tag_redraw()
    return pictures


def wanted_objects(context: bpy.types.Context) -> tuple[list[bpy.types.Object], bool]:
    """The objects to capture, and whether they are the selected ones."""
    visible = [thing for thing in context.visible_objects if _has_surface(thing)]
    chosen = {part for thing in context.selected_objects for part in (thing, *thing.children_recursive)}
    selected = [thing for thing in visible if thing in chosen]
    return (selected, True) if selected else (visible, False)


def _has_surface(thing: bpy.types.Object) -> bool:
    return thing.type in SURFACES or thing.instance_type != "NONE"


def elevation(view: View, target: np.ndarray | None = None) -> float:
    """Degrees that a view looks down from: onto `target` [3], or onto whatever is in its middle; -90 to 90."""
    to_world = np.linalg.inv(view.matrix)
    direction = to_world[:3, 2]
    if target is not None and view.projection[3, 3] == 0:  # a perspective view is at a place
        direction = to_world[:3, 3] - target
    sine = direction[2] / max(float(np.linalg.norm(direction)), 1e-12)
    return round(math.degrees(math.asin(min(1.0, max(-1.0, sine)))), 1)


def cut(view: View, corners: np.ndarray) -> np.ndarray:
    """The projection [4, 4] that shows the points [N, 3] of the world as large as can be in a square picture.

    Where some lie behind a perspective view it shows what the view shows, as much of it as is square.
    """
    clip = np.column_stack([corners, np.ones(len(corners))]) @ (view.projection @ view.matrix).T
    low, high = np.full(2, -1.0), np.full(2, 1.0)
    if (clip[:, 3] > 1e-6).all():
        points = clip[:, :2] / clip[:, 3:]
        low, high = points.min(0), points.max(0)
        side = MARGIN * max((high - low) * (view.aspect, 1.0))
    else:
        side = 2 * min(view.aspect, 1.0)
    scale = 2 / (max(side, 1e-6) / np.array([view.aspect, 1.0]))
    window = np.diag([*scale, 1.0, 1.0])
    window[:2, 3] = -scale * (low + high) / 2
    return window @ view.projection


def _region(area: bpy.types.Area) -> bpy.types.Region:
    """The region that shows the view; of four, the one that can be turned."""
    regions = [region for region in area.regions if region.type == "WINDOW"]
    return (
        next((region for region in regions if getattr(region, "data", None) == area.spaces.active.region_3d), None)
        or (regions[-1])
    )


@contextlib.contextmanager
def _alone(
    context: bpy.types.Context, wanted: list[bpy.types.Object]
) -> Iterator[tuple[bpy.types.Scene, bpy.types.ViewLayer]]:
    """A copy of the scene in which of all surfaces only those are to be seen; gone at the end."""
    scene, wanted = context.scene.copy(), set(wanted)
    try:
        layer = scene.view_layers.get(context.view_layer.name) or scene.view_layers[0]
        layer.update()
        for thing in layer.objects:
            if _has_surface(thing) and thing not in wanted:
                thing.hide_set(True, view_layer=layer)
        scene.render.film_transparent = True
        layer.update()
        yield scene, layer
    finally:
        bpy.data.scenes.remove(scene)


@contextlib.contextmanager
def _bare(space: bpy.types.SpaceView3D, scene: bpy.types.Scene) -> Iterator[None]:
    """The view without overlays and outlines, shaded so that it can be drawn into a picture; afterwards as it was."""
    shading, kind = space.shading, space.shading.type
    if kind == "WIREFRAME":
        kind = "SOLID"
    elif kind == "RENDERED" and scene.render.engine not in ("BLENDER_EEVEE", "BLENDER_EEVEE_NEXT", "BLENDER_WORKBENCH"):
        kind = "MATERIAL"  # other engines draw in windows only
    wanted = [(space.overlay, "show_overlays", False), (shading, "type", kind)]
    if kind == "SOLID":
        wanted += [(shading, "show_object_outline", False), (shading, "show_xray", False)]
    before = []
    try:
        for owner, name, value in wanted:
            if (old := getattr(owner, name)) != value:
                setattr(owner, name, value)
                before.append((owner, name, old))
        yield
    finally:
        for owner, name, old in reversed(before):
            setattr(owner, name, old)


def _corners(depsgraph: bpy.types.Depsgraph) -> np.ndarray:
    """The corners [N, 3] of the boxes of all that is to be seen, in the world."""
    boxes = [np.empty((0, 3))]
    for instance in depsgraph.object_instances:
        thing = instance.object
        if thing.type in SURFACES and instance.show_self:
            matrix = np.array(instance.matrix_world)
            boxes.append(np.array(thing.bound_box) @ matrix[:3, :3].T + matrix[:3, 3])
    return np.concatenate(boxes)


def _draw(scene, layer, space, region, matrix: np.ndarray, projection: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The picture [size, size, 4], from below upwards: display values 0 to 1 with straight alpha."""
    import gpu  # not there where Blender was built without it

    offscreen = gpu.types.GPUOffScreen(size, size)
    try:
        offscreen.draw_view3d(
            scene,
            layer,
            space,
            region,
            Matrix(matrix.tolist()),
            Matrix(projection.tolist()),
            do_color_management=True,
            draw_background=False,
        )
        buffer = offscreen.texture_color.read()
        buffer.dimensions = size * size * 4
        pixels = np.array(buffer, dtype=np.float32).reshape(size, size, 4) / np.float32(255)
    finally:
        offscreen.free()
    alpha = pixels[..., 3:]
    pixels[..., :3] = np.clip(pixels[..., :3] / np.maximum(alpha, 1 / 255), 0, 1)
    return pixels


def _image(name: str, pixels: np.ndarray) -> bpy.types.Image:
    """A picture of this file's own."""
    image = bpy.data.images.new(name, SIZE, SIZE, alpha=True)
    image.pixels.foreach_set(np.ascontiguousarray(pixels, np.float32).ravel())
    image.pack()
    image.use_fake_user = False
    return image
