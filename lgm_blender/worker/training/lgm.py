"""Train LGM on drawn views: four views in, Gaussians out, judged on eight views (LGM, section 3.3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ...core.cameras import intrinsics
from ..lgm.model import LGM, LGMConfig
from ..quantization import load_file
from ..rendering import render
from ..tensors import constant
from .augment import augment
from .generated import Generated
from .lpips import LPIPS
from .schedule import Trainer
from .views import Views, opencv_matrices


def start_weights(model: LGM) -> None:
    """A start that trains: nearly transparent Gaussians of one size, all channels near zero."""
    torch.nn.init.zeros_(model.conv.bias)
    torch.nn.init.eye_(model.conv.weight.data.view(14, 14))
    model.unet.conv_out.weight.data.mul_(0.1)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    model.conv.bias.data[3] = -2  # opacity
    model.conv.bias.data[7] = 1  # the quaternion's real part


def start_state(path: Path, config: LGMConfig) -> dict[str, Tensor]:
    """The tensors of a file of weights; input channels that its model did not have start without effect."""
    state = load_file(path)
    weight = state["unet.conv_in.weight"]
    missing = config.in_channels - weight.shape[1]
    if missing > 0:
        state["unet.conv_in.weight"] = F.pad(weight, (0, 0, 0, 0, 0, missing))
    return state


def draw(gaussians: Tensor, poses: Tensor, size: int, background: Tensor) -> tuple[Tensor, Tensor]:
    """Colours [B, V, 3, S, S] on `background` [B, V, 3] and alphas [B, V, 1, S, S] of Gaussians seen from poses."""
    k = constant(tuple(map(tuple, intrinsics(size).tolist())), poses.device).expand(*poses.shape[:2], 3, 3)
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
    lpips_views: int = 4,
    inputs_judged: int = 4,
    others_judged: int = 4,
    surface_weight: float = 0.3,
    haze_weight: float = 0.0,
    augmented: bool = True,
    generated: Generated | None = None,
    generated_share: float = 0.5,
    init: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    compile: bool = True,
    optimizer: Literal["adamw", "muon"] = "adamw",
    until: float | None = None,
    validation: Views | None = None,
    generated_validation: Generated | None = None,
    graphs: bool = True,
) -> LGM:
    """Train for a number of seconds or steps, and save the averaged weights as output/model.safetensors (fp32).

    Four views of an orbit go in; some of them and some others are judged (the paper: 4 and 4). The loss is MSE on
    colour and alpha, and LPIPS of a quarter of `lpips_views` of the others from `lpips_from` of the run on (from the
    start it can collapse). Backgrounds are random, so that white Gaussians can't stand in for nothing. Cameras are
    turned so that the first view has azimuth 0.

    Args:
        views: For training. Larger ones than the model's input are judged at their size, and made smaller as input.
        output: Folder for weights, checkpoint, log and sample pictures.
        config: Of the model.
        seconds: The run's length.
        steps: The run's length in steps instead.
        batch: Objects a step and process.
        rate: Learning rate.
        lpips: The network; None trains without it.
        lpips_weight: Of its loss.
        lpips_from: Part of the run before it comes in.
        lpips_views: Of each object, how many of the other views it sees.
        inputs_judged: How many of the four input views are judged.
        others_judged: How many others are.
        surface_weight: How much a Gaussian's distance from the point that its pixel sees counts, where the views say
            how far away that is; falls to a tenth. Colours alone take very long to say where a surface is.
        haze_weight: Of what is half transparent, alpha · (1 - alpha), where views are generated: otherwise what they
            disagree about becomes a haze, the mean of what may be there.
        augmented: Whether the input views are distorted and jittered (augment.py).
        generated: Views by the multi-view model, that go in in place of true ones. In half of the other steps the true
            views of the same objects do, which may be of another size. All steps are then mirrored half of the time,
            and have their colour channels in any order.
        generated_share: Of the steps.
        init: Weights to start from.
        seed: Of everything random.
        resume: Go on from output/checkpoint.pt.
        compile: Whether torch.compile makes the U-Net and LPIPS faster, after a minute or two.
        optimizer, until, graphs: See Trainer.
        validation: Views from evaluation_poses, judged at the end.
        generated_validation: The same of generated views, judged at the start as well.

    Raises:
        LGMError: If the training collapses, or `output` holds one already.
    """
    torch.manual_seed(seed)
    model = LGM(config)
    if init is None:
        start_weights(model)
    else:
        model.load_state_dict(start_state(init, config))
    device = views.pixels.device
    cuda = device.type == "cuda"
    if cuda:
        model = model.to(device, memory_format=torch.channels_last)
    warmup = 300 if init is None else 100
    trainer = Trainer(
        model,
        output,
        rate=rate,
        warmup=warmup,
        seconds=seconds,
        steps=steps,
        seed=seed,
        resume=resume,
        optimizer=optimizer,
        until=until,
        graphs=graphs,
    )

    def judged_on_validation() -> dict[str, float]:
        values = evaluate_lgm(trainer.average.model, validation, lpips)[0] if validation is not None else {}
        if generated_validation is not None:
            found, _ = evaluate_lgm(trainer.average.model, generated_validation.views, lpips, generated_validation)
            values |= {name.replace("val", "val_generated"): value for name, value in found.items()}
        return values

    perceived = lpips
    if compile:
        trainer.bare.unet.compile()
        perceived = torch.compile(lpips) if lpips is not None else None
    chance = torch.Generator()
    if trainer.main and generated_validation is not None:
        trainer.log.write(step=trainer.steps_done, **judged_on_validation())
    for progress in trainer:
        generator = trainer.generator
        chance.manual_seed(generator.initial_seed())  # on the CPU, so that the host need not wait
        made = None
        if generated is not None and torch.rand((), generator=chance) < generated_share:
            source = generated.views
            objects, inputs, made = generated.draw(batch, generator)
        else:
            source = views
            if generated is not None and torch.rand((), generator=chance) < 0.5:
                source = generated.views
            objects, inputs = source.orbit(batch, generator)
        rows = torch.cat([source.others(objects, inputs, others_judged, generator), inputs], 1)
        color, alpha = source.pictures(rows)
        poses = source.relative_poses(rows, inputs[:, 0])
        images = (color + 1 - alpha)[:, others_judged:] if made is None else made
        surface = None
        if source.distances is not None:
            surface = source.surface(inputs, poses[:, others_judged:])
        if generated is not None:  # what is guessed is soon known by heart: more objects, all as true as they are
            if torch.rand((), generator=chance) < 0.5:
                color, alpha, images = color.flip(-1), alpha.flip(-1), images.flip(-1)
                poses, surface = mirrored(poses, surface)
            order = torch.randperm(3, generator=chance).tolist()
            # Not by a list, which would be copied to the device and make the host wait.
            color, images = (torch.stack([x[:, :, c] for c in order], 2) for x in (color, images))
        seen_from = poses[:, others_judged:]
        if source.size != config.input_size:
            images = resized(images, config.input_size)
        true = torch.ones(inputs.shape, dtype=torch.bool, device=device)
        guessed = torch.zeros(inputs.shape, device=device)
        if made is not None:
            true[:, 1:] = False
            guessed = guessed + generated.guessed
        elif augmented:
            images, seen_from, true = augment(images, seen_from, generator)
        judged = others_judged + inputs_judged  # which of the inputs does not matter: each comes first at times
        color, alpha = color[:, :judged], alpha[:, :judged]
        background = torch.rand(batch, 1, 3, generator=generator, device=device).expand(-1, judged, -1)
        truth = color + background[..., None, None] * (1 - alpha)

        with trainer.autocast():
            gaussians = trainer.model(images, seen_from, guessed)
        rgb, opacity = draw(gaussians, poses[:, :judged], source.size, background)
        mse = F.mse_loss(rgb, truth)
        loss = mse + F.mse_loss(opacity, alpha)
        haze = (opacity * (1 - opacity)).mean()
        values = {"mse": mse, "iou": soft_iou(opacity, alpha), "opacity": opacity.mean() / alpha.mean(), "haze": haze}
        if made is not None:
            loss = loss + haze_weight * haze
        if surface is not None:
            points, covered = surface
            covered = covered & true[..., None, None]
            off = (gaussians[..., :3].view_as(points) - points).norm(dim=-1)
            values["off"] = (off * covered).sum() / covered.sum().clamp_min(1)
            loss = loss + surface_weight * (1 - 0.9 * progress) * values["off"]
        if lpips is not None and progress > lpips_from:
            ramp = min(1.0, (progress - lpips_from) / 0.1)
            pair = [pictures[:, :lpips_views].flatten(0, 1) for pictures in (rgb, truth)]
            if source.size > 256:
                pair = [resized(pictures, 256) for pictures in pair]
            crop = random_quarter(pair[0].shape[-1], chance)
            with trainer.autocast():
                values["lpips"] = perceived(pair[0][crop], pair[1][crop]).mean()
            loss = loss + lpips_weight * ramp * values["lpips"]
        if trainer.step(loss, psnr=-10 * mse.detach().log10(), **values):
            save_pairs(rgb, truth, output / "sample.png")
        if generated is not None and trainer.steps_done % 50 == 0 and generated.refresh() and trainer.log:
            trainer.log.write(step=trainer.steps_done, refreshed=True)
    trainer.finish()
    if trainer.main:
        state = {name: tensor.contiguous().cpu() for name, tensor in trainer.average.model.state_dict().items()}
        save_file(state, output / "model.safetensors")
        if validation is not None or generated_validation is not None:
            trainer.log.write(step=trainer.steps_done, **judged_on_validation())
    return trainer.average.model


def mirrored(
    poses: Tensor, surface: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Poses [..., 4, 4] and Views.surface's points and coverage, for pictures that are flipped from left to right."""
    sides = constant((-1.0, 1.0, 1.0, 1.0), poses.device, poses.dtype)
    poses = sides[:, None] * poses * sides
    if surface is not None:
        points, covered = surface
        surface = points.flip(-2) * sides[:3].to(points.dtype), covered.flip(-1)
    return poses, surface


