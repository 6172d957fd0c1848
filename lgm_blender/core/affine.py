"""Gaussians moved, turned, scaled, mirrored and sheared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .gaussians import Gaussians, multiply_quaternions, rotation_matrices
from .harmonics import rotated

_HALF = 0.5**0.5
# Turns that bring one of a file's axes to LGM's y, which is up, as quaternions (w, x, y, z).
UPRIGHT: dict[str, tuple[float, float, float, float]] = {
    "y": (1, 0, 0, 0),
    "-y": (0, 1, 0, 0),
    "z": (_HALF, -_HALF, 0, 0),
    "-z": (_HALF, _HALF, 0, 0),
    "x": (_HALF, 0, 0, _HALF),
    "-x": (_HALF, 0, 0, -_HALF),
}
_CHUNK = 1 << 18  # Gaussians taken apart at once, to bound memory


def transformed(gaussians: Gaussians, matrix: np.ndarray) -> Gaussians:
    """Gaussians under an affine map [4, 4].

    A turn, a mirroring and one scale for all axes are exact. Under any other map the covariance M R S² Rᵀ Mᵀ is, taken
    apart into axes and lengths again; the harmonics can only turn, by the rotation nearest to M.
    """
    linear = np.asarray(matrix, np.float64)[:3, :3]
    offset = np.asarray(matrix, np.float64)[:3, 3]
    positions = gaussians.positions @ linear.T.astype(np.float32) + offset.astype(np.float32)
    factor = float(np.cbrt(np.linalg.det(linear)))
    if abs(factor) > 0 and np.allclose(linear @ linear.T, factor**2 * np.eye(3), rtol=0, atol=1e-5 * factor**2):
        turn = linear / abs(factor)  # a reflection of an ellipsoid is also that by -1 times it, which is a rotation
        quaternion = matrix_quaternions(turn[None] * np.sign(factor))[0].astype(np.float32)
        return replace(
            gaussians,
            positions=positions,
            scales=gaussians.scales * abs(np.float32(factor)),
            rotations=multiply_quaternions(quaternion, gaussians.rotations),
            harmonics=rotated(gaussians.harmonics, turn),
        )
    scales, rotations = np.empty_like(gaussians.scales), np.empty_like(gaussians.rotations)
    for first in range(0, len(gaussians), _CHUNK):
        part = slice(first, first + _CHUNK)
        axes = linear @ (
            rotation_matrices(gaussians.rotations[part].astype(np.float64)) * gaussians.scales[part, None, :]
        )
        turns, scales[part], _ = np.linalg.svd(axes)
        turns[:, :, 2] *= np.sign(np.linalg.det(turns))[:, None]  # no rotation may mirror; an axis has no sign
        rotations[part] = matrix_quaternions(turns)
    left, _, right = np.linalg.svd(linear)
    return replace(
        gaussians,
        positions=positions,
        scales=np.maximum(scales, np.finfo(np.float32).tiny),
        rotations=rotations,
        harmonics=rotated(gaussians.harmonics, left @ right),
    )


def turned(gaussians: Gaussians, matrix: np.ndarray) -> Gaussians:
    """Gaussians under an orthogonal matrix [3, 3]."""
    whole = np.eye(4)
    whole[:3, :3] = matrix
    return transformed(gaussians, whole)


def upright(gaussians: Gaussians, up: str) -> Gaussians:
    """Gaussians whose axis `up`, one of UPRIGHT, points up, turned so that y does, which is LGM's frame."""
    return turned(gaussians, _turn(up))


def from_upright(gaussians: Gaussians, up: str) -> Gaussians:
    """Gaussians in LGM's frame, turned so that their axis `up` points up: undoes `upright`."""
    return turned(gaussians, _turn(up).T)


def _turn(up: str) -> np.ndarray:
    return np.rint(rotation_matrices(np.array(UPRIGHT[up])))


def matrix_quaternions(matrices: np.ndarray) -> np.ndarray:
    """[N, 4] unit quaternions (w, x, y, z) of rotation matrices [N, 3, 3], by the largest row of 4 q qᵀ."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.moveaxis(matrices, 0, -1)
    rows = [
        [1 + xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz],
    ]
    outer = np.moveaxis(np.array(rows), -1, 0)
    best = np.diagonal(outer, axis1=1, axis2=2).argmax(axis=1)
    chosen = outer[np.arange(len(outer)), best]
    return chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
