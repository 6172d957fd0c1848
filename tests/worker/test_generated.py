"""Views by the multi-view model as LGM's training input."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgm_blender.core.cameras import orbit_camera
from lgm_blender.core.errors import LGMError
from lgm_blender.worker.lgm import LGM, LGMConfig
from lgm_blender.worker.lgm.rays import pixel_rays
from lgm_blender.worker.matting import matte, recenter
from lgm_blender.worker.models import find_preset
from lgm_blender.worker.multiview.pipeline import MultiViewPipeline
from lgm_blender.worker.pipeline import FRAMES_TO_LGM, guessed_views
from lgm_blender.worker.training import __main__ as command
from lgm_blender.worker.training import generated, schedule
from lgm_blender.worker.training import lgm as training
from lgm_blender.worker.training.generated import Generated, generate
from lgm_blender.worker.training.lgm import evaluate_lgm, mirrored, train_lgm
from lgm_blender.worker.training.objects import photos_path
from lgm_blender.worker.training.orbits import draw_placed, placed_poses
from lgm_blender.worker.training.procedural import procedural
from lgm_blender.worker.training.views import Views

SAMPLE = Path(__file__).parents[2] / "docs" / "samples"
NAMES = ["procedural-00001", "procedural-00004", "procedural-00012"]
TOY = LGMConfig(
    down_channels=(32, 32),
    down_attention=(False, True),
    up_channels=(32,),
    up_attention=(True,),
    input_size=64,
    splat_size=32,
    num_heads=2,
    position="ray",
    scale="pixel",
    guess_channel=True,
)


def psnr(a, b) -> float:
    return -10 * np.log10(np.mean((np.asarray(a, np.float64) - np.asarray(b)) ** 2) + 1e-12)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "procedural-placed.npy"
    assert draw_placed(procedural, NAMES, 64, path, processes=1) == []
    return path


@pytest.fixture
def views(drawn) -> Views:
    return Views.from_files([(drawn, NAMES)], "cpu", placed_poses)


@pytest.fixture
def photos(drawn) -> np.ndarray:
    return np.load(photos_path(drawn))


@pytest.fixture(scope="module")
def mini() -> MultiViewPipeline:
    preset = find_preset("mini")
    return MultiViewPipeline.from_folder(preset.locate("image"), scheduler=preset.scheduler)


def elevations() -> np.ndarray:
    return np.array([placed_poses(name)[1][0, 0] for name in NAMES])


@pytest.fixture
def made(views, photos, tmp_path, monkeypatch) -> Generated:
    """Views by a multi-view model that makes no mistakes: it knows the true ones by their image."""
    color, alpha = views.pictures(views.orbits[:, 0])
    true = color + 1 - alpha
    known = torch.from_numpy(photos).float() / 255
    known = (known[..., :3] + 1 - known[..., 3:]).movedim(-1, 1)
    asked = []

    def draw(pipeline, images, angles, *settings):
        asked.extend(angles.tolist())
        nearest = [int(((known - image) ** 2).sum((1, 2, 3)).argmin()) for image in images]
        return true[nearest]

    monkeypatch.setattr(generated, "draw", draw)
    assert generate(photos, elevations(), None, tmp_path / "a.npz", batch=2) == 3
    np.testing.assert_allclose(asked, elevations(), atol=1e-4)
    return Generated.load([tmp_path / "a.npz"], views)


def test_faultless_views_are_the_true_ones(made, views, photos):
    """What is generated of an image stands where the object does in the true views; the front is the image."""
    assert made.inputs.tolist() == views.orbits[:, 0].tolist()
    assert made.guessed.tolist() == [False, True, True, True]
    color, alpha = views.pictures(made.inputs)
    truth = color + 1 - alpha
    pictures = made.pictures(torch.arange(3))
    for i, photo in enumerate(photos.astype(np.float32)):
        image = (photo[..., :3] + 255 - photo[..., 3:]) / 255
        fronts = [psnr(pictures[i, 0].movedim(0, -1), image), psnr(pictures[i, 0], truth[i, 0])]
        assert max(fronts) > 18  # or it is as small as the views show the object
        for j in (1, 2, 3):
            assert psnr(pictures[i, j], truth[i, j]) > 30


def test_drawn_batches_belong_together(made, views):
    objects, inputs, pictures = made.draw(16, torch.Generator().manual_seed(0))
    assert len(set(objects.tolist())) == 3
    for number, rows, picture in zip(objects, inputs, pictures, strict=True):
        assert ((rows >= views.first[number]) & (rows < views.first[number] + views.counts[number])).all()
        color, alpha = views.pictures(rows)
        assert psnr(picture[1:], (color + 1 - alpha)[1:]) > 30


def test_several_files_are_of_one_set_after_the_other(made, views, tmp_path):
    twice = Views.from_rows(
        torch.cat([views.pixels] * 2), torch.cat([views.poses] * 2).numpy(), views.counts.tolist() * 2
    )
    again = Generated.load([tmp_path / "a.npz"] * 2, twice)
    torch.testing.assert_close(again.inputs[3:], twice.orbits[3:, 0])
    torch.testing.assert_close(again.pixels[3:], made.pixels)
    with pytest.raises(LGMError, match="3 objects were generated, of 6 there are true ones"):
        Generated.load([tmp_path / "a.npz"], twice)


def test_what_is_generated_anew_is_taken_in(made, views, tmp_path):
    again = Generated.load([tmp_path / "a.npz"], views)
    assert not again.refresh()
    pixels = again.pixels
    np.savez(tmp_path / "a.npz", pixels=255 - made.pixels.numpy(), guessed=made.guessed.numpy())
    os.utime(tmp_path / "a.npz", (1, 1))
    assert again.refresh()
    assert torch.equal(again.pixels, 255 - made.pixels)
    assert again.pixels is pixels
    assert not again.refresh()


@pytest.mark.parametrize(
    ("samples", "kept", "guessed"),
    [(1, True, [0, 0, 0, 0]), (4, True, [0, 1, 1, 1]), (4, False, [1, 1, 1, 1]), (1, False, [0, 0, 0, 0])],
)
def test_means_of_samples_are_guesses_and_the_image_is_none(samples, kept, guessed):
    assert guessed_views(samples, kept) == [bool(x) for x in guessed]


@pytest.mark.parametrize(
    ("keep", "guidance", "samples", "redraw"),
    [(False, 2.5, 1, False), (True, 2.5, 1, True), (True, 1.0, 2, False), (True, 1.0, 2, True)],
)
def test_many_at_once_are_what_each_is_alone(mini, keep, guidance, samples, redraw):
    """The same noise gives what a user's request gives, but for how the image is made small."""
    cut, _ = matte(next(SAMPLE.glob("*.png")))
    photo = recenter(cut)
    picture = torch.from_numpy(photo).movedim(-1, 0)
    other = torch.from_numpy(np.asarray(Image.fromarray(np.uint8(photo * 255)).rotate(180), np.float32) / 255)
    images = torch.stack([picture, other.movedim(-1, 0)])
    elevations = torch.tensor([0.0, 20.0])
    generator = torch.Generator().manual_seed(5)
    if redraw and samples > 1:  # alone the second noise follows on the first of one image
        images, elevations = images[:1], elevations[:1]
    made = generated.draw(mini, images, elevations, generator, 3, guidance, keep, samples, redraw)
    assert made.shape == (len(images), 4, 3, 256, 256)
    settings = {"steps": 3, "guidance": guidance, "keep_image": keep, "samples": samples, "redraw": redraw}
    alone = mini(image=photo, seed=5, **settings)[list(FRAMES_TO_LGM)]
    assert psnr(made[0].movedim(1, -1), alone) > 35
    if len(made) > 1:
        assert psnr(made[0], made[1]) < 25


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lgm_trains_on_them(made, views, tmp_path, monkeypatch, share):
    """With all steps on generated views the true inputs are never seen, and with none the generated ones are not."""
    monkeypatch.setattr(schedule, "LOG_EVERY", 1)
    true = replace(views)
    calls = {"true": 0, "made": 0}
    told = []

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(made, "draw", counted("made", made.draw))
    monkeypatch.setattr(true, "orbit", counted("true", true.orbit))
    monkeypatch.setattr(made.views, "orbit", counted("true", made.views.orbit))
    forward = LGM.forward
    monkeypatch.setattr(
        LGM,
        "forward",
        lambda self, images, poses, guessed: (told.append(guessed.tolist()), forward(self, images, poses, guessed))[1],
    )
    train_lgm(
        true,
        tmp_path / "lgm",
        TOY,
        steps=6,
        batch=2,
        rate=3e-3,
        compile=False,
        generated=made,
        generated_share=share,
    )
    assert calls == ({"true": 0, "made": 6} if share else {"true": 6, "made": 0})
    assert told == [[[0, share, share, share]] * 2] * 6
    log = [json.loads(line) for line in (tmp_path / "lgm" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(np.isfinite(line["off"]) for line in log)


def test_true_views_are_of_both_sets(made, views, tmp_path, monkeypatch):
    seen, first = [], replace(views)
    for name, source in (("first", first), ("generated's", made.views)):
        orbit = source.orbit
        monkeypatch.setattr(source, "orbit", lambda *a, name=name, orbit=orbit: (seen.append(name), orbit(*a))[1])
    train_lgm(first, tmp_path / "lgm", TOY, steps=8, batch=1, compile=False, generated=made, generated_share=0.0)
    assert set(seen) == {"first", "generated's"}


def test_generated_views_are_judged_before_and_after(made, views, tmp_path):
    train_lgm(
        views, tmp_path / "lgm", TOY, steps=1, batch=1, compile=False, validation=views, generated_validation=made
    )
    first, last = map(json.loads, (tmp_path / "lgm" / "log.jsonl").read_text().splitlines())
    for line in (first, last):
        assert {"val_psnr", "val_iou", "val_generated_psnr", "val_generated_iou"} <= line.keys()
        assert line["val_psnr"] != line["val_generated_psnr"]


def test_judging_takes_the_generated_views(made, views, monkeypatch):
    model, given = LGM(TOY), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda images, poses, guessed: (given.append((images, guessed)), forward(images, poses))[1]
    )
    evaluate_lgm(model, views, None, made)
    assert len(given) == 3
    for i, (images, guessed) in enumerate(given):
        torch.testing.assert_close(images, made.pictures(torch.tensor([i])))
        assert guessed.tolist() == [[0, 1, 1, 1]]


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
def test_a_guess_is_told_where_there_is_a_channel_for_it(flag):
    torch.manual_seed(0)
    model = LGM(replace(TOY, guess_channel=flag))
    images, poses = torch.rand(1, 4, 3, 64, 64), torch.from_numpy(np.stack([orbit_camera(0, 90 * i) for i in range(4)]))
    with torch.no_grad():
        none = model(images, poses[None])
        torch.testing.assert_close(none, model(images, poses[None], torch.zeros(1, 4)))
        some = model(images, poses[None], torch.tensor([[0.0, 1, 1, 1]]))
    assert torch.equal(none, some) is not flag


def test_weights_from_before_the_channel_start_without_effect(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    before = LGM(replace(TOY, guess_channel=False))
    save_file(before.state_dict(), tmp_path / "model.safetensors")
    after = LGM(TOY)
    after.load_state_dict(training.start_state(tmp_path / "model.safetensors", TOY))
    images, poses = torch.rand(1, 4, 3, 64, 64), torch.from_numpy(np.stack([orbit_camera(0, 90 * i) for i in range(4)]))
    with torch.no_grad():
        torch.testing.assert_close(after(images, poses[None], torch.ones(1, 4)), before(images, poses[None]))


def test_the_command(tmp_path, monkeypatch, capsys):
    """`draw --kind placed` and `generate` write what `lgm --generated` reads."""
    with zipfile.ZipFile(tmp_path / "objects.zip", "w") as file:
        file.writestr("index.json", json.dumps([{"id": "a", "split": "train", "caption": "cube"}]))
    real = generated.draw
    monkeypatch.setattr(generated, "draw", lambda *arguments: real(*arguments[:4], 2, *arguments[5:7], 2))  # two steps
    for words in (
        ["draw", "--kind", "placed", "--procedural", 1, "--processes", 1],
        ["generate", "--sets", "procedural-placed"],
    ):
        common = ["--objects", tmp_path / "objects.zip", "--work", tmp_path]
        monkeypatch.setattr(sys, "argv", ["training", *map(str, [*words, *common])])
        command.main()
    assert "procedural-placed: 1 objects' views generated" in capsys.readouterr().out
    files = [(tmp_path / "procedural-placed.npy", ["procedural-00000"])]
    whole = Views.from_files(files, "cpu", placed_poses)
    found = Generated.load([tmp_path / "procedural-placed.generated.npz"], whole)
    assert found.pixels.shape == (1, 4, 256, 256, 3)
    assert found.guessed.tolist() == [False, True, True, True]
    front = np.load(photos_path(files[0][0]))[0].astype(np.float32)
    image = (front[..., :3] + 255 - front[..., 3:]) / 255
    assert psnr(found.pictures(torch.tensor([0]))[0, 0].movedim(0, -1), image) > 12  # it may be made smaller
    color, alpha = whole.pictures(found.inputs)
    assert psnr(found.pictures(torch.tensor([0])), color + 1 - alpha) > 10  # two steps tell this much
