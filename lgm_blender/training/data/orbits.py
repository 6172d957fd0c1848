"""Objects as large as a user's image shows them: pictures for the multi-view model, and for LGM on its views.

A user's image is recentred, and the model's views are as large as that image is (placement.py). So they are rendered
like that: enlarged afterwards they would be blurred, as no user's image is.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.cameras import orbit_camera, orbit_cameras
from .mesh_renderer import ViewRenderer
from .objects import ObjectMesh, Reader, about_up
from .placement import INPUTS, LeftOut, close_pose, close_up, moved, place_by_box
from .view_files import Cameras, files_of_views, photos_path, render_files

ORBITS = 4  # of an object, for the multi-view model
OTHERS = 10  # views of an object for LGM, beside the four that the multi-view model samples
RAISED_IMAGES = -10, 40  # elevations from which images of variants are taken
WORN = 0.5  # of the variants' images: what has happened to pictures from elsewhere


def orbit_starts(name: str) -> np.ndarray:
    """From where the image of each of an object's orbits is taken: [ORBITS, 2], elevation and azimuth in degrees.

    The object's own front, another of its four sides, anywhere at elevation 0, and anywhere. Of variants (sets whose
    names have a number, as train-1) the front, anywhere at elevation 0, about the front and anywhere.

    Args:
        name: The set's and the object's; the rest follows from it.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if is_varied(name):
        about = (rng.uniform(*RAISED_IMAGES), rng.uniform(-60, 60) % 360)
        anywhere = (rng.uniform(*RAISED_IMAGES), rng.uniform(0, 360))
        return np.array([(0, 0), (0, rng.uniform(0, 360)), about, anywhere], np.float32)
    side = 90.0 * rng.integers(1, 4)
    return np.array(
        [(0, 0), (0, side), (0, rng.uniform(0, 360)), (rng.uniform(-15, 35), rng.uniform(0, 360))], np.float32
    )


def is_varied(name: str) -> bool:
    """Whether a set, or an object of it, SET/OBJECT, is of variants."""
    return "-" in name.split("/")[0]


def worn(picture: np.ndarray, name: str) -> np.ndarray:
    """A picture [S, S, 4] uint8, premultiplied, that half of the time has been made smaller and compressed before.

    What lies beside the object stays out of it, as when it is cut out.

    Args:
        picture: As it was rendered.
        name: What happens follows from it.
    """
    rng = np.random.default_rng(zlib.crc32(f"worn {name}".encode()))
    if rng.random() > WORN:
        return picture
    alpha = picture[..., 3:]
    seen = Image.fromarray(picture[..., :3] + (255 - alpha))
    if rng.random() < 0.5:
        side = round(len(picture) * rng.uniform(0.4, 1))
        seen = seen.resize((side, side), Image.Resampling.BILINEAR).resize(picture.shape[1::-1])
    if rng.random() < 0.7:
        file = io.BytesIO()
        seen.save(file, "JPEG", quality=int(rng.integers(35, 95)))
        seen = Image.open(file)
    color = np.asarray(seen.convert("RGB")).astype(np.int16) - (255 - alpha)
    return np.concatenate([np.minimum(color.clip(0, 255).astype(np.uint8), alpha), alpha], -1)


