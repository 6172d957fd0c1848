"""Training views on disk: a folder per object with its pictures and a NeRF-style transforms.json.

    DIR/NAME/transforms.json   intrinsics, caption, split, and per view a file and a camera-to-world pose
    DIR/NAME/000.png           RGBA, straight alpha

What is written here is in LGM's frame: y up, the object in the middle, cameras at 1.5 with OpenGL axes (x right, y up,
looking along -z). What other tools write is taken apart as it stands; training/data/dataset.py makes it fit.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..cameras import FOV_Y
from ..errors import LGMError
from ..files import TEMPORARY_SUFFIX, output_error, replacing
from ..paths import read_regular

NAME = "transforms.json"
LARGEST = 1 << 28  # bytes of it: a view takes about 500
# Where a tool writes one file per split, the training views.
NAMES = (NAME, "transforms_train.json")
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")  # tried in this order where a file_path has none
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


@dataclass(frozen=True)
class Frame:
    """One view.

    Attributes:
        file: Its picture.
        pose: [4, 4] float64, camera-to-world with OpenGL axes, in the file's own frame.
        focal: Focal lengths in pixels along x and y.
        center: Principal point in pixels from the picture's top left corner.
        size: Width and height in pixels that the other two are meant for, or None where the file doesn't say. Then
            they are fractions of the picture's width, and `center` is None.
    """

    file: Path
    pose: np.ndarray
    focal: tuple[float, float]
    center: tuple[float, float] | None
    size: tuple[float, float] | None


@dataclass(frozen=True)
class ObjectFolder:
    """What an object's transforms.json says.

    Attributes:
        folder: Where it is; its name is the object's.
        frames: Its usable views.
        caption: What it shows, or ''.
        split: 'train' or 'val', or '' where the file doesn't say.
        y_up: Whether the file says so itself.
        problems: Why views were left out, a few words each.
    """

    folder: Path
    frames: list[Frame]
    caption: str = ""
    split: str = ""
    y_up: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The object's name."""
        return self.folder.name


def file_name(index: int) -> str:
    """The picture's name of a view."""
    return f"{index:03d}.png"


def caption_from_name(name: str) -> str:
    """The words of an object's or a file's name: 'Red_Car.001' is a 'red car'."""
    return " ".join(re.findall(r"[^\W\d_]+", name)).lower()


def unique_names(names: Sequence[str]) -> list[str]:
    """The same names, a number added where one is taken: also by one that differs in case only, for Windows' sake."""
    taken, result = set(), []
    for name in names:
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique.casefold())
        result.append(unique)
    return result


