"""Train LGM on rendered views: four views in, Gaussians out, supervised by eight views (LGM, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ...core.cameras import intrinsics
from ...worker.lgm.model import LGM, LGMConfig
from ...worker.quantization import load_file
from ...worker.rendering import backend_for, render
from ...worker.tensors import constant
from ..data.augment import augment
from ..data.generated import Generated
from ..data.views import TrainingViews, opencv_matrices
from ..settings import LGMSettings
from .lpips import LPIPS
from .trainer import Trainer


@dataclass
class Batch:
    """Objects of one step, B of them: V supervised views, the four inputs the last of `others` + 4, pictures S².

    Attributes:
        images: [B, 4, 3, s, s] in 0 to 1 on white: what the model is given.
        image_poses: [B, 4, 4, 4], where it is told that they were taken from.
        averaged: [B, 4], 1 for the mean of several samples.
        exact: [B, 4], whether the image and its pose are as rendered (bool).
        color, alpha: [B, V, 3, S, S], premultiplied, and [B, V, 1, S, S]: the ground truth.
        poses: [B, V, 4, 4].
        surface: TrainingViews.surface of the inputs; None where the distances are not known.
        generated: Whether the images are views by the multi-view model.
    """

    images: Tensor
    image_poses: Tensor
    averaged: Tensor
    exact: Tensor
    color: Tensor
    alpha: Tensor
    poses: Tensor
    surface: tuple[Tensor, Tensor] | None
    generated: bool


def initialize(model: LGM) -> None:
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


def render_views(gaussians: Tensor, poses: Tensor, size: int, background: Tensor) -> tuple[Tensor, Tensor]:
    """Colours [B, V, 3, S, S] on `background` [B, V, 3] and alphas [B, V, 1, S, S] of Gaussians seen from poses.

    By gsplat where CUDA and gsplat are there, which is compiled for it, else by the torch renderer.
    """
    k = constant(tuple(map(tuple, intrinsics(size).tolist())), poses.device).expand(*poses.shape[:2], 3, 3)
    backend, _ = backend_for(gaussians.device, compile=True)
    picture = render(gaussians, opencv_matrices(poses), k, size, background=background, backend=backend)
    return picture.rgb.movedim(-1, -3), picture.alpha.movedim(-1, -3)


def train_lgm(
    views: TrainingViews,
    output: Path,
    config: LGMConfig,
    settings: LGMSettings,
    *,
    lpips: LPIPS | None = None,
    generated: Generated | None = None,
    validation: TrainingViews | None = None,
    generated_validation: Generated | None = None,
) -> LGM:
    """Train, and save the averaged weights as output/model.safetensors (fp32).

    The loss is MSE on colour and alpha, and LPIPS of a quarter of some pictures. Backgrounds are random, so that white
    Gaussians can't stand in for nothing. Cameras are turned so that the first view has azimuth 0.

    Args:
        views: For training. Larger ones than the model's input supervise at their size, and are made smaller as input.
        output: Folder for weights, checkpoint, log and sample pictures.
        config: Of the model.
        settings: Of the training.
        lpips: The network; None trains without it.
        generated: Views by the multi-view model, that go in in place of ground-truth views.
        validation: Views from evaluation_poses, judged at the end.
        generated_validation: The same of generated views, judged at the start as well.

    Raises:
        LGMError: If the training collapses, or `output` holds one already.
    """
    torch.manual_seed(settings.seed)
    model = LGM(config)
    if settings.init is None:
        initialize(model)
    else:
        model.load_state_dict(start_state(settings.init, config))
    if views.pixels.is_cuda:
        model = model.to(views.pixels.device, memory_format=torch.channels_last)
    trainer = Trainer(model, output, settings, warmup=300 if settings.init is None else 100)
    perceived = lpips
    if settings.compile:
        trainer.bare.unet.compile()
        perceived = torch.compile(lpips) if lpips is not None else None

    def validate() -> None:
        values = (
            evaluate_lgm(trainer.average.model, validation, lpips, None, settings.level_first)
            if validation is not None
            else {}
        )
        if generated_validation is not None:
            found = evaluate_lgm(
                trainer.average.model, generated_validation.views, lpips, generated_validation, settings.level_first
            )
            values |= {name.replace("val", "val_generated"): value for name, value in found.items()}
        if values:
            trainer.log.write(step=trainer.steps_done, **values)

    if trainer.main and generated_validation is not None:
        validate()
    for progress in trainer:
        batch = next_batch(views, generated, settings, config.input_size, trainer.generator, trainer.host_generator)
        with trainer.autocast():
            gaussians = trainer.model(batch.images, batch.image_poses, batch.averaged)
        background = torch.rand(len(batch.poses), 1, 3, generator=trainer.generator, device=gaussians.device)
        background = background.expand(-1, batch.poses.shape[1], -1)
        rgb, opacity = render_views(gaussians, batch.poses, batch.color.shape[-1], background)
        target = batch.color + background[..., None, None] * (1 - batch.alpha)
        mse = F.mse_loss(rgb, target)
        loss = mse + F.mse_loss(opacity, batch.alpha)
        values = {"mse": mse, "iou": soft_iou(opacity, batch.alpha), "opacity": opacity.mean() / batch.alpha.mean()}
        values["translucency"] = (opacity * (1 - opacity)).mean()
        if batch.generated:
            loss = loss + settings.translucency_weight * values["translucency"]
        if batch.surface is not None:
            values["off"] = surface_distance(gaussians, *batch.surface, batch.exact)
            loss = loss + settings.surface_weight * (1 - 0.9 * progress) * values["off"]
        if lpips is not None and progress > settings.lpips_from:
            pair = [pictures[:, : settings.lpips_views].flatten(0, 1) for pictures in (rgb, target)]
            if pair[0].shape[-1] > 256:
                pair = [resized(pictures, 256) for pictures in pair]
            crop = random_quarter(pair[0].shape[-1], trainer.host_generator)
            with trainer.autocast():
                values["lpips"] = perceived(pair[0][crop], pair[1][crop]).mean()
            ramp = min(1.0, (progress - settings.lpips_from) / 0.1)
            elsewhere = settings.generated_lpips_weight if batch.generated else None
            weight = settings.lpips_weight if elsewhere is None else elsewhere
            loss = loss + weight * ramp * values["lpips"]
        if trainer.step(loss, psnr=-10 * mse.detach().log10(), **values):
            save_pairs(rgb, target, output / "sample.png")
    trainer.finish()
    if trainer.main:
        state = {name: tensor.contiguous().cpu() for name, tensor in trainer.average.model.state_dict().items()}
        save_file(state, output / "model.safetensors")
        validate()
    return trainer.average.model


def next_batch(
    views: TrainingViews,
    generated: Generated | None,
    settings: LGMSettings,
    input_size: int,
    generator: torch.Generator,
    host_generator: torch.Generator,
) -> Batch:
    """Random objects with four views of a random orbit of each as input, as `settings` say.

    Where there are generated views all batches are mirrored half of the time and have their colour channels in any
    order: what is generated is soon known by heart, and this makes more objects, all as good as they are.

    Args:
        views: Ground-target views.
        generated: Generated ones, with ground truth of their own.
        settings: Of the training.
        input_size: Pixels a side that the model takes.
        generator: On the views' device.
        host_generator: On the CPU.
    """

    def happens(probability: float) -> bool:
        return bool(torch.rand((), generator=host_generator) < probability)

    others, made = settings.supervised_others, None
    if generated is not None and happens(settings.generated_share):
        source = generated.views
        objects, inputs, made = generated.sample(settings.batch, generator)
    else:
        source = generated.views if generated is not None and happens(0.5) else views
        objects, inputs = source.orbit(settings.batch, generator)
    rows = torch.cat([source.others(objects, inputs, others, generator), inputs], 1)
    color, alpha = source.pictures(rows)
    poses = source.relative_poses(rows, inputs[:, 0])
    images = (color + 1 - alpha)[:, others:] if made is None else made
    surface = None if source.distances is None else source.surface(inputs, poses[:, others:])
    if generated is not None:
        if happens(0.5):
            color, alpha, images = color.flip(-1), alpha.flip(-1), images.flip(-1)
            poses, surface = mirrored(poses, surface)
        order = torch.randperm(3, generator=host_generator).tolist()
        # Not by a list, which would be copied to the device and make the host wait.
        color, images = (torch.stack([x[:, :, c] for c in order], 2) for x in (color, images))
    if settings.level_first:
        poses, surface = levelled(poses, others, surface)
    image_poses = poses[:, others:]
    if source.size != input_size:
        images = resized(images, input_size)
    averaged = torch.zeros(inputs.shape, device=inputs.device)
    exact = torch.ones_like(averaged, dtype=torch.bool)
    if made is not None:
        told = settings.told_share >= 1 or happens(settings.told_share)
        averaged, exact[:, 1:] = averaged + generated.averaged * told, False
    elif settings.augmentation:
        images, image_poses, exact = augment(images, image_poses, generator)
    supervised = others + settings.supervised_inputs  # whichever of the inputs: each comes first at times
    color, alpha, poses = color[:, :supervised], alpha[:, :supervised], poses[:, :supervised]
    return Batch(images, image_poses, averaged, exact, color, alpha, poses, surface, made is not None)


def surface_distance(gaussians: Tensor, points: Tensor, covered: Tensor, exact: Tensor) -> Tensor:
    """Mean distance of Gaussians [B, N, 14] from the points that their pixels see (TrainingViews.surface), where the
    input views are `exact` [B, 4]."""
    covered = covered & exact[..., None, None]
    off = (gaussians[..., :3].view_as(points) - points).norm(dim=-1)
    return (off * covered).sum() / covered.sum().clamp_min(1)


def mirrored(
    poses: Tensor, surface: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Poses [..., 4, 4] and TrainingViews.surface, for pictures that are flipped from left to right."""
    sides = constant((-1.0, 1.0, 1.0, 1.0), poses.device, poses.dtype)
    poses = sides[:, None] * poses * sides
    if surface is not None:
        points, covered = surface
        surface = points.flip(-2) * sides[:3].to(points.dtype), covered.flip(-1)
    return poses, surface


