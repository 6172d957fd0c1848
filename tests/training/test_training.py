"""Training's parts: cameras, augmentations, samples, losses, and short runs. Run: python build.py test tests/worker"""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from archives import box, write_archive
from PIL import Image
from tiny_preset import LGM_CONFIG

from lgm_blender.core import cameras
from lgm_blender.core.cameras import orbit_camera, orbit_cameras, view_matrices
from lgm_blender.core.errors import LGMError
from lgm_blender.training.data import augment, latents, objects, orbits, view_files
from lgm_blender.training.data.captions import make_tokenizer
from lgm_blender.training.data.latents import EncodedOrbits
from lgm_blender.training.data.variants import varied
from lgm_blender.training.data.views import TrainingViews, find_orbits, opencv_matrices, orbit_angles
from lgm_blender.training.loops import trainer as schedule
from lgm_blender.training.loops.lgm import evaluate_lgm, render_views, train_lgm
from lgm_blender.training.loops.lpips import LPIPS
from lgm_blender.training.loops.multiview import (
    MINI_UNET,
    MultiViewModel,
    save_multiview,
    train_multiview,
    unpack_multiview,
)
from lgm_blender.training.loops.muon import divided, orthogonalized
from lgm_blender.training.loops.trainer import LOG_EVERY, AveragedWeights, Clock, Recorded, Trainer, cosine_schedule
from lgm_blender.training.loops.vae import MINI, train_vae
from lgm_blender.training.settings import LGMSettings, MultiViewSettings, RunSettings, VAESettings
from lgm_blender.worker import rendering
from lgm_blender.worker.lgm.rays import pixel_rays
from lgm_blender.worker.multiview.loading import load_vae
from lgm_blender.worker.multiview.pipeline import MultiViewPipeline
from lgm_blender.worker.multiview.vae import ChromaVAE
from lgm_blender.worker.quantization import load_file

