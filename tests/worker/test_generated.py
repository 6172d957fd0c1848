"""Views by the multi-view model as LGM's training input."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgm_blender.core.cameras import view_poses
from lgm_blender.worker.lgm import LGMConfig
from lgm_blender.worker.matting import matte, recenter
from lgm_blender.worker.models import find_preset
from lgm_blender.worker.multiview.pipeline import MultiViewPipeline
from lgm_blender.worker.pipeline import FRAMES_TO_LGM
from lgm_blender.worker.training import __main__ as command
from lgm_blender.worker.training import generated, schedule
from lgm_blender.worker.training.generated import Generated, generate
from lgm_blender.worker.training.lgm import train_lgm
from lgm_blender.worker.training.objects import draw_objects
from lgm_blender.worker.training.procedural import procedural
from lgm_blender.worker.training.views import Views, back_from, front_zoom, recentered, warped, zoom_to_front

SAMPLE = Path(__file__).parents[2] / "docs" / "samples"
NAMES = ["procedural-00001", "procedural-00004", "procedural-00009"]
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
)


def psnr(a, b) -> float:
    return -10 * np.log10(np.mean((np.asarray(a, np.float64) - np.asarray(b)) ** 2) + 1e-12)


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> Views:
    path = tmp_path_factory.mktemp("drawn") / "procedural.npy"
    assert draw_objects(procedural, NAMES, 64, path, processes=1) == []
    return Views.from_files([(path, NAMES)], "cpu")


@pytest.fixture(scope="module")
def mini() -> MultiViewPipeline:
    preset = find_preset("mini")
    return MultiViewPipeline.from_folder(preset.locate("image"), scheduler=preset.scheduler)


def faithful(views, monkeypatch):
    """A multi-view model that makes no mistakes: it knows the true views by their input image."""
    known = []
    for rows in views.orbits.flatten(0, 1):
        color, alpha = views.pictures(rows[None])
        zoomed, opaque = zoom_to_front(color, alpha)
        known.append((recentered(color[:, 0], alpha[:, 0])[0], (zoomed + 1 - opaque)[0]))
    asked = []

    def draw(pipeline, images, elevations, generator, steps, guidance, keep_image, samples):
        asked.extend(elevations.tolist())
        nearest = [min(known, key=lambda pair: ((pair[0] - image) ** 2).sum()) for image in images]
        return torch.stack([pictures for _, pictures in nearest])

    monkeypatch.setattr(generated, "draw", draw)
    return asked


def test_moves_undo_each_other(views):
    color, alpha = views.pictures(views.orbits[:, 0])
    moves = front_zoom(alpha)
    assert moves.shape == (3, 4, 3)
    assert (moves[..., 0] < 1).all()  # an object in a sphere of 0.62 is drawn larger
    again = back_from(back_from(moves))
    torch.testing.assert_close(again, moves)
    back = warped(warped(color, moves), back_from(moves))
    assert psnr(back, color) > 25
    torch.testing.assert_close(warped(color, moves), zoom_to_front(color, alpha)[0])


def test_faultless_views_are_the_true_ones(views, tmp_path, monkeypatch):
    """What is generated for a recentred input image stands where the object does in the true views."""
    asked = faithful(views, monkeypatch)
    assert generate(views, None, tmp_path / "a.npz", orbits=2, batch=4) == 6
    made = Generated.load([(tmp_path / "a.npz", 3)], views)
    assert made.objects.tolist() == [0, 0, 1, 1, 2, 2]
    assert made.inputs[::2].tolist() == views.orbits[:, 0].tolist()  # from the objects' own fronts
    torch.testing.assert_close(torch.tensor(asked), views.angles[made.inputs[:, 0], 0])
    color, alpha = views.pictures(made.inputs)
    truth = color + 1 - alpha
    pictures = made.pixels.movedim(-1, -3).float() / 255
    for i in range(6):
        assert psnr(pictures[i], truth[i]) > 21
    assert pictures[..., 0, 0].min() > 0.99  # white where nothing was drawn


def test_drawn_batches_belong_together(views, tmp_path, monkeypatch):
    faithful(views, monkeypatch)
    generate(views, None, tmp_path / "a.npz", orbits=2)
    made = Generated.load([(tmp_path / "a.npz", 3)], views)
    objects, inputs, pictures = made.draw(16, torch.Generator().manual_seed(0))
    assert len(set(objects.tolist())) == 3
    for number, rows, picture in zip(objects, inputs, pictures, strict=True):
        assert ((rows >= views.first[number]) & (rows < views.first[number] + views.counts[number])).all()
        color, alpha = views.pictures(rows)
        assert psnr(picture, color + 1 - alpha) > 21


def test_several_files_are_of_one_set_after_the_other(views, tmp_path, monkeypatch):
    faithful(views, monkeypatch)
    generate(views, None, tmp_path / "a.npz")
    twice = Views.from_rows(
        torch.cat([views.pixels] * 2), torch.cat([views.poses] * 2).numpy(), views.counts.tolist() * 2
    )
    made = Generated.load([(tmp_path / "a.npz", 3)] * 2, twice)
    assert made.objects.tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(made.inputs[3:], twice.orbits[3:, 0])
    torch.testing.assert_close(made.pixels[3:], made.pixels[:3])


@pytest.mark.parametrize(("keep", "guidance", "samples"), [(False, 2.5, 1), (True, 2.5, 1), (True, 1.0, 2)])
def test_many_at_once_are_what_each_is_alone(mini, keep, guidance, samples):
    """The same noise gives what a user's request gives, but for how the image is made small."""
    cut, _ = matte(next(SAMPLE.glob("*.png")))
    photo = recenter(cut)
    picture = torch.from_numpy(photo).movedim(-1, 0)
    other = torch.from_numpy(np.asarray(Image.fromarray(np.uint8(photo * 255)).rotate(180), np.float32) / 255)
    images = torch.stack([picture, other.movedim(-1, 0)])
    elevations = torch.tensor([0.0, 20.0])
    made = generated.draw(mini, images, elevations, torch.Generator().manual_seed(5), 3, guidance, keep, samples)
    assert made.shape == (2, 4, 3, 256, 256)
    settings = {"steps": 3, "guidance": guidance, "keep_image": keep, "samples": samples}
    alone = mini(image=photo, seed=5, **settings)[list(FRAMES_TO_LGM)]
    assert psnr(made[0].movedim(1, -1), alone) > 35
    assert psnr(made[0], made[1]) < 25


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lgm_trains_on_them(views, tmp_path, monkeypatch, share):
    """With all steps on generated views the true inputs are never seen, and with none the generated ones are not."""
    monkeypatch.setattr(schedule, "LOG_EVERY", 1)
    faithful(views, monkeypatch)
    generate(views, None, tmp_path / "a.npz")
    made = Generated.load([(tmp_path / "a.npz", 3)], views)
    calls = {"true": 0, "made": 0}

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(made, "draw", counted("made", made.draw))
    monkeypatch.setattr(views, "orbit", counted("true", views.orbit))
    train_lgm(
        views,
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
    log = [json.loads(line) for line in (tmp_path / "lgm" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(np.isfinite(line["off"]) for line in log)


def test_true_views_are_of_both_sets(views, tmp_path, monkeypatch):
    faithful(views, monkeypatch)
    generate(views, None, tmp_path / "a.npz")
    other = replace(views)
    made = Generated.load([(tmp_path / "a.npz", 3)], other)
    seen = []
    for name, source in (("first", views), ("generated's", other)):
        orbit = source.orbit
        monkeypatch.setattr(source, "orbit", lambda *a, name=name, orbit=orbit: (seen.append(name), orbit(*a))[1])
    train_lgm(views, tmp_path / "lgm", TOY, steps=8, batch=1, compile=False, generated=made, generated_share=0.0)
    assert set(seen) == {"first", "generated's"}


def test_the_command(views, tmp_path, monkeypatch, capsys):
    """`generate` writes what `lgm --generated` reads."""
    with zipfile.ZipFile(tmp_path / "objects.zip", "w") as file:
        file.writestr("index.json", json.dumps([{"id": "a", "split": "train", "caption": "cube"}]))
    draw_objects(procedural, ["procedural-00000"], 256, tmp_path / "procedural.npy", processes=1)
    real = generated.draw
    monkeypatch.setattr(generated, "draw", lambda *arguments: real(*arguments[:4], 2, arguments[5]))  # two steps
    words = ["generate", "--objects", tmp_path / "objects.zip", "--work", tmp_path, "--sets", "procedural"]
    monkeypatch.setattr(sys, "argv", ["training", *map(str, words), "--orbits", "1"])
    command.main()
    assert "procedural: 1 orbits generated" in capsys.readouterr().out
    whole = Views.from_files([(tmp_path / "procedural.npy", ["procedural-00000"])], "cpu")
    made = Generated.load([(tmp_path / "procedural.generated.npz", 1)], whole)
    assert made.pixels.shape == (1, 4, 256, 256, 3)
    front = view_poses("procedural-00000")[0][0]
    np.testing.assert_allclose(whole.poses[made.inputs[0, 0]].numpy(), front, atol=1e-5)
    color, alpha = whole.pictures(made.inputs)
    front = made.pixels[0, 0].float() / 255
    assert psnr(front, (color + 1 - alpha)[0, 0].movedim(0, -1)) > 12  # two steps tell this much
