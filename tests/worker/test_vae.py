"""The VAE whose last latent channels are colour."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lgm_blender.training.loops.vae import save_vae
from lgm_blender.worker.multiview.autoencoder import Autoencoder, sample
from lgm_blender.worker.multiview.loading import load_vae
from lgm_blender.worker.multiview.vae import CHANNELS, GAIN, ChromaVAE, chroma, colors

SMALL = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 8],
    "latent_channels": 5,
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 32,
}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return ChromaVAE(**SMALL).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures():
    """Each of one colour on white, as objects are: [3, 3, 32, 32] in -1 to 1."""
    made = torch.ones(3, 3, 32, 32)
    for picture, color in zip(made, ([0.8, -0.6, -0.7], [-0.5, -0.4, -0.1], [0.1, 0.1, 0.1]), strict=True):
        picture[:, 8:28, 4:24] = torch.tensor(color)[:, None, None]
    return made


def test_chroma_is_what_is_left_without_the_mean():
    rgb = torch.rand(2, 3, 4, 4) * 2 - 1
    assert torch.allclose(colors(chroma(rgb)), rgb - rgb.mean(1, keepdim=True), atol=1e-6)
    assert torch.allclose(chroma(rgb).square().sum(1), (rgb - rgb.mean(1, keepdim=True)).square().sum(1), atol=1e-5)


def test_grey_has_no_chroma():
    assert chroma(torch.rand(1, 1, 4, 4).expand(-1, 3, -1, -1)).abs().max() == 0


def test_the_last_channels_are_the_pictures_colours(vae, pictures):
    latents = vae.encode(pictures)[0]
    assert latents.shape == (3, 5, 8, 8)
    assert torch.allclose(latents[:, -CHANNELS:], F.avg_pool2d(chroma(pictures), 4) * GAIN, atol=1e-6)
    plain = Autoencoder(**SMALL)
    plain.load_state_dict(vae.state_dict())
    learnt = plain.encode(pictures)[0]
    assert torch.allclose(latents[:, :-CHANNELS], learnt[:, :-CHANNELS], atol=1e-6)


def test_hues_come_back_whatever_the_network_has_learnt(vae, pictures):
    """Its weights are random; the usual class with them has no idea of the colours."""
    latents = vae.encode(pictures)[0]
    inside = (..., slice(12, 24), slice(8, 20))
    true = chroma(pictures)[inside].mean((2, 3))
    assert torch.allclose(chroma(vae.decode(latents))[inside].mean((2, 3)), true, atol=0.05)
    plain = Autoencoder(**SMALL)
    plain.load_state_dict(vae.state_dict())
    assert (chroma(plain.decode(latents))[inside].mean((2, 3)) - true).abs().max() > 0.3


def test_latents_are_sampled_near_their_mean(vae, pictures):
    mean, log_variance = vae.encode(pictures)
    sampled = sample(mean, log_variance, torch.Generator().manual_seed(0))
    off = (sampled - mean)[:, -CHANNELS:]
    assert 0 < off.std() < 0.06


def test_other_sizes(vae):
    """The preview decodes latents that have been made smaller."""
    assert vae.decode(torch.zeros(2, 5, 3, 3)).shape == (2, 3, 12, 12)
    assert vae.encode(torch.zeros(1, 3, 64, 32))[0].shape == (1, 5, 16, 8)


def test_the_configuration_says_which(vae, pictures, tmp_path):
    save_vae(vae, SMALL, tmp_path)
    loaded = load_vae(tmp_path, torch.device("cpu"), torch.float32)
    assert type(loaded) is ChromaVAE
    latents = vae.encode(pictures)[0]
    np.testing.assert_allclose(loaded.decode(latents), vae.decode(latents), atol=1e-6)


@pytest.mark.parametrize("name", ["AutoencoderKL", None])
def test_other_presets_have_the_usual_one(vae, tmp_path, name):
    config = {**SMALL, "_class_name": name} if name else SMALL
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(vae.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    assert type(load_vae(tmp_path, torch.device("cpu"), torch.float32)) is Autoencoder
