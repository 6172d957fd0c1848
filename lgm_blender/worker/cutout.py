"""The object of an image, cut out and recentred: for a job, or to be looked at before one."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from ..core.messages import MATTE_STAGES, GenerateRequest, MatteRequest, MatteResult
from ..core.system.names import file_stem
from . import outputs
from .jobs import IsCancelled, Job, OnProgress

WHITE, HARDLY = 0.94, 0.003  # a value that still counts as white; the part of the others that is next to nothing
SUFFIXES = ("_cutout.png", "_input.png", "_preview.png")
CHEQUER = 16, (0.42, 0.58)  # size in pixels of a field, and the two greys


def cut_out(request: GenerateRequest | MatteRequest, job: Job) -> tuple[np.ndarray, np.ndarray, str]:
    """What the models see of a request's image.

    Returns:
        The cut-out, uint8 [H, W, 4] in the image's own framing; the object recentred on white, float32 [256, 256, 3]
        in 0..1; and how it was cut out. Doubts are among the job's warnings.

    Raises:
        Cancelled: If the job should not go on.
        LGMError: (kinds 'bad_input' and 'matting') See matting.matte.
    """
    from .matting import matte, recenter  # scipy takes a while to import, and a text needs none of it

    cut, how = matte(
        request.image,
        request.matting,
        request.matting_threshold,
        request.mask,
        warn=job.warnings.append,
        cancelled=job.cancelled,
    )
    image = recenter(cut)
    if (image < WHITE).mean() < HARDLY:
        job.warnings.append(
            "The object is as white as the background that the models see it on, so they can't tell its "
            "outline. Darken the picture a little."
        )
    return cut, image, how


def matte(
    request: MatteRequest, progress: OnProgress = lambda progress: None, cancelled: IsCancelled = lambda: False
) -> MatteResult:
    """The cut-out of an image, and what the models would see of it, as two files.

    Args:
        request: See MatteRequest.
        progress, cancelled: See Pipeline.generate.

    Raises:
        Cancelled: If `cancelled` says so; nothing is written then.
        LGMError: With a sentence for the user; nothing is written then either.
    """
    job = Job(request.job, MATTE_STAGES, progress, cancelled)
    folder = outputs.check_output(request.output)
    with job.stage("matting"):
        cut, image, how = cut_out(request, job)
    with job.stage("save"):
        stem = file_stem(request.name, request.image)
        pictures = {"_cutout.png": cut, "_input.png": image, "_preview.png": _preview(cut, image)}
        data = {suffix: outputs.encode_png(picture, 1) for suffix, picture in pictures.items()}
        paths = outputs.save_together(
            folder, stem, SUFFIXES, lambda name: data, overwrite=request.overwrite, source=request.image
        )
    settings = asdict(request)
    del settings["job"]
    return MatteResult(
        job=request.job,
        cutout=str(paths["_cutout.png"]),
        input=str(paths["_input.png"]),
        preview=str(paths["_preview.png"]),
        matting=how,
        settings=settings,
        timings=job.timings,
        warnings=job.warnings,
    )


def _preview(cut: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The cut-out [H, W, 4] over a chequer beside the recentred image [S, S, 3]: float32 [S, 2 * S, 3] in 0..1."""
    from PIL import Image

    size = len(image)
    picture = Image.fromarray(cut)
    picture.thumbnail((size, size), Image.Resampling.BOX)
    field, greys = CHEQUER
    y, x = np.mgrid[:size, :size] // field
    below = np.where((x + y) % 2, *greys)[..., None]
    framed = Image.new("RGBA", (size, size))
    framed.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    rgba = np.asarray(framed, np.float32) / 255
    over = rgba[..., :3] * rgba[..., 3:] + below * (1 - rgba[..., 3:])
    return outputs.side_by_side(np.stack([over.astype(np.float32), image]))
