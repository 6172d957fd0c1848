"""Pictures that are judged, and how Gaussians become such."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.cameras import intrinsics, view_matrices
from ...core.gaussians import Gaussians
from ...worker.rendering import render
from ..data.placement import SIZE

EMPTY = 0.01  # share of the frame that something must cover not to count as empty


class Pictures(NamedTuple):
    """Pictures of one object from several views.

    Attributes:
        rgb: [P, 3, H, W], 0 to 1, on white.
        alpha: [P, H, W], 0 to 1; None where there is none.
        views: [V], which of them stands for each view of the ground truth; None if each stands for its own.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    views: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether there is next to nothing on them."""
        return bool((self.alpha > 0.5).float().mean() < EMPTY)


def render_gaussians(gaussians: Gaussians, poses: np.ndarray, device: str) -> Pictures:
    """Gaussians on white from camera-to-world poses [V, 4, 4], all that are within 1 of the middle's depth."""
    values = torch.from_numpy(gaussians.to_array()).to(device)
    distances = np.linalg.norm(poses[:, :3, 3], axis=1)
    near, far = max(float(distances.min()) - 1, 0.1), float(distances.max()) + 1
    picture = render(values, view_matrices(poses), intrinsics(SIZE), SIZE, background=1.0, near=near, far=far)
    return Pictures(picture.rgb.movedim(-1, 1).clamp(0, 1), picture.alpha[..., 0])


def blank(views: int, device: str) -> Pictures:
    """White, for a number of views."""
    white = torch.ones(1, 3, SIZE, SIZE, device=device)
    nothing = torch.zeros(1, SIZE, SIZE, device=device)
    return Pictures(white, nothing, torch.zeros(views, dtype=torch.long, device=device))


def on_white(pixels: np.ndarray, device: str) -> Pictures:
    """Of premultiplied uint8 [V, S, S, 4]."""
    values = torch.from_numpy(pixels).to(device).float().movedim(-1, 1) / 255
    return Pictures(values[:, :3] + 1 - values[:, 3:], values[:, 3])


def nearest(poses: np.ndarray, among: np.ndarray) -> Tensor:
    """For each camera [V, 4, 4] the one of `among` whose direction from the middle is nearest, [V]."""
    directions = [p[:, :3, 3] / np.linalg.norm(p[:, :3, 3], axis=1, keepdims=True) for p in (poses, among)]
    return torch.from_numpy((directions[0] @ directions[1].T).argmax(1))


def as_tensor(pictures: np.ndarray, device: str) -> Tensor:
    """Pictures [V, H, W, 3] as [V, 3, SIZE, SIZE]."""
    values = torch.from_numpy(np.ascontiguousarray(pictures, np.float32)).movedim(-1, 1).to(device)
    if values.shape[-2:] != (SIZE, SIZE):
        values = F.interpolate(values, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return values


def as_array(pictures: Tensor) -> np.ndarray:
    """Pictures [V, 3, H, W] as [V, H, W, 3]."""
    return pictures.movedim(1, -1).cpu().numpy()
