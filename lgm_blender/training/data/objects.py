"""Textured objects for training, as meshes: those of an objects.zip."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.cameras import LIGHT, OBJECT_RADIUS, SHADE, into_sphere
from ...core.color import srgb_to_linear
from ...core.errors import LGMError


@dataclass(frozen=True)
class Submesh:
    """Triangles of one look.

    Attributes:
        first, count: Which rows of the mesh's corners.
        texture: [H, W, 4] uint8 of sRGB colour and alpha, or None.
        cutoff: Alpha from which a point is opaque, below which it isn't there; 0 makes all opaque, -1 blends.
    """

    first: int
    count: int
    texture: np.ndarray | None = None
    cutoff: float = 0.5


@dataclass(frozen=True)
class ObjectMesh:
    """Triangles ready to render.

    Attributes:
        corners: [3F, 9] float32: position xyz (y up), uv (v up from the texture's last row), colour rgba 0 to 1 in
            linear light, by which the texture is multiplied.
        parts: Together all of the corners, opaque ones first.
        light: Where it is, fixed to the object.
        shade: See core.cameras.SHADE.
    """

    corners: np.ndarray
    parts: list[Submesh]
    light: tuple[float, float, float] = LIGHT
    shade: tuple[float, float] = SHADE


def read_index(path: str | Path) -> list[dict]:
    """The objects of an objects.zip: id, split and caption ('' where there is none), source, licence and more.

    Raises:
        LGMError: If it is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            index = json.loads(archive.read("index.json"))
        return [{**o, "id": o["id"], "split": o.get("split", ""), "caption": o.get("caption", "")} for o in index]
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise LGMError(f"{path} is not an objects.zip, or damaged ({error}). Make or copy it again.") from error


def join_objects(paths: Sequence[Path], output: Path) -> int:
    """Write all objects of several objects.zip into one, the first archive's first; returns how many there are.

    Raises:
        LGMError: If two have the same id.
    """
    index, names = [], set()
    with zipfile.ZipFile(output, "w") as joined:
        for path in paths:
            with zipfile.ZipFile(path) as archive:
                for entry in read_index(path):
                    if entry["id"] in names:
                        raise LGMError(
                            f"{path} has an object {entry['id']} that one before it has too. Leave one of them out."
                        )
                    names.add(entry["id"])
                    joined.writestr(f"{entry['id']}.npz", archive.read(f"{entry['id']}.npz"))
                    index.append(entry)
        joined.writestr("index.json", json.dumps(index))
    return len(index)


def read_mesh(archive: zipfile.ZipFile, object_id: str) -> ObjectMesh:
    """One object of an objects.zip, scaled so that a bounding-box diagonal of 1.4 becomes 2 · OBJECT_RADIUS."""
    with np.load(io.BytesIO(archive.read(f"{object_id}.npz"))) as data:
        layers = data["material_texture"][data["face_material"]]
        order = np.argsort(layers, kind="stable")
        faces = data["faces"].astype(np.int64)[order]
        positions = data["vertices"].astype(np.float32)[faces] * (OBJECT_RADIUS / 0.7)
        uv = data["uv"].astype(np.float32)[faces]
        colors = to_linear(data["material_color"].astype(np.float32)[data["face_material"][order]] / 255)
        colors[:, 3] = 1
        pictures = {
            layer: np.asarray(Image.open(io.BytesIO(data[f"texture_{layer}"].tobytes())).convert("RGBA"))
            for layer in np.unique(layers).tolist()
            if layer >= 0
        }
    corners = np.concatenate([positions, uv, np.repeat(colors[:, None], 3, axis=1)], axis=2)
    parts, first = [], 0
    for layer, count in zip(*np.unique(layers, return_counts=True), strict=True):
        parts.append(Submesh(3 * first, 3 * int(count), pictures.get(int(layer))))
        first += int(count)
    return ObjectMesh(corners.reshape(-1, 9).astype(np.float32), parts)


def read_object(path: str | Path, object_id: str) -> ObjectMesh:
    """`read_mesh` from the objects.zip at `path`."""
    found = Path(path).stat()
    return read_mesh(_archive(str(path), found.st_mtime_ns, found.st_size), object_id)


@lru_cache(maxsize=1)
def _archive(path: str, changed: int, size: int) -> zipfile.ZipFile:
    """An archive that stays open: to open one with thousands of objects takes as long as to read several of them."""
    return zipfile.ZipFile(path)


def centred(positions: np.ndarray, radius: float = OBJECT_RADIUS) -> np.ndarray:
    """Positions [N, 3] moved and scaled so that their bounding box has its middle at 0 and a diagonal of 2 · radius."""
    center, factor = into_sphere(positions.min(0), positions.max(0), radius)
    return (positions - center) * factor


def about_up(angle: float) -> np.ndarray:
    """[3, 3], about the up axis: what was seen from azimuth `angle`, in radians, is seen from the front."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def to_linear(colors: np.ndarray) -> np.ndarray:
    """sRGB values [..., 3 or more] in 0 to 1 in linear light; what comes after the third stays."""
    colors = np.array(colors, np.float32)
    colors[..., :3] = srgb_to_linear(colors[..., :3])
    return colors


Reader = Callable[[str], ObjectMesh]  # an object's id to its mesh
