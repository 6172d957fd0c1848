"""LGM: four views to Gaussians. The model, its rays, and loading it from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...core.cameras import orbit_cameras
from ...core.gaussians import Gaussians
from ..configs import described, read_config
from ..devices import device_of
from ..quantization import fill, load_file
from .model import LGM, LGM_CONFIGS, LGMConfig

__all__ = ["LGM", "LGM_CONFIGS", "LGMConfig", "gaussians_from_views", "lgm_from_file", "load_lgm", "load_lgm_config"]


def load_lgm(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> LGM:
    """LGM from a folder with config.json and model.safetensors.

    Args:
        folder: Of a preset, or of training's output.
        device: Where it will run.
        dtype: Of the U-Net; None takes fp16 on CUDA, fp32 elsewhere. The last convolution is always fp32.

    Raises:
        LGMError: If a file is missing, damaged, or of another model.
    """
    return lgm_from_file(load_lgm_config(folder), Path(folder) / "model.safetensors", device, dtype)


def load_lgm_config(folder: str | Path) -> LGMConfig:
    """The configuration in a folder's config.json.

    Raises:
        LGMError: If it is missing, damaged, or of another model.
    """
    path = Path(folder) / "config.json"
    values = read_config(path)
    with described(path):
        return LGMConfig.from_dict(values)


def lgm_from_file(
    config: LGMConfig, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LGM:
    """LGM of a configuration with the weights of one safetensors file, a published one for example.

    Raises:
        LGMError: If the file is missing, damaged, or of another model.
    """
    device = torch.device(device)
    with described(Path(path)), torch.device("meta"):
        model = LGM(config)
    dtype = dtype or device_of(device).dtype
    state = {
        name: tensor.to(torch.float32 if name.startswith("conv.") else dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
        if not name.startswith("lpips_loss.")  # the published checkpoints carry them along with some versions
    }
    model = fill(model, state, path, device, None)
    return model.to(memory_format=torch.channels_last) if device_of(device).channels_last else model


@torch.inference_mode()
def gaussians_from_views(
    model: LGM,
    views: np.ndarray,
    elevation: float = 0.0,
    poses: np.ndarray | None = None,
    averaged: Sequence[bool] | None = None,
) -> Gaussians:
    """Gaussians of four views.

    Args:
        model: From `load_lgm`.
        views: [4, H, W, 3] float32, 0 to 1, on white, azimuth 0, 90, 180, 270; resized if not of the model's size.
        elevation: Of the four cameras above the object, in degrees.
        poses: [4, 4, 4] float32, camera-to-world, of views from other cameras.
        averaged: Which of the four are means of several samples; none by default.

    Returns:
        All 4 · splat_size² Gaussians, in LGM's frame; those that cannot be seen are not yet pruned.
    """
    weight = next(model.parameters())
    images = torch.from_numpy(np.ascontiguousarray(views, np.float32)).permute(0, 3, 1, 2).to(weight.device)
    size = model.config.input_size
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    cameras = torch.from_numpy(orbit_cameras(elevation) if poses is None else poses).to(weight.device)
    known = None if averaged is None else torch.tensor([averaged], dtype=torch.float32, device=weight.device)
    return Gaussians.from_array(model(images[None], cameras[None], known)[0].float().cpu().numpy())
