"""Views by the multi-view model as input for LGM's training, which then learns to make the best of its errors.

LGM's two augmentations imitate such errors (augment.py); these are the errors themselves, of objects that the
multi-view model has not seen: variants (variants.py) that it was not trained on, as large as in use (orbits.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.errors import LGMError
from ...core.files import replacing
from ...worker.multiview.pipeline import MultiViewPipeline
from ...worker.reconstruct import Settings, finish_frames, sample_frames
from .views import TrainingViews


@dataclass
class Generated:
    """What the multi-view model makes of placed objects, where the ground-truth views are.

    Attributes:
        views: The ground-truth views.
        pixels: [O, 4, S, S, 3] uint8, on white: of each object its first orbit, the image's side first.
        averaged: [4], which of them LGM is told to be means of several samples.
    """

    views: TrainingViews
    pixels: Tensor
    averaged: Tensor

    @classmethod
    def load(cls, files: Sequence[Path], views: TrainingViews) -> Generated:
        """What `generate` wrote of these views, in one file or several, one set of objects after the other."""
        parts = []
        for path in files:
            with np.load(path) as data:
                parts.append(torch.from_numpy(data["pixels"]))
                averaged = torch.from_numpy(data["averaged"])
        pixels = torch.cat(parts)
        if len(pixels) != len(views):
            raise LGMError(
                f"Views of {len(pixels)} objects were generated, of {len(views)} there is ground truth. Generate anew."
            )
        device = views.pixels.device
        return cls(views, pixels.to(device), averaged.to(device))

    @property
    def inputs(self) -> Tensor:
        """[O, 4], the rows in `views` of what was generated."""
        return self.views.orbits[:, 0]

    def pictures(self, objects: Tensor) -> Tensor:
        """Generated views [B, 4, 3, S, S] in 0 to 1 of objects [B]."""
        return self.pixels[objects].movedim(-1, -3).float() / 255

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random objects [count], the rows [count, 4] of an orbit of each, its generated views [count, 4, 3, S, S]."""
        device = self.pixels.device
        objects = torch.randint(len(self.pixels), (count,), generator=generator, device=device)
        return objects, self.inputs[objects], self.pictures(objects)


def generate(
    photos: np.ndarray,
    elevations: np.ndarray,
    multiview: MultiViewPipeline,
    settings: Settings,
    path: Path,
    *,
    batch: int = 128,
    seed: int = 0,
    threads: int = 8,
) -> int:
    """Generate views of every object as they come of a user's image, and write them with `numpy.savez`.

    Args:
        photos: [O, S, S, 4] uint8, premultiplied, as render_placed renders them.
        elevations: [O], degrees, of the photos.
        multiview: The multi-view model, for images.
        settings: How it samples.
        path: A .npz file.
        batch: Objects at once.
        seed: Of the first object; each has one of its own.
        threads: Of what finish_frames does.

    Returns:
        How many objects there are.
    """
    made = []
    with ThreadPoolExecutor(threads) as pool:  # the device samples the next ones while these are finished
        for first in range(0, len(photos), batch):
            part = np.asarray(photos[first : first + batch], np.float32) / 255
            images = part[..., :3] + 1 - part[..., 3:]
            frames = sample_frames(
                multiview,
                settings,
                images=list(images),
                seeds=[seed + first + i for i in range(len(images))],
                elevations=[float(angle) for angle in elevations[first : first + batch]],
            )
            made += [pool.submit(_finished, *pair, settings) for pair in zip(frames, images, strict=True)]
        pixels = np.stack([each.result() for each in made])
    # In training single samples are called averaged too, so that of ground-truth views LGM makes all that they show.
    averaged = replace(settings, samples=max(settings.samples, 2)).averaged_views
    with replacing(path) as file:
        np.savez(file, pixels=pixels, averaged=np.array(averaged))
    return len(photos)


def _finished(frames: np.ndarray, image: np.ndarray, settings: Settings) -> np.ndarray:
    return np.uint8(finish_frames(frames, image, settings) * 255 + 0.5)
