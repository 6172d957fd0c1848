"""Generated views in the colours of the input image, and the image among them, as large as they show the object.

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
SCALES = np.arange(0.4, 1.001, 0.02)  # how much smaller than in its image the views may show an object
LARGE, ALIKE, CLEARER = 0.95, 0.6, 0.08  # from which scale, below which overlap or gain of it the image stays as it is


def finish_views(views: np.ndarray, image: np.ndarray | None, *, match: bool, keep: bool) -> np.ndarray:
    """What becomes of generated views before LGM sees them, as Preset.match_colors and keep_image say.

    Args:
        views: [4, S, S, 3] float32, 0 to 1, in LGM's order: the image's side first.
        image: [H, W, 3] float32, 0 to 1, on white; or None, and nothing becomes of them.
        match: Give them the image's colours.
        keep: Put the image itself in place of the first, as large as the view from behind shows the object: one that
            is longer than wide is smaller in the views than in its image, for else its sides would leave the frame.
    """
    if image is None:
        return views
    if match:
        views = match_colors(views, image)
    if keep:
        first = torch.from_numpy(np.asarray(image, np.float32)).movedim(-1, 0)[None]
        if image.shape != views[0].shape:
            first = F.interpolate(first, views.shape[1:3], mode="bilinear", antialias=True)
        first = shrunk(first, scale_behind(first, views[2]))
        views = np.concatenate([first.movedim(1, -1).numpy(), views[1:]])
    return views


def scale_behind(image: torch.Tensor, back: np.ndarray) -> float:
    """By which factor, 0.4 to 1, the image's mirrored outline is most like that of the view from behind.

    Args:
        image: [1, 3, S, S], 0 to 1, on white, the object in the middle.
        back: [S, S, 3], 0 to 1, on white.
    """
    size = min(128, image.shape[-1])
    behind = torch.from_numpy(_certain(back)).float()[None, None].flip(-1)
    outline = torch.from_numpy(_certain(image[0].movedim(0, -1).numpy())).float()[None, None]
    behind, outline = (F.interpolate(x, (size, size), mode="area") for x in (behind, outline))
    theta = torch.zeros(len(SCALES), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(1 / SCALES)
    grid = F.affine_grid(theta, (len(SCALES), 1, size, size), align_corners=False)
    outlines = F.grid_sample(outline.expand(len(SCALES), -1, -1, -1), grid, mode="bilinear", align_corners=False)
    both, either = torch.minimum(outlines, behind), torch.maximum(outlines, behind)
    overlap = both.sum((1, 2, 3)) / either.sum((1, 2, 3)).clamp_min(1e-6)
    best = int(overlap.argmax())
    scale = float(SCALES[best])
    # What is only lower from behind, or only narrower, is of another shape there, not smaller.
    sides = [(behind.amax(axis) > 0.5).sum() / (outline.amax(axis) > 0.5).sum().clamp_min(1) for axis in (2, 3)]
    alike = overlap[best] >= ALIKE and overlap[best] - overlap[-1] >= CLEARER
    return scale if alike and scale < LARGE and max(sides) <= (1 + scale) / 2 else 1.0


def shrunk(picture: torch.Tensor, scale: float) -> torch.Tensor:
    """A picture [1, 3, S, S] on white, smaller about its middle by a factor of at most 1."""
    size = picture.shape[-1]
    side = size - 2 * round((1 - scale) * size / 2)
    if side == size:
        return picture
    small = F.interpolate(picture, (side, side), mode="bilinear", antialias=True)
    return F.pad(small, [(size - side) // 2] * 4, value=1.0)


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