TOY = replace(LGM_CONFIG, position="ray", scale="pixel")
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def cube() -> dict[str, np.ndarray]:
    """A cube whose bounding-box diagonal is 1.4."""
    return box((0.7 / math.sqrt(3),) * 3, colors=COLORS)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An objects.zip of two cubes, one of them textured on one side, for training and one for validation."""
    path = tmp_path_factory.mktemp("objects") / "objects.zip"
    textured = cube()
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:8] = (200, 100, 50)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True)
    textured["texture_0"] = np.frombuffer(buffer.getvalue(), np.uint8)
    textured["material_texture"][5] = 0
    textured["material_color"][5] = 255
    textured["uv"] = np.array([[x, y] for x in (0, 1) for y in (0, 1) for _ in (0, 1)], np.float16)
    return write_archive(path, {"a": cube(), "b": textured, "c": cube()}, "train", "train", "val")


@pytest.fixture(scope="module")
def rendered_path(archive, tmp_path_factory):
    """The training views of the two cubes at 32²."""
    path = tmp_path_factory.mktemp("views") / "train.npy"
    assert view_files.render_objects(partial(objects.read_object, archive), ["a", "b"], 32, path, processes=1) == []
    return path


@pytest.fixture(scope="module")
def rendered(rendered_path):
    return np.load(rendered_path)


@pytest.fixture(scope="module")
def views(rendered_path):
    return TrainingViews.from_files([(rendered_path, ["a", "b"])], "cpu")


@pytest.fixture(scope="module")
def orbits_of_cubes(archive, tmp_path_factory):
    """The orbits of the two cubes at 32², and from where they start."""
    path = tmp_path_factory.mktemp("orbits") / "train.orbits.npy"
    assert orbits.render_orbits(partial(objects.read_object, archive), ["a", "b"], 32, path, 1, "train") == []
    return np.load(path), np.stack([orbits.orbit_starts(f"train/{name}") for name in "ab"])


# Rendering


def test_each_side_of_a_cube_is_seen_from_its_side(rendered):
    middle = rendered[0, :, 16, 16, :3].astype(int)
    front, right, back, left = (middle[i * 4].argsort()[::-1] for i in range(4))
    assert middle[0][1] < 40  # +z is magenta
    assert set(front[:2]) == {0, 2}
    assert right[0] == 1  # +x is green
    assert set(back[:2]) == {1, 2}  # -z is cyan
    assert left[0] == 0  # -x is red


def test_a_texture_is_the_right_way_up(rendered):
    front = rendered[1, 0].astype(int)
    assert front[11, 16, 0] > 120  # its upper half is orange
    assert front[20, 16, :3].max() < 20  # its lower half is black


def test_colours_are_premultiplied_and_the_background_is_clear(rendered):
    assert (rendered[..., :3] <= rendered[..., 3:]).all()
    assert (rendered[..., 0, 0, 3] == 0).all()


def test_a_cube_has_the_size_that_the_camera_says(rendered):
    wide = (rendered[0, 0, 16, :, 3] > 127).sum()
    near = cameras.OBJECT_RADIUS / math.sqrt(3)  # half the cube's side, and its front's distance before the centre
    half = math.tan(math.radians(49.1 / 2)) * (1.5 - near)
    assert wide == pytest.approx(32 * near / half, abs=1)


def test_training_cameras_are_what_they_say():
    poses, angles = cameras.view_poses("some id")
    assert poses.shape == (cameras.VIEWS, 4, 4)
    for pose, (elevation, azimuth) in zip(poses, angles, strict=True):
        np.testing.assert_allclose(pose, orbit_camera(elevation, azimuth), atol=1e-5)
    assert (angles[: cameras.RING, 0] == 0).all()
    np.testing.assert_array_equal(poses, cameras.view_poses("some id")[0])
    assert not np.array_equal(poses, cameras.view_poses("another id")[0])


def test_varied_objects_fill_the_same_sphere_and_differ(archive):
    with zipfile.ZipFile(archive) as file:
        mesh = objects.read_mesh(file, "b")
    one, again, two = varied(mesh, "b", 1), varied(mesh, "b", 1), varied(mesh, "b", 2)
    for mine in (mesh, one, two):
        position = mine.corners[:, :3]
        assert np.linalg.norm(position.max(0) - position.min(0)) == pytest.approx(2 * cameras.OBJECT_RADIUS, rel=1e-3)
        np.testing.assert_allclose(position.max(0), -position.min(0), atol=1e-3)
    np.testing.assert_array_equal(one.corners, again.corners)
    assert np.abs(one.corners - two.corners).max() > 0.05
    assert np.abs(one.corners[:, :3] - mesh.corners[:, :3]).max() > 0.01
    assert (one.corners[:, 5:8] >= 0).all()
    assert (one.corners[:, 5:8] <= 1).all()


# Batches


def test_orbits_are_four_views_a_quarter_turn_apart(views):
    generator = torch.Generator().manual_seed(0)
    chosen, order = views.orbit(64, generator)
    angles = views.angles[order]
    assert (order // cameras.VIEWS == chosen[:, None]).all()
    torch.testing.assert_close(angles[..., 0], angles[:, :1, 0].expand(-1, 4), atol=2, rtol=0)
    turns = (angles[:, 1:, 1] - angles[:, :-1, 1]) % 360
    torch.testing.assert_close(turns, torch.full_like(turns, 90), atol=4, rtol=0)
    assert len(set(angles[:, 0, 0].round().tolist())) > 1  # both rings come


def test_relative_poses_put_the_first_view_in_front(views):
    generator = torch.Generator().manual_seed(0)
    _, order = views.orbit(8, generator)
    poses = views.relative_poses(order, order[:, 0])
    for i in range(8):
        elevation = views.angles[order[i, 0], 0].item()
        torch.testing.assert_close(poses[i], torch.from_numpy(orbit_cameras(elevation)), atol=1e-5, rtol=0)


def test_other_views_are_of_the_same_object_and_never_inputs(views):
    generator = torch.Generator().manual_seed(0)
    chosen, inputs = views.orbit(32, generator)
    others = views.others(chosen, inputs, 30, generator)
    assert (others // cameras.VIEWS == chosen[:, None]).all()
    assert not (others[:, :, None] == inputs[:, None]).any()
    assert all(len(set(row)) == 30 for row in others.tolist())


def test_objects_may_have_views_of_their_own_number():
    many, few = cameras.view_poses("x")[0], np.concatenate([orbit_cameras(10), orbit_cameras(-5, (20, 70))])
    pixels = torch.arange(len(many) + len(few), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 4)
    views = TrainingViews.from_rows(pixels, np.concatenate([many, few]), [len(many), len(few)])
    generator = torch.Generator().manual_seed(0)
    chosen, inputs = views.orbit(64, generator)
    others = views.others(chosen, inputs, 4, generator)
    small = chosen == 1
    assert small.any()
    assert set(inputs[small].unique().tolist()) == {36, 37, 38, 39}
    assert set(others[small].unique().tolist()) == {40, 41}  # they come twice, since there are but two
    assert (others[~small] < 36).all()


def test_objects_without_an_orbit_are_refused():
    poses = np.stack([orbit_camera(0, azimuth) for azimuth in (0, 90, 180, 250)])
    with pytest.raises(ValueError, match="quarter turn"):
        TrainingViews.from_rows(torch.zeros(4, 2, 2, 4, dtype=torch.uint8), poses, [4])


def test_orbits_are_found_whatever_the_order():
    angles = np.array([(0, 180), (0, 0), (30, 90), (1, 89), (0, 270.5), (50, 10)], np.float32)
    assert find_orbits(angles).tolist() == [[0, 4, 1, 3], [1, 3, 0, 4], [3, 0, 4, 1], [4, 1, 3, 0]]


@pytest.mark.parametrize(("elevation", "azimuth"), [(0, 0), (-30, 359), (60, 123)])
def test_orbit_angles_undo_orbit_cameras(elevation, azimuth):
    assert orbit_angles(orbit_camera(elevation, azimuth)) == pytest.approx((elevation, azimuth), abs=1e-4)


def test_opencv_matrices_are_the_cores():
    poses = np.stack([orbit_camera(e, a) for e, a in ((0, 0), (30, 200), (-20, 45))])
    np.testing.assert_allclose(opencv_matrices(torch.from_numpy(poses)), view_matrices(poses), atol=1e-6)


# Augmentations


@pytest.fixture
def orbit():
    torch.manual_seed(0)
    return torch.rand(6, 4, 3, 48, 48), torch.from_numpy(orbit_cameras()).expand(6, 4, 4, 4)


def test_the_first_view_is_never_augmented(orbit):
    images, poses, _ = augment.augment(*orbit, torch.Generator().manual_seed(0))
    assert torch.equal(images[:, 0], orbit[0][:, 0])
    assert torch.equal(poses[:, 0], orbit[1][:, 0])


def test_half_of_the_objects_get_each_augmentation():
    images, poses = torch.rand(400, 2, 1, 8, 8), torch.from_numpy(orbit_cameras()[:2]).expand(400, 2, 4, 4)
    new_images, new_poses, same = augment.augment(images, poses, torch.Generator().manual_seed(1))
    distorted = (new_images != images).flatten(1).any(1)
    jittered = (new_poses != poses).flatten(1).any(1)
    assert distorted.float().mean() == pytest.approx(0.5, abs=0.1)
    assert jittered.float().mean() == pytest.approx(0.5, abs=0.1)
    assert (distorted & jittered).float().mean() == pytest.approx(0.25, abs=0.1)  # independently
    assert same[:, 0].all()
    assert torch.equal(same[:, 1], ~(distorted | jittered))


def test_distortion_moves_pixels_by_at_most_a_quarter_of_a_cell():
    size = 96
    ramp = (torch.arange(size) + 0.5) / size
    picture = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)])[None].repeat(32, 1, 1, 1)
    moved = augment.grid_distortion(picture, torch.Generator().manual_seed(0)) - picture
    bound = augment.CELL / (augment.LINES[0] - 1)  # of the picture's side
    assert bound * 0.3 < moved.abs().max() <= bound + 0.5 / size
    assert moved[:, 0, :, 0].abs().max() <= 0.5 / size  # the borders stay
    assert moved[:, 1, -1].abs().max() <= 0.5 / size


def test_jitter_keeps_the_distance_and_the_middle_and_stays_within_its_angles():
    poses = torch.from_numpy(np.stack([orbit_camera(e, a) for e in (-10, 0, 30) for a in range(0, 360, 10)]))
    jittered = augment.orbital_jitter(poses, torch.Generator().manual_seed(0))
    rotation = jittered[:, :3, :3]
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).expand(len(poses), 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(jittered[:, :3, 3], 1.5 * rotation[..., 2], atol=1e-5, rtol=0)  # it still looks at 0
    turn = rotation @ poses[:, :3, :3].mT
    angle = torch.rad2deg(torch.arccos(((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)))
    assert 10 < angle.max() <= math.hypot(18, 9) + 0.1


# Losses and schedules


def test_clock_forgives_the_first_steps():
    clock = Clock(1000)
    for _ in range(schedule.FREE_STEPS):
        clock.start -= 500
        assert clock.tick(0) == pytest.approx(0, abs=1e-4)
    clock.start -= 500
    assert clock.tick(0) == pytest.approx(0.5, abs=0.01)


def test_a_run_of_steps_ends_after_them():
    clock = Clock(steps=4)
    assert [clock.tick(done) for done in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_cosine_schedule_warms_up_and_decays():
    assert cosine_schedule(0, 0, warmup=10) == pytest.approx(0.1)
    assert cosine_schedule(100, 0, warmup=10) == 1
    assert cosine_schedule(100, 1, warmup=10, floor=0.02) == pytest.approx(0.02)
    factors = [cosine_schedule(1000, p / 10) for p in range(11)]
    assert factors == sorted(factors, reverse=True)


def test_averaged_weights_follow():
    model = torch.nn.Linear(1, 1)
    average = AveragedWeights(model, decay=0.5)
    for step in range(100):
        model.weight.data.fill_(step)
        average.count(step)
        average.update(model)
    assert average.model.weight.item() == pytest.approx(98, abs=0.1)  # the limit: 99 - 1


def test_what_is_not_recorded_runs_each_time():
    calls = []

    def double(x):
        calls.append(1)
        return {"twice": 2 * x}

    step = Recorded(double, enabled=False)
    for i in range(6):
        assert step(torch.tensor(i))["twice"] == 2 * i
    assert len(calls) == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_recorded_steps_learn_what_others_do(tmp_path, optimizer):
    weights = {}
    for graphs in (False, True):
        torch.manual_seed(0)
        settings = RunSettings(learning_rate=1e-3, steps=30, graphs=graphs, optimizer=optimizer)
        trainer = Trainer(Net(), tmp_path / str(graphs), settings, warmup=5)
        for _ in trainer:
            trainer.step(trainer.bare.loss(trainer))
        weights[graphs] = [trainer.bare.between.weight, trainer.average.model.between.weight]
    # Muon multiplies in bf16, and two runs that are not recorded differ by 9e-4; the weights move by up to 0.026.
    tolerance = {"adamw": {"atol": 1e-5, "rtol": 1e-3}, "muon": {"atol": 2e-3, "rtol": 0}}[optimizer]
    for a, b in zip(weights[False], weights[True], strict=True):
        torch.testing.assert_close(a, b, **tolerance)


class Net(torch.nn.Module):
    """Embedding, input layer, matrix, kernel, output layer."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(40, 32)
        self.first = torch.nn.Linear(3, 32)
        self.between = torch.nn.Linear(32, 48)
        self.kernel = torch.nn.Conv1d(48, 32, 3, padding=1)
        self.last = torch.nn.Linear(32, 2)

    def forward(self, x):
        x = torch.tanh(self.between(self.first(x) + self.words.weight[:16]))
        return self.last(self.kernel(x.mT).mT)

    def loss(self, trainer, factor=1.0):
        """With noise of the trainer's own."""
        x = torch.randn(8, 16, 3, generator=trainer.generator, device=trainer.device)
        return factor * ((self(x) - torch.stack([x.prod(-1), x.sum(-1).sin()], -1)) ** 2).mean()


