"""core/affine.py and core/harmonics.py: Gaussians moved, turned, scaled, mirrored and sheared."""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core.affine import transformed
from lgm_blender.core.gaussians import Gaussians, rotation_matrices
from lgm_blender.core.harmonics import basis, rotated, seen_colors

COUNT = 40


@pytest.fixture
def gaussians():
    random = np.random.default_rng(0)
    rotations = random.normal(size=(COUNT, 4))
    return Gaussians(
        random.uniform(-1, 1, (COUNT, 3)),
        random.uniform(0, 1, COUNT),
        np.exp(random.normal(-3, 0.7, (COUNT, 3))),
        rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        random.uniform(0, 1, (COUNT, 3)),
        random.normal(0, 0.2, (COUNT, 15, 3)),
    )


def covariances(gaussians: Gaussians) -> np.ndarray:
    axes = rotation_matrices(gaussians.rotations.astype(np.float64)) * gaussians.scales[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def directions(number: int) -> np.ndarray:
    found = np.random.default_rng(1).normal(size=(number, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def turn() -> np.ndarray:
    return rotation_matrices(np.array([[0.5, -0.1, 0.7, 0.5]]))[0]  # of unit length


MAPS = {
    "turn": turn(),
    "turn and scale": 3 * turn(),
    "mirror": np.diag([-1, 1, 1]) @ turn(),
    "shear": np.array([[1, 0.4, 0], [0, 2, 0.1], [0.3, 0, 0.5]]),
    "flat": np.diag([1, 1, 0]),
}


@pytest.mark.parametrize("name", MAPS)
def test_centres_and_covariances_follow_the_map(gaussians, name):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = MAPS[name], (1, -2, 3)
    moved = transformed(gaussians, matrix)
    np.testing.assert_allclose(moved.positions, gaussians.positions @ MAPS[name].T + (1, -2, 3), atol=1e-5)
    expected = MAPS[name] @ covariances(gaussians) @ MAPS[name].T
    np.testing.assert_allclose(covariances(moved), expected, atol=1e-6 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(np.linalg.norm(moved.rotations, axis=1), 1, atol=1e-5)
    assert (moved.scales > 0).all()
    np.testing.assert_array_equal(moved.opacities, gaussians.opacities)
    np.testing.assert_array_equal(moved.colors, gaussians.colors)


@pytest.mark.parametrize("count", [0, 3, 8, 15])
@pytest.mark.parametrize("name", ["turn", "mirror"])
def test_what_is_turned_looks_from_the_turned_side_as_it_did(gaussians, name, count):
    harmonics = gaussians.harmonics[:, :count]
    there = directions(COUNT)
    turned = rotated(harmonics, MAPS[name])
    before = seen_colors(gaussians.colors, harmonics, there)
    after = seen_colors(gaussians.colors, turned, there @ MAPS[name].T)
    np.testing.assert_allclose(after, before, atol=1e-5)
    if count:
        assert np.abs(seen_colors(gaussians.colors, harmonics, there @ MAPS[name].T) - before).max() > 0.1


def test_turning_back_brings_back_every_value(gaussians):
    there, back = np.eye(4), np.eye(4)
    there[:3, :3], back[:3, :3] = turn(), turn().T
    again = transformed(transformed(gaussians, there), back)
    np.testing.assert_allclose(again.harmonics, gaussians.harmonics, atol=1e-5)
    signs = np.sign((again.rotations * gaussians.rotations).sum(1, keepdims=True))
    np.testing.assert_allclose(again.rotations * signs, gaussians.rotations, atol=1e-5)


def test_the_harmonics_are_orthonormal_and_have_the_signs_of_3dgs():
    there = directions(200_000)
    values = np.concatenate([np.full((len(there), 1), 0.28209479177387814), basis(there)], 1)
    np.testing.assert_allclose(4 * np.pi * values.T @ values / len(values), np.eye(16), atol=0.03)
    x, y, z = np.eye(3)  # INRIA's first three: -C1 y, C1 z, -C1 x
    np.testing.assert_allclose([basis(y)[0], basis(z)[1], basis(x)[2]], [-0.48860252, 0.48860252, -0.48860252])


def test_nothing_is_darker_than_black(gaussians):
    dark = np.full((COUNT, 3, 3), -5.0)
    assert seen_colors(gaussians.colors, dark, directions(COUNT)).min() == 0