def resized(pictures: Tensor, size: int) -> Tensor:
    """Pictures [..., C, H, W] at size², by areas."""
    flat = F.interpolate(pictures.flatten(0, -4), size=(size, size), mode="area")
    return flat.unflatten(0, pictures.shape[:-3])


def random_quarter(size: int, chance: torch.Generator) -> tuple:
    """An index that takes a quarter of pictures [..., S, S], about the middle, where the object is.

    LPIPS costs a fourth on it, so it can look at four times the pictures.
    """
    half = size // 2
    low, high = size // 8, half - size // 8 + 1
    y, x = torch.randint(low, high, (2,), generator=chance).tolist()
    return ..., slice(y, y + half), slice(x, x + half)


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two sets of alphas of one shape."""
    return torch.minimum(a, b).sum() / torch.maximum(a, b).sum().clamp_min(1)


def save_pairs(rgb: Tensor, truth: Tensor, path: Path, objects: int = 8, size: int = 128) -> None:
    """A picture of the first views of some objects: what came out above what should have, [B, V, 3, S, S] each."""
    pairs = resized(torch.stack([rgb[:objects, 0], truth[:objects, 0]]).detach().float().clamp(0, 1), size)
    sheet = pairs.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    part = path.with_suffix(".part")
    Image.fromarray((sheet * 255).round().byte().cpu().numpy()).save(part, "PNG")
    part.replace(path)


@torch.no_grad()
def evaluate_lgm(
    model: LGM, views: Views, lpips: LPIPS | None = None, generated: Generated | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Reconstruction from the first orbit of true views of each object, judged on its other views, on white.

    Of objects.evaluation_poses that is four views at elevation 0, and eight others.

    Args:
        model: What is judged.
        views: The objects.
        lpips: The network.
        generated: Views of them by the multi-view model, to go in instead.

    Returns:
        Mean PSNR in dB (of each object's mean, over objects), LPIPS and alpha IoU; and PSNR [O] of each object.
    """
    device = views.pixels.device
    psnrs, distances, ious = [], [], []
    for first, count in zip(views.first.tolist(), views.counts.tolist(), strict=True):
        inputs = views.orbits[len(psnrs), 0]
        rows = torch.arange(first, first + count, device=device)
        seen = torch.cat([inputs, rows[~torch.isin(rows, inputs)]])[None]
        color, alpha = views.pictures(seen)
        poses = views.poses[seen]
        images = color[:, :4] + 1 - alpha[:, :4]
        guessed = None
        if generated is not None:
            images = generated.pictures(torch.tensor([len(psnrs)], device=device))
            guessed = generated.guessed[None].float()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            gaussians = model(images, poses[:, :4], guessed)
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
