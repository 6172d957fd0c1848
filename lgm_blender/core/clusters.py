"""Floaters by where they are: Gaussians in small clusters apart from the rest, and faint ones on their own."""

from __future__ import annotations

from itertools import product

import numpy as np

CROWD = 6  # Gaussians in the cell of the usual Gaussian: then neighbours of a surface are in cells that touch
LONELY = 0.05  # part of the usual opacity around a Gaussian below which it is on its own
FAINT = 0.5  # part of the usual opacity of a Gaussian below which one on its own is a floater
_NEIGHBOURS = [offset for offset in product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)]  # the other half mirrors them


def floaters(positions: np.ndarray, opacities: np.ndarray, share: float = 0.01) -> np.ndarray:
    """[N] bool: which Gaussians are floaters.

    Space is cut into cubes so small that most hold a handful of Gaussians. Cubes that touch make up clusters.

    Args:
        positions: [N, 3].
        opacities: [N], 0 to 1.
        share: Clusters with less than this part of all opacity are floaters.

    Returns:
        Those of small clusters, and faint ones with nearly nothing around them. None, if no cluster is large enough.
    """
    if len(positions) < 2 * CROWD:
        return np.zeros(len(positions), bool)
    cells, own = _cells(np.asarray(positions, np.float64))
    weight = np.bincount(own, opacities, len(cells))
    around, edges = weight.copy(), []
    for offset in _NEIGHBOURS:
        a, b = _pairs(cells, offset)
        edges.append((a, b))
        np.add.at(around, a, weight[b])
        np.add.at(around, b, weight[a])
    cluster = _connected(len(cells), *(np.concatenate(side) for side in zip(*edges, strict=True)))
    mass = np.bincount(cluster, weight, len(cells))
    small = mass[cluster] < share * weight.sum()
    if small.all():
        return np.zeros(len(positions), bool)
    beside = around[own] - opacities
    alone = (beside < LONELY * np.median(beside)) & (opacities < FAINT * np.median(opacities))
    return small[own] | alone


def _cells(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cubes [C, 3] that hold Gaussians, in order, as whole numbers, and which of them each [N] is in."""
    low = positions.min(0)
    low_solid, high_solid = np.quantile(positions, (0.02, 0.98), axis=0)
    side = max(float((high_solid - low_solid).max()), 1e-12) / 4
    for _ in range(16):  # where many lie in one place no cube is small enough
        whole = np.floor((positions - low) / side).clip(0, (1 << 20) - 1).astype(np.int64)
        keys = (whole[:, 0] << 42) | (whole[:, 1] << 21) | whole[:, 2]
        found, own, counts = np.unique(keys, return_inverse=True, return_counts=True)
        crowd = np.median(counts[own.ravel()])
        if crowd <= CROWD or len(found) > len(positions) / 2:
            break
        side *= min(1 / 1.3, (CROWD / crowd) ** (1 / 3))  # right at once for a volume; a surface takes a few steps
    return np.stack([found >> 42, (found >> 21) & ((1 << 21) - 1), found & ((1 << 21) - 1)], 1), own.ravel()


def _pairs(cells: np.ndarray, offset: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The indices of cubes that lie at an offset from each other."""
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    there = cells + offset
    valid = (there >= 0).all(1)
    wanted = np.where(valid, (there[:, 0] << 42) | (there[:, 1] << 21) | there[:, 2], -1)
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    first = np.flatnonzero(keys[at] == wanted)
    return first, at[first]


def _connected(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[count] labels, the same for what is connected by the pairs (a, b)."""
    label = np.arange(count)
    while True:
        lower = np.minimum(label[a], label[b])
        new = label.copy()
        for side in (a, b):
            np.minimum.at(new, label[side], lower)  # the root too, so that whole trees are hung up at once
            np.minimum.at(new, side, lower)
        while not np.array_equal(new, new[new]):
            new = new[new]
        if np.array_equal(new, label):
            return label
        label = new
