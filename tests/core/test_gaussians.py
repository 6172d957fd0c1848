"""core/gaussians.py: the value that travels through everything."""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core.gaussians import Gaussians, multiply_quaternions, rotation_matrices


@pytest.fixture
def array():
    values = np.random.default_rng(0).uniform(0.1, 1, (6, 14))
    values[:, 7:11] /= np.linalg.norm(values[:, 7:11], axis=1, keepdims=True)
    return values.astype(np.float32)


def test_lgms_layout_there_and_back(array):
    gaussians = Gaussians.from_array(array)
    np.testing.assert_array_equal(gaussians.opacities, array[:, 3])
    np.testing.assert_array_equal(gaussians.colors, array[:, 11:])
    np.testing.assert_array_equal(gaussians.to_array(), array)
    assert len(gaussians) == 6


def test_refuses_other_shapes(array):
    with pytest.raises(ValueError, match=r"\[N, 14\]"):
        Gaussians.from_array(array[:, :13])
    with pytest.raises(ValueError, match="rotations has shape"):
        Gaussians(array[:, :3], array[:, 3], array[:, 4:7], array[:, 7:10], array[:, 11:])


def test_prunes_what_cannot_be_seen(array):
    array[:3, 3] = [0.0049, 0.005, 0]
    np.testing.assert_array_equal(Gaussians.from_array(array).prune().to_array(), array[[1, 3, 4, 5]])


def test_knows_what_is_not_finite(array):
    array[1, 0] = np.nan
    array[4, 9] = np.inf
    np.testing.assert_array_equal(Gaussians.from_array(array).finite(), [True, False, True, True, False, True])


def test_quaternions_multiply_as_their_matrices(array):
    a, b = rotation_matrices(array[:3, 7:11]), rotation_matrices(array[3:, 7:11])
    product = rotation_matrices(multiply_quaternions(array[:3, 7:11], array[3:, 7:11]))
    np.testing.assert_allclose(product, a @ b, atol=1e-6)
    quarter_turn_about_x = rotation_matrices(np.array([[0.5**0.5, 0.5**0.5, 0, 0]]))[0]
    np.testing.assert_allclose(quarter_turn_about_x @ [0, 1, 0], [0, 0, 1], atol=1e-6)
