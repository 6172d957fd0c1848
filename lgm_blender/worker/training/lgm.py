"""Train LGM on drawn views: four views in, Gaussians out, judged on eight views (LGM, section 3.3)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ...core.cameras import intrinsics
from ..lgm.model import LGM, LGMConfig
from ..quantization import load_file
from ..rendering import render
from .augment import augment
from .lpips import LPIPS
from .schedule import AveragedWeights, Clock, Log, cosine_rate
from .views import Views, opencv_matrices


def start_weights(model: LGM) -> None:
    """A start that trains: nearly transparent Gaussians of one size, all channels near zero."""
    torch.nn.init.zeros_(model.conv.bias)
    torch.nn.init.eye_(model.conv.weight.data.view(14, 14))
    model.unet.conv_out.weight.data.mul_(0.1)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    model.conv.bias.data[3] = -2  # opacity
    model.conv.bias.data[7] = 1  # the quaternion's real part


def draw(gaussians: Tensor, poses: Tensor, size: int, background: Tensor) -> tuple[Tensor, Tensor]:
    """Colours [B, V, 3, S, S] on `background` [B, V, 3] and alphas [B, V, 1, S, S] of Gaussians seen from poses."""
    k = torch.from_numpy(intrinsics(size)).to(poses.device).expand(*poses.shape[:2], 3, 3)
    backend = "gsplat" if gaussians.is_cuda else "torch"
    picture = render(gaussians, opencv_matrices(poses), k, size, background=background, backend=backend)
    return picture.rgb.movedim(-1, -3), picture.alpha.movedim(-1, -3)


def train_lgm(
    views: Views,
    output: Path,
    config: LGMConfig,
    *,
    seconds: float = math.inf,
    steps: int | None = None,
    batch: int = 8,
    rate: float = 4e-4,
    lpips: LPIPS | None = None,
    lpips_weight: float = 0.2,
    lpips_from: float = 0.4,
    augmented: bool = True,
    init: Path | None = None,
    seed: int = 0,
    phase: tuple[float, float] = (0.0, 1.0),
    compile: bool = True,
    validation: Views | None = None,
) -> LGM:
    """Train for a number of seconds or steps, and save the averaged weights as output/model.safetensors (fp32).

    The loss is MSE on colour and alpha, and LPIPS from `lpips_from` of the run on (from the start it can collapse).
    `augmented` distorts and jitters the input views (augment.py). Backgrounds are random, so that white Gaussians can't
    stand in for nothing. Cameras are turned so that the first view has azimuth 0. A run in several parts gives each its
    `phase` of the learning rate's cosine, and the weights of the one before as `init`.
    """
    device = views.pixels.device
    cuda = device.type == "cuda"
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    model = LGM(config).to(device)
    if init is None:
        start_weights(model)
    else:
        model.load_state_dict(load_file(init, device=str(device)))
    if cuda:
        model = model.to(memory_format=torch.channels_last)
    average = AveragedWeights(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.95),
        fused=cuda,
    )
    if compile:
        model.unet.compile()
    log = Log(output / "log.jsonl")
    clock = Clock(seconds, steps)
    step, sums = 0, {}
    while (progress := clock.tick()) < 1:
        objects, inputs = views.orbit(batch, generator)
        targets = torch.cat([inputs, views.free(batch, 4, generator)], 1)
        color, alpha = views.pictures(objects[:, None].expand(-1, 8), targets)
        poses = views.relative_poses(objects, targets, inputs[:, 0])
        images, seen_from = color[:, :4] + 1 - alpha[:, :4], poses[:, :4]
        if augmented:
            images, seen_from = augment(images, seen_from, generator)
        background = torch.rand(batch, 1, 3, generator=generator, device=device).expand(-1, 8, -1)
        truth = color + background[..., None, None] * (1 - alpha)

        for group in optimizer.param_groups:
            group["lr"] = rate * cosine_rate(step, np.interp(progress, (0, 1), phase), 300 if init is None else 50)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            gaussians = model(images, seen_from)
        rgb, opacity = draw(gaussians, poses, views.size, background)
        losses = {"rgb": F.mse_loss(rgb, truth), "alpha": F.mse_loss(opacity, alpha)}
        loss = losses["rgb"] + losses["alpha"]
        if lpips is not None and progress > lpips_from:
            ramp = min(1.0, (progress - lpips_from) / 0.1)
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                distance = lpips(rgb[:, 2:7].flatten(0, 1), truth[:, 2:7].flatten(0, 1)).mean()
            losses["lpips"] = distance
            loss = loss + lpips_weight * ramp * distance
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):  # one bad picture must not undo the run
            optimizer.step()
        average.update(model, step)
        step += 1
        for name, value in {**losses, "norm": norm}.items():
            sums.setdefault(name, []).append(value.detach())
        if step % 200 == 0:
            means = {name: torch.stack(values).mean().item() for name, values in sums.items()}
            sums = {}
            psnr = -10 * math.log10(max(means["rgb"], 1e-9))
            log.write(step=step, progress=progress, psnr=psnr, **means)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is not finite any more at step {step}: training collapsed")
    state = {name: tensor.contiguous().cpu() for name, tensor in average.model.state_dict().items()}
    save_file(state, output / "model.safetensors")
    if validation is not None:
        log.write(step=step, **evaluate_lgm(average.model, validation, lpips)[0])
    return average.model


@torch.no_grad()
def evaluate_lgm(model: LGM, views: Views, lpips: LPIPS | None = None) -> tuple[dict[str, float], np.ndarray]:
    """Reconstruction from four true views at elevation 0, judged on eight others (objects.evaluation_poses), on white.

    Returns:
        Mean PSNR in dB (of each object's mean, over objects), LPIPS and alpha IoU; and PSNR [O] of each object.
    """
    device = views.pixels.device
    psnrs, distances, ious = [], [], []
    for i in range(len(views)):
        objects = torch.tensor([i], device=device)
        seen = torch.arange(views.poses.shape[1], device=device)[None]
        color, alpha = views.pictures(objects[:, None].expand_as(seen), seen)
        poses = views.poses[i][None]
        images = color[:, :4] + 1 - alpha[:, :4]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            gaussians = model(images, poses[:, :4])
        white = torch.ones(1, seen.shape[1] - 4, 3, device=device)
        rgb, opacity = draw(gaussians, poses[:, 4:], views.size, white)
        truth = color[:, 4:] + 1 - alpha[:, 4:]
        rgb = rgb.clamp(0, 1)
        psnrs.append((-10 * ((rgb - truth) ** 2).mean((2, 3, 4)).clamp_min(1e-9).log10()).mean())
        a, b = opacity > 0.5, alpha[:, 4:] > 0.5
        ious.append((a & b).sum() / (a | b).sum().clamp_min(1))
        if lpips is not None:
            distances.append(lpips(rgb[0], truth[0]).mean())
    result = {"val_psnr": torch.stack(psnrs).mean().item(), "val_iou": torch.stack(ious).mean().item()}
    if distances:
        result["val_lpips"] = torch.stack(distances).mean().item()
    return result, torch.stack(psnrs).cpu().numpy()
