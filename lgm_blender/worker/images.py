"""Opens any picture a user has, as sRGB with alpha, upright and of a sensible size, or says why it can't."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..core.errors import LGMError

MAX_SIDE = 1024  # pixels; the models see the object at 205 of 256, so more only costs time
MIN_SIDE = 16
MAX_ASPECT = 16  # beyond it no object can be made out once the picture is reduced

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
        if not path.stat().st_size:
            raise LGMError(f"{path} is an empty file. Choose another image.")
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
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGBA").convert("RGB")
    image = _to_srgb(image, profile)
    image.putalpha(alpha if alpha is not None else 255)
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)  # weights colours by their alpha
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, 32 bits or floats as 8 bits; Pillow's own conversion would clip it."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0, posinf=0, neginf=0)
    if image.mode == "F":
        white = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        white = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
    return Image.fromarray(np.uint8(np.clip(values / white, 0, 1) * 255 + 0.5))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB, from the picture's own colour profile where it has a usable one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a damaged profile, or one of another kind of picture: the numbers are taken as sRGB
    return image.convert("RGB")
