"""Closed triangle meshes: islands, decimation that keeps them manifold, and what is wrong with one.

Faces are [F, 3] int64 tensors, wound counter-clockwise seen from outside; vertices are [V, 3] float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..devices import device_of
from ..jobs import OnStep, silent
from ..threads import one_thread

ISLAND = 0.002  # parts with less of the largest one's area are left out
CHEAPEST = 0.5  # of the edges are candidates in one round of collapses
ROUNDS = 3  # of choosing edges with one set of costs
FLIP_COSINE = 0.3  # a collapse may turn no face by more than this angle's
SHARP_COSINE = 0.7  # faces that lean further apart, 45 degrees, are not shaded as one surface
THINNEST = 0.03  # nor make one with less of this ratio of area to squared edges (an equilateral one has 1)


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F, 3], of length twice the area."""
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def volume(vertices: Tensor, faces: Tensor) -> float:
    """The enclosed volume, positive if the faces look outwards."""
    a, b, c = vertices.double()[faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def corner_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F, 3, 3] unit normals of the corners: the mean over the vertex's faces that do not lean away from this one."""
    with one_thread(faces.device):
        normals = face_normals(vertices, faces)
        unit = torch.nn.functional.normalize(normals, dim=1)
        corner = faces.flatten().argsort(stable=True)  # corners, grouped by vertex
        vertex = faces.flatten()[corner]
        valence = torch.bincount(vertex, minlength=len(vertices))
        start = valence.cumsum(0) - valence
        # All pairs of corners that share a vertex.
        count = valence[vertex]
        one = torch.arange(len(corner), device=faces.device).repeat_interleave(count)
        place = torch.arange(len(one), device=faces.device) - (count.cumsum(0) - count).repeat_interleave(count)
        one, other = corner[one], corner[start[vertex[one]] + place]
        near = (unit[one // 3] * unit[other // 3]).sum(1) > SHARP_COSINE
        result = torch.zeros(len(corner), 3, device=vertices.device)
        result.index_add_(0, one[near], normals[other[near] // 3])
        return torch.nn.functional.normalize(result, dim=1).view(-1, 3, 3)


def components(faces: Tensor, count: int) -> tuple[int, Tensor]:
    """How many connected parts there are, and of which each of `count` vertices is: [V]."""
    pairs = faces[:, :2].cpu().numpy(), faces[:, 1:].cpu().numpy()
    rows, columns = (np.concatenate([pair[:, i] for pair in pairs]) for i in (0, 1))
    number, labels = connected_components(coo_matrix((np.ones(len(rows), bool), (rows, columns)), (count, count)))
    return number, torch.from_numpy(labels.astype(np.int64)).to(faces.device)


def part_areas(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Twice the area [P] of each connected part, and of which part each face is [F]."""
    number, label = components(faces, len(vertices))
    label = label[faces[:, 0]]
    area = torch.zeros(number, device=faces.device)
    return area.index_add_(0, label, face_normals(vertices, faces).norm(dim=1)), label


def without_islands(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """The mesh without parts that have less than ISLAND of the largest one's area."""
    area, label = part_areas(vertices, faces)
    faces = faces[(area >= ISLAND * area.max())[label]]
    used = torch.zeros(len(vertices), dtype=torch.bool, device=faces.device)
    used[faces.flatten()] = True
    return vertices[used], (used.cumsum(0) - 1)[faces]


def defects(vertices: Tensor, faces: Tensor) -> dict[str, int]:
    """What keeps a mesh from being a closed, oriented manifold; all zero for a good one.

    Returns:
        open_edges: Edges of one face. crowded_edges: Of more than two. inconsistent_edges: Of two that disagree about
        which side is outside. pinched_vertices: Whose faces are more than one fan. duplicate_faces: Of the same three
        vertices as another. degenerate_faces: With a vertex twice, or without area.
    """
    _, uses, forward, fans = _structure(faces, len(vertices))
    sorted_faces = faces.sort(1).values
    area = face_normals(vertices, faces).norm(dim=1)
    return {
        "open_edges": int((uses == 1).sum()),
        "crowded_edges": int((uses > 2).sum()),
        "inconsistent_edges": int(((uses == 2) & (forward != 0)).sum()),
        "pinched_vertices": int((fans - 1).clamp(min=0).sum()),
        "duplicate_faces": len(faces) - len(torch.unique(sorted_faces, dim=0)),
        "degenerate_faces": int(((sorted_faces.diff(dim=1) == 0).any(1) | ~(area > 0)).sum()),
    }


def tangled(faces: Tensor, count: int) -> Tensor:
    """Which of `count` vertices [K] are on an edge of more than two faces, or in the middle of more than one fan."""
    edges, uses, _, fans = _structure(faces, count)
    return torch.cat([edges[uses > 2].flatten(), (fans > 1).nonzero()[:, 0]]).unique()


def _structure(faces: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges [E, 2], how many faces each has, how many more of them run from its first to its second vertex than back,
    and the number of fans at each of `count` vertices."""
    half = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    low, high = half.amin(1), half.amax(1)
    keys, edge, uses = torch.unique(low * count + high, return_inverse=True, return_counts=True)
    forward = torch.zeros_like(uses).index_add_(0, edge, torch.where(half[:, 0] < half[:, 1], 1, -1))
    # Corners are joined across edges; a vertex with more than one group of corners is a pinch.
    order = edge.argsort(stable=True)
    first = (uses.cumsum(0) - uses)[uses == 2]
    one, two = order[first], order[first + 1]
    following = torch.arange(len(half), device=faces.device).view(-1, 3).roll(-1, 1).flatten()
    same = half[one, 0] == half[two, 0]  # then the two run the same way
    pairs = [
        (one, torch.where(same, two, following[two])),
        (following[one], torch.where(same, following[two], two)),
    ]
    rows, columns = (torch.cat([pair[i] for pair in pairs]).cpu().numpy() for i in (0, 1))
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), (len(half), len(half)))
    number, label = connected_components(graph, directed=False)
    vertex = faces.new_empty(number)
    vertex[torch.from_numpy(label.astype(np.int64)).to(faces.device)] = faces.flatten()
    return torch.stack([keys // count, keys % count], 1), uses, forward, torch.bincount(vertex, minlength=count)


def decimate(vertices: Tensor, faces: Tensor, target: int, on_step: OnStep = silent) -> tuple[Tensor, Tensor]:
    """Fewer faces by edge collapses in parallel; a closed manifold stays one, and its parts stay apart.

    Costs and positions are those of quadric error metrics (Garland and Heckbert, 1997), with the line quadrics'
    regularisation; collapses obey the link condition (Dey et al., 1999), turn no face over and make none a sliver. In
    each round edges collapse that are cheaper than all others near them, so that none knows of another.

    Returns:
        Vertices and faces; `target` faces or one less, or more where nothing is left to collapse.
    """
    device = faces.device
    if not device_of(device).float64:
        vertices, faces = decimate(vertices.cpu(), faces.cpu(), target, on_step)
        return vertices.to(device), faces.to(device)
    scale = float((vertices.amax(0) - vertices.amin(0)).max()) or 1.0
    names = torch.arange(len(vertices), device=faces.device)
    state = _State(vertices.double() / scale, faces, _quadrics(vertices.double() / scale, faces), names, names[:0])
    begin, patience = len(faces), 2
    with one_thread(faces.device):
        while len(state.faces) > target and patience:
            before = len(state.faces)
            on_step(begin - before, begin - target)
            state = _collapse(state, target, len(vertices))
            if before - len(state.faces) < max(1, before // 500):  # what could not collapse may be able to by now
                patience -= 1
                state.failed = names[:0]
            else:
                patience = 2
    return (state.vertices * scale).float(), state.faces


@dataclass
class _State:
    """A mesh on its way.

    Attributes:
        vertices, faces: [V, 3] float64, [F, 3].
        quadrics: [V, 10].
        names: [V], each vertex's number in the beginning.
        failed: Edges that can't collapse, as low name * count + high name.
    """

    vertices: Tensor
    faces: Tensor
    quadrics: Tensor
    names: Tensor
    failed: Tensor


def _quadrics(vertices: Tensor, faces: Tensor) -> Tensor:
    """[V, 10]: the upper half of A, then b and c of the error p.A.p + 2 b.p + c, of the planes around each vertex."""
    normals = face_normals(vertices, faces)
    area = normals.norm(dim=1, keepdim=True)
    n = normals / area.clamp(min=1e-30)
    d = -(n * vertices[faces[:, 0]]).sum(1, keepdim=True)
    x, y, z = n.split(1, 1)
    plane = torch.cat([x * x, x * y, x * z, y * y, y * z, z * z, x * d, y * d, z * d, d * d], 1) * (area / 6)
    result = torch.zeros(len(vertices), 10, dtype=vertices.dtype, device=vertices.device)
    return result.index_add_(0, faces.T.flatten(), plane.repeat(3, 1))


def _best(q: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The position [E, 3] of the least error of quadrics [E, 10], near the edge's middle; and its cost."""
    middle = (a + b) / 2
    length = (b - a).square().sum(1)
    pull = 1e-3 * (q[:, 0] + q[:, 3] + q[:, 5]) + 1e-18
    # (A + pull) p = pull middle - b, by Cramer's rule.
    xx, xy, xz, yy, yz, zz = (q[:, 0] + pull, q[:, 1], q[:, 2], q[:, 3] + pull, q[:, 4], q[:, 5] + pull)
    r = pull[:, None] * middle - q[:, 6:9]
    cxx, cxy, cxz = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    cyy, cyz, czz = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    det = xx * cxx + xy * cxy + xz * cxz
    x, y, z = r.unbind(1)
    p = torch.stack([cxx * x + cxy * y + cxz * z, cxy * x + cyy * y + cyz * z, cxz * x + cyz * y + czz * z], 1)
    p = p / det[:, None]
    p = torch.where(((p - middle).square().sum(1) <= 4 * length)[:, None] & p.isfinite(), p, middle)
    x, y, z = p.unbind(1)
    error = q[:, 0] * x * x + q[:, 3] * y * y + q[:, 5] * z * z + q[:, 9]
    error += 2 * (q[:, 1] * x * y + q[:, 2] * x * z + q[:, 4] * y * z + q[:, 6] * x + q[:, 7] * y + q[:, 8] * z)
    # On a plane all are free: short edges first, so that triangles stay even.
    return p, error.clamp(min=0) + 1e-4 * length * (q[:, 0] + q[:, 3] + q[:, 5])


def _collapse(state: _State, target: int, names: int) -> _State:
    """One set of collapses, none of which touches another's surroundings."""
    vertices, faces, quadrics = state.vertices, state.faces, state.quadrics
    device, count = faces.device, len(vertices)
    half = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    opposite = torch.cat([faces[:, 2], faces[:, 0], faces[:, 1]])
    edges = half[half[:, 0] < half[:, 1]]  # of a closed, oriented manifold: every edge once
    a, b = edges.unbind(1)
    position, cost = _best(quadrics[a] + quadrics[b], vertices[a], vertices[b])
    low, high = state.names[edges].sort(1).values.unbind(1)  # CUDA multiplies no matrices of integers
    keys = low * names + high
    cost[torch.isin(keys, state.failed)] = math.inf
    rank = torch.empty_like(a)
    rank[cost.argsort()] = torch.arange(len(a), device=device)
    never = len(a)
    rank = torch.where((rank < max(CHEAPEST * never, 1)) & cost.isfinite(), rank, never)
    blocked = torch.zeros(count, dtype=torch.bool, device=device)
    chosen = []
    for _ in range(ROUNDS):
        key = torch.where(blocked[a] | blocked[b], never, rank)
        nearest = torch.full((count,), never, device=device)  # the cheapest edge at each vertex
        nearest.scatter_reduce_(0, a, key, "amin").scatter_reduce_(0, b, key, "amin")
        around = nearest.clone()  # or at one of its neighbours
        around.scatter_reduce_(0, a, nearest[b], "amin").scatter_reduce_(0, b, nearest[a], "amin")
        mine = ((key < never) & (key == around[a]) & (key == around[b])).nonzero()[:, 0]
        if not len(mine):
            break
        chosen.append(mine)
        ends = torch.zeros_like(blocked)
        ends[a[mine]] = ends[b[mine]] = True
        blocked |= ends
        blocked[a[ends[b]]] = True
        blocked[b[ends[a]]] = True
    if not chosen:
        return state
    chosen = torch.cat(chosen)
    chosen = chosen[rank[chosen].argsort()]

    # The link condition: the ends have two neighbours in common, the corners opposite the edge.
    owner = torch.full((count,), -1, device=device)  # which collapse a vertex is an end of
    number = torch.arange(len(chosen), device=device)
    owner[a[chosen]] = owner[b[chosen]] = number
    valence = torch.bincount(half[:, 0], minlength=count)
    touching = owner[half[:, 0]] >= 0
    mine, neighbour = owner[half[touching, 0]], half[touching, 1]
    _, group, uses = torch.unique(mine * count + neighbour, return_inverse=True, return_counts=True)
    common = (
        torch.zeros(len(chosen), dtype=torch.long, device=device).index_add_(0, mine, (uses[group] == 2).long()) // 2
    )
    good = (common == 2) & (valence[a[chosen]] + valence[b[chosen]] >= 7)
    inside = (owner[half[:, 0]] >= 0) & (owner[half[:, 0]] == owner[half[:, 1]])
    tips, tip_owner = opposite[inside], owner[half[inside, 0]]
    loss = torch.bincount(tips, minlength=count)
    good &= _all(valence[tips] - loss[tips] >= 3, tip_owner, len(chosen))

    # No face turns over or becomes a sliver.
    moved = vertices.clone()
    moved[a[chosen]] = moved[b[chosen]] = position[chosen]
    ends = owner[faces]
    face_owner = ends.amax(1)
    stays = (face_owner >= 0) & ((ends == face_owner[:, None]).sum(1) == 1)
    old, new = face_normals(vertices, faces[stays]), face_normals(moved, faces[stays])
    fine = (old * new).sum(1) > FLIP_COSINE * old.norm(dim=1) * new.norm(dim=1)
    fine &= evenness(moved, faces[stays]) > torch.minimum(
        evenness(vertices, faces[stays]) * 0.5, new.new_tensor(THINNEST)
    )
    good &= _all(fine, face_owner[stays], len(chosen))

    failed = torch.cat([state.failed, keys[chosen[~good]]])
    chosen = chosen[good][: (len(faces) - target + 1) // 2]
    kept, gone = a[chosen], b[chosen]
    vertices, quadrics = vertices.clone(), quadrics.clone()
    vertices[kept] = position[chosen]
    quadrics[kept] += quadrics[gone]
    renamed = torch.arange(count, device=device)
    renamed[gone] = kept
    faces = renamed[faces]
    faces = faces[(faces != faces.roll(1, 1)).all(1)]
    used = torch.zeros(count, dtype=torch.bool, device=device)
    used[faces.flatten()] = True
    faces = (used.cumsum(0) - 1)[faces]
    return _State(vertices[used], faces, quadrics[used], state.names[used], failed)


def evenness(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F], 1 for an equilateral face, 0 for one without area."""
    corners = vertices[faces]
    length = (corners - corners.roll(1, 1)).square().sum((1, 2))
    return face_normals(vertices, faces).norm(dim=1) * (2 * 3**0.5) / length.clamp(min=1e-30)


def _all(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """[count], whether all values of a group are true."""
    bad = torch.zeros(count, dtype=torch.bool, device=values.device)
    bad[groups[~values]] = True
    return ~bad
