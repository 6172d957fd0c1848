"""Reads and writes WebP for tests, as the worker does."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA"))


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True, quality=0, method=0)
    return buffer.getvalue()
