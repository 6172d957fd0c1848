"""Rays of a camera's pixels, and their Plücker embedding (LGM, eq. 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.cameras import FOV_Y


def pixel_rays(poses: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Origins and unit directions of the rays through the pixel centres of square pictures.

    Args:
        poses: [..., 4, 4], camera-to-world with OpenGL axes.
        size: Width and height in pixels.

    Returns:
        Origins and directions, both [..., size, size, 3], rows from the top of the picture.
    """
    poses = poses.float()
    half = math.tan(0.5 * math.radians(FOV_Y))
    centres = ((torch.arange(size, device=poses.device, dtype=torch.float32) + 0.5) / size * 2 - 1) * half
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    local = torch.stack([x, y, -torch.ones_like(x)], dim=-1)  # [size, size, 3]
    directions = torch.einsum("...ij,hwj->...hwi", poses[..., :3, :3], local)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    origins = poses[..., None, None, :3, 3].expand_as(directions)
    return origins, directions


def plucker_rays(poses: Tensor, size: int) -> Tensor:
    """The Plücker embedding (o × d, d) of every pixel, [..., 6, size, size] (LGM, eq. 1)."""
    origins, directions = pixel_rays(poses, size)
    embedding = torch.cat([torch.cross(origins, directions, dim=-1), directions], dim=-1)
    return embedding.movedim(-1, -3)
