"""Views by the multi-view model as LGM's training input."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_preset import LGM_CONFIG

from lgm_blender.core.cameras import orbit_camera
from lgm_blender.core.errors import LGMError
from lgm_blender.training.__main__ import main
from lgm_blender.training.data import generated
from lgm_blender.training.data.generated import Generated, generate
from lgm_blender.training.data.orbits import placed_poses, render_placed
from lgm_blender.training.data.procedural import procedural
from lgm_blender.training.data.view_files import photos_path
from lgm_blender.training.data.views import TrainingViews
from lgm_blender.training.loops import lgm as training
from lgm_blender.training.loops import trainer as schedule
from lgm_blender.training.loops.lgm import evaluate_lgm, mirrored, train_lgm
from lgm_blender.training.loops.lpips import LPIPS
from lgm_blender.training.settings import LGMSettings
from lgm_blender.worker.lgm import LGM
from lgm_blender.worker.lgm.rays import pixel_rays
from lgm_blender.worker.presets import find_preset
from lgm_blender.worker.reconstruct import Settings, preset_settings

NAMES = ["procedural-00001", "procedural-00004", "procedural-00012"]
TOY = replace(LGM_CONFIG, input_size=64, splat_size=32, position="ray", scale="pixel", averaged_channel=True)


def psnr(a, b) -> float:
    return -10 * np.log10(np.mean((np.asarray(a, np.float64) - np.asarray(b)) ** 2) + 1e-12)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rendered") / "procedural-placed.npy"
    assert render_placed(procedural, NAMES, 64, path, processes=1) == []
    return path


@pytest.fixture
def views(rendered) -> TrainingViews:
    return TrainingViews.from_files([(rendered, NAMES)], "cpu", placed_poses)


@pytest.fixture
def photos(rendered) -> np.ndarray:
    return np.load(photos_path(rendered))


def elevations() -> np.ndarray:
    return np.array([placed_poses(name)[1][0, 0] for name in NAMES])


@pytest.fixture
def made(views, photos, tmp_path, monkeypatch) -> Generated:
    """Views by a multi-view model that makes no mistakes: it knows the ground truth by its image."""
    color, alpha = views.pictures(views.orbits[:, 0])
    true = color + 1 - alpha
    known = torch.from_numpy(photos).float() / 255
    known = (known[..., :3] + 1 - known[..., 3:]).movedim(-1, 1)
    asked = []

    def sample_frames(multiview, settings, *, images, seeds, elevations):
        asked.extend(zip(seeds, elevations, strict=True))
        pictures = [torch.from_numpy(image).movedim(-1, 0) for image in images]
        nearest = [int(((known - picture) ** 2).sum((1, 2, 3)).argmin()) for picture in pictures]
        return true[nearest].movedim(-3, -1).numpy()

    monkeypatch.setattr(generated, "sample_frames", sample_frames)
    settings = preset_settings(find_preset("mini"), "image", samples=4)
    assert generate(photos, elevations(), None, settings, tmp_path / "a.npz", batch=2, seed=7) == 3
    assert asked == [(7 + i, float(angle)) for i, angle in enumerate(elevations())]
    return Generated.load([tmp_path / "a.npz"], views)


def test_faultless_views_are_the_ground_truth(made, views, photos):
    """What is generated of an image stands where the object does in the ground truth; the front is the image."""
    assert made.inputs.tolist() == views.orbits[:, 0].tolist()
    assert made.averaged.tolist() == [False, True, True, True]
    color, alpha = views.pictures(made.inputs)
    target = color + 1 - alpha
    pictures = made.pictures(torch.arange(3))
    for i, photo in enumerate(photos.astype(np.float32)):
        image = (photo[..., :3] + 255 - photo[..., 3:]) / 255
        fronts = [psnr(pictures[i, 0].movedim(0, -1), image), psnr(pictures[i, 0], target[i, 0])]
        assert max(fronts) > 18  # or it is as small as the views show the object
        for j in (1, 2, 3):
            assert psnr(pictures[i, j], target[i, j]) > 30


def test_sampled_batches_belong_together(made, views):
    objects, inputs, pictures = made.sample(16, torch.Generator().manual_seed(0))
    assert len(set(objects.tolist())) == 3
    for number, rows, picture in zip(objects, inputs, pictures, strict=True):
        assert ((rows >= views.first[number]) & (rows < views.first[number] + views.counts[number])).all()
        color, alpha = views.pictures(rows)
        assert psnr(picture[1:], (color + 1 - alpha)[1:]) > 30


def test_several_files_are_of_one_set_after_the_other(made, views, tmp_path):
    twice = TrainingViews.from_rows(
        torch.cat([views.pixels] * 2), torch.cat([views.poses] * 2).numpy(), views.counts.tolist() * 2
    )
    again = Generated.load([tmp_path / "a.npz"] * 2, twice)
    torch.testing.assert_close(again.inputs[3:], twice.orbits[3:, 0])
    torch.testing.assert_close(again.pixels[3:], made.pixels)
    with pytest.raises(LGMError, match="3 objects were generated, of 6 there is ground truth"):
        Generated.load([tmp_path / "a.npz"], twice)


@pytest.mark.parametrize(
    ("samples", "keep", "tell", "averaged"),
    [
        (1, True, False, [0, 0, 0, 0]),
        (4, True, False, [0, 1, 1, 1]),
        (4, False, False, [1, 1, 1, 1]),
        (1, False, False, [0, 0, 0, 0]),
        (1, True, True, [0, 1, 1, 1]),
        (4, True, True, [0, 1, 1, 1]),
    ],
)
def test_lgm_is_told_of_means_or_of_all_that_is_generated_and_never_of_the_image(samples, keep, tell, averaged):
    settings = Settings(samples=samples, keep_image=keep, tell_generated=tell)
    assert settings.averaged_views == [bool(x) for x in averaged]


def test_mini_is_told_of_an_images_views_alone():
    mini = find_preset("mini")
    assert preset_settings(mini, "image").averaged_views == [False, True, True, True]
    assert not any(preset_settings(mini, "text").averaged_views)  # such as LGM has not learnt from
    assert not any(preset_settings(find_preset("lgm"), "image").averaged_views)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lgm_trains_on_them(made, views, tmp_path, monkeypatch, share):
    """With all steps on generated views no rendered inputs are seen, and with none on them no generated ones."""
    monkeypatch.setattr(schedule, "LOG_EVERY", 1)
    true = replace(views)
    calls = {"true": 0, "made": 0}
    told = []

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(made, "sample", counted("made", made.sample))
    monkeypatch.setattr(true, "orbit", counted("true", true.orbit))
    monkeypatch.setattr(made.views, "orbit", counted("true", made.views.orbit))
    forward = LGM.forward
    monkeypatch.setattr(
        LGM,
        "forward",
        lambda self, *given: (told.append(given[2].tolist()), forward(self, *given))[1],
    )
    train_lgm(
        true,
        tmp_path / "lgm",
        TOY,
        LGMSettings(steps=6, batch=2, learning_rate=3e-3, compile=False, generated_share=share),
        generated=made,
    )
    assert calls == ({"true": 0, "made": 6} if share else {"true": 6, "made": 0})
    assert told == [[[0, share, share, share]] * 2] * 6
    log = [json.loads(line) for line in (tmp_path / "lgm" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(np.isfinite(line["off"]) for line in log)


def test_lgm_is_told_of_a_share_of_them(made, views):
    told = []
    for step in range(40):
        settings = LGMSettings(batch=2, generated_share=1.0, told_share=0.5)
        generators = torch.Generator().manual_seed(step), torch.Generator().manual_seed(step)
        batch = training.next_batch(views, made, settings, 64, *generators)
        assert batch.averaged[:, 0].max() == 0
        assert batch.averaged[:, 1:].min() == batch.averaged.max()
        assert batch.generated
        told.append(batch.averaged.max().item())
    assert 8 < sum(told) < 32


@pytest.mark.parametrize(("share", "weight"), [(1.0, 5.0), (0.0, 1.0)])
def test_lpips_has_a_weight_of_its_own_on_them(made, views, tmp_path, monkeypatch, share, weight):
    monkeypatch.setattr(schedule, "LOG_EVERY", 1)
    lpips = LPIPS()
    for lin in lpips.lins:
        lin.fill_(1.0)
    found = {}
    some = {"lpips_weight": 1.0, "generated_lpips_weight": 5.0}
    for name, given in {"none": {"lpips_weight": 0.0}, "some": some}.items():
        settings = LGMSettings(steps=2, batch=1, compile=False, lpips_from=0.0, generated_share=share, **given)
        train_lgm(views, tmp_path / name, TOY, replace(settings, learning_rate=0.0), lpips=lpips, generated=made)
        found[name] = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()][-1]
    without, line = found["none"], found["some"]  # nothing has been learnt: but for LPIPS their loss is the same
    assert line["loss"] - without["loss"] == pytest.approx(weight * line["lpips"], rel=1e-3)


def test_ground_truth_is_of_both_sets(made, views, tmp_path, monkeypatch):
    seen, first = [], replace(views)
    for name, source in (("first", first), ("generated's", made.views)):
        orbit = source.orbit
        monkeypatch.setattr(source, "orbit", lambda *a, name=name, orbit=orbit: (seen.append(name), orbit(*a))[1])
    settings = LGMSettings(steps=8, batch=1, compile=False, generated_share=0.0)
    train_lgm(first, tmp_path / "lgm", TOY, settings, generated=made)
    assert set(seen) == {"first", "generated's"}


def test_generated_views_are_judged_before_and_after(made, views, tmp_path):
    settings = LGMSettings(steps=1, batch=1, compile=False)
    train_lgm(views, tmp_path / "lgm", TOY, settings, validation=views, generated_validation=made)
    first, last = map(json.loads, (tmp_path / "lgm" / "log.jsonl").read_text().splitlines())
    for line in (first, last):
        assert {"val_psnr", "val_iou", "val_generated_psnr", "val_generated_iou"} <= line.keys()
        assert line["val_psnr"] != line["val_generated_psnr"]


def test_judging_takes_the_generated_views(made, views, monkeypatch):
    model, given = LGM(TOY), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda images, poses, averaged: (given.append((images, averaged)), forward(images, poses))[1]
    )
    evaluate_lgm(model, views, None, made)
    assert len(given) == 3
    for i, (images, averaged) in enumerate(given):
        torch.testing.assert_close(images, made.pictures(torch.tensor([i])))
        assert averaged.tolist() == [[0, 1, 1, 1]]


def test_a_mirrored_object_is_seen_mirrored(views):
    """The rays of flipped pictures are the mirrored rays, and so are the points that they see."""
    poses = torch.from_numpy(np.stack([orbit_camera(20, 37), orbit_camera(-10, 200)]))[None]
    sides = torch.tensor([-1.0, 1.0, 1.0])
    there, _ = mirrored(poses)
    torch.testing.assert_close(torch.linalg.det(there[..., :3, :3]), torch.ones(1, 2))
    for before, after in zip(pixel_rays(poses, 8), pixel_rays(there, 8), strict=True):
        torch.testing.assert_close(after, before.flip(-2) * sides)
    rows = views.orbits[:1, 0]
    points, covered = views.surface(rows, views.poses[rows])
    there, (moved, seen) = mirrored(views.poses[rows], (points, covered))
    torch.testing.assert_close(seen, covered.flip(-1))
    origins, directions = pixel_rays(there, points.shape[-2])
    along = ((moved - origins) * directions).sum(-1, keepdim=True)
    off = (origins + along * directions - moved).norm(dim=-1)
    assert off[seen].max() < 1e-4  # each point is on the ray of its pixel
    twice, _ = mirrored(there)
    torch.testing.assert_close(twice, views.poses[rows])


@pytest.mark.parametrize("flag", [True, False])
def test_averaged_views_are_told_where_there_is_a_channel_for_it(flag):
    torch.manual_seed(0)
    model = LGM(replace(TOY, averaged_channel=flag))
    images, poses = torch.rand(1, 4, 3, 64, 64), torch.from_numpy(np.stack([orbit_camera(0, 90 * i) for i in range(4)]))
    with torch.no_grad():
        none = model(images, poses[None])
        torch.testing.assert_close(none, model(images, poses[None], torch.zeros(1, 4)))
        some = model(images, poses[None], torch.tensor([[0.0, 1, 1, 1]]))
    assert torch.equal(none, some) is not flag


def test_weights_from_before_the_channel_start_without_effect(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    before = LGM(replace(TOY, averaged_channel=False))
    save_file(before.state_dict(), tmp_path / "model.safetensors")
    after = LGM(TOY)
    after.load_state_dict(training.start_state(tmp_path / "model.safetensors", TOY))
    images, poses = torch.rand(1, 4, 3, 64, 64), torch.from_numpy(np.stack([orbit_camera(0, 90 * i) for i in range(4)]))
    with torch.no_grad():
        torch.testing.assert_close(after(images, poses[None], torch.ones(1, 4)), before(images, poses[None]))


def test_the_command(tmp_path, capsys):
    """`render --kind placed` and `generate` write what `lgm --generated` reads."""
    with zipfile.ZipFile(tmp_path / "objects.zip", "w") as file:
        file.writestr("index.json", json.dumps([{"id": "a", "split": "train", "caption": "cube"}]))
    for words in (
        ["render", "--kind", "placed", "--procedural", 1, "--processes", 1],
        ["generate", "--sets", "procedural-placed", "--steps", 2],
    ):
        common = ["--objects", tmp_path / "objects.zip", "--work", tmp_path]
        assert main([*map(str, [*words, *common])]) == 0
    assert "procedural-placed: 1 objects' views generated" in capsys.readouterr().out
    files = [(tmp_path / "procedural-placed.npy", ["procedural-00000"])]
    whole = TrainingViews.from_files(files, "cpu", placed_poses)
    found = Generated.load([tmp_path / "procedural-placed.generated.npz"], whole)
    assert found.pixels.shape == (1, 4, 256, 256, 3)
    assert found.averaged.tolist() == preset_settings(find_preset("mini"), "image", samples=2).averaged_views
    front = np.load(photos_path(files[0][0]))[0].astype(np.float32)
    image = (front[..., :3] + 255 - front[..., 3:]) / 255
    assert psnr(found.pictures(torch.tensor([0]))[0, 0].movedim(0, -1), image) > 12  # it may be made smaller
    color, alpha = whole.pictures(found.inputs)
    assert psnr(found.pictures(torch.tensor([0])), color + 1 - alpha) > 10  # two steps tell this much
