"""Spherical harmonics as 3D Gaussian Splatting uses them: colour that changes with the side it is seen from.

The real harmonics with the signs of INRIA's code: f_rest_* of its PLY, `radiance:sh_*` of Blender 5.3,
KHR_gaussian_splatting of glTF. The zeroth is the base colour and isn't among them here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import numpy as np

Number = TypeVar("Number")
COUNTS = (0, 3, 8, 15)  # coefficients of degree 0 to 3, less the zeroth

_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
_C3 = (
    *(-0.5900435899266435, 2.890611442640554, -0.4570457994644658, 0.3731763325901154),
    *(-0.4570457994644658, 1.445305721320277, -0.5900435899266435),
)


def basis(directions: np.ndarray, count: int = 15) -> np.ndarray:
    """The first harmonics [..., count], of degree 1 to 3, at unit vectors [..., 3] from the camera to the Gaussian."""
    return np.stack(basis_terms(*np.moveaxis(np.asarray(directions), -1, 0))[:count], axis=-1)


def basis_terms(x: Number, y: Number, z: Number) -> list[Number]:
    """The 15 harmonics of degree 1 to 3 at the unit vector (x, y, z), of arrays or what else can be calculated with."""
    xx, yy, zz = x * x, y * y, z * z
    return [
        *(-_C1 * y, _C1 * z, -_C1 * x),
        *(_C2[0] * (x * y), _C2[1] * (y * z), _C2[2] * (2 * zz - xx - yy), _C2[3] * (x * z), _C2[4] * (xx - yy)),
        *(_C3[0] * (y * (3 * xx - yy)), _C3[1] * (x * y * z), _C3[2] * (y * (4 * zz - xx - yy))),
        *(_C3[3] * (z * (2 * zz - 3 * xx - 3 * yy)), _C3[4] * (x * (4 * zz - xx - yy))),
        *(_C3[5] * (z * (xx - yy)), _C3[6] * (x * (xx - 3 * yy))),
    ]


def seen_colors(colors: np.ndarray, harmonics: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """[N, 3] display colours, 0 and up, of base colours [N, 3] and harmonics [N, K, 3] seen along directions [N, 3]."""
    if not harmonics.shape[1]:
        return np.maximum(colors, 0)
    return np.maximum(colors + np.einsum("nk,nkc->nc", basis(directions, harmonics.shape[1]), harmonics), 0)


def rotated(harmonics: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Harmonics [N, K, 3] of Gaussians that were turned by an orthogonal matrix [3, 3], mirrored ones too.

    Seen along d, what is turned looks as it did along R^T d. Each degree's harmonics make up all of its turned ones: a
    matrix for each degree, solved from as many directions as are more than enough.
    """
    count = harmonics.shape[1]
    if count == 0 or np.allclose(matrix, np.eye(3), atol=1e-7):
        return harmonics
    turns = basis_turn(np.asarray(matrix, np.float64), count).astype(np.float32)
    signs = np.rint(np.diagonal(turns))
    if np.allclose(turns, np.diag(signs), atol=1e-6):  # a half turn about an axis, as of a file whose y points down
        return harmonics * signs[:, None]
    # One product of large matrices, of all channels at once, takes a tenth of the time of N of small ones.
    return (harmonics.reshape(-1, 3 * count) @ np.kron(turns.T, np.eye(3, dtype=np.float32))).reshape(harmonics.shape)


def basis_turn(matrix: np.ndarray, count: int = 15) -> np.ndarray:
    """[count, count], a block for each degree: coefficients of what a matrix [3, 3] turns, from those before."""
    directions = np.random.default_rng(0).normal(size=(64, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before, after = basis(directions @ matrix, count), basis(directions, count)  # rows of d @ R are R^T d
    result = np.zeros((count, count))
    for first, end in pairwise(COUNTS):
        if end <= count:
            result[first:end, first:end] = np.linalg.lstsq(after[:, first:end], before[:, first:end], rcond=None)[0]
    return result
