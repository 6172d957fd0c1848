"""Colour for every texel, from the views that see it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import device_of
from ..jobs import OnStep, silent
from ..threads import parallel
from .fusion import slopes
from .raster import barycentric, rasterize
from .topology import face_normals
from .views import RenderedViews, sample

TEXELS_AT_ONCE = {"cpu": 2**15, "cuda": 2**24}
SHARPNESS = 4.0  # of the choice among views: the power of the cosine between a face's normal and the ray
GRAZING = 0.15  # a lesser cosine shows nothing
TOLERANCE = 0.006  # scene units that a point may lie behind what the mesh shows in a view
UNSEEN = 1e-4  # less weight than that is no view


def texel_corners(corner_uvs: Tensor, size: int) -> Tensor:
    """UV [F, 3, 2], v up, to pixels of the texture, y down."""
    return torch.stack([corner_uvs[..., 0], 1 - corner_uvs[..., 1]], -1) * size


def depth_picture(vertices: Tensor, faces: Tensor, views: RenderedViews, view: int) -> Tensor:
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
    views: RenderedViews,
    size: int,
    on_step: OnStep = silent,
) -> tuple[Tensor, Tensor]:
    """Colours of all texels that faces cover: the mean of those views that see them, mostly of those that look at them
    straight, and of pixels that lie neither at an edge nor are half transparent. What no view sees gets the colour of
    what lies around it on the surface.

    Returns:
        A texture [size, size, 3] and vertex colours [V, 3], 0 to 1.
    """
    with parallel(vertices.device) as (each, _):
        corners = texel_corners(corner_uvs, size)
        picture = rasterize(corners, None, size)
        row, column = (picture >= 0).nonzero(as_tuple=True)
        face = picture[row, column]
        order = face.argsort()  # so that what is near each other is worked on together
        face, row, column = face[order], row[order], column[order]
        weights = barycentric(corners[face], torch.stack([column, row], 1) + 0.5)
        points = (vertices[faces[face]] * weights[..., None]).sum(1)

        scene = _Scene(vertices, faces, views, each)
        parts = torch.arange(len(face), device=face.device).split(TEXELS_AT_ONCE[device_of(face.device).sizes])
        found = []
        for i, part in enumerate(each(lambda part: scene.colors(points[part], face[part]), parts)):
            on_step(i, len(parts))
            found.append(part)
        colors, seen = torch.cat(found).split((3, 1), 1)
        seen = seen[:, 0] > UNSEEN
        vertex_colors = spread(vertices, faces, face[seen], weights[seen], colors[seen])
        around = (vertex_colors[faces[face]] * weights[..., None]).sum(1)
        colors = torch.where(seen[:, None], colors, around).clamp(0, 1)
        texture = torch.zeros(size, size, 4, device=face.device)
        texture[row, column] = torch.cat([colors, torch.ones_like(colors[:, :1])], 1)
        return fill_gaps(texture), vertex_colors


class _Scene:
    """A mesh as the views see it.

    Attributes:
        pictures: [V, 5, S, S]: premultiplied colour, alpha, slope.
        depths: [V, 1, S, S], of the mesh.
        cosines: [V, F], between each face's normal and the ray to the camera.
    """

    def __init__(self, vertices: Tensor, faces: Tensor, views: RenderedViews, each: Callable):
        self.views = views
        self.pictures = torch.cat([views.rgb, views.alpha, slopes(views)], 1)
        numbers = range(len(views))
        self.depths = torch.stack(list(each(lambda v: depth_picture(vertices, faces, views, v)[None], numbers)))
        normals = F.normalize(face_normals(vertices, faces), dim=1)
        eyes = -(views.matrices[:, :3, :3].mT @ views.matrices[:, :3, 3:])[:, :, 0]
        rays = F.normalize(eyes[:, None] - vertices[faces].mean(1), dim=2)
        self.cosines = (rays * normals).sum(2)

    def colors(self, points: Tensor, face: Tensor) -> Tensor:
        """[N, 4], the colour of points [N, 3] on faces [N], and how well it is seen."""
        total = points.new_zeros(len(points), 4)
        pixel = 1 / float(self.views.intrinsics[0, 0])
        for v in range(len(self.views)):
            cosine = self.cosines[v][face]
            which = (cosine > GRAZING).nonzero()[:, 0]
            if not len(which):
                continue
            cosine = cosine[which]
            where, z = self.views.project(v, points[which])
            behind = z - sample(self.depths[v], where, "nearest")[:, 0]
            # The depth is that of a pixel's centre, and a slanting face goes on from there.
            visible = behind < TOLERANCE + 1.5 * pixel * z / cosine
            color, alpha, slope = sample(self.pictures[v], where).split((3, 1, 1), 1)
            weight = cosine.pow(SHARPNESS) * visible * alpha[:, 0].pow(4) * slope[:, 0].clamp(min=0.05)
            color = color * (weight[:, None] / alpha.clamp(min=1e-3))
            total.index_add_(0, which, torch.cat([color, weight[:, None]], 1))
        total[:, :3] /= total[:, 3:].clamp(min=1e-8)
        return total


def spread(vertices: Tensor, faces: Tensor, face: Tensor, weights: Tensor, colors: Tensor) -> Tensor:
    """Colours of vertices [V, 3] from those of texels; those without one get it from their neighbours."""
    total = torch.zeros(len(vertices), 4, device=vertices.device)
    for k in range(3):
        total.index_add_(
            0, faces[face, k], torch.cat([colors, torch.ones_like(colors[:, :1])], 1) * weights[:, k, None]
        )
    known = total[:, 3] > 1e-3
    values = torch.where(known[:, None], total[:, :3] / total[:, 3:].clamp(min=1e-3), 0.5)
    a, b = faces.flatten(), faces.roll(1, 1).flatten()
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
