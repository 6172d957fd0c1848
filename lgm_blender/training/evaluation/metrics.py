"""How alike pictures are: PSNR, SSIM, LPIPS, and the overlap of alphas. Pictures are [V, 3, H, W] in 0 to 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..loops.lpips import LPIPS
from .pictures import Pictures

CEILING = 100.0  # dB of equal pictures, whose PSNR would be infinite


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [V] in dB of two sets of pictures, at most 100."""
    return (-10 * ((a - b) ** 2).flatten(1).mean(1).log10()).clamp(max=CEILING)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [V], 1 for equal pictures (Wang et al., IEEE TIP 2004).

    The paper's settings: an 11 x 11 Gaussian window of sigma 1.5, K = 0.01 and 0.03, the window wholly inside of the
    picture, the mean over places and colours. scikit-image's structural_similarity gives the same with
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis.
    """
    position = torch.arange(-5, 6, dtype=torch.float32, device=a.device)
    weights = torch.exp(-0.5 * (position / 1.5) ** 2)
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:
        flat = x.float().flatten(0, 1)[:, None]
        flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, 11, 1)), weights.view(1, 1, 1, 11))
        return flat.unflatten(0, x.shape[:2])[:, :, 0]

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    return similarity.flatten(1).mean(1)


def alpha_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, over all views at once, of where alphas [V, H, W] are above 0.5; 1 if nowhere."""
    a, b = a > 0.5, b > 0.5
    union = (a | b).sum()
    return torch.where(union > 0, (a & b).sum() / union.clamp_min(1), torch.ones((), device=a.device))


def translucency(alpha: Tensor) -> Tensor:
    """The share of what is seen in alphas [V, H, W] that is half transparent: from 0.1 to 0.9. Edges always are."""
    seen = alpha > 0.1
    return (seen & (alpha < 0.9)).sum() / seen.sum().clamp_min(1)


@torch.inference_mode()
def scores(ground_truth: Pictures, contenders: dict[str, Pictures], lpips: LPIPS | None) -> dict[str, dict[str, float]]:
    """The scores of each contender: 'psnr' in dB, 'ssim', 'lpips' if given; 'iou' and 'translucency' of alphas.

    Each is the mean over the views; 'iou' is that of all views together, and 'translucency' how much more of them than
    of the ground truth is half transparent.
    """
    targets = None if lpips is None else lpips.features(ground_truth.rgb)
    result = {}
    for name, given in contenders.items():
        views = torch.arange(len(given.rgb), device=given.rgb.device) if given.views is None else given.views
        rgb = given.rgb[views]
        found = {"psnr": psnr(rgb, ground_truth.rgb).mean().item(), "ssim": ssim(rgb, ground_truth.rgb).mean().item()}
        if targets is not None:
            features = [depth[views] for depth in lpips.features(given.rgb)]
            found["lpips"] = lpips.distance(features, targets).mean().item()
        if given.alpha is not None and ground_truth.alpha is not None:
            found["iou"] = alpha_iou(given.alpha[views], ground_truth.alpha).item()
            more = translucency(given.alpha[views]) - translucency(ground_truth.alpha)
            found["translucency"] = more.item()
        result[name] = found
    return result
