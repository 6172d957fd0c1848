"""A preset's settings become four views, these become Gaussians, and these are cleaned up.

What a setting means is decided here alone: for a user's job (pipeline.py), for evaluation and for training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.gaussians import Gaussians
from . import jobs
from .presets import Mode, Preset

if TYPE_CHECKING:
    from .lgm import LGM
    from .multiview.pipeline import MultiViewPipeline, OnStep

# The multi-view model's frames in LGM's order: the input image's side is its azimuth 90, and LGM's azimuth 0.
FRAMES_TO_LGM = (1, 2, 3, 0)


@dataclass(frozen=True)
class Settings:
    """How Gaussians are made: a preset's way in one of its modes, with what a request changed.

    Attributes:
        steps, guidance, negative_prompt: See MultiViewPipeline.
        samples: How many samples of the views are averaged.
        refine: Whether their mean is made sharp again by SDEdit.
        keep_image: Whether the view from the image's side is the image itself.
        match_colors: Whether the views get the image's colours (multiview/colors.py).
        tell_generated: Whether LGM is told which views are generated where they are single samples, too.
        remove_floaters: Whether what is faint around the object is left out (floaters.py).
    """

    steps: int = 0
    guidance: float = 1.0
    negative_prompt: str = ""
    samples: int = 1
    refine: bool = False
    keep_image: bool = False
    match_colors: bool = False
    tell_generated: bool = False
    remove_floaters: bool = False

    @property
    def averaged_views(self) -> list[bool]:
        """Which of the four views, in LGM's order, it is told to be unsure: those of several samples, or all that are
        generated; never the image, where that is kept."""
        told = self.samples > 1 or self.tell_generated
        return [told and not (self.keep_image and i == 0) for i in range(len(FRAMES_TO_LGM))]


GIVEN_VIEWS = Settings()  # of views that no model made: ground truth, photographs


def preset_settings(
    preset: Preset,
    mode: Mode,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    samples: int | None = None,
) -> Settings:
    """A preset's settings in a mode; what is not None takes the place of the preset's."""
    return Settings(
        steps=preset.steps[mode] if steps is None else steps,
        guidance=preset.guidance[mode] if guidance is None else guidance,
        negative_prompt=preset.negative_prompt if negative_prompt is None else negative_prompt,
        samples=preset.samples.get(mode, 1) if samples is None else samples,
        refine=preset.refine,
        keep_image=preset.keep_image and mode == "image",
        match_colors=preset.match_colors and mode == "image",
        tell_generated=preset.tell_generated and mode == "image",
        remove_floaters=preset.remove_floaters,
    )


def load_lgm(preset: Preset, device: str, file: Path | None = None) -> LGM:
    """A preset's LGM, ready to run.

    Args:
        preset: Its weights are whole.
        device: As `devices.resolve_device` gives it.
        file: Other weights of the same configuration, a safetensors file, to take instead of the preset's own.

    Raises:
        LGMError: If a file is missing, damaged, or of another model.
    """
    from . import lgm

    folder = preset.locate("lgm")
    if preset.weights["lgm"].repository:  # the published weights come without a configuration
        config, (name,) = lgm.LGM_CONFIGS["big"], preset.weights["lgm"].files
    else:
        config, name = lgm.load_lgm_config(folder), "model.safetensors"
    return lgm.lgm_from_file(config, file or folder / name, device)


def load_multiview(preset: Preset, mode: Mode, device: str) -> MultiViewPipeline:
    """A preset's multi-view model of a mode, ready to run.

    Raises:
        LGMError: If a file is missing, damaged, or of another model.
    """
    from .multiview.pipeline import MultiViewPipeline

    return MultiViewPipeline.from_folder(preset.locate(mode), device, scheduler=preset.scheduler)


def sample_frames(
    multiview: MultiViewPipeline,
    settings: Settings,
    prompts: str | Sequence[str] = "",
    images: np.ndarray | Sequence[np.ndarray] | None = None,
    *,
    seeds: Sequence[int] = (0,),
    elevations: float | Sequence[float] = 0.0,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """The model's views in LGM's order, [B, 4, S, S, 3] float32 in 0..1; the arguments are MultiViewPipeline's."""

    def tell(step: int, steps: int, decode: Callable[[], np.ndarray]) -> None:
        on_step(step, steps, lambda: decode()[:, list(FRAMES_TO_LGM)])

    frames = multiview(
        prompts,
        images,
        seeds=seeds,
        negative_prompt=settings.negative_prompt,
        steps=settings.steps,
        guidance=settings.guidance,
        elevations=elevations,
        keep_image=settings.keep_image,
        samples=settings.samples,
        refine=settings.refine,
        on_step=tell if on_step else None,
    )
    return frames[:, list(FRAMES_TO_LGM)]


def finish_frames(frames: np.ndarray, image: np.ndarray | None, settings: Settings) -> np.ndarray:
    """What LGM sees of sampled views [4, S, S, 3]: in the image's colours and with it among them, as is set."""
    from .multiview.colors import finish_views

    return finish_views(frames, image, match=settings.match_colors, keep=settings.keep_image)


def reconstruct(
    lgm: LGM,
    views: np.ndarray,
    settings: Settings = GIVEN_VIEWS,
    *,
    elevation: float = 0.0,
    poses: np.ndarray | None = None,
    warnings: list[str] | None = None,
) -> Gaussians:
    """The visible Gaussians of four views [4, S, S, 3] float32 in 0..1, on white, in LGM's frame.

    Args:
        lgm: From `load_lgm`.
        views: At azimuth 0, 90, 180, 270, the image's side first.
        settings: How the views were made.
        elevation: Degrees of the four cameras above the object.
        poses: [4, 4, 4] float32, camera-to-world, of views from other cameras.
        warnings: Gets a sentence if values are not finite.
    """
    from .lgm import gaussians_from_views

    gaussians = gaussians_from_views(lgm, views, elevation, poses, settings.averaged_views)
    return gaussians.only_finite([] if warnings is None else warnings).prune()


def clean_up(
    gaussians: Gaussians,
    settings: Settings,
    device: str = "cpu",
    on_step: jobs.OnStep = jobs.silent,
) -> Gaussians:
    """The Gaussians without floaters, if that is set; `on_step(step, steps)` hears how far it is, and may raise."""
    if not settings.remove_floaters:
        return gaussians
    from .floaters import without_floaters

    return without_floaters(gaussians, device, on_step)
