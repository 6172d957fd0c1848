"""An image or a text becomes four views, these Gaussians, these a mesh: the whole path on one page."""

from __future__ import annotations

import gc
import io
import json
import logging
import math
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ..core.errors import Cancelled, LGMError
from ..core.files import TEMPORARY_SUFFIX, output_error, replacing, write_together
from ..core.formats.ply import encode_ply
from ..core.gaussians import Gaussians
from ..core.messages import (
    STAGES,
    GenerateRequest,
    GenerateResult,
    MeshRequest,
    MeshResult,
    OutputKind,
    Progress,
)
from ..core.version import VERSION
from .devices import device_name, explain_out_of_memory, resolve_device
from .meshing import STAGE_LABELS as MESH_LABELS
from .meshing import STAGES as MESH_STAGES
from .meshing import MeshSettings, TexturedMesh, mesh_from_gaussians
from .models import CheckedFiles, Mode, Preset, find_preset

if TYPE_CHECKING:
    from .lgm import LGM

log = logging.getLogger(__name__)

# The multi-view model's frames in LGM's order: the input image's side is its azimuth 90, and LGM's azimuth 0.
FRAMES_TO_LGM = (1, 2, 3, 0)

# Of the 1000 steps of training, the published "leading" spacing takes every (1000 // steps)th: with more
# than 500 steps it would start from the middle of the noise, and with 1000 outside of it.
MAX_STEPS = 500
MAX_SAMPLES = 16  # they are drawn at once, so they need so many times the memory of one
WHITE, HARDLY = 0.94, 0.003  # a value that still counts as white; the part of the others that is next to nothing

PREVIEW_SHARE = 0.1  # of the time, at most, goes into previews
PREVIEW_INTERVAL = 0.3  # seconds

# What this job writes, and what a batch in Blender adds.
SUFFIXES = (".ply", ".glb", "_views.png", "_input.png", ".json", ".png", "_mesh.png", ".blend")


