"""Small pictures of pictures, by Blender itself: its Python has no Pillow."""

from __future__ import annotations

from pathlib import Path

import bpy

from ...core.batch.run import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH

QUALITY = 75


def write_thumbnail(picture: Path, target: Path) -> None:
    """Writes a small WebP of a picture.

    Raises:
        RuntimeError, OSError, LGMError: If Blender can't read the one or write the other.
    """
    image = bpy.data.images.load(str(picture), check_existing=False)
    scene = bpy.data.scenes.new("LGM Thumbnail")
    try:
        width, height = image.size
        factor = min(1.0, THUMBNAIL_HEIGHT / height, THUMBNAIL_WIDTH / width)
        image.scale(max(1, round(width * factor)), max(1, round(height * factor)))
        scene.view_settings.view_transform = "Standard"
        settings = scene.render.image_settings
        settings.file_format, settings.color_mode, settings.quality = "WEBP", "RGBA", QUALITY
        image.save_render(str(target), scene=scene)
    finally:
        bpy.data.scenes.remove(scene)
        bpy.data.images.remove(image)
