"""Folders of training views to arrays: what `views` and Blender's maker wrote, and what other tools write.

The format is core/formats/transforms.py's. What does not fit LGM's camera is made to fit (up axis, centre, distance,
field of view, size, background) or left out with a reason: one broken object never stops the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ...core.cameras import RADIUS, intrinsics, pose_from_blender
from ...core.errors import LGMError
from ...core.formats.transforms import NAME, Frame, ObjectFolder, find_transforms, read_transforms
from ...worker.matting import cut_plain_background

LEAST = 8  # views of an object: four to look at, four to be judged on (LGM, section 4.1)
# Cameras nearer or farther than this share of the object's median would have LGM's near and far planes in the object.
DISTANCES = 0.75, 1.25
NARROWEST = 0.25  # share of LGM's frame that a view must cover; below it the object is a few pixels
OFF_CENTER = 0.05  # how far from the origin, as a share of the distance, the point may be that cameras look at


@dataclass
class Dataset:
    """Views of O objects, N in all, those of one object after those of the one before.

    Attributes:
        pixels: [N, S, S, 4] uint8, colour premultiplied with alpha.
        poses: [N, 4, 4] float32, camera-to-world with OpenGL axes in LGM's frame; an object's median camera is at 1.5.
        counts: [O] int64, views of each object.
        captions: [O], what each one is, or ''.
        names: [O].
        problems: A line for each object that was left out, or lost some of its views.
    """

    pixels: np.ndarray
    poses: np.ndarray
    counts: np.ndarray
    captions: list[str]
    names: list[str]
    problems: list[str] = field(default_factory=list)


def find_objects(parent: str | os.PathLike, split: Literal["train", "val"] | None = None) -> list[Path]:
    """The object folders of a data set, by name; a folder that is one object itself gives itself.

    Args:
        parent: The data set's folder.
        split: Only those of this split; an object that names none counts as 'train'.

    Raises:
        LGMError: If there is no such folder, or nothing in it is an object.
    """
    parent = Path(parent)
    if not parent.is_dir():
        raise LGMError(f"There is no folder {parent}. Give the folder that holds one folder per object.")
    folders = [path for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    folders = [path for path in [parent, *folders] if find_transforms(path)]
    if not folders:
        raise LGMError(f"{parent} holds no objects: no folder in it has a {NAME}. Choose the folder that holds theirs.")
    return [path for path in folders if split is None or _split(path) == split]


def _split(folder: Path) -> str:
    try:
        return read_transforms(folder).split or "train"
    except LGMError:
        return "train"  # where loading it will say what is wrong


def load_objects(
    folders: Sequence[str | os.PathLike],
    size: int = 256,
    *,
    least: int = LEAST,
    tell: Callable[[str], None] = print,
) -> Dataset:
    """Read object folders, each picture as LGM's camera would have taken it.

    Args:
        folders: See `find_objects`.
        size: Width and height in pixels that pictures are brought to.
        least: Objects with fewer usable views are left out.
        tell: Is given each of the result's `problems` as it comes up.

    Raises:
        LGMError: If no object is usable.
    """
    problems: list[str] = []

    def problem(line: str) -> None:
        problems.append(line)
        tell(line)

    objects: list[ObjectFolder] = []
    for folder in map(Path, folders):
        try:
            objects.append(fit_cameras(read_transforms(folder)))
        except LGMError as error:
            problem(f"{folder.name} is left out: {error.message}")
    total = sum(len(each.frames) for each in objects)
    pixels = np.empty((total, size, size, 4), np.uint8)

    def read(job: tuple[int, Frame]) -> str:
        try:
            pixels[job[0]] = read_view(job[1], size)
        except ValueError as error:
            return f"{job[1].file.name}: {error}"
        return ""

    poses, counts, kept = [], [], []
    first = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter's lock
        reasons = pool.map(read, enumerate(frame for each in objects for frame in each.frames))
        for each in objects:
            told = [next(reasons) for _ in each.frames]
            good = [i for i, reason in enumerate(told) if not reason]
            lost = each.problems + [reason for reason in told if reason]
            if len(good) < least:
                why = f", the first of {len(lost)} others: {lost[0]}" if lost else ""
                problem(f"{each.name} is left out: {len(good)} usable views, {least} are needed{why}")
            else:
                if lost:
                    problem(f"{each.name}: {len(lost)} of {len(lost) + len(good)} views left out, first {lost[0]}")
                for i in good:  # in place, over those that were left out before
                    pixels[len(poses)] = pixels[first + i]
                    poses.append(each.frames[i].pose)
                counts.append(len(good))
                kept.append(each)
            first += len(each.frames)
    if not kept:
        first_line = f" {problems[0]}" if problems else ""
        raise LGMError(f"There is no usable object among {len(folders)}. Make their views again.{first_line}")
    return Dataset(
        pixels[: len(poses)],
        np.stack(poses).astype(np.float32),
        np.array(counts),
        [each.caption for each in kept],
        [each.name for each in kept],
        problems,
    )


def fit_cameras(found: ObjectFolder) -> ObjectFolder:
    """An object whose cameras are in LGM's frame: y up, looking at the origin, the median one at 1.5 from it.

    What other tools write is z up as often as y up; upright cameras tell which.

    Raises:
        LGMError: If it can't be told which way is up, or where the cameras are.
    """
    poses = np.stack([frame.pose for frame in found.frames])
    if not found.y_up:
        up = poses[:, :3, 1].mean(0)
        axis = int(np.abs(up).argmax())
        if axis == 0 or up[axis] < 0.3:
            raise LGMError(f"{found.folder} has cameras that don't stand upright; y or z must be up.")
        if axis == 2:
            poses = pose_from_blender(poses)
    center = _looked_at(poses)
    distances = np.linalg.norm(poses[:, :3, 3] - center, axis=1)
    if np.linalg.norm(center) > OFF_CENTER * np.median(distances):
        poses[:, :3, 3] -= center
    distances = np.linalg.norm(poses[:, :3, 3], axis=1)
    median = float(np.median(distances))
    if median < 1e-6:
        raise LGMError(f"{found.folder} has cameras in the middle of the object. Make its views again.")
    if abs(median / RADIUS - 1) > 1e-4:
        poses[:, :3, 3] *= RADIUS / median
    frames, problems = [], list(found.problems)
    for frame, pose, distance in zip(found.frames, poses, distances / median, strict=True):
        if DISTANCES[0] <= distance <= DISTANCES[1]:
            frames.append(Frame(frame.file, pose, frame.focal, frame.center, frame.size))
        else:
            problems.append(f"{frame.file.name}: its camera is {distance:.2f} times as far as the others")
    return ObjectFolder(found.folder, frames, found.caption, found.split, True, problems)


def _looked_at(poses: np.ndarray) -> np.ndarray:
    """The point [3] nearest to all optical axes; the origin where they are all but parallel."""
    axes, origins = poses[:, :3, 2], poses[:, :3, 3]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    matrix = across.sum(0)
    if np.linalg.eigvalsh(matrix)[0] < 0.01 * len(poses):
        return np.zeros(3)
    return np.linalg.solve(matrix, (across @ origins[:, :, None]).sum(0))[:, 0]


def read_view(frame: Frame, size: int) -> np.ndarray:
    """A view [size, size, 4] uint8, premultiplied, as LGM's camera would have taken it from the same place.

    The picture is scaled about its principal point until its focal length is LGM's, and cut or padded with nothing.

    Raises:
        ValueError: A few words on why it can't be used.
    """
    image = _read_picture(frame.file)
    width, height = image.size
    if frame.size is None:
        focal = np.array(frame.focal) * width
        center = np.array([width / 2, height / 2])
    else:
        scale = np.array([width, height]) / frame.size  # resized since the file was written
        focal, center = np.array(frame.focal) * scale, np.array(frame.center) * scale
    half = size / 2 * focal / float(intrinsics(size)[0, 0])  # of LGM's frame, in the picture's pixels
    low, high = center - half, center + half
    if ((np.minimum(high, (width, height)) - np.maximum(low, 0)) / (high - low)).min() < NARROWEST:
        raise ValueError("its field of view is too narrow, or looks elsewhere")
    alpha = np.asarray(image.getchannel("a"))
    if not alpha.any():
        raise ValueError("it shows nothing")
    sides = (
        low[0] < -0.5 and alpha[:, 0], high[0] > width + 0.5 and alpha[:, -1],
        low[1] < -0.5 and alpha[0], high[1] > height + 0.5 and alpha[-1],
    )  # fmt: skip
    if any(np.max(side) > 12 for side in sides):
        raise ValueError("its edge cuts the object off")
    if (width, height) == (size, size) and np.abs(low).max() < 0.02 and np.abs(high - size).max() < 0.02:
        return np.asarray(image)
    corner, end = np.floor(low), np.ceil(high)
    part = image.crop((*corner.astype(int).tolist(), *end.astype(int).tolist()))  # outside it there is nothing
    box = (*(low - corner).tolist(), *(high - corner).tolist())
    # Smaller pictures are filtered with pixels as wide: nearly a box, without the ringing of sharper filters.
    smaller = (high - low).min() > size
    filter = Image.Resampling.HAMMING if smaller else Image.Resampling.BICUBIC
    pixels = np.array(part.resize((size, size), filter, box=box))
    np.minimum(pixels[..., :3], pixels[..., 3:], out=pixels[..., :3])  # what the filter overshoots
    return pixels


def _read_picture(path: Path) -> Image.Image:
    """A picture in Pillow's mode 'RGBa': premultiplied.

    Without an alpha channel a plain background is cut off.

    Raises:
        ValueError: If it is broken, or its background is not plain.
    """
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except Exception as error:  # decoders raise whatever they like on broken files
        raise ValueError("it is no picture, or damaged") from error
    if min(rgba.size) < 16:
        raise ValueError(f"it is only {rgba.width} × {rgba.height} pixels")
    if rgba.getchannel("A").getextrema()[0] == 255:
        rgb = np.asarray(rgba)[..., :3].astype(np.float32) / 255
        if np.ptp(rgb, axis=(0, 1)).max() < 0.02:
            raise ValueError("it shows nothing")
        cut = cut_plain_background(rgb)
        if cut is None:
            raise ValueError("it has no alpha, and its background is not plain")
        rgba = Image.fromarray(cut)
    return rgba.convert("RGBa")
