"""Train or fine-tune LGM on one's own objects: folders of views or meshes in, a preset's folder out.

The output folder can be given as a preset (`--preset DIR`), in Blender too:

    preset.json, lgm/           the trained LGM, beside the multi-view model of the preset it started from
    checkpoint.pt               what `--resume` continues from
    log.jsonl, log.png          a JSON line every 200 steps, and its plot where matplotlib is installed
    sample.png                  what comes out (above) and what should (below)
    views/                      rendered views, of an objects.zip only
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...core.cameras import evaluation_poses, view_poses
from ...core.errors import LGMError
from ...core.files import output_error
from ...worker.lgm import lgm_from_file, load_lgm_config
from ...worker.lgm.model import LGM_CONFIGS, LGMConfig
from ...worker.presets import PUBLISHED, find_preset, write_preset
from ...worker.rendering import backend_for
from ..data.dataset import find_objects, load_objects
from ..data.objects import read_index, read_object
from ..data.view_files import Cameras, distance_path, render_objects
from ..data.views import TrainingViews, find_orbits, orbit_angles
from ..settings import LGMSettings
from .lgm import evaluate_lgm, train_lgm
from .lpips import LPIPS
from .trainer import check_resumed, fast_arithmetic, process_device, processes


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; what is not given on the command line comes from here.

    Attributes:
        settings: Of LGM's training.
        model: The configuration when it starts from random weights.
        minutes, epochs: Its length, the one or the other.
        size: Of the views that supervise, in pixels.
    """

    settings: LGMSettings
    model: str = "mini"
    minutes: float | None = 10
    epochs: float | None = None
    size: int = 256


