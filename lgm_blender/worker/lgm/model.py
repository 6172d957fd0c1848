"""LGM's asymmetric U-Net and what its channels mean (arXiv 2402.05054, section 3.2).

Tensor names and shapes are the published checkpoints', so those load unchanged.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tensors import constant
from .hull import hull_channels
from .rays import pixel_rays, plucker_rays

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SKIP_SCALE = math.sqrt(0.5)


LARGEST_SIZE = 2048  # pixels of a view


@dataclass(frozen=True)
class LGMConfig:
    """A U-Net and a head.

    Attributes:
        input_size: Width and height of the input views in pixels.
        splat_size: Width and height of the output; every view gives splat_size² Gaussians.
        num_heads: Attention heads.
        position: What the first three channels mean. 'xyz' is the published position = clamp(x, -1, 1). 'ray' puts a
            Gaussian near its pixel's ray (depth along it, a bounded step across it), which learns faster.
        scale: 'fixed' is the published 0.1 · softplus(x); 'pixel' is in units of a pixel's footprint and bounded.
        hull_bins: Into how many parts a ray is divided for the visual hull's channels (hull.py), which then come after
            the nine of colour and ray; 0, as published, goes without.
        averaged_channel: Whether a last channel says which views are means of several samples (Preset.samples), which
            differ from each other more than ground-truth views do. Published models have none.
    """

    down_channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 1024)
    down_attention: tuple[bool, ...] = (False, False, False, True, True, True)
    mid_attention: bool = True
    up_channels: tuple[int, ...] = (1024, 1024, 512, 256, 128)
    up_attention: tuple[bool, ...] = (True, True, True, False, False)
    input_size: int = 256
    splat_size: int = 128
    num_heads: int = 16
    position: Literal["xyz", "ray"] = "xyz"
    scale: Literal["fixed", "pixel"] = "fixed"
    hull_bins: int = 0
    averaged_channel: bool = False

    @property
    def in_channels(self) -> int:
        """Of the U-Net: colour, Plücker embedding, visual hull, and whether a view is averaged."""
        return 9 + (self.hull_bins + 2 if self.hull_bins else 0) + self.averaged_channel

    def to_dict(self) -> dict[str, Any]:
        """The configuration as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LGMConfig:
        """The configuration from a JSON object; lists become tuples.

        Raises:
            TypeError, ValueError: If it is not one.
        """
        renamed = {"guess_channel": "averaged_channel"}  # as it was called before 0.2
        config = cls(**{renamed.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        for name in ("input_size", "splat_size", "num_heads"):
            if not isinstance(value := getattr(config, name), int) or not 1 <= value <= LARGEST_SIZE:
                raise ValueError(f"{name} is {value!r}")
        if config.position not in ("xyz", "ray") or config.scale not in ("fixed", "pixel"):
            raise ValueError(f"position is {config.position!r}, scale {config.scale!r}")
        return config


LGM_CONFIGS: dict[str, LGMConfig] = {
    "big": LGMConfig(),
    "small": LGMConfig(up_channels=(1024, 1024, 512, 256), up_attention=(True, True, True, False), splat_size=64),
    "tiny": LGMConfig(
        down_channels=(32, 64, 128, 256, 512),
        down_attention=(False, False, False, False, True),
        up_channels=(512, 256, 128),
        up_attention=(True, False, False),
        splat_size=64,
    ),
    "mini": LGMConfig(
        down_channels=(32, 64, 96, 128, 160),
        down_attention=(False, False, False, True, True),
        up_channels=(160, 128, 96, 64),
        up_attention=(True, True, False, False),
        num_heads=4,
        position="ray",
        scale="pixel",
        hull_bins=16,
        averaged_channel=True,
    ),
}


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else has: in place unless gradients are asked for, half the memory to go through."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def scaled_sum(x: Tensor, y: Tensor) -> Tensor:
    """(x + y) · √½; in place of `x`, which nobody else has, unless gradients are asked for."""
    if torch.is_grad_enabled() or x.dtype != y.dtype:
        return (x + y) * SKIP_SCALE
    return x.add_(y).mul_(SKIP_SCALE)


class Attention(nn.Module):
    """Multi-head self-attention of tokens [B, L, C]; no bias on queries, keys and values."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class MultiViewAttention(nn.Module):
    """Self-attention over the pixels of all views of an object at once."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-5)
        self.attn = Attention(channels, num_heads)

    def forward(self, x: Tensor, views: int) -> Tensor:
        channels, height, width = x.shape[1:]
        tokens = self.norm(x).view(-1, views, channels, height * width).permute(0, 1, 3, 2).flatten(1, 2)
        tokens = self.attn(tokens).view(-1, views, height * width, channels).permute(0, 1, 3, 2)
        return scaled_sum(tokens.reshape(x.shape), x)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3×3 convolution, twice, added to the input and scaled by √½."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-5)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return scaled_sum(h, self.shortcut(x))


class DownBlock(nn.Module):
    """Residual blocks, each followed by attention where there is any, then a stride-2 convolution."""

    def __init__(self, in_channels: int, out_channels: int, downsample: bool, attention: bool, num_heads: int):
        super().__init__()
        self.nets = nn.ModuleList(ResidualBlock(a, out_channels) for a in (in_channels, out_channels))
        self.attns = nn.ModuleList(MultiViewAttention(out_channels, num_heads) for _ in self.nets if attention)
        self.downsample = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if downsample else None

    def forward(self, x: Tensor, views: int) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, net in enumerate(self.nets):
            x = net(x)
            if self.attns:
                x = self.attns[i](x, views)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, channels: int, attention: bool, num_heads: int):
        super().__init__()
        self.nets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))
        self.attns = nn.ModuleList(MultiViewAttention(channels, num_heads) for _ in range(1) if attention)

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.nets[0](x)
        for attn in self.attns:
            x = attn(x, views)
        return self.nets[1](x)


