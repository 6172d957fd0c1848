"""Train the small VAE of the bundled multi-view model: ChromaVAE, eightfold, eight channels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ...worker.multiview.vae import ChromaVAE
from ..data.views import TrainingViews
from ..settings import VAESettings
from .lgm import random_quarter, save_pairs
from .lpips import LPIPS
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
        """Pictures [B, 3, H, W] in -1 to 1, restored from sampled latents, and the latents' distribution.

        The decoder alone learns from the distribution's mean, which is what the multi-view model learns to make.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            posterior = self.vae.encode(pictures).latent_dist
            latents = posterior.mode() if self.decoder_only else posterior.sample(generator)
        return self.vae.decode(latents).sample, posterior


def train_vae(
    views: TrainingViews,
    output: Path,
    settings: VAESettings,
    *,
    lpips: LPIPS | None = None,
    config: dict = MINI,
) -> ChromaVAE:
    """Train on views on white, and save as a diffusers folder.

    The loss is L1 + MSE, LPIPS and a faint KL term (Rombach et al. 2022, arXiv 2112.10752, without its discriminator),
    and L1 once more of the colours less their brightness: without it a grey wall is nearly as good as a blue one. At a
    hundred times this KL weight two of eight channels carried nothing (docs/experiments.md).
    The saved scaling factor makes the latents' standard deviation 1.
    """
    torch.manual_seed(settings.seed)
    vae = ChromaVAE(**config) if settings.init is None else ChromaVAE.from_pretrained(settings.init)
    model = RoundTrip(vae, settings.decoder_only)
    if views.pixels.is_cuda:
        model = model.to(views.pixels.device, memory_format=torch.channels_last)
    trainer = Trainer(model, output, settings, weight_decay=0.01, warmup=200 if settings.init is None else 50)
    if settings.compile:
        trainer.bare.vae.encoder.compile()
        trainer.bare.vae.decoder.compile()
    batch, device = settings.batch, views.pixels.device
    for _ in trainer:
        generator = trainer.generator
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
        loss = l1 + 2 * mse + settings.chroma_weight * chroma + settings.kl_weight * posterior.kl().mean()
        values = {"psnr": -10 * mse.detach().log10(), "l1": l1, "chroma": chroma, "std": posterior.mean.float().std()}
        if lpips is not None:
            crop = random_quarter(views.size, trainer.host_generator)
            with trainer.autocast():
                values["lpips"] = lpips(restored[crop], images[crop]).mean()
            loss = loss + settings.lpips_weight * values["lpips"]
        if trainer.step(loss, **values):
            save_pairs(restored[:, None], images[:, None], output / "sample.png")
    trainer.finish()
    model = trainer.average.model.vae
    if trainer.main:
        if not settings.decoder_only:
            with torch.no_grad():
                std = model.encode(images * 2 - 1).latent_dist.mean.std().item()
            model.register_to_config(scaling_factor=round(1 / std, 5))
        model.save_pretrained(output)
    return model
