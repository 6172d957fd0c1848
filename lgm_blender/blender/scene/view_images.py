"""The four views as images of a .blend: filled from files, painted on, and given to the worker as files."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import bpy
import numpy as np

from ...core.errors import LGMError
from . import images


def read_pixels(file: str | Path) -> np.ndarray:
    """[H, W, 4] float32 of a picture of 8 bits a channel, in 0..1 as the file has them, its first row at the bottom.

    Raises:
        LGMError: If it can't be read.
    """
    try:
        loaded = bpy.data.images.load(str(file), check_existing=False)
    except RuntimeError as error:
        raise LGMError(f"{file} can't be read ({str(error).strip()}). Make the views again.") from error
    try:
        if not all(loaded.size) or loaded.channels != 4:
            raise LGMError(f"{file} holds no picture that can be a view. Make the views again.")
        return _pixels(loaded).reshape(loaded.size[1], loaded.size[0], 4)
    finally:
        bpy.data.images.remove(loaded)


def row_pixels(file: str | Path) -> list[np.ndarray]:
    """The views in a picture that has them side by side, each as `read_pixels` gives it."""
    row = read_pixels(file)
    side = len(row)
    return [row[:, left : left + side] for left in range(0, row.shape[1] - side + 1, side)]


def put_pixels(pixels: np.ndarray, name: str, instead: bpy.types.Image | None = None) -> bpy.types.Image:
    """An image that holds pixels by itself, so that it can be painted on and is saved with the .blend.

    Args:
        pixels: See `read_pixels`.
        name: Of the image; Blender adds a number if it is taken.
        instead: An image that gets the pixels if it is one of this kind and of this size.
    """
    height, width = pixels.shape[:2]
    if (
        instead is None
        or instead.library
        or instead.is_float
        or tuple(instead.size) != (width, height)
        or not _own(instead)
    ):
        instead = bpy.data.images.new(name, width, height, alpha=True)
    instead.pixels.foreach_set(np.ascontiguousarray(pixels, np.float32).ravel())
    instead.update()
    instead.pack()
    return instead


def _own(image: bpy.types.Image) -> bool:
    """Whether an image's pixels are in the .blend and nowhere else."""
    return image.source == "GENERATED" or bool(image.packed_file and not image.filepath_raw)


def view_file(image: bpy.types.Image, folder: Path, stem: str) -> Path:
    """A file with what an image shows, for the worker: its own, or a PNG written into `folder`.

    Raises:
        LGMError: If it has no pixels, or can't be written.
    """
    if not all(image.size) or image.is_float:
        return images.image_file(image, folder, stem)
    path = folder / f"{stem}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(_bytes(image)))
    except OSError as error:
        raise LGMError(
            f"{path} could not be written ({error.strerror or error}). Free some space.", "output"
        ) from error
    return path


def checksum(image: bpy.types.Image | None) -> int:
    """A number that changes when what an image shows does; 0 of none."""
    if image is None or not all(image.size):
        return 0
    return zlib.crc32(_pixels(image).tobytes()) | 1 << 32


def paint(context: bpy.types.Context, image: bpy.types.Image) -> bool:
    """Shows an image in an Image Editor of the window, ready to be painted on; whether there is such an editor.

    Where there is none, a 3D View is split, once: the others are left as they are.
    """
    area = next((area for area in context.screen.areas if area.type == "IMAGE_EDITOR"), None)
    if area is None and context.area is not None and context.area.type == "VIEW_3D":
        before = set(context.screen.areas)
        with contextlib.suppress(RuntimeError), context.temp_override(area=context.area):
            bpy.ops.screen.area_split(direction="VERTICAL", factor=0.5)
        area = next(iter(set(context.screen.areas) - before), None)
        if area is not None:
            area.type = "IMAGE_EDITOR"
    if area is None:
        return False
    space = area.spaces.active
    space.image = image
    space.mode = "PAINT"
    return True


def _pixels(image: bpy.types.Image) -> np.ndarray:
    pixels = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(pixels)
    return pixels


def _bytes(image: bpy.types.Image) -> np.ndarray:
    """[H, W, C] uint8 of an image of bytes, its first row at the top; its floats are its bytes / 255."""
    width, height = image.size
    return np.uint8(_pixels(image).reshape(height, width, image.channels)[::-1] * 255 + 0.5)


def _png(pixels: np.ndarray) -> bytes:
    """A PNG of [H, W, C] uint8, hardly compressed: Blender's own writer needs a scene and a file, and takes longer."""
    height, width, channels = pixels.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # 0: no filter

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, kind, 0, 0, 0])
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
