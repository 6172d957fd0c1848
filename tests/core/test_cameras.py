"""core/cameras.py against the published code's cameras, and Blender's frame against LGM's."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tensors import read_safetensors

from lgm_blender.core import cameras
from lgm_blender.core.gaussians import Gaussians, rotation_matrices


def test_orbit_cameras_are_the_published_ones(golden):
    poses = {k: v for k, v in read_safetensors(golden / "cameras.safetensors").items() if k.startswith("pose")}
    assert poses
    for name, expected in poses.items():
        elevation, azimuth = map(float, re.fullmatch(r"pose_above(-?[\d.]+)_a(-?[\d.]+)", name).groups())
        np.testing.assert_allclose(cameras.orbit_camera(elevation, azimuth), expected, atol=1e-6, err_msg=name)


def test_multiview_cameras_are_the_published_ones(golden):
    stored = {k: v for k, v in read_safetensors(golden / "cameras.safetensors").items() if k.startswith("multiview")}
    assert stored
    for name, expected in stored.items():
        ours = cameras.multiview_cameras(float(name.removeprefix("multiview_above")), len(expected) == 5)
        np.testing.assert_allclose(ours, expected.reshape(ours.shape), atol=1e-6, err_msg=name)


def test_elevation_is_positive_above():
    pose = cameras.orbit_camera(30, 0)
    assert pose[1, 3] == pytest.approx(1.5 * 0.5)
    np.testing.assert_allclose(cameras.orbit_camera(0, 90)[:3, 3], [1.5, 0, 0], atol=1e-6)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_the_view_matrix_puts_the_origin_in_front():
    views = cameras.view_matrices(cameras.orbit_cameras(elevation=20))
    origin = views @ np.array([0, 0, 0, 1.0])
    np.testing.assert_allclose(origin[:, :3], [[0, 0, 1.5]] * 4, atol=1e-6)
    above = views @ np.array([0, 0.1, 0, 1.0])
    assert (above[:, 1] < 0).all()  # y is down in OpenCV's axes


def test_intrinsics_see_the_field_of_view():
    size = 256
    focal = cameras.intrinsics(size)[0, 0]
    assert 2 * np.degrees(np.arctan(size / 2 / focal)) == pytest.approx(cameras.FOV_Y, abs=1e-4)


def test_blenders_frame():
    np.testing.assert_array_equal(cameras.points_to_blender([0, 1, 0]), [0, 0, 1])  # up is z
    np.testing.assert_array_equal(cameras.points_to_blender([0, 0, 1]), [0, -1, 0])  # the front looks from -y
    r = np.random.default_rng(0)
    rotations = r.standard_normal((20, 4))
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    ours = Gaussians(r.normal(size=(20, 3)), np.ones(20), r.uniform(size=(20, 3)), rotations, r.uniform(size=(20, 3)))
    theirs = cameras.to_blender(ours)

    # The ellipsoid's axes turn as points do.
    axes = np.swapaxes(rotation_matrices(ours.rotations), 1, 2)
    expected = np.swapaxes(cameras.points_to_blender(axes), 1, 2)
    np.testing.assert_allclose(rotation_matrices(theirs.rotations), expected, atol=1e-6)
    np.testing.assert_allclose(cameras.from_blender(theirs).to_array(), ours.to_array(), atol=1e-6)


def test_a_camera_turns_with_its_points():
    pose = cameras.orbit_camera(25, 70)
    turned = cameras.pose_to_blender(pose)
    local = np.array([0.1, 0.2, -1.0, 1.0])
    np.testing.assert_allclose((turned @ local)[:3], cameras.points_to_blender((pose @ local)[:3]), atol=1e-6)
