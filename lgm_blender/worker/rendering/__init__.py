"""Gaussians to pictures: one function, two backends that render the same.

gsplat where there is CUDA and its compiled part, plain torch anywhere else.
"""

from __future__ import annotations

import functools
import os
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...core.errors import LGMError
from ..tensors import constant
from . import gsplat_backend, torch_backend

Backend = Literal["torch", "gsplat"]

# LGM_BLENDER_RENDERER=torch does without gsplat; LGM_BLENDER_RENDERER=gsplat lets it compile at first use.
VARIABLE = "LGM_BLENDER_RENDERER"

LARGEST = 1e6  # beyond it a covariance overflows float32


class Render(NamedTuple):
    """Pictures; the leading B is there if the Gaussians had it.

    Attributes:
        rgb: [(B,) V, H, W, 3], over the background.
        depth: [(B,) V, H, W, 1], the expected z in front of the camera, sum w z / sum w; 0 where nothing is.
        alpha: [(B,) V, H, W, 1], 0 to 1.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor


def render(
    gaussians: Tensor,  # [N, 14] or [B, N, 14]
    view_matrices: Tensor,  # [(B,) V, 4, 4]
    intrinsics: Tensor,  # [3, 3] or [(B,) V, 3, 3]
    size: int | tuple[int, int],
    *,
    background: float | Tensor = 1.0,  # float, [3] or [(B,) V, 3]
    near: float = 0.5,
    far: float = 2.5,
    backend: Literal["auto"] | Backend = "auto",
) -> Render:
    """Renders Gaussians from V cameras, each as gsplat 1.5.3 does ('classic', eps2d 0.3); differentiable.

    3D Gaussian splatting (Kerbl et al., 2023, equation 3): EWA projection, sorting by z, compositing front to back.

    Args:
        gaussians: xyz, opacity 0..1, scale x 3, quaternion wxyz of any length, rgb. Those with a value that is not a
            finite number, or beyond 1e6, are not rendered and get no gradient. All is computed on their device, in at
            least float32.
        view_matrices: World-to-camera, OpenCV axes (y down, looking along +z), a tensor or an array. With batched
            Gaussians, [V, 4, 4] serves all of them.
        intrinsics: Pinhole matrices in pixels, pixel centres at + 0.5.
        size: The picture's width and height, or (height, width).
        background: What is behind everything.
        near, far: Gaussians whose centre's z is outside are not rendered.
        backend: 'auto' takes what `backend_for` says; 'gsplat' compiles gsplat's CUDA part if that has not been done.

    Raises:
        LGMError: If 'gsplat' is asked for and does not work here.
        ValueError: If the shapes do not fit together.
    """
    batched = gaussians.dim() == 3
    if gaussians.dim() not in (2, 3) or gaussians.shape[-1] != 14:
        raise ValueError(f"Gaussians are [N, 14] or [B, N, 14], not {list(gaussians.shape)}")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height} x {width} pixels can't be rendered")
    like = {"device": gaussians.device, "dtype": torch.promote_types(gaussians.dtype, torch.float32)}
    gaussians = _renderable(gaussians.to(**like) if batched else gaussians.to(**like)[None])
    view_matrices = torch.as_tensor(view_matrices, **like)
    images = (len(gaussians), view_matrices.shape[-3])
    view_matrices = view_matrices.expand(*images, 4, 4)
    intrinsics = torch.as_tensor(intrinsics, **like).expand(*images, 3, 3)
    background = torch.as_tensor(background, **like)
    if background.dim() > 1:
        background = background[..., None, None, :]

    if backend == "auto":
        backend, _ = backend_for(gaussians.device)
    elif backend == "gsplat":
        works, reason = _gsplat(gaussians.device, compile=True)
        if not works:
            raise LGMError(f"gsplat can't be used: {reason}. Use the 'torch' renderer instead.", "worker")
    rasterize = gsplat_backend.rasterize if backend == "gsplat" else torch_backend.rasterize
    with torch.autocast(gaussians.device.type, enabled=False):
        rgb, depth, alpha = rasterize(gaussians, view_matrices, intrinsics, height, width, near, far)
    result = Render(rgb + (1 - alpha) * background, depth / alpha.clamp(min=1e-10), alpha)
    return result if batched else Render(*(picture[0] for picture in result))


def backend_for(device: torch.device | str, compile: bool = False) -> tuple[Backend, str]:
    """The backend that 'auto' takes on a device, and why. Decided once, without ever compiling unasked.

    The environment variable LGM_BLENDER_RENDERER overrules: 'torch' does without gsplat, 'gsplat' lets it compile.

    Args:
        device: Where the Gaussians are.
        compile: Whether gsplat may compile its CUDA part, which pays where much is rendered.
    """
    wish = os.environ.get(VARIABLE, "")
    return _backend_for(torch.device(device), wish, compile or wish == "gsplat")


@functools.cache
def _backend_for(device: torch.device, wish: str, compile: bool) -> tuple[Backend, str]:
    if wish == "torch":
        return "torch", f"{VARIABLE} asks for it"
    works, reason = _gsplat(device, compile=compile)
    return ("gsplat" if works else "torch"), reason


@functools.cache
def _gsplat(device: torch.device, compile: bool) -> tuple[bool, str]:
    try:
        return True, gsplat_backend.prepare(device, compile)
    except gsplat_backend.UnavailableError as error:
        return False, str(error)


def _renderable(gaussians: Tensor) -> Tensor:
    """[B, N, 14] with what can't be rendered replaced by something invisible, and at least one Gaussian."""
    invisible = constant((0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0), gaussians.device, gaussians.dtype)
    if not gaussians.shape[1]:
        return invisible.expand(len(gaussians), 1, 14)
    usable = (gaussians.abs() <= LARGEST).all(-1) & (gaussians[..., 7:11] != 0).any(-1)
    return torch.where(usable[..., None], gaussians, invisible)
