"""What the multi-view model trains on: latents of objects' orbits, encoded once by the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...core.cameras import multiview_cameras
from ...worker.multiview.autoencoder import Autoencoder
from ...worker.quantization import load_file
from ...worker.tensors import constant
from .captions import color_prefixes
from .view_files import read_ahead

IMAGE_SIZE = 128  # pixels a side that the image encoder sees
AT_ONCE = 96  # orbits that are read at once
ENCODED = 240  # pictures that are encoded at once


@dataclass
class EncodedOrbits:
    """Latents of four views and of the input image, of objects from several sides, mirrored or not, ready to train.

    Attributes:
        latents: [N, 4, C, h, w] bf16, scaled, in the multi-view model's frame order; the image's side as large as the
            other views show it, which may be smaller than the image.
        image_latents: [N, C, h, w] bf16, scaled, of the recentred input image.
        pixels: [N, 3, P, P] uint8, the recentred input image for the image encoder.
        captions: [N] int64, the index of each sample's caption; with the number of all captions added, that caption
            without words for colours.
        colors: [N] int64, the index in captions.PREFIXES of the object's colour.
        elevations: [N], degrees.
        fronts: [N], whether the input view is the object's own front.
    """

    latents: Tensor
    image_latents: Tensor
    pixels: Tensor
    captions: Tensor
    colors: Tensor
    elevations: Tensor
    fronts: Tensor

    @classmethod
    def encode(
        cls,
        pictures: np.ndarray,
        starts: np.ndarray,
        vae: Autoencoder,
        device: torch.device,
        first_caption: int = 0,
        both: bool = True,
    ) -> EncodedOrbits:
        """Every orbit of each object, as it is and mirrored. Object i has caption `first_caption` + i.

        Args:
            pictures: [O, K, 5, S, S, 4] uint8, premultiplied: what orbits.render_orbits renders.
            starts: [O, K, 2], orbits.orbit_starts of each object.
            vae: Encodes them.
            device: Where they go.
            first_caption: The first object's.
            both: False: by turns as it is or mirrored.
        """
        parts, orbits, first = [], pictures.shape[1], 0
        for read in read_ahead(pictures, len(pictures), max(1, AT_ONCE // orbits)):
            whole = torch.from_numpy(read).to(device).flatten(0, 1).float().div_(255).movedim(-1, 2)  # [B, 5, 4, S, S]
            angles = torch.from_numpy(starts[first : first + len(read)]).to(device).flatten(0, 1)
            objects = torch.arange(first, first + len(read), device=device)
            turn = ((objects[:, None] + torch.arange(orbits, device=device)) % 2).flatten()
            objects = objects.repeat_interleave(orbits)
            first += len(read)
            shown = whole[:, :, 3].amax((2, 3)).amin(1) > 0.5
            for flip in (False, True):
                chosen = shown if both else shown & (turn == int(flip))
                # The mirrored object is seen from the other side round.
                seen = whole[chosen][:, [0, 3, 2, 1, 4]].flip(-1) if flip else whole[chosen]
                if not len(seen):
                    continue
                elevation, azimuth = angles[chosen].unbind(1)
                white = seen[:, :, :3] + 1 - seen[:, :, 3:]
                # Frame 1 of the multi-view model is the input's side: LGM's order is frames 1, 2, 3, 0.
                latents = encode(vae, white[:, [3, 0, 1, 2, 4]].flatten(0, 1)).unflatten(0, (len(seen), 5))
                image = white[:, 4]
                small = F.interpolate(image, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
                parts.append(
                    cls(
                        latents=latents[:, :4],
                        image_latents=latents[:, 4],
                        pixels=(small * 255).round().to(torch.uint8),
                        captions=objects[chosen] + first_caption,
                        colors=color_prefixes(seen[:, 0, :3, ::2, ::2], seen[:, 0, 3:, ::2, ::2]),
                        elevations=elevation,
                        fronts=torch.hypot(elevation, (azimuth + 180) % 360 - 180) < 2,
                    )
                )
        return cls.join(parts)

    @classmethod
    def join(cls, parts: list[EncodedOrbits]) -> EncodedOrbits:
        """All samples of several sets that share their captions."""
        return cls(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        part = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in vars(self).items()}, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> EncodedOrbits:
        """What `save` wrote."""
        return cls(**load_file(path, device=str(device)))

    def __len__(self) -> int:
        return len(self.latents)


@torch.no_grad()
def encode(vae: Autoencoder, pictures: Tensor) -> Tensor:
    """Scaled latents [N, C, h, w] bf16 of pictures [N, 3, H, W] in 0 to 1: the posterior's mean."""
    parts = []
    for part in pictures.split(ENCODED):
        # On a GPU always as many: for each new number cuDNN would try all its algorithms again.
        missing = (ENCODED - len(part)) * pictures.is_cuda
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
            mean = vae.encode(F.pad(part, (0,) * 7 + (missing,)) * 2 - 1)[0]
        parts.append(mean[: len(part)])
    return (torch.cat(parts).float() * vae.scaling_factor).bfloat16()


def clip_pixels(pixels: Tensor) -> Tensor:
    """The image encoder's input of uint8 pixels: CLIP's mean and standard deviation."""
    mean = constant(tuple(OPENAI_CLIP_MEAN), pixels.device).view(3, 1, 1)
    std = constant(tuple(OPENAI_CLIP_STD), pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def cameras(elevations: Tensor) -> Tensor:
    """The camera conditions [B, 5, 16] of elevations [B] in degrees, to a hundredth."""
    different, which = (elevations.double() * 100).round().unique(return_inverse=True)
    table = np.stack([multiview_cameras(e / 100, image_frame=True) for e in different.tolist()])
    return torch.from_numpy(table).to(elevations.device)[which]
