"""Shapes of flat Gaussians, whose mesh is known."""

from __future__ import annotations

import numpy as np

from lgm_blender.core.gaussians import Gaussians


def on_surface(points: np.ndarray, normals: np.ndarray, colors: np.ndarray, area: float) -> Gaussians:
    """Flat Gaussians [N] on points of a surface with unit normals."""
    sigma = 0.8 * (area / len(points)) ** 0.5
    rotations = np.concatenate([1 + normals[:, 2:], np.cross([0, 0, 1], normals)], 1)
    rotations[rotations[:, 0] < 1e-6] = [0, 1, 0, 0]
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    scales = np.broadcast_to([sigma, sigma, sigma / 10], (len(points), 3))
    return Gaussians(points, np.full(len(points), 0.98), scales, rotations, colors)


def halves(points: np.ndarray) -> np.ndarray:
    """Colours [N, 3]: red to the right (x > 0), blue to the left; green is brighter above (y > 0)."""
    return np.stack([points[:, 0] > 0, 0.8 * (points[:, 1] > 0), points[:, 0] <= 0], 1).astype(np.float32)


def sphere(count: int = 6000, radius: float = 0.5, center=(0.0, 0.0, 0.0)) -> Gaussians:
    """A sphere, volume 4/3 pi r³, even all over."""
    i = np.arange(count) + 0.5
    y, angle = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    normals = np.stack([np.sqrt(1 - y * y) * np.cos(angle), y, np.sqrt(1 - y * y) * np.sin(angle)], 1)
    return on_surface(normals * radius + center, normals, halves(normals), 4 * np.pi * radius**2)


def box(count: int = 6000, size=(0.8, 0.5, 0.6)) -> Gaussians:
    """A box, each side's Gaussians in a grid."""
    size = np.array(size)
    areas = np.array([size[1] * size[2], size[0] * size[2], size[0] * size[1]])
    points, normals = [], []
    for axis in range(3):
        u, v = (size[k] for k in range(3) if k != axis)
        across = max(2, round((count * areas[axis] / (2 * areas.sum()) * u / v) ** 0.5))
        down = max(2, round(across * v / u))
        grid = np.stack(np.meshgrid((np.arange(across) + 0.5) / across, (np.arange(down) + 0.5) / down), -1)
        grid = grid.reshape(-1, 2) - 0.5
        for side in (-0.5, 0.5):
            points.append(np.insert(grid, axis, side, axis=1) * size)
            normals.append(np.tile(np.eye(3)[axis] * np.sign(side), (len(grid), 1)))
    points, normals = np.concatenate(points), np.concatenate(normals)
    return on_surface(points, normals, halves(points), 2 * areas.sum())


def torus(count: int = 16_000, ring: float = 0.4, tube: float = 0.15) -> Gaussians:
    """A torus about the y axis, volume 2 pi² R r²."""
    rng = np.random.default_rng(0)
    around, along = rng.uniform(0, 2 * np.pi, (2, 3 * count))
    keep = rng.uniform(0, 1, len(around)) < (ring + tube * np.cos(along)) / (ring + tube)
    around, along = around[keep][:count], along[keep][:count]
    normals = np.stack([np.cos(around) * np.cos(along), np.sin(along), np.sin(around) * np.cos(along)], 1)
    points = ring * np.stack([np.cos(around), 0 * around, np.sin(around)], 1) + tube * normals
    return on_surface(points, normals, halves(points), 4 * np.pi**2 * ring * tube)