def trained(folder, steps, stop=None, **options):
    """The weights of a run of `steps`, or of its first `stop`."""
    torch.manual_seed(0)
    trainer = Trainer(Net(), folder, RunSettings(learning_rate=1e-3, steps=steps, **options), warmup=5)
    for _ in trainer:
        if trainer.steps_done == stop:
            break
        trainer.step(trainer.bare.loss(trainer))
    trainer.finish()
    return trainer.bare.state_dict(), trainer.average.model.state_dict()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_gives_the_same_numbers(tmp_path, optimizer):
    whole = trained(tmp_path / "whole", 20, optimizer=optimizer)
    trained(tmp_path / "parts", 20, stop=7, optimizer=optimizer)
    parts = trained(tmp_path / "parts", 20, resume=True, optimizer=optimizer)
    for a, b in zip(whole, parts, strict=True):
        for name in a:
            assert torch.equal(a[name], b[name])
    other = trained(tmp_path / "other", 20, seed=1, optimizer=optimizer)
    assert not torch.equal(whole[0]["between.weight"], other[0]["between.weight"])


def test_a_run_recorded_on_a_gpu_resumes_without_one(tmp_path):
    """There the learning rate is a tensor, and AdamW is told so."""
    whole = trained(tmp_path / "whole", 20)
    trained(tmp_path / "parts", 20, stop=7)
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    for group in state["optimizers"][0]["param_groups"]:
        group |= {"lr": torch.tensor(group["lr"]), "capturable": True}
    torch.save(state, tmp_path / "parts" / "checkpoint.pt")
    parts = trained(tmp_path / "parts", 20, resume=True)
    assert torch.equal(whole[0]["between.weight"], parts[0]["between.weight"])


