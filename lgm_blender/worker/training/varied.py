"""More objects from the ones there are: stretched along their axes, in other colours.

Two thousand objects are few for guessing what a picture doesn't show, and most of them are brown, grey or white.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from .objects import OBJECT_RADIUS, TexturedMesh

STRETCH = 0.35  # largest logarithm of an axis' factor: 0.70 to 1.42
GAMMA = 0.6  # largest logarithm of a channel's gamma: 0.55 to 1.82


def varied(mesh: TexturedMesh, object_id: str, variant: int) -> TexturedMesh:
    """The object stretched, its bounding-box diagonal as before, its colour channels shuffled and bent.

    Args:
        mesh: An object of objects.read_mesh.
        object_id, variant: The same two give the same change every time.
    """
    rng = np.random.default_rng([zlib.crc32(object_id.encode()), variant])
    corners = mesh.corners.copy()
    position = corners[:, :3] * np.exp(rng.uniform(-STRETCH, STRETCH, 3)).astype(np.float32)
    low, high = position.min(0), position.max(0)
    corners[:, :3] = (position - (low + high) / 2) * (2 * OBJECT_RADIUS / np.linalg.norm(high - low))
    # A power of a product is the product of the powers, so colour and texture can be changed one by one.
    order, gamma = rng.permutation(3), np.exp(rng.uniform(-GAMMA, GAMMA, 3)).astype(np.float32)
    corners[:, 5:8] = corners[:, 5:8][:, order] ** gamma

    def bent(texture: np.ndarray | None) -> np.ndarray | None:
        if texture is None:
            return None
        rgb = np.round((texture[..., order] / 255.0) ** gamma * 255).astype(np.uint8)
        return np.concatenate([rgb, texture[..., 3:]], axis=-1)

    return TexturedMesh(corners, [replace(part, texture=bent(part.texture)) for part in mesh.parts])
