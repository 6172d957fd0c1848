"""CLIP's two encoders (arXiv 2103.00020), and the pictures that one of them takes.

Names of settings and tensors are those of transformers' CLIPTextModel, CLIPVisionModel and CLIPImageProcessor, whose
files are read. They are written here because importing those classes takes longer than a job's views do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU that OpenAI's models were trained with; LAION's have the exact one."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class SelfAttention(nn.Module):
    def __init__(self, size: int, heads: int, causal: bool):
        super().__init__()
        if size % heads:
            raise ValueError(f"hidden_size = {size} can't be shared by {heads} heads")
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, size: int, inner: int, activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, size: int, inner: int, heads: int, activation: str, epsilon: float, causal: bool):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(size, epsilon)
        self.self_attn = SelfAttention(size, heads, causal)
        self.layer_norm2 = nn.LayerNorm(size, epsilon)
        self.mlp = MLP(size, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, layers: int, *settings: Any, causal: bool):
        super().__init__()
        self.layers = nn.ModuleList(Layer(*settings, causal) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class TextEmbeddings(nn.Module):
    def __init__(self, vocabulary: int, length: int, size: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, size)
        self.position_embedding = nn.Embedding(length, size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class TextEncoder(nn.Module):
    """Tokens [N, L] to states [N, L, hidden_size].

    Args:
        See transformers' CLIPTextConfig; what changes nothing here is left out.
    """

    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        **_: Any,
    ):
        super().__init__()
        self.hidden_size, self.length = hidden_size, max_position_embeddings
        self.embeddings = TextEmbeddings(vocab_size, max_position_embeddings, hidden_size)
        settings = hidden_size, intermediate_size, num_attention_heads, hidden_act, layer_norm_eps
        self.encoder = Encoder(num_hidden_layers, *settings, causal=True)
        self.final_layer_norm = nn.LayerNorm(hidden_size, layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.final_layer_norm(self.encoder(self.embeddings(tokens)))


class ImageEmbeddings(nn.Module):
    def __init__(self, channels: int, side: int, patch: int, size: int):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(size))
        self.patch_embedding = nn.Conv2d(channels, size, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((side // patch) ** 2 + 1, size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class ImageEncoder(nn.Module):
    """Pixels [N, 3, S, S] as `pixels_of` makes them to the states before the last layer, [N, tokens, hidden_size].

    Those are what ImageDream was trained with, so the last layer and what follows it are not built (`unused`).

    Args:
        See transformers' CLIPVisionConfig; what changes nothing here is left out.
    """

    def __init__(
        self,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 32,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        **_: Any,
    ):
        super().__init__()
        self.hidden_size = hidden_size
        self.tokens = (image_size // patch_size) ** 2 + 1
        self.unused = (f"encoder.layers.{num_hidden_layers - 1}.", "post_layernorm.")
        self.embeddings = ImageEmbeddings(num_channels, image_size, patch_size, hidden_size)
        self.pre_layrnorm = nn.LayerNorm(hidden_size, layer_norm_eps)  # the published name
        settings = hidden_size, intermediate_size, num_attention_heads, hidden_act, layer_norm_eps
        self.encoder = Encoder(num_hidden_layers - 1, *settings, causal=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)))


class ImageProcessor:
    """What a preprocessor_config.json says of pictures: resized by Pillow, cut at the centre, normalised.

    Args:
        size: Of the shortest edge, in pixels: a number, or {'shortest_edge': number}.
        crop_size: Of the square that is cut out: a number, or {'height': number, 'width': number}.
        resample: Pillow's number of the filter; 3 is bicubic.
        image_mean, image_std: Of each colour, in 0..1.

    Raises:
        ValueError, KeyError, TypeError: If a setting makes no sense.
    """

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        crop_size: int | dict[str, int] = 224,
        resample: int = 3,
        image_mean: Sequence[float] = MEAN,
        image_std: Sequence[float] = STD,
        **rest: Any,
    ):
        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if rest.get(name, True) is not True:
                raise ValueError(f"{name} = {rest[name]!r} is a setting of another model")
        self.size = int(size["shortest_edge"] if isinstance(size, dict) else size)
        self.crop = int(crop_size["height"] if isinstance(crop_size, dict) else crop_size)
        if not 0 < self.crop <= self.size:
            raise ValueError(f"{self.crop} pixels can't be cut out of {self.size}")
        self.filter = Image.Resampling(resample)
        self.mean, self.std = (np.array(value, np.float32).reshape(3) for value in (image_mean, image_std))

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Pictures uint8 [H, W, 3] to pixels [N, 3, S, S] float32."""
        return torch.from_numpy(np.stack([self._pixels(image) for image in images])).movedim(-1, 1)

    def _pixels(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        least = min(height, width)
        height, width = (int(self.size * side / least) for side in (height, width))
        resized = np.asarray(Image.fromarray(image).resize((width, height), self.filter))
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        cut = resized[top : top + self.crop, left : left + self.crop]
        return ((cut * np.float32(1 / 255)) - self.mean) / self.std
