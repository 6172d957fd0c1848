"""The variational autoencoder of latent diffusion (arXiv 2112.10752): pictures to latents and back.

Names of settings and tensors are those of diffusers' AutoencoderKL, whose files it reads. It is written here because
importing that class takes longer than a job's views do, and most of what it brings along is never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .unet import Upsample

EPSILON = 1e-6  # of every group norm

# Settings of AutoencoderKL that no model known here changes.
CONSTANTS = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
KINDS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
WITHOUT_MEANING = ("force_upcast", "sample_size")  # here: the dtype is the caller's, and any size is taken


class Resnet(nn.Module):
    """Two 3x3 convolutions and what they are added to."""

    def __init__(self, channels: int, out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, EPSILON)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, EPSILON)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Self-attention of one head over all pixels."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, EPSILON)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # below and to the right, as it was trained


class Level(nn.Module):
    """Residual blocks at one size and, behind them, what a subclass adds: the way to the next size."""

    def __init__(self, channels: int, out: int, layers: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels if i == 0 else out, out, groups) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layers in self.children():
            for layer in layers:
                x = layer(x)
        return x


class DownBlock(Level):
    def __init__(self, channels: int, out: int, layers: int, groups: int, last: bool):
        super().__init__(channels, out, layers, groups)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out)])


class UpBlock(Level):
    def __init__(self, channels: int, out: int, layers: int, groups: int, last: bool):
        super().__init__(channels, out, layers, groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out)])


class Encoder(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], layers: int, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.down_blocks = nn.ModuleList(
            DownBlock(*pair, layers, groups, last=i == len(pairs) - 1) for i, pair in enumerate(pairs)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], layers: int, groups: int):
        super().__init__()
        widths = list(reversed(widths))
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.up_blocks = nn.ModuleList(
            UpBlock(*pair, layers + 1, groups, last=i == len(pairs) - 1) for i, pair in enumerate(pairs)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """Pictures [N, 3, H, W] in -1 to 1 to the mean and logarithm of the variance of latents, and latents to pictures.

    Args:
        in_channels, out_channels: Of pictures.
        latent_channels: Of latents.
        block_out_channels: Channels at each size, the picture's first; each next one has half the side.
        layers_per_block: Residual blocks at each size.
        norm_num_groups: Of every group norm.
        scaling_factor: What latents are multiplied with for the diffusion model, which likes a variance of 1.
        rest: Settings of diffusers' class that must have the one value known here.

    Raises:
        ValueError: If one of the rest has another.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.18215,
        **rest: Any,
    ):
        super().__init__()
        for name, value in rest.items():
            known = CONSTANTS.get(name, ...)
            if name in KINDS:
                known = [KINDS[name]] * len(block_out_channels)
                value = list(value)
            if not name.startswith("_") and name not in WITHOUT_MEANING and value != known:
                raise ValueError(f"{name} = {value!r} is a setting of another VAE")
        self.latent_channels = latent_channels
        self.scaling_factor = scaling_factor
        sizes = block_out_channels, layers_per_block, norm_num_groups
        self.encoder = Encoder(in_channels, 2 * latent_channels, *sizes)
        self.decoder = Decoder(latent_channels, out_channels, *sizes)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.factor = 2 ** (len(block_out_channels) - 1)  # pixels of a picture per latent's, each way

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [N, C, H / factor, W / factor] of the latents, not scaled."""
        mean, log_variance = self.quant_conv(self.encoder(pictures)).chunk(2, 1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents that are not scaled."""
        return self.decoder(self.post_quant_conv(latents))


def sample(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents drawn from what `encode` gives; where the generator is."""
    device = generator.device if generator else mean.device
    noise = torch.randn(mean.shape, generator=generator, device=device, dtype=mean.dtype)
    return mean + torch.exp(0.5 * log_variance) * noise.to(mean.device)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the standard normal distribution, of each of the latents [N]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))
