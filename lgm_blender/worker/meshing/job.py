"""A PLY of Gaussians becomes the files of a mesh."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import LGMError
from ...core.formats.ply import read_ply
from ...core.messages import GenerateRequest, Progress
from ..devices import device_name, explain_out_of_memory, resolve_device
from ..pipeline import check_output, file_stem
from . import STAGE_LABELS, STAGES, MeshSettings, mesh_from_gaussians
from .files import FORMATS, file_names, save_mesh

log = logging.getLogger(__name__)


def mesh_file(
    file: str | os.PathLike,
    output: str | os.PathLike,
    settings: MeshSettings | None = None,
    *,
    name: str = "",
    overwrite: bool = False,
    formats: tuple[str, ...] = FORMATS,
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Reads Gaussians, makes a textured mesh of them and writes it.

    Args:
        file: A 3DGS PLY.
        output: Folder for the results, made if missing.
        settings: By default MeshSettings().
        name: Stem of the files' names; '' takes the PLY's.
        overwrite: Whether files of that name may be replaced; otherwise a number is appended.
        formats: Some of 'glb', 'obj' and 'ply'.
        progress, cancelled: See Pipeline.generate.

    Returns:
        'files' (paths), 'gaussians', 'vertices' and 'faces' (numbers; a quad is one face), 'timings' (seconds of each
        stage), 'device', 'warnings' (sentences for the user).

    Raises:
        Cancelled: If `cancelled` says so; nothing is written then.
        LGMError: With a sentence for the user; nothing is written then either.
    """
    settings = settings or MeshSettings()
    settings.check()
    file = Path(file).expanduser().absolute()
    folder = check_output(str(output))
    device = resolve_device(settings.device)
    warnings: list[str] = []
    gaussians = read_ply(file, warnings.append)

    def tell(stage: str, step: int, steps: int, label: str = "") -> None:
        index = STAGES.index(stage) if stage in STAGES else len(STAGES)
        text = label or STAGE_LABELS[stage]
        progress(Progress("mesh", stage, index, len(STAGES) + 1, step, steps, text))

    try:
        mesh = mesh_from_gaussians(gaussians, settings, tell, cancelled)
    except LGMError:
        raise
    except Exception as error:
        sentence = explain_out_of_memory(error)
        if sentence is None:
            raise
        raise LGMError(sentence, "out_of_memory") from error
    tell("save", 0, 0, "Saving")
    began = time.perf_counter()
    stem = file_stem(GenerateRequest("mesh", str(folder), image=str(file), name=name))
    paths = save_mesh(mesh, folder, stem if overwrite else _free_name(folder, stem), formats)
    timings = mesh.timings | {"save": round(time.perf_counter() - began, 3)}
    log.info("%s became a mesh of %d faces: %s", file, mesh.polygons, timings)
    return {
        "files": [str(path) for path in paths],
        "gaussians": len(gaussians),
        "vertices": len(mesh.vertices),
        "faces": mesh.polygons,
        "timings": timings,
        "device": device_name(device),
        "warnings": warnings + mesh.warnings,
    }


def _free_name(folder: Path, stem: str) -> str:
    for number in range(1_000_000):
        name = f"{stem}_{number:03}" if number else stem
        if not any(os.path.lexists(folder / file) for file in file_names(name)):
            return name
    raise LGMError(f"{folder} holds a million results named {stem}. Choose another folder.", "output")
