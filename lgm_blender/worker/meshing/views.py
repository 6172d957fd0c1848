"""Pictures of Gaussians from all round, which everything else is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import cameras
from ..devices import device_of
from ..jobs import OnStep, silent
from ..rendering import render

FRAME_RADIUS = 0.6  # of the sphere an object is scaled to; a camera sees 0.62 whole
PIXELS_AT_ONCE = 2**22  # pictures in one call of the renderer
# For depth, each Gaussian as so many on top of each other: what is seen then is the first surface, not the mean of it
# and what shines through.
LAYERS = 3


@dataclass
class RenderedViews:
    """V pictures of S x S pixels of one object.

    Attributes:
        matrices: [V, 4, 4] world-to-camera, OpenCV axes.
        intrinsics: [3, 3].
        rgb: [V, 3, S, S], premultiplied with alpha.
        alpha: [V, 1, S, S].
        depth: [V, 1, S, S], z in front of the camera; 0 where nothing is.
    """

    matrices: Tensor
    intrinsics: Tensor
    rgb: Tensor
    alpha: Tensor
    depth: Tensor

    def __len__(self) -> int:
        return len(self.matrices)

    @property
    def size(self) -> int:
        """Width and height in pixels."""
        return self.rgb.shape[-1]

    def project(self, view: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where points [N, 3] are in a picture: [N, 2] from -1 to 1 as F.grid_sample takes them, and z [N]."""
        matrix = self.matrices[view]
        camera = points @ matrix[:3, :3].T + matrix[:3, 3]
        z = camera[:, 2]
        focal = self.intrinsics[0, 0] * 2 / self.size
        return camera[:, :2] * (focal / z.clamp(min=1e-6))[:, None], z


def sphere_poses(count: int) -> np.ndarray:
    """Camera-to-world [count, 4, 4] of orbit cameras spread evenly over all directions (a Fibonacci lattice)."""
    index = np.arange(count) + 0.5
    elevations = np.degrees(np.arcsin(1 - 2 * index / count))
    azimuths = np.degrees(np.pi * (1 + 5**0.5) * index)
    return np.stack([cameras.orbit_camera(*angles) for angles in zip(elevations, azimuths, strict=True)])


def render_all_round(
    gaussians: Tensor,  # [N, 14], within FRAME_RADIUS
    count: int,
    size: int,
    on_step: OnStep = silent,
) -> RenderedViews:
    """`count` views from everywhere, whose depth is that of the first surface."""
    poses = sphere_poses(count)
    views = render_views(gaussians, poses, size, lambda step, steps: on_step(step, 2 * steps))
    firm = gaussians.clone()
    firm[:, 3] = 1 - (1 - firm[:, 3]) ** LAYERS
    views.depth = render_views(firm, poses, size, lambda step, steps: on_step(steps + step, 2 * steps)).depth
    return views


def render_views(
    gaussians: Tensor,  # [N, 14], within FRAME_RADIUS
    poses: np.ndarray,  # [V, 4, 4]
    size: int,
    on_step: OnStep = silent,
) -> RenderedViews:
    """Renders all views, a few at a time; `on_step(step, steps)` hears how many are done, and may raise."""
    device = gaussians.device
    matrices = torch.from_numpy(cameras.view_matrices(poses)).to(device)
    intrinsics = torch.from_numpy(cameras.intrinsics(size)).to(device)
    step = max(1, min(len(poses), PIXELS_AT_ONCE // size**2) if device_of(device).sizes == "cuda" else 2)
    parts = []
    with torch.no_grad():
        for i in range(0, len(poses), step):
            on_step(i, len(poses))
            picture = render(gaussians, matrices[i : i + step], intrinsics, size, background=0.0)
            parts.append([t.permute(0, 3, 1, 2).float() for t in (picture.rgb, picture.alpha, picture.depth)])
    rgb, alpha, depth = (torch.cat(part) for part in zip(*parts, strict=True))
    return RenderedViews(matrices, intrinsics, rgb, alpha, depth)


def sample(pictures: Tensor, where: Tensor, mode: str = "bilinear") -> Tensor:
    """[N, C] of one picture [C, H, W] at [N, 2]; its edge goes on outside of it."""
    found = F.grid_sample(pictures[None], where[None, None], mode, padding_mode="border", align_corners=False)
    return found[0, :, 0].T