def test_a_finished_run_resumed_ends_at_once(tmp_path):
    weights = trained(tmp_path, 5)
    again = trained(tmp_path, 5, resume=True)
    assert torch.equal(weights[0]["between.weight"], again[0]["between.weight"])


def test_a_folder_that_holds_a_training_is_not_overwritten(tmp_path):
    trained(tmp_path, 2)
    with pytest.raises(LGMError, match="--resume"):
        trained(tmp_path, 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, optimizer):
    trainer = Trainer(Net(), tmp_path, RunSettings(learning_rate=0.1, steps=2, optimizer=optimizer), warmup=1)
    steps = iter(trainer)
    next(steps)
    before = {name: value.clone() for name, value in trainer.bare.state_dict().items()}
    trainer.step(trainer.bare.loss(trainer, math.nan))
    assert all(torch.equal(before[name], value) for name, value in trainer.bare.state_dict().items())
    next(steps)
    trainer.step(trainer.bare.loss(trainer))
    assert not any(torch.equal(before[name], value) for name, value in trainer.bare.state_dict().items())


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    trainer = Trainer(Net(), tmp_path, RunSettings(learning_rate=0.1, steps=2))
    for _ in trainer:
        trainer.step(trainer.model.loss(trainer))
    trainer.finish()
    with pytest.raises(LGMError, match="of another model, optimizer"):
        Trainer(Net(), tmp_path, RunSettings(steps=3, resume=True, optimizer="muon"))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (32, 32)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3
    # The directions stay: U V^T of each.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonalized(matrices).flatten(1), (u @ v).flatten(1)).min() > 0.9


