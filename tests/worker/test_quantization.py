"""Weights in 16 and 8 bits, to a file and back."""

from __future__ import annotations

import pytest
import torch

from lgm_blender.core.errors import LGMError
from lgm_blender.worker.quantization import load_file, save_file


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, 3, 3, generator=generator)
    weight *= torch.logspace(-6, 2, 64)[:, None, None, None]  # channels of very different size
    weight[5] = 0
    return {
        "conv.weight": weight,
        "conv.bias": torch.randn(64, generator=generator),
        "small.weight": torch.randn(8, 8, generator=generator),
        "steps": torch.arange(7),
    }


def test_8_bits_are_within_half_a_step_of_each_channel(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors", bits=8)
    loaded = load_file(tmp_path / "w.safetensors")
    assert loaded.keys() == state.keys()
    weight = state["conv.weight"]
    step = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    assert ((loaded["conv.weight"] - weight).abs() <= 0.5001 * step).all()
    assert loaded["conv.weight"].dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 16])
def test_small_tensors_are_fp16_and_integers_unchanged(state, tmp_path, bits):
    save_file(state, tmp_path / "w.safetensors", bits=bits)
    loaded = load_file(tmp_path / "w.safetensors")
    for name in ("conv.bias", "small.weight"):
        assert torch.equal(loaded[name], state[name].half())
    assert torch.equal(loaded["steps"], state["steps"])


def test_8_bits_are_about_half_the_size(state, tmp_path):
    save_file(state, tmp_path / "8.safetensors", bits=8)
    save_file(state, tmp_path / "16.safetensors", bits=16)
    assert (tmp_path / "8.safetensors").stat().st_size < 0.55 * (tmp_path / "16.safetensors").stat().st_size


def test_a_tensor_called_scale_is_nothing_special(tmp_path):
    save_file({"norm": torch.ones(4), "norm.scale": torch.full((4,), 2.0)}, tmp_path / "w.safetensors")
    assert torch.equal(load_file(tmp_path / "w.safetensors")["norm.scale"], torch.full((4,), 2.0).half())


def test_nothing_is_left_behind(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    save_file(state, tmp_path / "w.safetensors", bits=8)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_missing_and_cut_files_are_answered_with_a_sentence(state, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(LGMError, match="missing") as caught:
        load_file(path)
    assert caught.value.kind == "weights"
    save_file(state, path)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LGMError, match="cut short") as caught:
            load_file(path)
        assert caught.value.kind == "weights"
