"""The visual hull of the views, as more channels for LGM: where along its ray a pixel can see something at all.

Views a quarter turn apart share little that could be matched; their outlines say most of what they know of depth. What
lies in all of them is the visual hull (Laurentini 1994). With the outlines of ground-truth views, a pixel's first
point in the hull is within 0.02 of the surface as often as what a trained mini finds without it, and mostly elsewhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.cameras import FOV_Y
from .rays import pixel_rays

MIDDLE, REACH = 1.5, 0.8  # depths from 0.7 to 2.3, as those of LGMConfig.position 'ray'
STEPS_PER_BIN = 4
FAINT = 0.1  # a pixel this much darker than white is certainly of the object


def outline(images: Tensor) -> Tensor:
    """How certainly pixels on white are of the object: [..., 3, H, W] in 0 to 1, to [..., 1, H, W] in 0 to 1."""
    return ((1 - images.amin(-3, keepdim=True)) / FAINT).clamp(0, 1)


@torch.no_grad()
def hull_channels(images: Tensor, poses: Tensor, bins: int) -> Tensor:
    """Where the rays of pixels run through the visual hull.

    Args:
        images: [B, V, 3, S, S], 0 to 1, on white.
        poses: [B, V, 4, 4], camera-to-world with OpenGL axes.
        bins: Into how many parts of equal length a ray's depths from 0.7 to 2.3 are divided.

    Returns:
        [B, V, bins + 2, S/2, S/2] float32: how much of each part is in the hull, nearest first, 0 to 1; then the depths
        where the ray enters and leaves the hull, 0.7 to 2.3 as -1 to 1, and 0 where it misses it.
    """
    views, size = images.shape[1], images.shape[-1] // 2
    masks = outline(images.float())
    origins, directions = pixel_rays(poses, size)
    step = 2 * REACH / (bins * STEPS_PER_BIN)
    number = torch.arange(bins * STEPS_PER_BIN, device=images.device)
    depths = MIDDLE - REACH + step * (number + 0.5)  # [K]
    filled = F.avg_pool2d(masks.flatten(0, 1), 2).view(*images.shape[:2], size, size, 1).expand(*[-1] * 4, len(depths))
    focal = 1 / math.tan(0.5 * math.radians(FOV_Y))
    for other in range(1, views):
        # Every view's rays as the view `other` places further on sees them.
        mask, pose = masks.roll(-other, 1), poses.float().roll(-other, 1)
        rotation = pose[..., :3, :3]
        start = torch.einsum("bvhwi,bvij->bvhwj", origins - pose[:, :, None, None, :3, 3], rotation)[..., None, :]
        along = torch.einsum("bvhwi,bvij->bvhwj", directions, rotation)[..., None, :]
        ahead = -(start[..., 2] + depths * along[..., 2]).clamp_max(-1e-3)
        x = (start[..., 0] + depths * along[..., 0]) * focal / ahead
        y = -(start[..., 1] + depths * along[..., 1]) * focal / ahead
        grid = torch.stack([x, y], -1).flatten(0, 1).flatten(1, 2)  # [BV, h·w, K, 2]
        seen = F.grid_sample(mask.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=False)
        filled = torch.minimum(filled, seen.view(*images.shape[:2], size, size, -1))
    parts = filled.unflatten(-1, (bins, STEPS_PER_BIN)).mean(-1)
    within = filled > 0.5
    hit = within.any(-1, keepdim=True)
    first = within.to(torch.uint8).argmax(-1, keepdim=True)
    last = within.to(torch.uint8).flip(-1).argmax(-1, keepdim=True)
    edges = []
    for index, sign in ((first, -1.0), (last, 1.0)):
        # Between the last step outside and the first inside, where linear interpolation crosses a half.
        ordered = filled if sign < 0 else filled.flip(-1)
        inside = ordered.gather(-1, index)
        outside = torch.where(index > 0, ordered.gather(-1, (index - 1).clamp_min(0)), 0.0)
        part = (inside - 0.5) / (inside - outside).clamp_min(1e-6)
        depth = (index + 0.5 - part.clamp(0, 1)) * step  # from the end that the ray was followed from
        edges.append(torch.where(hit, sign * (REACH - depth) / REACH, 0.0))
    return torch.cat([parts, *edges], -1).movedim(-1, -3)