def test_muon_takes_the_matrices_between_the_first_and_the_last_layer():
    net = Net()
    matrices, others = divided(net)
    assert {id(p) for p in matrices} == {id(net.between.weight), id(net.kernel.weight)}
    assert len(others) == len(list(net.parameters())) - 2


def test_muon_finds_a_matrix_whose_inputs_differ_in_size(tmp_path):
    """By a factor of twenty, their gradients by four hundred: descent would learn the large ones only."""
    size = torch.logspace(0, -1.3, 40)
    target = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(40, 40, bias=False)
    torch.nn.init.zeros_(layer.weight)
    trainer = Trainer(
        layer, tmp_path, RunSettings(learning_rate=0.05, steps=200, optimizer="muon"), warmup=1, weight_decay=0.0
    )
    for _ in trainer:
        x = torch.randn(256, 40, generator=trainer.generator) * size
        trainer.step(((trainer.model(x) - x @ target.T) ** 2).mean())
    off = (trainer.bare.weight - target).detach().norm(dim=0) / target.norm(dim=0)
    assert off.max() < 0.1


def test_a_single_spike_changes_nothing_and_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "LOG_EVERY", 20)
    trainer = Trainer(Net(), tmp_path, RunSettings(learning_rate=1e-4, steps=40, optimizer="muon"), warmup=5)
    for _ in trainer:
        spikes = trainer.steps_done in (25, 30)
        before = {name: value.clone() for name, value in trainer.bare.state_dict().items()}
        trainer.step(trainer.bare.loss(trainer, 1e4 if spikes else 1.0))
        assert spikes == all(torch.equal(before[name], value) for name, value in trainer.bare.state_dict().items())
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert "bad_steps" not in first
    assert second["bad_steps"] == 2
    assert second["norm"] < 10 * first["norm"]  # the mean is of the steps that count


def test_a_run_can_end_at_an_hour():
    clock = Clock(until=time.time() + 3600)
    assert clock.tick(0) < 0.01
    assert 3500 < clock.seconds <= 3600
    late = Clock(until=time.time() - 5)
    for _ in range(3):
        late.tick(0)
    late.start -= 2
    assert late.tick(0) == 1


