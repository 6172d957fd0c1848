"""The multi-view U-Net against what the published code computes, and its shapes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import golden_normal, golden_weight
from safetensors.torch import load_file

from lgm_blender.core.cameras import multiview_cameras
from lgm_blender.worker.multiview.schedulers import DDIMScheduler
from lgm_blender.worker.multiview.unet import MultiViewUNet

SMALL = {
    "image_size": 8,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "context_dim": 32,
    "ip_dim": 4,
    "image_embed_dim": 24,
    "resampler_depth": 1,
    "resampler_heads": 1,
}


class Golden:
    """One golden U-Net: its weights, its inputs by name, and what the published code made of them."""

    def __init__(self, folder, model: str):
        self.meta = json.loads((folder / "meta.json").read_text())
        self.settings = self.meta[f"{model}_unet"]
        self.prefix = model
        self.tensors = load_file(folder / f"{model}_unet.safetensors")
        self.unet = golden_unet(self.meta["salt"], self.settings["config"])

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(golden_normal(self.meta["salt"], f"{self.prefix}.{name}", shape))


def golden_unet(salt: str, config: dict) -> MultiViewUNet:
    unet = MultiViewUNet(**config).eval()
    unet.load_state_dict({k: torch.from_numpy(golden_weight(salt, k, v.shape)) for k, v in unet.state_dict().items()})
    return unet


def halves(x: torch.Tensor) -> torch.Tensor:
    """The unconditional half, all zeros, and the conditional one."""
    return torch.cat([torch.zeros_like(x), x])


@pytest.fixture(params=["imagedream", "mvdream"])
def model(request, golden) -> Golden:
    return Golden(golden, request.param)


@torch.no_grad()
def test_one_call_agrees_with_the_published_code(model):
    frames = len(model.tensors["camera"])
    rows = 2 * frames
    image = {}
    if model.unet.ip_dim:
        image["image_embeds"] = halves(model.normal("image_embeds", 1, 257, 1280))
        image["image_latents"] = halves(model.normal("image_latents", 1, 4, 8, 8))
    out = model.unet(
        model.normal("x", rows, 4, 8, 8).unflatten(0, (2, frames)),
        model.tensors["timesteps"].view(2, frames),
        model.normal("context", rows, 77, 64),
        model.tensors["camera"].expand(2, -1, -1),
        **image,
    )
    assert (out.flatten(0, 1) - model.tensors["out"]).abs().max() <= 1e-4


@torch.no_grad()
def test_the_denoising_loop_agrees_with_the_published_code(model):
    settings = model.settings
    frames = len(model.tensors["camera"])
    camera = torch.from_numpy(multiview_cameras(settings["elevation_above"], image_frame=model.unet.ip_dim > 0))
    torch.testing.assert_close(camera, model.tensors["camera"], rtol=0, atol=1e-6)
    context = torch.cat([model.normal("negative", 1, 77, 64), model.normal("positive", 1, 77, 64)])
    image_embeds = image_latents = None
    if model.unet.ip_dim:
        image_embeds = halves(model.normal("image_embeds", 1, 257, 1280))
        image_latents = halves(model.normal("image_latents", 1, 4, 8, 8))
    condition = model.unet.prepare(context, camera.expand(2, -1, -1), image_embeds)

    scheduler = DDIMScheduler(**settings["scheduler"])
    scheduler.set_timesteps(settings["num_inference_steps"])
    latents = model.normal("latents", frames, 4, 8, 8)
    for i, t in enumerate(scheduler.timesteps):
        x = latents.expand(2, -1, -1, -1, -1)
        if image_latents is not None:
            x = torch.cat([x[:, :-1], image_latents[:, None]], dim=1)
        without, with_ = model.unet.denoise(x, torch.tensor([t, t]), condition)
        noise = without + settings["guidance_scale"] * (with_ - without)
        latents = scheduler.step(noise, i, latents)
    expected = model.tensors["denoised"]
    assert (latents - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize(("checkpoint", "ip_dim"), [("imagedream_unet", 16), ("mvdream_unet", 0)])
def test_names_and_shapes_are_the_published_checkpoints(golden, checkpoint, ip_dim):
    with torch.device("meta"):
        unet = MultiViewUNet(ip_dim=ip_dim)
    expected = json.loads((golden / "checkpoint_keys.json").read_text())[checkpoint]
    assert {name: list(tensor.shape) for name, tensor in unet.state_dict().items()} == expected


def small_inputs(batch: int = 2, frames: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "x": normal(batch, frames, 4, 8, 8),
        "timesteps": torch.tensor([7, 900][:batch]),
        "context": normal(batch, 3, 32),
        "camera": normal(batch, frames, 16),
        "image_embeds": normal(batch, 6, 24),
        "image_latents": normal(batch, 4, 8, 8),
    }


@torch.no_grad()
def test_objects_of_a_batch_do_not_see_each_other():
    unet = golden_unet("small", SMALL)
    inputs = small_inputs()
    together = unet(**inputs)
    alone = torch.cat([unet(**{name: value[i : i + 1] for name, value in inputs.items()}) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frames_of_an_object_see_each_other():
    unet = golden_unet("small", SMALL)
    inputs = small_inputs(batch=1)
    before = unet(**inputs)
    inputs["x"] = inputs["x"].clone()
    inputs["x"][:, 0] += 1
    assert (unet(**inputs) - before)[:, 1].abs().max() > 1e-3


@torch.no_grad()
def test_the_image_latent_takes_the_place_of_the_last_frame():
    unet = golden_unet("small", SMALL)
    inputs = small_inputs()
    before = unet(**inputs)
    inputs["x"] = torch.cat([inputs["x"][:, :-1], torch.full_like(inputs["x"][:, -1:], 9.0)], dim=1)
    torch.testing.assert_close(unet(**inputs), before, rtol=0, atol=0)


@torch.no_grad()
def test_a_condition_shared_by_the_frames_equals_one_for_each():
    unet = golden_unet("small", SMALL)
    inputs = small_inputs()
    shared = unet(**inputs)
    inputs["context"] = inputs["context"].repeat_interleave(5, dim=0)
    inputs["image_embeds"] = inputs["image_embeds"].repeat_interleave(5, dim=0)
    torch.testing.assert_close(unet(**inputs), shared, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns():
    unet = golden_unet("small", SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        loss = unet(**small_inputs()).float().square().mean()
    loss.backward()
    assert np.isfinite(loss.item())
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_a_missing_condition_is_refused():
    unet = MultiViewUNet(**SMALL)
    inputs = small_inputs()
    with pytest.raises(ValueError, match="image_embeds"):
        unet.prepare(inputs["context"], inputs["camera"])
    with pytest.raises(ValueError, match="camera"):
        unet.prepare(inputs["context"], image_embeds=inputs["image_embeds"])
