"""Orbit cameras, and the two frames: LGM's (y up) and Blender's (z up).

Geometry is computed in LGM's frame everywhere; `to_blender` and `from_blender` are the only way across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .gaussians import Gaussians, multiply_quaternions

RADIUS = 1.5  # LGM's camera distance from the origin (paper, section 4.1)
FOV_Y = 49.1  # LGM's vertical field of view in degrees (zero123's)
NEAR, FAR = 0.5, 2.5  # the depth range LGM draws
VIEW_AZIMUTHS = (0, 90, 180, 270)


def orbit_camera(elevation: float, azimuth: float, radius: float = RADIUS) -> np.ndarray:
    """Camera-to-world [4, 4] float32 of a camera on a sphere, looking at the origin.

    OpenGL axes (x right, y up, looking along -z) in LGM's frame. Azimuth 0 looks from +z, azimuth 90 from +x.

    Args:
        elevation: Degrees above the object; negative is below. The published LGM code has the opposite sign.
        azimuth: Degrees about the up axis.
        radius: Distance from the origin.
    """
    e, a = math.radians(elevation), math.radians(azimuth)
    back = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
    right = np.array([math.cos(a), 0.0, -math.sin(a)])
    pose = np.eye(4)
    pose[:3, 0] = right
    pose[:3, 1] = np.cross(back, right)
    pose[:3, 2] = back
    pose[:3, 3] = radius * back
    return pose.astype(np.float32)


def orbit_cameras(
    elevation: float = 0.0, azimuths: Sequence[float] = VIEW_AZIMUTHS, radius: float = RADIUS
) -> np.ndarray:
    """Camera-to-world [V, 4, 4] of orbit cameras of one elevation."""
    return np.stack([orbit_camera(elevation, azimuth, radius) for azimuth in azimuths])


def multiview_cameras(elevation: float = 0.0, image_frame: bool = False) -> np.ndarray:
    """The camera condition [4, 16] of MVDream, or [5, 16] of ImageDream, whose last frame is all zeros.

    Orbit cameras at radius 1 and azimuth 0, 90, 180, 270; row 2 negated, then rows 1 and 2 swapped; flattened.
    """
    poses = orbit_cameras(elevation, radius=1.0)
    rows = np.stack([poses[:, 0], -poses[:, 2], poses[:, 1], poses[:, 3]], axis=1)
    cameras = rows.reshape(len(poses), 16)
    return np.concatenate([cameras, np.zeros((1, 16), np.float32)]) if image_frame else cameras


def view_matrices(poses: np.ndarray) -> np.ndarray:
    """World-to-camera [..., 4, 4] with OpenCV axes (y down, looking along +z), from camera-to-world OpenGL poses."""
    flipped = np.asarray(poses, dtype=np.float64).copy()
    flipped[..., :3, 1:3] *= -1
    return np.linalg.inv(flipped).astype(np.float32)


def intrinsics(size: int, fov_y: float = FOV_Y) -> np.ndarray:
    """[3, 3] float32 pinhole matrix of a square picture of `size` pixels, pixel centres at + 0.5."""
    focal = 0.5 * size / math.tan(0.5 * math.radians(fov_y))
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=np.float32)


# Blender is z up and its front looks from -y: a turn of +90 degrees about x.
_TO_BLENDER = np.array([math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0], dtype=np.float32)
_FROM_BLENDER = _TO_BLENDER * np.array([1, -1, -1, -1], dtype=np.float32)


def points_to_blender(points: np.ndarray) -> np.ndarray:
    """Points or directions [..., 3] from LGM's frame to Blender's: (x, y, z) -> (x, -z, y)."""
    points = np.asarray(points)
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)


def points_from_blender(points: np.ndarray) -> np.ndarray:
    """Points or directions [..., 3] from Blender's frame to LGM's: (x, y, z) -> (x, z, -y)."""
    points = np.asarray(points)
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def to_blender(gaussians: Gaussians) -> Gaussians:
    """Gaussians from LGM's frame to Blender's."""
    return Gaussians(
        points_to_blender(gaussians.positions),
        gaussians.opacities,
        gaussians.scales,
        multiply_quaternions(_TO_BLENDER, gaussians.rotations),
        gaussians.colors,
    )


def from_blender(gaussians: Gaussians) -> Gaussians:
    """Gaussians from Blender's frame to LGM's."""
    return Gaussians(
        points_from_blender(gaussians.positions),
        gaussians.opacities,
        gaussians.scales,
        multiply_quaternions(_FROM_BLENDER, gaussians.rotations),
        gaussians.colors,
    )


def pose_to_blender(pose: np.ndarray) -> np.ndarray:
    """A camera's `matrix_world` [4, 4] in Blender, from its camera-to-world OpenGL pose in LGM's frame."""
    pose = np.asarray(pose)
    result = pose.copy()
    result[:3, :4] = points_to_blender(pose[:3, :4].T).T
    return result
