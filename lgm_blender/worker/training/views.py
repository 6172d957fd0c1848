"""Training views on the device, and batches of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .objects import RAISED, RING, VIEWS, Cameras, view_poses


@dataclass
class Views:
    """Drawn views of objects (objects.draw_objects), kept on one device. VIEWS of each for training, 12 for evaluation.

    Attributes:
        pixels: [O, VIEWS, S, S, 4] uint8, premultiplied.
        poses: [O, VIEWS, 4, 4] float32, camera-to-world.
        angles: [O, VIEWS, 2] float32, elevation and azimuth in degrees.
    """

    pixels: Tensor
    poses: Tensor
    angles: Tensor

    @classmethod
    def from_array(
        cls, pixels: np.ndarray, ids: list[str], device: torch.device | str, cameras: Cameras = view_poses
    ) -> Views:
        """Views of the objects `ids`, in the order of the array's rows, a few rows at a time to spare memory."""
        pixels = pixels[: len(ids)]
        target = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
        for i in range(0, len(ids), 64):
            target[i : i + 64] = torch.from_numpy(np.array(pixels[i : i + 64])).to(device)
        seen = [cameras(object_id) for object_id in ids]
        poses = torch.from_numpy(np.stack([poses for poses, _ in seen])).to(device)
        angles = torch.from_numpy(np.stack([angles for _, angles in seen])).to(device)
        return cls(target, poses, angles)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Width and height in pixels."""
        return self.pixels.shape[2]

    def pictures(self, objects: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Premultiplied colour [..., 3, S, S] and alpha [..., 1, S, S] in 0 to 1, of index tensors of one shape."""
        pixels = self.pixels[objects, views].float().div_(255).movedim(-1, -3)
        return pixels[..., :3, :, :], pixels[..., 3:, :, :]

    def orbit(self, count: int, generator: torch.Generator, raised: float = 0.4) -> tuple[Tensor, Tensor]:
        """Random objects [count], and for each four views a quarter turn apart [count, 4]; some from a raised ring."""
        device = self.pixels.device
        objects = torch.randint(len(self), (count,), generator=generator, device=device)
        up = torch.rand(count, generator=generator, device=device) < raised
        start = torch.randint(RING, (count,), generator=generator, device=device)
        quarter = torch.arange(4, device=device)
        level = (start[:, None] + quarter * (RING // 4)) % RING
        high = RING + (start[:, None] + quarter * (RAISED // 4)) % RAISED
        return objects, torch.where(up[:, None], high, level)

    def free(self, count: int, number: int, generator: torch.Generator) -> Tensor:
        """Random views [count, number] of those that look from anywhere."""
        device = self.pixels.device
        start = torch.rand(count, VIEWS - RING - RAISED, generator=generator, device=device)
        return RING + RAISED + start.argsort(1)[:, :number]

    def relative_poses(self, objects: Tensor, views: Tensor, first: Tensor) -> Tensor:
        """Poses [B, V, 4, 4] turned about the up axis so that the view `first` [B] has azimuth 0."""
        angle = -torch.deg2rad(self.angles[objects, first, 1])
        turn = torch.zeros(len(objects), 4, 4, device=angle.device)
        turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
        turn[:, 0, 2], turn[:, 2, 0] = angle.sin(), -angle.sin()
        turn[:, 1, 1] = turn[:, 3, 3] = 1
        return turn[:, None] @ self.poses[objects[:, None], views]


def opencv_matrices(poses: Tensor) -> Tensor:
    """World-to-camera [..., 4, 4] with OpenCV axes, of rigid camera-to-world OpenGL poses, without leaving the GPU."""
    rotation = poses[..., :3, :3] * poses.new_tensor([1.0, -1.0, -1.0])
    result = torch.zeros_like(poses)
    result[..., :3, :3] = rotation.mT
    result[..., :3, 3] = -(rotation.mT @ poses[..., :3, 3:]).squeeze(-1)
    result[..., 3, 3] = 1
    return result


def zoom_to_front(colors: Tensor, alphas: Tensor, fill: float = 0.8, margin: float = 0.97) -> tuple[Tensor, Tensor]:
    """Scale views about their centres so that the object fills the first one as a recentred input image does.

    The scale is less where another view would leave the frame. A user's image is recentred to fill 80% of the frame
    (LGM's border ratio 0.2), so views trained at this scale match it pixel by pixel.

    Args:
        colors: [B, V, 3, S, S] premultiplied.
        alphas: [B, V, 1, S, S].

    Returns:
        The scaled colours and alphas.
    """
    batch, views, _, size, _ = colors.shape
    mask = alphas[:, :, 0] > 0.05
    half = size / 2
    position = torch.arange(size, device=colors.device) + 0.5

    def extent(along: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.where(along, position, math.inf).amin(-1)
        high = torch.where(along, position, -math.inf).amax(-1)
        return low, high

    (left, right), (top, bottom) = extent(mask.any(2)), extent(mask.any(3))  # each [B, V]
    longest = torch.maximum(right - left, bottom - top)[:, 0] + 1
    reach = torch.stack([half - left, right - half, half - top, bottom - half]).amax(0).amax(1) + 0.5
    zoom = torch.minimum(fill * size / longest, margin * half / reach).clamp(0.5, 4)
    theta = torch.zeros(batch, 2, 3, device=colors.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
    theta = theta.repeat_interleave(views, 0)
    pixels = torch.cat([colors, alphas], 2).flatten(0, 1)
    grid = F.affine_grid(theta, pixels.shape, align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", align_corners=False).view(batch, views, 4, size, size)
    return pixels[:, :, :3], pixels[:, :, 3:]


def recentered(color: Tensor, alpha: Tensor, fill: float = 0.8) -> Tensor:
    """Views [B, 3, S, S] on white, recentred as a user's image is (matting.recenter): bounding box centred, 80%."""
    size = color.shape[-1]
    mask = alpha[:, 0] > 0.05
    position = torch.arange(size, device=color.device) + 0.5
    boxes = []
    for along in (mask.any(1), mask.any(2)):
        low = torch.where(along, position, math.inf).amin(-1)
        high = torch.where(along, position, -math.inf).amax(-1)
        boxes.append((low, high))
    (left, right), (top, bottom) = boxes
    longest = torch.maximum(right - left, bottom - top) + 1
    scale = longest / (fill * size)
    theta = torch.zeros(len(color), 2, 3, device=color.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2] = (left + right) / size - 1
    theta[:, 1, 2] = (top + bottom) / size - 1
    theta = torch.nan_to_num(theta, nan=0.0, posinf=1.0, neginf=-1.0)
    pixels = torch.cat([color, alpha], 1)
    grid = F.affine_grid(theta, pixels.shape, align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", align_corners=False)
    return pixels[:, :3] + 1 - pixels[:, 3:]