FIRST = LGMSettings(supervised_inputs=2, supervised_others=6, surface_weight=0.6, optimizer="muon")
# LGM, sections 3.3 and 4.1; there on 32 GPUs.
PAPER = LGMSettings(lpips_weight=1.0, lpips_from=0.0, surface_weight=0.0)
RECIPES = {
    "first": Recipe(FIRST),
    "finetune": Recipe(replace(FIRST, learning_rate=1e-4, lpips_from=0.0)),
    "paper": Recipe(PAPER, model="big", minutes=None, epochs=30, size=512),
}


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        config: The model's configuration.
        weights: A safetensors file, or None for nothing.
        preset: The preset whose multi-view model goes with it.
    """

    config: LGMConfig
    weights: Path | None
    preset: str


def find_start(init: str, model: str) -> Start:
    """What `--init` means: 'none', a preset's name or folder, or a safetensors file.

    Args:
        init: See above.
        model: The configuration for 'none', a name in LGM_CONFIGS.

    Raises:
        LGMError: If there is no such thing, or it is no LGM.
    """
    if init == "none":
        return Start(LGM_CONFIGS[model], None, PUBLISHED.name if model == "big" else "mini")
    path = Path(init)
    if path.suffix == ".safetensors":
        config = _config_of(path)
        return Start(config, path, "mini" if config.position == "ray" else PUBLISHED.name)
    preset = find_preset(init)
    folder = preset.locate("lgm")
    path = next(folder / name for name in preset.weights["lgm"].files if name.endswith(".safetensors"))
    return Start(_config_of(path), path, init)


def _config_of(path: Path) -> LGMConfig:
    """The configuration of a file of weights: of config.json beside it, else the one whose tensors these are."""
    if not path.is_file():
        raise LGMError(f"There is no file {path}. Give 'mini', 'lgm', 'none', or a file of LGM's weights.")
    if (path.parent / "config.json").is_file():
        return load_lgm_config(path.parent)
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:
        raise LGMError(
            f"{path} can't be read as safetensors ({error}). Choose a file of LGM's weights.", "weights"
        ) from error
    width, channels = shapes.get("unet.conv_in.weight", [0, 0])[:2]
    last = shapes.get("unet.conv_out.weight", [0, 0])[1]
    for config in LGM_CONFIGS.values():
        if (config.down_channels[0], config.up_channels[-1]) == (width, last):
            plain = replace(config, hull_bins=max(0, channels - 11), averaged_channel=False)
            told = (replace(config, hull_bins=bins, averaged_channel=True) for bins in (config.hull_bins, 0))
            return next((each for each in told if each.in_channels == channels), plain)
    raise LGMError(f"{path} is not LGM of a known size. Put its config.json beside it.", "weights")


def load_data(
    data: Path, output: Path, size: int, device: torch.device, tell: Callable[[str], None], limit: int | None = None
) -> tuple[TrainingViews, TrainingViews | None]:
    """Views for training and, where the data set has a part for it, for validation.

    Args:
        data: An objects.zip, or a folder of object folders (dataset.py).
        output: The training's folder; an objects.zip is rendered into its views/ once.
        size: Of the views in pixels.
        device: Where they are kept.
        tell: Takes a line about what is going on.
        limit: Only the first objects.

    Raises:
        LGMError: If nothing is usable.
    """
    if data.is_file():
        return tuple(
            _render(data, split, output / "views" / f"{split}-{size}.npy", size, cameras, device, tell, limit)
            for split, cameras in (("train", view_poses), ("val", evaluation_poses))
        )
    validation = find_objects(data, "val")[:limit]
    return (
        _read(find_objects(data, "train")[:limit], size, device, tell),
        _read(validation, size, device, tell) if validation else None,
    )


def _render(
    data: Path, split: str, path: Path, size: int, cameras: Cameras, device: torch.device, tell, limit: int | None
) -> TrainingViews:
    ids = [entry["id"] for entry in read_index(data) if entry["split"] == split][:limit]
    if not ids:
        raise LGMError(f"{data} has no objects of the split '{split}'. Choose another archive.")
    with processes().main_process_first():
        whole = path.exists() and len(np.load(path, mmap_mode="r")) == len(ids)
        if not whole and processes().is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            tell(f"Rendering {len(ids)} objects ({split})")
            part = path.with_name(f"part-{path.name}")
            render_objects(partial(read_object, data), ids, size, part, cameras=cameras)
            distance_path(part).replace(distance_path(path))
            part.replace(path)
    return TrainingViews.from_files([(path, ids)], device, cameras)


def _read(folders: Sequence[Path], size: int, device: torch.device, tell) -> TrainingViews:
    found = load_objects(folders, size, tell=tell)
    ends = np.cumsum(found.counts)
    kept = []
    for start, end, name in zip(ends - found.counts, ends, found.names, strict=True):
        angles = np.array([orbit_angles(pose) for pose in found.poses[start:end]], np.float32)
        if len(find_orbits(angles)):
            kept.append((start, end))
        else:
            tell(f"{name} is left out: no four of its views are a quarter turn apart at one elevation")
    if not kept:
        raise LGMError(
            "No object has four views a quarter turn apart at one elevation, which LGM takes in. Make the views with "
            "'python -m lgm_blender.training views' or in Blender."
        )
    rows = np.concatenate([np.arange(start, end) for start, end in kept])
    pixels = torch.from_numpy(found.pixels[rows]).to(device)
    return TrainingViews.from_rows(pixels, found.poses[rows], [end - start for start, end in kept])


def train(
    data: Path,
    output: Path,
    *,
    init: str = "mini",
    recipe: str | None = None,
    minutes: float | None = None,
    epochs: float | None = None,
    lpips: Path | None = None,
    limit: int | None = None,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    **settings: Any,
) -> Path:
    """Train LGM and leave a preset's folder.

    Args:
        data: See load_data.
        output: The folder. One that holds something else than a training is refused.
        init: See find_start.
        recipe: A name in RECIPES; by default 'finetune', or 'first' where init is 'none'.
        minutes, epochs: The length, one of them or `steps`; else the recipe's.
        lpips: LPIPS weights; by default those that `evaluate --fetch-lpips` left. Without, there is no such loss.
        limit: Only the first objects.
        tell: Takes lines about what is going on.
        settings: Of LGMSettings, in place of the recipe's. Networks are compiled on a GPU only.

    Returns:
        The preset's folder, `output`.

    Raises:
        LGMError: On bad input, or if the training collapses.
    """
    chosen = RECIPES[recipe or ("first" if init == "none" else "finetune")]
    start = find_start(init, chosen.model)
    given = sum(value is not None for value in (minutes, epochs, settings.get("steps")))
    if given > 1:
        raise LGMError("Give one of minutes, steps and epochs.")
    if output.is_dir() and any(output.iterdir()) and not (output / "log.jsonl").exists():
        raise LGMError(f"{output} holds other files. Choose an empty folder.")
    check_resumed(output, settings.get("resume", False))
    state, device = processes(), process_device()
    tell = tell if state.is_main_process else lambda line: None
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "log.jsonl").touch()
    except OSError as error:
        raise output_error(output, error) from error
    fast_arithmetic()
    views, validation = load_data(data, output, chosen.size, device, tell, limit)
    tell(f"{len(views)} objects to train on, {len(validation) if validation else 'none'} to judge on, {device}")
    network = LPIPS.find(lpips, device)
    if network is None:
        tell("Without the LPIPS loss, whose weights are not here: 'evaluate --fetch-lpips' gets them.")
    if device.type == "cuda":
        renderer, reason = backend_for(device, compile=True)
        tell(f"Renderer: {renderer} ({reason})")
    if not given:
        minutes, epochs = chosen.minutes, chosen.epochs
    level_first = find_preset(start.preset).level_first
    settings = {"compile": device.type == "cuda", "init": start.weights, "level_first": level_first, **settings}
    run = replace(chosen.settings, seconds=60 * (minutes or math.inf), **settings)
    if epochs is not None:
        run = replace(run, steps=max(1, round(epochs * len(views) / (run.batch * state.num_processes))))
    model = train_lgm(views, output, start.config, run, lpips=network)
    if state.is_main_process:
        if validation is not None:
            if start.weights is not None:
                first = lgm_from_file(start.config, start.weights, device, torch.float32)
                before = evaluate_lgm(first, validation, level_first=run.level_first)
                tell(f"Before, on objects not trained on: {before['val_psnr']:.2f} dB")
            after = evaluate_lgm(model, validation, level_first=run.level_first)
            tell(f"Now, on objects not trained on: {after['val_psnr']:.2f} dB")
        shutil.rmtree(output / "lgm", ignore_errors=True)
        (output / "lgm").mkdir()
        half = {n: t.half() if n.startswith("unet") else t for n, t in model.state_dict().items()}
        save_file({n: t.contiguous().cpu() for n, t in half.items()}, output / "lgm" / "model.safetensors")
        (output / "lgm" / "config.json").write_text(
            json.dumps(start.config.to_dict(), indent=1) + "\n", encoding="utf-8"
        )
        (output / "model.safetensors").unlink(missing_ok=True)
        write_preset(
            output,
            name=output.name,
            label=f"{output.name} (trained)",
            base=start.preset,
            level_first=run.level_first,
        )
    state.wait_for_everyone()
    return output
