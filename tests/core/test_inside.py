"""Points inside closed surfaces. Run: pytest tests/core/test_inside.py"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lgm_blender.core.inside import inside


def cube(low=-1.0, high=1.0) -> np.ndarray:
    """[12, 3, 3]"""
    corners = np.array([[x, y, z] for x in (low, high) for y in (low, high) for z in (low, high)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners[[t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]]


def ball(rings=40, segments=80) -> np.ndarray:
    u = np.linspace(0, np.pi, rings + 1)[:, None]
    v = np.linspace(0, 2 * np.pi, segments + 1)[None, :]
    grid = np.stack(np.broadcast_arrays(np.sin(u) * np.cos(v), np.sin(u) * np.sin(v), np.cos(u)), -1)
    faces = []
    for i, j in pairwise(range(rings + 1)):
        for k, n in pairwise(range(segments + 1)):
            faces += [(grid[i, k], grid[j, k], grid[j, n]), (grid[i, k], grid[j, n], grid[i, n])]
    return np.array(faces)


def points(count=20_000, size=1.5):
    return np.random.default_rng(0).uniform(-size, size, (count, 3))


def test_cube_turned_and_scaled():
    linear = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] @ np.diag([0.3, 1.2, 0.7])
    x = points()
    expected = (np.abs(x @ np.linalg.inv(linear).T) < 1).all(1)
    np.testing.assert_array_equal(inside(x, cube() @ linear.T), expected)
    assert expected.any()


def test_straight_cube_and_points_in_line_with_its_edges_and_corners():
    x = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, 13)] * 3), -1).reshape(-1, 3)
    off = np.abs(np.abs(x).max(1) - 1) > 1e-9  # not on the surface itself
    np.testing.assert_array_equal(inside(x[off], cube()), (np.abs(x[off]) < 1).all(1))


def test_ball_of_many_faces():
    x = points()
    radius = np.linalg.norm(x, axis=1)
    clear = np.abs(radius - 1) > 0.01
    np.testing.assert_array_equal(inside(x[clear], ball()), radius[clear] < 1)


def test_a_hollow_is_outside():
    x = points()
    shell = np.concatenate([cube(), cube(-0.5, 0.5)])
    expected = (np.abs(x) < 1).all(1) & ~(np.abs(x) < 0.5).all(1)
    np.testing.assert_array_equal(inside(x, shell), expected)


def test_nothing():
    assert inside(np.zeros((0, 3)), cube()).shape == (0,)
    assert not inside(points(10), np.zeros((0, 3, 3))).any()
    assert not inside(np.full((3, 3), 9.0), cube()).any()
