"""The multi-view diffusion U-Net of MVDream (arXiv 2308.16512) and ImageDream (arXiv 2312.02201).

Stable Diffusion 2.1's U-Net with three additions: self-attention runs over the tokens of all frames of an object at
once, a camera embedding joins the time embedding, and (ImageDream) every cross-attention also looks at a few tokens
that a Resampler makes of an image. Parameters carry the names and shapes of the published checkpoints.

Shapes: B objects, F frames each, h x w latent pixels, L text tokens, T image tokens, R rows of a condition (B when the
frames of an object share it, B * F when each frame has its own).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..devices import device_of

RESAMPLER_HEAD_CHANNELS = 64


class KeyValue(NamedTuple):
    """What one cross-attention attends to: keys and values [R, heads, tokens, channels]."""

    key: Tensor
    value: Tensor


class Condition(NamedTuple):
    """All that stays the same over the steps of a denoising loop (`MultiViewUNet.prepare`).

    Attributes:
        camera: Camera embedding [B * F, 4 * model_channels], or None.
        text: One KeyValue per cross-attention, in the order in which they run.
        image: The same for the image's tokens, or None.
    """

    camera: Tensor | None
    text: list[KeyValue]
    image: list[KeyValue] | None


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding [N, channels] float32 of timesteps [N]: cosines, then sines (DDPM, arXiv 2006.11239)."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _zero(module: nn.Module) -> nn.Module:
    """`module` with all parameters zero: the residual branch it ends starts training as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _split_heads(x: Tensor, head_channels: int) -> Tensor:
    return x.unflatten(-1, (-1, head_channels)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice; the embedding [N, emb] is added in between."""

    def __init__(self, channels: int, out_channels: int, emb_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the published code's dropout, whose place counts in the names
            _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SelfAttention(nn.Module):
    """Attention over all tokens of a row."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.head_channels = head_channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_split_heads(layer(x), self.head_channels) for layer in (self.to_q, self.to_k, self.to_v))
        return self.to_out(_merge_heads(F.scaled_dot_product_attention(q, k, v)))


class CrossAttention(nn.Module):
    """Attention to the text's tokens, plus `ip_weight` times attention to the image's (ImageDream)."""

    def __init__(self, channels: int, context_dim: int, head_channels: int, with_image: bool, ip_weight: float):
        super().__init__()
        self.head_channels = head_channels
        self.ip_weight = ip_weight
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        if with_image:
            self.to_k_ip = nn.Linear(context_dim, channels, bias=False)
            self.to_v_ip = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def text_key_value(self, context: Tensor) -> KeyValue:
        return KeyValue(*(_split_heads(layer(context), self.head_channels) for layer in (self.to_k, self.to_v)))

    def image_key_value(self, tokens: Tensor) -> KeyValue:
        return KeyValue(*(_split_heads(layer(tokens), self.head_channels) for layer in (self.to_k_ip, self.to_v_ip)))

    def forward(self, x: Tensor, text: KeyValue, image: KeyValue | None) -> Tensor:
        q = self.to_q(x)
        out = self._attend(q, text)
        if image is not None:
            out = out + self.ip_weight * self._attend(q, image)
        return self.to_out(out)

    def _attend(self, q: Tensor, to: KeyValue) -> Tensor:
        # Frames that share a condition are one row of queries, so the condition is never repeated.
        rows = _split_heads(q.reshape(to.key.shape[0], -1, q.shape[-1]), self.head_channels)
        return _merge_heads(F.scaled_dot_product_attention(rows, to.key, to.value)).reshape(q.shape)


class GEGLU(nn.Module):
    """Linear, then the first half of the channels times GELU of the second (arXiv 2002.05202)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention over all frames, cross-attention, feed-forward; each after a LayerNorm and with a residual."""

    def __init__(self, channels: int, context_dim: int, head_channels: int, with_image: bool, ip_weight: float):
        super().__init__()
        self.attn1 = SelfAttention(channels, head_channels)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_dim, head_channels, with_image, ip_weight)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, text: KeyValue, image: KeyValue | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text, image)
        return x + self.ff(self.norm3(x))


class MultiViewTransformer(nn.Module):
    """Transformer blocks over the pixels of all frames of an object: [B * F, C, h, w] as tokens [B, F * h * w, C]."""

    def __init__(
        self, channels: int, depth: int, context_dim: int, head_channels: int, with_image: bool, ip_weight: float
    ):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_dim, head_channels, with_image, ip_weight) for _ in range(depth)
        )
        self.proj_out = _zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, frames: int, conditions: Iterator[tuple[KeyValue, KeyValue | None]]) -> Tensor:
        n, c, h, w = x.shape
        # Free of copies when x is channels_last.
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n // frames, frames * h * w, c)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, *next(conditions))
        return x + self.proj_out(tokens).reshape(n, h, w, c).permute(0, 3, 1, 2)


