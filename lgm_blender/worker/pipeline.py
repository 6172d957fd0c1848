"""An image or a text becomes four views, these Gaussians, these a mesh: the whole path on one page."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np

from ..core import prompts
from ..core.errors import Cancelled, LGMError
from ..core.gaussians import Gaussians
from ..core.messages import (
    MAX_CANDIDATES,
    MESH_STAGES,
    RECONSTRUCT_STAGES,
    SAMPLE_STAGES,
    STAGES,
    VIEW_NAMES,
    ConvertRequest,
    ConvertResult,
    GenerateRequest,
    GenerateResult,
    LoadRequest,
    LoadResult,
    MatteRequest,
    MatteResult,
    MeshRequest,
    MeshResult,
    OutputKind,
    ReconstructRequest,
    SampleRequest,
    SampleResult,
)
from . import convert, cutout, four_views, outputs, reconstruct, results
from .agreement import agreement
from .devices import device_name, device_of, devices_in_use, explain_out_of_memory, explain_sick_gpu, resolve_device
from .jobs import Imports, IsCancelled, Job, OnProgress
from .memory import free_memory
from .mesh_file import MeshFiles, mesh_file
from .meshing import MeshSettings, TexturedMesh, mesh_from_gaussians
from .presets import MAX_SAMPLES, MAX_STEPS, Mode, ModelPart, Preset, find_preset
from .results import Made
from .weights import CheckedFiles

if TYPE_CHECKING:
    from .lgm import LGM
    from .multiview.pipeline import MultiViewPipeline

log = logging.getLogger(__name__)

SEEDS_AT_ONCE = 4
SPARE_MEMORY = 2 << 30  # bytes that stay free for Blender and others, where models are loaded that nobody waits for

Sampling = TypeVar("Sampling", GenerateRequest, SampleRequest)


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
        job = Job(request.job, _with_mesh(STAGES, request.output_kind), progress, cancelled)
        return self._with_memory(lambda: self._generate(request, job))

    def sample(
        self,
        request: SampleRequest,
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ) -> SampleResult:
        """The views of several seeds, to choose from; the arguments and errors are `generate`'s."""
        job = Job(request.job, SAMPLE_STAGES, progress, cancelled)
        return self._with_memory(lambda: self._sample(request, job))

    def reconstruct(
        self,
        request: ReconstructRequest,
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ) -> GenerateResult:
        """Four pictures to Gaussians, by LGM alone; the arguments and errors are `generate`'s."""
        job = Job(request.job, _with_mesh(RECONSTRUCT_STAGES, request.output_kind), progress, cancelled)
        return self._with_memory(lambda: self._reconstruct(request, job))

    def load(
        self,
        request: LoadRequest,
        progress: OnProgress = lambda progress: None,
        cancelled: IsCancelled = lambda: False,
    ) -> LoadResult:
        """Loads what `generate` would need, if there is ample memory; the arguments and errors are `generate`'s."""
        job = Job(request.job, ("load",), progress, cancelled)
        return self._with_memory(lambda: self._load_ahead(request, job))

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
            if sick := explain_sick_gpu(error):
                raise LGMError(sick, "device") from error
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
        image, how = self._image(request, job)
        lgm, multiview = self._load(preset, ("lgm", mode), device, job, meshing=request.output_kind != "splats")
        request, settings = _carried_out(request, preset, mode, multiview, device, job)
        seeds = [(request.seed + i) % 2**32 for i in range(request.candidates)]
        frames = self._frames(multiview, request, settings, image, seeds, {}, job)
        found = [reconstruct.finish_frames(each, image, settings, warnings=job.warnings) for each in frames]
        best = max(range(len(found)), key=lambda i: agreement(found[i])) if len(found) > 1 else 0
        request, views = replace(request, seed=seeds[best], candidates=1), found[best]
        gaussians = self._gaussians(lgm, views, settings, None, request, job)
        mesh = None if request.output_kind == "splats" else self._mesh(request, gaussians, job)
        with job.stage("save"):
            facts = {"mode": mode, "matting": how, "scheduler": preset.scheduler, "chosen_of": len(seeds)}
            return results.save_result(output, request, preset, facts, Made(image, views, gaussians, mesh), job)

    def _sample(self, request: SampleRequest, job: Job) -> SampleResult:
        preset = find_preset(request.preset)
        mode = check_request(request, preset)
        output = outputs.check_output(request.output)
        device = resolve_device(request.device)
        image, how = self._image(request, job)
        (multiview,) = self._load(preset, (mode,), device, job)
        request, settings = _carried_out(request, preset, mode, multiview, device, job)
        files = enumerate(request.kept)
        kept = {i: four_views.read_framed(file, multiview.size) for i, file in files if file}
        frames = self._frames(multiview, request, settings, image, request.seeds, kept, job)
        views = [reconstruct.finish_frames(each, image, settings, kept, job.warnings) for each in frames]
        with job.stage("save"):
            facts = {"mode": mode, "matting": how, "scheduler": preset.scheduler}
            facts["generated"] = [
                i not in kept and not (settings.keep_image and i == 0) for i in range(len(VIEW_NAMES))
            ]
            agreements = [agreement(each) for each in views]
            return results.save_candidates(output, request, preset, facts, image, views, agreements, job)

    def _reconstruct(self, request: ReconstructRequest, job: Job) -> GenerateResult:
        preset = find_preset(request.preset)
        check_views(request)
        output = outputs.check_output(request.output)
        device = resolve_device(request.device)
        with job.stage("matting"):
            if request.framed:
                views = np.stack([four_views.read_framed(file) for file in request.views])
            else:
                views = four_views.read_views(request.views)
        (lgm,) = self._load(preset, ("lgm",), device, job, meshing=request.output_kind != "splats")
        request = replace(request, device=device)
        settings = reconstruct.given_settings(preset)
        told = [preset.tell_generated and generated for generated in request.generated] or None
        gaussians = self._gaussians(lgm, views, settings, told, request, job)
        mesh = None if request.output_kind == "splats" else self._mesh(request, gaussians, job)
        with job.stage("save"):
            facts = request.facts | {"mode": "views"}
            return results.save_result(output, request, preset, facts, Made(None, views, gaussians, mesh), job)

    def _image(self, request: GenerateRequest | SampleRequest, job: Job) -> tuple[np.ndarray | None, str]:
        """The object of a request's image as the models see it, and how it was cut out; None without an image."""
        if request.image is None:
            return None, "none"
        with job.stage("matting"):
            _, image, how = cutout.cut_out(request, job)
        return image, how

    def _frames(
        self,
        multiview: MultiViewPipeline,
        request: GenerateRequest | SampleRequest,
        settings: reconstruct.Settings,
        image: np.ndarray | None,
        seeds: Sequence[int],
        kept: Mapping[int, np.ndarray],
        job: Job,
    ) -> np.ndarray:
        """The sampled views of each seed, [B, 4, S, S, 3], so many seeds at once as every GPU has room for."""
        groups = [seeds[i : i + SEEDS_AT_ONCE] for i in range(0, len(seeds), SEEDS_AT_ONCE)]
        frames: list[np.ndarray] = []
        with job.stage("views", settings.steps * len(groups)):
            previews = outputs.Previews(self.previews) if request.previews and self.previews else None

            def on_step(step: int, steps: int, decode: Callable[[], np.ndarray]) -> None:
                done = len(frames) * steps + step
                job.report(done, len(groups) * steps, previews.write(done, decode) if previews else None)
                job.check()

            for group in groups:
                sampled = reconstruct.sample_frames(
                    multiview,
                    settings,
                    request.prompt,
                    image,
                    seeds=group,
                    elevations=request.elevation,
                    kept=kept,
                    on_step=on_step,
                )
                frames.append(sampled)
        return np.concatenate(frames)

    def _gaussians(
        self,
        lgm: LGM,
        views: np.ndarray,
        settings: reconstruct.Settings,
        generated: Sequence[bool] | None,
        request: GenerateRequest | ReconstructRequest,
        job: Job,
    ) -> Gaussians:
        """The visible Gaussians of four views, without floaters."""
        with job.stage("gaussians"):
            gaussians = reconstruct.reconstruct(
                lgm, views, settings, generated=generated, elevation=request.elevation, warnings=job.warnings
            )
            if not len(gaussians):
                raise LGMError("Nothing visible came out. Try another seed, or other pictures.")
        with job.stage("floaters"):
            return reconstruct.clean_up(gaussians, settings, request.device, job.step)

    def _load(
        self, preset: Preset, parts: Sequence[ModelPart], device: str, job: Job, meshing: bool = False
    ) -> list[Any]:
        """Models of a preset, from memory where they were loaded before; the next stages of a job may be left in them.

        Of LGM and the multi-view model, one that is not asked for stays in memory, since it will be soon.
        """
        with job.stage("load"):
            self._imports.run(_import_all if meshing else _import_models, job.cancelled)
            with job.listening():
                folders = {part: preset.locate(part) for part in parts}
                schedulers = {part: None if part == "lgm" else preset.scheduler for part in parts}
                keys = [(part == "lgm", folders[part], schedulers[part], device) for part in parts]
                kinds = {key[0] for key in keys}
                # What is not wanted any more goes first: there may not be room for both.
                self._models = {k: model for k, model in self._models.items() if k in keys or k[0] not in kinds}
                if missing := [part for key, part in zip(keys, parts, strict=True) if key not in self._models]:
                    _collect()
                    for part in parts:
                        preset.verify(part, self.checked, job.cancelled)
                for key, part in zip(keys, parts, strict=True):
                    job.check()
                    if part in missing and part == "lgm":
                        self._models[key] = reconstruct.load_lgm(preset, device)
                    elif part in missing:
                        self._models[key] = reconstruct.load_multiview(preset, part, device)
        job.torch_listens = device == "cpu"
        return [self._models[key] for key in keys]

    def _load_ahead(self, request: LoadRequest, job: Job) -> LoadResult:
        preset = find_preset(request.preset)
        mode = preset.mode(request.mode == "image")
        device = resolve_device(request.device)
        needed = 2 * sum(_size(preset.locate(part)) for part in ("lgm", mode))  # files of fp16 become fp32 on a CPU
        free, own = free_memory(), device_of(device).memory()
        free = min(free, own[0]) if own else free
        if loaded := free > needed + SPARE_MEMORY:
            self._load(preset, ("lgm", mode), device, job)
        else:
            job.warnings.append(
                f"The models are loaded when they are needed: {free / 1e9:.1f} GB of memory are free, which is little. "
                "Close other programs to have them loaded ahead."
            )
        return LoadResult(request.job, loaded, job.timings, device_name(device), job.warnings)

    def _mesh(
        self, request: GenerateRequest | ReconstructRequest, gaussians: Gaussians, job: Job
    ) -> TexturedMesh | None:
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


