"""Model folders: of all versions, and damaged ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_multiview import write_folder

from lgm_blender.core.errors import LGMError
from lgm_blender.worker import quantization
from lgm_blender.worker.multiview.pipeline import MultiViewPipeline

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def views(original) -> np.ndarray:
    return generate(original)


@pytest.fixture
def folder(original, tmp_path):
    """A copy to change."""
    return shutil.copytree(original, tmp_path / "tiny")


def generate(folder) -> np.ndarray:
    image = np.random.default_rng(0).random((20, 20, 3), dtype=np.float32)
    return MultiViewPipeline.from_folder(folder)("a cat", image, steps=1)


def rewrite(path, change) -> None:
    """Replaces a safetensors file by what `change` makes of its state dict."""
    save_file({name: tensor.clone().contiguous() for name, tensor in change(load_file(path)).items()}, path)


def refused(folder, *sentences: str) -> None:
    with pytest.raises(LGMError) as caught:
        MultiViewPipeline.from_folder(folder)
    assert caught.value.kind == "weights"
    for sentence in sentences:
        assert sentence in caught.value.message


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize(("part", "prefix"), [("text_encoder", "text_model."), ("image_encoder", "vision_model.")])
def test_clip_of_any_version(folder, views, part, prefix, prefixed):
    def change(state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        state = {prefix + name if prefixed else name: tensor for name, tensor in state.items()}
        positions = (prefix if prefixed else "") + "embeddings.position_ids"
        return state | {positions: torch.arange(5)[None], "visual_projection.weight": torch.ones(4, 32)}

    rewrite(folder / part / "model.safetensors", change)
    assert np.array_equal(generate(folder), views)


def test_a_vae_of_an_old_version(folder, views):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def change(state):
        renamed = {}
        for name, tensor in state.items():
            for new, before in old.items():
                if f".{new}." in name:
                    name = name.replace(f".{new}.", f".{before}.")
                    tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
            renamed[name] = tensor
        assert renamed.keys() != state.keys()
        return renamed

    rewrite(folder / VAE_FILE, change)
    assert np.array_equal(generate(folder), views)


def test_settings_of_the_published_class(folder, views):
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"dropout": 0.0, "dims": 2, "num_classes": None, "_name_or_path": "x"}))
    assert np.array_equal(generate(folder), views)
    path.write_text(json.dumps(config | {"num_classes": 10}))
    refused(folder, "num_classes")


def test_8_bit_weights(folder, views):
    state = load_file(folder / UNET_FILE)
    quantization.save_file(state, folder / UNET_FILE, bits=8)
    assert 0 < np.abs(generate(folder) - views).mean() < 0.01


def test_a_missing_tensor(folder):
    rewrite(folder / UNET_FILE, lambda state: {n: t for n, t in state.items() if n != "out.2.bias"})
    refused(folder, "out.2.bias is missing")


def test_an_unexpected_tensor(folder):
    rewrite(folder / VAE_FILE, lambda state: state | {"extra": torch.ones(2)})
    refused(folder, "extra is unexpected")


def test_a_tensor_of_another_shape(folder):
    rewrite(folder / "text_encoder/model.safetensors", lambda state: {n: t[..., :-1] for n, t in state.items()})
    refused(folder, "has shape", "more")


def test_a_file_cut_short(folder):
    whole = (folder / UNET_FILE).read_bytes()
    (folder / UNET_FILE).write_bytes(whole[: len(whole) // 2])
    refused(folder, "cut short", "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    "missing",
    [
        UNET_FILE,
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "text_encoder/model.safetensors",
        "image_encoder/config.json",
        "feature_extractor/preprocessor_config.json",
    ],
)
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    refused(folder, missing.split("/")[1], "missing")


@pytest.mark.parametrize("text", ["", "[1]", '{"image_size": '])
def test_a_damaged_configuration(folder, text):
    (folder / "unet" / "config.json").write_text(text)
    refused(folder, "config.json", "damaged")


def test_a_configuration_of_something_else(folder):
    (folder / "unet" / "config.json").write_text('{"model_channels": "many"}')
    refused(folder, "describes no model")


def test_an_unknown_scheduler(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "os.system"}')
    refused(folder, "os.system")


def test_parts_that_do_not_fit(folder):
    other = write_folder(folder.parent / "other", unet={"context_dim": 64})
    shutil.rmtree(folder / "unet")
    shutil.copytree(other / "unet", folder / "unet")
    refused(folder, "text encoder does not fit")
