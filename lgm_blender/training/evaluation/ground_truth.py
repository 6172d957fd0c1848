"""What an evaluation shows a model and what it compares the result with: objects seen from fixed cameras.

docs/evaluation.md describes the protocol.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from ...core.cameras import FOV_Y, RADIUS, evaluation_poses, intrinsics, orbit_camera, orbit_cameras, view_matrices
from ...core.errors import LGMError
from ...core.formats.transforms import caption_from_name, read_transforms
from ..data.dataset import find_objects, load_objects
from ..data.objects import TexturedMesh, ViewRenderer, read_index, read_mesh

SIZE = 256  # pixels a side of every picture that is judged
INPUTS = 4  # the first four of the fixed cameras; the other eight are judged
FILL = 0.8  # share of the frame that matting.recenter lets the longer side of a user's object fill
REACH = 0.97  # share of the frame that no side of a placed object leaves

HALF = np.tan(np.radians(FOV_Y / 2))  # half the frame at depth 1


class LeftOut(Exception):
    """An object can't be judged; the message is a few words on why."""


@dataclass(frozen=True)
class Truth:
    """One object.

    Attributes:
        pixels: [12, SIZE, SIZE, 4] uint8, premultiplied: four input views, then the eight that are judged.
        poses: [12, 4, 4] float32, camera-to-world, the first one at azimuth 0.
        elevation: Of the first one, in degrees.
        photo: [SIZE, SIZE, 4] uint8, premultiplied: the first view as a user's picture; None if it is not placed.
        smaller: Whether it is placed smaller than the recentred photo shows it.
        redrawn: Whether it was drawn where it is placed, by LGM's cameras, so that the first four views are what a
            multi-view model should make of the photo. Otherwise the cameras were moved instead of the object.
    """

    pixels: np.ndarray
    poses: np.ndarray
    elevation: float = 0.0
    photo: np.ndarray | None = None
    smaller: bool = False
    redrawn: bool = True


