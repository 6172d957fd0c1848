"""A preset of the published sizes with random weights, for measuring: what comes out of it shows nothing.

python benchmarks/random_preset.py FOLDER [--small]        # 5 GB, or 1.5 MB that any CPU runs
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.worker.lgm import LGM, LGM_CONFIGS, LGMConfig
from lgm_blender.worker.multiview.unet import MultiViewUNet
from lgm_blender.worker.presets import file_table

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SCHEDULER |= {"set_alpha_to_one": False, "steps_offset": 1}
TOKENS = {"bos_token_id": 52, "eos_token_id": 53}  # of a tokenizer that spells
PUBLISHED = {
    "lgm": LGM_CONFIGS["big"],
    "unet": {"ip_dim": 16},
    "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 256},
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    | {"vocab_size": 49408, "hidden_act": "gelu"},
    "vision": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    | {"image_size": 224, "patch_size": 14, "hidden_act": "gelu"},
}
SMALL = {
    "lgm": LGMConfig((32, 32), (False, True), True, (32,), (True,), input_size=32, splat_size=16, num_heads=2),
    "unet": {"image_size": 8, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [1]}
    | {"channel_mult": [1, 2], "num_head_channels": 16, "context_dim": 32, "ip_dim": 4, "image_embed_dim": 32}
    | {"resampler_depth": 1, "resampler_heads": 1},
    "vae": {"block_out_channels": [32, 32], "layers_per_block": 1, "sample_size": 16},
    "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"vocab_size": 60},
    "vision": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"image_size": 32, "patch_size": 16},
}


def write_random_preset(folder: Path, small: bool = False, device: str = "cpu") -> Path:
    """Writes the preset, in half precision, and returns its folder."""
    sizes = SMALL if small else PUBLISHED
    views, weights = folder / "multiview", "diffusion_pytorch_model.safetensors"
    levels = len(sizes["vae"]["block_out_channels"])
    vae = sizes["vae"] | {"down_block_types": ["DownEncoderBlock2D"] * levels}
    vae |= {"up_block_types": ["UpDecoderBlock2D"] * levels, "latent_channels": 4}
    text = sizes["text"] | TOKENS
    with torch.device(device):
        _write(folder / "lgm", sizes["lgm"].to_dict(), LGM(sizes["lgm"]))
        _write(views / "unet", sizes["unet"], MultiViewUNet(**sizes["unet"]), weights)
        _write(views / "vae", vae, AutoencoderKL(**vae), weights)
        _write(views / "text_encoder", text, CLIPTextModel(CLIPTextConfig(**text)))
        _write(views / "image_encoder", sizes["vision"], CLIPVisionModel(CLIPVisionConfig(**sizes["vision"])))
    DDIMScheduler(**SCHEDULER).save_pretrained(views / "scheduler")
    side = sizes["vision"]["image_size"]
    processor = {"image_processor_type": "CLIPImageProcessor", "resample": 3, "size": {"shortest_edge": side}}
    processor |= {"crop_size": {"height": side, "width": side}}
    _write_json(views / "feature_extractor" / "preprocessor_config.json", processor)
    _write_tokenizer(views / "tokenizer")
    modes = ["image", "text"]
    preset = {"name": "random", "label": "Random", "version": "1", "modes": modes, "scheduler": "ddim"}
    preset |= {"steps": dict.fromkeys(modes, 30), "guidance": dict.fromkeys(modes, 5.0)}
    _write_json(folder / "preset.json", preset | {"files": file_table(folder)})
    return folder


def _write(folder: Path, config: dict, model: torch.nn.Module, name: str = "model.safetensors") -> None:
    _write_json(folder / "config.json", config)
    state = {}
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.0  # biases 0, norms 1
            tensor = torch.randn_like(tensor) * scale + (tensor.ndim == 1 and key.endswith("weight"))
            state[key.removeprefix("vision_model.").removeprefix("text_model.")] = tensor.half().cpu().contiguous()
    save_file(state, folder / name)


def _write_tokenizer(folder: Path) -> None:
    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"model_max_length": 77, "bos_token": words[-2], "eos_token": words[-1]}
    _write_json(folder / "tokenizer_config.json", settings | {"pad_token": words[-1], "unk_token": words[-1]})


def _write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    write_random_preset(arguments.folder, arguments.small, "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
