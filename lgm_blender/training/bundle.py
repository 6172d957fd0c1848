"""Trained models to a preset's folder: 8-bit weights, preset.json with every file's size and sha256."""

from __future__ import annotations

import json
from pathlib import Path

from ..worker.lgm.model import LGM_CONFIGS
from ..worker.presets import file_table
from ..worker.quantization import load_file, save_file
from .loops.multiview import MultiViewModel, save_multiview

VERSION = "9"  # of the bundled preset


def bundle(work: Path, output: Path) -> dict[str, float]:
    """Write the preset folder `output` from what the training stages left in `work`; stages not there are left as is.

    Returns:
        The number of files and MiB.
    """
    output.mkdir(parents=True, exist_ok=True)
    if (work / "lgm" / "model.safetensors").exists():
        (output / "lgm").mkdir(exist_ok=True)
        save_file(load_file(work / "lgm" / "model.safetensors"), output / "lgm" / "model.safetensors", bits=8)
        (output / "lgm" / "config.json").write_text(json.dumps(LGM_CONFIGS["mini"].to_dict(), indent=1) + "\n")
    if (work / "multiview" / "multiview.safetensors").exists():
        from transformers import CLIPTokenizer

        model = MultiViewModel(CLIPTokenizer.from_pretrained(work / "tokenizer"))
        model.load_state_dict(load_file(work / "multiview" / "multiview.safetensors"))
        save_multiview(model, work / "vae", work / "tokenizer", output / "multiview")
    files = file_table(output)
    preset = {
        "name": "mini",
        "label": "Mini (bundled)",
        "version": VERSION,
        "modes": ["image", "text"],
        "steps": {"image": 10, "text": 20},
        "guidance": {"image": 2.5, "text": 4.0},
        "scheduler": "DPMSolverMultistepScheduler",
        "negative_prompt": "",
        "match_colors": True,
        "keep_image": True,
        "samples": {"image": 1},
        "refine": True,
        "remove_floaters": True,
        "files": files,
    }
    (output / "preset.json").write_text(json.dumps(preset, indent=1) + "\n")
    return {"files": len(files), "mib": sum(file["size"] for file in files.values()) / 2**20}
