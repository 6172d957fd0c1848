"""The VAE, the encoders, the tokenizer and the schedulers against the libraries whose files they read."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch
import transformers
from tiny_multiview import SCHEDULER, TEXT, VAE, VISION, write_tokenizer

from lgm_blender.worker.multiview import schedulers
from lgm_blender.worker.multiview.autoencoder import Autoencoder, divergence
from lgm_blender.worker.multiview.clip import ImageEncoder, ImageProcessor, TextEncoder
from lgm_blender.worker.multiview.tokenizer import CLIPTokenizer
from lgm_blender.worker.presets import SCHEDULERS


def test_the_autoencoder():
    torch.manual_seed(0)
    settings = VAE | {"block_out_channels": [32, 64], "layers_per_block": 2}
    published, ours = diffusers.AutoencoderKL(**settings).eval(), Autoencoder(**settings).eval()
    ours.load_state_dict(published.state_dict())
    assert ours.scaling_factor == published.config.scaling_factor
    pictures = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.inference_mode():
        expected, (mean, log_variance) = published.encode(pictures).latent_dist, ours.encode(pictures)
        torch.testing.assert_close(mean, expected.mean)
        torch.testing.assert_close(log_variance, expected.logvar)
        torch.testing.assert_close(divergence(mean, log_variance), expected.kl())
        torch.testing.assert_close(ours.decode(mean), published.decode(mean).sample)


@pytest.mark.parametrize(("name", "value"), [("act_fn", "mish"), ("down_block_types", ["Other"] * 2), ("news", 1)])
def test_another_autoencoder_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Autoencoder(**VAE | {name: value})


def clip_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = (
        (name.removeprefix("text_model.").removeprefix("vision_model."), x) for name, x in model.state_dict().items()
    )
    return {name: tensor for name, tensor in names if not name.endswith("position_ids")}


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_text_encoder(activation):
    torch.manual_seed(0)
    settings = TEXT | {"num_hidden_layers": 2, "hidden_act": activation}
    published = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings)).eval()
    ours = TextEncoder(**published.config.to_dict()).eval()
    ours.load_state_dict(clip_state(published))
    tokens = torch.randint(0, 50, (3, 16))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), published(tokens).last_hidden_state)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_image_encoder(activation):
    torch.manual_seed(0)
    settings = VISION | {"num_hidden_layers": 3, "hidden_act": activation}
    published = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**settings)).eval()
    ours = ImageEncoder(**published.config.to_dict()).eval()
    state = clip_state(published)
    ours.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(ours.unused)})
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = published(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(ours(pixels), expected)
    assert ours.tokens == expected.shape[1]


@pytest.mark.parametrize("size", [(64, 64), (50, 83), (40, 32)])
def test_pictures_for_it(size):
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    # The plain name is another implementation where torchvision is installed, with other results.
    published = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(**settings)
    pictures = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)]
    expected = published(pictures, return_tensors="pt").pixel_values
    torch.testing.assert_close(ImageProcessor(**settings)(pictures), expected)


TEXTS = [
    "A red Chair, with   2 arms!",
    "",
    "café über 猫 😀 it's <|endoftext|> 1234 don't",
    "word " * 40,
    "tabs\tand\nlines and a ligature ﬁ, Å",
]


@pytest.mark.parametrize("special", [{}, {"pad_token": "!"}, {"pad_token": {"content": "!"}}])
def test_the_tokenizer(tmp_path, special):
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder)
    words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    for word in ("!", "!</w>", "re", "red</w>"):
        words[word] = len(words)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n", encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | special
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ours = CLIPTokenizer(folder)
    plain = special | {name: token["content"] for name, token in special.items() if isinstance(token, dict)}
    published = transformers.CLIPTokenizer.from_pretrained(folder, **plain)
    assert (ours.length, len(ours)) == (published.model_max_length, len(published))
    expected = published(TEXTS, padding="max_length", max_length=16, truncation=True).input_ids
    assert ours(TEXTS, 16) == expected


@pytest.mark.parametrize("name", SCHEDULERS.values())
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", True)],
)
def test_the_schedulers(name, spacing, prediction, zero_snr):
    settings = SCHEDULER | {
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": spacing,
        "steps_offset": int(spacing == "leading"),
    }
    published, ours = getattr(diffusers, name).from_config(settings), getattr(schedulers, name)(**settings)
    assert getattr(schedulers, name)(**published.config).spacing == spacing  # with all that diffusers writes
    mixed = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) * 0.3
    for steps, first in ((1, 0), (2, 0), (3, 0), (20, 0), (10, 4)):
        published.set_timesteps(steps)
        ours.set_timesteps(steps)
        assert ours.timesteps == published.timesteps.tolist()
        expected = latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for i, t in list(enumerate(published.timesteps))[first:]:
            outputs = [torch.einsum("bchw,cd->bdhw", x, mixed).tanh() * (1 + t / 1000) for x in (expected, latents)]
            expected = published.step(outputs[0], t, expected).prev_sample
            latents = ours.step(outputs[1], i, latents)
            torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


def test_samples_are_clipped_where_diffusers_clips():
    settings = SCHEDULER | {"clip_sample": True}
    published, ours = diffusers.DDIMScheduler.from_config(settings), schedulers.DDIMScheduler(**settings)
    published.set_timesteps(4)
    ours.set_timesteps(4)
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = published.step(output, published.timesteps[2], latents).prev_sample
    torch.testing.assert_close(ours.step(output, 2, latents), expected)


@pytest.mark.parametrize(
    "setting", [{"beta_schedule": "squaredcos_cap_v2"}, {"use_karras_sigmas": True}, {"timestep_spacing": "other"}]
)
def test_another_schedule_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        schedulers.DPMSolverMultistepScheduler(**SCHEDULER | setting)
