"""What an evaluation shows a model and what it compares the result with: objects seen from fixed cameras.

docs/evaluation.md describes the protocol.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...core.cameras import FOV_Y, RADIUS, orbit_camera, orbit_cameras, view_matrices
from ...core.errors import LGMError
from .objects import TexturedMesh, ViewRenderer, evaluation_poses, read_index, read_mesh

SIZE = 256  # pixels a side of every picture that is judged
INPUTS = 4  # the first four of the fixed cameras; the other eight are judged
FILL = 0.8  # share of the frame that matting.recenter lets the longer side of a user's object fill
REACH = 0.97  # share of the frame that no side of a placed object leaves

HALF = np.tan(np.radians(FOV_Y / 2))  # half the frame at depth 1


@dataclass(frozen=True)
class Truth:
    """One object.

    Attributes:
        id, caption: Its name, and what it is.
        pixels: [12, SIZE, SIZE, 4] uint8, premultiplied: four views at elevation 0, azimuth 0, 90, 180, 270, then the
            eight that are judged.
        poses: [12, 4, 4] float32, camera-to-world.
        photo: [SIZE, SIZE, 4] uint8, premultiplied: the front as a user's picture has it; None if it is not placed.
        smaller: Whether it is placed smaller than the recentred photo shows it.
    """

    id: str
    caption: str
    pixels: np.ndarray
    poses: np.ndarray
    photo: np.ndarray | None = None
    smaller: bool = False


class ObjectsZip:
    """The `val` objects of an objects.zip, each drawn when it is asked for.

    Args:
        path: The archive (training/objects.py).
        limit: Take only the first so many.

    Raises:
        LGMError: If it is no such archive, or has no `val` objects.
    """

    def __init__(self, path: Path, limit: int | None = None):
        try:
            self.archive = zipfile.ZipFile(path)
            index = [(o["id"], str(o["caption"])) for o in read_index(path) if o["split"] == "val"]
        except OSError as error:
            raise LGMError(f"{path} can't be read ({error.strerror or error}). Choose an objects.zip.") from error
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
            raise LGMError(f"{path} is no archive of objects, or damaged ({error}). Choose an objects.zip.") from error
        if not index:
            raise LGMError(f"{path} has no objects of the split 'val' to judge a model on.")
        self.objects = index[:limit]
        self.renderer = ViewRenderer(SIZE)

    def truth(self, number: int, placed: bool) -> Truth | None:
        """An object from the fixed cameras; None if hardly anything of it can be seen.

        Args:
            number: Of `objects`.
            placed: False for the object as it is stored (radius 0.62); True for what a model is to make of its photo.

        Raises:
            LGMError: If the archive's file of it is damaged.
        """
        object_id, caption = self.objects[number]
        try:
            mesh = read_mesh(self.archive, object_id)
        except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
            raise LGMError(f"The object {object_id} of {self.archive.filename} is damaged ({error}).") from error
        poses = evaluation_poses(object_id)[0]
        if not placed:
            pixels = self.renderer.draw(mesh, poses)
            return Truth(object_id, caption, pixels, poses) if _is_seen(pixels) else None

        front = orbit_camera(0, 0)
        # Alpha alone needs no textures, unless they have holes.
        bare = mesh if (mesh.textures[..., 3] < 128).any() else _moved(mesh, textured=False)
        placement = place(
            mesh.corners[:, :3], lambda placement: self.renderer.draw(_moved(bare, placement), front[None])[0, ..., 3]
        )
        if placement is None:
            return None
        mesh = _moved(mesh, placement)
        pixels = self.renderer.draw(mesh, poses)
        if not _is_seen(pixels):
            return None
        photo, smaller = pixels[0], False
        left, top, right, bottom = alpha_box(photo[..., 3])
        if max(right - left, bottom - top) < FILL * SIZE - 1.5:
            # A closer picture of it, from where the front view's camera is.
            middle = (left + right - SIZE) / SIZE, (SIZE - top - bottom) / SIZE
            lens = zoomed(front, FILL * SIZE / max(right - left, bottom - top), middle)
            photo, smaller = self.renderer.draw(mesh, lens[None])[0], True
        return Truth(object_id, caption, pixels, poses, photo, smaller)


def _moved(mesh: TexturedMesh, placement: Placement | None = None, textured: bool = True) -> TexturedMesh:
    corners = mesh.corners.copy()
    if placement is not None:
        corners[:, :3] = placement(corners[:, :3])
    if not textured:
        corners[:, 3:5], corners[:, 8] = 0, -1
    return replace(mesh, corners=corners)


def _is_seen(pixels: np.ndarray) -> bool:
    """As objects.draw_objects has it: nine of ten views show something."""
    return bool(pixels[..., 3].any(axis=(1, 2)).mean() >= 0.9)


# Placing
# -------


@dataclass(frozen=True)
class Placement:
    """Where an object goes: p becomes scale · (p - center)."""

    scale: float
    center: np.ndarray  # [3]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] moved."""
        return self.scale * (points - self.center)


def place(points: np.ndarray, front_alpha: Callable[[Placement], np.ndarray]) -> Placement | None:
    """The placement in which an object's front view is what `matting.recenter` makes of a picture of it.

    A user's picture says nothing of how large the object was in it, nor where: recentring puts the object's box in the
    middle, its longer side at 80% of the frame, and that is the front view that the model goes by. So the object is
    scaled about its middle and shifted along the picture, in 3D, until its front view is that. One that is longer than
    wide would then leave the frame in another of the four views; it stays as small as it must.

    Args:
        points: [N, 3], whatever may be seen of the object.
        front_alpha: Draws the object from azimuth 0, elevation 0: alpha [S, S] uint8.

    Returns:
        The placement; None if the front view shows nothing.
    """
    center, scale = np.zeros(3), 1.0
    for _ in range(12):
        alpha = front_alpha(Placement(scale, center))
        box = alpha_box(alpha)
        if box is None:
            return None
        left, top, right, bottom = box
        size, longest = len(alpha), max(right - left, bottom - top)
        # recenter rounds the corner down, so an odd number of pixels lies half a pixel off the middle. A box about that
        # point covers an odd number of pixels: recenter leaves it where it is.
        off = np.array([left + right - size + 1, size - 1 - top - bottom]) / 2
        wanted = min(scale * (FILL * size - 0.3) / longest, largest_scale(points, center))
        if _is_recentered(alpha) or (np.abs(off).max() < 0.2 and abs(wanted / scale - 1) < 1e-3):
            break
        pixel = 2 * HALF * RADIUS / size / scale  # in the object's units, at its middle
        center = center + 0.8 * pixel * np.array([*off, 0])  # what is nearer than the middle moves more
        scale = wanted
    return Placement(scale, center)


def largest_scale(points: np.ndarray, center: np.ndarray) -> float:
    """The scale about `center` up to which the four views at elevation 0 show points [N, 3] whole."""
    x, y, z = np.moveaxis((points - center) @ np.swapaxes(view_matrices(orbit_cameras())[:, :3, :3], 1, 2), -1, 0)
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
    """A camera-to-world matrix [4, 4] that draws what `pose` does, enlarged about a point of the picture.

    It is not rigid: the camera's own axes are stretched and sheared, which is what a longer, shifted lens does.

    Args:
        pose: Camera-to-world.
        zoom: How much larger.
        middle: What is to be in the middle, x right and y up, from -1 to 1.
    """
    lens = np.eye(4)
    lens[:2, :3] = zoom * np.array([[1, 0, middle[0] * HALF], [0, 1, middle[1] * HALF]])
    return pose @ np.linalg.inv(lens)
