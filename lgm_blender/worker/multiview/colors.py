"""Generated views in the colours of the input image, and the image among them.

A small model's colours drift (brown turns red, grey turns beige), in all four views alike. The view from the image's
side shows what the image shows, so the difference between the two says how to put the colours right.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

FAINT = 0.06  # a pixel less dark than this is background
LEAST = 0.003  # part of the picture that both must show
RIDGE = 0.005  # holds the correction near none: it is fitted on one side and has to serve the others


def finish_views(views: np.ndarray, image: np.ndarray | None, *, match: bool, keep: bool) -> np.ndarray:
    """What becomes of generated views before LGM sees them, as Preset.match_colors and keep_image say.

    Args:
        views: [4, S, S, 3] float32, 0 to 1, in LGM's order: the image's side first.
        image: [H, W, 3] float32, 0 to 1, on white; or None, and nothing becomes of them.
        match: Give them the image's colours.
        keep: Put the image itself in place of the first.
    """
    if image is None:
        return views
    if match:
        views = match_colors(views, image)
    if keep:
        first = torch.from_numpy(np.asarray(image, np.float32)).movedim(-1, 0)[None]
        if image.shape != views[0].shape:
            first = F.interpolate(first, views.shape[1:3], mode="bilinear", antialias=True)
        views = np.concatenate([first.movedim(1, -1).numpy(), views[1:]])
    return views


def match_colors(views: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Views whose colours went through the affine map that takes those of the first one nearest to the image's.

    Args:
        views: [N, S, S, 3] float32, 0 to 1, on white.
        image: [S, S, 3], 0 to 1, on white: what the first view should look like.

    Returns:
        [N, S, S, 3] float32; `views` as they are, if the image and its view have next to nothing in common.
    """
    both = (_certain(views[0]) == 1) & (_certain(image) == 1)
    inner = ndimage.binary_erosion(both, np.ones((7, 7)))  # outlines are never quite the same
    if inner.mean() < LEAST:
        return views
    seen, meant = views[0][inner].astype(np.float64), image[inner].astype(np.float64)
    known = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
    hold = np.diag([10, 10, 10, 1]) * RIDGE * len(seen)
    change = np.linalg.solve(known.T @ known + hold, known.T @ (meant - seen))
    moved = np.clip(views + views @ change[:3] + change[3], 0, 1)
    part = _certain(views)[..., None]
    return (views + part * (moved - views)).astype(np.float32)


def _certain(pictures: np.ndarray) -> np.ndarray:
    """How certainly pixels [..., 3] on white are of the object, 0 to 1."""
    return np.clip((1 - pictures.min(axis=-1)) / FAINT, 0, 1)
