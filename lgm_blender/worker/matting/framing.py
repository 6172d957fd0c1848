"""From a cut-out to the picture that the models see: the object in the middle of a white square."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from ...core.errors import LGMError

BORDER = 0.2  # share of the recentred picture that stays empty along the object's longer side
HAZE = 12  # of 255: what networks leave around the object

# Of the largest part's opacity: a smaller part is a speck. So is one that is faint all over, and somewhat larger.
SPECK, SMUDGE, FAINT = 0.003, 0.03, 64


def recenter(rgba: np.ndarray, size: int = 256) -> np.ndarray:
    """Put the object in the middle of a white square, its longer side filling 1 - `BORDER` of it.

    What the published code does (`kiui.op.recenter`, then compositing on white), but the object's last row and column
    are not lost, and colours are resized together with their alpha.

    Args:
        rgba: uint8 [H, W, 4], straight alpha.
        size: Width and height of the result in pixels.

    Returns:
        float32 [size, size, 3] in 0..1.

    Raises:
        LGMError: If nothing in the picture is visible.
    """
    visible = _main_parts(rgba[..., 3])
    if not visible.any():
        raise LGMError("The image shows no object: it is fully transparent. Choose another image.")
    top, bottom = np.flatnonzero(visible.any(axis=1))[[0, -1]]
    left, right = np.flatnonzero(visible.any(axis=0))[[0, -1]]
    on_white = over_white(rgba[top : bottom + 1, left : right + 1])

    height, width = on_white.shape[:2]
    scale = size * (1 - BORDER) / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    filter = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    channels = [Image.fromarray(on_white[..., i]).resize((new_width, new_height), filter) for i in range(3)]
    resized = np.clip(np.stack([np.asarray(channel) for channel in channels], axis=-1), 0, 1)

    result = np.ones((size, size, 3), np.float32)
    y, x = (size - new_height) // 2, (size - new_width) // 2
    result[y : y + new_height, x : x + new_width] = resized
    return result


def over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with straight alpha composited on white: float32 [H, W, 3] in 0..1."""
    values = rgba.astype(np.float32) / 255
    return values[..., :3] * values[..., 3:] + 1 - values[..., 3:]


def _main_parts(alpha: np.ndarray) -> np.ndarray:
    """Which pixels [H, W] show the object: not haze around it, stray pixels or smudges; a faint object is one, too."""
    labels, count = ndimage.label(alpha > min(HAZE, int(alpha.max()) // 2), np.ones((3, 3)))
    if count < 2:
        return labels > 0
    index = np.arange(1, count + 1)
    opacity, strongest = ndimage.sum(alpha, labels, index), ndimage.maximum(alpha, labels, index)
    largest = opacity.max()
    kept = (opacity >= SPECK * largest) & ((strongest >= FAINT) | (opacity >= SMUDGE * largest))
    return np.concatenate([[False], kept])[labels]