def levelled(
    poses: Tensor, first: int = 0, surface: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Poses [B, V, 4, 4] and TrainingViews.surface, turned until view number `first` is level at +z.

    The same as core.cameras.levelled, for batches.
    """
    turn = poses[:, first, :3, :3]
    poses = torch.cat([turn.mT[:, None] @ poses[..., :3, :], poses[..., 3:, :]], dim=-2)
    if surface is not None:
        points, covered = surface
        surface = (points.flatten(1, -2) @ turn.to(points.dtype)).view_as(points), covered
    return poses, surface


def resized(pictures: Tensor, size: int) -> Tensor:
    """Pictures [..., C, H, W] at size², by areas."""
    flat = F.interpolate(pictures.flatten(0, -4), size=(size, size), mode="area")
    return flat.unflatten(0, pictures.shape[:-3])


def random_quarter(size: int, generator: torch.Generator) -> tuple:
    """An index that takes a quarter of pictures [..., S, S], about the middle, where the object is.

    LPIPS costs a fourth on it, so it can look at four times the pictures.
    """
    half = size // 2
    low, high = size // 8, half - size // 8 + 1
    y, x = torch.randint(low, high, (2,), generator=generator).tolist()
    return ..., slice(y, y + half), slice(x, x + half)


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two sets of alphas of one shape."""
    return torch.minimum(a, b).sum() / torch.maximum(a, b).sum().clamp_min(1)


def save_pairs(rgb: Tensor, target: Tensor, path: Path, objects: int = 8, size: int = 128) -> None:
    """A picture of the first views of some objects: predictions above the ground truth, [B, V, 3, S, S] each."""
    pairs = resized(torch.stack([rgb[:objects, 0], target[:objects, 0]]).detach().float().clamp(0, 1), size)
    sheet = pairs.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    part = path.with_suffix(".part")
    Image.fromarray((sheet * 255).round().byte().cpu().numpy()).save(part, "PNG")
    part.replace(path)


@torch.no_grad()
def evaluate_lgm(
    model: LGM,
    views: TrainingViews,
    lpips: LPIPS | None = None,
    generated: Generated | None = None,
    level_first: bool = False,
) -> dict[str, float]:
    """Reconstruction from the first orbit of each object's views, judged on its other views, on white.

    Of evaluation_poses that is four views at elevation 0, and eight others.

    Args:
        model: What is judged.
        views: The objects' ground-truth views.
        lpips: The network.
        generated: Views of them by the multi-view model, to go in instead.
        level_first: See LGMSettings.

    Returns:
        Mean PSNR in dB (of each object's mean, over objects), LPIPS and alpha IoU.
    """
    device = views.pixels.device
    psnrs, distances, ious = [], [], []
    for first, count in zip(views.first.tolist(), views.counts.tolist(), strict=True):
        inputs = views.orbits[len(psnrs), 0]
        rows = torch.arange(first, first + count, device=device)
        seen = torch.cat([inputs, rows[~torch.isin(rows, inputs)]])[None]
        color, alpha = views.pictures(seen)
        poses = views.poses[seen]
        if level_first:
            poses, _ = levelled(poses)
        images, averaged = color[:, :4] + 1 - alpha[:, :4], None
        if generated is not None:
            images = generated.pictures(torch.tensor([len(psnrs)], device=device))
            averaged = generated.averaged[None].float()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            gaussians = model(images, poses[:, :4], averaged)
        white = torch.ones(1, seen.shape[1] - 4, 3, device=device)
        rgb, opacity = render_views(gaussians, poses[:, 4:], views.size, white)
        target = color[:, 4:] + 1 - alpha[:, 4:]
        rgb = rgb.clamp(0, 1)
        psnrs.append((-10 * ((rgb - target) ** 2).mean((2, 3, 4)).clamp_min(1e-9).log10()).mean())
        a, b = opacity > 0.5, alpha[:, 4:] > 0.5
        ious.append((a & b).sum() / (a | b).sum().clamp_min(1))
        if lpips is not None:
            distances.append(lpips(rgb[0], target[0]).mean())
    result = {"val_psnr": torch.stack(psnrs).mean().item(), "val_iou": torch.stack(ious).mean().item()}
    if distances:
        result["val_lpips"] = torch.stack(distances).mean().item()
    return result
