"""Letterbox and pillarbox bars: they are of one colour, but they are not the background."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ...core.color import srgb_to_lab

ALIKE = 4.0  # in CIELAB: what a strong JPEG compression makes of one colour
MOST = 0.01  # share of a bar's row that may have another colour
SUDDEN = 0.6  # share of the picture's first rows that has another colour than the bar
LEAST_PICTURE = 0.2  # share of the height or width that is left

Box = tuple[int, int, int, int]  # top, bottom, left, right


def find_bars(rgb: np.ndarray) -> Box:
    """The part of a picture that lies between its bars; all of it where there are none.

    A bar fills whole rows or columns, has a twin of its colour on the other side, and ends at once over all of its
    length. An object on a plain background may do that as well if its edges are straight and it is cut off at both
    sides; so does no other.

    Args:
        rgb: float32 [H, W, 3] in 0..1.
    """
    lab = srgb_to_lab(rgb)
    top, bottom = _pair(lab)
    left, right = _pair(lab[top:bottom].swapaxes(0, 1))
    if (top, bottom) == (0, lab.shape[0]):  # bars at the sides may have hidden those above and below
        top, bottom = _pair(lab[:, left:right])
    return top, bottom, left, right


def _pair(lab: np.ndarray) -> tuple[int, int]:
    """First and last row + 1 between an upper and a lower bar; all rows where there are none."""
    height = len(lab)
    color = np.median(lab[0], axis=0)
    other = np.linalg.norm(lab - color, axis=-1) > ALIKE
    share = other.mean(axis=1)
    rows = np.flatnonzero(share > MOST)
    if not len(rows):
        return 0, height
    first, last = int(rows[0]), int(rows[-1]) + 1
    if first == 0 or last == height or last - first < LEAST_PICTURE * height:
        return 0, height
    # The first row may be half bar; the dark sky of a night may look like one for a while.
    near = max(3, height // 50)
    after, before = share[first : first + near] > SUDDEN, share[last - near : last] > SUDDEN
    inside = ndimage.binary_fill_holes(other[first:last])
    if not after.any() or not before.any() or min(inside[:, 0].mean(), inside[:, -1].mean()) < 0.5:
        return 0, height
    # The rows between are half of either, by compression or by resizing.
    return first + int(after.argmax()) + 1, last - int(before[::-1].argmax()) - 1
