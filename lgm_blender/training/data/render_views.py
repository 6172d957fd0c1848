"""The fast maker: meshes to folders of training views (core/formats/transforms.py), several processes at once."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.cameras import VIEWS, view_poses
from ...core.errors import LGMError
from ...core.files import output_error
from ...core.formats.transforms import (
    caption_from_name,
    file_name,
    find_transforms,
    new_folder,
    unique_names,
    write_transforms,
)
from .mesh_files import SUFFIXES, read_mesh_file
from .mesh_renderer import ViewRenderer, is_visible
from .objects import ObjectMesh, read_index, read_object


@dataclass(frozen=True)
class Source:
    """One object to render.

    Attributes:
        name: Of its folder, and what its cameras follow from.
        path: A mesh file, or an objects.zip in which `member` is the object's id.
        member, caption, split: As the objects.zip has them, else what the file's name says, and ''.
    """

    name: str
    path: Path
    member: str = ""
    caption: str = ""
    split: str = ""

    def read(self) -> ObjectMesh:
        """The mesh.

        Raises:
            LGMError: If it can't be read.
        """
        if not self.member:
            return read_mesh_file(self.path)
        try:
            return read_object(self.path, self.member)
        except Exception as error:  # numpy's and Pillow's readers raise whatever they like on broken data
            raise LGMError(
                f"{self.member} in {self.path} could not be read ({error}). Make the archive again."
            ) from error


@dataclass(frozen=True)
class Made:
    """How one object went: why its folder is not there, or whether it was there already."""

    name: str
    problem: str = ""
    skipped: bool = False


def find_sources(path: Path) -> list[Source]:
    """What there is to render: a mesh file, the mesh files of a folder and its folders, or an objects.zip.

    Raises:
        LGMError: If there is nothing.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        return [Source(o["id"], path, o["id"], o["caption"], o["split"]) for o in read_index(path)]
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise LGMError(f"{path} is no mesh file that can be read. Choose {', '.join(SUFFIXES)} or an objects.zip.")
        return [Source(path.stem, path, caption=caption_from_name(path.stem))]
    if not path.is_dir():
        raise LGMError(f"There is no file or folder {path}. Choose another.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise LGMError(f"{path} holds no mesh files ({', '.join(SUFFIXES)}). Choose another folder.")
    # By their place in the folder, so that cameras and folders stay the same when files are added.
    names = unique_names(["_".join(file.relative_to(path).with_suffix("").parts) for file in files])
    return [Source(name, file, caption=caption_from_name(file.stem)) for name, file in zip(names, files, strict=True)]


def make_views(
    sources: list[Source],
    output: Path,
    size: int = 256,
    views: int = VIEWS,
    processes: int = 1,
    overwrite: bool = False,
) -> Iterator[Made]:
    """Render objects into folders of `output`, and give each as it is done; a broken one stops none of the others.

    Args:
        sources: See `find_sources`.
        output: The data set's folder, made if missing.
        size: Width and height of the views in pixels.
        views: How many of each object.
        processes: How many render at once.
        overwrite: Render objects again whose folders are there.

    Raises:
        LGMError: (kind 'output') If the folder can't be written, or (kind 'worker') if nothing can be rendered here.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(output / "-", error) from error
    # Asked for here, where what is missing is told once.
    import moderngl  # noqa: F401

    if not all(source.member for source in sources):
        import trimesh  # noqa: F401
    todo = []
    for source in sources:
        if not overwrite and find_transforms(output / source.name):
            yield Made(source.name, skipped=True)
        else:
            todo.append(source)
    processes = max(1, min(processes, len(todo)))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            for job in as_completed([pool.submit(_make, source, output, size, views, overwrite) for source in todo]):
                yield job.result()
        except BrokenProcessPool:
            raise LGMError(
                "Rendering ended suddenly, out of memory or in the graphics driver. Try fewer --processes.", "worker"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@cache
def _renderer(size: int) -> ViewRenderer:
    """A process's own."""
    try:
        return ViewRenderer(size, distance_size=0)
    except Exception as error:
        raise LGMError(
            f"Nothing can be rendered here: OpenGL without a screen does not start ({error}). Install EGL on "
            "Linux (Debian: libegl1, libgl1-mesa-dri); elsewhere make the views with Blender.",
            "worker",
        ) from error


def _make(source: Source, output: Path, size: int, views: int, overwrite: bool) -> Made:
    """One object's folder, in a process of the pool."""
    renderer = _renderer(size)
    try:
        poses = view_poses(source.name, views)[0]
        rendered, _ = renderer.render(source.read(), poses)
        if not is_visible(rendered):
            raise LGMError("nothing of it can be seen in most of its views.")
        with new_folder(output, source.name, overwrite) as folder:
            for i, view in enumerate(rendered):
                (folder / file_name(i)).write_bytes(encode_png(view))
            write_transforms(folder, poses, size, source.caption, source.split)
    except LGMError as error:
        if error.kind == "output" and not (output / source.name).exists():
            raise  # a full disk or a folder without permission stops all of them
        return Made(source.name, error.message)
    except Exception as error:  # one object must not stop the others
        return Made(source.name, f"{type(error).__name__}: {error}")
    return Made(source.name)


def straight(pixels: np.ndarray) -> Image.Image:
    """Premultiplied [H, W, 4] uint8 as an RGBA picture; rounded, where Pillow's own conversion cuts off."""
    pixels = pixels.copy()
    soft = (pixels[..., 3] > 0) & (pixels[..., 3] < 255)
    edge = pixels[soft].astype(np.uint32)
    pixels[soft, :3] = ((edge[:, :3] * 255 + edge[:, 3:] // 2) // edge[:, 3:]).clip(0, 255)
    return Image.fromarray(pixels)


def encode_png(pixels: np.ndarray) -> bytes:
    """Premultiplied [H, W, 4] uint8 as a PNG, whose alpha is straight."""
    file = io.BytesIO()
    straight(pixels).save(file, "PNG", compress_level=4)
    return file.getvalue()


def describe(made: Made) -> str:
    """A line for the terminal."""
    if made.problem:
        return f"{made.name} is left out: {made.problem}"
    return f"{made.name}: there already" if made.skipped else f"{made.name}: done"


def summary(results: list[Made]) -> str:
    """The last line, as JSON."""
    return json.dumps(
        {
            "made": sum(not made.problem and not made.skipped for made in results),
            "skipped": sum(made.skipped for made in results),
            "left_out": {made.name: made.problem for made in results if made.problem},
        },
        ensure_ascii=False,
    )
