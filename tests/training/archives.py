"""Objects in the objects.zip form, for tests."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

COLORS = ((220, 60, 60), (60, 200, 60), (60, 60, 220), (220, 220, 60), (60, 220, 220), (220, 60, 220))


def box(
    half: tuple[float, float, float],
    shift: tuple[float, float, float] = (0, 0, 0),
    colors: Sequence[tuple[int, int, int]] = COLORS,
) -> dict[str, np.ndarray]:
    """A box of half sides `half` about `shift`, whose six sides (-x, +x, -y, +y, -z, +z) have colours of their own."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half + shift
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return {
        "vertices": corners.astype(np.float16),
        "uv": np.zeros((8, 2), np.float16),
        "faces": np.array([t for a, b, c, d in sides for t in ((a, b, c), (a, c, d))], np.uint16),
        "face_material": np.repeat(np.arange(6), 2).astype(np.uint8),
        "material_color": np.array([(*color, 255) for color in colors], np.uint8),
        "material_texture": np.full(6, -1, np.int16),
    }


def write_archive(path: Path, objects: dict[str, dict[str, np.ndarray]], *splits: str) -> Path:
    """An objects.zip of objects by their names, each of its split."""
    index = [{"id": name, "split": split, "caption": f"a {name}"} for name, split in zip(objects, splits, strict=True)]
    with zipfile.ZipFile(path, "w") as file:
        for name, data in objects.items():
            buffer = io.BytesIO()
            np.savez(buffer, **data)
            file.writestr(f"{name}.npz", buffer.getvalue())
        file.writestr("index.json", json.dumps(index))
    return path
