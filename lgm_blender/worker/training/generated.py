"""Views by the multi-view model as input for LGM's training, which then learns to make the best of its errors.

LGM's two augmentations imitate such errors (augment.py); these are the errors themselves, of objects that the
multi-view model has not seen: variants (varied.py) that it was not trained on, as large as in use (orbits.draw_placed).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import LGMError
from ...core.files import replacing
from ..multiview.colors import finish_views
from ..multiview.pipeline import IMAGE_VIEW, VIEWS, MultiViewPipeline, predicted, redrawn_from, started
from ..pipeline import FRAMES_TO_LGM, guessed_views
from .multiview import cameras, clip_pixels, encode
from .views import Views


@dataclass
class Generated:
    """What the multi-view model makes of placed objects, where the true views are.

    Attributes:
        views: The true views.
        pixels: [O, 4, S, S, 3] uint8, on white: of each object its first orbit, the image's side first.
        guessed: [4], which of them LGM is told to be guesses.
        files: Where they come from, and when those were written.
    """

    views: Views
    pixels: Tensor
    guessed: Tensor
    files: tuple[Path, ...] = ()
    times: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, files: Sequence[Path], views: Views) -> Generated:
        """What `generate` wrote of these views, in one file or several, one set of objects after the other."""
        pixels, guessed = cls._read(files)
        if len(pixels) != len(views):
            raise LGMError(
                f"Views of {len(pixels)} objects were generated, of {len(views)} there are true ones. Generate anew."
            )
        device = views.pixels.device
        return cls(views, pixels.to(device), guessed.to(device), tuple(files), cls._times(files))

    @staticmethod
    def _read(files: Sequence[Path]) -> tuple[Tensor, Tensor]:
        pixels = []
        for path in files:
            with np.load(path) as data:
                pixels.append(torch.from_numpy(data["pixels"]))
                guessed = torch.from_numpy(data["guessed"])
        return torch.cat(pixels), guessed

    @staticmethod
    def _times(files: Sequence[Path]) -> list[int]:
        return [path.stat().st_mtime_ns for path in files]

    def refresh(self) -> bool:
        """Take in what another process has generated anew meanwhile, of the same objects; whether it has."""
        times = self._times(self.files)
        if times == self.times:
            return False
        self.pixels.copy_(self._read(self.files)[0])
        self.times = times
        return True

    @property
    def inputs(self) -> Tensor:
        """[O, 4], the rows in `views` of what was generated."""
        return self.views.orbits[:, 0]

    def pictures(self, objects: Tensor) -> Tensor:
        """Generated views [B, 4, 3, S, S] in 0 to 1 of objects [B]."""
        return self.pixels[objects].movedim(-1, -3).float() / 255

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random objects [count], the rows [count, 4] of an orbit of each, its generated views [count, 4, 3, S, S]."""
        device = self.pixels.device
        objects = torch.randint(len(self.pixels), (count,), generator=generator, device=device)
        return objects, self.inputs[objects], self.pictures(objects)


def generate(
    photos: np.ndarray,
    elevations: np.ndarray,
    pipeline: MultiViewPipeline,
    path: Path,
    *,
    batch: int = 128,
    steps: int = 5,
    guidance: float = 1.0,
    match: bool = True,
    keep: bool = True,
    samples: int = 4,
    redraw: bool = True,
    seed: int = 0,
    threads: int = 8,
    device: torch.device | str = "cpu",
) -> int:
    """Generate views of every object as they come of a user's image, and write them with `numpy.savez`.

    Args:
        photos: [O, S, S, 4] uint8, premultiplied, as draw_placed draws them.
        elevations: [O], degrees, of the photos.
        pipeline: The multi-view model, for images.
        path: A .npz file.
        batch: Objects at once.
        steps, guidance, samples, redraw: See MultiViewPipeline.
        match, keep: See finish_views.
        seed: Of the noise.
        threads: Of what finish_views does.
        device: The pipeline's.

    Returns:
        How many objects there are.
    """
    generator = torch.Generator(device).manual_seed(seed)
    made = []
    with ThreadPoolExecutor(threads) as pool:
        waiting = []  # the device draws the next ones while these are finished
        for i in range(0, len(photos), batch):
            part = torch.from_numpy(np.array(photos[i : i + batch])).to(device).float().div_(255).movedim(-1, 1)
            images = part[:, :3] + 1 - part[:, 3:]
            angles = torch.from_numpy(np.asarray(elevations[i : i + batch], np.float32)).to(device)
            pictures = draw(pipeline, images, angles, generator, steps, guidance, keep, samples, redraw)
            frames, inputs = (x.movedim(-3, -1).cpu().numpy() for x in (pictures, images))
            made += waiting
            waiting = [pool.submit(_finished, *pair, match, keep) for pair in zip(frames, inputs, strict=True)]
        pixels = np.stack([each.result() for each in (*made, *waiting)])
    # In training single samples are called guesses too, so that of true views LGM goes on to make all that they show.
    guessed = guessed_views(max(samples, 2), keep)
    with replacing(path) as file:
        np.savez(file, pixels=pixels, guessed=np.array(guessed))
    return len(photos)


