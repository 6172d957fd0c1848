"""A mesh whose outline is that of the Gaussians: in each view, where alpha is a half."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jobs import OnStep, silent
from ..threads import parallel
from .fusion import REACH, outlines
from .texture import depth_picture
from .topology import THINNEST, evenness, face_normals
from .views import RenderedViews, sample

ROUNDS = 4
NEAR = 1.0  # pixels from the mesh's own outline that a vertex on it may be found
STIFFNESS = 30.0  # how much of a vertex's move is that of its neighbours, in units of views that see it on the outline
SPREADING = 80  # edges that a move reaches at most
LONGEST = 0.02  # scene units that a vertex moves in one round
HALVINGS = 5
TURN = 0.5  # the cosine by which no face turns further


def fit_outlines(
    vertices: Tensor,
    faces: Tensor,
    views: RenderedViews,
    on_step: OnStep = silent,
) -> Tensor:
    """Vertices [V, 3] moved so that the mesh's outlines come to lie on the Gaussians'.

    A depth is that of where Gaussians look solid from the front, and from the side they reach further; so does what
    fusion and decimation round off. Each view says for the vertices on its outline how far that is from where alpha is
    a half, across the outline. A vertex takes the least squares solution of all its views, with a little of its
    neighbours' moves, which is also all that vertices on no outline get.
    """
    with parallel(vertices.device) as (each, _):
        wanted = outlines(views)
        for step in range(ROUNDS):
            on_step(step, ROUNDS)
            move = _spread(*_moves(vertices, faces, views, wanted, each), faces)
            vertices = vertices + _unfolded(vertices, faces, move)
    return vertices


def _unfolded(vertices: Tensor, faces: Tensor, move: Tensor) -> Tensor:
    """As much of vertices' moves [V, 3] as turns no face over and makes none a sliver."""
    move = move * (LONGEST / move.norm(dim=1, keepdim=True).clamp(min=LONGEST))
    before, even = face_normals(vertices, faces), evenness(vertices, faces)
    limit = torch.minimum(even / 2, even.new_tensor(THINNEST))
    tries = 0
    while True:
        after = face_normals(vertices + move, faces)
        spoiled = (before * after).sum(1) < TURN * before.norm(dim=1) * after.norm(dim=1)
        spoiled |= evenness(vertices + move, faces) < limit
        if not (spoiled & (move[faces] != 0).any(2).any(1)).any():
            return move
        move[faces[spoiled].flatten()] *= 0.5 if tries < HALVINGS else 0
        tries += 1


def _moves(
    vertices: Tensor, faces: Tensor, views: RenderedViews, wanted: Tensor, each: Callable
) -> tuple[Tensor, Tensor]:
    """Normal equations of each vertex's move, from all views: [V, 3, 3] and [V, 3]."""
    normals = face_normals(vertices, faces)
    centers = vertices[faces].mean(1)
    left = vertices.new_zeros(len(vertices), 9)
    right = vertices.new_zeros(len(vertices), 3)
    corners = faces.flatten()

    def one(v: int) -> tuple[Tensor, Tensor, Tensor]:
        covered = depth_picture(vertices, faces, views, v).isfinite().float()
        own = outlines(views, covered[None, None])[0, :1]
        rotation, shift = views.matrices[v, :3, :3], views.matrices[v, :3, 3]
        front = ((centers + rotation.T @ shift) * normals).sum(1) < 0
        fronts = torch.zeros_like(vertices[:, 0]).index_add_(0, corners, front.float().repeat_interleave(3))
        backs = torch.zeros_like(fronts).index_add_(0, corners, (~front).float().repeat_interleave(3))
        where, z = views.project(v, vertices)
        outline = sample(torch.cat([wanted[v], own]), where)
        near = (outline[:, 0].abs() < REACH) & (outline[:, 3].abs() < NEAR)
        which = ((fronts > 0) & (backs > 0) & near).nonzero()[:, 0]
        across = F.normalize(outline[which, 1:3], dim=1) @ rotation[:2]
        distance = -outline[which, 0] * z[which] / views.intrinsics[0, 0]
        return which, across, distance

    for which, across, distance in each(one, range(len(views))):
        left.index_add_(0, which, (across[:, :, None] * across[:, None]).flatten(1))
        right.index_add_(0, which, across * distance[:, None])
    return left.view(-1, 3, 3), right


def _spread(left: Tensor, right: Tensor, faces: Tensor) -> Tensor:
    """[V, 3], the solution of each vertex's equations that is like its neighbours'."""
    a, b = faces.flatten(), faces.roll(1, 1).flatten()
    valence = torch.bincount(a, minlength=len(left)).clamp(min=1).float()[:, None]
    left = torch.linalg.inv(left + STIFFNESS * torch.eye(3, device=left.device))
    move = torch.zeros_like(right)
    for _ in range(SPREADING):
        around = torch.zeros_like(move).index_add_(0, a, move[b]) / valence
        move = (left @ (right + STIFFNESS * around)[:, :, None])[:, :, 0]
    return move
