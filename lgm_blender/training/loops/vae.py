"""Train the small VAE of the bundled multi-view model: ChromaVAE, eightfold, eight channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...worker.configs import read_config
from ...worker.multiview.autoencoder import Autoencoder, divergence, sample
from ...worker.multiview.loading import load_vae
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

    def forward(self, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B, 3, H, W] in -1 to 1, restored from sampled latents, and the latents' mean and log variance.

        The decoder alone learns from the distribution's mean, which is what the multi-view model learns to make.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            mean, log_variance = self.vae.encode(pictures)
            latents = mean if self.decoder_only else sample(mean, log_variance, generator)
        return self.vae.decode(latents), mean, log_variance


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
    if settings.init is None:
        vae = ChromaVAE(**config)
    else:
        config = read_config(Path(settings.init) / "config.json")
        vae = load_vae(Path(settings.init), torch.device("cpu"), torch.float32).train().requires_grad_(True)
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
            decoded, mean, log_variance = trainer.model(images * 2 - 1, generator)
        restored = decoded.float() * 0.5 + 0.5
        # The object counts more than the white around it, which is learnt at once.
        off = restored - images
        l1 = (off.abs() * (0.25 + alpha)).mean()
        chroma = ((off - off.mean(1, keepdim=True)).abs() * (0.25 + alpha)).mean()
        mse = F.mse_loss(restored, images)
        loss = (
            l1 + 2 * mse + settings.chroma_weight * chroma + settings.kl_weight * divergence(mean, log_variance).mean()
        )
        values = {"psnr": -10 * mse.detach().log10(), "l1": l1, "chroma": chroma, "std": mean.float().std()}
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
                std = model.encode(images * 2 - 1)[0].std().item()
            model.scaling_factor = round(1 / std, 5)
        save_vae(model, config, output)
    return model


def save_vae(vae: Autoencoder, config: dict[str, Any], folder: Path) -> None:
    """Saves a VAE that was made of these settings in diffusers' layout, in 32 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config | {"_class_name": type(vae).__name__, "scaling_factor": vae.scaling_factor}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