def placed_poses(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Cameras of a placed object (render_placed): four a quarter turn apart, the image's first, then others anywhere.

    Returns:
        Poses [INPUTS + OTHERS, 4, 4] and their (elevation, azimuth) in degrees. The four stand at elevation 0 for most
        objects.
    """
    rng = np.random.default_rng(zlib.crc32(f"placed {name}".encode()))
    elevation = 0.0 if rng.random() < 0.7 else rng.uniform(-10, 30)
    angles = [(elevation, 90.0 * i) for i in range(INPUTS)]
    angles += [(rng.uniform(-20, 40), rng.uniform(0, 360)) for _ in range(OTHERS)]
    return np.stack([orbit_camera(*angle) for angle in angles]), np.array(angles, np.float32)


def orbit_poses(points: np.ndarray, elevation: float, azimuth: float) -> np.ndarray:
    """Camera-to-world [4, 4, 4] float32 of four cameras that see an object as if it were placed (placement.place).

    The object and its light stay where they are; the cameras come nearer.

    Args:
        points: [N, 3], of the object.
        elevation, azimuth: Of the first camera, whose picture is the image; in degrees.

    Raises:
        LeftOut: If it sees nothing.
    """
    rotation = about_up(np.radians(azimuth))
    placement = place_by_box(points @ rotation.T, elevation)
    poses = orbit_cameras(elevation).astype(np.float64)
    poses[:, :3, 3] = poses[:, :3, 3] / placement.scale + placement.center
    back = np.eye(4)
    back[:3, :3] = rotation.T
    return (back @ poses).astype(np.float32)


def orbit_pictures(renderer: ViewRenderer, mesh: ObjectMesh, starts: Iterable[tuple[float, float]]) -> np.ndarray:
    """Of each orbit its four views and the image: [K, 5, S, S, 4] uint8, premultiplied; nothing where there is nothing
    to see.

    Args:
        renderer: Renders it; all orbits together, which is several times faster than one after the other.
        mesh: The object.
        starts: Elevation and azimuth of each orbit's first camera.
    """
    starts, size = list(starts), renderer.size
    result = np.zeros((len(starts), INPUTS + 1, size, size, 4), np.uint8)
    poses = {}
    for k, start in enumerate(starts):
        with suppress(LeftOut):
            poses[k] = orbit_poses(mesh.corners[:, :3], *start)
    if not poses:
        return result
    rows, every = list(poses), np.concatenate(list(poses.values()))
    result[rows, :INPUTS] = renderer.render(mesh, every)[0].reshape(len(rows), INPUTS, size, size, 4)
    result[rows, INPUTS] = result[rows, 0]
    closer = {k: pose for k in rows if (pose := close_pose(result[k, 0], poses[k][0])) is not None}
    if closer:
        result[list(closer), INPUTS] = renderer.render(mesh, np.stack(list(closer.values())))[0]
    return result


def render_orbits(
    read: Reader, ids: list[str], size: int, output: str | Path, processes: int = 4, name: str = ""
) -> list[str]:
    """Render objects into one .npy file [objects, ORBITS, 5, size, size, 4] uint8, premultiplied (orbit_pictures).

    Args:
        read, ids, size, output, processes: See render_objects.
        name: The set's, for `orbit_starts`; images of variants are `worn`.

    Returns:
        The ids of objects of which little or nothing can be seen.
    """
    files = [(Path(output), (ORBITS, INPUTS + 1, size, size, 4), np.uint8)]
    return render_files(partial(_object_orbits, read, name), ids, size, files, processes)


def _object_orbits(read: Reader, name: str, renderer: ViewRenderer, object_id: str) -> list[np.ndarray]:
    mesh, name = read(object_id), f"{name}/{object_id}"
    pictures = orbit_pictures(renderer, mesh, orbit_starts(name))
    if is_varied(name):
        pictures[:, 4] = [worn(image, f"{name}/{k}") for k, image in enumerate(pictures[:, 4])]
    return [pictures]


def render_placed(
    read: Reader,
    ids: list[str],
    size: int,
    output: str | Path,
    processes: int = 4,
    cameras: Cameras = placed_poses,
    turn: bool = True,
    name: str = "",
) -> list[str]:
    """Render placed objects, and the image of each into `photos_path(output)` [objects, size, size, 4] uint8.

    Args:
        read, ids, size, output, processes, cameras: See render_objects.
        turn: Whether some objects are turned first, so that the image is not of their front.
        name: The set's; images of variants are `worn`.

    Returns:
        The ids of objects of which little or nothing can be seen.
    """
    files = files_of_views(output, len(cameras(ids[0])[0]), size)
    files.append((photos_path(output), (size, size, 4), np.uint8))
    return render_files(partial(_object_placed, read, cameras, turn, name), ids, size, files, processes)


def _object_placed(
    read: Reader, cameras: Cameras, turn: bool, name: str, renderer: ViewRenderer, object_id: str
) -> list[np.ndarray]:
    mesh, (poses, angles) = read(object_id), cameras(object_id)
    with suppress(LeftOut):  # there is nothing to place it by: its image will be empty
        mesh = placed_mesh(mesh, float(angles[0, 0]), image_azimuth(object_id) if turn else 0.0)
    views, distances = renderer.render(mesh, poses)
    picture, _ = close_up(renderer, mesh, views[0], poses[0])
    return [views, distances, worn(picture, f"{name}/{object_id}") if is_varied(name) else picture]


def image_azimuth(name: str) -> float:
    """From where the image of a placed object is taken, in degrees: mostly its front."""
    rng = np.random.default_rng(zlib.crc32(f"azimuth {name}".encode()))
    return 0.0 if rng.random() < 0.6 else rng.uniform(0, 360)


def placed_mesh(mesh: ObjectMesh, elevation: float = 0.0, azimuth: float = 0.0) -> ObjectMesh:
    """A mesh as large, and where, as a model is to make it of a picture from there, seen from azimuth 0."""
    corners = mesh.corners.copy()
    corners[:, :3] = corners[:, :3] @ about_up(np.radians(azimuth)).T
    return moved(replace(mesh, corners=corners), place_by_box(corners[:, :3], elevation))
