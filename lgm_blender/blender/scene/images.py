"""Blender's images, and files that only Blender can read, as files that the worker can read."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

import bpy

from ...core.errors import LGMError
from ...core.pictures import OTHER_PICTURES, WORKER_PICTURES
from ...core.system import names
from .. import compat

_SAMPLE_FORMAT, _FLOAT = 339, 3  # a TIFF's tag, and its value where numbers are floats


def image_file(image: bpy.types.Image, folder: Path, stem: str = "") -> Path:
    """A file that shows what `image` shows: its own where the worker can read that, else a PNG written into `folder`.

    The PNG is called `stem`, or like the image. It has straight alpha and what Blender's image editor shows: sRGB, with
    everything that is brighter than white as white.

    Raises:
        LGMError: If the image has no pixels, as a render result or a file that is gone; or the PNG can't be written.
    """
    if image.type in ("RENDER_RESULT", "COMPOSITING"):
        raise LGMError(f"'{image.name}' can't be read directly. Save it with Image > Save As and choose that image.")
    own = Path(bpy.path.abspath(image.filepath_raw, library=image.library)) if image.filepath_raw else None
    if own and image.source in ("FILE", "MOVIE") and not image.packed_file and not image.is_dirty and _is_plain(own):
        return own
    if not all(image.size) or not image.channels:
        where = f": {own} can't be read" if own else ""
        raise LGMError(f"The image '{image.name}' has no pixels{where}. Choose another one.")
    path = folder / f"{stem or file_stem(image.name)}.png"
    scene = bpy.data.scenes.new("LGM Image")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(TypeError):  # another color management may not have it
            scene.view_settings.view_transform = "Standard"
        settings = scene.render.image_settings
        settings.file_format, settings.color_mode, settings.color_depth = "PNG", "RGBA", "8"
        image.save_render(str(path), scene=scene)
    except (OSError, RuntimeError) as error:
        raise LGMError(
            f"{path} could not be written: {str(error).strip()}. Free some space on its disk.", "output"
        ) from error
    finally:
        bpy.data.scenes.remove(scene)
    return path


def readable_file(path: Path, folder: Path) -> Path:
    """The file itself, or where only Blender can read it (EXR, HDR, DPX, TIFF of floats) a PNG written into `folder`.

    Raises:
        LGMError: See `image_file`.
    """
    if path.suffix.lower() not in bpy.path.extensions_image or not path.is_file() or _is_plain(path):
        return path  # if anything is wrong with it, here and below, the worker says what
    try:
        image = bpy.data.images.load(str(path), check_existing=False)
    except RuntimeError:
        return path
    try:
        return image_file(image, folder, path.stem)
    finally:
        bpy.data.images.remove(image)


def open_image(path: Path) -> bpy.types.Image:
    """The image of a file, loaded if it isn't yet.

    Raises:
        LGMError: If it is not there, or neither Blender nor the worker reads its kind.
    """
    if not path.is_file():
        raise LGMError(f"There is no file {path}. Choose another image.")
    if path.suffix.lower() in OTHER_PICTURES:
        raise LGMError(f"{path.name} is of a kind that can't be read here. Save it as PNG or JPEG.")
    there = {image.session_uid for image in bpy.data.images}
    try:
        image = bpy.data.images.load(str(path), check_existing=True)
    except RuntimeError as error:
        raise LGMError(f"{path} can't be read ({str(error).strip()}). Choose another image.") from error
    if not all(image.size) and not _is_plain(path):  # the worker reads kinds that Blender does not show
        if image.session_uid not in there:
            bpy.data.images.remove(image)
        raise LGMError(f"{path} is no image that can be read. Choose another one.")
    return image


def render_result(scene: bpy.types.Scene) -> bpy.types.Image:
    """The last render as its scene shows it, as an image that is packed into the file: the next render leaves it.

    Raises:
        LGMError: If nothing was rendered yet, or the picture can't be written.
    """
    result = next((image for image in bpy.data.images if image.type == "RENDER_RESULT"), None)
    with tempfile.TemporaryDirectory(dir=bpy.app.tempdir) as folder:
        path = Path(folder, "Render.png")
        if result is not None:
            with contextlib.suppress(RuntimeError), compat.writing_png(scene.render.image_settings):
                result.save_render(str(path), scene=scene)  # no other scene has its render
        if not path.is_file():
            raise LGMError("Nothing has been rendered yet. Render an image first: Render > Render Image.")
        image = bpy.data.images.load(str(path), check_existing=False)
        image.pack()
    image.filepath_raw = "//Render.png"  # where it would be unpacked to
    return image


def file_stem(name: str) -> str:
    """A datablock's name as a file's, without a picture's suffix."""
    if Path(name).suffix.lower() in bpy.path.extensions_image:
        name = name.rpartition(".")[0]
    return names.file_stem(name)


def _is_plain(path: Path) -> bool:
    """Whether it is there, and of a kind that the worker reads."""
    kind = path.suffix.lower()
    return path.is_file() and kind in WORKER_PICTURES and not (kind in (".tif", ".tiff") and _has_floats(path))


def _has_floats(tiff: Path) -> bool:
    """Whether the numbers in a TIFF are floats. Pillow reads them of one channel, but not of more."""
    with contextlib.suppress(OSError, struct.error), tiff.open("rb") as file:
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(file.read(4), "")
        file.seek(*struct.unpack(order + "I", file.read(4)))
        (count,) = struct.unpack(order + "H", file.read(2))
        for _ in range(count):
            tag, _, number, value = struct.unpack(order + "HHIH2x", file.read(12))
            if tag == _SAMPLE_FORMAT:
                if number > 2:  # they don't fit into the tag itself, which has their place
                    file.seek(-4, 1)
                    file.seek(*struct.unpack(order + "I", file.read(4)))
                    (value,) = struct.unpack(order + "H", file.read(2))
                return number > 1 and value == _FLOAT
    return False
