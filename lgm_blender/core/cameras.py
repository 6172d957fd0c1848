"""Orbit cameras, and the two frames: LGM's (y up) and Blender's (z up).

Geometry is computed in LGM's frame everywhere; `to_blender` and `from_blender` are the only way across.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from .affine import turned
from .gaussians import Gaussians

RADIUS = 1.5  # LGM's camera distance from the origin (paper, section 4.1)
FOV_Y = 49.1  # LGM's vertical field of view in degrees (zero123's)
NEAR, FAR = 0.5, 2.5  # the depth range that LGM's renderer sees
VIEW_AZIMUTHS = (0, 90, 180, 270)

# Training views of an object: the sphere it is scaled into, and which cameras look at it.
OBJECT_RADIUS = 0.62  # what a camera at 1.5 with LGM's field of view sees whole: 1.5 · sin(24.55°)
RING, RAISED, FREE = 16, 8, 12  # views: elevation 0, one other elevation, anywhere
VIEWS = RING + RAISED + FREE
LIGHT = (0.3, 0.85, 0.45)  # where the light is that objects are rendered under, fixed to the object, in LGM's frame
SHADE = 0.8, 0.2  # colours are rendered times SHADE[0] + SHADE[1] · (normal · light), the normal turned to the camera


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


def levelled(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cameras turned as a whole about the origin until the first stands at +z, level, as LGM's training had them.

    Args:
        poses: [V, 4, 4] camera-to-world, the first one looking at the origin.

    Returns:
        The turned poses, and the rotation [3, 3] that turns what they see back.
    """
    turn = np.asarray(poses[0][:3, :3], np.float64)
    back = np.eye(4)
    back[:3, :3] = turn.T
    return (back @ poses).astype(np.float32), turn


def view_poses(name: str, count: int = VIEWS) -> tuple[np.ndarray, np.ndarray]:
    """An object's training cameras, the same every time.

    Args:
        name: The object's; what is not the same for all objects follows from it.
        count: How many; fewer leave out every other view of the rings first.

    Returns:
        Poses [count, 4, 4] and their (elevation, azimuth) [count, 2] in degrees: RING views at elevation 0, RAISED ones
        at one other elevation, both all round at even steps, then FREE ones anywhere from -30 to 50 degrees.
    """
    ring, raised = (RING, RAISED) if count >= VIEWS else (8, 4) if count >= VIEWS // 2 else (4, 0)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    high = rng.uniform(-15, 35)
    start = rng.uniform(0, 360)
    angles = [(0.0, 360 / ring * i) for i in range(ring)]
    angles += [(high, start + 360 / raised * i) for i in range(raised)]
    angles += [(rng.uniform(-30, 50), rng.uniform(0, 360)) for _ in range(count - ring - raised)]
    angles = angles[:count]
    return np.stack([orbit_camera(*angle) for angle in angles]), np.array(angles, np.float32)


def evaluation_poses(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The fixed cameras of every evaluation: four inputs at elevation 0, then eight others at -10 to 30 degrees."""
    angles = [(0.0, azimuth) for azimuth in VIEW_AZIMUTHS]
    angles += [(elevation, 22.5 + 45 * i) for i, elevation in enumerate((0, 20, -10, 30, 10, 20, 0, 30))]
    return np.stack([orbit_camera(*angle) for angle in angles]), np.array(angles, np.float32)


def into_sphere(low: np.ndarray, high: np.ndarray, radius: float = OBJECT_RADIUS) -> tuple[np.ndarray, float]:
    """Where an object's bounding box [3], [3] has its centre, and the factor that makes its diagonal 2 · `radius`."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return (low + high) / 2, 2 * radius / float(np.linalg.norm(high - low))


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


def intrinsics(size: int) -> np.ndarray:
    """[3, 3] float32 pinhole matrix of a square picture of `size` pixels, pixel centres at + 0.5."""
    focal = 0.5 * size / math.tan(0.5 * math.radians(FOV_Y))
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=np.float32)


# Blender is z up and its front looks from -y: a turn of +90 degrees about x.
_TO_BLENDER = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


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
    return turned(gaussians, _TO_BLENDER)


def from_blender(gaussians: Gaussians) -> Gaussians:
    """Gaussians from Blender's frame to LGM's."""
    return turned(gaussians, _TO_BLENDER.T)


def pose_to_blender(pose: np.ndarray) -> np.ndarray:
    """A camera's `matrix_world` [4, 4] in Blender, from its camera-to-world OpenGL pose in LGM's frame."""
    pose = np.asarray(pose)
    result = pose.copy()
    result[:3, :4] = points_to_blender(pose[:3, :4].T).T
    return result


def pose_from_blender(pose: np.ndarray) -> np.ndarray:
    """A camera-to-world OpenGL pose [..., 4, 4] in LGM's frame, from one in Blender's (z up): `matrix_world`."""
    pose = np.asarray(pose)
    result = pose.copy()
    result[..., :3, :] = np.swapaxes(points_from_blender(np.swapaxes(pose[..., :3, :], -1, -2)), -1, -2)
    return result
