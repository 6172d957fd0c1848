"""What MeshLab (Cignoni et al. 2008, GPL-3.0) does for meshes, by pymeshlab: even triangles and Poisson surfaces.

For what is asked for by name only. pymeshlab has no builds for Linux with a glibc before 2.35 and needs the system's
libGL, so nothing that every mesh needs is here. It works in a process of its own: so it can be stopped, a crash is not
the worker's, and its OpenMP and torch's, of which a process on macOS may not load both, never meet.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.errors import LGMError
from ...core.system.processes import NO_WINDOW
from ..jobs import OnStep, silent
from .topology import face_normals

CHECK_EVERY = 0.1  # seconds between asking whether the work goes on
AIM = 0.95  # of the wanted number of faces: remeshing meets it within some 5%, and edge collapses would spoil it

log = logging.getLogger(__name__)


def require() -> None:
    """That pymeshlab is there.

    Raises:
        LGMError: (kind 'worker') If it is not.
    """
    if importlib.util.find_spec("pymeshlab") is None:
        raise LGMError(
            "The method 'poisson' and remeshing need the package pymeshlab, which is not installed. Install it by "
            f'"{sys.executable}" -m pip install pymeshlab, or do without them. There is none for Linux with a glibc '
            "before 2.35 nor for Windows on ARM.",
            "worker",
        )


def remesh(vertices: Tensor, faces: Tensor, count: int, on_step: OnStep = silent) -> tuple[Tensor, Tensor]:
    """The same closed surface with at most about `count` faces of about the same size, nearly equilateral.

    Isotropic remeshing (Hoppe et al. 1993, Botsch and Kobbelt 2004); edges sharper than 45 degrees stay.
    """
    area = float(face_normals(vertices, faces).norm(dim=1).sum()) / 2
    length = (area / (AIM * count) * 4 / 3**0.5) ** 0.5
    arrays = {"vertices": _array(vertices), "faces": faces.cpu().numpy(), "length": np.array(length)}
    return _filtered("remesh", vertices.device, on_step, **arrays)


def screened_poisson(points: Tensor, normals: Tensor, depth: int, on_step: OnStep = silent) -> tuple[Tensor, Tensor]:
    """A closed surface through points [N, 3] with normals [N, 3] (Kazhdan and Hoppe 2013), of 2^depth cells a side."""
    arrays = {"points": _array(points), "normals": _array(normals), "depth": np.array(depth)}
    return _filtered("poisson", points.device, on_step, **arrays)


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()


def _filtered(name: str, device: torch.device, on_step: OnStep, **arrays: np.ndarray) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] float32 and faces [F, 3] int64, from one of meshlab_filters.py.

    Raises:
        LGMError: If it fails, or what it returns is not closed.
    """
    require()
    with tempfile.TemporaryDirectory(prefix="lgm_meshlab_") as folder:
        source, target, told = (Path(folder, file) for file in ("in.npz", "out.npz", "log.txt"))
        np.savez(source, **arrays)
        script = Path(__file__).with_name("meshlab_filters.py")
        with told.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", script, name, source, target],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"OMP_WAIT_POLICY": "passive"},  # threads that wait leave busy cores to others
                creationflags=NO_WINDOW,
            )
            try:
                while process.poll() is None:
                    on_step(0, 0)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(CHECK_EVERY)
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            words = told.read_text(errors="replace").strip()
            log.error("pymeshlab's %s ended with %d: %s", name, process.returncode, words)
            raise LGMError(
                f"pymeshlab can't do this here ({(words.splitlines() or ['it ended without a word'])[-1]}). "
                "Do without the method 'poisson' and without remeshing.",
                "worker",
            )
        with np.load(target) as found:
            vertices, faces = found["vertices"].astype(np.float32), found["faces"].astype(np.int64)
    return torch.from_numpy(vertices).to(device), torch.from_numpy(faces).to(device)
