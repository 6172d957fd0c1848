"""A file of splats becomes a file of a mesh."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from ..core.formats.splat_files import read_splat_file, stem_of
from ..core.messages import MESH_STAGES
from ..core.paths import expanded
from ..core.system.names import file_stem
from . import outputs, webp
from .devices import device_name, resolve_device
from .jobs import IsCancelled, Job, OnProgress
from .meshing import MeshSettings, mesh_from_gaussians
from .meshing import files as mesh_files
from .meshing.files import FORMATS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeshFiles:
    """What `mesh_file` made.

    Attributes:
        files: Their paths.
        gaussians, vertices, faces: How many there are; a quad is one face.
        timings: Seconds of each stage.
        device: 'cpu', or the GPU's name.
        warnings: Sentences for the user.
    """

    files: list[str]
    gaussians: int
    vertices: int
    faces: int
    timings: dict[str, float]
    device: str
    warnings: list[str]


def mesh_file(
    file: str | os.PathLike,
    output: str | os.PathLike,
    settings: MeshSettings | None = None,
    *,
    name: str = "",
    overwrite: bool = False,
    formats: tuple[str, ...] = FORMATS,
    progress: OnProgress = lambda progress: None,
    cancelled: IsCancelled = lambda: False,
    job: str = "mesh",
) -> MeshFiles:
    """Reads Gaussians, makes a textured mesh of them and writes it.

    Args:
        file: Splats of any format that splat_files.FORMATS names.
        output: Folder for the results, made if missing.
        settings: By default MeshSettings().
        name: Stem of the files' names; '' takes the file's.
        overwrite: Whether files of that name may be replaced; otherwise a number is appended.
        formats: Some of 'glb', 'obj' and 'ply'.
        progress, cancelled: See Pipeline.generate.
        job: What progress is told of.

    Raises:
        Cancelled: If `cancelled` says so; nothing is written then.
        LGMError: With a sentence for the user; nothing is written then either.
    """
    settings = settings or MeshSettings()
    settings.check()
    file = expanded(file).absolute()
    folder = outputs.check_output(str(output))
    device = resolve_device(settings.device)
    work = Job(job, (*MESH_STAGES, "save"), progress, cancelled)
    work.torch_listens = device == "cpu"
    gaussians = read_splat_file(file, work.warnings.append, webp=webp)
    mesh = mesh_from_gaussians(gaussians, settings, work)
    with work.stage("save"):
        stem = file_stem(name or stem_of(file), None)
        paths = outputs.save_together(
            folder,
            stem,
            mesh_files.SUFFIXES,
            lambda name: mesh_files.encode_files(mesh, name, formats),
            overwrite=overwrite,
            source=file,
            file_name=mesh_files.file_name,
        )
    log.info("%s became a mesh of %d faces: %s", file, mesh.polygons, work.timings)
    return MeshFiles(
        files=[str(path) for path in paths.values()],
        gaussians=len(gaussians),
        vertices=len(mesh.vertices),
        faces=mesh.polygons,
        timings=work.timings,
        device=device_name(device),
        warnings=work.warnings,
    )
