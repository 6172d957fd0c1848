"""Views by the multi-view model as input for LGM's training, which then learns to make the best of its errors.

LGM's two augmentations imitate such errors (augment.py); these are the errors themselves, of objects that the
multi-view model has not seen: a variant (varied.py) that it was not trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.files import replacing
from ..multiview.colors import finish_views
from ..multiview.pipeline import IMAGE_VIEW, VIEWS, MultiViewPipeline, predicted
from ..pipeline import FRAMES_TO_LGM
from .multiview import cameras, clip_pixels, encode
from .views import Views, back_from, front_zoom, recentered, warped


@dataclass
class Generated:
    """What the multi-view model makes of views of objects, where the true ones are.

    Attributes:
        views: The true views.
        inputs: [N, 4] int64, the rows in `views` of the orbits that were generated, the input's side first.
        pixels: [N, 4, S, S, 3] uint8, on white.
        objects: [N] int64.
    """

    views: Views
    inputs: Tensor
    pixels: Tensor

    def __post_init__(self):
        self.objects = torch.searchsorted(self.views.first, self.inputs[:, 0].contiguous(), right=True) - 1

    @classmethod
    def load(cls, files: Sequence[tuple[Path, int]], views: Views) -> Generated:
        """What `generate` wrote of these views, in one file or several.

        Args:
            files: The files, each with how many of the views' objects it is about, one after the other.
            views: The true views of all of them.
        """
        device, inputs, pixels, objects = views.pixels.device, [], [], 0
        for path, number in files:
            with np.load(path) as data:
                inputs.append(torch.from_numpy(data["inputs"]).to(device) + views.first[objects])
                pixels.append(torch.from_numpy(data["pixels"]).to(device))
            objects += number
        return cls(views, torch.cat(inputs), torch.cat(pixels))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random objects [count], the rows [count, 4] of an orbit of each, its generated views [count, 4, 3, S, S]."""
        device = self.pixels.device
        chosen = torch.randint(len(self.inputs), (count,), generator=generator, device=device)
        pictures = self.pixels[chosen].movedim(-1, -3).float() / 255
        return self.objects[chosen], self.inputs[chosen], pictures


def generate(
    views: Views,
    pipeline: MultiViewPipeline,
    path: Path,
    *,
    orbits: int = 1,
    batch: int = 128,
    steps: int = 16,
    guidance: float = 2.5,
    match: bool = True,
    keep: bool = True,
    samples: int = 1,
    seed: int = 0,
    threads: int = 8,
) -> int:
    """Generate views of every object as they come of a user's image, and write them with `numpy.savez`.

    Args:
        views: The true views; the first of an orbit becomes the input image.
        pipeline: The multi-view model, for images.
        path: A .npz file.
        orbits: Of each object: from its own front, and from random other sides.
        batch: Orbits at once.
        steps, guidance, samples: See MultiViewPipeline.
        match, keep: See finish_views.
        seed: Of the noise and the sides.
        threads: Of the colours' matching.

    Returns:
        How many orbits there are.
    """
    device = views.pixels.device
    generator = torch.Generator(device).manual_seed(seed)
    chosen = torch.rand(len(views), orbits, generator=generator, device=device) * views.orbit_counts[:, None]
    chosen[:, 0] = 0
    inputs = views.orbits.gather(1, chosen.long()[..., None].expand(-1, -1, VIEWS)).flatten(0, 1)
    made = []
    with ThreadPoolExecutor(threads) as pool:
        for rows in inputs.split(batch):
            color, alpha = views.pictures(rows)
            images, moves = recentered(color[:, 0], alpha[:, 0]), front_zoom(alpha)
            pictures = draw(pipeline, images, views.angles[rows[:, 0], 0], generator, steps, guidance, keep, samples)
            photos = list(images.movedim(1, -1).cpu().numpy())
            frames = list(pictures.movedim(2, -1).cpu().numpy())
            finished = pool.map(partial(finish_views, match=match, keep=keep), frames, photos)
            matched = torch.from_numpy(np.stack(list(finished))).movedim(-1, 2)
            # Back to where the object stands in the true views; what comes in at the edges is white.
            back = 1 - warped(1 - matched.to(device), back_from(moves))
            if keep:  # in use that view is the image itself, which no resampling has blurred
                back[:, 0] = color[:, 0] + 1 - alpha[:, 0]
            made.append((back.movedim(2, -1) * 255).round().to(torch.uint8).cpu().numpy())
    with replacing(path) as file:
        np.savez(file, inputs=inputs.cpu().numpy(), pixels=np.concatenate(made))
    return len(inputs)


@torch.inference_mode()
def draw(
    pipeline: MultiViewPipeline,
    images: Tensor,
    elevations: Tensor,
    generator: torch.Generator,
    steps: int,
    guidance: float,
    keep_image: bool = False,
    samples: int = 1,
) -> Tensor:
    """Four views of each of many images at once, [B, 4, 3, S, S] in 0 to 1, the images' sides first.

    Args:
        pipeline: The multi-view model.
        images: [B, 3, S, S], recentred, on white, 0 to 1.
        elevations: [B], degrees.
        generator: Of the noise, on the images' device.
        steps, guidance, keep_image, samples: See MultiViewPipeline.
    """
    number, device, unet = len(images), images.device, pipeline.unet
    side = pipeline.image_encoder.config.image_size
    small = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    encoder = pipeline.image_encoder
    pixels = clip_pixels((small * 255).to(torch.uint8)).to(next(encoder.parameters()))
    embeds = encoder(pixels, output_hidden_states=True).hidden_states[-2].float()
    image_latents = encode(pipeline.vae, images).float()
    # Of each image its samples, one after the other; and all that once more without the image, to guide.
    rows = number * samples
    embeds, image_latents, elevations = (x.repeat_interleave(samples, 0) for x in (embeds, image_latents, elevations))
    kept = image_latents
    halves = 2 if guidance != 1 else 1
    if halves == 2:
        embeds, image_latents = (torch.cat([torch.zeros_like(x), x]) for x in (embeds, image_latents))
    text = pipeline.encode_text("")[:1].expand(halves * rows, -1, -1)
    condition = unet.prepare(text, cameras(elevations).repeat(halves, 1, 1), embeds)
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    shape = (rows, VIEWS, *image_latents.shape[1:])
    latents = torch.randn(shape, generator=generator, device=device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(latents, t).repeat(halves, 1, 1, 1, 1)
        x = torch.cat([x, image_latents[:, None]], 1)
        prediction = unet.denoise(x, t.to(device).expand(halves * rows), condition)[:, :VIEWS].float()
        if halves == 2:
            without, with_image = prediction.chunk(2)
            prediction = without + guidance * (with_image - without)
        if keep_image:
            prediction[:, IMAGE_VIEW] = predicted(scheduler, latents[:, IMAGE_VIEW], kept, t)
        latents = scheduler.step(prediction, t, latents).prev_sample
    latents = latents.unflatten(0, (number, samples)).mean(1)
    frames = [pipeline.vae.decode(part / pipeline.vae.config.scaling_factor).sample for part in latents.unbind(1)]
    return torch.stack([frames[i] for i in FRAMES_TO_LGM], 1).div(2).add(0.5).clamp(0, 1)
