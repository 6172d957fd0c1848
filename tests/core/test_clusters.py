"""Floaters by where they are. Run: pytest tests/core/test_clusters.py"""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core.clusters import floaters


def directions(count, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def specks(groups=12, each=4):
    """[48, 3]: a few together, here and there outside of a ball of radius 0.5."""
    centers = np.repeat(directions(groups, 1) * np.linspace(0.8, 1.5, groups)[:, None], each, axis=0)
    return centers + np.random.default_rng(2).normal(0, 0.01, centers.shape)


@pytest.mark.parametrize("count", [2000, 100_000])
def test_specks_around_a_ball(count):
    ball = 0.5 * directions(count)
    positions = np.concatenate([ball, specks()])
    found = floaters(positions, np.full(len(positions), 0.9))
    assert found[count:].all()
    assert found[:count].mean() < 0.01


def test_two_large_things_are_both_kept():
    ball = directions(3000)
    positions = np.concatenate([ball, 0.5 * ball[:1500] + np.array([5, 0, 0])])
    assert floaters(positions, np.full(len(positions), 0.9)).mean() < 0.01


def test_faint_ones_on_their_own_inside_of_something():
    inner = np.random.default_rng(3).uniform(-0.2, 0.2, (5, 3))
    positions = np.concatenate([directions(3000), inner])
    opacities = np.concatenate([np.full(3000, 0.9), np.full(5, 0.05)])
    found = floaters(positions, opacities)
    assert found[3000:].all()
    assert found[:3000].mean() < 0.01


def test_a_cloud_without_a_body_has_none():
    assert not floaters(np.random.default_rng(0).uniform(-1, 1, (8, 3)), np.ones(8)).any()
    assert floaters(np.zeros((0, 3)), np.zeros(0)).shape == (0,)
    assert not floaters(np.zeros((100, 3)), np.ones(100)).any()
