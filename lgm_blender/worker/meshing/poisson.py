"""Screened Poisson: one smooth closed surface through what all views see, for scans with gaps and noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import LGMError
from ..jobs import OnStep, silent
from .fusion import NOTHING_SOLID, OFFSET, distances, slopes, tables, unproject
from .meshlab import screened_poisson
from .topology import without_islands
from .views import RenderedViews

POINTS = 250_000
DEEPEST = 8  # octree: 256 cells along the longest side, or fewer, for none is smaller than a pixel
GRAZING = 0.3  # cosine between ray and surface below which a depth says little
AGREED = 0.5  # of the truncation: points further from what the other views show are left out


def poisson_surface(views: RenderedViews, on_step: OnStep = silent) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] and faces [F, 3] of a closed manifold without islands.

    Raises:
        LGMError: If no view shows anything solid, or pymeshlab can't be used.
    """
    points, normals = oriented_points(views)
    if not len(points):
        raise LGMError(NOTHING_SOLID)
    depth = min(DEEPEST, int(math.log2(views.size)))
    return without_islands(*screened_poisson(points + OFFSET * normals, normals, depth, on_step))


def oriented_points(views: RenderedViews) -> tuple[Tensor, Tensor]:
    """Points [N, 3] on the first surface, POINTS at most, spread over all views, and their unit normals [N, 3].

    A normal is that of the depth picture, from the pixel's neighbours on both sides.
    """
    solid = views.alpha > 0.5
    inner = -F.max_pool2d(-solid.float(), 3, 1, 1) > 0  # whose neighbours are solid too
    mask = (inner & (slopes(views) > GRAZING))[:, 0]
    view, row, column = mask.nonzero(as_tuple=True)
    chosen = torch.arange(0, len(view), max(1, -(-len(view) // POINTS)), device=view.device)
    view, row, column = view[chosen], row[chosen], column[chosen]

    def at(down: int, right: int) -> Tensor:
        limit = views.size - 1
        return unproject(views, view, (row + down).clamp(0, limit), (column + right).clamp(0, limit))

    points = at(0, 0)
    # The camera's x is right and its y down: down times right looks back at it.
    normals = F.normalize(torch.linalg.cross(at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)), dim=1)
    agreed = (distances(views, tables(views), points).abs() < AGREED) & normals.isfinite().all(1)
    return points[agreed], normals[agreed]
