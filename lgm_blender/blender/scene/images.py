"""Blender's image datablocks as files that the worker can read."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import bpy
import numpy as np

from ...core.errors import LGMError
from ...core.files import replacing

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".exr", ".hdr", ".tga")


def image_file(image: bpy.types.Image, folder: Path) -> Path:
    """A file that shows what `image` shows: its own, or a PNG written into `folder` where it has none, or another.

    Raises:
        LGMError: If the image has no pixels, as a render result or a file that is gone.
    """
    if image.type in ("RENDER_RESULT", "COMPOSITING"):
        raise LGMError(f"'{image.name}' can't be read directly. Save it with Image > Save As and choose that image.")
    own = Path(bpy.path.abspath(image.filepath_raw, library=image.library)) if image.filepath_raw else None
    if own and image.source == "FILE" and not image.packed_file and not image.is_dirty and own.is_file():
        return own
    width, height = image.size
    if not width or not height or not image.channels:
        where = f": {own} can't be read" if own else ""
        raise LGMError(f"The image '{image.name}' has no pixels{where}. Choose another one.")
    path = folder / f"{file_stem(image.name)}.png"
    folder.mkdir(parents=True, exist_ok=True)
    write_png(path, _pixels(image))
    return path


def file_stem(name: str) -> str:
    """A datablock's name as a file's, without a picture's suffix: what no file system allows becomes '_'."""
    if name.lower().endswith(_SUFFIXES):
        name = name.rpartition(".")[0]
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).strip(" .") or "image"


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes an RGBA picture.

    Args:
        path: The file, replaced if it is there.
        pixels: [H, W, 4] uint8, straight alpha, the top row first.

    Raises:
        LGMError: (kind 'output') if it can't be written.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 4 * width), np.uint8)  # every row begins with its filter, 0 is none
    rows[:, 1:] = pixels.reshape(height, -1)
    with replacing(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows, 1)),
            (b"IEND", b""),
        ):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def _pixels(image: bpy.types.Image) -> np.ndarray:
    """[H, W, 4] uint8 in display space, straight alpha, the top row first."""
    width, height = image.size
    values = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(values)
    values = values.reshape(height, width, image.channels)[::-1]
    alpha = values[..., 3:4] if image.channels == 4 else np.ones((height, width, 1), np.float32)
    color = values[..., :3] if image.channels >= 3 else np.repeat(values[..., :1], 3, axis=2)
    if image.is_float:  # scene linear and premultiplied, where bytes are neither
        color = _to_srgb(color / np.maximum(alpha, 1e-6))
    return (np.concatenate([color, alpha], axis=2).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
