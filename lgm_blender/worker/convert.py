"""Splats of any file format to other formats: upright, of a size, written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from ..core.affine import UPRIGHT, transformed, upright
from ..core.errors import LGMError
from ..core.formats.checks import robust_box
from ..core.formats.splat_files import FORMATS, WRITTEN, encode_splats, losses, read_splat_file, stem_of
from ..core.gaussians import Gaussians
from ..core.messages import CONVERT_STAGES, ConvertRequest, ConvertResult
from ..core.paths import expanded
from ..core.system.names import file_stem
from . import outputs, webp
from .jobs import IsCancelled, Job, OnProgress

# NAME.glb is a mesh's name.
SUFFIXES = {name: "_splats.glb" if name == "glb" else FORMATS[name].suffix for name in WRITTEN}


def convert(
    request: ConvertRequest, progress: OnProgress = lambda progress: None, cancelled: IsCancelled = lambda: False
) -> ConvertResult:
    """One file of splats in the formats asked for, all written or none.

    Args:
        request: See ConvertRequest.
        progress, cancelled: See Pipeline.generate.

    Raises:
        Cancelled: If `cancelled` says so; nothing is written then.
        LGMError: With a sentence for the user; nothing is written then either.
    """
    check_formats(request.formats)
    if request.up not in UPRIGHT:
        raise LGMError(f"There is no axis '{request.up}'. Choose one of {', '.join(UPRIGHT)}.")
    if not 0 <= request.size < float("inf"):
        raise LGMError(f"The size must be 0, which keeps the file's own, or more, not {request.size}.")
    source = expanded(request.file).absolute()
    folder = outputs.check_output(request.output)
    job = Job(request.job, CONVERT_STAGES, progress, cancelled)
    with job.stage("read"):
        gaussians = upright(read_splat_file(source, job.warnings.append, webp=webp), request.up)
        if request.size:
            low, high = robust_box(gaussians)
            factor = request.size / max(float((high - low).max()), 1e-30)
            gaussians = transformed(gaussians, np.diag([factor, factor, factor, 1.0]))
    with job.stage("save"):
        files = encode_formats(gaussians, request.formats, job, pad=request.pad)
        paths = outputs.save_together(
            folder,
            file_stem(request.name or stem_of(source), None),
            SUFFIXES.values(),
            lambda name: files,
            overwrite=request.overwrite,
            source=source,
        )
    made = [str(path) for path in paths.values()]
    asked = asdict(request)
    del asked["job"]
    return ConvertResult(request.job, made, len(gaussians), asked, job.timings, warnings=job.warnings)


def check_formats(names: Sequence[str]) -> None:
    """That splats can be written in these formats.

    Raises:
        LGMError: If one is none of them, or there is none.
    """
    unknown = [name for name in names if name not in WRITTEN]
    if unknown or not names:
        what = f"no format '{unknown[0]}'" if unknown else "no format chosen"
        raise LGMError(f"There is {what} to write splats in. Choose some of {', '.join(WRITTEN)}.")


def encode_formats(gaussians: Gaussians, names: Sequence[str], job: Job, *, pad: bool = False) -> dict[str, bytes]:
    """Gaussians as files: suffix to content. What a format can't hold is told in the job's warnings."""
    files = {}
    for name in dict.fromkeys(names):
        job.check()
        job.warnings += losses(gaussians, FORMATS[name])
        files[SUFFIXES[name]] = encode_splats(name, gaussians, pad=pad, webp=webp)
    return files