class ObjectsZip:
    """The `val` objects of an objects.zip (training/objects.py), each drawn when it is asked for.

    Attributes:
        objects: Each one's name, and what it is.

    Args:
        path: The archive.
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
        self.renderer = ViewRenderer(SIZE, distance_size=0)

    def truth(self, number: int, placed: bool) -> Truth:
        """An object from the fixed cameras.

        Args:
            number: Of `objects`.
            placed: False for the object as it is stored (radius 0.62); True for what a model is to make of its photo.

        Raises:
            LeftOut: If it is damaged, or hardly anything of it can be seen.
        """
        name, _ = self.objects[number]
        try:
            mesh = read_mesh(self.archive, name)
        except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
            raise LeftOut(f"its file is missing or damaged ({error})") from error
        poses = evaluation_poses(name)[0]
        if not placed:
            return Truth(self._draw(mesh, poses), poses)

        placement = place(mesh.corners[:, :3], lambda placement: self.front_alpha(mesh, placement))
        mesh = moved(mesh, placement)
        pixels = self._draw(mesh, poses)
        closer = close_up(self.renderer, mesh, pixels[0], orbit_camera(0, 0))
        photo, smaller = (pixels[0], False) if closer is None else (closer, True)
        return Truth(pixels, poses, 0.0, photo, smaller)

    def front_alpha(self, mesh: TexturedMesh, placement: Placement) -> np.ndarray:
        """[SIZE, SIZE] uint8: where a mesh is seen in its front view."""
        return self.renderer.draw(moved(mesh, placement), orbit_camera(0, 0)[None])[0][0, ..., 3]

    def _draw(self, mesh: TexturedMesh, poses: np.ndarray) -> np.ndarray:
        pixels, _ = self.renderer.draw(mesh, poses)
        if pixels[..., 3].any(axis=(1, 2)).mean() < 0.9:  # as objects.draw_objects has it
            raise LeftOut("hardly anything of it can be seen")
        return pixels


def moved(mesh: TexturedMesh, placement: Placement) -> TexturedMesh:
    """A mesh where it is placed."""
    return replace(mesh, corners=np.concatenate([placement(mesh.corners[:, :3]), mesh.corners[:, 3:]], 1))


class ViewFolders:
    """The `val` objects of a folder of training views (docs/data.md), or all of them if none is of that split.

    Of each object the views nearest to the fixed cameras are taken. See ObjectsZip.
    """

    def __init__(self, path: Path, limit: int | None = None):
        self.folders = (find_objects(path, "val") or find_objects(path))[:limit]
        self.objects = [(folder.name, _caption(folder)) for folder in self.folders]

    def truth(self, number: int, placed: bool) -> Truth:
        """See ObjectsZip.truth. To be placed, an object stays as it is, and its cameras move."""
        problems: list[str] = []
        try:
            data = load_objects([self.folders[number]], SIZE, least=12, tell=problems.append)
        except LGMError as error:
            raise LeftOut(problems[0] if problems else error.message) from error
        order, turned, elevation = nearest_to_fixed(data.poses)
        pixels, poses = data.pixels[order], turned[order]
        if not placed:
            return Truth(pixels, poses, elevation, redrawn=False)
        points = visual_hull(data.pixels[..., 3], turned)
        if not len(points):
            raise LeftOut("its views don't show one object")
        front = orbit_camera(elevation, 0)
        placement = place(points, box_alphas(points, front, pixels[0, ..., 3]), elevation)
        poses[:, :3, 3] = placement(poses[:, :3, 3])
        smaller = bool(placement.scale > 0.99 * largest_scale(points, placement.center, elevation))
        return Truth(pixels, poses, elevation, pixels[0], smaller, redrawn=False)


def _caption(folder: Path) -> str:
    try:
        return read_transforms(folder).caption or caption_from_name(folder.name)
    except LGMError:
        return caption_from_name(folder.name)  # it will be left out, with the reason


def nearest_to_fixed(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The views that stand for the fixed cameras.

    Args:
        poses: [V, 4, 4], camera-to-world, V at least 12.

    Returns:
        Which of them [12], each once; all poses [V, 4, 4] float32, turned so that the first of the twelve has azimuth
        0; and the elevation of that one, in degrees.
    """

    def directions(cameras: np.ndarray) -> np.ndarray:
        return cameras[:, :3, 3] / np.linalg.norm(cameras[:, :3, 3], axis=1, keepdims=True)

    first = int((directions(poses) @ [0.0, 0.0, 1.0]).argmax())
    x, y, z = directions(poses)[first]
    angle, elevation = -np.arctan2(x, z), float(np.degrees(np.arcsin(np.clip(y, -1, 1))))
    turn = np.eye(4)
    turn[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
    turned = (turn @ poses).astype(np.float32)
    wanted = evaluation_poses("")[0]
    wanted[:INPUTS] = orbit_cameras(elevation)
    alike = directions(wanted) @ directions(turned).T
    order: list[int] = []
    for row in alike:
        row[order] = -2
        order.append(int(row.argmax()))
    return np.array(order), turned, elevation


# Placing
# -------


def close_up(renderer: ViewRenderer, mesh: TexturedMesh, front: np.ndarray, pose: np.ndarray) -> np.ndarray | None:
    """The picture that a user takes of a placed mesh, if it is placed smaller than that: by a longer lens.

    Args:
        renderer: Draws it.
        mesh: Where it is placed.
        front: [S, S, 4] uint8, what the camera at `pose` sees of it.
        pose: [4, 4], camera-to-world.

    Returns:
        [S, S, 4] uint8, premultiplied; None if `front` is that picture.
    """
    size, box = len(front), alpha_box(front[..., 3])
    if box is None:
        return None
    left, top, right, bottom = box
    longest = max(right - left, bottom - top)
    if longest >= FILL * size - 1.5:
        return None
    middle = (left + right - size) / size, (size - top - bottom) / size
    return renderer.draw(mesh, zoomed(pose, FILL * size / longest, middle)[None])[0][0]


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

    A user's picture says nothing of how large the object was in it, nor where: recentring puts the object's box in the
    middle, its longer side at 80% of the frame, and that is the front view that the model goes by. So the object is
    scaled about its middle and shifted along the picture, in 3D, until its front view is that. One that is longer than
    wide would then leave the frame in another of the four views; it stays as small as it must.

    Args:
        points: [N, 3], whatever may be seen of the object.
        front_alpha: Draws the object from azimuth 0: alpha [S, S] uint8.
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


# Objects of which there are views only
# -------------------------------------


def visual_hull(alphas: np.ndarray, poses: np.ndarray, side: int = 128) -> np.ndarray:
    """Points [N, 3] of a grid that may be in an object, because every view shows something there (Laurentini, 1994).

    Args:
        alphas: [V, S, S] uint8.
        poses: [V, 4, 4], camera-to-world.
        side: Of the grid, in points; it covers the cube of half side 0.7.
    """
    step = 1.4 / side
    axis = np.arange(side) * step - 0.7 + step / 2
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    size = alphas.shape[-1]
    reach = int(np.ceil(np.sqrt(3) / 2 * step / (2 * HALF * RADIUS / size)))  # from a point to its cell's corners
    for alpha, pose in zip(alphas, poses, strict=True):
        x, y = np.floor(_projected(points, pose, size)).astype(int).T
        seen = np.pad(ndimage.maximum_filter(alpha, 2 * reach + 1) > 12, ((0, 1), (0, 1)))  # a margin of nothing
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        points = points[seen[np.where(inside, y, size), np.where(inside, x, size)]]
    return points


def box_alphas(
    points: np.ndarray, pose: np.ndarray, alpha: np.ndarray | None = None
) -> Callable[[Placement], np.ndarray]:
    """What `place` asks for: the box around an object that is placed, filled, in place of the object's picture.

    Args:
        points: [N, 3], its own, or of its hull, which is a little larger than the object.
        pose: Of the camera.
        alpha: [S, S] uint8, the object as it is, from there. It says how much larger the hull is; None: not at all.
    """
    size = SIZE if alpha is None else len(alpha)

    def box(placement: Placement) -> np.ndarray:
        pixels = _projected(placement(points), pose, size)
        return np.concatenate([pixels.min(0), pixels.max(0)])

    excess = np.zeros(4)
    if alpha is not None:
        found = alpha_box(alpha)
        if found is None:
            raise LeftOut("its front view shows nothing")
        excess = np.array(found) - box(Placement(1.0, np.zeros(3)))
    edges = np.arange(size)

    def draw(placement: Placement) -> np.ndarray:
        left, top, right, bottom = box(placement) + placement.scale * excess
        across = np.clip(np.minimum(edges + 1, right) - np.maximum(edges, left), 0, 1)
        down = np.clip(np.minimum(edges + 1, bottom) - np.maximum(edges, top), 0, 1)
        return np.uint8(255 * down[:, None] * across + 0.5)

    return draw


def _projected(points: np.ndarray, pose: np.ndarray, size: int) -> np.ndarray:
    """Where points [N, 3] are in a picture, in pixels from its top left corner [N, 2]."""
    matrix = view_matrices(pose)
    seen = (points @ matrix[:3, :3].T + matrix[:3, 3]) @ intrinsics(size).T
    return seen[:, :2] / np.maximum(seen[:, 2:], 1e-6)
