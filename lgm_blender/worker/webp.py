"""WebP pictures by Pillow, for SOG."""

from __future__ import annotations

import io

import numpy as np

EFFORT = {"quality": 30, "method": 1}  # of packing without loss: more takes ten times as long for a few percent


def decode(data: bytes) -> np.ndarray:
    """[H, W, 4] uint8 of a WebP file.

    Raises:
        OSError, ValueError: If it is none.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        return np.asarray(image.convert("RGBA"))


def encode(pixels: np.ndarray) -> bytes:
    """A lossless WebP file of [H, W, 4] uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True, **EFFORT)
    return buffer.getvalue()
