"""Training views on the device, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...core.cameras import view_poses
from ...worker.lgm.rays import pixel_rays
from ...worker.tensors import constant
from .mesh_renderer import DISTANCE_UNIT
from .view_files import Cameras, distance_path, read_ahead


@dataclass
class TrainingViews:
    """Views of objects on one device; every object has views of its own number and cameras.

    Attributes:
        pixels: [N, S, S, 4] uint8, premultiplied: all objects' views, one object after the other.
        poses: [N, 4, 4] float32, camera-to-world.
        angles: [N, 2] float32, elevation and azimuth in degrees.
        first: [O] int64, each object's first row.
        counts: [O] int64, how many rows it has.
        orbits: [O, K, 4] int64, rows of four views a quarter turn apart at one elevation; unused ones are -1.
        orbit_counts: [O] int64, how many orbits an object has.
        distances: [N, D, D] int16, from the camera to the surface in DISTANCE_UNIT, 0 beside it; or None.
    """

    pixels: Tensor
    poses: Tensor
    angles: Tensor
    first: Tensor
    counts: Tensor
    orbits: Tensor
    orbit_counts: Tensor
    distances: Tensor | None = None

    @classmethod
    def from_rows(cls, pixels: Tensor, poses: np.ndarray, counts: Sequence[int]) -> TrainingViews:
        """Views of objects that have `counts` rows each of `pixels` and `poses`.

        Raises:
            ValueError: If an object has no four views a quarter turn apart.
        """
        device = pixels.device
        first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        angles = np.stack([orbit_angles(pose) for pose in poses]).astype(np.float32)
        orbits = [start + find_orbits(angles[start : start + n]) for start, n in zip(first, counts, strict=True)]
        if not all(map(len, orbits)):
            missing = [i for i, found in enumerate(orbits) if not len(found)]
            raise ValueError(f"objects {missing[:10]} have no four views a quarter turn apart at one elevation")
        table = pad_sequence([torch.from_numpy(found) for found in orbits], batch_first=True, padding_value=-1)

        def tensor(values) -> Tensor:
            return torch.as_tensor(np.asarray(values)).to(device)

        return cls(
            pixels,
            tensor(poses.astype(np.float32)),
            tensor(angles),
            tensor(first),
            tensor(np.asarray(counts, np.int64)),
            table.to(device),
            tensor([len(found) for found in orbits]),
        )

    @classmethod
    def from_files(
        cls, files: Sequence[tuple[Path, list[str]]], device: torch.device | str, cameras: Cameras = view_poses
    ) -> TrainingViews:
        """Views from files that render_objects wrote, of the first objects of each, whose ids are given.

        They are read a few rows at a time. The same object varied, in another file, counts as a further object.
        """
        number = len(np.load(files[0][0], mmap_mode="r")[0])
        total = number * sum(len(ids) for _, ids in files)

        def loaded(name: Callable[[Path], Path]) -> Tensor:
            target, row = None, 0
            for path, ids in files:
                for read in read_ahead(np.load(name(path), mmap_mode="r"), len(ids), 64):
                    part = torch.from_numpy(read).flatten(0, 1)
                    if target is None:
                        target = torch.empty((total, *part.shape[1:]), dtype=part.dtype, device=device)
                    target[row : row + len(part)] = part.to(device)
                    row += len(part)
            return target

        names = [object_id for _, ids in files for object_id in ids]
        poses = np.concatenate([cameras(object_id)[0] for object_id in names])
        views = cls.from_rows(loaded(lambda path: path), poses, [number] * len(names))
        views.distances = loaded(distance_path)
        return views

    def __len__(self) -> int:
        """How many objects."""
        return len(self.first)

    @property
    def size(self) -> int:
        """Width and height in pixels."""
        return self.pixels.shape[2]

    @cached_property
    def most(self) -> int:
        """The largest number of views that an object has."""
        return int(self.counts.max())

    def pictures(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Premultiplied colour [..., 3, S, S] and alpha [..., 1, S, S] in 0 to 1, of rows [...]."""
        pixels = self.pixels[rows].float().div_(255).movedim(-1, -3)
        return pixels[..., :3, :, :], pixels[..., 3:, :, :]

    def surface(self, rows: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Where the pixels of rows [B, V] see the object: points [B, V, D, D, 3] from poses [B, V, 4, 4], and whether.

        Only for views with distances.
        """
        distances = self.distances[rows].float() * DISTANCE_UNIT
        origins, directions = pixel_rays(poses, distances.shape[-1])
        return origins + distances[..., None] * directions, distances > 0

    def orbit(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random objects [count], and for each the rows of a random orbit of its [count, 4]."""
        device = self.pixels.device
        objects = torch.randint(len(self), (count,), generator=generator, device=device)
        chosen = torch.rand(count, generator=generator, device=device) * self.orbit_counts[objects]
        return objects, self.orbits[objects, chosen.long()]

    def others(self, objects: Tensor, inputs: Tensor, number: int, generator: torch.Generator) -> Tensor:
        """Rows [B, number] of random other views of the objects [B] than `inputs` [B, V]; the same may come twice."""
        device = self.pixels.device
        order = torch.rand(len(objects), self.most, generator=generator, device=device)
        local = torch.arange(order.shape[1], device=device).expand_as(order)
        order = order.masked_fill(local >= self.counts[objects, None], -1)
        order = order.scatter(1, inputs - self.first[objects, None], -1)
        chosen = order.argsort(1, descending=True)
        spare = (self.counts[objects] - inputs.shape[1]).clamp_min(1)[:, None]
        return self.first[objects, None] + chosen.gather(1, torch.arange(number, device=device) % spare)

    def relative_poses(self, rows: Tensor, first: Tensor) -> Tensor:
        """Poses [B, V, 4, 4] of rows [B, V], turned about the up axis so that the view `first` [B] has azimuth 0."""
        angle = -torch.deg2rad(self.angles[first, 1])
        turn = torch.zeros(len(rows), 4, 4, device=angle.device)
        turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
        turn[:, 0, 2], turn[:, 2, 0] = angle.sin(), -angle.sin()
        turn[:, 1, 1] = turn[:, 3, 3] = 1
        return turn[:, None] @ self.poses[rows]


def orbit_angles(pose: np.ndarray) -> tuple[float, float]:
    """Elevation and azimuth in degrees of a camera-to-world pose [4, 4] (core.cameras.orbit_camera's inverse)."""
    x, y, z = pose[:3, 3].astype(np.float64)
    return math.degrees(math.atan2(y, math.hypot(x, z))), math.degrees(math.atan2(x, z)) % 360


def find_orbits(angles: np.ndarray, tolerance: float = 2.0) -> np.ndarray:
    """Rows [K, 4] of views a quarter turn apart at one elevation, azimuth rising, from angles [V, 2] in degrees.

    Every view that starts such an orbit gives one; what is off by up to `tolerance` degrees still counts.
    """
    elevation, azimuth = angles[:, 0], angles[:, 1]
    columns = []
    for quarter in range(4):
        turn = azimuth[None, :] - azimuth[:, None] - 90 * quarter
        off = np.hypot((turn + 180) % 360 - 180, elevation[None, :] - elevation[:, None])
        nearest = off.argmin(1)
        columns.append(np.where(off[np.arange(len(off)), nearest] <= tolerance, nearest, -1))
    orbits = np.stack(columns, 1)
    orbits[:, 0] = np.arange(len(orbits))
    return orbits[(orbits >= 0).all(1)]


def opencv_matrices(poses: Tensor) -> Tensor:
    """World-to-camera [..., 4, 4] with OpenCV axes, of rigid camera-to-world OpenGL poses, without leaving the GPU."""
    rotation = poses[..., :3, :3] * constant((1.0, -1.0, -1.0), poses.device, poses.dtype)
    result = torch.zeros_like(poses)
    result[..., :3, :3] = rotation.mT
    result[..., :3, 3] = -(rotation.mT @ poses[..., :3, 3:]).squeeze(-1)
    result[..., 3, 3] = 1
    return result
