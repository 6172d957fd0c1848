"""Colour for every texel, from the views that see it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .fusion import slopes
from .raster import barycentric, rasterize
from .topology import face_normals
from .views import Views, sample

TEXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}


def texel_corners(corner_uvs: Tensor, size: int) -> Tensor:
    """UV [F, 3, 2], v up, to pixels of the texture, y down."""
    return torch.stack([corner_uvs[..., 0], 1 - corner_uvs[..., 1]], -1) * size


def depth_picture(vertices: Tensor, faces: Tensor, views: Views, view: int) -> Tensor:
    """[S, S], z of the mesh in one view; infinite where it is not."""
    where, z = views.project(view, vertices)
    corners, depths = ((where + 1) * (views.size / 2))[faces], z[faces]
    a, b, c = corners.unbind(1)
    b, c = b - a, c - a
    front = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0] < 0  # counter-clockwise, but y is down
    corners, depths = corners[front], depths[front]
    face = rasterize(corners, depths, views.size)
    row, column = (face >= 0).nonzero(as_tuple=True)
    face = face[row, column]
    weights = barycentric(corners[face], torch.stack([column, row], 1) + 0.5)
    result = torch.full((views.size, views.size), torch.inf, device=z.device)
    result[row, column] = 1 / (weights / depths[face]).sum(1)
    return result


def bake(
    vertices: Tensor,
    faces: Tensor,
    corner_uvs: Tensor,
    views: Views,
    size: int,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
    sharpness: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """A texture [size, size, 3] and vertex colours [V, 3], 0 to 1."""
    device = vertices.device
    face_of = rasterize(texel_corners(corner_uvs, size), None, size)
    row, column = (face_of >= 0).nonzero(as_tuple=True)
    face = face_of[row, column]
    weights = barycentric(texel_corners(corner_uvs, size)[face], torch.stack([column, row], 1) + 0.5)
    normals = F.normalize(face_normals(vertices, faces), dim=1)
    # sorted by face so that a view's front faces are slices of memory
    order = face.argsort()
    face, weights, row, column = face[order], weights[order], row[order], column[order]
    points = (vertices[faces[face]] * weights[..., None]).sum(1)
    total = torch.zeros(len(face), 4, device=device)
    slope = slopes(views)
    centers = vertices[faces].mean(1)
    pixel = 1 / views.intrinsics[0, 0]
    for v in range(len(views)):
        on_step(v, len(views))
        depth = depth_picture(vertices, faces, views, v)
        eye = -(views.matrices[v, :3, :3].T @ views.matrices[v, :3, 3])
        ray = F.normalize(eye - centers, dim=1)
        cosine = (normals * ray).sum(1)
        which = (cosine > 0.15)[face].nonzero()[:, 0]
        picture = torch.cat([views.rgb[v], views.alpha[v], slope[v]])
        for part in which.split(TEXELS_AT_ONCE[device.type]):
            where, z = views.project(v, points[part])
            c = cosine[face[part]]
            near = sample(depth[None], where, "nearest")[:, 0]
            behind = z - near
            tolerance = 0.006 + 1.5 * pixel * z / c
            found = sample(picture, where)
            alpha = found[:, 3]
            weight = (behind < tolerance) * alpha.clamp(min=0).pow(4) * c.pow(sharpness) * found[:, 4].clamp(min=0.05)
            total[part, :3] += found[:, :3] * (weight / alpha.clamp(min=1e-3))[:, None]
            total[part, 3] += weight
    seen = total[:, 3] > 1e-4
    colors = total[:, :3] / total[:, 3:].clamp(min=1e-8)
    vertex_colors = spread(vertices, faces, face[seen], weights[seen], colors[seen])
    fill = (vertex_colors[faces[face]] * weights[..., None]).sum(1)
    colors = torch.where(seen[:, None], colors, fill).clamp(0, 1)
    texture = torch.zeros(size, size, 4, device=device)
    texture[row, column] = torch.cat([colors, torch.ones_like(colors[:, :1])], 1)
    return fill_gaps(texture), vertex_colors


def spread(vertices: Tensor, faces: Tensor, face: Tensor, weights: Tensor, colors: Tensor) -> Tensor:
    """Colours of vertices [V, 3] from those of texels; those without one get it from their neighbours."""
    total = torch.zeros(len(vertices), 4, device=vertices.device)
    for k in range(3):
        total.index_add_(0, faces[face, k], torch.cat([colors, torch.ones_like(colors[:, :1])], 1) * weights[:, k, None])
    known = total[:, 3] > 1e-3
    values = torch.where(known[:, None], total[:, :3] / total[:, 3:].clamp(min=1e-3), 0.5)
    a, b = faces.flatten(), faces.roll(1, 1).flatten()
    valence = torch.bincount(a, minlength=len(vertices)).clamp(min=1)[:, None]
    reached = known.clone()
    for _ in range(200):
        if reached.all():
            break
        sums = torch.zeros(len(vertices), 4, device=vertices.device)
        sums.index_add_(0, a, torch.cat([values[b] * reached[b, None], reached[b, None].float()], 1))
        touched = sums[:, 3] > 0
        values = torch.where((touched & ~known)[:, None], sums[:, :3] / sums[:, 3:].clamp(min=1), values)
        reached = reached | touched
    return values.clamp(0, 1)


def fill_gaps(texture: Tensor) -> Tensor:
    """[S, S, 3] from [S, S, 4] whose last channel says where there is colour: the rest gets that of its surroundings.

    By a pyramid of averages, so that smaller versions of the texture (mip maps) hold no other colour either.
    """
    level = texture.permute(2, 0, 1)[None]
    level = torch.cat([level[:, :3] * level[:, 3:], level[:, 3:]], 1)
    levels = [level]
    while min(level.shape[2:]) > 1:
        level = F.avg_pool2d(level, 2, ceil_mode=True)
        levels.append(level)
    result = levels[-1][:, :3] / levels[-1][:, 3:].clamp(min=1e-8)
    for level in reversed(levels[:-1]):
        result = F.interpolate(result, size=level.shape[2:], mode="nearest")
        known = level[:, 3:] > 0
        result = torch.where(known, level[:, :3] / level[:, 3:].clamp(min=1e-8), result)
    return result[0].permute(1, 2, 0)
