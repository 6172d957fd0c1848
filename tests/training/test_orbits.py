"""Objects rendered as large as a user's image shows them, for the multi-view model and for LGM on its views."""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core.cameras import evaluation_poses, orbit_camera
from lgm_blender.training.data import orbits
from lgm_blender.training.data.mesh_renderer import ViewRenderer
from lgm_blender.training.data.objects import ObjectMesh, Submesh, about_up
from lgm_blender.training.data.placement import INPUTS
from lgm_blender.training.data.view_files import photos_path
from lgm_blender.training.data.views import TrainingViews, find_orbits, orbit_angles
from lgm_blender.worker.matting import recenter

SIZE = 64
COLORS = {"left": (1, 0, 0, 1), "right": (0, 1, 0, 1), "front": (0, 0, 1, 1), "back": (1, 1, 0, 1)}


def box(name: str) -> ObjectMesh:
    """A box whose four sides have colours of their own; "long" is longer than wide, "tall" and "flat" are not."""
    half = np.array({"long": (0.12, 0.1, 0.55), "tall": (0.2, 0.5, 0.2), "flat": (0.4, 0.1, 0.4)}[name])
    sides = {"left": (0, -1), "right": (0, 1), "front": (2, 1), "back": (2, -1), "top": (1, 1), "bottom": (1, -1)}
    corners = []
    for side, (axis, sign) in sides.items():
        others = [k for k in range(3) if k != axis]
        square = np.array([(-1, -1), (1, -1), (1, 1), (-1, -1), (1, 1), (-1, 1)], float)
        points = np.zeros((6, 3))
        points[:, others], points[:, axis] = square, sign
        color = np.tile(COLORS.get(side, (0.5, 0.5, 0.5, 1)), (6, 1))
        corners.append(np.concatenate([points * half, np.zeros((6, 2)), color], 1))
    return ObjectMesh(np.concatenate(corners).astype(np.float32), [Submesh(0, 36)])


@pytest.fixture(scope="module")
def renderer() -> ViewRenderer:
    return ViewRenderer(SIZE, distance_size=0)


def extent(view: np.ndarray) -> int:
    """The longer side of what a view [S, S, 4] shows, in pixels."""
    seen = view[..., 3] > 127
    return max(seen.any(0).sum(), seen.any(1).sum())


def reach(view: np.ndarray) -> float:
    """The side of the square about the frame's middle that holds all that a view shows, in pixels."""
    rows, columns = np.nonzero(view[..., 3] > 127)
    return 2 * np.abs(np.concatenate([rows, columns]) + 0.5 - SIZE / 2).max() + 1


