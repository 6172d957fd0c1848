"""Colour spaces: sRGB (IEC 61966-2-1), linear light, and CIELAB (CIE 15, D65).

The curves take numpy arrays and torch tensors alike, and are computed in their type and on their device.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Values = TypeVar("Values")  # np.ndarray or torch.Tensor

# Linear light (sRGB's primaries) to CIE XYZ, and its white.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=np.float32,
)
WHITE = XYZ.sum(axis=1)


def srgb_to_linear(srgb: Values) -> Values:
    """sRGB values, 0 to 1, in linear light, 0 to 1."""
    low = srgb <= 0.04045
    return low * (srgb / 12.92) + ~low * ((srgb.clip(0.04045, None) + 0.055) / 1.055) ** 2.4


def linear_to_srgb(linear: Values) -> Values:
    """Linear light, 0 to 1, as sRGB values, 0 to 1."""
    low = linear <= 0.0031308
    return low * (12.92 * linear) + ~low * (1.055 * linear.clip(0.0031308, None) ** (1 / 2.4) - 0.055)


def srgb_to_lab(srgb: np.ndarray) -> np.ndarray:
    """CIELAB [..., 3] float32 (L* 0 to 100) of sRGB [..., 3] in 0 to 1."""
    t = (srgb_to_linear(srgb.astype(np.float32)) @ XYZ.T) / WHITE
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] float32, clipped to 0 to 1, of CIELAB [..., 3]."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    t = np.where(f > 6 / 29, f**3, (116 * f - 16) * 27 / 24389)
    linear = np.clip((t * WHITE) @ np.linalg.inv(XYZ).T, 0, 1)
    return linear_to_srgb(linear).astype(np.float32)
