"""Where and how large an object is: as `matting.recenter` makes it of a user's picture.

A user's picture says nothing of how large the object was in it, nor where. It is recentred, and the multi-view model's
views are as large as that; so objects are placed like that to be rendered, for training and for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...core.cameras import FOV_Y, RADIUS, intrinsics, orbit_camera, orbit_cameras, view_matrices
from .mesh_renderer import ViewRenderer
from .objects import ObjectMesh

SIZE = 256  # pixels a side of every picture that is judged
INPUTS = 4  # views that a model is given, or is to make of one image; the first one is the front
FILL = 0.8  # share of the frame that matting.recenter lets the longer side of a user's object fill
REACH = 0.97  # share of the frame that no side of a placed object leaves

HALF = np.tan(np.radians(FOV_Y / 2))  # half the frame at depth 1


class LeftOut(Exception):
    """An object can't be used; the message is a few words on why."""


def close_up(renderer: ViewRenderer, mesh: ObjectMesh, front: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, bool]:
    """The picture that a user takes of a placed mesh: with a longer lens, if it is placed smaller than that.

    Args:
        renderer: Renders it.
        mesh: Where it is placed.
        front: [S, S, 4] uint8, what the camera at `pose` sees of it.
        pose: [4, 4], camera-to-world.

    Returns:
        [S, S, 4] uint8, premultiplied; and whether it is another picture than `front`.
    """
    closer = close_pose(front, pose)
    return (front, False) if closer is None else (renderer.render(mesh, closer[None])[0][0], True)


def close_pose(front: np.ndarray, pose: np.ndarray) -> np.ndarray | None:
    """`close_up`'s camera, where it takes another picture than `front`."""
    size, box = len(front), alpha_box(front[..., 3])
    if box is None:
        return None
    left, top, right, bottom = box
    longest = max(right - left, bottom - top)
    if longest >= FILL * size - 1.5:
        return None
    middle = (left + right - size) / size, (size - top - bottom) / size
    return zoomed(pose, FILL * size / longest, middle)


@dataclass(frozen=True)
class Placement:
    """Where an object goes: p becomes scale · (p - center)."""

    scale: float
    center: np.ndarray  # [3]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] moved."""
        return (self.scale * (points - self.center)).astype(np.float32)


def place(points: np.ndarray, front_alpha: Callable[[Placement], np.ndarray], elevation: float = 0.0) -> Placement:
    """The placement in which an object's front view is what `matting.recenter` makes of a picture of it.

    That puts the object's box in the middle, its longer side at 80% of the frame. So the object is scaled about its
    middle and shifted along the picture, in 3D, until its front view is that. One that is longer than wide would then
    leave the frame in another of the four views; it stays as small as it must.

    Args:
        points: [N, 3], whatever may be seen of the object.
        front_alpha: Renders the object from azimuth 0: alpha [S, S] uint8.
        elevation: Of the front view, in degrees.

    Raises:
        LeftOut: If the front view shows nothing.
    """
    pose = orbit_camera(elevation, 0)
    center, scale = np.zeros(3), 1.0
    for _ in range(12):
        alpha = front_alpha(Placement(scale, center))
        box = alpha_box(alpha)
        if box is None:
            raise LeftOut("its front view shows nothing")
        left, top, right, bottom = box
        size, longest = len(alpha), max(right - left, bottom - top)
        # recenter rounds the corner down, so an odd number of pixels lies half a pixel off the middle. A box about that
        # point covers an odd number of pixels: recenter leaves it where it is.
        off = np.array([left + right - size + 1, size - 1 - top - bottom]) / 2
        wanted = min(scale * (FILL * size - 0.3) / longest, largest_scale(points, center, elevation))
        if _is_recentered(alpha) or (np.abs(off).max() < 0.2 and abs(wanted / scale - 1) < 1e-3):
            break
        pixel = 2 * HALF * RADIUS / size / scale  # in the object's units, at its middle
        center = center + 0.8 * pixel * pose[:3, :2] @ off  # what is nearer than the middle moves more
        scale = wanted
    return Placement(scale, center)


