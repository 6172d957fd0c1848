"""Judge a preset on objects it has not seen: from four true views, and from one image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..lgm import gaussians_from_views, load_lgm
from ..multiview.pipeline import MultiViewPipeline
from ..pipeline import FRAMES_TO_LGM
from .lgm import draw, evaluate_lgm
from .lpips import LPIPS
from .views import Views, recentered, zoom_to_front


def evaluate_reconstruct(preset: Path, views: Views, lpips: LPIPS | None, sheet: Path) -> dict[str, float]:
    """PSNR, IoU and LPIPS from four true views at elevation 0, on eight others; and a sheet of pictures."""
    device = views.pixels.device
    model = load_lgm(preset / "lgm", device, torch.float32)
    result, psnr = evaluate_lgm(model, views, lpips)
    rows = []
    for i in range(len(views)):
        which = views.first[i] + torch.tensor([[0, 1, 2, 3, 4, 6, 9]], device=device)
        color, alpha = views.pictures(which)
        images = color + 1 - alpha
        poses = views.poses[which]
        with torch.no_grad():
            gaussians = model(images[:, :4], poses[:, :4])
            rgb = draw(gaussians, poses[:, 4:], views.size, torch.ones(1, 3, 3, device=device))[0]
        rows.append(torch.stack([images[0, 4:], rgb[0].clamp(0, 1)], 1).flatten(0, 1))
    save_sheet(torch.stack(rows), sheet, across=3)
    result["objects_over_22_db"] = float((psnr > 22).mean())
    return result


def evaluate_image(preset: Path, views: Views, sheet: Path) -> dict[str, float]:
    """PSNR of the generated views and of views of the Gaussians, from one front image; and a sheet of pictures.

    Steps, guidance and scheduler are the preset's. The truth is scaled as the views are in training
    (views.zoom_to_front). Sheet: input, generated views,
    Gaussians from two sides, true views.
    """
    device = views.pixels.device
    settings = json.loads((preset / "preset.json").read_text("utf-8"))
    steps, guidance = settings["steps"]["image"], settings["guidance"]["image"]
    pipeline = MultiViewPipeline.from_folder(preset / "multiview", device, scheduler=settings["scheduler"])
    model = load_lgm(preset / "lgm", device) if (preset / "lgm" / "model.safetensors").exists() else None
    rows, scores, repeated = [], [], []
    quarter = torch.arange(4, device=device)
    for i in range(len(views)):
        color, alpha = views.pictures(views.first[i] + quarter)
        image = recentered(color[:1], alpha[:1])[0]
        color, alpha = zoom_to_front(color[None], alpha[None])
        truth = (color + 1 - alpha)[0]
        frames = pipeline(image=image.permute(1, 2, 0).cpu().numpy(), steps=steps, guidance=guidance, seed=i)
        frames = frames[list(FRAMES_TO_LGM)]
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).to(device)
        scores.append(-10 * ((pictures - truth) ** 2).mean((1, 2, 3)).log10().mean())
        repeated.append(-10 * ((image - truth) ** 2).mean((1, 2, 3)).log10().mean())
        row = [image[None], pictures]
        if model is not None:
            gaussians = torch.from_numpy(gaussians_from_views(model, frames).to_array())[None].to(device)
            poses = views.poses[views.first[i] + torch.tensor([[5, 8]], device=device)]
            row.append(draw(gaussians, poses, views.size, torch.ones(1, 2, 3, device=device))[0][0].clamp(0, 1))
        rows.append(torch.cat([*row, truth]))
    save_sheet(torch.stack(rows), sheet, across=2)
    return {
        "views_psnr": torch.stack(scores).mean().item(),
        "repeated_input_psnr": torch.stack(repeated).mean().item(),
    }


def save_sheet(rows: torch.Tensor, path: Path, across: int, size: int = 96) -> None:
    """A picture of rows [O, K, 3, S, S] in 0 to 1, `across` objects side by side."""
    count, number = rows.shape[:2]
    small = torch.nn.functional.interpolate(rows.flatten(0, 1), size=(size, size), mode="area")
    small = small.view(count, number, 3, size, size).permute(0, 3, 1, 4, 2).reshape(count, size, number * size, 3)
    blank = torch.ones_like(small[:1])
    lines = []
    for i in range(0, count, across):
        line = list(small[i : i + across]) + [blank[0]] * (across - len(small[i : i + across]))
        lines.append(torch.cat(line, 1))
    sheet = (torch.cat(lines, 0) * 255).round().byte().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(sheet)).save(path)
