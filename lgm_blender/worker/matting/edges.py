"""Soft edges: how much of each pixel is object, and the object's own colour there, without the background's."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def soft_edges(rgb: np.ndarray, objects: np.ndarray, background: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with alpha solved for in a band along the edge, and the background's colour taken out there.

    A pixel on the edge is C = a F + (1 - a) B: B is the background there, F the colour of the object nearby. The band
    is as wide as the edge is soft: until the pixels just inside of it are all object.
    """
    depth = ndimage.distance_transform_edt(np.pad(objects, 1, mode="edge"))[1:-1, 1:-1]
    for width in (2, 4, 8, 16, 32, 2):  # the last where there is nothing like an edge: the object has B's colour there
        inside = depth > width
        alpha, foreground = _solve_alpha(rgb, inside, background, reach=width + 1)
        innermost = inside & (depth <= width + 1)
        if not innermost.any() or np.nanquantile(alpha[innermost], 0.05) > 0.9:
            break
    band = ndimage.binary_dilation(objects, iterations=min(width, 4)) & ~inside

    # Where it could not be solved, in thin parts and where the pixel is of a third colour, the pixel is its own object.
    alpha = np.where(band & np.isfinite(alpha), alpha, objects)
    alpha[alpha < 0.04] = 0
    a = np.maximum(alpha, 0.04)[..., None]
    unmixed = np.clip((rgb - (1 - a) * background) / a, 0, 1)
    trust = np.clip((a - 0.3) / 0.4, 0, 1)  # a faint pixel says little about the object's colour
    unmixed = trust * unmixed + (1 - trust) * np.clip(foreground, 0, 1)
    colors = np.where((band & (alpha < 1))[..., None], unmixed, rgb)
    return np.uint8(np.concatenate([colors, alpha[..., None]], axis=-1) * 255 + 0.5)


def _solve_alpha(
    rgb: np.ndarray, inside: np.ndarray, background: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha [H, W], NaN where it has no solution, and the object's colour nearby [H, W, 3]."""
    size = 2 * reach + 1
    weight = ndimage.uniform_filter(inside.astype(np.float32), size)
    nearby = [ndimage.uniform_filter(rgb[..., i] * inside, size) for i in range(3)]
    known = weight > 1e-3
    foreground = np.where(known[..., None], np.stack(nearby, -1) / np.maximum(weight, 1e-3)[..., None], rgb)
    direction = foreground - background
    length = (direction**2).sum(-1)
    alpha = ((rgb - background) * direction).sum(-1) / np.maximum(length, 1e-6)
    alpha = np.clip(alpha, 0, 1)
    off_the_line = np.linalg.norm(rgb - background - alpha[..., None] * direction, axis=-1)
    solved = known & (length > 0.01) & ((off_the_line < 0.15) | (alpha == 1))
    return np.where(solved, alpha, np.nan), foreground


def own_colors(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What an object's colours are where the background shines through, with nothing known of the background.

    Object's and background's colours nearby are means weighted by alpha, and what they don't explain of a pixel is
    divided between them (Forte, Approximate Fast Foreground Colour Estimation, 2021).

    Args:
        rgb: float32 [H, W, 3] in 0..1.
        alpha: float32 [H, W] in 0..1.

    Returns:
        float32 [H, W, 3]; `rgb` where alpha is 1.
    """
    a, colors = alpha[..., None], rgb
    for sigma in (0.02 * max(alpha.shape), 2.0):  # from afar for wide seams, from nearby for the rest
        object_color = _weighted_mean(colors, a, sigma)
        background = _weighted_mean(rgb, 1 - a, sigma)
        colors = np.clip(object_color + a * (rgb - a * object_color - (1 - a) * background), 0, 1)
    return np.where(a > 0.98, rgb, colors).astype(np.float32)


def _weighted_mean(values: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    total = ndimage.gaussian_filter(weight, (sigma, sigma, 0), truncate=3)
    return ndimage.gaussian_filter(values * weight, (sigma, sigma, 0), truncate=3) / np.maximum(total, 1e-4)