@pytest.mark.parametrize(
    ("factor", "values", "words"),
    [
        (lambda step: math.nan if step > LOG_EVERY else 1.0, {}, "not finite"),
        (lambda step: 1e5 if step > LOG_EVERY else 1.0, {}, "gradient exploded"),
        (lambda step: 1.0, {"opacity": torch.tensor(0.001)}, "transparent"),
    ],
)
def test_a_collapse_is_noticed_and_named(tmp_path, factor, values, words):
    trainer = Trainer(Net(), tmp_path, RunSettings(learning_rate=1e-5, steps=8 * LOG_EVERY), warmup=10)

    def run():
        for _ in trainer:
            trainer.step(trainer.bare.loss(trainer, factor(trainer.steps_done)), **values)

    with pytest.raises(LGMError, match=words):
        run()
    assert "norm" in (tmp_path / "log.jsonl").read_text()


def test_a_tokenizer_of_captions_reads_any_text(tmp_path):
    tokenizer = make_tokenizer(["red car", "wooden chair", "red chair"] * 3, tmp_path)
    for text in ("a red car", "Büro 椅子 🙂", ""):
        ids = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        assert len(ids) == tokenizer.model_max_length
        assert max(ids) < len(tokenizer)
    assert len(tokenizer("red")["input_ids"]) == 3  # start, one token, end
    assert tokenizer("red car")["input_ids"] != tokenizer("wooden chair")["input_ids"]


# Short runs


def test_lgm_learns_two_cubes(views, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "LOG_EVERY", 10)
    torch.manual_seed(0)
    lpips = LPIPS()
    for lin in lpips.lins:
        lin.data.fill_(0.1)
    path = tmp_path / "val.npy"
    view_files.render_objects(
        partial(objects.read_object, archive), ["c"], 32, path, processes=1, cameras=cameras.evaluation_poses
    )
    validation = TrainingViews.from_files([(path, ["c"])], "cpu", cameras.evaluation_poses)
    model = train_lgm(
        views,
        tmp_path,
        TOY,
        LGMSettings(steps=25, batch=2, learning_rate=3e-3, lpips_from=0.5, compile=False),
        lpips=lpips,
        validation=validation,
    )
    result = evaluate_lgm(model, validation)
    color, alpha = validation.pictures(torch.arange(4, 12)[None])
    blank = -10 * ((color - alpha) ** 2).mean().log10().item()  # white instead of the object
    assert result["val_psnr"] > blank + 2
    assert (tmp_path / "model.safetensors").exists()
    first, second, last = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert second["loss"] < first["loss"]
    assert second["off"] < first["off"]  # nearer to the surface
    assert "lpips" in second
    assert last["val_psnr"] == pytest.approx(result["val_psnr"], abs=1e-4)


def test_from_views_to_a_multi_view_model_that_the_pipeline_loads(views, orbits_of_cubes, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "LOG_EVERY", 1)
    monkeypatch.setattr(schedule, "SAVE_EVERY", -1.0)  # after every step
    small = MINI | {"block_out_channels": [16, 16, 16, 16], "norm_num_groups": 8, "sample_size": 32}
    vae = train_vae(views, tmp_path / "vae", VAESettings(steps=3, batch=4, compile=False), config=small, lpips=LPIPS())
    device = torch.device("cpu")
    samples = EncodedOrbits.encode(*orbits_of_cubes, vae, device)
    assert len(samples) == 2 * orbits.ORBITS * 2  # mirrored or not
    assert samples.latents.shape[1:] == (4, 8, 4, 4)
    assert samples.fronts.sum() == 4
    captions = ["red cube", "textured cube"]
    EncodedOrbits.encode(*orbits_of_cubes, vae, device, len(captions)).save(tmp_path / "more.safetensors")
    more = EncodedOrbits.load(tmp_path / "more.safetensors", device)
    assert set(samples.captions.tolist()) == {0, 1}
    assert set(more.captions.tolist()) == {2, 3}
    both = EncodedOrbits.join([samples, more])
    tokenizer = make_tokenizer(captions, tmp_path / "tokenizer")
    learning = []
    finish = schedule.Trainer.finish
    monkeypatch.setattr(schedule.Trainer, "finish", lambda self: (learning.append(self.bare), finish(self)))
    model = train_multiview(
        both,
        captions,
        tokenizer,
        tmp_path / "multiview",
        MultiViewSettings(steps=3, batch=3, compile=False),
        validation=samples,
    )
    # Several processes would wait for a gradient that never comes.
    assert all(p.grad is not None for p in learning[-1].parameters() if p.requires_grad)
    log = [json.loads(line) for line in (tmp_path / "multiview" / "log.jsonl").read_text().splitlines()]
    for name in ("velocity_mse", "val_velocity_mse"):  # after each checkpoint it is judged
        assert [line["step"] for line in log if name in line] == [1, 2, 3]
    save_multiview(model, tmp_path / "vae", tmp_path / "tokenizer", tmp_path / "saved")
    pipeline = MultiViewPipeline.from_folder(tmp_path / "saved")
    assert pipeline.modes == ("image", "text")
    pictures = pipeline(images=np.ones((32, 32, 3), np.float32), steps=2, guidance=2.0)
    assert pictures.shape == (1, 4, 256, 256, 3)
    # Training can start from what was saved.
    start = unpack_multiview(tmp_path / "saved", tmp_path / "again")
    again = MultiViewModel(tokenizer)
    again.load_state_dict(load_file(start))
    for name, value in model.state_dict().items():
        assert torch.allclose(again.state_dict()[name], value, atol=2 * value.abs().max().item() / 127 + 1e-6), name
    assert type(load_vae(tmp_path / "again" / "vae", torch.device("cpu"), torch.float32)) is ChromaVAE
    assert (tmp_path / "again" / "tokenizer" / "vocab.json").read_bytes() == (
        tmp_path / "tokenizer" / "vocab.json"
    ).read_bytes()


