"""What an evaluation shows a model and what it compares the result with: objects seen from fixed cameras.

docs/evaluation.md describes the protocol.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ...core.cameras import RADIUS, evaluation_poses, orbit_camera, orbit_cameras
from ...core.errors import LGMError
from ...core.formats.transforms import caption_from_name, read_transforms
from ..data.dataset import find_objects, load_objects
from ..data.mesh_renderer import ViewRenderer, is_visible
from ..data.objects import ObjectMesh, about_up, read_index, read_mesh
from ..data.placement import (
    HALF,
    INPUTS,
    SIZE,
    LeftOut,
    Placement,
    close_up,
    largest_scale,
    moved,
    place,
    place_by_box,
    projected,
)


@dataclass(frozen=True)
class GroundTruth:
    """One object.

    Attributes:
        pixels: [12, SIZE, SIZE, 4] uint8, premultiplied: four input views, then the eight that are judged.
        poses: [12, 4, 4] float32, camera-to-world, the first one at azimuth 0.
        elevation: Of the first one, in degrees.
        photo: [SIZE, SIZE, 4] uint8, premultiplied: the first view as a user's picture; None if it is not placed.
        smaller: Whether it is placed smaller than the recentred photo shows it.
        rerendered: Whether it was rendered where it is placed, by LGM's cameras: then the first four views are what a
            multi-view model should make of the photo. Otherwise the cameras were moved instead of the object.
    """

    pixels: np.ndarray
    poses: np.ndarray
    elevation: float = 0.0
    photo: np.ndarray | None = None
    smaller: bool = False
    rerendered: bool = True


class ObjectsZip:
    """The `val` objects of an objects.zip (training/objects.py), each rendered when it is asked for.

    Attributes:
        objects: Each one's name, and what it is.

    Args:
        path: The archive.
        limit: Take only the first so many.

    Raises:
        LGMError: If it is no such archive, or has no `val` objects.
    """

    def __init__(self, path: Path, limit: int | None = None):
        index = [(o["id"], o["caption"]) for o in read_index(path) if o["split"] == "val"]
        if not index:
            raise LGMError(f"{path} has no objects of the split 'val' to judge a model on. Choose another archive.")
        self.archive, self.objects = zipfile.ZipFile(path), index[:limit]
        self.renderer = ViewRenderer(SIZE, distance_size=0)

    def ground_truth(self, number: int, placed: bool) -> GroundTruth:
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
            return GroundTruth(self._render(mesh, poses), poses)

        placement = place(mesh.corners[:, :3], lambda placement: self.front_alpha(mesh, placement))
        mesh = moved(mesh, placement)
        pixels = self._render(mesh, poses)
        photo, smaller = close_up(self.renderer, mesh, pixels[0], orbit_camera(0, 0))
        return GroundTruth(pixels, poses, 0.0, photo, smaller)

    def front_alpha(self, mesh: ObjectMesh, placement: Placement) -> np.ndarray:
        """[SIZE, SIZE] uint8: where a mesh is seen in its front view."""
        return self.renderer.render(moved(mesh, placement), orbit_camera(0, 0)[None])[0][0, ..., 3]

    def _render(self, mesh: ObjectMesh, poses: np.ndarray) -> np.ndarray:
        pixels, _ = self.renderer.render(mesh, poses)
        if not is_visible(pixels):
            raise LeftOut("hardly anything of it can be seen")
        return pixels


class ViewFolders:
    """The `val` objects of a folder of training views (docs/data.md), or all of them if none is of that split.

    Of each object the views nearest to the fixed cameras are taken. See ObjectsZip.
    """

    def __init__(self, path: Path, limit: int | None = None):
        self.folders = (find_objects(path, "val") or find_objects(path))[:limit]
        self.objects = [(folder.name, _caption(folder)) for folder in self.folders]

    def ground_truth(self, number: int, placed: bool) -> GroundTruth:
        """See ObjectsZip.ground_truth. To be placed, an object stays as it is, and its cameras move."""
        problems: list[str] = []
        try:
            data = load_objects([self.folders[number]], SIZE, least=12, tell=problems.append)
        except LGMError as error:
            raise LeftOut(problems[0] if problems else error.message) from error
        order, turned, elevation = nearest_to_fixed(data.poses)
        pixels, poses = data.pixels[order], turned[order]
        if not placed:
            return GroundTruth(pixels, poses, elevation, rerendered=False)
        points = visual_hull(data.pixels[..., 3], turned)
        if not len(points):
            raise LeftOut("its views don't show one object")
        placement = place_by_box(points, elevation, pixels[0, ..., 3])
        poses[:, :3, 3] = placement(poses[:, :3, 3])
        smaller = bool(placement.scale > 0.99 * largest_scale(points, placement.center, elevation))
        return GroundTruth(pixels, poses, elevation, pixels[0], smaller, rerendered=False)


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
    elevation = float(np.degrees(np.arcsin(np.clip(y, -1, 1))))
    rotation = np.eye(4)
    rotation[:3, :3] = about_up(np.arctan2(x, z))
    turned = (rotation @ poses).astype(np.float32)
    wanted = evaluation_poses("")[0]
    wanted[:INPUTS] = orbit_cameras(elevation)
    alike = directions(wanted) @ directions(turned).T
    order: list[int] = []
    for row in alike:
        row[order] = -2
        order.append(int(row.argmax()))
    return np.array(order), turned, elevation


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
        x, y = np.floor(projected(points, pose, size)).astype(int).T
        seen = np.pad(ndimage.maximum_filter(alpha, 2 * reach + 1) > 12, ((0, 1), (0, 1)))  # a margin of nothing
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        points = points[seen[np.where(inside, y, size), np.where(inside, x, size)]]
    return points
