"""A picture's own alpha channel, made what it should be: straight, and without what is too faint to be seen."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

LEAST_EVIDENCE = 24  # half-transparent pixels beside opaque ones that premultiplication is told by
CLEARLY = 0.6  # by how much the better explanation of their colours must be better


def cut_by_alpha(rgba: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """The picture cut by its own alpha: uint8 [H, W, 4], straight.

    Args:
        rgba: uint8 [H, W, 4].
        threshold: Opacity, 0..1, below which a pixel is cut away; by default none is.
    """
    if is_premultiplied(rgba):
        rgba = unpremultiplied(rgba)
    return above_threshold(rgba, threshold)


def above_threshold(rgba: np.ndarray, threshold: float | None) -> np.ndarray:
    """uint8 [H, W, 4], fully transparent where the opacity is below the threshold, 0..1; None leaves all."""
    if threshold is None:
        return rgba
    result = rgba.copy()
    result[rgba[..., 3] < threshold * 255, 3] = 0
    return result


def is_premultiplied(rgba: np.ndarray) -> bool:
    """Whether colours were multiplied with alpha before they were saved, which gives a cut-out a dark rim.

    No colour is then above its alpha, which is so of dark objects, too. What tells is the rim: divided by alpha its
    colours must be those of the opaque pixels beside it, and otherwise not.
    """
    alpha = rgba[..., 3].astype(np.float32) / 255
    colors = rgba[..., :3].astype(np.float32) / 255
    if (colors.max(axis=-1) > alpha + 1.5 / 255).any():
        return False
    opaque = alpha > 0.98
    partial = (alpha > 0.2) & (alpha < 0.8) & ndimage.binary_dilation(opaque, iterations=8)
    if partial.sum() < LEAST_EVIDENCE:
        return False
    weight = ndimage.uniform_filter(opaque.astype(np.float32), 21)
    nearby = np.stack([ndimage.uniform_filter(colors[..., i] * opaque, 21) for i in range(3)], axis=-1)
    nearby = nearby[partial] / np.maximum(weight[partial], 1e-4)[:, None]
    straight = np.linalg.norm(colors[partial] - nearby, axis=-1)
    divided = np.linalg.norm(colors[partial] / alpha[partial, None] - nearby, axis=-1)
    return np.median(divided) < CLEARLY * np.median(straight) and np.median(straight) > 0.03


def unpremultiplied(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with straight alpha of one whose colours were multiplied with it."""
    alpha = np.maximum(rgba[..., 3:].astype(np.float32), 1)
    colors = np.clip(rgba[..., :3] * (255 / alpha), 0, 255)
    return np.concatenate([np.uint8(colors + 0.5), rgba[..., 3:]], axis=-1)