class Colours:
    """Stands in for a VAE: the mean colour of the middle."""

    scaling_factor = 1.0

    def encode(self, pictures):
        middle = pictures[:, :, 14:18, 14:18].mean((2, 3), keepdim=True)
        return middle, torch.zeros_like(middle)


def test_pictures_are_encoded_some_at_once(monkeypatch):
    pictures = torch.rand(7, 3, 16, 16)
    whole = latents.encode(Colours(), pictures)
    monkeypatch.setattr(latents, "ENCODED", 3)
    assert len(whole) == 7
    assert torch.equal(latents.encode(Colours(), pictures), whole)


def test_samples_put_the_front_where_the_pipeline_expects_it(orbits_of_cubes):
    """The input's own side is frame 1, and the mirrored object's sides are swapped."""
    pictures, starts = orbits_of_cubes
    samples = EncodedOrbits.encode(pictures[:1, :1], starts[:1, :1], Colours(), torch.device("cpu"))
    assert samples.fronts.tolist() == [True, True]
    plain, mirrored = samples.latents.flatten(2)
    torch.testing.assert_close(plain[1], samples.image_latents[0].flatten(), atol=0.05, rtol=0)
    torch.testing.assert_close(plain[[0, 2]], mirrored[[2, 0]], atol=0.05, rtol=0)  # right and left
    torch.testing.assert_close(plain[[1, 3]], mirrored[[1, 3]], atol=0.05, rtol=0)  # front and back
    assert (plain[0] - plain[2]).abs().max() > 0.3


def test_orbits_that_show_nothing_are_left_out(orbits_of_cubes):
    pictures, starts = (array.copy() for array in orbits_of_cubes)
    pictures[1, 2] = 0
    samples = EncodedOrbits.encode(pictures, starts, Colours(), torch.device("cpu"))
    assert len(samples) == 2 * (2 * orbits.ORBITS - 1)
    assert samples.captions.bincount().tolist() == [2 * orbits.ORBITS, 2 * orbits.ORBITS - 2]


