"""Gaussians of any program, made ready: the visible ones, upright, where the cameras see them whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...core.affine import upright
from ...core.errors import LGMError
from ...core.gaussians import Gaussians
from .settings import Up
from .views import FRAME_RADIUS

FEWEST_GAUSSIANS = 16
FAINT = 0.05  # less does not count for where the object is
OUTLIERS = 5e-4  # of the Gaussians' area on each side of each axis does not count either


def framed(gaussians: Gaussians, up: Up, warnings: list[str]) -> tuple[Gaussians, np.ndarray, float]:
    """The Gaussians within FRAME_RADIUS, y up; and the centre [3] (y up) and the factor that brought them there.

    Sentences about those left out are added to `warnings`.

    Raises:
        LGMError: If there are too few, or their size is nothing to compute with.
    """
    return _normalized(upright(_usable(gaussians, warnings), up), warnings)


def _usable(gaussians: Gaussians, warnings: list[str]) -> Gaussians:
    """The Gaussians that can be seen."""
    gaussians = gaussians.only_finite(warnings).prune()
    gaussians = replace(gaussians, colors=np.clip(gaussians.colors, 0, 1), harmonics=None)  # a texture has one colour
    if not len(gaussians):
        raise LGMError("There is nothing to make a mesh of: no Gaussian is visible. Choose other splats.")
    if len(gaussians) < FEWEST_GAUSSIANS:
        number = "only one Gaussian is" if len(gaussians) == 1 else f"only {len(gaussians)} Gaussians are"
        raise LGMError(
            f"There is too little to make a mesh of: {number} visible, and {FEWEST_GAUSSIANS} are needed. "
            "Choose other splats."
        )
    return gaussians


def _normalized(gaussians: Gaussians, warnings: list[str]) -> tuple[Gaussians, np.ndarray, float]:
    """Moved and scaled into the sphere that the cameras see; and what was their centre, and the factor.

    Specks far away from everything else would leave the rest too small to be seen, so they don't count.
    """
    solid = gaussians.opacities >= min(FAINT, float(gaussians.opacities.max()))
    positions = gaussians.positions[solid].astype(np.float64)
    reach = gaussians.scales[solid].astype(np.float64)
    weights = gaussians.opacities[solid] * np.sort(reach, 1)[:, 1:].prod(1) + 1e-30
    reach = 2 * reach.max(1)
    low, high = np.empty(3), np.empty(3)
    for axis in range(3):
        for ends, side, best in ((positions[:, axis] - reach, low, 1), (positions[:, axis] + reach, high, -1)):
            order = np.argsort(best * ends)
            share = np.cumsum(weights[order]) / weights.sum()
            side[axis] = ends[order[np.searchsorted(share, OUTLIERS)]]
    center = (low + high) / 2
    inside = (np.abs(positions - center) <= (high - low) / 2 + 1e-9).all(1)
    radius = float((np.linalg.norm(positions - center, axis=1) + reach)[inside].max(initial=0))
    radius = min(radius, float(np.linalg.norm(high - low)) / 2) or 1.0
    if not np.isfinite(radius) or radius > 1e12 or radius < 1e-12:
        raise LGMError(
            f"The Gaussians can't be made a mesh of: their size is {2 * radius:.3g} units. Change their size first."
        )
    scale = FRAME_RADIUS / radius
    moved = (gaussians.positions - center) * scale
    near = np.linalg.norm(moved, axis=1) < 1.3 * FRAME_RADIUS
    if not near.all():
        number = len(near) - int(near.sum())
        warnings.append(f"{number:,} Gaussians were left out: they lie far away from the object.")
    moved = replace(gaussians, positions=moved, scales=gaussians.scales * scale)
    return moved.select(near), center, scale
