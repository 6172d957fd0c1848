"""Depth and alpha of many views become one field of signed distance, and the field a surface.

A truncated signed distance function (Curless and Levoy, 1996) in which what no view reaches is inside and what any
view looks through counts as outside: the surface is closed, and has nothing in it that can't be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import LGMError
from ..devices import device_of
from ..jobs import OnStep, silent
from ..threads import parallel
from .topology import tangled, without_islands
from .views import RenderedViews

BLOCK = 4  # voxels; the field is computed in the blocks around the surface, elsewhere once per block
MARGIN = 3  # blocks around everything
POINTS_AT_ONCE = {"cpu": 2**17, "cuda": 2**24}  # on a CPU what its cache holds

TRUNCATION = 0.024  # scene units, of which FRAME_RADIUS is 0.6
# By so much the surface is moved outwards. A sheet without thickness gets some, and the halo that splats have around
# them is part of what one sees.
OFFSET = 0.006
REACH = 8.0  # pixels
DEEP = -0.99  # in units of the truncation: as far inside as the field tells
CLEAR = 0.02  # no sample is nearer to zero: a twelfth of a voxel
REPAIRS = 10  # rounds at most, of which one is the rule
NOTHING_SOLID = "There is nothing solid to make a mesh of: the Gaussians are too faint, small or few. Choose others."


@dataclass
class Field:
    """Samples of a signed distance in units of the truncation, from 1 outside to -1 inside.

    Attributes:
        values: [X, Y, Z].
        origin: [3], position of the first sample.
        step: Distance between samples.
    """

    values: Tensor
    origin: Tensor
    step: float


def fuse(views: RenderedViews, resolution: int, on_step: OnStep = silent) -> Field:
    """The field around everything that covers at least half of a pixel.

    Args:
        views: Their `depth` should be that of the first surface.
        resolution: Samples along the longest side.

    Raises:
        LGMError: If no view shows anything solid.
    """
    device = views.alpha.device
    origin, step, shape = bounds(views, resolution)
    blocks = tuple(n // BLOCK for n in shape)

    points = unproject(views, *(views.alpha[:, 0] > 0.5).nonzero(as_tuple=True))
    active = torch.zeros(blocks, device=device)
    x, y, z = ((points - origin) / (step * BLOCK)).long().unbind(1)
    active[x, y, z] = 1
    # Within the truncation of a surface, and a block more, all is computed.
    reach = 1 + int(np.ceil((TRUNCATION + OFFSET) / (step * BLOCK)))
    active = F.max_pool3d(active[None, None], 2 * reach + 1, 1, reach)[0, 0] > 0

    pixels = tables(views)
    everywhere = grid_points(blocks, device)
    centers = origin + (everywhere * BLOCK + (BLOCK - 1) / 2) * step
    values = distances(views, pixels, centers).sign().view(blocks)
    for axis in range(3):
        values = values.repeat_interleave(BLOCK, axis)
    fine = (active.nonzero()[:, None] * BLOCK + grid_points((BLOCK,) * 3, device)).flatten(0, 1)
    parts = fine.split(2**20)
    for i, part in enumerate(parts):
        on_step(i, len(parts))
        x, y, z = part.unbind(1)
        values[x, y, z] = distances(views, pixels, origin + part * step)
    return Field(values, origin, step)


def bounds(views: RenderedViews, resolution: int) -> tuple[Tensor, float, tuple[int, int, int]]:
    """A grid around all that covers half of a pixel: its first sample [3], the distance between samples,
    and how many there are along x, y and z, whole blocks.

    Raises:
        LGMError: If no view shows anything solid.
    """
    points = unproject(views, *(views.alpha[:, 0] > 0.5).nonzero(as_tuple=True))
    if not len(points):
        raise LGMError(NOTHING_SOLID)
    low, high = points.amin(0), points.amax(0)
    step = max(float((high - low).max()), 0.02) / (resolution - 2 * MARGIN * BLOCK)
    blocks = ((high - low) / (step * BLOCK)).long() + 1 + 2 * MARGIN
    return low - MARGIN * BLOCK * step, step, tuple((blocks * BLOCK).tolist())


def surface(field: Field) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] and faces [F, 3] of a closed manifold where the field is zero, without islands.

    Raises:
        LGMError: If it is nowhere zero.
    """
    from skimage.measure import marching_cubes

    values = smooth(field.values)
    values = F.pad(values[1:-1, 1:-1, 1:-1], (1,) * 6, value=1.0).cpu().numpy()  # closed at the border too
    if not values.min() < 0 < values.max():
        raise LGMError(NOTHING_SOLID)
    # A sample of nearly zero would give slivers, and one of zero triangles without area.
    values = np.where(values < 0, np.minimum(values, -CLEAR), np.maximum(values, CLEAR))
    device = field.values.device
    for _ in range(REPAIRS):
        vertices, faces, _, _ = marching_cubes(values, 0.0, allow_degenerate=False)
        faces = torch.from_numpy(faces.astype(np.int64)).to(device)
        # Rarely its cases don't fit together where two sheets nearly touch. There they become one.
        bad = tangled(faces, len(vertices)).cpu().numpy()
        if not len(bad):
            break
        low = np.floor(vertices[bad]).astype(int)
        for corner in np.ndindex(2, 2, 2):
            x, y, z = np.minimum(low + corner, np.array(values.shape) - 2).clip(1).T
            values[x, y, z] = np.minimum(values[x, y, z], -CLEAR)
    vertices = torch.from_numpy(vertices.astype(np.float32)).to(device) * field.step + field.origin
    return without_islands(vertices, faces)


