"""LGM's two augmentations: they make ground-truth views as inconsistent as generated ones (LGM, section 3.3).

Both leave the first view as it is, and touch an object's others together with probability one half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LINES = (8, 16)  # fewest and most grid lines a side
CELL = 0.25  # how far a line moves at most, in cells
UP, RIGHT = math.radians(18), math.radians(9)  # largest turns of the camera about the scene's centre


def grid_distortion(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Resample pictures through a grid whose inner lines are moved at random by up to a quarter of a cell.

    Args:
        images: [N, C, H, W]; each gets a grid of its own, all of one random number of lines.
        generator: On the pictures' device.

    Returns:
        [N, C, H, W]. The borders stay where they are.
    """
    device = images.device
    # The number stays on the device: the host must not wait for it. Lines beyond it are not looked at.
    lines = torch.randint(LINES[0], LINES[1] + 1, (), generator=generator, device=device)
    line = torch.arange(LINES[1], device=device)
    shift = 2 * torch.rand(len(images), 2, LINES[1], generator=generator, device=device) - 1
    inner = (line > 0) & (line < lines - 1)
    moved = 2 / (lines - 1) * (line + shift * inner * CELL) - 1
    axes = []
    for axis, size in enumerate((images.shape[-1], images.shape[-2])):
        centres = (torch.arange(size, device=device) + 0.5) / size * (lines - 1)
        cell = centres.long().minimum(lines - 2)
        part = centres - cell
        axes.append(torch.lerp(moved[:, axis, cell], moved[:, axis, cell + 1], part))  # [N, size]
    x, y = axes
    grid = torch.stack([x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False).to(
        images.dtype
    )


def orbital_jitter(poses: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn cameras about the scene's centre, by up to 18 degrees about their up axis and 9 about their right axis.

    Args:
        poses: [..., 4, 4], camera-to-world with OpenGL axes.
        generator: On the poses' device.

    Returns:
        The turned poses; a camera's distance from the centre stays, and what it sees in its middle.
    """
    shape = poses.shape[:-2]
    angles = 2 * torch.rand(*shape, 2, generator=generator, device=poses.device) - 1
    right, up = poses[..., :3, 0], poses[..., :3, 1]
    turn = _rotation(up, angles[..., 0] * UP) @ _rotation(right, angles[..., 1] * RIGHT)
    result = poses.clone()
    result[..., :3, :4] = turn @ poses[..., :3, :4]
    return result


def _rotation(axes: Tensor, angles: Tensor) -> Tensor:
    """[..., 3, 3] rotations by angles [...] about unit axes [..., 3] (Rodrigues)."""
    x, y, z = axes.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    sine, cosine = angles.sin()[..., None, None], angles.cos()[..., None, None]
    return torch.eye(3, device=axes.device) + sine * cross + (1 - cosine) * cross @ cross


def augment(images: Tensor, poses: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Each augmentation with probability one half.

    Args:
        images: [B, V, 3, H, W], the input views.
        poses: [B, V, 4, 4], their cameras.
        generator: On their device.

    Returns:
        The new images and poses, and which views [B, V] are as they were (bool).
    """
    batch, views = images.shape[:2]
    chosen = torch.rand(2, batch, generator=generator, device=images.device) < 0.5
    images, poses = images.clone(), poses.clone()
    distorted = grid_distortion(images[:, 1:].flatten(0, 1), generator).unflatten(0, (batch, -1))
    images[:, 1:] = torch.where(chosen[0].view(-1, 1, 1, 1, 1), distorted, images[:, 1:])
    jittered = orbital_jitter(poses[:, 1:], generator)
    poses[:, 1:] = torch.where(chosen[1].view(-1, 1, 1, 1), jittered, poses[:, 1:])
    first = torch.arange(views, device=images.device) == 0
    return images, poses, ~chosen.any(0)[:, None] | first
