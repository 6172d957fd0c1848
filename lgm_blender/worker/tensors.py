"""Tensors that are made once."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=64)
def constant(values: tuple, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A small tensor of numbers (a tuple, nested or not) on a device, copied there once: each copy makes the host wait
    until the device has done all it was asked to. Not to be written to."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
