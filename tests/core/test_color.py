"""core/color.py (python build.py test tests/core/test_color.py)."""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core.color import lab_to_srgb, linear_to_srgb, srgb_to_lab, srgb_to_linear

# IEC 61966-2-1: both sides of where its straight part ends, and middle grey.
PAIRS = np.array([[0, 0], [0.02, 0.0015480], [0.04, 0.0030960], [0.05, 0.0039359], [0.5, 0.2140411], [1, 1]])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_curves_are_srgbs(kind):
    values = PAIRS if kind == "numpy" else pytest.importorskip("torch").from_numpy(PAIRS)
    assert type(srgb_to_linear(values)) is type(values)
    np.testing.assert_allclose(srgb_to_linear(values[:, 0]), PAIRS[:, 1], atol=1e-7)
    np.testing.assert_allclose(linear_to_srgb(values[:, 1]), PAIRS[:, 0], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_there_and_back_in_the_same_type(dtype):
    values = np.linspace(0, 1, 1001).astype(dtype)
    back = linear_to_srgb(srgb_to_linear(values))
    assert back.dtype == dtype
    np.testing.assert_allclose(back, values, atol=2e-6)


def test_lab_is_lab():
    # White, black, and pure red as CIE 15 gives it for sRGB and D65.
    lab = srgb_to_lab(np.float32([[1, 1, 1], [0, 0, 0], [1, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.02)
    rgb = np.random.default_rng(0).uniform(0, 1, (100, 3)).astype(np.float32)
    np.testing.assert_allclose(lab_to_srgb(srgb_to_lab(rgb)), rgb, atol=2e-4)
