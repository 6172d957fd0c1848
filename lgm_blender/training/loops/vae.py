"""Train the small VAE of the bundled multi-view model: ChromaVAE, eightfold, eight channels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ...worker.multiview.vae import ChromaVAE
from ..data.views import Views
from ..evaluation.lpips import LPIPS
from .lgm import random_quarter, save_pairs
from .trainer import Trainer

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


class RoundTrip(nn.Module):
    """A VAE as it is trained: there and back in one call, so that several GPUs can share it."""

    def __init__(self, vae: ChromaVAE, decoder_only: bool = False):
        super().__init__()
        self.vae, self.decoder_only = vae, decoder_only
        if decoder_only:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)

    def forward(self, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Pictures [B, 3, H, W] in -1 to 1, restored from drawn latents, and the latents' distribution.

        The decoder alone learns from the distribution's mean, which is what the multi-view model learns to draw.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            posterior = self.vae.encode(pictures).latent_dist
            latents = posterior.mode() if self.decoder_only else posterior.sample(generator)
        return self.vae.decode(latents).sample, posterior


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
    kl_weight: float = 1e-8,
    chroma_weight: float = 2.0,
    seed: int = 0,
    config: dict = MINI,
    init: Path | None = None,
    decoder_only: bool = False,
    resume: bool = False,
    compile: bool = True,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> ChromaVAE:
    """Train on views on white for a number of seconds or steps, and save as a diffusers folder.

    The loss is L1 + MSE, LPIPS and a faint KL term (Rombach et al. 2022, arXiv 2112.10752, without its discriminator),
    and L1 once more of the colours less their brightness: without it a grey wall is nearly as good as a blue one. At a
    hundred times this KL weight two of eight channels carried nothing (docs/training.md).
    The saved scaling factor makes the latents' standard deviation 1. `init` is a folder that an earlier run saved;
    with `decoder_only` its latents stay what they are, and a multi-view model that draws them stays of use.
    """
    device = views.pixels.device
    torch.manual_seed(seed)
    vae = ChromaVAE(**config) if init is None else ChromaVAE.from_pretrained(init)
    model = RoundTrip(vae, decoder_only).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    trainer = Trainer(
        model,
        output,
        rate=rate,
        weight_decay=0.01,
        warmup=200 if init is None else 50,
        seconds=seconds,
        steps=steps,
        seed=seed,
        resume=resume,
        optimizer=optimizer,
    )
    if compile:
        trainer.bare.vae.encoder.compile()
        trainer.bare.vae.decoder.compile()
    chance = torch.Generator()
    for _ in trainer:
        generator = trainer.generator
        chance.manual_seed(generator.initial_seed())
        rows = torch.randint(len(views.pixels), (batch,), generator=generator, device=device)
        color, alpha = views.pictures(rows)
        # Any colour may come at use; the objects' own are mostly brown and grey.
        order = torch.rand(batch, 3, generator=generator, device=device).argsort(1)
        color = color.gather(1, order[:, :, None, None].expand_as(color))
        images = color + 1 - alpha
        with trainer.autocast():
            decoded, posterior = trainer.model(images * 2 - 1, generator)
        restored = decoded.float() * 0.5 + 0.5
        # The object counts more than the white around it, which is learnt at once.
        off = restored - images
        l1 = (off.abs() * (0.25 + alpha)).mean()
        chroma = ((off - off.mean(1, keepdim=True)).abs() * (0.25 + alpha)).mean()
        mse = F.mse_loss(restored, images)
        loss = l1 + 2 * mse + chroma_weight * chroma + kl_weight * posterior.kl().mean()
        values = {"psnr": -10 * mse.detach().log10(), "l1": l1, "chroma": chroma, "std": posterior.mean.float().std()}
        if lpips is not None:
            crop = random_quarter(views.size, chance)
            with trainer.autocast():
                values["lpips"] = lpips(restored[crop], images[crop]).mean()
            loss = loss + lpips_weight * values["lpips"]
        if trainer.step(loss, **values):
            save_pairs(restored[:, None], images[:, None], output / "sample.png")
    trainer.finish()
    model = trainer.average.model.vae
    if trainer.main:
        if not decoder_only:
            with torch.no_grad():
                std = model.encode(images * 2 - 1).latent_dist.mean.std().item()
            model.register_to_config(scaling_factor=round(1 / std, 5))
        model.save_pretrained(output)
    return model
