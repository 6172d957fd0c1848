"""WebP pictures by Blender itself, for SOG: Blender's Python has no Pillow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import bpy
import numpy as np

LOSSLESS = 100  # of Blender's quality: at 100 its WebP loses nothing


def decode(data: bytes) -> np.ndarray:
    """[H, W, 4] uint8 of a WebP file.

    Raises:
        RuntimeError: If Blender can't read it.
    """
    with tempfile.TemporaryDirectory(prefix="lgm_", dir=bpy.app.tempdir) as folder:
        path = Path(folder, "picture.webp")
        path.write_bytes(data)
        image = bpy.data.images.load(str(path), check_existing=False)
        try:
            image.colorspace_settings.name = "Non-Color"
            image.alpha_mode = "CHANNEL_PACKED"
            width, height = image.size
            pixels = np.empty(width * height * 4, np.float32)
            image.pixels.foreach_get(pixels)
        finally:
            bpy.data.images.remove(image)
    np.rint(pixels * 255, out=pixels)
    return pixels.astype(np.uint8).reshape(height, width, 4)[::-1]


def encode(pixels: np.ndarray) -> bytes:
    """A lossless WebP file of [H, W, 4] uint8. Where alpha is 0 Blender drops the colours, which nobody sees.

    Raises:
        RuntimeError: If Blender can't write it.
    """
    height, width, _ = pixels.shape
    image = bpy.data.images.new("LGM", width, height, alpha=True, is_data=True)
    try:
        image.alpha_mode = "CHANNEL_PACKED"
        image.pixels.foreach_set((pixels[::-1] / np.float32(255)).ravel())
        with tempfile.TemporaryDirectory(prefix="lgm_", dir=bpy.app.tempdir) as folder:
            path = Path(folder, "picture.webp")
            image.file_format = "WEBP"
            image.save(filepath=str(path), quality=LOSSLESS)
            return path.read_bytes()
    finally:
        bpy.data.images.remove(image)
