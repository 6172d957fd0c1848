"""Floaters: faint Gaussians left around an object where samples of its unseen sides differ.

LGM does not know how far such a side reaches, and spreads faint Gaussians as far as some of the samples do. They cost
little in PSNR, which likes the mean of what may be; one sees them at once.
"""

from __future__ import annotations

import numpy as np
import torch

from ..core.cameras import orbit_camera
from ..core.gaussians import Gaussians
from .jobs import OnStep, silent
from .meshing.views import render_views, sample

SIDES = 8  # cameras all round, at elevation 0
SIZE = 128  # of their pictures
COVERED = 0.5  # part of the object's usual alpha below which a place is beside it
BESIDE = 3  # sides that must see a place as beside it; with two 0.05 dB more were lost (19 `val` objects)
FAINT = 0.02  # opacity, in parts of the usual alpha: also close to the object such a Gaussian only blurs its outline


@torch.no_grad()
def without_floaters(
    gaussians: Gaussians,
    device: str = "cpu",
    on_step: OnStep = silent,
) -> Gaussians:
    """The Gaussians that are not faint, and in the object's outline from nearly all sides.

    Rendered from `SIDES` sides, a Gaussian's place has an alpha in each of these pictures. It stays where the third
    smallest of them is at least half of what it usually is, the median over all Gaussians by their opacity. That is
    about 1 for solid things, so that many faint Gaussians that cover each other stay, and less for a net or a cage.

    Args:
        gaussians: In LGM's frame, all values finite.
        device: Where they are rendered.
        on_step: Hears how many pictures of how many are rendered; what it raises ends the work.

    Returns:
        Some of them, at least those with half of the opacity that are not faint; all if none would stay.
    """
    if not len(gaussians):
        return gaussians
    values = torch.from_numpy(gaussians.to_array()).to(device)
    poses = np.stack([orbit_camera(0, 360 * i / SIDES) for i in range(SIDES)])
    views = render_views(values, poses, SIZE, on_step)
    covers = [sample(views.alpha[i], views.project(i, values[:, :3])[0])[:, 0] for i in range(SIDES)]
    cover = torch.stack(covers).sort(0).values[BESIDE - 1].cpu().numpy()
    order = np.argsort(cover)
    weight = np.cumsum(gaussians.opacities[order])
    usual = cover[order[np.searchsorted(weight, weight[-1] / 2)]]
    stays = (cover >= COVERED * usual) & (gaussians.opacities >= FAINT * usual)
    return gaussians.select(stays) if stays.any() else gaussians
