"""Which points lie inside a closed surface of triangles."""

from __future__ import annotations

import numpy as np

_PAIRS = 1 << 21  # pairs of a point and a triangle compared at once, to bound memory
_CELLS = 1 << 18  # cells of the grid at most


def inside(points: np.ndarray, triangles: np.ndarray, seed: int = 0) -> np.ndarray:
    """[N] bool: whether points [N, 3] are inside the surface of triangles [T, 3, 3], any winding.

    A ray from each point crosses the surface an odd number of times if it starts inside. All rays go one way, in which
    no edge or corner of a model is likely to lie: a random one. Seen along it, triangles and points fall into the cells
    of a grid, and only those of one cell are compared. An edge is crossed by exactly one of the two faces at it.
    """
    points, triangles = np.asarray(points, np.float64), np.asarray(triangles, np.float64)
    result = np.zeros(len(points), bool)
    if not len(triangles):
        return result
    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    near = np.flatnonzero(((points >= low) & (points <= high)).all(1))
    if not len(near):
        return result
    middle = (low + high) / 2
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    p, t = (points[near] - middle) @ turn, (triangles - middle) @ turn
    crossings = _crossings(p, t)
    result[near] = crossings % 2 == 1
    return result


def _crossings(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    """How many triangles [T, 3, 3] lie above points [N, 3], along z."""
    low, high = t[..., :2].min((0, 1)), t[..., :2].max((0, 1))
    side = int(np.clip(np.sqrt(len(t)), 1, np.sqrt(_CELLS)))
    scale = side / np.maximum(high - low, 1e-300)

    def cell(xy: np.ndarray) -> np.ndarray:
        return np.clip(((xy - low) * scale).astype(int), 0, side - 1)

    first, last = cell(t[..., :2].min(1)), cell(t[..., :2].max(1))
    width = last - first + 1
    copies = width.prod(1)
    owner = np.repeat(np.arange(len(t)), copies)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(copies) - copies, copies)
    x = first[owner, 0] + within % width[owner, 0]
    y = first[owner, 1] + within // width[owner, 0]
    order = np.argsort(y * side + x, kind="stable")
    owner = owner[order]
    starts = np.searchsorted((y * side + x)[order], np.arange(side * side + 1))

    cells = cell(p[:, :2])
    number = cells[:, 1] * side + cells[:, 0]
    pairs = starts[number + 1] - starts[number]
    crossings = np.zeros(len(p), np.int64)
    ends = np.cumsum(pairs)
    begin = 0
    while begin < len(p):
        limit = (ends[begin - 1] if begin else 0) + _PAIRS
        end = max(begin + 1, int(np.searchsorted(ends, limit, side="right")))
        count = pairs[begin:end]
        point = np.repeat(np.arange(begin, end), count)
        offset = np.arange(len(point)) - np.repeat(np.cumsum(count) - count, count)
        triangle = owner[np.repeat(starts[number[begin:end]], count) + offset]
        np.add.at(crossings, point[_is_above(p[point], t[triangle])], 1)
        begin = end
    return crossings


def _is_above(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[M] bool: whether a triangle [M, 3, 3] is crossed by the ray from its point [M, 3] along z.

    In the plane: the point is in the triangle if a line along x crosses an odd number of its edges beyond it. Both
    faces at an edge compute its crossing alike, from the lower end, so that they agree to the last bit.
    """
    odd = np.zeros(len(p), bool)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        a, b = t[:, i, :2], t[:, j, :2]
        swap = ((a[:, 1] > b[:, 1]) | ((a[:, 1] == b[:, 1]) & (a[:, 0] > b[:, 0])))[:, None]
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        spans = (a[:, 1] <= p[:, 1]) & (p[:, 1] < b[:, 1])
        rise = np.where(spans, b[:, 1] - a[:, 1], 1.0)
        odd ^= spans & (a[:, 0] + (p[:, 1] - a[:, 1]) / rise * (b[:, 0] - a[:, 0]) > p[:, 0])
    hits = np.flatnonzero(odd)
    a, b, c = np.moveaxis(t[hits], 1, 0)
    normal = np.cross(b - a, c - a)
    above = ((p[hits] - a) * normal).sum(1) * np.sign(normal[:, 2]) < 0  # the plane is farther along z than the point
    odd[hits] = above
    return odd
