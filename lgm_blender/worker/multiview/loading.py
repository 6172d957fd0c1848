"""The parts of a multi-view model, from a folder in diffusers' layout.

Configurations and safetensors are read into this project's own classes, which have the published names. No code that
comes with the weights is ever run, nothing is fetched, and a tensor that is missing, unexpected or of another shape is
an error.

    unet/              config.json, diffusion_pytorch_model.safetensors
    vae/               config.json, diffusion_pytorch_model.safetensors
    scheduler/         scheduler_config.json
    text_encoder/      config.json, model.safetensors            (with tokenizer/; or neither, for images only)
    image_encoder/     config.json, model.safetensors            (with feature_extractor/; or neither, for text only)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.errors import LGMError
from ..configs import described, read_config
from ..presets import SCHEDULERS
from ..quantization import fill, load_file
from . import schedulers
from .autoencoder import Autoencoder
from .clip import ImageEncoder, ImageProcessor, TextEncoder
from .schedulers import Scheduler
from .tokenizer import CLIPTokenizer
from .unet import MultiViewUNet
from .vae import vae_class

# Settings of the published U-Net class that no published checkpoint changes, and that this project's lacks.
UNET_CONSTANTS = {
    "dropout": 0,
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "num_heads": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "n_embed": None,
    "disable_self_attentions": None,
    "num_attention_blocks": None,
    "disable_middle_self_attn": False,
    "adm_in_channels": None,
}

PROJECTIONS = ("text_projection.weight", "visual_projection.weight")  # into CLIP's shared space

# The attention of AutoencoderKL before and after diffusers 0.18.
VAE_RENAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _build(folder: Path, build: Callable[[dict[str, Any]], nn.Module]) -> nn.Module:
    """The module that `build` makes of the folder's config.json, without memory for its weights."""
    path = folder / "config.json"
    config = read_config(path)
    with described(path), torch.device("meta"):
        return build(config)


def load_unet(folder: Path, device: torch.device, dtype: torch.dtype) -> MultiViewUNet:
    """The U-Net of a folder with the published configuration and tensor names."""
    model = _build(folder, _build_unet)
    path = folder / "diffusion_pytorch_model.safetensors"
    return fill(model, load_file(path), path, device, dtype)


def _build_unet(config: dict[str, Any]) -> MultiViewUNet:
    settings = {}
    for name, value in config.items():
        if name in inspect.signature(MultiViewUNet).parameters:
            settings[name] = value
        elif not name.startswith("_") and UNET_CONSTANTS.get(name, object()) != value:
            raise ValueError(f"{name} = {value!r} is a setting of another U-Net")
    return MultiViewUNet(**settings)


def load_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The VAE, from files of any version of diffusers."""
    model = _build(folder, lambda config: vae_class(config.get("_class_name"))(**config))
    path = folder / "diffusion_pytorch_model.safetensors"
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = {}
    for name, tensor in load_file(path).items():
        if ".attentions." in name:
            for old, new in VAE_RENAMES.items():
                name = name.replace(old, new)
            if tensor.ndim == 4 and expected.get(name) == tensor.shape[:2]:  # a 1x1 convolution, now a linear layer
                tensor = tensor[:, :, 0, 0]
        state[name] = tensor
    return fill(model, state, path, device, dtype)


def load_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """CLIP's text model, from files of any version of transformers."""
    return _load_clip(TextEncoder, folder, "text_model.", device, dtype)


def load_image_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """CLIP's vision model, from files of any version of transformers."""
    return _load_clip(ImageEncoder, folder, "vision_model.", device, dtype)


def _load_clip(kind: type[nn.Module], folder: Path, prefix: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    model = _build(folder, lambda config: kind(**config))
    unused = (*PROJECTIONS, *getattr(model, "unused", ()))
    path = folder / "model.safetensors"
    state = {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}
    # Older files hold the positions' buffer, some a projection.
    left_out = [name for name in state if name.endswith("position_ids") or name.startswith(unused)]
    for name in left_out:
        del state[name]
    return fill(model, state, path, device, dtype)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer."""
    return _read(folder, lambda: CLIPTokenizer(folder), "vocab.json", "merges.txt")


def load_image_processor(folder: Path) -> ImageProcessor:
    """What makes the image encoder's pixels of pictures."""
    path = folder / "preprocessor_config.json"
    return _read(folder, lambda: ImageProcessor(**read_config(path)), path.name)


def _read(folder: Path, read: Callable[[], Any], *files: str) -> Any:
    for file in files:
        if not (folder / file).is_file():
            raise LGMError(f"The model's file {folder / file} is missing. Fetch the preset's weights again.", "weights")
    with described(folder):
        return read()


def load_scheduler(folder: Path, name: str | None = None) -> Scheduler:
    """The scheduler of a folder.

    Args:
        folder: Holds scheduler_config.json.
        name: One of SCHEDULERS' values, in place of the one that the configuration names.
    """
    path = folder / "scheduler_config.json"
    config = read_config(path)
    name = name or config.get("_class_name", SCHEDULERS["ddim"])
    if name not in SCHEDULERS.values():
        raise LGMError(
            f"The scheduler {name!r} is unknown. Name one of {', '.join(SCHEDULERS.values())} in preset.json.",
            "weights",
        )
    with described(path):
        return getattr(schedulers, name)(**config)
