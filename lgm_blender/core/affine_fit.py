"""Which affine maps took points from one place to another: one for all of them, or several for several groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDING = 32  # by how many of its own roundings a position may be off that was turned several times
SEED = 8  # nearest points that a local map is looked for in: an affine map has half as many free numbers
GROWTH = 4  # so many times as many points are tried each time that a local map holds
LOOSE = 8.0  # how much farther off the points beyond those may be that a map was fitted to
FAILURES = 24  # places in a row where no map is found before the rest is given up
SMALLEST = 12  # points that a group has at least
_CHECKED = 4096  # points that tell a map as well as all do


class Group(NamedTuple):
    """Points [M] that moved as one, as indices, and the map [4, 4] that they moved by."""

    indices: np.ndarray
    matrix: np.ndarray


def is_translation(matrix: np.ndarray) -> bool:
    """Whether a map [4, 4] only moves."""
    return bool(np.array_equal(matrix[:3, :3], np.eye(3)))


def moved_as_one(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """The map [4, 4] that takes points [N, 3] to other ones [N, 3] but for rounding, or None if none does.

    The simplest that does: a translation; a turn, one scale for all axes and maybe a mirroring; any affine map. Where
    points can't tell (three of them, or all in a plane) the second is taken, without the mirroring.
    """
    tolerance = _tolerance(before, after)
    count = len(before)
    if count <= 2 * _CHECKED:
        return _fit(before, after, tolerance)
    few = np.linspace(0, count - 1, _CHECKED).astype(int)
    matrix = _fit(before[few], after[few], tolerance)
    if matrix is None or (_errors(matrix.astype(np.float32), before, after) > tolerance).any():
        return None
    return matrix


def moved_in_groups(before: np.ndarray, after: np.ndarray, seed: int = 0) -> tuple[list[Group], np.ndarray]:
    """Groups of points [N, 3] that moved as one each, and the indices of those that belong to none.

    A map is looked for in a few points that lie together, or that follow each other, and the group grows from there.
    What moved by no map at all, by proportional editing for one, is in no group.
    """
    tolerance = _tolerance(before, after)
    random = np.random.default_rng(seed)
    left, groups, failures = np.arange(len(before)), [], 0
    while len(left) >= SMALLEST and failures < FAILURES:
        x, y = before[left], after[left]
        start = int(random.integers(len(left)))
        matrix = None
        for distance in (((x - x[start]) ** 2).sum(1), np.abs(np.arange(len(left)) - start)):
            matrix = _grown(x, y, distance, tolerance)
            if matrix is not None:
                break
        if matrix is None:
            failures += 1
            continue
        fits = _errors(matrix, x, y) <= tolerance
        if fits.sum() < SMALLEST:
            failures += 1
            continue
        matrix = _fit(x[fits], y[fits], tolerance)
        if matrix is None:
            failures += 1
            continue
        groups.append(Group(left[fits], matrix))
        left, failures = left[~fits], 0
    return groups, left


def _tolerance(before: np.ndarray, after: np.ndarray) -> float:
    """How far off a position in float32 may be."""
    largest = max(float(np.abs(before).max(initial=0)), float(np.abs(after).max(initial=0)))
    return ROUNDING * float(np.finfo(np.float32).eps) * largest


def _grown(x: np.ndarray, y: np.ndarray, distance: np.ndarray, tolerance: float) -> np.ndarray | None:
    """The map of a group around the point with the smallest distance."""
    count = min(SEED, len(x))
    near = np.argpartition(distance, count - 1)[:count]
    matrix = _fit(x[near], y[near], tolerance)
    while matrix is not None and count < len(x):
        count = min(GROWTH * count, len(x))
        near = np.argpartition(distance, count - 1)[:count]
        fits = near[_errors(matrix, x[near], y[near]) <= LOOSE * tolerance]
        if len(fits) > 2 * _CHECKED:
            fits = fits[:: len(fits) // _CHECKED]
        if len(fits) < SEED:
            return None
        better = _fit(x[fits], y[fits], 2 * tolerance)
        if better is None:  # another group's points are among them: as far as it went the map holds
            return matrix
        matrix = better
    return matrix


def _errors(matrix: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.abs(before @ matrix[:3, :3].T + matrix[:3, 3] - after).max(axis=1)


def _fit(before: np.ndarray, after: np.ndarray, tolerance: float) -> np.ndarray | None:
    """The simplest map that is right for all points to `tolerance`, or None."""
    count = len(before)
    x, y = before.astype(np.float64), after.astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean

    def whole(linear: np.ndarray) -> np.ndarray | None:
        for part in (slice(64), slice(None)):  # what is wrong is wrong for the first few
            if np.abs(x[part] @ linear.T - y[part]).max() > tolerance:
                return None
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = linear, y_mean - linear @ x_mean
        return matrix

    moved = whole(np.eye(3))
    if moved is not None or count < 3:
        return moved
    cross, own = y.T @ x, x.T @ x
    u, lengths, vt = np.linalg.svd(cross)
    spread = np.linalg.eigvalsh(own)[::-1]
    flat = spread[2] <= count * tolerance**2
    if spread[1] > count * tolerance**2 and lengths[1] > 0:  # points in a line don't tell how far they turned about it
        signs = np.ones(3)
        if flat and np.linalg.det(u @ vt) < 0:
            signs[2] = -1.0
        scale = float(np.sqrt((y**2).sum() / spread.sum()))
        turned = whole(scale * (u * signs) @ vt)
        if turned is not None:
            return turned
    if flat or count < SEED:
        return None
    return whole(np.linalg.solve(own, cross.T).T)
