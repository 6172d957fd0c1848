"""A preset of half a megabyte with weights that follow from their names: the whole path runs in under a second."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_multiview import golden_state, write_folder

from lgm_blender.worker.lgm import LGM, LGMConfig
from lgm_blender.worker.presets import file_table
from lgm_blender.worker.quantization import save_file

LGM_CONFIG = LGMConfig(
    down_channels=(32, 32),
    down_attention=(False, True),
    up_channels=(32,),
    up_attention=(True,),
    input_size=32,
    splat_size=16,
    num_heads=2,
)


def write_preset(folder: Path, *, image: bool = True, text: bool = True, **settings) -> Path:
    """Writes a whole preset and returns its folder.

    Args:
        folder: Made if missing.
        image, text: What it can start from.
        settings: Entries of preset.json to change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(folder / "multiview", image=image, text=text)
    (folder / "lgm").mkdir()
    (folder / "lgm" / "config.json").write_text(json.dumps(LGM_CONFIG.to_dict()))
    save_file(golden_state(LGM(LGM_CONFIG)), folder / "lgm" / "model.safetensors")
    modes = ["image"] * image + ["text"] * text
    preset = {
        "name": "tiny",
        "label": "Tiny (test)",
        "version": "7",
        "modes": modes,
        "steps": dict.fromkeys(modes, 3),
        "guidance": dict.fromkeys(modes, 2.0),
        "scheduler": "ddim",
        "negative_prompt": "ugly",
        "files": file_table(folder),
    }
    (folder / "preset.json").write_text(json.dumps(preset | settings))
    return folder