def hue(view: np.ndarray) -> list[bool]:
    """Which of red, green and blue there is in the middle."""
    return (view[SIZE // 2, SIZE // 2, :3] > 60).tolist()


@pytest.mark.parametrize("name", ["tall", "flat", "long"])
@pytest.mark.parametrize(("elevation", "azimuth"), [(0, 0), (0, 130), (25, 250)])
def test_objects_are_as_large_as_in_use(renderer, name, elevation, azimuth):
    """The image fills 80% of the frame, and so does the front unless a side would then leave the frame."""
    rendered = orbits.orbit_pictures(renderer, box(name), [(elevation, azimuth)])[0]
    assert rendered.shape == (5, SIZE, SIZE, 4)
    assert abs(extent(rendered[4]) - 0.8 * SIZE) <= 1.5
    farthest = max(map(reach, rendered[:4]))
    assert farthest <= 0.97 * SIZE + 1
    assert abs(extent(rendered[0]) - 0.8 * SIZE) <= 1.5 or farthest >= 0.97 * SIZE - 2
    white = [255 - view[..., 3:] + view[..., :3] for view in rendered]
    straight = np.uint8(
        np.where(rendered[4][..., 3:] > 0, rendered[4][..., :3] * 255.0 / np.maximum(rendered[4][..., 3:], 1), 0)
    )
    users = recenter(np.concatenate([straight, rendered[4][..., 3:]], -1), size=SIZE)
    assert np.abs(users - white[4] / 255.0).mean() < 0.02  # what a user's recentring makes of it


def test_a_long_thing_is_smaller_in_its_front_view_than_in_its_image(renderer):
    rendered = orbits.orbit_pictures(renderer, box("long"), [(0, 0)])[0]
    assert extent(rendered[0]) < 0.6 * extent(rendered[4])
    tall = orbits.orbit_pictures(renderer, box("tall"), [(0, 0)])[0]
    np.testing.assert_array_equal(tall[0], tall[4])


@pytest.mark.parametrize("azimuth", [0, 90, 180, 270])
def test_an_orbit_starts_where_its_image_is_taken(renderer, azimuth):
    """Right is seen from azimuth 90, back from 180; and the views go round from there."""
    rendered = orbits.orbit_pictures(renderer, box("tall"), [(0, azimuth)])[0]
    hues = {"front": [False, False, True], "right": [False, True, False], "back": [True, True, False]}
    hues["left"] = [True, False, False]
    round_about = ["front", "right", "back", "left"]
    for i, view in enumerate(rendered[:4]):
        assert hue(view) == hues[round_about[(i + azimuth // 90) % 4]]


def test_what_is_not_there_gives_empty_pictures(renderer):
    mesh = ObjectMesh(np.full((3, 9), 5, np.float32), [Submesh(0, 3)])
    assert not orbits.orbit_pictures(renderer, mesh, [(0, 0)])[0].any()


def test_orbits_of_an_object_differ_and_are_the_same_every_time():
    starts = orbits.orbit_starts("train/a")
    assert starts.shape == (orbits.ORBITS, 2)
    np.testing.assert_array_equal(starts, orbits.orbit_starts("train/a"))
    assert starts[0].tolist() == [0, 0]
    assert starts[1, 1] in (90, 180, 270)
    assert not np.array_equal(starts, orbits.orbit_starts("train-1/a"))


def test_pictures_that_are_read_together_are_those_of_one_after_the_other(renderer, monkeypatch):
    """Few together, many, and of two meshes by turns; within what rasterising elsewhere in a framebuffer changes."""
    poses = orbits.placed_poses("a")[0][:7]
    meshes = [box("tall"), box("long")]
    single = ViewRenderer(SIZE, distance_size=SIZE // 2)
    single.at_once = 1
    several = ViewRenderer(SIZE, distance_size=SIZE // 2)
    for at_once in (3, 20):
        several.at_once = at_once
        for mesh in (*meshes, *meshes):
            pairs = zip(several.render(mesh, poses), single.render(mesh, poses), strict=True)
            for found, wanted in pairs:
                assert found.shape == wanted.shape
                assert (np.abs(found.astype(int) - wanted) > 2).mean() < 0.002


def test_rendered_orbits_are_those_of_each_object(renderer, tmp_path):
    path = tmp_path / "a.orbits.npy"
    assert orbits.render_orbits(box, ["tall", "long"], SIZE, path, processes=1, name="set") == []
    rendered = np.load(path)
    assert rendered.shape == (2, orbits.ORBITS, 5, SIZE, SIZE, 4)
    for row, name in zip(rendered, ("tall", "long"), strict=True):
        for pictures, start in zip(row, orbits.orbit_starts(f"set/{name}"), strict=True):
            np.testing.assert_array_equal(pictures, orbits.orbit_pictures(renderer, box(name), [start])[0])


@pytest.mark.parametrize("cameras", [orbits.placed_poses, evaluation_poses])
def test_placed_objects_with_their_images(renderer, tmp_path, cameras):
    path, names = tmp_path / "a.npy", ["tall", "flat", "long"]
    turn = cameras is orbits.placed_poses
    assert orbits.render_placed(box, names, SIZE, path, 1, cameras, turn) == []
    views = TrainingViews.from_files([(path, names)], "cpu", cameras)
    photos = np.load(photos_path(path))
    assert photos.shape == (3, SIZE, SIZE, 4)
    for number, name in enumerate(names):
        poses, angles = cameras(name)
        first = views.orbits[number, 0].tolist()
        assert first == [views.first[number] + i for i in range(4)]
        seen = views.pixels[first].numpy()
        assert abs(extent(photos[number]) - 0.8 * SIZE) <= 1.5
        assert max(map(extent, seen)) <= 0.97 * SIZE + 1
        mesh = orbits.placed_mesh(box(name), angles[0, 0], orbits.image_azimuth(name) if turn else 0.0)
        np.testing.assert_array_equal(seen, renderer.render(mesh, poses[:4])[0])
    if not turn:
        assert hue(views.pixels[views.first[0]].numpy()) == [False, False, True]


def test_cameras_of_placed_objects():
    for name in map(str, range(30)):
        poses, angles = orbits.placed_poses(name)
        assert poses.shape == (INPUTS + orbits.OTHERS, 4, 4)
        np.testing.assert_allclose([orbit_angles(pose)[0] for pose in poses], angles[:, 0], atol=1e-4)
        assert find_orbits(angles)[0].tolist() == [0, 1, 2, 3]
        assert angles[:4, 1].tolist() == [0, 90, 180, 270]
    elevations = [orbits.placed_poses(str(i))[1][0, 0] for i in range(200)]
    assert 0.6 < np.mean(np.array(elevations) == 0) < 0.8
    azimuths = [orbits.image_azimuth(str(i)) for i in range(200)]
    assert 0.5 < np.mean(np.array(azimuths) == 0) < 0.7


def test_a_turned_mesh_shows_in_front_what_was_seen_from_there(renderer):
    mesh = box("tall")
    turned = mesh.corners[:, :3] @ about_up(np.radians(40)).T
    seen = ObjectMesh(np.concatenate([turned, mesh.corners[:, 3:]], 1).astype(np.float32), mesh.parts)
    a = renderer.render(seen, orbit_camera(10, 0)[None])[0]
    b = renderer.render(mesh, orbit_camera(10, 40)[None])[0]
    np.testing.assert_array_equal(a[..., 3], b[..., 3])  # the light is another


def test_variants_images_are_worn_and_taken_from_above():
    """Half of them, inside of the object only; the same each time."""
    rng = np.random.default_rng(0)
    picture = np.zeros((SIZE, SIZE, 4), np.uint8)
    picture[16:48, 16:48] = [[[*rng.integers(0, 255, 3), 255] for _ in range(32)] for _ in range(32)]
    made = [orbits.worn(picture, f"train-1/{i}") for i in range(40)]
    changed = [not np.array_equal(one, picture) for one in made]
    assert 8 < sum(changed) < 32
    for i, one in enumerate(made):
        assert one.dtype == np.uint8
        assert np.array_equal(one[..., 3], picture[..., 3])
        assert not one[picture[..., 3] == 0].any()
        assert np.array_equal(one, orbits.worn(picture, f"train-1/{i}"))
    assert orbits.is_varied("train-1/a-b")
    assert not orbits.is_varied("train/a-b")
    starts = np.stack([orbits.orbit_starts(f"train-1/{i}") for i in range(50)])
    assert (starts[:, 0] == 0).all()
    assert (starts[:, 1, 0] == 0).all()
    assert starts[:, 2:, 0].min() < 0 < 30 < starts[:, 2:, 0].max()