class Pipeline:
    """The path from a request to its files. Loaded models are kept for the next request of the same preset.

    Args:
        previews: Folder for pictures of the views while they are drawn, or None for no previews.
        checked: Remembers which files were found whole.
    """

    def __init__(self, previews: Path | None = None, checked: CheckedFiles | None = None):
        self.previews = previews
        self.checked = checked or CheckedFiles()
        self._lgm: tuple[Any, Any] | None = None  # (what it was loaded from, the model)
        self._multiview: tuple[Any, Any] | None = None

    @property
    def loaded(self) -> bool:
        """Whether models are held in memory."""
        return self._lgm is not None or self._multiview is not None

    def generate(
        self,
        request: GenerateRequest,
        progress: Callable[[Progress], None] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> GenerateResult:
        """One job, from its request to its files.

        Args:
            request: See GenerateRequest.
            progress: Called at the start of each stage and after each denoising step.
            cancelled: Asked as often.

        Raises:
            Cancelled: If `cancelled` says so; nothing is written then.
            LGMError: With a sentence for the user; nothing is written then either.
        """
        job = _Job(request, progress, cancelled)
        try:
            return self._generate(job)
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

    def mesh(
        self,
        request: MeshRequest,
        progress: Callable[[Progress], None] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> MeshResult:
        """A mesh of splats that are in a file; the arguments and errors are `generate`'s."""
        from .meshing.job import mesh_file

        try:
            made = mesh_file(
                request.ply,
                request.output,
                MeshSettings(
                    faces=request.faces,
                    texture_size=request.texture_size,
                    up=request.up,
                    device=request.device,
                    quads=request.quads,
                ),
                name=request.name,
                overwrite=request.overwrite,
                formats=("glb",),
                progress=lambda told: progress(replace(told, job=request.job)),
                cancelled=cancelled,
            )
        except LGMError as error:
            if error.kind == "out_of_memory":
                self.free()  # then there is more for the next try
            raise
        (glb,) = made["files"]
        settings = asdict(request) | {"name": Path(glb).stem}
        del settings["job"]
        facts = {key: made[key] for key in ("gaussians", "faces", "timings", "device", "warnings")}
        return MeshResult(request.job, glb, settings=settings, **facts)

    def _generate(self, job: _Job) -> GenerateResult:
        request = job.request
        preset = find_preset(request.preset)
        mode = check_request(request, preset)
        output = check_output(request.output)
        device = resolve_device(request.device)

        picture, how = None, "none"
        if request.image is not None:
            with job.stage("matting"):
                from .matting import matte, recenter

                cut, how = matte(request.image)
                picture = recenter(cut)
                if (picture < WHITE).mean() < HARDLY:
                    job.warnings.append(
                        "The object is as white as the background that the models see it on, so they can't tell its "
                        "outline. Darken the picture a little."
                    )

        with job.stage("load"):
            lgm, multiview = self._load(preset, mode, device, job)

        prompt = request.prompt.strip()
        if prompt and picture is not None and "text" not in multiview.modes:
            job.warnings.append(f"The preset '{preset.name}' takes no text beside an image: the text was left out.")
            prompt = ""
        request = replace(
            request,
            prompt=prompt,
            negative_prompt=preset.negative_prompt if request.negative_prompt is None else request.negative_prompt,
            steps=preset.steps[mode] if request.steps is None else request.steps,
            guidance=preset.guidance[mode] if request.guidance is None else request.guidance,
            view_samples=preset.samples.get(mode, 1) if request.view_samples is None else request.view_samples,
            device=device,
        )
        if request.guidance == 1 and request.negative_prompt not in ("", preset.negative_prompt):
            job.warnings.append("The negative prompt has no effect without guidance: set a guidance above 1.")

        with job.stage("views", request.steps):
            from .multiview.colors import finish_views

            frames = multiview(
                prompt,
                picture,
                negative_prompt=request.negative_prompt,
                steps=request.steps,
                guidance=request.guidance,
                elevation=request.elevation,
                seed=request.seed,
                keep_image=preset.keep_image,
                samples=request.view_samples,
                redraw=preset.redraw,
                on_step=self._on_step(job),
            )
            views = frames[list(FRAMES_TO_LGM)]
            views = finish_views(views, picture, match=preset.match_colors, keep=preset.keep_image)

        with job.stage("gaussians"):
            from .lgm import gaussians_from_views

            guessed = guessed_views(request.view_samples, preset.keep_image and picture is not None)
            gaussians = self._visible(gaussians_from_views(lgm, views, request.elevation, guessed=guessed), job)
            if preset.clear_haze:
                from .floaters import without_haze

                gaussians = without_haze(gaussians)

        mesh = None
        if request.output_kind != "splats":
            try:
                mesh = mesh_from_gaussians(gaussians, mesh_settings(request), job.on_mesh, job.cancelled)
                job.timings |= mesh.timings
                job.warnings += mesh.warnings
            except Exception as error:
                sentence = str(error) if isinstance(error, LGMError) else explain_out_of_memory(error)
                if sentence is None or isinstance(error, Cancelled) or request.output_kind == "mesh":
                    raise
                job.warnings.append(f"There is no mesh, only the splats: {sentence}")
                if not isinstance(error, LGMError):
                    self.free()  # then there is more memory for the next try

        with job.stage("save"):
            return self._save(job, request, preset, output, picture, how, views, gaussians, mesh)

    def free(self) -> None:
        """Gives back the memory of the loaded models."""
        if self.loaded:
            self._lgm = self._multiview = None
            _collect()
            log.info("models freed")

    def _load(self, preset: Preset, mode: Mode, device: str, job: _Job) -> tuple[Any, Any]:
        """LGM and the multi-view model of a preset, from memory where they were loaded before."""
        folders = {part: preset.locate(part) for part in ("lgm", mode)}
        lgm_key = (folders["lgm"], device)
        multiview_key = (folders[mode], preset.scheduler, device)
        # What is not wanted any more goes first: there may not be room for both.
        if self._lgm and self._lgm[0] != lgm_key:
            self._lgm = None
        if self._multiview and self._multiview[0] != multiview_key:
            self._multiview = None
        if self._lgm and self._multiview:
            return self._lgm[1], self._multiview[1]
        _collect()
        for part in folders:
            preset.verify(part, self.checked, job.cancelled)
        job.check()

        if self._lgm is None:
            model = load_preset_lgm(preset, device)
            self._lgm = (lgm_key, model)
        job.check()
        if self._multiview is None:
            from .multiview.pipeline import MultiViewPipeline

            model = MultiViewPipeline.from_folder(folders[mode], device, scheduler=preset.scheduler)
            self._multiview = (multiview_key, model)
        return self._lgm[1], self._multiview[1]

    def _on_step(self, job: _Job) -> Callable[[int, int, Callable[[], np.ndarray]], None]:
        """What the multi-view model calls after each step: progress, a preview now and then, and whether to go on."""
        pause, last = 0.0, -math.inf

        def on_step(step: int, steps: int, decode: Callable[[], np.ndarray]) -> None:
            nonlocal pause, last
            preview = None
            if job.request.previews and self.previews and time.monotonic() - last > pause:
                started = time.monotonic()
                preview = self._write_preview(job, step, decode()[list(FRAMES_TO_LGM)])
                last = time.monotonic()
                pause = max(PREVIEW_INTERVAL, (last - started) / PREVIEW_SHARE)
            job.report(step, steps, preview=preview)
            job.check()

        return on_step

    def _write_preview(self, job: _Job, step: int, views: np.ndarray) -> str | None:
        """A file of its own for each picture, so that who reads one never sees it change; the last two are kept."""
        path = self.previews / f"{job.number}_{step:04}.png"
        try:
            with replacing(path) as file:
                file.write(_png(side_by_side(views)))
            for old in sorted(self.previews.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)[:-2]:
                old.unlink(missing_ok=True)
        except (LGMError, OSError) as error:  # a full temporary disk is no reason to lose the job
            log.warning("no preview: %s", error)
            return None
        return str(path)

    @staticmethod
    def _visible(gaussians: Gaussians, job: _Job) -> Gaussians:
        """The Gaussians that can be seen."""
        finite = gaussians.finite()
        if not finite.all():
            job.warnings.append(f"{len(finite) - finite.sum():,} Gaussians were left out: their values are not finite.")
            gaussians = gaussians.select(finite)
        gaussians = gaussians.prune()
        if not len(gaussians):
            raise LGMError("Nothing visible came out of this image or text. Try another seed, or another image.")
        return gaussians

    @staticmethod
    def _save(
        job: _Job,
        request: GenerateRequest,
        preset: Preset,
        output: Path,
        picture: np.ndarray | None,
        how: str,
        views: np.ndarray,
        gaussians: Gaussians,
        mesh: TexturedMesh | None,
    ) -> GenerateResult:
        """Writes all files or none; the JSON file gets its name last, so where it is, the others are."""
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(output / "result", error) from error
        name = free_name(output, file_stem(request), request)
        data = {} if request.output_kind == "mesh" else {".ply": encode_ply(gaussians)}
        if mesh is not None:
            from .meshing.files import encode_glb

            data[".glb"] = encode_glb(mesh, name)
        data["_views.png"] = _png(side_by_side(views))
        if picture is not None:
            data["_input.png"] = _png(picture)
        paths = {suffix: str(output / f"{name}{suffix}") for suffix in (*data, ".json")}
        settings = asdict(replace(request, name=name))
        del settings["job"], settings["previews"]
        if mesh is None:
            del settings["faces"], settings["texture_size"], settings["quads"]
        settings |= {"mode": "image" if picture is not None else "text", "matting": how, "scheduler": preset.scheduler}
        job.check()
        result = GenerateResult(
            job=request.job,
            ply=paths.get(".ply"),
            views=paths["_views.png"],
            input=paths.get("_input.png"),
            json=paths[".json"],
            gaussians=len(gaussians),
            settings=settings,
            versions=versions() | {"preset": f"{preset.name} {preset.version}"},
            timings=job.timings_until_now(),
            device=device_name(request.device),
            warnings=job.warnings,
            glb=paths.get(".glb"),
            faces=0 if mesh is None else mesh.polygons,
        )
        data[".json"] = json.dumps(asdict(result), indent=2, ensure_ascii=False).encode() + b"\n"
        write_together({Path(paths[suffix]): content for suffix, content in data.items()})
        return result


class _Job:
    """A request under way: who hears of it, whether it goes on, and how long its stages took."""

    def __init__(self, request: GenerateRequest, progress: Callable[[Progress], None], cancelled: Callable[[], bool]):
        self.request = request
        self.progress = progress
        self.cancelled = cancelled
        self.number = secrets.token_hex(4)
        self.warnings: list[str] = []
        self.timings: dict[str, float] = {}
        self.began = self.stage_began = time.perf_counter()
        self.stages = STAGES if request.output_kind == "splats" else (*STAGES[:-1], *MESH_STAGES, STAGES[-1])
        self.current = STAGES[0]

    def check(self) -> None:
        if self.cancelled():
            raise Cancelled

    def report(self, step: int = 0, steps: int = 0, preview: str | None = None) -> None:
        index, label = self.stages.index(self.current), MESH_LABELS.get(self.current, "")
        self.progress(Progress(self.request.job, self.current, index, len(self.stages), step, steps, label, preview))

    def on_mesh(self, stage: str, step: int, steps: int) -> None:
        """What the meshing calls; it asks by itself whether it goes on, and takes its times."""
        self.current = stage
        self.report(step, steps)

    @contextmanager
    def stage(self, name: str, steps: int = 0) -> Iterator[None]:
        self.check()
        self.current, self.stage_began = name, time.perf_counter()
        self.report(0, steps)
        yield
        self.timings[name] = round(time.perf_counter() - self.stage_began, 3)
        log.info("job %s: %s took %.2f s", self.request.job, name, self.timings[name])

    def timings_until_now(self) -> dict[str, float]:
        now = time.perf_counter()
        return self.timings | {self.current: round(now - self.stage_began, 3), "total": round(now - self.began, 3)}


def load_preset_lgm(preset: Preset, device: str, file: Path | None = None) -> LGM:
    """A preset's LGM, ready to run.

    Args:
        preset: Its weights are whole.
        device: 'cpu' or 'cuda'.
        file: Other weights of the same configuration, a safetensors file, to take instead of the preset's own.

    Raises:
        LGMError: If a file is missing, damaged, or of another model.
    """
    from .lgm import PRESETS, lgm_from_file, load_lgm, load_lgm_config

    folder = preset.locate("lgm")
    if preset.weights["lgm"].repository:  # the published weights come without a configuration
        (name,) = preset.weights["lgm"].files
        return lgm_from_file(PRESETS["big"], file or folder / name, device)
    return load_lgm(folder, device) if file is None else lgm_from_file(load_lgm_config(folder), file, device)


# What a request may be
# ---------------------


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
    if request.output_kind != "splats":
        mesh_settings(request).check()
    return preset.mode(request.image is not None)


def mesh_settings(request: GenerateRequest) -> MeshSettings:
    """How the mesh of a request is made; its Gaussians are in LGM's frame."""
    return MeshSettings(
        faces=request.faces, texture_size=request.texture_size, device=request.device, quads=request.quads
    )


def check_output(folder: str) -> Path:
    """The output folder as an absolute path, in which a file can be made. It is not made yet.

    Raises:
        LGMError: (kind 'output') if it is no folder, or can't be written to.
    """
    if not folder.strip() or "\0" in folder:
        raise LGMError("There is no output folder of that name. Choose one.", "output")
    try:
        folder = Path(folder).expanduser().absolute()
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise LGMError(
                f"{existing} is not a folder, so nothing can be saved in {folder}. Choose another.", "output"
            )
        # Whether one may write is best found out by writing: permissions do not tell of read-only disks.
        probe = existing / f".lgm-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, StopIteration) as error:
        reason = getattr(error, "strerror", "") or "there is no such disk"
        raise LGMError(
            f"Nothing can be saved in {folder} ({reason}). Choose another output folder.", "output"
        ) from error
    return folder


_RESERVED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def file_stem(request: GenerateRequest) -> str:
    """The stem of the files' names: the request's name, else the image's, else the text's first words.

    Letters of all languages and spaces are kept; what some system's file names can't have becomes '_'.
    """
    stem = request.name or (Path(request.image).stem if request.image else " ".join(request.prompt.split()[:6]))
    stem = _RESERVED.sub("_", stem).strip().rstrip(". ")
    while len(stem.encode()) > 200:  # of 255 bytes, which most file systems allow
        stem = stem[:-1].rstrip(". ")
    return f"_{stem}" if _DEVICES.fullmatch(stem) else stem or "untitled"


def free_name(folder: Path, stem: str, request: GenerateRequest) -> str:
    """`stem`, or with a number appended if a file of that name is there and may not be replaced."""
    for number in range(1_000_000):
        name = f"{stem}_{number:03}" if number else stem
        taken = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        if request.overwrite:  # everything but the input itself
            taken = [path for path in taken if request.image and path.resolve() == Path(request.image).resolve()]
        if not any(os.path.lexists(path) for path in taken):
            return name
    raise LGMError(f"{folder} holds a million results named {stem}. Choose another folder.", "output")


# Pieces
# ------


def guessed_views(samples: int, kept: bool) -> list[bool]:
    """Which of the four views, in LGM's order, come of several samples; the image, where kept, does not."""
    return [samples > 1 and not (kept and i == 0) for i in range(len(FRAMES_TO_LGM))]


def side_by_side(views: np.ndarray) -> np.ndarray:
    """Views [V, H, W, 3] in one row [H, V * W, 3]."""
    return np.concatenate(list(views), axis=1)


def _png(picture: np.ndarray) -> bytes:
    """A picture [H, W, 3] in 0..1 as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5)).save(buffer, "PNG")
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Of the extension, Python, and the packages that decide what comes out."""
    found = {"lgm_blender": VERSION, "python": platform.python_version()}
    for package in ("torch", "diffusers", "transformers", "numpy"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _collect() -> None:
    """Gives freed memory back to the system and to other programs on the GPU."""
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