@pytest.mark.parametrize("image", [True, False])
def test_the_view_from_the_images_side_is_the_image_and_not_judged(orbits_of_cubes, tmp_path, monkeypatch, image):
    """Where there is an image. What a model makes of that view then counts nothing; without an image it does."""
    monkeypatch.setattr(schedule, "LOG_EVERY", 1)
    samples = EncodedOrbits.encode(*orbits_of_cubes, Colours(), torch.device("cpu"))
    shape = samples.latents.shape[2:]
    samples.latents[:] = 0.25
    samples.image_latents[:] = 4.0
    tokenizer = make_tokenizer(["red cube", "textured cube"], tmp_path / "tokenizer")
    seen = []

    def forward(self, latents, timesteps, tokens, camera, pixels, image_latents, keep_image):
        kept = keep_image > 0
        seen.append((latents[:, 1], kept, timesteps))
        zero = sum(p.sum() for p in self.parameters() if p.requires_grad) * 0
        wrong = torch.zeros(len(latents), 4, *shape)
        wrong[kept if image else ~kept, 1] = 1e3
        return wrong + zero

    monkeypatch.setattr(MultiViewModel, "forward", forward)
    small = {"model_channels": 32, "context_dim": 192, "image_embed_dim": 192, "in_channels": shape[0]}
    unet = MINI_UNET | small | {"out_channels": shape[0]}
    captions = ["red cube", "textured cube"]
    settings = MultiViewSettings(steps=4, batch=16, compile=False)
    train_multiview(samples, captions, tokenizer, tmp_path / "multiview", settings, unet=unet)
    losses = [
        json.loads(line)["velocity_mse"] for line in (tmp_path / "multiview" / "log.jsonl").read_text().splitlines()
    ]
    if image:  # what is wrong of the image's side is not seen
        assert max(losses) < 10
    else:
        assert min(losses) > 1e4
    front, kept, timesteps = (torch.cat(parts) for parts in zip(*seen, strict=True))
    clear = timesteps < 150
    level = front.flatten(1).mean(1)
    assert (level[clear & kept] > 2).all()
    assert (level[clear & ~kept] < 2).all()


def test_distances_lead_to_the_surface(views):
    half = cameras.OBJECT_RADIUS / math.sqrt(3)
    rows = torch.arange(cameras.VIEWS)[None]
    points, covered = views.surface(rows, views.poses[rows])
    assert covered.float().mean() > 0.1
    largest = points[covered].abs().amax(-1)  # the cube's sides are at |x|, |y| or |z| = half
    torch.testing.assert_close(largest, torch.full_like(largest, half), atol=2e-3, rtol=0)


def test_rays_of_the_rendered_views_meet_the_cube(views):
    # The renderer and the rays agree about where the camera is: a pixel is covered if its ray meets the cube.
    half = cameras.OBJECT_RADIUS / math.sqrt(3)
    origins, directions = pixel_rays(views.poses[: cameras.VIEWS], 32)
    low, high = (-half - origins) / directions, (half - origins) / directions
    enter, leave = torch.minimum(low, high).amax(-1), torch.maximum(low, high).amin(-1)
    covered = views.pixels[: cameras.VIEWS, ..., 3] > 127
    assert ((enter < leave) == covered).float().mean() > 0.99


@pytest.mark.parametrize("there", [True, False])
def test_training_renders_by_gsplat_where_it_works_and_by_torch_elsewhere(views, monkeypatch, there):
    """It lets gsplat compile, and demands nothing. Here gsplat's part is played by the torch renderer."""
    asked, rendered = [], []

    def prepare(device, compile):
        asked.append(compile)
        if not there:
            raise rendering.gsplat_backend.UnavailableError("it is not installed")
        return "it is installed"

    def rasterize(*arguments):
        rendered.append("gsplat")
        return rendering.torch_backend.rasterize(*arguments)

    monkeypatch.delenv(rendering.VARIABLE, raising=False)
    monkeypatch.setattr(rendering.gsplat_backend, "prepare", prepare)
    monkeypatch.setattr(rendering.gsplat_backend, "rasterize", rasterize)
    for cached in (rendering._backend_for, rendering._gsplat):
        cached.cache_clear()
    gaussians = torch.tensor([[0, 0, 0, 1, 0.1, 0.1, 0.1, 1, 0, 0, 0, 1, 0, 0]]).expand(2, 5, 14)
    white = torch.ones(2, 3, 3)
    rgb, alpha = render_views(gaussians, views.poses[:6].view(2, 3, 4, 4), 16, white)
    assert rgb.shape == (2, 3, 3, 16, 16)
    assert alpha[..., 8, 8].min() > 0.9
    assert rendered == (["gsplat"] if there else [])
    assert asked == [True]
    for cached in (rendering._backend_for, rendering._gsplat):
        cached.cache_clear()


@pytest.mark.parametrize(("count", "at_once"), [(7, 3), (10, 3), (9, 9), (1, 4), (10, 1)])
def test_files_are_read_ahead_in_order(tmp_path, count, at_once):
    np.save(tmp_path / "a.npy", np.arange(30).reshape(10, 3))
    parts = list(view_files.read_ahead(np.load(tmp_path / "a.npy", mmap_mode="r"), count, at_once))
    assert all(len(part) == at_once for part in parts[:-1])
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(30).reshape(10, 3)[:count])
