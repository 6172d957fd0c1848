"""The small VAE of the bundled multi-view model: two of its latent channels are plain colour.

A VAE this small, trained for minutes, drops weak hues: its group normalisation takes away a picture's mean, and a grey
wall costs little more than a blue one. Of the colours' contrast it kept 0.67, and the best linear map of its latents
explained 7% of the pictures' chroma, so the multi-view model, too, had to infer hues from what barely tells them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .autoencoder import Autoencoder

CHANNELS = 2
# Makes these channels about as large as the others: most pictures use little of the chroma that there is.
GAIN = 3.0
LOG_VARIANCE = -6.0


def chroma(pictures: Tensor) -> Tensor:
    """What is colour in RGB [N, 3, H, W], [N, 2, H, W]: orthonormal coordinates of what is left without its mean."""
    red, green, blue = pictures.unbind(1)
    return torch.stack([(red - green) / 2**0.5, (2 * blue - red - green) / 6**0.5], 1)


def colors(chroma: Tensor) -> Tensor:
    """The RGB [N, 3, H, W] of mean zero that has this chroma."""
    first, second = chroma.unbind(1)
    first, second = first / 2**0.5, second / 6**0.5
    return torch.stack([first - second, -first - second, 2 * second], 1)


class ChromaVAE(Autoencoder):
    """The autoencoder with the picture's chroma, averaged over a latent's pixels, as its last two channels.

    The decoder's own chroma is put right by what it is off at that size, so hues come back whatever it has learnt; it
    sees the two channels as well, and learns where within those pixels they belong.
    """

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """See Autoencoder."""
        mean, log_variance = super().encode(pictures)
        colored = F.avg_pool2d(chroma(pictures), self.factor) * GAIN
        known = torch.full_like(colored, LOG_VARIANCE)
        return torch.cat([mean[:, :-CHANNELS], colored], 1), torch.cat([log_variance[:, :-CHANNELS], known], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """See Autoencoder."""
        pictures = super().decode(latents)
        for _ in range(2):  # once leaves a part, for what is spread smoothly is fainter in the mean
            off = latents[:, -CHANNELS:] / GAIN - F.avg_pool2d(chroma(pictures), self.factor)
            pictures = pictures + F.interpolate(colors(off), size=pictures.shape[-2:], mode="bilinear")
        return pictures


def vae_class(name: str | None) -> type[Autoencoder]:
    """The class that a configuration's `_class_name` means: ChromaVAE, or the usual one."""
    return ChromaVAE if name == ChromaVAE.__name__ else Autoencoder