class PerceiverAttention(nn.Module):
    """Queries attend to the image's tokens and to themselves (Flamingo, arXiv 2204.14198)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        width = heads * RESAMPLER_HEAD_CHANNELS
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, width, bias=False)
        self.to_kv = nn.Linear(channels, 2 * width, bias=False)
        self.to_out = nn.Linear(width, channels, bias=False)

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        queries = self.norm2(queries)
        k, v = self.to_kv(torch.cat([self.norm1(tokens), queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (_split_heads(x, RESAMPLER_HEAD_CHANNELS) for x in (self.to_q(queries), k, v))
        return self.to_out(_merge_heads(F.scaled_dot_product_attention(q, k, v)))


class Resampler(nn.Module):
    """Image encoder tokens [R, T, image_embed_dim] to [R, queries, channels] (IP-Adapter, arXiv 2308.06721)."""

    def __init__(self, channels: int, image_embed_dim: int, queries: int, depth: int, heads: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, queries, channels) / channels**0.5)
        self.proj_in = nn.Linear(image_embed_dim, channels)
        self.proj_out = nn.Linear(channels, channels)
        self.norm_out = nn.LayerNorm(channels)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(channels, heads),
                    nn.Sequential(
                        nn.LayerNorm(channels),
                        nn.Linear(channels, 4 * channels, bias=False),
                        nn.GELU(),
                        nn.Linear(4 * channels, channels, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, embeds: Tensor) -> Tensor:
        tokens = self.proj_in(embeds)
        queries = self.latents.to(tokens.dtype).expand(len(tokens), -1, -1)
        for attention, feed_forward in self.layers:
            queries = queries + attention(tokens, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))


class MultiViewUNet(nn.Module):
    """Predicts the noise in the latents of several views of one object.

    The defaults are MVDream's published configuration; `ip_dim=16` makes it ImageDream's. The arguments are the saved
    configuration (unet/config.json).

    Args:
        image_size: Side of the latents it is trained at; any multiple of 2^(levels - 1) works too.
        in_channels: Channels of the latents.
        model_channels: Width of the first level, a multiple of 32.
        out_channels: Channels of the predicted noise.
        num_res_blocks: Residual blocks per level on the way down; one more on the way up.
        attention_resolutions: Downsampling factors at which there are transformers.
        channel_mult: Width of each level over `model_channels`.
        num_head_channels: Channels of one attention head.
        transformer_depth: Blocks per transformer.
        context_dim: Width of the text's tokens.
        camera_dim: Numbers per camera; 0 for none.
        ip_dim: Tokens the Resampler makes of an image; 0 for a model without an image.
        ip_weight: Weight of the attention to them.
        image_embed_dim: Width of the image encoder's tokens.
        resampler_depth: Layers of the Resampler.
        resampler_heads: Attention heads of the Resampler, of 64 channels each.
    """

    def __init__(
        self,
        image_size: int = 32,
        in_channels: int = 4,
        model_channels: int = 320,
        out_channels: int = 4,
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_head_channels: int = 64,
        transformer_depth: int = 1,
        context_dim: int = 1024,
        camera_dim: int = 16,
        ip_dim: int = 0,
        ip_weight: float = 1.0,
        image_embed_dim: int = 1280,
        resampler_depth: int = 4,
        resampler_heads: int = 12,
    ):
        super().__init__()
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.context_dim = context_dim
        self.ip_dim = ip_dim
        self.image_embed_dim = image_embed_dim
        emb_channels = 4 * model_channels

        def embedding(channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))

        def res_block(channels: int, out: int) -> ResBlock:
            return ResBlock(channels, out, emb_channels)

        def transformer(channels: int) -> MultiViewTransformer:
            return MultiViewTransformer(
                channels, transformer_depth, context_dim, num_head_channels, ip_dim > 0, ip_weight
            )

        self.time_embed = embedding(model_channels)
        self.camera_embed = embedding(camera_dim) if camera_dim > 0 else None
        self.image_embed = (
            Resampler(context_dim, image_embed_dim, ip_dim, resampler_depth, resampler_heads) if ip_dim > 0 else None
        )

        channels = model_channels
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(in_channels, channels, 3, padding=1)])])
        skips = [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block = [res_block(channels, mult * model_channels)]
                channels = mult * model_channels
                if 2**level in attention_resolutions:
                    block.append(transformer(channels))
                self.input_blocks.append(nn.ModuleList(block))
                skips.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)

        self.middle_block = nn.ModuleList(
            [res_block(channels, channels), transformer(channels), res_block(channels, channels)]
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                block = [res_block(channels + skips.pop(), mult * model_channels)]
                channels = mult * model_channels
                if 2**level in attention_resolutions:
                    block.append(transformer(channels))
                if level > 0 and i == num_res_blocks:
                    block.append(Upsample(channels))
                self.output_blocks.append(nn.ModuleList(block))

        self.out = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), _zero(nn.Conv2d(channels, out_channels, 3, padding=1))
        )

    def prepare(self, context: Tensor, camera: Tensor | None = None, image_embeds: Tensor | None = None) -> Condition:
        """What stays the same over all denoising steps, computed once.

        Args:
            context: [R, L, context_dim], the text encoder's tokens, one row per object or per frame.
            camera: [B, F, camera_dim] (core.cameras.multiview_cameras; all zeros for ImageDream's image frame).
            image_embeds: [R, T, image_embed_dim], the image encoder's tokens; all zeros for no image. Needed if and
                only if the model has an `ip_dim`.

        Raises:
            ValueError: If the model needs a condition that is not given, or has no place for one.
        """
        if (image_embeds is not None) != (self.image_embed is not None):
            raise ValueError("image_embeds go with a model that has an ip_dim, and only with that")
        if (camera is not None) != (self.camera_embed is not None):
            raise ValueError("a camera goes with a model that has a camera_dim, and only with that")
        dtype = self.time_embed[0].weight.dtype
        camera_embedding = None if camera is None else self.camera_embed(camera.flatten(0, 1).to(dtype))
        attentions = [module for module in self.modules() if isinstance(module, CrossAttention)]
        text = [attention.text_key_value(context.to(dtype)) for attention in attentions]
        if image_embeds is None:
            return Condition(camera_embedding, text, None)
        tokens = self.image_embed(image_embeds.to(dtype))
        return Condition(camera_embedding, text, [attention.image_key_value(tokens) for attention in attentions])

    def denoise(self, x: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The noise [B, F, out_channels, h, w] in latents `x`, under a prepared condition.

        Args:
            x: [B, F, in_channels, h, w]; ImageDream's last frame is the clean latent of the image.
            timesteps: [B], or [B, F], 0 to 999.
            condition: From `prepare`.
        """
        batch, frames = x.shape[:2]
        if timesteps.ndim == 1:
            timesteps = timesteps[:, None].expand(batch, frames)
        weight = self.time_embed[0].weight
        emb = self.time_embed(timestep_embedding(timesteps.reshape(-1), self.model_channels).to(weight.dtype))
        if condition.camera is not None:
            emb = emb + condition.camera
        image = condition.image if condition.image is not None else [None] * len(condition.text)
        conditions = iter(zip(condition.text, image, strict=True))

        def run(block: nn.ModuleList, h: Tensor) -> Tensor:
            for module in block:
                if isinstance(module, ResBlock):
                    h = module(h, emb)
                elif isinstance(module, MultiViewTransformer):
                    h = module(h, frames, conditions)
                else:
                    h = module(h)
            return h

        h = x.flatten(0, 1).to(weight.dtype)
        if device_of(weight.device).channels_last:
            h = h.contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.input_blocks:
            h = run(block, h)
            skips.append(h)
        h = run(self.middle_block, h)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], dim=1))
        return self.out(h).unflatten(0, (batch, frames))

    def forward(
        self,
        x: Tensor,  # [B, F, in_channels, h, w]
        timesteps: Tensor,  # [B] or [B, F]
        context: Tensor,  # [B, L, context_dim], or [B * F, L, context_dim]
        camera: Tensor | None = None,  # [B, F, camera_dim]
        image_embeds: Tensor | None = None,  # [B, T, image_embed_dim]
        image_latents: Tensor | None = None,  # [B, in_channels, h, w]
    ) -> Tensor:  # [B, F, out_channels, h, w]
        """The predicted noise in one call. `image_latents` take the place of the last frame, as ImageDream has it."""
        if image_latents is not None:
            x = torch.cat([x[:, :-1], image_latents[:, None].to(x.dtype)], dim=1)
        return self.denoise(x, timesteps, self.prepare(context, camera, image_embeds))
