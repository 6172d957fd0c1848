"""A UV map: charts that don't overlap, with room between them."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from ...core.errors import LGMError
from ..jobs import OnStep, silent

PADDING = 4 / 2048  # room around each chart, of the texture's size, and at least 2 texels: for smaller versions of it
CHECK_EVERY = 0.05  # seconds


def unwrap(vertices: Tensor, faces: Tensor, size: int, on_step: OnStep = silent) -> Tensor:
    """UV coordinates [F, 3, 2] of the corners of faces, 0 to 1, v up.

    Args:
        size: Of the texture, width and height in texels, which sets the room between charts.
        on_step: Asked again and again; where it raises, the work stops.

    Raises:
        LGMError: If the charts don't fit into so small a texture.
    """
    import uvunwrap

    mesh = uvunwrap.Mesh(vertices.cpu().numpy().astype(np.float32), faces.cpu().numpy().astype(np.uint32))
    job = uvunwrap.start([mesh], page_size=size, padding=max(2, round(PADDING * size)), packing="fast")
    try:
        while not job.done:
            on_step(0, 0)
            time.sleep(CHECK_EVERY)
        atlas = job.result()
    except uvunwrap.UnwrapError as error:
        raise LGMError(
            f"The mesh could not be unwrapped into a texture of {size} x {size} ({error}). "
            "Choose a larger texture, or fewer faces."
        ) from error
    finally:
        job.cancel()
    if atlas.page_count != 1:
        raise LGMError(f"The mesh does not fit into a texture of {size} x {size}. Choose a larger one, or fewer faces.")
    corners = np.frombuffer(atlas.meshes[0].corner_uvs, np.float32).reshape(-1, 3, 2).copy()
    return torch.from_numpy(corners).to(vertices.device)
