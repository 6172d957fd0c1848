"""A multi-view model folder of a few hundred kilobytes, with weights that follow from their names."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from conftest import golden_weight
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from lgm_blender.worker.multiview.unet import MultiViewUNet

UNET = {
    "_class_name": "MultiViewUNetModel",
    "_diffusers_version": "0.27.2",
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "transformer_depth": 1,
    "context_dim": 32,
    "camera_dim": 16,
    "ip_dim": 4,
    "ip_weight": 1.0,
    "image_embed_dim": 32,
    "resampler_depth": 1,
    "resampler_heads": 1,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "vocab_size": 60,
    "bos_token_id": 52,
    "eos_token_id": 53,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def golden_state(model: torch.nn.Module, salt: str = "tiny") -> dict[str, torch.Tensor]:
    """A state dict for `model` whose weights follow from their names, without the prefix of older transformers."""
    return {
        name: torch.from_numpy(golden_weight(salt, name.removeprefix("vision_model."), tensor.shape))
        for name, tensor in model.state_dict().items()
    }


def write_part(folder: Path, config: dict, state: dict[str, torch.Tensor], name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / name)


def write_folder(folder: Path, *, image: bool = True, text: bool = True, unet: dict | None = None) -> Path:
    """Writes a whole tiny model; `image` and `text` say which encoders it has. Returns the folder."""
    config = UNET | {"ip_dim": 4 if image else 0} | (unet or {})
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    diffusion, transformers = "diffusion_pytorch_model.safetensors", "model.safetensors"
    write_part(folder / "unet", config, golden_state(MultiViewUNet(**settings)), diffusion)
    write_part(folder / "vae", VAE, golden_state(AutoencoderKL(**VAE)), diffusion)
    DDIMScheduler.from_config(SCHEDULER).save_pretrained(folder / "scheduler")
    if text:
        state = golden_state(CLIPTextModel(CLIPTextConfig(**TEXT)))
        write_part(folder / "text_encoder", TEXT, state, transformers)
        write_tokenizer(folder / "tokenizer")
    if image:
        state = golden_state(CLIPVisionModel(CLIPVisionConfig(**VISION)))
        write_part(folder / "image_encoder", VISION, state, transformers)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        (folder / "feature_extractor").mkdir()
        (folder / "feature_extractor" / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "CLIPImageProcessor", "resample": 3} | size)
        )
    return folder


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer that spells: the letters, alone and at the end of a word."""
    letters = string.ascii_lowercase
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": 16, "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    )
