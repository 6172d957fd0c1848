"""Quads: pairs of triangles of a closed mesh that are joined across their common edge, and evened out.

A mesh with quads keeps its triangles: the first 2 * quads of its faces are, two by two, the halves (a, b, c) and
(a, c, d) of a quad (a, b, c, d). So whatever works on triangles works on it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...core.formats.gltf import QUAD
from ..jobs import OnStep, silent
from ..threads import one_thread
from .topology import face_normals

BENT_COSINE = 0.75  # triangles that lean further apart, 41 degrees, are not joined
WIDEST = math.radians(168)  # nor those of whose quad a corner would be wider
REACH = 12  # triangles exchange partners along paths of so many pairs
ROUNDS = 8  # of pairing, for what has been evened out pairs better
EVENINGS = 6  # steps towards squares in each
TURN_COSINE = 0.3  # no face turns by more than this angle's in a step
STEP = 0.5  # of the way there, each
HOLD = 5.0  # how much less a vertex moves away from its faces' planes than along them


def make_quads(vertices: Tensor, faces: Tensor, on_step: OnStep = silent) -> tuple[Tensor, Tensor]:
    """The vertices and faces of a closed mesh of triangles, moved so that many pairs of them are good quads.

    Pairing and evening take turns; the last pairing is left to `pair_triangles`.
    """
    with one_thread(faces.device):
        for step in range(ROUNDS):
            on_step(step, ROUNDS)
            order, quads = pair_triangles(vertices, faces)
            faces = faces.flatten()[order]
            vertices = even_quads(vertices, faces, quads)
    return vertices, faces


def pair_triangles(vertices: Tensor, faces: Tensor, corner_uvs: Tensor | None = None) -> tuple[Tensor, int]:
    """A new order of the faces' corners [F, 3], by which the first faces are the halves of quads, and how many quads.

    Neighbours are joined that make the best quads, first those nearest to a flat rectangle; then those left over get
    partners along augmenting paths (Berge 1957). Of a closed mesh a triangle is left only where the surface is bent.

    Args:
        vertices, faces: [V, 3] and [F, 3], closed and oriented.
        corner_uvs: [F, 3, 2]; with them, nothing is joined across a seam of the UV map.
    """
    quads, cost = _candidates(vertices, faces, corner_uvs)
    halves = quads[:, [0, 3]] // 3
    partner = _matching(halves.cpu().numpy(), cost.cpu().numpy(), len(faces))
    chosen = torch.from_numpy(np.unique(partner[partner >= 0])).to(faces.device)
    rest = torch.from_numpy(partner < 0).to(faces.device)
    corners = torch.arange(faces.numel(), device=faces.device).view(-1, 3)
    return torch.cat([quads[chosen].view(-1, 3), corners[rest]]), len(chosen)


def quad_corners(faces: Tensor, quads: int) -> Tensor:
    """[Q, 4], the quads (a, b, c, d) whose halves are the first faces."""
    return faces[: 2 * quads].reshape(-1, 6)[:, QUAD]


def corner_angles(points: Tensor) -> Tensor:
    """Radians [Q, 4] at the corners of quads [Q, 4, 3], each between its two sides."""
    ahead = torch.nn.functional.normalize(points.roll(-1, 1) - points, dim=2)
    back = torch.nn.functional.normalize(points.roll(1, 1) - points, dim=2)
    return (ahead * back).sum(2).clamp(-1, 1).acos()


def join_normals(corner_normals: Tensor, quads: int) -> Tensor:
    """Gives both halves of each quad the same normals [F, 3, 3] at the ends of what was their common edge."""
    one, two = corner_normals[: 2 * quads].view(-1, 2, 3, 3).unbind(1)
    mean = torch.nn.functional.normalize(one[:, [0, 2]] + two[:, [0, 1]], dim=2)
    one[:, [0, 2]] = two[:, [0, 1]] = mean
    return corner_normals


def even_quads(vertices: Tensor, faces: Tensor, quads: int) -> Tensor:
    """The vertices, moved along the surface so that the quads come nearer to squares.

    Each quad pulls its corners to the square that fits it best (in its mean plane, by the mean of its corners turned by
    0, 90, 180 and 270 degrees: Bouaziz et al. 2012), each triangle to an equilateral one; a vertex follows the mean of
    that as far as the planes of its faces let it, so that edges and corners of the surface stay.
    """
    corners, triangles = quad_corners(faces, quads), faces[2 * quads :]
    for _ in range(EVENINGS):
        pull, count = torch.zeros_like(vertices), vertices.new_zeros(len(vertices), 1)
        for polygons in (corners, triangles):
            target = _regular(vertices[polygons])
            pull.index_add_(0, polygons.flatten(), (target - vertices[polygons]).view(-1, 3))
            count.index_add_(0, polygons.flatten(), torch.ones_like(target[..., :1]).view(-1, 1))
        normals = torch.nn.functional.normalize(face_normals(vertices, faces), dim=1)
        planes = torch.zeros(len(vertices), 3, 3, device=vertices.device)
        outer = normals[:, :, None] * normals[:, None]
        planes.index_add_(0, faces.flatten(), outer.repeat_interleave(3, 0))
        hold = torch.eye(3, device=vertices.device) + HOLD * planes
        moved = vertices + STEP * torch.linalg.solve(hold, pull / count.clamp(min=1))
        # A vertex stays where one of its faces would turn over.
        while True:
            now = face_normals(moved, faces)
            turned = ((now * normals).sum(1) <= TURN_COSINE * now.norm(dim=1)) & (moved != vertices)[faces].any((1, 2))
            if not turned.any():
                break
            stays = faces[turned].flatten()
            moved[stays] = vertices[stays]
        vertices = moved
    return vertices


def _regular(points: Tensor) -> Tensor:
    """The regular polygons [N, K, 3] nearest to polygons [N, K, 3], in their mean planes."""
    count = points.shape[1]
    middle = points.mean(1, keepdim=True)
    arms = points - middle
    normal = torch.nn.functional.normalize(torch.linalg.cross(arms, arms.roll(-1, 1)).sum(1), dim=1)[:, None]
    arms = arms - (arms * normal).sum(2, keepdim=True) * normal
    side = torch.linalg.cross(normal.expand_as(arms), arms)
    turns = torch.arange(count, device=points.device) * (2 * math.pi / count)
    back = arms * turns.cos()[:, None] - side * turns.sin()[:, None]  # each corner turned onto the first
    mean = back.mean(1, keepdim=True)
    across = torch.linalg.cross(normal.expand_as(mean), mean)
    return middle + mean * turns.cos()[:, None] + across * turns.sin()[:, None]


def _candidates(vertices: Tensor, faces: Tensor, corner_uvs: Tensor | None) -> tuple[Tensor, Tensor]:
    """The quads across the edges that may go, as the six corners of their halves [E, 6], and how bad each is [E]."""
    corner = torch.arange(faces.numel(), device=faces.device)  # and the edge from it to the next
    ahead = corner.view(-1, 3).roll(-1, 1).flatten()
    start, end = faces.flatten(), faces.roll(-1, 1).flatten()
    forward = (start * len(vertices) + end).argsort()
    backward = (end * len(vertices) + start).argsort()
    other = torch.empty_like(corner)
    other[forward] = backward
    one = corner[start < end]
    two = other[one]
    halves = torch.stack([ahead[two], ahead[ahead[two]], two, one, ahead[one], ahead[ahead[one]]], 1)
    quads = start[halves[:, QUAD]]
    normals = torch.nn.functional.normalize(face_normals(vertices, faces), dim=1)
    flat = (normals[one // 3] * normals[two // 3]).sum(1)
    points = vertices[quads]
    angles = torch.stack([
        _angle(points, 0, 1, 2) + _angle(points, 0, 2, 3), _angle(points, 1, 2, 0),
        _angle(points, 2, 3, 0) + _angle(points, 2, 0, 1), _angle(points, 3, 0, 2),
    ], 1)  # fmt: skip
    cost = (angles / (math.pi / 2) - 1).square().sum(1) + (1 - flat)
    good = (flat > BENT_COSINE) & (angles.amax(1) < WIDEST) & (quads[:, 1] != quads[:, 3])
    if corner_uvs is not None:
        uvs = corner_uvs.view(-1, 2)[halves]
        good &= torch.isclose(uvs[:, [0, 2]], uvs[:, [3, 4]], rtol=0, atol=1e-6).all((1, 2))
    return halves[good], cost[good]


def _angle(points: Tensor, at: int, one: int, two: int) -> Tensor:
    a, b = (torch.nn.functional.normalize(points[:, k] - points[:, at], dim=1) for k in (one, two))
    return (a * b).sum(1).clamp(-1, 1).acos()


def _matching(halves: np.ndarray, cost: np.ndarray, count: int) -> np.ndarray:
    """[count], for each triangle the candidate (whose `halves` are [E, 2]) that it is part of, or -1."""
    ends = halves.tolist()
    chosen = [-1] * count
    edges: list[list[int]] = [[] for _ in range(count)]
    for edge in np.argsort(cost, kind="stable").tolist():
        one, two = ends[edge]
        edges[one].append(edge)
        edges[two].append(edge)
        if chosen[one] < 0 and chosen[two] < 0:
            chosen[one] = chosen[two] = edge
    for face in range(count):
        if chosen[face] < 0:
            _augment(face, ends, edges, chosen)
    return np.array(chosen)


def _augment(root: int, ends: list[list[int]], edges: list[list[int]], chosen: list[int]) -> None:
    """Finds a partner for a triangle without one, if another such can be reached within REACH pairs.

    Breadth first: to a neighbour, from it to its partner, to a neighbour of that, and so on; then all along the way
    leave their partners for the next.
    """
    came, layer = {root: -1}, [root]
    for _ in range(REACH):
        following = []
        for face in layer:
            for edge in edges[face]:
                other = sum(ends[edge]) - face
                if other in came:
                    continue
                came[other] = edge
                if chosen[other] < 0:
                    while edge >= 0:
                        before = sum(ends[edge]) - other
                        chosen[other] = chosen[before] = edge
                        other = sum(ends[came[before]]) - before
                        edge = came[other] if came[before] >= 0 else -1
                    return
                mate = sum(ends[chosen[other]]) - other
                if mate not in came:
                    came[mate] = chosen[other]
                    following.append(mate)
        layer = following