def buried(views: RenderedViews, gaussians: Tensor) -> float:
    """The share, by opacity, of Gaussians [N, 14] that lie deeper inside than the truncation: no view shows them."""
    opacities = gaussians[:, 3]
    deep = distances(views, tables(views), gaussians[:, :3]) <= DEEP
    return float((opacities * deep).sum() / opacities.sum())


def slopes(views: RenderedViews) -> Tensor:
    """[V, 1, S, S], the cosine between the ray and the normal of the surface that the depth shows, 0 to 1."""
    depth = views.depth
    padded = F.pad(depth, (1, 1, 1, 1), mode="replicate")

    def slope(before: Tensor, after: Tensor) -> Tensor:
        # Of both sides the flatter one: next to an edge the side that belongs to the surface.
        return torch.minimum((depth - before).abs(), (after - depth).abs())

    dx = slope(padded[..., 1:-1, :-2], padded[..., 1:-1, 2:])
    dy = slope(padded[..., :-2, 1:-1], padded[..., 2:, 1:-1])
    pixel = depth.clamp(min=1e-6) / views.intrinsics[0, 0]
    return (1 + (dx.square() + dy.square()) / pixel.square()).rsqrt()


def unproject(views: RenderedViews, view: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Points [N, 3] that pixels [N] show."""
    z = views.depth[view, 0, row, column]
    focal, center = views.intrinsics[0, 0], views.size / 2
    camera = torch.stack([(column + 0.5 - center) / focal * z, (row + 0.5 - center) / focal * z, z], -1)
    rotation, shift = views.matrices[:, :3, :3], views.matrices[:, :3, 3]
    return ((camera - shift[view])[:, None] @ rotation[view])[:, 0]


def tables(views: RenderedViews) -> Tensor:
    """[V, S * S, 4], what `distances` looks up of each pixel: alpha, depth, slope and outline."""
    return torch.cat([views.alpha, views.depth, slopes(views), outlines(views)[:, :1]], 1).flatten(2).mT.contiguous()


def distances(views: RenderedViews, pixels: Tensor, points: Tensor) -> Tensor:
    """[N], the field at points [N, 3], from `tables`."""
    matrices = views.matrices.tolist()
    focal, size = float(views.intrinsics[0, 0]), views.size
    parts = points.split(POINTS_AT_ONCE[device_of(points.device).sizes])
    with parallel(points.device) as (each, _):
        return torch.cat(list(each(lambda part: _fused(part, pixels, matrices, focal, size), parts)))


def _fused(points: Tensor, pixels: Tensor, matrices: list, focal: float, size: int) -> Tensor:
    xyz = points.T.contiguous()
    total = torch.full_like(xyz[0], 1e-3)  # a little says inside, for where nothing says anything
    value = -total
    hull = torch.full_like(total, -1)
    for matrix, table in zip(matrices, pixels, strict=True):
        x, y, z = (row[0] * xyz[0] + row[1] * xyz[1] + row[2] * xyz[2] + row[3] for row in matrix[:3])
        pixel = z.clamp_(min=1e-6).reciprocal().mul_(focal)  # pixels in a scene unit
        column = x.mul_(pixel).add_(size / 2).clamp_(0, size - 1).long()
        row = y.mul_(pixel).add_(size / 2).clamp_(0, size - 1).long()
        alpha, depth, slope, outline = table[row.mul_(size).add_(column)].unbind(1)
        distance = depth.sub(z).mul_(slope).sub_(OFFSET).mul_(1 / TRUNCATION).clamp_(max=1)
        # The further behind the surface, the less a view knows.
        weight = distance.clamp(max=0).add_(1).clamp_(min=0).mul_(slope).mul_(alpha)
        total += weight
        value += weight.mul_(distance)
        hull = torch.maximum(hull, outline.div(pixel).mul_(1 / TRUNCATION))
    return (value / total).maximum(hull.clamp_(max=1))


def outlines(views: RenderedViews, alpha: Tensor | None = None) -> Tensor:
    """[V, 3, S, S]: by how many pixels each pixel is outside of where alpha is a half, negative inside, and the
    direction outwards (x, y), of any length.

    To first order, from the slope of alpha [V, 1, S, S] (the views' own if None) after a little blur: right near edges,
    elsewhere REACH or -REACH.
    """
    alpha = views.alpha if alpha is None else alpha
    kernel = alpha.new_tensor([1, 4, 6, 4, 1]) / 16
    alpha = F.conv2d(F.pad(alpha, (2, 2, 2, 2), mode="replicate"), (kernel[:, None] * kernel)[None, None])
    padded = F.pad(alpha, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, :-2] - padded[..., 1:-1, 2:]) / 2
    y = (padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]) / 2
    distance = (0.5 - alpha) / (x.square() + y.square() + 1e-8).sqrt()
    return torch.cat([distance.clamp(-REACH, REACH), x, y], 1)


def smooth(values: Tensor) -> Tensor:
    """Averaged a little along each axis; the border stays."""
    for axis in range(3):
        inner = values.shape[axis] - 2
        before, here, after = (values.narrow(axis, i, inner) for i in range(3))
        middle = (before + after).add_(here, alpha=2).mul_(0.25)
        values = values.clone()
        values.narrow(axis, 1, inner).copy_(middle)
    return values


def grid_points(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """[N, 3], all indices of an array."""
    return torch.stack(torch.meshgrid(*(torch.arange(n, device=device) for n in shape), indexing="ij"), -1).view(-1, 3)
