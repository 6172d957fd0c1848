"""Trained models to a preset's folder: 8-bit weights, preset.json with every file's size and sha256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..lgm.model import PRESETS
from ..quantization import load_file, save_file
from .multiview import MultiViewModel, save_multiview


def bundle(work: Path, output: Path, bits: int = 8, version: str = "9") -> dict[str, float]:
    """Write the preset folder `output` from what the training stages left in `work`; stages not there are left as is.

    Returns:
        The number of files and MiB.
    """
    output.mkdir(parents=True, exist_ok=True)
    if (work / "lgm" / "model.safetensors").exists():
        (output / "lgm").mkdir(exist_ok=True)
        save_file(load_file(work / "lgm" / "model.safetensors"), output / "lgm" / "model.safetensors", bits=bits)
        (output / "lgm" / "config.json").write_text(json.dumps(PRESETS["mini"].to_dict(), indent=1) + "\n")
    if (work / "multiview" / "multiview.safetensors").exists():
        from transformers import CLIPTokenizer

        model = MultiViewModel(CLIPTokenizer.from_pretrained(work / "tokenizer"))
        model.load_state_dict(load_file(work / "multiview" / "multiview.safetensors"))
        save_multiview(model, work / "vae", work / "tokenizer", output / "multiview", bits)
    files = sorted(p for p in output.rglob("*") if p.is_file() and p.suffix in (".json", ".txt", ".safetensors"))
    files = [p for p in files if p.name != "preset.json"]
    preset = {
        "name": "mini",
        "label": "Mini (bundled)",
        "version": version,
        "modes": ["image", "text"],
        "steps": {"image": 10, "text": 20},
        "guidance": {"image": 2.5, "text": 4.0},
        "scheduler": "DPMSolverMultistepScheduler",
        "negative_prompt": "",
        "match_colors": True,
        "keep_image": True,
        "samples": {"image": 1},
        "redraw": True,
        "clear_haze": True,
        "files": {
            p.relative_to(output).as_posix(): {
                "size": p.stat().st_size,
                "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            }
            for p in files
        },
    }
    (output / "preset.json").write_text(json.dumps(preset, indent=1) + "\n")
    return {"files": len(files), "mib": sum(p.stat().st_size for p in files) / 2**20}
