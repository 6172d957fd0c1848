"""An image or a text becomes four views, these Gaussians, these a mesh: the whole path on one page."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..core.errors import Cancelled, LGMError
from ..core.formats.splat_files import read_splat_file, stem_of
from ..core.messages import (
    MESH_STAGES,
    STAGES,
    ConvertRequest,
    ConvertResult,
    GenerateRequest,
    GenerateResult,
    MatteRequest,
    MatteResult,
    MeshRequest,
    MeshResult,
    OutputKind,
)
from ..core.paths import expanded
from ..core.system.names import file_stem
from . import convert, cutout, outputs, reconstruct, webp
from .devices import device_name, explain_out_of_memory, is_cuda_in_use, resolve_device
from .jobs import Imports, IsCancelled, Job, OnProgress
from .meshing import MeshSettings, TexturedMesh, mesh_from_gaussians
from .meshing import files as mesh_files
from .meshing.files import FORMATS
from .presets import MAX_SAMPLES, MAX_STEPS, Mode, Preset, find_preset
from .weights import CheckedFiles

log = logging.getLogger(__name__)

# What `generate` writes, and what a batch in Blender adds.
SUFFIXES = (*convert.SUFFIXES.values(), ".glb", "_views.png", "_input.png", ".json", ".png", "_mesh.png", ".blend")


class Pipeline:
    """The path from a request to its files. Loaded models are kept for the next request of the same preset.

    Args:
        previews: Folder for pictures of the views while they are sampled, or None for no previews.
        checked: Remembers which files were found whole.
    """

    def __init__(self, previews: Path | None = None, checked: CheckedFiles | None = None):
        self.previews = previews
        self.checked = checked or CheckedFiles()
        self._models: dict[tuple, Any] = {}  # what each was loaded from: the model
        self._imports = Imports()

    @property
    def loaded(self) -> bool:
        """Whether models are held in memory."""
        return bool(self._models)

    def free(self) -> None:
        """Gives back the memory of the loaded models."""
        if self.loaded:
            self._models = {}
            _collect()
            log.info("models freed")

    def generate(
        self,
        request: GenerateRequest,
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ) -> GenerateResult:
        """One job, from its request to its files.

        Args:
            request: See GenerateRequest.
            progress: Called at the start of each stage and after each step of it.
            cancelled: Asked as often.

        Raises:
            Cancelled: If `cancelled` says so; nothing is written then.
            LGMError: With a sentence for the user; nothing is written then either.
        """
        stages = STAGES if request.output_kind == "splats" else (*STAGES[:-1], *MESH_STAGES, STAGES[-1])
        job = Job(request.job, stages, progress, cancelled)
        return self._with_memory(lambda: self._generate(request, job))

    def mesh(
        self,
        request: MeshRequest,
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ) -> MeshResult:
        """A mesh of splats that are in a file; the arguments and errors are `generate`'s."""

        def make() -> MeshFiles:
            self._imports.run(_import_meshing, cancelled)
            return mesh_file(
                request.ply,
                request.output,
                MeshSettings.of(request),
                name=request.name,
                overwrite=request.overwrite,
                formats=("glb",),
                progress=progress,
                cancelled=cancelled,
                job=request.job,
            )

        made = self._with_memory(make)
        (glb,) = made.files
        asked = asdict(request) | {"name": Path(glb).stem}
        del asked["job"]
        return MeshResult(request.job, glb, made.gaussians, made.faces, asked, made.timings, made.device, made.warnings)

    def convert(
        self,
        request: ConvertRequest,
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ) -> ConvertResult:
        """Splats that are in a file in other formats; the arguments and errors are `generate`'s."""
        return self._with_memory(lambda: convert.convert(request, progress, cancelled))

    def matte(
        self,
        request: MatteRequest,
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ) -> MatteResult:
        """The object of an image, cut out as for `generate`, whose arguments and errors these are, but no models."""
        return self._with_memory(lambda: cutout.matte(request, progress, cancelled))

    def _with_memory(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; where it runs out of memory, the models are freed and a sentence says so."""
        try:
            return work()
        except LGMError:
            raise
        except Exception as error:
            sentence = explain_out_of_memory(error)
            if sentence is None:
                raise
            log.exception("out of memory")
        # Outside of the handler: the traceback would hold on to what filled the memory.
        self.free()
        raise LGMError(sentence, "out_of_memory")

    def _generate(self, request: GenerateRequest, job: Job) -> GenerateResult:
        preset = find_preset(request.preset)
        mode = check_request(request, preset)
        output = outputs.check_output(request.output)
        device = resolve_device(request.device)

        image, how = None, "none"
        if request.image is not None:
            with job.stage("matting"):
                _, image, how = cutout.cut_out(request, job)

        with job.stage("load"):
            self._imports.run(_import_models if request.output_kind == "splats" else _import_all, job.cancelled)
            with job.listening():
                lgm, multiview = self._load(preset, mode, device, job)
        job.torch_listens = device == "cpu"

        prompt = request.prompt.strip()
        if prompt and image is not None and "text" not in multiview.modes:
            job.warnings.append(f"The preset '{preset.name}' takes no text beside an image: the text was left out.")
            prompt = ""
        settings = reconstruct.preset_settings(
            preset,
            mode,
            steps=request.steps,
            guidance=request.guidance,
            negative_prompt=request.negative_prompt,
            samples=request.view_samples,
        )
        if settings.guidance == 1 and settings.negative_prompt not in ("", preset.negative_prompt):
            job.warnings.append("The negative prompt has no effect without guidance: set a guidance above 1.")

        with job.stage("views", settings.steps):
            previews = outputs.Previews(self.previews) if request.previews and self.previews else None

            def on_step(step: int, steps: int, decode: Callable[[], np.ndarray]) -> None:
                job.report(step, steps, previews.write(step, lambda: decode()[0]) if previews else None)
                job.check()

            (frames,) = reconstruct.sample_frames(
                multiview,
                settings,
                prompt,
                image,
                seeds=[request.seed],
                elevations=request.elevation,
                on_step=on_step,
            )
            views = reconstruct.finish_frames(frames, image, settings)

        with job.stage("gaussians"):
            gaussians = reconstruct.reconstruct(
                lgm, views, settings, elevation=request.elevation, warnings=job.warnings
            )
            if not len(gaussians):
                raise LGMError("Nothing visible came out of this image or text. Try another seed, or another image.")

        with job.stage("floaters"):
            gaussians = reconstruct.clean_up(gaussians, settings, device, job.step)

        mesh = None if request.output_kind == "splats" else self._mesh(request, gaussians, job)

        with job.stage("save"):
            request = replace(
                request,
                prompt=prompt,
                negative_prompt=settings.negative_prompt,
                steps=settings.steps,
                guidance=settings.guidance,
                view_samples=settings.samples,
                device=device,
            )
            facts = {"mode": mode, "matting": how, "scheduler": preset.scheduler}
            return save(output, request, preset, facts, image, views, gaussians, mesh, job)

    def _load(self, preset: Preset, mode: Mode, device: str, job: Job) -> tuple[Any, Any]:
        """LGM and the multi-view model of a preset, from memory where they were loaded before."""
        folders = {part: preset.locate(part) for part in ("lgm", mode)}
        lgm, multiview = (folders["lgm"], device), (folders[mode], preset.scheduler, device)
        # What is not wanted any more goes first: there may not be room for both.
        self._models = {key: model for key, model in self._models.items() if key in (lgm, multiview)}
        if len(self._models) < 2:
            _collect()
            for part in folders:
                preset.verify(part, self.checked, job.cancelled)
        job.check()
        if lgm not in self._models:
            self._models[lgm] = reconstruct.load_lgm(preset, device)
        job.check()
        if multiview not in self._models:
            self._models[multiview] = reconstruct.load_multiview(preset, mode, device)
        return self._models[lgm], self._models[multiview]

    def _mesh(self, request: GenerateRequest, gaussians: Any, job: Job) -> TexturedMesh | None:
        """The mesh of a request, or None if there is none and the splats are wanted too: a warning then says why."""
        try:
            return mesh_from_gaussians(gaussians, MeshSettings.of(request), job)
        except Exception as error:
            sentence = str(error) if isinstance(error, LGMError) else explain_out_of_memory(error)
            if sentence is None or isinstance(error, Cancelled) or request.output_kind == "mesh":
                raise
            job.warnings.append(f"There is no mesh, only the splats: {sentence}")
            if not isinstance(error, LGMError):
                self.free()  # then there is more memory for the next try
            return None


def save(
    output: Path,
    request: GenerateRequest,
    preset: Preset,
    facts: dict[str, str],
    image: np.ndarray | None,
    views: np.ndarray,
    gaussians: Any,
    mesh: TexturedMesh | None,
    job: Job,
) -> GenerateResult:
    """Writes all files of a result or none; the JSON file gets its name last, so where it is, the others are.

    Args:
        output: The folder, made if missing.
        request: As it was carried out, every default filled in.
        preset: Whose weights were used.
        facts: More for the result's settings.
        image: What the views were sampled from, [H, W, 3] in 0..1, or None.
        views, gaussians, mesh: What came out.
        job: Its warnings and timings.
    """
    result = None
    splats = {}
    if request.output_kind != "mesh":
        splats = convert.encode_formats(gaussians, ("ply", *request.splat_formats), job)

    def contents(name: str) -> dict[str, bytes]:
        nonlocal result
        data = {} if request.output_kind == "mesh" else dict(splats)
        if mesh is not None:
            data |= mesh_files.encode_files(mesh, name, ("glb",))
        data["_views.png"] = outputs.encode_png(outputs.side_by_side(views))
        if image is not None:
            data["_input.png"] = outputs.encode_png(image)
        paths = {suffix: str(output / f"{name}{suffix}") for suffix in (*data, ".json")}
        settings = asdict(replace(request, name=name))
        for key in ("job", "previews", *(("faces", "texture_size", "quads") if mesh is None else ())):
            del settings[key]
        job.check()
        result = GenerateResult(
            job=request.job,
            ply=paths.get(".ply"),
            views=paths["_views.png"],
            input=paths.get("_input.png"),
            json=paths[".json"],
            gaussians=len(gaussians),
            settings=settings | facts,
            versions=outputs.versions() | {"preset": f"{preset.name} {preset.version}"},
            timings=job.timings_until_now(),
            device=device_name(request.device),
            warnings=job.warnings,
            glb=paths.get(".glb"),
            faces=0 if mesh is None else mesh.polygons,
            splat_files=[paths[suffix] for suffix in splats if suffix != ".ply"],
        )
        data[".json"] = (
            json.dumps(asdict(result), indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        )
        return data

    stem = file_stem(request.name, request.image, request.prompt)
    outputs.save_together(output, stem, SUFFIXES, contents, overwrite=request.overwrite, source=request.image)
    return result


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


def check_request(request: GenerateRequest, preset: Preset) -> Mode:
    """The mode of a request whose values are within their ranges.

    Raises:
        LGMError: If one is not.
    """
    if request.image is None and not request.prompt.strip():
        raise LGMError("There is nothing to start from. Choose an image, write a text, or both.")
    for name, value, low, high in (
        ("seed", request.seed, 0, 2**32 - 1),
        ("number of steps", request.steps, 1, MAX_STEPS),
        ("guidance", request.guidance, 0, 100),
        ("elevation", request.elevation, -90, 90),
        ("number of view samples", request.view_samples, 1, MAX_SAMPLES),
    ):
        if value is not None and not low <= value <= high:
            raise LGMError(f"The {name} must be from {low} to {high}, not {value}.")
    if request.output_kind not in get_args(OutputKind):
        kinds = ", ".join(get_args(OutputKind))
        raise LGMError(f"There is no output kind '{request.output_kind}'. Choose one of {kinds}.")
    convert.check_formats(request.splat_formats or ["ply"])
    if request.output_kind != "splats":
        MeshSettings.of(request).check()
    return preset.mode(request.image is not None)


def _import_models() -> None:
    from . import floaters, lgm  # noqa: F401
    from .multiview import pipeline  # noqa: F401


def _import_meshing() -> None:
    import uvunwrap  # noqa: F401
    from skimage.measure import marching_cubes  # noqa: F401

    from .meshing import atlas, density, framing, fusion, meshlab, poisson, quads, refine, texture, views  # noqa: F401


def _import_all() -> None:
    _import_models()
    _import_meshing()


def _collect() -> None:
    """Gives freed memory back to the system and to other programs on the GPU."""
    gc.collect()
    if is_cuda_in_use():
        sys.modules["torch"].cuda.empty_cache()
