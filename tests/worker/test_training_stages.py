"""The stages that make the bundled models, as the command runs them."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors

from lgm_blender.core.errors import LGMError
from lgm_blender.worker import quantization
from lgm_blender.worker.models import CheckedFiles, find_preset
from lgm_blender.worker.training import __main__ as command
from lgm_blender.worker.training import schedule
from lgm_blender.worker.training.multiview import Samples
from lgm_blender.worker.training.objects import read_index, read_object
from lgm_blender.worker.training.procedural import procedural
from lgm_blender.worker.training.vae import MINI, train_vae
from lgm_blender.worker.training.views import Views

PRESET = Path(command.__file__).parents[2] / "weights" / "mini"
SMALL = MINI | {"block_out_channels": [16, 16, 16, 16], "norm_num_groups": 8, "sample_size": 32}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An objects.zip of procedural shapes: two for training, one for validation."""
    path = tmp_path_factory.mktemp("objects") / "objects.zip"
    index = [
        {"id": name, "split": split, "caption": f"thing {name}"}
        for name, split in zip("abc", ("train", "train", "val"), strict=True)
    ]
    with zipfile.ZipFile(path, "w") as file:
        for entry in index:
            made, buffer = procedural(entry["id"]), io.BytesIO()
            corners = made.corners
            np.savez(
                buffer,
                vertices=corners[:, :3].astype(np.float16),
                uv=np.zeros((len(corners), 2), np.float16),
                faces=np.arange(len(corners), dtype=np.uint32).reshape(-1, 3),
                face_material=np.arange(len(corners) // 3, dtype=np.uint8) % 2,
                material_color=np.array([[200, 40, 30, 255], [30, 60, 210, 255]], np.uint8),
                material_texture=np.full(2, -1, np.int16),
            )
            file.writestr(f"{entry['id']}.npz", buffer.getvalue())
        file.writestr("index.json", json.dumps(index))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def stage(archive, work):
    """Runs a stage in the work folder, at 32², where views are drawn, and orbits of objects, a variant and shapes."""

    def run(name, *words):
        with pytest.MonkeyPatch.context() as patch:
            common = ["--objects", archive, "--work", work, "--size", 32, "--processes", 1, "--no-compile"]
            patch.setattr(sys, "argv", ["training", name, *map(str, [*common, *words])])
            command.main()

    run("draw")
    run("draw", "--kind", "orbits")
    run("draw", "--kind", "orbits", "--procedural", 2)
    run("draw", "--kind", "orbits", "--split", "train", "--variant", 1)
    return run


@pytest.fixture(scope="module")
def views(stage, work):
    return Views.from_files([(work / "train.npy", ["a", "b"])], "cpu")


# The VAE


def test_colours_count_beyond_their_brightness(views, tmp_path, monkeypatch):
    """With the chroma loss colours come sooner."""
    monkeypatch.setattr(schedule, "LOG_EVERY", 20)
    last = {}
    for weight in (0.0, 10.0):
        folder = tmp_path / str(weight)
        train_vae(views, folder, steps=60, batch=4, rate=2e-3, config=SMALL, compile=False, chroma_weight=weight)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        last[weight] = log[-1]["chroma"]
    assert last[10.0] < 0.9 * last[0.0]


def test_the_decoder_alone_leaves_the_latents(views, tmp_path):
    first = train_vae(views, tmp_path / "first", steps=1, batch=2, config=SMALL, compile=False)
    again = train_vae(
        views, tmp_path / "again", steps=2, batch=2, init=tmp_path / "first", decoder_only=True, compile=False
    )
    assert again.config.scaling_factor == first.config.scaling_factor
    state = again.state_dict()
    changed = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, state[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}


# The command


def test_encode_does_what_multiview_would_do_first(stage, work, capsys):
    stage("encode", "--init", PRESET / "multiview", "--sets", "train", "train-1", "procedural")
    assert capsys.readouterr().out.count("samples in") == 3
    made = {
        name: Samples.load(work / f"samples-{name}.safetensors", "cpu") for name in ("train", "train-1", "procedural")
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
    stage("multiview", *words, "--steps", 1, "--batch", 2)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in work.glob("samples-*.safetensors")}.items()
    assert (work / "multiview" / "multiview.safetensors").exists()
    shutil.rmtree(work / "multiview")


def test_archives_are_joined(archive, tmp_path, monkeypatch):
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(archive) as given, zipfile.ZipFile(other, "w") as file:
        file.writestr("d.npz", given.read("a.npz"))
        file.writestr("index.json", json.dumps([{"id": "d", "split": "val", "caption": "thing d"}]))
    words = ["join", "--work", tmp_path, "--objects", tmp_path / "all.zip", "--archives", archive]
    monkeypatch.setattr(sys, "argv", ["training", *map(str, [*words, other])])
    command.main()
    assert [o["id"] for o in read_index(tmp_path / "all.zip")] == ["a", "b", "c", "d"]
    assert len(read_object(tmp_path / "all.zip", "d").corners) == len(read_object(archive, "a").corners)
    monkeypatch.setattr(sys, "argv", ["training", *map(str, [*words, archive])])
    with pytest.raises(LGMError, match="has an object a that an archive before it has too"):
        command.main()


def test_sets_made_meanwhile_are_taken_in(stage, work, monkeypatch):
    """After a checkpoint."""
    stage("encode", "--init", PRESET / "multiview", "--sets", "train-1")
    monkeypatch.setattr(
        schedule.Trainer.__init__, "__kwdefaults__", schedule.Trainer.__init__.__kwdefaults__ | {"save_every": -1.0}
    )
    words = ["--init", PRESET / "multiview", "--sets", "train", "--later-sets", "train-1", "train-2"]
    stage("multiview", *words, "--steps", 2, "--batch", 2)
    log = [json.loads(line) for line in (work / "multiview" / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in log if "samples" in line] == [16 + 8]
    shutil.rmtree(work / "multiview")


def test_without_a_vae_there_is_a_sentence(archive, tmp_path, monkeypatch):
    words = ["encode", "--objects", archive, "--work", tmp_path, "--sets", "train"]
    monkeypatch.setattr(sys, "argv", ["training", *map(str, words)])
    with pytest.raises(LGMError, match=r"has no VAE\. Train one"):
        command.main()


def test_bundle_makes_a_preset_of_what_was_trained(tmp_path, monkeypatch):
    """Of a new LGM; the rest of the preset stays as it was."""
    output, lgm = tmp_path / "preset", tmp_path / "work" / "lgm"
    shutil.copytree(PRESET, output)
    lgm.mkdir(parents=True)
    state = quantization.load_file(PRESET / "lgm" / "model.safetensors")
    save_safetensors({name: tensor.float() * 1.01 for name, tensor in state.items()}, lgm / "model.safetensors")
    monkeypatch.setattr(sys, "argv", ["training", "bundle", "--work", str(lgm.parent), "--output", str(output)])
    command.main()
    preset = find_preset(str(output))
    for part in preset.weights:
        preset.verify(part, CheckedFiles(tmp_path / "checked.json"))
    before = json.loads((PRESET / "preset.json").read_text())["files"]
    after = json.loads((output / "preset.json").read_text())["files"]
    assert {name for name in after if after[name] != before[name]} == {"lgm/model.safetensors"}


@pytest.mark.parametrize(
    ("words", "said"), [(["bundle"], "bundle needs --output"), (["draw"], "draw needs --objects, an objects.zip")]
)
def test_what_a_stage_needs_is_said(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training", *words, "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit):
        command.main()
    assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_vae_goes_on_from_a_preset(stage, work):
    stage("vae", "--init", PRESET / "multiview", "--steps", 1, "--batch", 2, "--rate", 1e-9)
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
    stage = ["-m", "lgm_blender.worker.training", name, "--objects", archive, "--work", tmp_path, "--size", 32]
    words = ["--sets", "train", "--init", PRESET / "multiview", "--steps", 3, "--batch", 2]
    result = subprocess.run(
        [str(word) for word in (*launch, *stage, *words, "--no-compile")],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(command.__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert torch.load(tmp_path / name / "checkpoint.pt", map_location="cpu", weights_only=True)["step"] == 3