class UpBlock(nn.Module):
    """Residual blocks that take in a skip each, then nearest ×2 and a convolution."""

    def __init__(self, in_channels, skip_channels, out_channels, upsample, attention, num_heads):
        super().__init__()
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.nets = nn.ModuleList(
            ResidualBlock(a + skip, out_channels) for a, skip in zip(widths, skip_channels, strict=True)
        )
        self.attns = nn.ModuleList(MultiViewAttention(out_channels, num_heads) for _ in self.nets if attention)
        self.upsample = nn.Conv2d(out_channels, out_channels, 3, padding=1) if upsample else None

    def forward(self, x: Tensor, skips: list[Tensor], views: int) -> Tensor:
        for i, net in enumerate(self.nets):
            x = net(torch.cat([x, skips.pop()], dim=1))
            if self.attns:
                x = self.attns[i](x, views)
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class UNet(nn.Module):
    """The asymmetric U-Net: [B·V, in_channels, input_size²] to [B·V, 14, splat_size²]."""

    def __init__(self, config: LGMConfig):
        super().__init__()
        down, up, heads = config.down_channels, config.up_channels, config.num_heads
        self.conv_in = nn.Conv2d(config.in_channels, down[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        skips = [down[0]]
        width = down[0]
        for i, channels in enumerate(down):
            last = i == len(down) - 1
            self.down_blocks.append(DownBlock(width, channels, not last, config.down_attention[i], heads))
            skips += [channels] * (2 if last else 3)
            width = channels
        self.mid_block = MidBlock(width, config.mid_attention, heads)
        self.up_blocks = nn.ModuleList()
        for i, channels in enumerate(up):
            taken = [skips.pop() for _ in range(3)]
            last = i == len(up) - 1
            self.up_blocks.append(UpBlock(width, taken, channels, not last, config.up_attention[i], heads))
            width = channels
        self.norm_out = nn.GroupNorm(32, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, 14, 3, padding=1)

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, views)
            skips += more
        x = self.mid_block(x, views)
        for block in self.up_blocks:
            x = block(x, skips, views)
        return self.conv_out(silu(self.norm_out(x)))


class LGM(nn.Module):
    """Views and their cameras to Gaussians."""

    def __init__(self, config: LGMConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config)
        self.conv = nn.Conv2d(14, 14, 1)

    def forward(self, images: Tensor, poses: Tensor, averaged: Tensor | None = None) -> Tensor:
        """Predict Gaussians.

        Args:
            images: [B, V, 3, input_size, input_size], 0 to 1, on white.
            poses: [B, V, 4, 4], camera-to-world with OpenGL axes, in LGM's frame.
            averaged: [B, V], 1 for views that come of several samples, 0 for others; None for none. A model without
                a `averaged_channel` sees nothing of it.

        Returns:
            [B, V·splat_size², 14] float32, activated: xyz, opacity, scale × 3, quaternion wxyz, rgb.

        Raises:
            ValueError: If the views are not of the configuration's input size.
        """
        size = self.config.input_size
        if images.shape[-2:] != (size, size):
            raise ValueError(f"views must be {size}x{size} pixels, not {tuple(images.shape[-2:])}")
        batch, views = images.shape[:2]
        mean = constant(IMAGENET_MEAN, images.device, images.dtype).view(3, 1, 1)
        std = constant(IMAGENET_STD, images.device, images.dtype).view(3, 1, 1)
        with torch.autocast(images.device.type, enabled=False):  # directions need more than bf16's eight bits
            channels = [(images - mean) / std, plucker_rays(poses, size).to(images.dtype)]
            if self.config.hull_bins:
                hull = hull_channels(images, poses, self.config.hull_bins).flatten(0, 1)
                hull = F.interpolate(hull, size=(size, size), mode="nearest").unflatten(0, (batch, views))
                channels.append(hull.to(images.dtype))
            if self.config.averaged_channel:
                known = images.new_zeros(batch, views) if averaged is None else averaged.to(images.dtype)
                channels.append(known[..., None, None, None].expand(-1, -1, -1, size, size))
        x = torch.cat(channels, dim=2).flatten(0, 1)
        weight = self.unet.conv_in.weight
        x = self.unet(x.to(weight.dtype, memory_format=_memory_format(weight)), views)
        # fp16 would put a position near 1 off by up to 4.9e-4, so the last convolution and the activations are fp32.
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv2d(x.float(), self.conv.weight.float(), self.conv.bias.float())
            x = x.view(batch, views, 14, *x.shape[-2:]).permute(0, 1, 3, 4, 2)  # [B, V, h, w, 14]
            return self.activate(x, poses).flatten(1, 3)

    def activate(self, x: Tensor, poses: Tensor) -> Tensor:
        """The meaning of the 14 channels (LGM, section 3.2): [B, V, h, w, 14] raw to [B, V, h, w, 14] activated."""
        if self.config.position == "xyz":
            position = x[..., 0:3].clamp(-1, 1)
        else:
            origins, directions = pixel_rays(poses, x.shape[3])
            # Depths 0.7 to 2.3 reach everything a camera at 1.5 can see of the unit ball and a bit more.
            depth = 1.5 + 0.8 * torch.tanh(x[..., 0:1])
            right, up = poses[..., None, None, :3, 0].float(), poses[..., None, None, :3, 1].float()
            step = 0.25 * torch.tanh(0.5 * x[..., 1:3])
            position = origins + depth * directions + step[..., 0:1] * right + step[..., 1:2] * up
        if self.config.scale == "fixed":
            scale = 0.1 * F.softplus(x[..., 4:7])
        else:
            # Half a pixel's footprint at x = 0, and at most 8 pixels: no Gaussian can swallow the picture.
            footprint = 2 * 0.685 / x.shape[3]
            scale = footprint * (8 * torch.sigmoid(x[..., 4:7] - 2.7) + 0.01)
        return torch.cat(
            [
                position,
                torch.sigmoid(x[..., 3:4]),
                scale,
                F.normalize(x[..., 7:11], dim=-1),
                0.5 * torch.tanh(x[..., 11:14]) + 0.5,
            ],
            dim=-1,
        )


def _memory_format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not weight.is_contiguous() else torch.contiguous_format
