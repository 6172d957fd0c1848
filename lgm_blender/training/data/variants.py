"""More objects from the ones there are: stretched and narrowed, in other colours and in other light.

Two thousand objects are few to learn from what a picture doesn't show, and most of them are brown, grey or white.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from .objects import ObjectMesh, Submesh, centred, read_object

STRETCH = 0.35  # largest logarithm of an axis' factor: 0.70 to 1.42
TAPER = 0.35  # largest share by which the width grows or shrinks from the middle to the top
GAMMA = 0.6  # largest logarithm of a channel's gamma: 0.55 to 1.82
SHADES = 0.1, 0.5  # the least and most of the brightness that depends on the light


def read_varied(path: str | Path, variant: int, object_id: str) -> ObjectMesh:
    """An object of an objects.zip, varied."""
    return varied(read_object(path, object_id), object_id, variant)


def varied(mesh: ObjectMesh, object_id: str, variant: int) -> ObjectMesh:
    """The object stretched and narrowed, its bounding-box diagonal as before, its colour channels shuffled and bent.

    In half of them every material's colours change in their own way, and two thirds stand in a light of their own.

    Args:
        mesh: An object of objects.read_mesh.
        object_id, variant: The same two give the same change every time.
    """
    rng = np.random.default_rng([zlib.crc32(object_id.encode()), variant])
    corners = mesh.corners.copy()
    position = corners[:, :3] * np.exp(rng.uniform(-STRETCH, STRETCH, 3)).astype(np.float32)
    height = position[:, 1:2] / max(np.abs(position[:, 1]).max(), 1e-6)
    position[:, ::2] *= 1 + np.float32(rng.uniform(-TAPER, TAPER)) * height
    corners[:, :3] = centred(position)
    together = _change(rng) if rng.random() < 0.5 else None
    parts = []
    for part in mesh.parts:
        rows, change = corners[part.first : part.first + part.count], together or _change(rng)
        if part.texture is None and together is None:  # one part, but a material for each colour
            colors, which = np.unique(rows[:, 5:8], axis=0, return_inverse=True)
            rows[:, 5:8] = np.stack([_change(rng)(color) for color in colors])[which.ravel()]
        else:
            rows[:, 5:8] = change(rows[:, 5:8])
        parts.append(replace(part, texture=_bent(part, change)))
    return ObjectMesh(corners, parts, *(_light(rng) if rng.random() < 2 / 3 else ()))


def _change(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """What becomes of colours [..., 3] in 0 to 1.

    A power of a product is the product of the powers, so colour and texture can be changed one by one.
    """
    order, gamma = rng.permutation(3), np.exp(rng.uniform(-GAMMA, GAMMA, 3)).astype(np.float32)
    return lambda colors: colors[..., order] ** gamma


def _light(rng: np.random.Generator) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Where light comes from, mostly from above, and how bright what it meets is: brightest 0.8 to 1.05."""
    x, y, z = rng.normal(size=3)
    shaded, brightest = rng.uniform(*SHADES), rng.uniform(0.8, 1.05)
    return (float(x), float(abs(y) + 0.2), float(z)), (float(brightest - shaded), float(shaded))


def _bent(part: Submesh, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    if part.texture is None:
        return None
    rgb = np.round(change(part.texture[..., :3] / 255.0) * 255).astype(np.uint8)
    return np.concatenate([rgb, part.texture[..., 3:]], axis=-1)
