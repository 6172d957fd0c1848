"""Gaussians to a textured mesh, as a whole. Run with `python build.py test tests/worker/test_meshing.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapes
import torch

from lgm_blender.core.cameras import to_blender
from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.core.gaussians import Gaussians
from lgm_blender.core.messages import MESH_STAGES
from lgm_blender.worker import meshing
from lgm_blender.worker.jobs import Job
from lgm_blender.worker.meshing import MeshSettings, density, mesh_from_gaussians, topology
from lgm_blender.worker.meshing.fusion import fuse, surface
from lgm_blender.worker.meshing.refine import fit_outlines
from lgm_blender.worker.meshing.texture import depth_picture
from lgm_blender.worker.meshing.topology import decimate
from lgm_blender.worker.meshing.views import render_views, sphere_poses

SETTINGS = MeshSettings(faces=3000, texture_size=512, device="cpu")


@pytest.fixture(autouse=True)
def little_effort(monkeypatch):
    monkeypatch.setitem(meshing.EFFORT, "cpu", (20, 128, 96))


@pytest.fixture
def job():
    return Job("mesh", MESH_STAGES)


@pytest.fixture(scope="module")
def ball():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(meshing.EFFORT, "cpu", (20, 128, 96))
        return mesh_from_gaussians(shapes.sphere(), SETTINGS)


def tensors(mesh):
    return torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces.astype(np.int64))


def holes(mesh) -> int:
    """Of a closed surface in one piece: vertices - edges + faces = 2 - 2 holes."""
    vertices, faces = tensors(mesh)
    assert topology.components(faces, len(vertices))[0] == 1
    return (2 - (len(vertices) - len(faces) // 2)) // 2


def check_closed(mesh, settings=SETTINGS):
    vertices, faces = tensors(mesh)
    assert topology.defects(vertices, faces) == dict.fromkeys(topology.defects(vertices, faces), 0)
    assert settings.faces - 1 <= len(faces) <= settings.faces
    assert mesh.corner_uvs.shape == (*mesh.faces.shape, 2)
    assert 0 <= mesh.corner_uvs.min() <= mesh.corner_uvs.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(mesh.corner_normals, axis=2), 1, atol=1e-5)
    assert mesh.texture.shape == (settings.texture_size, settings.texture_size, 3)
    assert mesh.vertex_colors.shape == mesh.vertices.shape


def test_sphere(ball):
    check_closed(ball)
    assert holes(ball) == 0
    assert topology.volume(*tensors(ball)) == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.08)
    radii = np.linalg.norm(ball.vertices, axis=1)
    assert 0.48 < radii.min() < radii.max() < 0.52
    centers = ball.vertices[ball.faces].mean(1)
    outwards = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    normals = topology.face_normals(*tensors(ball)).numpy()
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    assert ((normals * outwards).sum(1) > 0.8).all()
    assert ((ball.corner_normals * outwards[:, None]).sum(2) > 0.9).all()


def test_box():
    mesh = mesh_from_gaussians(shapes.box(), SETTINGS)
    check_closed(mesh)
    assert holes(mesh) == 0
    halo = 1.5 * shapes.box().scales.max()  # splats seen from the side reach so far out
    assert 0.8 * 0.5 * 0.6 < topology.volume(*tensors(mesh)) < (0.8 + 2 * halo) * (0.5 + 2 * halo) * (0.6 + 2 * halo)
    assert np.abs(np.ptp(mesh.vertices, axis=0) - [0.8, 0.5, 0.6]).max() < 2 * halo
    # Flat sides meet at sharp edges: most corners are shaded as their own face is.
    normals = topology.face_normals(*tensors(mesh)).numpy()
    along = np.abs(mesh.corner_normals).max(2)
    assert (along > 0.97).mean() > 0.8
    assert len(normals) == len(mesh.faces)


def test_torus():
    mesh = mesh_from_gaussians(shapes.torus(), SETTINGS)
    check_closed(mesh)
    assert holes(mesh) == 1
    halo = 1.5 * shapes.torus().scales.max()
    assert 2 * np.pi**2 * 0.4 * 0.15**2 < topology.volume(*tensors(mesh)) < 2 * np.pi**2 * 0.4 * (0.15 + halo) ** 2


def test_outlines_are_those_of_the_gaussians():
    """In views that nothing was made from; the mesh of before is smaller all round."""
    gaussians = torch.from_numpy(shapes.torus().to_array())
    views = render_views(gaussians, sphere_poses(20), 128)
    judges = render_views(gaussians, sphere_poses(7), 128)
    vertices, faces = decimate(*surface(fuse(views, 96)), 3000)

    def wrong(vertices) -> float:
        pictures = torch.stack([depth_picture(vertices, faces, judges, v).isfinite() for v in range(7)])
        assert not any(topology.defects(vertices, faces).values())
        return float((pictures != (judges.alpha[:, 0] > 0.5)).sum() / (judges.alpha > 0.5).sum())

    before, after = wrong(vertices), wrong(fit_outlines(vertices, faces, views))
    assert after < 0.6 * before, (before, after)


def test_a_field_of_density_finds_the_same_surface(monkeypatch):
    monkeypatch.setattr(density, "STEPS", 96)
    monkeypatch.setitem(density.RAYS, "cpu", 512)
    told = []
    mesh = mesh_from_gaussians(shapes.torus(), replace(SETTINGS, method="field"), Job("", MESH_STAGES, told.append))
    check_closed(mesh)
    assert holes(mesh) == 1
    halo = 1.5 * shapes.torus().scales.max()
    ring = np.hypot(np.hypot(mesh.vertices[:, 0], mesh.vertices[:, 2]) - 0.4, mesh.vertices[:, 1])
    assert abs(np.median(ring) - 0.15) < halo
    assert ("fuse", 50, 96) in [(p.stage, p.step, p.steps) for p in told]
    colors, points = texels(mesh)
    inside = (np.abs(points[:, :2]) > 0.05).all(1)
    assert np.median(np.abs(colors - shapes.halves(points))[inside]) < 0.05


def texels(mesh) -> tuple[np.ndarray, np.ndarray]:
    """Colours [F, 3] in the middle of each face, as any program would look them up, and where that is [F, 3]."""
    uv = mesh.corner_uvs.mean(1)
    size = len(mesh.texture)
    column, row = (uv[:, 0] * size).astype(int), ((1 - uv[:, 1]) * size).astype(int)
    return mesh.texture[row, column] / 255, mesh.vertices[mesh.faces].mean(1)


def test_colours_are_where_they_should_be(ball):
    for colors, points in (texels(ball), (ball.vertex_colors / 255, ball.vertices)):
        inside = (np.abs(points[:, :2]) > 0.06).all(1)  # away from the borders between colours
        assert inside.mean() > 0.6
        assert np.abs(colors - shapes.halves(points))[inside].max() < 0.12


def test_charts_do_not_overlap(ball):
    size = 2048
    corners = torch.from_numpy(ball.corner_uvs).double() * size
    uses = torch.zeros(size, size)
    for triangle in corners:
        low, high = triangle.amin(0).floor().long(), triangle.amax(0).ceil().long()
        y, x = torch.meshgrid(*(torch.arange(low[k], high[k]) + 0.5 for k in (1, 0)), indexing="ij")
        a, b, c = triangle
        sides = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        inside = torch.stack(sides)
        uses[low[1] : high[1], low[0] : high[0]] += ((inside > 1e-3).all(0) | (inside < -1e-3).all(0)).float()
    assert uses.max() == 1
    assert uses.mean() > 0.4


def test_background_does_not_creep_in(ball):
    """Seen from far away, the picture is averaged over whole charts and what lies between them."""
    small = ball.texture.reshape(64, 8, 64, 8, 3).mean((1, 3)) / 255
    # Red and blue only ever mix with each other: black or white between the charts would show.
    assert np.abs(small[..., 0] + small[..., 2] - 1).max() < 0.1


def test_scale_and_place_are_kept(ball):
    moved = shapes.sphere(radius=0.5)
    moved = Gaussians(
        moved.positions * 40 + [100, -20, 7], moved.opacities, moved.scales * 40, moved.rotations, moved.colors
    )
    mesh = mesh_from_gaussians(moved, SETTINGS)
    np.testing.assert_allclose(mesh.vertices.mean(0), [100, -20, 7], atol=0.5)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), np.ptp(ball.vertices, axis=0) * 40, rtol=0.02)


@pytest.mark.parametrize("up", ["y", "-y", "z", "-z", "x", "-x"])
def test_any_axis_can_be_up(up):
    """A tall box whose top is green, lying as other programs would have it, stands in the result."""
    gaussians = shapes.box(3000, (0.3, 0.9, 0.4))
    lying = {
        "y": lambda p: p,
        "-y": lambda p: p * [1, -1, -1],
        "z": lambda p: np.stack([p[:, 0], -p[:, 2], p[:, 1]], 1),
        "-z": lambda p: np.stack([p[:, 0], p[:, 2], -p[:, 1]], 1),
        "x": lambda p: np.stack([p[:, 1], -p[:, 0], p[:, 2]], 1),
        "-x": lambda p: np.stack([-p[:, 1], p[:, 0], p[:, 2]], 1),
    }[up]
    round_ones = np.full((len(gaussians), 3), gaussians.scales.max() * 0.7)
    gaussians = Gaussians(
        lying(gaussians.positions), gaussians.opacities, round_ones, gaussians.rotations, gaussians.colors
    )
    mesh = mesh_from_gaussians(gaussians, replace(SETTINGS, faces=500, up=up))
    np.testing.assert_allclose(
        np.ptp(mesh.vertices, axis=0), [0.3, 0.9, 0.4], atol=0.08
    )  # splats seen from the side reach further
    colors, points = texels(mesh)
    assert colors[points[:, 1] > 0.2, 1].mean() > 0.7
    assert colors[points[:, 1] < -0.2, 1].mean() < 0.1


def test_blenders_frame_is_z_up():
    mesh = mesh_from_gaussians(to_blender(shapes.box(3000, (0.3, 0.9, 0.4))), replace(SETTINGS, up="z"))
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), [0.3, 0.9, 0.4], atol=0.07)


def test_what_is_inside_is_left_out():
    outer, inner = shapes.sphere(), shapes.sphere(2000, 0.2)
    mesh = mesh_from_gaussians(
        Gaussians.from_array(np.concatenate([outer.to_array(), inner.to_array()])), replace(SETTINGS, faces=2000)
    )
    assert holes(mesh) == 0
    assert np.linalg.norm(mesh.vertices, axis=1).min() > 0.45


def test_specks_are_left_out():
    specks = shapes.sphere(12, 1.2).to_array()
    specks[:, 4:7] = 0.01
    mesh = mesh_from_gaussians(Gaussians.from_array(np.concatenate([shapes.sphere().to_array(), specks])), SETTINGS)
    assert holes(mesh) == 0
    assert np.abs(mesh.vertices).max() < 0.55


def test_one_speck_far_away_does_not_shrink_the_rest(job):
    speck = shapes.sphere().to_array()[:1] + np.float32([500, 0, 0] + 11 * [0])
    mesh = mesh_from_gaussians(Gaussians.from_array(np.concatenate([shapes.sphere().to_array(), speck])), SETTINGS, job)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), 1, atol=0.04)
    assert any("far away" in warning for warning in job.warnings)


def test_faint_and_broken_ones_are_left_out(job):
    rows = shapes.sphere().to_array()
    broken = rows[:7].copy()
    broken[:, 0] = np.nan
    faint = rows[:5] + np.float32([3, 0, 0, -0.979] + 10 * [0])
    mesh = mesh_from_gaussians(Gaussians.from_array(np.concatenate([rows, broken, faint])), SETTINGS, job)
    assert holes(mesh) == 0
    assert job.warnings == ["7 Gaussians were left out: their values are not finite."]


def test_a_room_is_said_to_be_one(job):
    """Walls around a table full of things."""
    things = [shapes.sphere(1500, 0.1, (x, -0.1, z)).to_array() for x in (-0.3, 0, 0.3) for z in (-0.3, 0, 0.3)]
    walls = shapes.box(3000, (1.4, 1.2, 1.4)).to_array()
    mesh = mesh_from_gaussians(Gaussians.from_array(np.concatenate([*things, walls])), SETTINGS, job)
    assert any("in a room" in warning for warning in job.warnings)
    check_closed(mesh)


def test_more_faces_than_there_are(job):
    mesh = mesh_from_gaussians(shapes.sphere(2000), replace(SETTINGS, faces=900_000), job)
    vertices, faces = tensors(mesh)
    assert not any(topology.defects(vertices, faces).values())
    assert any("no detail for 900,000" in warning for warning in job.warnings)


@pytest.mark.parametrize(
    ("gaussians", "sentence"),
    [
        (lambda: shapes.sphere().select(np.zeros(6000, bool)), "no Gaussian is visible"),
        (lambda: replace(shapes.sphere(), opacities=np.zeros(6000)), "no Gaussian is visible"),
        (lambda: replace(shapes.sphere(), positions=np.full((6000, 3), np.nan)), "no Gaussian is visible"),
        (lambda: shapes.sphere().select(np.arange(1)), "only one Gaussian is visible, and 16 are needed"),
        (lambda: shapes.sphere().select(np.arange(9)), "only 9 Gaussians are visible"),
        (lambda: replace(shapes.sphere(), opacities=np.full(6000, 0.02)), "nothing solid"),
        (lambda: replace(shapes.sphere(), scales=np.full((6000, 3), 1e-6)), "nothing solid"),
        (lambda: replace(shapes.sphere(), positions=shapes.sphere().positions * 1e30), "their size is"),
    ],
)
def test_gaussians_without_a_surface(gaussians, sentence):
    with pytest.raises(LGMError, match=sentence) as caught:
        mesh_from_gaussians(gaussians(), SETTINGS)
    assert caught.value.kind == "bad_input"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"faces": 4}, "must be from 100 to 1,000,000, not 4"),
        ({"faces": 10_000_000}, "must be from 100 to 1,000,000, not 10,000,000"),
        ({"texture_size": 300}, "must be 512, 1024, 2048 or 4096, not 300"),
        ({"up": "w"}, "no axis 'w'"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"method": "nerf"}, "no method 'nerf'"),
    ],
)
def test_settings_out_of_range(change, sentence):
    with pytest.raises(LGMError, match=sentence):
        mesh_from_gaussians(shapes.sphere(100), replace(SETTINGS, **change))


def test_progress_tells_of_every_stage():
    told = []
    job = Job("mesh", MESH_STAGES, told.append)
    mesh_from_gaussians(shapes.sphere(2000), SETTINGS, job)
    assert list(job.timings) == list(MESH_STAGES)
    assert job.warnings == []
    assert list(dict.fromkeys(p.stage for p in told)) == list(MESH_STAGES)
    for stage in MESH_STAGES:
        steps = [(p.step, p.steps) for p in told if p.stage == stage]
        assert steps[0] == (0, 0)
        assert steps == sorted(steps)
        assert all(step <= count for step, count in steps)


@pytest.mark.parametrize("stage", MESH_STAGES)
def test_cancel_in_any_stage(stage):
    seen = []

    def cancelled() -> bool:
        return stage in seen

    with pytest.raises(Cancelled):
        mesh_from_gaussians(
            shapes.sphere(2000), SETTINGS, Job("", MESH_STAGES, lambda p: seen.append(p.stage), cancelled)
        )
    assert seen[-1] == stage
