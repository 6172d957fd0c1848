"""Train the small VAE of the bundled multi-view model: diffusers' AutoencoderKL, eightfold, eight channels."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from .lpips import LPIPS
from .objects import VIEWS
from .schedule import AveragedWeights, Clock, Log, cosine_rate
from .views import Views

MINI = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [32, 64, 96, 128],
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 16,
    "sample_size": 256,
}


def train_vae(
    views: Views,
    output: Path,
    *,
    seconds: float = math.inf,
    steps: int | None = None,
    batch: int = 32,
    rate: float = 5e-4,
    lpips: LPIPS | None = None,
    lpips_weight: float = 0.3,
    kl_weight: float = 1e-6,
    seed: int = 0,
    config: dict = MINI,
    init: Path | None = None,
    compile: bool = True,
) -> AutoencoderKL:
    """Train on views on white for a number of seconds or steps, and save as a diffusers folder.

    The loss is L1 + MSE, LPIPS and a faint KL term (Rombach et al. 2022, arXiv 2112.10752, without its discriminator).
    The saved scaling factor makes the latents' standard deviation 1. `init` is a folder that an earlier run saved.
    """
    device = views.pixels.device
    cuda = device.type == "cuda"
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    shuffle = torch.Generator().manual_seed(seed)
    model = AutoencoderKL(**config) if init is None else AutoencoderKL.from_pretrained(init)
    model = model.to(device)
    if cuda:
        model = model.to(memory_format=torch.channels_last)
    average = AveragedWeights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=cuda)
    if compile:
        model.encoder.compile()
        model.decoder.compile()
    log, clock, step = Log(output / "log.jsonl"), Clock(seconds, steps), 0
    while (progress := clock.tick()) < 1:
        objects = torch.randint(len(views), (batch,), generator=generator, device=device)
        which = torch.randint(VIEWS, (batch,), generator=generator, device=device)
        color, alpha = views.pictures(objects, which)
        # Any colour may come at use; the objects' own are mostly brown and grey.
        color = color[:, torch.randperm(3, generator=shuffle)]
        images = color + 1 - alpha
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine_rate(step, progress, 200)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            posterior = model.encode(images * 2 - 1).latent_dist
            latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
            decoded = model.decode(latents).sample
        restored = decoded.float() * 0.5 + 0.5
        # The object counts more than the white around it, which is learnt at once.
        weight = 0.25 + alpha
        l1 = ((restored - images).abs() * weight).mean()
        loss = l1 + 2 * F.mse_loss(restored, images) + kl_weight * posterior.kl().mean()
        distance = torch.zeros(())
        if lpips is not None:
            # A quarter of the picture a step, about the middle, where the object is: four times the steps a second.
            half = views.size // 2
            y, x = (int(torch.randint(views.size // 8, half - views.size // 8 + 1, ())) for _ in range(2))
            crop = (..., slice(y, y + half), slice(x, x + half))
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                distance = lpips(restored[crop], images[crop]).mean()
            loss = loss + lpips_weight * distance
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        step += 1
        if step % 200 == 0:
            mse = F.mse_loss(restored.detach(), images).item()
            log.write(
                step=step,
                progress=progress,
                psnr=-10 * math.log10(mse),
                l1=l1.item(),
                lpips=distance.item(),
                std=latents.detach().float().std().item(),
            )
    model = average.model
    with torch.no_grad():
        std = model.encode(images * 2 - 1).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=round(1 / std, 5))
    model.save_pretrained(output)
    return model