def check_request(request: GenerateRequest | SampleRequest, preset: Preset) -> Mode:
    """The mode of a request whose values are within their ranges.

    Raises:
        LGMError: If one is not.
    """
    if request.image is None and not request.prompt.strip():
        raise LGMError("There is nothing to start from. Choose an image, write a text, or both.")
    many = isinstance(request, SampleRequest)
    seeds = request.seeds if many else [request.seed]
    if not 1 <= len(seeds) <= MAX_CANDIDATES or len({*seeds}) < len(seeds):
        raise LGMError(f"There must be 1 to {MAX_CANDIDATES} seeds, all different, not {seeds}.")
    _check_ranges(
        *(("seed", seed, 0, 2**32 - 1) for seed in seeds),
        ("number of steps", request.steps, 1, MAX_STEPS),
        ("guidance", request.guidance, 0, 100),
        ("elevation", request.elevation, -90, 90),
        ("number of view samples", request.view_samples, 1, MAX_SAMPLES),
        ("number of candidates", None if many else request.candidates, 1, MAX_CANDIDATES),
    )
    if many and len(request.kept) not in (0, len(VIEW_NAMES)):
        raise LGMError(f"There must be {len(VIEW_NAMES)} views, or none, not {len(request.kept)}.")
    if many and len(request.kept) and all(request.kept):
        raise LGMError("All four views are kept, so there is nothing to sample. Keep fewer of them.")
    if not many:
        _check_output_kind(request)
    return preset.mode(request.image is not None)


