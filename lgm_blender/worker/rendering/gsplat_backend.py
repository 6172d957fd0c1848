"""Gaussian splatting by gsplat (Apache-2.0), on CUDA.

gsplat 1.5.3 comes as source and compiles its CUDA part, 75 s, when it is first used. `prepare` finds out whether that
has been done, and uses what is there without the compiler.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..devices import device_of

LIBRARY = "gsplat_cuda"  # gsplat's name for what it compiles
MODULE = "gsplat.csrc"  # and for what was compiled beforehand, which it tries first


class UnavailableError(Exception):
    """Why gsplat can't be used, as a clause without a full stop."""


def rasterize(
    gaussians: Tensor,  # [B, N, 14]
    view_matrices: Tensor,  # [B, V, 4, 4]
    intrinsics: Tensor,  # [B, V, 3, 3]
    height: int,
    width: int,
    near: float,
    far: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Composites Gaussians over nothing, in float32: each result is the sum of weight times value.

    Returns:
        Colour [B, V, H, W, 3], camera z [B, V, H, W, 1] and alpha [B, V, H, W, 1].
    """
    from gsplat import rasterization

    positions, opacities, scales, rotations, colors = gaussians.float().split((3, 1, 3, 4, 3), dim=-1)
    pictures, alpha, _ = rasterization(
        positions,
        rotations,
        scales,
        opacities[..., 0],
        colors,
        view_matrices.float(),
        intrinsics.float(),
        width,
        height,
        near_plane=near,
        far_plane=far,
        packed=False,
        render_mode="RGB+D",
    )
    return *pictures.split((3, 1), dim=-1), alpha


def prepare(device: torch.device, compile: bool) -> str:
    """Makes gsplat ready to render on a device, and renders to be sure.

    Args:
        compile: Whether its CUDA part may be compiled where that has not been done: 75 s, nvcc and a C++ compiler.

    Returns:
        How it works, as a clause.

    Raises:
        UnavailableError: If it does not work.
    """
    if not device_of(device).gsplat or not torch.cuda.is_available():
        raise UnavailableError(f"gsplat needs an NVIDIA GPU, and this is {device.type}")
    try:
        version = importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError("gsplat is not installed") from None
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < (1, 5):
        raise UnavailableError(f"gsplat {version} is older than 1.5")
    try:
        # gsplat prints its progress on stdout, which is for messages.
        with contextlib.redirect_stdout(sys.stderr):
            how = _load(compile)
            _try(device)
    except UnavailableError:
        raise
    except Exception as error:  # a compiler, a linker, CUDA or gsplat itself: whatever it was, it does not work
        raise UnavailableError(f"gsplat {version} fails here ({type(error).__name__}: {_first_line(error)})") from error
    return f"gsplat {version}, {how}"


def _load(compile: bool) -> str:
    package = importlib.util.find_spec("gsplat")
    folders = [Path(folder) for folder in (package and package.submodule_search_locations) or []]
    if any(file.suffix in (".so", ".pyd") for folder in folders for file in folder.glob("csrc*")):
        return "compiled beforehand"
    if library := _compiled_library():
        try:
            if MODULE not in sys.modules:
                # gsplat itself would ask ninja and nvcc whether it is up to date, and compile if they think otherwise.
                sys.modules[MODULE] = _import(library)
            return f"compiled in {library.parent}"
        except ImportError:
            if not compile:
                raise
    elif not compile:
        raise UnavailableError("gsplat's CUDA part has not been compiled here")
    if importlib.import_module("gsplat.cuda._backend")._C is None:
        raise UnavailableError("gsplat's CUDA part needs the CUDA toolkit (nvcc) to be compiled")
    return "compiled now"


def _import(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(LIBRARY, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiled_library() -> Path | None:
    """What gsplat compiled at an earlier use, where torch.utils.cpp_extension puts it."""
    if root := os.environ.get("TORCH_EXTENSIONS_DIR"):
        folder = Path(root)
    else:
        from torch.utils.cpp_extension import get_default_build_root

        python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
        folder = Path(get_default_build_root(), f"{python}_cu{(torch.version.cuda or '').replace('.', '')}")
    files = [folder / LIBRARY / f"{LIBRARY}{suffix}" for suffix in (".so", ".pyd")]
    return next((file for file in files if file.is_file()), None)


def _try(device: torch.device) -> None:
    """Renders one Gaussian in the middle of a picture, and looks."""
    gaussian = [0, 0, 1, 0.5, 0.1, 0.1, 0.1, 1, 0, 0, 0, 1, 1, 1]
    gaussians = torch.tensor(gaussian, dtype=torch.float32, device=device)[None, None]
    camera = torch.eye(4, device=device)[None, None]
    pinhole = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]], device=device)[None, None]
    _, depth, alpha = rasterize(gaussians, camera, pinhole, 16, 16, 0.1, 10.0)
    alpha, depth = (picture[0, 0, :, :, 0].cpu() for picture in (alpha, depth))
    if not (0.4 < alpha[8, 8] < 0.5 and alpha[0, 0] == 0 and torch.allclose(depth, alpha)):
        raise UnavailableError("gsplat renders something else than it should")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
