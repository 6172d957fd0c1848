"""A scene of its own to render in, evenly lit and with its colours as they are, of which nothing stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import bpy

from .nodes.even_light import EvenLight


@contextlib.contextmanager
def own_scene(name: str) -> Iterator[tuple[bpy.types.Scene, EvenLight, list[bpy.types.ID]]]:
    """A new scene; a light for what is in it; and a list for all that is made for it, to be removed with it."""
    had_result = any(image.type == "RENDER_RESULT" for image in bpy.data.images)
    scene, light = bpy.data.scenes.new(name), EvenLight()
    made: list[bpy.types.ID] = [scene]
    try:
        yield scene, light, made
    finally:
        if not had_result:
            made += [image for image in bpy.data.images if image.type == "RENDER_RESULT"]
        bpy.data.batch_remove(made + light.made)


def put_camera(scene: bpy.types.Scene, camera: bpy.types.Object, made: list[bpy.types.ID]) -> None:
    """Makes an object the camera of such a scene."""
    made += [camera, camera.data]
    scene.collection.objects.link(camera)
    scene.camera = camera


def set_up_render(scene: bpy.types.Scene, size: tuple[int, int], samples: int, *, transparent: bool) -> None:
    """Settings for a PNG of surfaces that give display values and that no light falls on, by Cycles.

    Args:
        size: Width and height in pixels.
        samples: Per pixel; there is no noise to be seen, so all of them are taken and nothing is smoothed.
        transparent: Whether the background is, or else shows the world.
    """
    render = scene.render
    render.engine = "CYCLES"
    render.resolution_x, render.resolution_y = size
    render.resolution_percentage = 100
    render.image_settings.file_format = "PNG"
    render.image_settings.color_depth = "8"
    render.image_settings.color_mode = "RGBA" if transparent else "RGB"
    render.film_transparent = transparent
    render.use_file_extension = render.use_compositing = render.use_sequencer = False
    render.dither_intensity = 0.0
    scene.view_settings.view_transform = "Raw"
    scene.view_settings.look = "None"
    if hasattr(scene, "cycles"):  # it may be turned off where another engine renders
        scene.cycles.samples = samples
        scene.cycles.use_adaptive_sampling = scene.cycles.use_denoising = False
        scene.cycles.max_bounces = 0
