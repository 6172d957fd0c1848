"""Safetensors files of 16- or 8-bit weights.

An 8-bit tensor is stored as int8 under its own name, beside NAME.scale with one number per output channel (its first
axis): weight = int8 * scale. Every other tensor is stored as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..core.errors import LGMError

SCALE = ".scale"
SMALLEST = 4096  # elements; smaller tensors stay in 16 bits: they are few, and often the sensitive ones


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 of `weight`'s shape, float32 scale [out, 1, ...]), symmetric about zero, per output channel."""
    weight = weight.float()
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / 127
    return (weight / scale).round().to(torch.int8), scale


def save_file(state: dict[str, Tensor], path: str | Path, bits: Literal[16, 8] = 16) -> None:
    """Writes a state dict in 16 bits, or 8 for its large tensors. The file appears when it is whole.

    Args:
        state: Names to tensors; integer tensors are stored unchanged.
        path: A .safetensors file; replaced if it exists.
        bits: 16 for fp16, 8 for int8 where a tensor has two or more axes and at least 4096 elements.
    """
    path = Path(path)
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            if bits == 8 and tensor.ndim >= 2 and tensor.numel() >= SMALLEST:
                tensor, tensors[name + SCALE] = quantize(tensor)
            else:
                tensor = tensor.half()
        tensors[name] = tensor.contiguous()
    partial = path.with_name(path.name + ".partial")
    try:
        safetensors.torch.save_file(tensors, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_file(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Names to tensors of a safetensors file: 8-bit ones as float32, the others as they are stored.

    Raises:
        LGMError: If the file is missing, cut short or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise LGMError(f"The weights file {path} is missing. Fetch or install the preset's weights again.", "weights")
    try:
        state = safetensors.torch.load_file(path, device=str(device))
    except (safetensors.SafetensorError, OSError) as error:
        raise LGMError(
            f"The weights file {path} is cut short or damaged ({error}). Delete it and fetch it again.", "weights"
        ) from error
    for name in [name for name, tensor in state.items() if tensor.dtype == torch.int8 and name + SCALE in state]:
        state[name] = state[name].float() * state.pop(name + SCALE)
    return state