def check_views(request: ReconstructRequest) -> None:
    """Sees to it that a request's values are within their ranges.

    Raises:
        LGMError: If one is not.
    """
    if len(request.views) != len(VIEW_NAMES):
        names = ", ".join(VIEW_NAMES)
        raise LGMError(f"There must be {len(VIEW_NAMES)} views, {names}, not {len(request.views)}.")
    if len(request.generated) not in (0, len(VIEW_NAMES)):
        raise LGMError(
            f"There are {len(request.generated)} answers to which views are generated. Give {len(VIEW_NAMES)}, or none."
        )
    _check_ranges(("elevation", request.elevation, -90, 90))
    if request.quick and request.output_kind != "splats":
        raise LGMError("Only splats are made quickly. Ask for them alone.")
    _check_output_kind(request)


def _check_ranges(*ranges: tuple[str, float | None, float, float]) -> None:
    for name, value, low, high in ranges:
        if value is not None and not low <= value <= high:
            raise LGMError(f"The {name} must be from {low} to {high}, not {value}.")


def _check_output_kind(request: GenerateRequest | ReconstructRequest) -> None:
    if request.output_kind not in get_args(OutputKind):
        kinds = ", ".join(get_args(OutputKind))
        raise LGMError(f"There is no output kind '{request.output_kind}'. Choose one of {kinds}.")
    convert.check_formats(request.splat_formats or ["ply"])
    if request.output_kind != "splats":
        MeshSettings.of(request).check()


def _carried_out(
    request: Sampling, preset: Preset, mode: Mode, multiview: MultiViewPipeline, device: str, job: Job
) -> tuple[Sampling, reconstruct.Settings]:
    """A request with every default filled in and without what the preset can't heed, and what it says of the views."""
    prompt = request.prompt.strip()
    if prompt and request.image is not None and "text" not in multiview.modes:
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
    texts = {"prompt": prompt, "negative prompt": request.negative_prompt or ""}
    unread = (prompts.left_out_warning(text, preset.locate(mode), what) for what, text in texts.items())
    job.warnings += filter(None, unread)
    request = replace(
        request,
        prompt=prompt,
        negative_prompt=settings.negative_prompt,
        steps=settings.steps,
        guidance=settings.guidance,
        view_samples=settings.samples,
        device=device,
    )
    return request, settings


def _with_mesh(stages: tuple[str, ...], output_kind: str) -> tuple[str, ...]:
    return stages if output_kind == "splats" else (*stages[:-1], *MESH_STAGES, stages[-1])


def _size(folder: Path) -> int:
    """Bytes of the weights in a model's folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _import_models() -> None:
    from . import floaters, lgm, matting  # noqa: F401
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
    for device in devices_in_use():
        device.empty_cache()
