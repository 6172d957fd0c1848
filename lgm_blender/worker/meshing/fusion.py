"""Depth and alpha of many views become one field, and the field a surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .views import Views

BLOCK = 4  # voxels; the field is computed in the blocks around the surface only
POINTS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}  # on a CPU what its cache holds


@dataclass
class Field:
    """Samples of a signed distance, in units of the truncation: 1 outside, -1 inside.

    Attributes:
        values: [X, Y, Z].
        origin: [3], position of the first sample.
        step: Distance between samples.
    """

    values: Tensor
    origin: Tensor
    step: float


def slopes(views: Views) -> Tensor:
    """[V, 1, S, S], the cosine between the ray and the normal of the surface that the depth shows, 0 to 1."""
    z = views.depth
    size = views.size
    pixel = 1 / views.intrinsics[0, 0]  # a pixel's width at z = 1
    padded = F.pad(z, (1, 1, 1, 1), mode="replicate")
    c = padded[..., 1:-1, 1:-1]
    # One-sided differences, the smaller of the two: at an edge the side that belongs to the surface.
    def slope(before: Tensor, after: Tensor) -> Tensor:
        return torch.minimum((c - before).abs(), (after - c).abs())

    dx = slope(padded[..., 1:-1, :-2], padded[..., 1:-1, 2:])
    dy = slope(padded[..., :-2, 1:-1], padded[..., 2:, 1:-1])
    tangent = (dx.square() + dy.square()).sqrt() / (pixel * z.clamp(min=1e-6))
    return (1 + tangent.square()).rsqrt()


def fuse(views: Views, resolution: int, *, truncation: float = 3.0, sharpness: float = 3.0, offset: float = 0.5,
         on_step: Callable[[int, int], None] = lambda step, steps: None) -> Field:
    device = views.alpha.device
    seen = views.alpha[:, 0] > 0.5
    points = unproject(views, seen)
    low, high = points.amin(0), points.amax(0)
    step = float((high - low).max()) / (resolution - 6 * BLOCK)
    low = (low + high) / 2 - ((high - low) / 2 + 3 * BLOCK * step)
    blocks = (((high - low) / step + 3 * BLOCK) / BLOCK).ceil().long()  # [3]
    active = torch.zeros(tuple(blocks.tolist()), device=device)
    index = ((points - low) / (step * BLOCK)).long()
    active[index[:, 0], index[:, 1], index[:, 2]] = 1
    active = F.max_pool3d(active[None, None], 3, 1, 1)[0, 0] > 0
    slope = slopes(views)
    pictures = torch.cat([views.alpha, views.depth, slope], 1)
    # blocks
    centers = (torch.stack(torch.meshgrid(*[torch.arange(int(n), device=device) for n in blocks], indexing="ij"), -1).reshape(-1, 3) + 0.5) * (BLOCK * step) - 0.5 * step + low
    coarse = distances(views, pictures, centers, truncation * step, sharpness, offset * step)
    values = coarse.sign().view(active.shape)
    values = values.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    which = active.nonzero() * BLOCK
    inner = torch.stack(torch.meshgrid(*[torch.arange(BLOCK, device=device)] * 3, indexing="ij"), -1).reshape(-1, 3)
    fine = (which[:, None] + inner).reshape(-1, 3)
    values[fine[:, 0], fine[:, 1], fine[:, 2]] = distances(views, pictures, fine * step + low, truncation * step, sharpness, offset * step)
    return Field(values, low, step)


def unproject(views: Views, mask: Tensor) -> Tensor:
    view, row, column = mask.nonzero(as_tuple=True)
    z = views.depth[view, 0, row, column]
    focal, center = views.intrinsics[0, 0], views.size / 2
    camera = torch.stack([(column + 0.5 - center) / focal * z, (row + 0.5 - center) / focal * z, z], -1)
    rotation, shift = views.matrices[:, :3, :3], views.matrices[:, :3, 3]
    return ((camera - shift[view])[:, None] @ rotation[view])[:, 0]


def distances(views: Views, pictures: Tensor, points: Tensor, truncation: float, sharpness: float, offset: float) -> Tensor:
    step = POINTS_AT_ONCE[points.device.type]
    return torch.cat([_distances(views, pictures, part, truncation, sharpness, offset) for part in points.split(step)])


def _distances(views, pictures, points, truncation, sharpness, offset):
    total = torch.full((len(points),), 1e-3, device=points.device)
    value = -total
    for v in range(len(views)):
        where, z = views.project(v, points)
        alpha = F.grid_sample(pictures[None, v, :1], where[None, None], "bilinear", "zeros", align_corners=False)[0, 0, 0]
        depth, slope = F.grid_sample(pictures[None, v, 1:], where[None, None], "nearest", "zeros", align_corners=False)[0, :, 0]
        s = (((depth - z) * slope - offset) / truncation).clamp(max=1)
        w = alpha * slope * (s > -1) * torch.exp(sharpness * s)
        free = (1 - alpha) * float(np.exp(sharpness))
        total += w + free
        value += w * s + free
    return value / total
