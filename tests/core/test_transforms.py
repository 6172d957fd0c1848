"""Training views on disk: what transforms.json says. Run: pytest tests/core/test_transforms.py"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lgm_blender.core import cameras
from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.transforms import (
    caption_from_name,
    file_name,
    new_folder,
    read_transforms,
    unique_names,
    write_transforms,
)


def write(folder, **changes):
    """An object of two views, with changes to its transforms.json; None takes a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    poses = cameras.orbit_cameras()[:2]
    for i in range(2):
        (folder / file_name(i)).write_bytes(b"a picture")
    write_transforms(folder, poses, 64, "red car", "val")
    content = json.loads((folder / "transforms.json").read_bytes()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def test_round_trip(tmp_path):
    found = read_transforms(write(tmp_path / "ein Auto"))
    assert (found.name, found.caption, found.split, found.y_up) == ("ein Auto", "red car", "val", True)
    focal = 32 / math.tan(math.radians(49.1) / 2)
    for frame, pose in zip(found.frames, cameras.orbit_cameras(), strict=False):
        np.testing.assert_allclose(frame.pose, pose, atol=1e-7)
        np.testing.assert_allclose(frame.focal, focal)
        assert (frame.center, frame.size) == ((32, 32), (64, 64))
    assert [frame.file.name for frame in found.frames] == ["000.png", "001.png"]


NO_INTRINSICS = dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h", "up"))


def test_nerf_s_own_form(tmp_path):
    """camera_angle_x alone, names without a suffix, one file per split."""
    frames = [{"file_path": f"./00{i}", "transform_matrix": np.eye(4).tolist()} for i in range(2)]
    folder = write(tmp_path / "lego", **NO_INTRINSICS, camera_angle_x=0.6911112, frames=frames)
    (folder / "transforms.json").rename(folder / "transforms_train.json")
    found = read_transforms(folder)
    assert not found.y_up
    assert found.frames[0].center is found.frames[0].size is None
    assert found.frames[0].focal[0] == pytest.approx(1111.111 / 800, rel=1e-5)
    assert found.frames[1].file == folder / "001.png"


def test_intrinsics_of_each_view_and_of_other_names(tmp_path):
    frames = [
        {"file_path": "000.png", "transform_matrix": np.eye(4)[:3].tolist(), "fl_x": 50.0, "cx": 30},
        {"file_path": "000.png", "transform_matrix": (np.eye(4) * [2, 2, 2, 1]).tolist(), "camera_angle_y": 1.0},
    ]
    nothing = {"fl_x": None, "fl_y": None}
    found = read_transforms(write(tmp_path / "a", frames=frames, **nothing, camera_angle_x=1.0, w=64, h=32, cy=16))
    first, second = found.frames
    assert (first.focal, first.center) == ((50, 50), (30, 16))
    assert second.focal == pytest.approx((32 / math.tan(0.5), 16 / math.tan(0.5)))
    np.testing.assert_allclose(second.pose, np.eye(4))  # a camera's own scale is no part of its pose


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (None, "not 4 × 4 numbers"),
        ("text", ""),
        ([[1, 2], [3, 4]], "not 4 × 4 numbers"),
        ([[1, 2], [3]], ""),
        ((np.eye(4) * np.nan).tolist(), "not 4 × 4 numbers"),
        (np.zeros((4, 4)).tolist(), "not a camera's"),
        (np.diag([1, 1, -1, 1]).tolist(), "mirrored"),
        ((np.eye(4) + 0.2 * np.eye(4, k=1)).tolist(), "skewed"),
    ],
)
def test_a_broken_view_is_left_out(tmp_path, matrix, reason):
    frames = [
        {"file_path": "000", "transform_matrix": matrix},
        {"file_path": "001", "transform_matrix": [*np.eye(4).tolist()]},
    ]
    found = read_transforms(write(tmp_path / "a", frames=frames))
    assert [frame.file.name for frame in found.frames] == ["001.png"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("view 0: ")
    assert reason in found.problems[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": None}, "lists no frames"),
        ({"frames": {}}, "lists no frames"),
        ({"frames": [3]}, "no file_path"),
        ({"frames": [{"file_path": "gone.png", "transform_matrix": np.eye(4).tolist()}]}, "there is no file"),
        ({"fl_x": "wide"}, "fl_x is not a number"),
        ({"w": 0}, "no size"),
        ({"frames": [{"file_path": "a" * 5000, "transform_matrix": []}]}, "name too long|no file"),
        ({"fl_x": 10**400}, "int too large"),
        ({"frames": [{"file_path": "\\\\host\\a.png", "transform_matrix": []}]}, "on another machine"),
        ({"frames": [{"file_path": "//host/a.png", "transform_matrix": []}]}, "on another machine"),
        ({**NO_INTRINSICS, "camera_angle_x": None}, "what its lens is"),
        ({**NO_INTRINSICS, "camera_angle_x": 4.0}, "below 180°"),
        ({"fl_x": -1}, "what its lens is"),
        ({"k1": 0.1}, "lens distorts"),
        ({"camera_model": "OPENCV_FISHEYE"}, "lens distorts"),
    ],
)
def test_an_object_without_a_usable_view(tmp_path, changes, words):
    with pytest.raises(LGMError, match=words):
        read_transforms(write(tmp_path / "a", **changes))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe\x00", b"3", b"[" * 100_000])
def test_a_file_that_is_not_json(tmp_path, text):
    (tmp_path / "transforms.json").write_bytes(text)
    with pytest.raises(LGMError, match=r"is not JSON|lists no frames"):
        read_transforms(tmp_path)


def test_a_folder_is_whole_or_not_there(tmp_path):
    def fill(name, overwrite=False, fail=False):
        with new_folder(tmp_path, name, overwrite) as folder:
            (folder / "transforms.json").write_text("{}")
            assert fail is False

    with pytest.raises(AssertionError):
        fill("a", fail=True)
    assert not list(tmp_path.iterdir())
    fill("a")
    with pytest.raises(LGMError, match="is there already"):
        fill("a")
    (tmp_path / "a" / "old").touch()
    with pytest.raises(AssertionError):
        fill("a", overwrite=True, fail=True)
    assert (tmp_path / "a" / "old").exists()
    fill("a", overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "transforms.json"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(LGMError, match="is there already"):  # not an object's: never replaced
        fill("photos", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(LGMError, match="could not be written"), new_folder(tmp_path / "file" / "x", "a"):
        pass


def test_captions():
    assert caption_from_name("Red_Car.001") == "red car"
    assert caption_from_name("Bäume-23") == "bäume"
    assert caption_from_name("00012") == ""


def test_names_that_no_file_system_confuses():
    assert unique_names(["a", "A", "b", "a", "a_2"]) == ["a", "A_2", "b", "a_3", "a_2_2"]


# Cameras


@pytest.mark.parametrize(("count", "level", "raised"), [(36, 16, 8), (35, 8, 4), (18, 8, 4), (17, 4, 0), (4, 4, 0)])
def test_fewer_views_keep_whole_rings(count, level, raised):
    poses, angles = cameras.view_poses("a", count)
    assert poses.shape == (count, 4, 4)
    assert (angles[:, 0] == 0).sum() == level
    np.testing.assert_allclose(np.diff(angles[:level, 1]), 360 / level)
    ring = angles[level : level + raised]
    assert len(set(ring[:, 0].tolist())) == min(1, raised)
    whole = cameras.view_poses("a")[1]
    assert {tuple(angle) for angle in angles[:-12].tolist()} <= {tuple(angle) for angle in whole.tolist()}


def test_into_sphere():
    center, factor = cameras.into_sphere([-1, 0, 2], [1, 4, 2])
    np.testing.assert_allclose(center, [0, 2, 2])
    assert factor * math.hypot(2, 4) == pytest.approx(2 * 0.62)


def test_poses_from_blender_and_back():
    poses = cameras.view_poses("a")[0]
    for pose in poses[:3]:
        np.testing.assert_allclose(cameras.pose_from_blender(cameras.pose_to_blender(pose)), pose, atol=1e-7)
    there = np.stack([cameras.pose_to_blender(pose) for pose in poses])
    np.testing.assert_allclose(cameras.pose_from_blender(there), poses, atol=1e-7)
