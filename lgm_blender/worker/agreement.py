"""How well four sampled views go together, and with the image: by what is known of any object seen from four sides."""

from __future__ import annotations

import numpy as np

FAINT = 0.06  # a pixel less dark than this is background
BINS = 6  # of each colour channel


def agreement(views: np.ndarray) -> float:
    """How well four views agree, 0 to 1; only the order of several candidates of one input means something.

    From all sides an object is equally high, its outline from behind is that from the front mirrored, and it has
    mostly the same colours. The first view is the input, or goes with it.

    Args:
        views: [4, S, S, 3] in 0..1, on white, from azimuth 0, 90, 180, 270.
    """
    return float(np.mean(list(parts(views).values())))


def parts(views: np.ndarray) -> dict[str, float]:
    """What `agreement` is the mean of, each 0 to 1."""
    outlines = 1 - views.min(-1) > FAINT
    if not outlines.any((1, 2)).all():
        return {"heights": 0.0, "mirrored": 0.0, "colors": 0.0}
    return {"heights": _heights(outlines), "mirrored": _mirrored(outlines), "colors": _colors(views, outlines)}


def _heights(outlines: np.ndarray) -> float:
    """1 less how far tops and bottoms are from the first one's, as a share of its height."""
    rows = np.array([np.flatnonzero(outline.any(1))[[0, -1]] for outline in outlines])
    height = rows[0, 1] - rows[0, 0] + 1
    return float(np.clip(1 - np.abs(rows[1:] - rows[0]).sum(1) / height, 0, 1).mean())


def _mirrored(outlines: np.ndarray) -> float:
    """The overlap (intersection over union) of the outlines of opposite sides, the worse one."""
    front, right, back, left = outlines
    pairs = ((front, back[:, ::-1]), (right, left[:, ::-1]))
    return float(min((one & other).sum() / (one | other).sum() for one, other in pairs))


def _colors(views: np.ndarray, outlines: np.ndarray) -> float:
    """How much of the colours' distribution the other views share with the first one."""
    found = [_histogram(view[outline]) for view, outline in zip(views, outlines, strict=True)]
    return float(np.mean([np.minimum(found[0], other).sum() for other in found[1:]]))


def _histogram(colors: np.ndarray) -> np.ndarray:
    """The share of colours [N, 3] in each of BINS³ bins."""
    bins = np.minimum((colors * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins @ (1, BINS, BINS * BINS), minlength=BINS**3)
    return counts / counts.sum()
