"""Sets of rendered objects on disk: .npy files with a row for each object, that several processes write together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ...core.cameras import view_poses
from .mesh_renderer import ViewRenderer, is_visible
from .objects import Reader

Cameras = Callable[[str], tuple[np.ndarray, np.ndarray]]  # an object's id to its poses and angles
Job = Callable[[ViewRenderer, str], Sequence[np.ndarray]]  # renders an object: its row in each file
File = tuple[Path, tuple[int, ...], type]  # where it is, and the shape and type of an object's row in it


def photos_path(path: str | Path) -> Path:
    """Where the input images of the objects are whose views lie at `path`."""
    return Path(path).with_suffix(".photos.npy")


def distance_path(path: str | Path) -> Path:
    """Where the distances of the views at `path` lie."""
    return Path(path).with_suffix(".distances.npy")


def read_ahead(array: np.ndarray, count: int, at_once: int, readers: int = 4) -> Iterator[np.ndarray]:
    """The first `count` rows of a memory-mapped file, some at once; the next are read meanwhile."""

    def read(i: int) -> np.ndarray:
        return np.array(array[i : min(i + at_once, count)])

    with ThreadPoolExecutor(readers) as pool:
        waiting: deque = deque()
        for i in range(0, count, at_once):
            waiting.append(pool.submit(read, i))
            if len(waiting) > readers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def render_objects(
    read: Reader,
    ids: list[str],
    size: int,
    output: str | Path,
    processes: int = 4,
    cameras: Cameras = view_poses,
) -> list[str]:
    """Render objects into one .npy file [objects, views, size, size, 4] uint8, premultiplied, and their distances.

    The distances (see ViewRenderer.render) are half as wide, as mini's Gaussians are, and lie in
    `distance_path(output)`.

    Args:
        read: Reads or makes an object; goes to other processes, so a function of a module or a `partial` of one.
        ids: The objects.
        size: Width and height of the views in pixels.
        output: The .npy file.
        processes: How many render at once.
        cameras: An object's cameras: `view_poses` or `evaluation_poses`.

    Returns:
        The ids of objects of which little or nothing can be seen.
    """
    files = files_of_views(output, len(cameras(ids[0])[0]), size)
    return render_files(partial(_object_views, read, cameras), ids, size, files, processes)


def _object_views(read: Reader, cameras: Cameras, renderer: ViewRenderer, object_id: str) -> Sequence[np.ndarray]:
    return renderer.render(read(object_id), cameras(object_id)[0])


def files_of_views(output: str | Path, views: int, size: int) -> list[File]:
    """Those of so many views of each object and of their distances."""
    return [
        (Path(output), (views, size, size, 4), np.uint8),
        (distance_path(output), (views, size // 2, size // 2), np.int16),
    ]


def render_files(job: Job, ids: list[str], size: int, files: Sequence[File], processes: int) -> list[str]:
    """Run `job` for every object, in several processes, and write what it gives into `files`.

    Args:
        job: Goes to other processes; the first of the arrays that it gives are pictures.
        ids: The objects.
        size: Of the renderer's pictures.
        files: One for each array.
        processes: How many run at once.

    Returns:
        The ids of objects of which little or nothing can be seen.
    """
    for path, shape, dtype in files:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(len(ids), *shape)).flush()
    paths = [path for path, *_ in files]
    step = max(1, -(-len(ids) // (processes * 4)))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(_render_rows, job, ids[i : i + step], i, size, paths) for i in range(0, len(ids), step)]
        return [object_id for part in parts for object_id in part.result()]


@cache
def _renderer(size: int, distance_size: int) -> ViewRenderer:
    """A process's own."""
    return ViewRenderer(size, distance_size=distance_size)


def _render_rows(job: Job, ids: list[str], first: int, size: int, paths: list[Path]) -> list[str]:
    arrays = [np.lib.format.open_memmap(path, mode="r+") for path in paths]
    renderer, empty = _renderer(size, size // 2 if len(arrays) > 1 else 0), []
    for row, object_id in enumerate(ids, first):
        values = job(renderer, object_id)
        for array, value in zip(arrays, values, strict=True):
            array[row] = value
        if not is_visible(values[0]):
            empty.append(object_id)
    return empty
