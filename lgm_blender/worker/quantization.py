"""Safetensors files of 16- or 8-bit weights, and models from them.

An 8-bit tensor is stored as int8 under its own name, beside NAME.scale with one number per output channel (its first
axis): weight = int8 * scale. Every other tensor is stored as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..core.errors import LGMError
from ..core.files import replacing

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

    Raises:
        LGMError: (kind 'output') if it can't be written.
    """
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            if bits == 8 and tensor.ndim >= 2 and tensor.numel() >= SMALLEST:
                tensor, tensors[name + SCALE] = quantize(tensor)
            else:
                tensor = tensor.half()
        tensors[name] = tensor.contiguous()
    with replacing(path) as file:
        file.write(safetensors.torch.save(tensors))


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


def fill(
    model: nn.Module, state: dict[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    """`model`, built on the meta device, with the tensors of `state`, ready for inference.

    Args:
        model: Without memory for its weights.
        state: Names to tensors; changed.
        path: Where they come from.
        device: Where they go.
        dtype: What those of floating point become, or None to leave them as they are.

    Raises:
        LGMError: If the names or shapes differ; it tells the first of them.
    """
    expected = model.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is unexpected" for name in state if name not in expected]
    faults += [
        f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults += [
        f"{name} holds whole numbers"
        for name, tensor in expected.items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise LGMError(
            f"{path} holds another model than its configuration describes: {'; '.join(faults[:3])}{more}. Fetch the "
            "weights again, or choose the preset they belong to.",
            "weights",
        )
    for name, tensor in state.items():
        state[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        if "position_ids" in module._buffers:  # counts up, is in no file, and was built without memory
            module.position_ids = torch.arange(module.position_ids.shape[-1], device=device)[None]
    return model.requires_grad_(False).eval()
