"""The train command: data and weights in, a preset out. Run: python build.py test tests/training/test_train.py"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_training import TOY, archive  # noqa: F401 (a fixture)

from lgm_blender.core.errors import LGMError
from lgm_blender.training.__main__ import main
from lgm_blender.training.data import render_views as make
from lgm_blender.training.loops import finetune as train
from lgm_blender.training.loops import lpips
from lgm_blender.training.loops.plot import plot_log
from lgm_blender.training.loops.trainer import Trainer
from lgm_blender.training.settings import LGMSettings
from lgm_blender.worker import presets
from lgm_blender.worker.lgm import LGM_CONFIGS, LGMConfig, load_lgm
from lgm_blender.worker.lgm.model import LGM
from lgm_blender.worker.weights import CheckedFiles


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    """A model that trains in seconds, and no LPIPS weights of this machine."""
    monkeypatch.setitem(LGM_CONFIGS, "mini", TOY)
    monkeypatch.setitem(
        train.RECIPES, "first", train.Recipe(LGMSettings(batch=2, learning_rate=3e-3, optimizer="muon"), size=32)
    )
    monkeypatch.setitem(train.RECIPES, "finetune", train.Recipe(LGMSettings(batch=2), size=32))
    monkeypatch.setattr(lpips, "default_file", lambda: tmp_path / "no lpips")


@pytest.fixture
def folders(archive, tmp_path):  # noqa: F811
    """The three cubes as folders of 12 views, one of them for judging."""
    for made in make.make_views(make.find_sources(archive), tmp_path / "data", 32, 36, 1, False):
        assert not made.problem
    return tmp_path / "data"


def test_from_a_zip_to_a_preset_that_loads(archive, tmp_path, capsys):  # noqa: F811
    output = tmp_path / "Mein Käktus"
    assert main(["train", "--data", str(archive), "--init", "none", "--steps", "4", "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(output)
    assert "2 objects to train on, 1 to judge on" in told.err
    assert "dB" in told.err
    preset = presets.find_preset(str(output))
    assert preset.modes == ("image", "text")
    for part in ("lgm", "image"):
        preset.verify(part, CheckedFiles(tmp_path / "checked.json"))
    assert preset.locate("image") == presets.BUNDLED / "mini" / "multiview"
    model = load_lgm(preset.locate("lgm"))
    assert model.config == TOY
    assert (output / "views" / "train-32.npy").exists()


def test_fine_tuning_starts_from_weights(folders, tmp_path, capsys):
    torch.manual_seed(0)
    start = LGM(TOY)
    (tmp_path / "start").mkdir()
    save_file(start.state_dict(), tmp_path / "start" / "mine.safetensors")
    (tmp_path / "start" / "config.json").write_text(json.dumps(TOY.to_dict()))
    init = str(tmp_path / "start" / "mine.safetensors")
    # So short a run at so low a learning rate changes little.
    train.train(folders, tmp_path / "a", init=init, steps=1, learning_rate=1e-7)
    model = load_lgm(tmp_path / "a" / "lgm")
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=2e-3, rtol=0)
    told = capsys.readouterr().err
    assert "Before" in told
    assert "Now" in told
    # And from the folder that this left.
    train.train(folders, tmp_path / "b", init=str(tmp_path / "a"), steps=1)
    assert presets.find_preset(str(tmp_path / "b")).locate("image") == presets.BUNDLED / "mini" / "multiview"


def test_a_resumed_training_gives_what_an_uninterrupted_one_does(folders, tmp_path, monkeypatch):
    whole = train.train(folders, tmp_path / "whole", init="none", steps=4)
    step = Trainer.step

    def interrupted(self, *losses, **values):
        step(self, *losses, **values)
        if self.steps_done == 2:
            self.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(folders, tmp_path / "parts", init="none", steps=4)
    assert not (tmp_path / "parts" / "lgm").exists()
    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(LGMError, match="--resume"):
        train.train(folders, tmp_path / "parts", init="none", steps=4)
    parts = train.train(folders, tmp_path / "parts", init="none", steps=4, resume=True)
    a, b = load_lgm(whole / "lgm").state_dict(), load_lgm(parts / "lgm").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = train.train(folders, tmp_path / "other", init="none", steps=4, seed=1)
    assert not all(torch.equal(a[name], value) for name, value in load_lgm(other / "lgm").state_dict().items())


def test_a_checkpoint_that_does_not_fit_gets_a_sentence(folders, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "log.jsonl").touch()
    for state in ({"model": {}, "ema": {}}, {"model": {"a": torch.zeros(1)}, "average": {}, "optimizers": []}):
        torch.save(state, tmp_path / "old" / "checkpoint.pt")
        with pytest.raises(LGMError, match=r"of another model, optimizer or version\. Start in another"):
            train.train(folders, tmp_path / "old", init="none", steps=4, resume=True)
    (tmp_path / "old" / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(LGMError, match="is damaged"):
        train.train(folders, tmp_path / "old", init="none", steps=4, resume=True)


def test_epochs_are_steps(folders, tmp_path):
    train.train(folders, tmp_path / "a", init="none", epochs=3)  # two objects, two a step
    assert torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["step"] == 3


def test_an_object_without_an_orbit_is_left_out(folders, tmp_path):
    a = json.loads((folders / "a" / "transforms.json").read_text())
    a["frames"] = a["frames"][:4] + a["frames"][-12:]  # four neighbours, and those from anywhere
    (folders / "a" / "transforms.json").write_text(json.dumps(a))
    told = []
    train.train(folders, tmp_path / "out", init="none", steps=1, tell=told.append)
    assert any("a is left out" in line and "quarter turn" in line for line in told)
    assert any("1 objects to train on" in line for line in told)
    shutil.rmtree(folders / "b")
    with pytest.raises(LGMError, match="training views"):
        train.train(folders, tmp_path / "out2", init="none", steps=1, tell=told.append)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nowhere"], "no folder nowhere"),
        (["--init", "nothing"], "no preset 'nothing'"),
        (["--init", "no.safetensors"], "no file"),
        (["--init", "broken.safetensors"], "can't be read as safetensors"),
        (["--init", "other.safetensors"], "not LGM"),
        (["--data", "broken.zip"], "not an objects.zip"),
        (["--output", "."], "holds other files"),
        (["--steps", "0"], "--steps must be above 0"),
    ],
)
def test_bad_input_gets_a_sentence(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    (tmp_path / "broken.zip").write_bytes(b"no")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "data").mkdir()
    given = {"--data": "data", "--output": "out", "--init": "none"} | {options[0]: options[1]}
    assert main(["train", *(word for pair in given.items() for word in pair)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("Error: ")


def test_published_sizes_are_told_apart(tmp_path):
    for name in ("big", "small", "tiny"):
        config = LGM_CONFIGS[name]
        shapes = {
            "unet.conv_in.weight": torch.zeros(config.down_channels[0], 9, 3, 3),
            "unet.conv_out.weight": torch.zeros(14, config.up_channels[-1], 3, 3),
        }
        save_file(shapes, tmp_path / f"{name}.safetensors")
        start = train.find_start(str(tmp_path / f"{name}.safetensors"), "mini")
        assert start.config == config
        assert start.preset == "lgm"


def test_the_paper_s_recipe_is_the_paper_s(folders, tmp_path, monkeypatch):
    """As it reaches the training: 30 times two objects, eight views of 512² supervised (LGM, sections 3.3 and 4.1)."""
    given = []

    def stop(views, output, config, settings, **_):
        given.extend((views.size, config, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_lgm", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(folders, tmp_path / "paper", init="none", recipe="paper", batch=2)
    size, config, settings = given
    assert (size, config) == (512, LGMConfig())
    assert settings.steps == 30
    assert settings.supervised_inputs + settings.supervised_others == 8
    assert (settings.learning_rate, settings.lpips_weight, settings.surface_weight) == (4e-4, 1.0, 0.0)


def test_a_log_becomes_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    lines = [{"step": i * 200, "psnr": 15 + i, "loss": 1 / (i + 1), "val_psnr": 14 + i} for i in range(5)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plot_log(tmp_path / "log.jsonl", tmp_path / "log.png")
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "log.png").convert("L"))
    assert picture.shape[1] > 500
    assert (picture < 200).sum() > 500  # something is plotted
