"""The files of a result: what was made of an image, a text or four views, and what is to be chosen from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.gaussians import Gaussians
from ..core.messages import (
    VIEW_NAMES,
    Candidate,
    GenerateRequest,
    GenerateResult,
    ReconstructRequest,
    SampleRequest,
    SampleResult,
)
from ..core.system.names import file_stem
from . import convert, outputs
from .devices import device_name
from .jobs import Job
from .meshing import TexturedMesh
from .meshing import files as mesh_files
from .presets import Preset

# What `generate` and `reconstruct` write, and what a batch in Blender adds.
SUFFIXES = (*convert.SUFFIXES.values(), ".glb", "_views.png", "_input.png", ".json", ".png", "_mesh.png", ".blend")

_ONLY_OF_MESHES = ("faces", "texture_size", "quads")


@dataclass(frozen=True)
class Made:
    """What came out of a request.

    Attributes:
        image: What the views were sampled from, [H, W, 3] in 0..1, or None.
        views: [4, S, S, 3] in 0..1.
        gaussians: Those that are visible.
        mesh: Theirs, or None.
    """

    image: np.ndarray | None
    views: np.ndarray
    gaussians: Gaussians
    mesh: TexturedMesh | None = None


def save_result(
    output: Path,
    request: GenerateRequest | ReconstructRequest,
    preset: Preset,
    facts: dict[str, Any],
    made: Made,
    job: Job,
) -> GenerateResult:
    """Writes all files of a result or none; the JSON file gets its name last, so where it is, the others are.

    Args:
        output: The folder, made if missing.
        request: As it was carried out, every default filled in.
        preset: Whose weights were used.
        facts: More for the result's settings.
        made: What came out.
        job: Its warnings and timings.
    """
    result = None
    quick = isinstance(request, ReconstructRequest) and request.quick
    splats = {}
    if request.output_kind != "mesh":
        splats = convert.encode_formats(made.gaussians, ("ply", *request.splat_formats), job)

    def contents(name: str) -> dict[str, bytes]:
        nonlocal result
        data = {} if request.output_kind == "mesh" else dict(splats)
        if made.mesh is not None:
            data |= mesh_files.encode_files(made.mesh, name, ("glb",))
        if not quick:
            data["_views.png"] = outputs.encode_png(outputs.side_by_side(made.views))
        if made.image is not None:
            data["_input.png"] = outputs.encode_png(made.image)
        job.check()
        paths = {suffix: str(output / f"{name}{suffix}") for suffix in (*data, *(() if quick else (".json",)))}
        result = GenerateResult(
            job=request.job,
            ply=paths.get(".ply"),
            views=paths.get("_views.png", ""),
            input=paths.get("_input.png"),
            json=paths.get(".json", ""),
            gaussians=len(made.gaussians),
            settings=_settings(request, name, made.mesh is not None) | facts,
            versions=_versions(preset),
            timings=job.timings_until_now(),
            device=device_name(request.device),
            warnings=job.warnings,
            glb=paths.get(".glb"),
            faces=0 if made.mesh is None else made.mesh.polygons,
            splat_files=[paths[suffix] for suffix in splats if suffix != ".ply"],
        )
        if not quick:
            text = json.dumps(asdict(result), indent=2, ensure_ascii=False)
            data[".json"] = text.encode(errors="backslashreplace") + b"\n"
        return data

    if isinstance(request, ReconstructRequest):
        source, stem = request.views[0], file_stem(request.name, request.views[0])
    else:
        source, stem = request.image, file_stem(request.name, request.image, request.prompt)
    outputs.save_together(output, stem, SUFFIXES, contents, overwrite=request.overwrite, source=source)
    return result


def save_candidates(
    output: Path,
    request: SampleRequest,
    preset: Preset,
    facts: dict[str, Any],
    image: np.ndarray | None,
    views: Sequence[np.ndarray],
    agreements: Sequence[float],
    job: Job,
) -> SampleResult:
    """Writes the views of all candidates or none.

    Args:
        views: [4, S, S, 3] of each of the request's seeds.
        agreements: Of each (agreement.py).
        output, request, preset, facts, image, job: See `save_result`.
    """
    result = None
    order = sorted(range(len(views)), key=lambda i: -agreements[i])
    suffixes = {seed: [f"_{seed}_{view}.png" for view in VIEW_NAMES] for seed in request.seeds}

    def contents(name: str) -> dict[str, bytes]:
        nonlocal result
        data = {} if image is None else {"_input.png": outputs.encode_png(image)}
        for seed, four in zip(request.seeds, views, strict=True):
            data |= {suffix: outputs.encode_png(view) for suffix, view in zip(suffixes[seed], four, strict=True)}
        job.check()
        result = SampleResult(
            job=request.job,
            candidates=[
                Candidate(seed, [str(output / f"{name}{suffix}") for suffix in suffixes[seed]], round(agreements[i], 4))
                for i, seed in ((i, request.seeds[i]) for i in order)
            ],
            input=None if image is None else str(output / f"{name}_input.png"),
            settings=_settings(request, name, False) | facts,
            versions=_versions(preset),
            timings=job.timings_until_now(),
            device=device_name(request.device),
            warnings=job.warnings,
        )
        return data

    stem = file_stem(request.name, request.image, request.prompt)
    names = ["_input.png", *(suffix for each in suffixes.values() for suffix in each)]
    outputs.save_together(output, stem, names, contents, source=request.image)
    return result


def _settings(
    request: GenerateRequest | ReconstructRequest | SampleRequest, name: str, with_mesh: bool
) -> dict[str, Any]:
    """A request as a result records it."""
    settings = asdict(replace(request, name=name))
    left_out = {"job", "previews", "facts", "quick", *(() if with_mesh else _ONLY_OF_MESHES)}
    return {key: value for key, value in settings.items() if key not in left_out}


def _versions(preset: Preset) -> dict[str, str]:
    return outputs.versions() | {"preset": f"{preset.name} {preset.version}"}