def largest_scale(points: np.ndarray, center: np.ndarray, elevation: float = 0.0) -> float:
    """The scale about `center` up to which the four views at `elevation` show points [N, 3] whole."""
    rotations = view_matrices(orbit_cameras(elevation))[:, :3, :3]
    x, y, z = np.moveaxis((points - center) @ np.swapaxes(rotations, 1, 2), -1, 0)
    # Seen is what has scale · max(|x|, |y|) <= limit · (RADIUS + scale · z).
    limit = REACH * HALF
    return limit * RADIUS / max(float((np.maximum(np.abs(x), np.abs(y)) - limit * z).max()), 1e-6)


def alpha_box(alpha: np.ndarray) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of what is visible in alpha [H, W] uint8, to parts of a pixel; None if nothing is."""

    def ends(profile: np.ndarray) -> tuple[float, float]:
        first, last = np.flatnonzero(profile > 12)[[0, -1]]
        return first + 1 - profile[first] / 255, last + profile[last] / 255

    if alpha.max() <= 12:
        return None
    (left, right), (top, bottom) = ends(alpha.max(0)), ends(alpha.max(1))
    return left, top, right, bottom


def _is_recentered(alpha: np.ndarray) -> bool:
    """Whether `matting.recenter` would leave a picture with this alpha as it is."""
    size = len(alpha)
    rows, columns = (np.flatnonzero((alpha > 12).any(axis)) for axis in (1, 0))
    lengths = [int(ends[-1] - ends[0]) + 1 for ends in (rows, columns)]
    return max(lengths) == round(FILL * size) and all(
        ends[0] == (size - length) // 2 for ends, length in zip((rows, columns), lengths, strict=True)
    )


def zoomed(pose: np.ndarray, zoom: float, middle: tuple[float, float]) -> np.ndarray:
    """A camera-to-world matrix [4, 4] that shows what `pose` does, enlarged about a point of the picture.

    It is not rigid: the camera's own axes are stretched and sheared, which is what a longer, shifted lens does.

    Args:
        pose: Camera-to-world.
        zoom: How much larger.
        middle: What is to be in the middle, x right and y up, from -1 to 1.
    """
    lens = np.eye(4)
    lens[:2, :3] = zoom * np.array([[1, 0, middle[0] * HALF], [0, 1, middle[1] * HALF]])
    return pose @ np.linalg.inv(lens)


def moved(mesh: ObjectMesh, placement: Placement) -> ObjectMesh:
    """A mesh where it is placed."""
    return replace(mesh, corners=np.concatenate([placement(mesh.corners[:, :3]), mesh.corners[:, 3:]], 1))


def place_by_box(points: np.ndarray, elevation: float, alpha: np.ndarray | None = None) -> Placement:
    """`place` by the box around an object, filled, in place of the object's picture.

    Args:
        points: [N, 3], its own, or of its hull, which is a little larger than the object.
        elevation: Of the front view, in degrees.
        alpha: [S, S] uint8, the object as it is, from there. It says how much larger the hull is; None: not at all.

    Raises:
        LeftOut: If the front view shows nothing.
    """
    pose, size = orbit_camera(elevation, 0), SIZE if alpha is None else len(alpha)

    def box(placement: Placement) -> np.ndarray:
        pixels = projected(placement(points), pose, size)
        return np.concatenate([pixels.min(0), pixels.max(0)])

    excess = np.zeros(4)
    if alpha is not None:
        found = alpha_box(alpha)
        if found is None:
            raise LeftOut("its front view shows nothing")
        excess = np.array(found) - box(Placement(1.0, np.zeros(3)))
    edges = np.arange(size)

    def alpha_of(placement: Placement) -> np.ndarray:
        left, top, right, bottom = box(placement) + placement.scale * excess
        across = np.clip(np.minimum(edges + 1, right) - np.maximum(edges, left), 0, 1)
        down = np.clip(np.minimum(edges + 1, bottom) - np.maximum(edges, top), 0, 1)
        return np.uint8(255 * down[:, None] * across + 0.5)

    return place(points, alpha_of, elevation)


def projected(points: np.ndarray, pose: np.ndarray, size: int) -> np.ndarray:
    """Where points [N, 3] are in a picture, in pixels from its top left corner [N, 2]."""
    matrix = view_matrices(pose)
    seen = (points @ matrix[:3, :3].T + matrix[:3, 3]) @ intrinsics(size).T
    return seen[:, :2] / np.maximum(seen[:, 2:], 1e-6)