def _finished(frames: np.ndarray, image: np.ndarray, match: bool, keep: bool) -> np.ndarray:
    return np.uint8(finish_views(frames, image, match=match, keep=keep) * 255 + 0.5)


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
    redraw: bool = False,
) -> Tensor:
    """Four views of each of many images at once, [B, 4, 3, S, S] in 0 to 1, the images' sides first.

    Args:
        pipeline: The multi-view model.
        images: [B, 3, S, S], recentred, on white, 0 to 1.
        elevations: [B], degrees.
        generator: Of the noise, on the images' device.
        steps, guidance, keep_image, samples, redraw: See MultiViewPipeline.
    """
    number, device, unet = len(images), images.device, pipeline.unet
    side = pipeline.image_encoder.config.image_size
    small = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    encoder = pipeline.image_encoder
    pixels = clip_pixels((small * 255).to(torch.uint8)).to(next(encoder.parameters()))
    embeds = encoder(pixels, output_hidden_states=True).hidden_states[-2].float()
    image_latents = encode(pipeline.vae, images).float()
    text = pipeline.encode_text("")[:1]
    halves = 2 if guidance != 1 else 1
    scheduler = copy.deepcopy(pipeline.scheduler)

    def denoised(count: int, clean: Tensor | None = None) -> Tensor:
        """The mean of `count` samples of each image, [B, 4, C, h, w]."""
        rows = number * count
        # Of each image its samples, one after the other; and all that once more without the image, to guide.
        given, kept, angles = (x.repeat_interleave(count, 0) for x in (embeds, image_latents, elevations))
        image_frame = kept
        if halves == 2:
            given, image_frame = (torch.cat([torch.zeros_like(x), x]) for x in (given, kept))
        words = text.expand(halves * rows, -1, -1)
        condition = unet.prepare(words, cameras(angles).repeat(halves, 1, 1), given)
        noise = torch.randn(rows, VIEWS, *kept.shape[1:], generator=generator, device=device)
        scheduler.set_timesteps(steps)
        views, first = started(scheduler, noise, clean)
        for t in scheduler.timesteps[first:]:
            x = scheduler.scale_model_input(views, t).repeat(halves, 1, 1, 1, 1)
            x = torch.cat([x, image_frame[:, None]], 1)
            prediction = unet.denoise(x, t.to(device).expand(halves * rows), condition)[:, :VIEWS].float()
            if halves == 2:
                without, with_image = prediction.chunk(2)
                prediction = without + guidance * (with_image - without)
            if keep_image:
                prediction[:, IMAGE_VIEW] = predicted(scheduler, views[:, IMAGE_VIEW], kept, t)
            views = scheduler.step(prediction, t, views).prev_sample
        return views.unflatten(0, (number, count)).mean(1)

    latents = denoised(samples)
    if redraw and samples > 1 and redrawn_from(steps):
        latents = denoised(1, latents)
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):  # for thousands, in half the time
        frames = [pipeline.vae.decode(part / pipeline.vae.config.scaling_factor).sample for part in latents.unbind(1)]
    return torch.stack([frames[i] for i in FRAMES_TO_LGM], 1).float().div(2).add(0.5).clamp(0, 1)