@contextmanager
def new_folder(output: Path, name: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `output`/`name` when the block ends and vanishes when it fails.

    Args:
        output: The data set's folder, made if missing.
        name: The object's.
        overwrite: Whether an object's folder that is there already is replaced.

    Raises:
        LGMError: (kind 'output') If a folder of that name is there, or it can't be written.
    """
    target = output / name
    if target.exists() and not (overwrite and any((target / known).is_file() for known in NAMES)):
        raise LGMError(f"{target} is there already. Choose another folder, or remove it.", "output")
    own = f".lgm-{os.getpid()}-{secrets.token_hex(4)}"
    temporary, old = output / f"{own}{TEMPORARY_SUFFIX}", output / f"{own}.old"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.replace(old)
        temporary.replace(target)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_transforms(folder: Path, poses: np.ndarray, size: int, caption: str = "", split: str = "") -> None:
    """Write the transforms.json of views that `file_name` names.

    Args:
        folder: With the pictures.
        poses: [V, 4, 4], in LGM's frame, with LGM's field of view.
        size: Width and height of the pictures in pixels.
        caption: What the object is.
        split: 'train' or 'val'.

    Raises:
        LGMError: (kind 'output') If it can't be written.
    """
    focal = 0.5 * size / math.tan(0.5 * math.radians(FOV_Y))
    content = {
        "camera_angle_x": math.radians(FOV_Y),
        "fl_x": focal,
        "fl_y": focal,
        "cx": size / 2,
        "cy": size / 2,
        "w": size,
        "h": size,
        "up": "y",
        **({"caption": caption} if caption else {}),
        **({"split": split} if split else {}),
        "frames": [
            {"file_path": file_name(i), "transform_matrix": [[float(f"{x:.8g}") for x in row] for row in pose.tolist()]}
            for i, pose in enumerate(poses)
        ],
    }
    with replacing(folder / NAME) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def find_transforms(folder: Path) -> Path | None:
    """An object's transforms.json, or None if the folder holds none."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_transforms(folder: Path) -> ObjectFolder:
    """What an object's folder says of itself. Pictures are looked for but not opened.

    Raises:
        LGMError: If there is no transforms.json, it can't be read, or none of its views is usable.
    """
    path = find_transforms(folder)
    if path is None:
        raise LGMError(f"{folder} has no {NAME}. Choose the folder of an object's views.")
    try:
        content = json.loads(read_regular(path, LARGEST))
    except OSError as error:
        raise LGMError(f"{path} could not be read ({error.strerror or error}). Check its permissions.") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not text
        raise LGMError(f"{path} is not JSON ({error}). Make the views again.") from error
    listed = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise LGMError(f"{path} lists no frames. Make the views again.")
    frames, problems = [], []
    for i, entry in enumerate(listed):
        try:
            frames.append(_read_frame(folder, content | entry if isinstance(entry, dict) else {}))
        except (ValueError, TypeError, OverflowError, OSError) as error:
            problems.append(f"view {i}: {error}")
    if not frames:
        raise LGMError(f"{path} has no usable view; {problems[0]}. Correct it, or make the views again.")
    caption, split = content.get("caption"), content.get("split")
    return ObjectFolder(
        folder,
        frames,
        caption if isinstance(caption, str) else "",
        split if split in ("train", "val") else "",
        content.get("up") == "y",
        problems,
    )


def _read_frame(folder: Path, entry: dict) -> Frame:
    """One view from its entry over the file's own values; nerfstudio allows intrinsics in both.

    Raises:
        ValueError: A few words about what is wrong.
    """
    file = _find_picture(folder, entry.get("file_path"))
    pose = np.array(entry.get("transform_matrix"), np.float64)
    if pose.shape not in ((4, 4), (3, 4)) or not np.isfinite(pose).all():
        raise ValueError("its transform_matrix is not 4 × 4 numbers")
    pose = np.vstack([pose[:3], [0, 0, 0, 1]])
    lengths = np.linalg.norm(pose[:3, :3], axis=0)
    if lengths.min() < 1e-9:
        raise ValueError("its transform_matrix is not a camera's")
    pose[:3, :3] /= lengths  # some tools leave the camera's scale in it
    if np.abs(pose[:3, :3].T @ pose[:3, :3] - np.eye(3)).max() > 0.01 or np.linalg.det(pose[:3, :3]) < 0:
        raise ValueError("its transform_matrix is skewed or mirrored")
    if any(abs(_number(entry, key, 0.0)) > 1e-6 for key in _DISTORTION) or "FISHEYE" in str(entry.get("camera_model")):
        raise ValueError("its lens distorts; undistort the pictures first")
    return Frame(file, pose, *_read_intrinsics(entry))


def _read_intrinsics(entry: dict):
    """Focal lengths, principal point and picture size of an entry, as `Frame` has them."""
    width, height = _number(entry, "w"), _number(entry, "h")
    angle_x, angle_y = _number(entry, "camera_angle_x"), _number(entry, "camera_angle_y")
    if any(angle is not None and not 0 < angle < math.pi for angle in (angle_x, angle_y)):
        raise ValueError("its camera_angle_x is not an angle in radians below 180°")
    fl_x, fl_y = _number(entry, "fl_x"), _number(entry, "fl_y")
    if width is None or height is None:
        if angle_x is None:
            raise ValueError("neither camera_angle_x nor fl_x, w and h say what its lens is")
        focal = 0.5 / math.tan(0.5 * angle_x)
        return (focal, focal), None, None
    if min(width, height) < 1:
        raise ValueError("its w and h are no size")
    if fl_x is None and angle_x is not None:
        fl_x = 0.5 * width / math.tan(0.5 * angle_x)
    if fl_y is None:
        fl_y = 0.5 * height / math.tan(0.5 * angle_y) if angle_y is not None else fl_x
    fl_x = fl_y if fl_x is None else fl_x
    if fl_x is None or min(fl_x, fl_y) <= 0:
        raise ValueError("neither camera_angle_x nor fl_x says what its lens is")
    return (fl_x, fl_y), (_number(entry, "cx", width / 2), _number(entry, "cy", height / 2)), (width, height)


def _number(entry: dict, key: str, default: float | None = None) -> float | None:
    value = entry.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its {key} is not a number")
    return float(value)


def _find_picture(folder: Path, name: object) -> Path:
    """The file of a view; a name without a suffix stands for a PNG, as NeRF's own data has it."""
    if not isinstance(name, str) or not name:
        raise ValueError("it has no file_path")
    name = name.replace("\\", "/")
    if name.startswith("//"):  # Windows would tell that machine the user's password hash
        raise ValueError("its picture is on another machine")
    path = folder / name
    candidates: Sequence[Path] = (path, *(path.with_name(path.name + suffix) for suffix in SUFFIXES))
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ValueError(f"there is no file {path}")
    return found
