"""The stages that make the bundled models, as the command runs them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import write_archive
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors

from lgm_blender.training import stages
from lgm_blender.training.__main__ import main
from lgm_blender.training.data.latents import EncodedOrbits
from lgm_blender.training.data.objects import read_index, read_object
from lgm_blender.training.data.procedural import procedural
from lgm_blender.training.data.views import TrainingViews
from lgm_blender.training.loops import trainer as schedule
from lgm_blender.training.loops.vae import MINI, train_vae
from lgm_blender.training.settings import LGMSettings, VAESettings
from lgm_blender.worker import quantization
from lgm_blender.worker.lgm import load_lgm_config
from lgm_blender.worker.presets import find_preset
from lgm_blender.worker.weights import CheckedFiles

PRESET = Path(__file__).parents[2] / "lgm_blender" / "weights" / "mini"
SMALL = MINI | {"block_out_channels": [16, 16, 16, 16], "norm_num_groups": 8, "sample_size": 32}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An objects.zip of procedural shapes: two for training, one for validation."""
    objects = {}
    for name in "abc":
        corners = procedural(name).corners
        objects[name] = {
            "vertices": corners[:, :3].astype(np.float16),
            "uv": np.zeros((len(corners), 2), np.float16),
            "faces": np.arange(len(corners), dtype=np.uint32).reshape(-1, 3),
            "face_material": np.arange(len(corners) // 3, dtype=np.uint8) % 2,
            "material_color": np.array([[200, 40, 30, 255], [30, 60, 210, 255]], np.uint8),
            "material_texture": np.full(2, -1, np.int16),
        }
    return write_archive(tmp_path_factory.mktemp("objects") / "objects.zip", objects, "train", "train", "val")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def stage(archive, work):
    """Runs a stage in the work folder, where there are views at 32², and orbits of objects, a variant and shapes."""

    def run(name, *words):
        assert main([name, *map(str, ["--objects", archive, "--work", work, *words])]) == 0

    small = ["--size", 32, "--processes", 1]
    run("render", *small)
    run("render", *small, "--kind", "orbits")
    run("render", *small, "--kind", "orbits", "--procedural", 2)
    run("render", *small, "--kind", "orbits", "--split", "train", "--variant", 1)
    return run


@pytest.fixture(scope="module")
def views(stage, work):
    return TrainingViews.from_files([(work / "train.npy", ["a", "b"])], "cpu")


# The VAE


def test_colours_count_beyond_their_brightness(views, tmp_path, monkeypatch):
    """With the chroma loss colours come sooner."""
    monkeypatch.setattr(schedule, "LOG_EVERY", 20)
    last = {}
    for weight in (0.0, 10.0):
        folder = tmp_path / str(weight)
        settings = VAESettings(steps=60, batch=4, learning_rate=2e-3, compile=False, chroma_weight=weight)
        train_vae(views, folder, settings, config=SMALL)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        last[weight] = log[-1]["chroma"]
    assert last[10.0] < 0.9 * last[0.0]


def test_the_decoder_alone_leaves_the_latents(views, tmp_path):
    settings = VAESettings(steps=1, batch=2, compile=False)
    first = train_vae(views, tmp_path / "first", settings, config=SMALL)
    settings = replace(settings, steps=2, init=tmp_path / "first", decoder_only=True)
    again = train_vae(views, tmp_path / "again", settings)
    assert again.scaling_factor == first.scaling_factor
    state = again.state_dict()
    changed = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, state[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}


# The command


def test_encode_does_what_multiview_would_do_first(stage, work, capsys):
    stage("encode", "--init", PRESET / "multiview", "--sets", "train", "train-1", "procedural")
    assert capsys.readouterr().out.count("samples in") == 3
    made = {
        name: EncodedOrbits.load(work / f"samples-{name}.safetensors", "cpu")
        for name in ("train", "train-1", "procedural")
    }
    # Captions: a, b, c, "shape"; then the same again for objects in other colours.
    assert set(made["train"].captions.tolist()) == {0, 1}
    assert set(made["train-1"].captions.tolist()) == {4, 5}
    assert set(made["procedural"].captions.tolist()) == {3}
    assert made["train"].fronts.any()
    assert not made["procedural"].fronts.any()
    assert not (made["train-1"].fronts & (made["train-1"].colors == 0)).any()
    assert not (work / "multiview").exists()
    times = {path: path.stat().st_mtime_ns for path in work.glob("samples-*.safetensors")}
    words = ["--init", PRESET / "multiview", "--sets", "train", "train-1", "procedural"]
    stage("multiview", *words, "--steps", 1, "--batch", 2, "--no-compile")
    assert times.items() <= {path: path.stat().st_mtime_ns for path in work.glob("samples-*.safetensors")}.items()
    assert (work / "multiview" / "multiview.safetensors").exists()
    shutil.rmtree(work / "multiview")


def test_archives_are_joined(archive, tmp_path, capsys):
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(archive) as given, zipfile.ZipFile(other, "w") as file:
        file.writestr("d.npz", given.read("a.npz"))
        file.writestr("index.json", json.dumps([{"id": "d", "split": "val", "caption": "thing d"}]))
    joined = str(tmp_path / "all.zip")
    assert main(["join", str(archive), str(other), "--output", joined]) == 0
    assert [o["id"] for o in read_index(joined)] == ["a", "b", "c", "d"]
    assert len(read_object(joined, "d").corners) == len(read_object(archive, "a").corners)
    assert main(["join", str(archive), str(archive), "--output", joined]) == 1
    assert "has an object a that one before it has too" in capsys.readouterr().err


def test_without_a_vae_there_is_a_sentence(archive, tmp_path, capsys):
    assert main(["encode", "--objects", str(archive), "--work", str(tmp_path), "--sets", "train"]) == 1
    assert "has no VAE. Train one" in capsys.readouterr().err


def test_bundle_makes_a_preset_of_what_was_trained(tmp_path):
    """Of a new LGM; the rest of the preset stays as it was."""
    output, lgm = tmp_path / "preset", tmp_path / "work" / "lgm"
    shutil.copytree(PRESET, output)
    lgm.mkdir(parents=True)
    state = quantization.load_file(PRESET / "lgm" / "model.safetensors")
    save_safetensors({name: tensor.float() * 1.01 for name, tensor in state.items()}, lgm / "model.safetensors")
    assert main(["bundle", "--work", str(lgm.parent), "--output", str(output)]) == 0
    preset = find_preset(str(output))
    for part in preset.weights:
        preset.verify(part, CheckedFiles(tmp_path / "checked.json"))
    before = json.loads((PRESET / "preset.json").read_text())["files"]
    after = json.loads((output / "preset.json").read_text())["files"]
    assert after.keys() == before.keys()
    # The configuration may be written otherwise than it was, by newer names.
    changed = {name for name in after if after[name] != before[name]} - {"lgm/config.json"}
    assert changed == {"lgm/model.safetensors"}
    assert load_lgm_config(output / "lgm") == load_lgm_config(PRESET / "lgm")


@pytest.mark.parametrize(("stage", "said"), [("bundle", "required: --output"), ("render", "required: --objects")])
def test_what_a_stage_needs_is_said(stage, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([stage, "--work", str(tmp_path / "work")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_vae_starts_from_a_preset(stage, work):
    stage("vae", "--init", PRESET / "multiview", "--steps", 1, "--batch", 2, "--rate", 1e-9, "--no-compile")
    state = load_safetensors(work / "vae" / "diffusion_pytorch_model.safetensors")
    before = quantization.load_file(PRESET / "multiview" / "vae" / "diffusion_pytorch_model.safetensors")
    assert state.keys() == before.keys()
    for name, value in state.items():  # one step so small changes nothing to speak of
        torch.testing.assert_close(value, before[name].float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["multiview", "vae"])
def test_two_processes_learn_together(stage, archive, work, tmp_path, name):
    """A model of which a part gets no gradient stops at the second step, and only where there are several processes."""
    for path in work.glob("train*"):
        (tmp_path / path.name).symlink_to(path)
    for path in work.glob("val*"):
        (tmp_path / path.name).symlink_to(path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    stage = ["-m", "lgm_blender.training", name, "--objects", archive, "--work", tmp_path]
    words = ["--sets", "train", "--init", PRESET / "multiview", "--steps", 3, "--batch", 2]
    result = subprocess.run(
        [str(word) for word in (*launch, *stage, *words, "--no-compile")],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert torch.load(tmp_path / name / "checkpoint.pt", map_location="cpu", weights_only=True)["step"] == 3


def test_settings_are_what_is_given_and_else_the_defaults(stage, monkeypatch):
    """Options reach the training by the names of its settings; --rate is the older name of --learning-rate."""
    given = []
    monkeypatch.setattr(stages, "train_lgm", lambda views, output, config, settings, **_: given.append(settings))
    stage("lgm", "--steps", 3, "--rate", 1e-3, "--no-augmentation", "--supervised-inputs", 2, "--no-compile")
    stage("lgm", "--until", 5, "--learning-rate", 1e-3, "--resume")
    assert given == [
        LGMSettings(seconds=600, steps=3, learning_rate=1e-3, augmentation=False, supervised_inputs=2, compile=False),
        LGMSettings(seconds=600, until=5, learning_rate=1e-3, resume=True),
    ]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["render", "--work", "W", "--objects", "OBJECTS"], "accelerate"),
        (["bundle", "--work", "W", "--output", "W"], "accelerate"),
        (["train", "--data", "OBJECTS", "--output", "W"], "accelerate"),
        (["views", "OBJECTS", "--output", "W"], "moderngl"),
        (["evaluate", "--data", "OBJECTS", "--output", "W"], "moderngl"),
    ],
)
def test_a_missing_package_is_named_with_what_to_type(archive, tmp_path, words, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from lgm_blender.training.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [{"W": str(tmp_path / "w"), "OBJECTS": str(archive)}.get(word, word) for word in words]
    answer = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=PRESET.parents[2], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 1
    assert f"lacks {missing}. Training needs it. Type: " in answer.stderr
    assert f"install {'' if '-m pip' in answer.stderr else '--python '}" in answer.stderr
    assert "Traceback" not in answer.stderr
