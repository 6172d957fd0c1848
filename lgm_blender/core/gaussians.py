"""Gaussians: the value that travels through everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from .harmonics import COUNTS

SH_C0 = 0.28209479177387814  # the zeroth real spherical harmonic: f_dc = (colour - 0.5) / SH_C0


@dataclass(frozen=True)
class Gaussians:
    """N 3D Gaussians in LGM's frame (y up, front view from +z), all values activated, float32.

    Attributes:
        positions: [N, 3], centres; LGM's own lie in [-1, 1].
        opacities: [N], 0 to 1.
        scales: [N, 3], standard deviations along the Gaussian's own axes, > 0, in scene units.
        rotations: [N, 4], unit quaternions (w, x, y, z).
        colors: [N, 3], RGB in display space (sRGB): the same from all sides. LGM's lie in 0 to 1, a capture's may not.
        harmonics: [N, K, 3], K = 0, 3, 8 or 15: what the side it is seen from adds to the colour, as coefficients of
            the spherical harmonics of degree 1 to 3 (harmonics.py). LGM has none.
    """

    positions: np.ndarray
    opacities: np.ndarray
    scales: np.ndarray
    rotations: np.ndarray
    colors: np.ndarray
    harmonics: np.ndarray | None = None

    def __post_init__(self):
        count = len(self.positions)
        if self.harmonics is None:
            object.__setattr__(self, "harmonics", np.zeros((count, 0, 3), np.float32))
        coefficients = np.shape(self.harmonics)[1] if np.ndim(self.harmonics) == 3 else -1
        if coefficients not in COUNTS:
            raise ValueError(f"harmonics have shape {np.shape(self.harmonics)}; they need 0, 3, 8 or 15 coefficients")
        for name, shape in (
            ("positions", (count, 3)),
            ("opacities", (count,)),
            ("scales", (count, 3)),
            ("rotations", (count, 4)),
            ("colors", (count, 3)),
            ("harmonics", (count, coefficients, 3)),
        ):
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, {count} Gaussians need {shape}")
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def from_array(cls, array: np.ndarray) -> Gaussians:
        """Gaussians from LGM's [N, 14] layout: xyz, opacity, scale x 3, quaternion wxyz, rgb."""
        array = np.asarray(array, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != 14:
            raise ValueError(f"expected an array of shape [N, 14], not {array.shape}")
        return cls(array[:, 0:3], array[:, 3], array[:, 4:7], array[:, 7:11], array[:, 11:14])

    def to_array(self) -> np.ndarray:
        """LGM's [N, 14] layout: xyz, opacity, scale x 3, quaternion wxyz, rgb. It has no place for harmonics."""
        return np.concatenate(
            [self.positions, self.opacities[:, None], self.scales, self.rotations, self.colors], axis=1
        )

    def select(self, mask: np.ndarray) -> Gaussians:
        """The Gaussians at a boolean mask [N] or integer indices [M]."""
        return replace(self, **{field.name: getattr(self, field.name)[mask] for field in fields(self)})

    def prune(self, min_opacity: float = 0.005) -> Gaussians:
        """Without the Gaussians that cannot be seen, as the published code saves them."""
        return self.select(self.opacities >= min_opacity)

    def finite(self) -> np.ndarray:
        """[N] bool: whether every value of a Gaussian is a finite number."""
        finite = np.ones(len(self), bool)
        for field in fields(self):
            values = getattr(self, field.name)
            with np.errstate(over="ignore", invalid="ignore"):
                if np.isfinite(values.sum()):  # of one that isn't, the sum isn't: the usual case is found out at once
                    continue
            finite &= np.isfinite(values).reshape(len(self), -1).all(axis=1)
        return finite

    def only_finite(self, warnings: list[str]) -> Gaussians:
        """The Gaussians whose values are finite numbers; a sentence about the others is added to `warnings`."""
        finite = self.finite()
        if finite.all():
            return self
        warnings.append(f"{len(finite) - finite.sum():,} Gaussians were left out: their values are not finite.")
        return self.select(finite)

    @property
    def f_dc(self) -> np.ndarray:
        """[N, 3], the zeroth spherical harmonics coefficients, as 3DGS files store colour."""
        return (self.colors - 0.5) / SH_C0


def joined(parts: Sequence[Gaussians]) -> Gaussians:
    """All Gaussians of some sets, one after the other; harmonics of a lower degree than others have get zeros."""
    if len(parts) == 1:
        return parts[0]
    most = max(part.harmonics.shape[1] for part in parts)
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Gaussians)
        if field.name != "harmonics"
    }
    harmonics = np.zeros((len(columns["positions"]), most, 3), np.float32)
    first = 0
    for part in parts:
        harmonics[first : first + len(part), : part.harmonics.shape[1]] = part.harmonics
        first += len(part)
    return Gaussians(**columns, harmonics=harmonics)


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """[N, 3, 3] rotation matrices of unit quaternions [N, 4] (w, x, y, z)."""
    w, x, y, z = np.moveaxis(np.asarray(quaternions), -1, 0)
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )


def multiply_quaternions(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The Hamilton product a * b of quaternions [..., 4] (w, x, y, z): rotate by b, then by a."""
    aw, ax, ay, az = np.moveaxis(np.asarray(a), -1, 0)
    bw, bx, by, bz = np.moveaxis(np.asarray(b), -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )
