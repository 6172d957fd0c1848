"""Objects to train on that nobody modelled: procedural ones, and real ones varied."""

from __future__ import annotations

import json
import zipfile
from itertools import permutations

import numpy as np
import pytest

from lgm_blender.core.cameras import OBJECT_RADIUS, orbit_cameras, view_poses
from lgm_blender.training.__main__ import main
from lgm_blender.training.data import objects, procedural
from lgm_blender.training.data.mesh_renderer import ViewRenderer
from lgm_blender.training.data.objects import ObjectMesh, Submesh
from lgm_blender.training.data.variants import GAMMA, varied
from lgm_blender.training.data.views import TrainingViews

NAMES = [f"procedural-{i:05}" for i in range(60)]


@pytest.fixture(scope="module")
def shapes() -> dict[str, ObjectMesh]:
    return {name: procedural.procedural(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES[:20])
def test_a_shape_fills_the_sphere_and_is_all_rendered(shapes, name):
    mesh = shapes[name]
    position = mesh.corners[:, :3]
    low, high = position.min(0), position.max(0)
    np.testing.assert_allclose(low, -high, atol=1e-5)
    assert np.linalg.norm(high - low) == pytest.approx(2 * OBJECT_RADIUS, rel=1e-5)
    assert mesh.corners.dtype == np.float32
    assert np.isfinite(mesh.corners).all()
    assert mesh.corners[:, 3:].min() >= 0
    assert mesh.corners[:, 3:].max() <= 1
    ends = [0, *np.cumsum([part.count for part in mesh.parts])]
    assert [part.first for part in mesh.parts] == ends[:-1]
    assert ends[-1] == len(mesh.corners)


def test_a_name_is_a_shape(shapes):
    again = procedural.procedural(NAMES[3])
    np.testing.assert_array_equal(again.corners, shapes[NAMES[3]].corners)
    assert len({mesh.corners.tobytes() for mesh in shapes.values()}) == len(NAMES)


def test_shapes_are_of_many_kinds(shapes):
    """Wide ones and tall ones, plain and patterned, of one colour and of several, most the same on both sides."""
    sizes = np.array([np.ptp(mesh.corners[:, :3], axis=0) for mesh in shapes.values()])
    assert (sizes.argmax(1) == 1).mean() == pytest.approx(0.4, abs=0.25)
    patterned = [any(part.texture is not None for part in mesh.parts) for mesh in shapes.values()]
    assert 0.2 < np.mean(patterned) < 0.9
    colors = [len(np.unique(mesh.corners[:, 5:8], axis=0)) for mesh in shapes.values()]
    assert 1 in colors
    assert max(colors) > 2

    def lopsided(mesh):
        position = mesh.corners[:, :3].astype(np.float64)
        histogram = [
            np.histogramdd(p, 12, [(-OBJECT_RADIUS, OBJECT_RADIUS)] * 3)[0] for p in (position, position * (-1, 1, 1))
        ]
        return np.abs(histogram[0] - histogram[1]).sum() / (2 * len(position))

    assert np.median([lopsided(mesh) for mesh in shapes.values()]) < 0.3


@pytest.mark.parametrize("make", [procedural._superquadric, procedural._lathed, procedural._torus, procedural._solid])
def test_solids_are_closed(make):
    """Whoever walks round one comes back to where they were, and its ends are points, or it is a ring."""
    for seed in range(30):
        points = make(np.random.default_rng(seed))
        assert points.shape == (procedural.ALONG, procedural.AROUND, 3)
        np.testing.assert_allclose(points[:, 0], points[:, -1], atol=1e-6)
        ring = np.allclose(points[0], points[-1], atol=1e-6)
        tips = np.ptp(points[[0, -1]], axis=1).max() < 1e-6
        assert ring or tips


@pytest.mark.parametrize("kind", range(12))
def test_patterns_have_two_colours_and_no_seam(kind):
    one, other = np.array([200.0, 40, 40]), np.array([30.0, 60, 220])
    texture = procedural._pattern(np.random.default_rng(kind), one, other)
    assert texture.shape == (procedural.TEXTURE, procedural.TEXTURE, 4)
    assert (texture[..., 3] == 255).all()
    share = (texture[..., :3] - one) @ (other - one) / np.square(other - one).sum()
    assert share.min() > -0.01
    assert share.max() < 1.01
    assert np.ptp(share) > 0.5
    np.testing.assert_allclose(texture[..., :3], one + share[..., None] * (other - one), atol=1)


def test_shapes_are_seen_from_everywhere(shapes):
    renderer = ViewRenderer(48, distance_size=0)
    for name in NAMES[:12]:
        views, _ = renderer.render(shapes[name], orbit_cameras())
        share = (views[..., 3] > 128).mean((1, 2))
        assert share.min() > 0.002, name
        assert share.max() > 0.02, name


# Varied


@pytest.fixture
def painted() -> ObjectMesh:
    """Random triangles of two materials and one texture, with each point its opposite."""
    rng = np.random.default_rng(0)
    corners = np.concatenate([rng.uniform(-0.5, 0.5, (36, 3)), rng.uniform(0, 1, (36, 2)), np.ones((36, 4))], 1)
    corners[18:, :3] = -corners[:18, :3]
    corners[:12, 5:8], corners[12:24, 5:8] = RED, BLUE
    texture = rng.integers(0, 256, (8, 8, 4)).astype(np.uint8)
    return ObjectMesh(corners.astype(np.float32), [Submesh(0, 24), Submesh(24, 12, texture)])


RED, BLUE = np.array([0.8, 0.1, 0.2]), np.array([0.15, 0.3, 0.7])


def test_materials_change_together_or_each_in_its_own_way(painted):
    """A material stays one material; in about half of the variants one shuffle and one gamma explain both."""
    together = []
    for variant in range(1, 41):
        made = varied(painted, "wedge", variant)
        assert np.ptp(made.corners[:12, 5:8], axis=0).max() == 0
        assert np.ptp(made.corners[12:24, 5:8], axis=0).max() == 0
        np.testing.assert_array_equal(made.corners[24:, 5:8], 1)  # white times the texture
        np.testing.assert_array_equal(made.parts[1].texture[..., 3], painted.parts[1].texture[..., 3])
        first, second = np.log(made.corners[[0, 12], 5:8])
        gammas = [(first / np.log(RED[list(p)]), second / np.log(BLUE[list(p)])) for p in permutations(range(3))]
        together.append(any(np.allclose(one, two, rtol=1e-3) for one, two in gammas))
        within = [np.abs(np.log(one)).max() <= GAMMA + 1e-3 for one, _ in gammas]
        assert any(within)
    assert 0.25 < np.mean(together) < 0.75


def test_it_gets_wider_or_narrower_upwards(painted):
    up = painted.corners[:, 1].astype(np.float64)
    slopes = []
    for variant in range(1, 21):
        made = varied(painted, "wedge", variant)
        for axis in (0, 2):
            across = painted.corners[:, axis].astype(np.float64)
            known = np.stack([across, across * up, np.ones_like(up)], 1)  # scale · x · (1 + slope · y) + shift
            solution = np.linalg.lstsq(known, made.corners[:, axis], rcond=None)[0]
            np.testing.assert_allclose(known @ solution, made.corners[:, axis], atol=1e-5)
        slopes.append(solution[1] / solution[0])
    assert min(slopes) < -0.2
    assert max(slopes) > 0.2


# The command


@pytest.fixture
def archive(tmp_path):
    """An objects.zip that is only an index: `render --procedural` reads no more."""
    path = tmp_path / "objects.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("index.json", json.dumps([{"id": "a", "split": "train", "caption": "cube"}]))
    return path


def test_the_command_renders_them(archive, tmp_path, capsys):
    words = ["render", "--objects", archive, "--work", tmp_path, "--procedural", 3, "--size", 16, "--processes", 1]
    assert main([*map(str, words)]) == 0
    assert "procedural: 3 objects" in capsys.readouterr().out
    files = [(tmp_path / "procedural.npy", NAMES[:3]), (tmp_path / "procedural.npy", NAMES[:1])]
    views = TrainingViews.from_files(files, "cpu")
    assert len(views) == 4
    np.testing.assert_allclose(views.poses[: len(view_poses(NAMES[0])[0])], view_poses(NAMES[0])[0], atol=1e-6)
    number = len(views.pixels) // 4
    assert (views.pixels[:number] == views.pixels[3 * number :]).all()
    assert views.pixels[..., 3].float().mean() > 2
    rendered, _ = ViewRenderer(16, distance_size=8).render(procedural.procedural(NAMES[1]), view_poses(NAMES[1])[0])
    assert np.abs(views.pixels[number : 2 * number].numpy().astype(int) - rendered).max() <= 1


def test_centred_puts_anything_into_the_sphere():
    positions = np.random.default_rng(1).normal(3, 5, (50, 3))
    made = objects.centred(positions, 0.5)
    assert np.linalg.norm(np.ptp(made, axis=0)) == pytest.approx(1)
    np.testing.assert_allclose(made.max(0), -made.min(0))
