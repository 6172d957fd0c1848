"""Which maps moved points. Run: pytest tests/core/test_affine_fit.py"""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core.affine import matrix_quaternions
from lgm_blender.core.affine_fit import is_translation, moved_as_one, moved_in_groups
from lgm_blender.core.gaussians import rotation_matrices


def turn(seed=0):
    quaternion = np.random.default_rng(seed).normal(size=4)
    return rotation_matrices(quaternion[None] / np.linalg.norm(quaternion))[0]


def affine(linear, offset=(0.3, -2.0, 1.0)):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, offset
    return matrix


def points(count=3000, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


def moved(matrix, x):
    """As Blender does it: in single precision."""
    matrix = matrix.astype(np.float32)
    return x @ matrix[:3, :3].T + matrix[:3, 3]


MAPS = {
    "turn": turn(),
    "turn and scale": 2.5 * turn(),
    "mirror": np.diag([-1.0, 1, 1]) @ turn(),
    "stretch": turn(1) @ np.diag([0.5, 2.0, 1.0]) @ turn(2),
    "flatten": np.diag([1.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("count", [8, 3000, 50_000])
def test_one_map_is_found(name, count):
    x = points(count)
    found = moved_as_one(x, moved(affine(MAPS[name]), x))
    np.testing.assert_allclose(found, affine(MAPS[name]), atol=2e-6)


def test_a_translation_is_nothing_else():
    x = points()
    found = moved_as_one(x, x + np.float32(0.1))
    assert is_translation(found)
    np.testing.assert_allclose(found[:3, 3], 0.1, atol=1e-6)
    assert not is_translation(affine(turn()))


def test_three_points_turn_without_a_mirroring():
    x = points(3)
    np.testing.assert_allclose(moved_as_one(x, moved(affine(turn()), x)), affine(turn()), atol=1e-5)


def test_points_in_a_plane_turn_without_a_mirroring():
    x = points() * np.float32([1, 1, 0])
    np.testing.assert_allclose(moved_as_one(x, moved(affine(turn()), x)), affine(turn()), atol=1e-5)


def test_what_points_do_not_tell_is_not_guessed():
    assert moved_as_one(points(2), moved(affine(turn()), points(2))) is None
    line = points() * np.float32([1, 0, 0])
    assert moved_as_one(line, moved(affine(turn()), line)) is None


def test_no_map_is_found_where_none_is():
    x = points()
    assert moved_as_one(x, x + 0.1 * x**2) is None
    groups, left = moved_in_groups(x, x + 0.1 * x**2)
    assert not groups
    assert len(left) == len(x)


def test_groups_in_space():
    x = points(20_000)
    belongs = np.digitize(x[:, 0], [-0.4, 0.3])
    offsets = {"turn": (0, 0, 0), "mirror": (1, 2, 3), "stretch": (0, 1, 0)}
    maps = [affine(MAPS[name], offset) for name, offset in offsets.items()]
    y = np.empty_like(x)
    for i, matrix in enumerate(maps):
        y[belongs == i] = moved(matrix, x[belongs == i])
    groups, left = moved_in_groups(x, y)
    assert len(groups) == 3
    assert len(left) == 0
    for indices, matrix in groups:
        i = belongs[indices[0]]
        assert (belongs[indices] == i).all()
        np.testing.assert_allclose(matrix, maps[i], atol=1e-5)


def test_groups_of_copies_in_one_place():
    """Copies of an object that were joined: they began in the same places, and follow each other."""
    x = np.tile(points(5000), (3, 1))
    belongs = np.repeat(np.arange(3), 5000)
    maps = [affine(turn(i), (i, 0, 0)) for i in range(3)]
    y = np.concatenate([moved(maps[i], x[belongs == i]) for i in range(3)])
    groups, left = moved_in_groups(x, y)
    assert len(groups) == 3
    assert len(left) == 0
    assert all(np.ptp(belongs[indices]) == 0 for indices, _ in groups)


def test_a_few_that_moved_by_themselves_are_left():
    x = points()
    y = moved(affine(turn()), x)
    y[[5, 700]] += 0.5
    groups, left = moved_in_groups(x, y)
    assert [len(group.indices) for group in groups] == [2998]
    assert sorted(left) == [5, 700]


def test_quaternion_of_a_found_turn_is_that_turn():
    x = points()
    found = moved_as_one(x, moved(affine(turn()), x))
    np.testing.assert_allclose(rotation_matrices(matrix_quaternions(found[None, :3, :3]))[0], turn(), atol=1e-6)
