"""Opens any picture a user has, as sRGB with alpha, upright and of a sensible size, or says why it can't."""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

from ..core.errors import LGMError

MAX_SIDE = 1024  # pixels; the models see the object at 205 of 256, so more only costs time
MIN_SIDE = 16
MAX_ASPECT = 16  # beyond it no object can be made out once the picture is reduced

# Megapixels of what takes more than 12 bytes a pixel to open (formats), or microseconds (Pillow's decoders in Python).
_MOST_MEGAPIXELS = {"WEBP": 60, "JPEG2000": 45, "dds_rgb": 1.5, "ppm": 1.5, "ppm_plain": 1.5}
_LARGEST = 512 << 20  # bytes of a file
_STRIP = 64  # rows that are converted at once
_TURNS = {  # by EXIF's number for the orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Formats whose decoders are part of Pillow. EPS is left out: it would start Ghostscript on the user's file.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "TGA", "PPM", "ICO", "DDS", "MPO", "PCX")


def read_image(path: str | os.PathLike) -> Image.Image:
    """The picture in a file, RGBA, upright, its longer side at most 1024 pixels; the first one of an animation.

    Raises:
        LGMError: If there is no such file, it isn't a picture, it is damaged, or its size makes no sense.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise LGMError(f"{path} is a folder. Choose an image file.")
        if not path.is_file():
            raise LGMError(f"There is no file {path}. Choose an image.")
        size = path.stat().st_size
        if not size:
            raise LGMError(f"{path} is an empty file. Choose another image.")
        if size > _LARGEST:
            raise LGMError(f"{path} is larger than {_LARGEST >> 20} MB. Make it smaller first.")
        data = path.read_bytes()
    except OSError as error:
        raise LGMError(f"{path} could not be read ({error.strerror or error}). Choose another file.") from error
    except ValueError:  # a null character
        raise LGMError("There is no file of that name. Choose an image.") from None

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=_available_formats())
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            megapixels = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
            raise LGMError(f"{path} has more than {megapixels} megapixels. Make it smaller first.") from None
        except Exception:  # decoders raise whatever they like on files made to confuse them
            raise LGMError(f"{path} is not an image that can be read. Use PNG, JPEG, WebP or TIFF.") from None
        _check_size(image, str(path))
        most = min(_MOST_MEGAPIXELS.get(name, math.inf) for name in (image.format, *(tile[0] for tile in image.tile)))
        if image.width * image.height > most * 1_000_000:
            raise LGMError(
                f"{path} has more than {most:g} megapixels, too many for {image.format} of this kind. Make it smaller, "
                "or save it as PNG."
            )
        try:
            image.draft("RGB", (2 * MAX_SIDE, 2 * MAX_SIDE))  # a large JPEG is decoded at an eighth to a half
            image.load()
            return to_rgba(image)
        except Exception as error:
            raise LGMError(f"{path} is damaged or cut short and can't be read. Save the image again.") from error


def to_rgba(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGBA in sRGB, upright by its EXIF orientation, its longer side at most 1024 pixels.

    Raises:
        LGMError: If it is too small or too narrow to show an object.
    """
    _check_size(image, "The image")
    white = _white(image)
    factor = max(image.size) // (2 * MAX_SIDE)
    if factor > 1:  # strip by strip, so that a large picture is in memory only once
        width, height = (math.ceil(side / factor) for side in image.size)
        result = Image.new("RGBA", (width, height))
        for top in range(0, height, _STRIP):
            box = (0, top * factor, image.width, min((top + _STRIP) * factor, image.height))
            result.paste(_strip_to_rgba(image.crop(box), white).reduce(factor), (0, top))
    else:
        result = _strip_to_rgba(image, white)
    if turn := _TURNS.get(image.getexif().get(ExifTags.Base.Orientation)):
        result = result.transpose(turn)
    if max(result.size) > MAX_SIDE:
        result.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)  # weights colours by their alpha
    return result


def _strip_to_rgba(image: Image.Image, white: float) -> Image.Image:
    profile = image.info.get("icc_profile")
    if white:
        image = _eight_bits(image, white)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGBA").convert("RGB")
    image = _to_srgb(image, profile)
    image.putalpha(alpha if alpha is not None else 255)
    return image


def _available_formats() -> list[str]:
    Image.init()
    return [format for format in _FORMATS if format in Image.OPEN]


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if min(width, height) * MAX_ASPECT < max(width, height):
        raise LGMError(f"{name} is {width} × {height} pixels: too narrow to show an object. Crop it to the object.")
    if min(width, height) < MIN_SIDE:
        raise LGMError(f"{name} is {width} × {height} pixels: too small to show an object. Use a larger one.")


def _white(image: Image.Image) -> float:
    """What white is in a grey picture of 16 bits, 32 bits or floats; 0 for any other."""
    if not image.mode.startswith("I") and image.mode != "F":
        return 0.0
    strips = range(0, image.height, _STRIP)
    boxes = ((0, top, image.width, min(top + _STRIP, image.height)) for top in strips)
    largest = max(float(_numbers(image.crop(box)).max(initial=0)) for box in boxes)
    if image.mode == "F":
        return 1.0 if largest <= 1 else 255.0
    return 65535.0 if image.mode.startswith("I;16") or largest > 255 else 255.0


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    """Such a picture as 8 bits; Pillow's own conversion would clip it."""
    return Image.fromarray(np.uint8(np.clip(_numbers(image) / white, 0, 1) * 255 + 0.5))


def _numbers(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0, posinf=0, neginf=0)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB, from the picture's own colour profile where it has a usable one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a damaged profile, or one of another kind of picture: the numbers are taken as sRGB
    return image.convert("RGB")
