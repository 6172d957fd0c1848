"""A preset's settings become four views, these become Gaussians, and these are cleaned up.

What a setting means is decided here alone: for a user's job (pipeline.py), for evaluation and for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.affine import turned
from ..core.cameras import levelled, orbit_cameras
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
        matte_views: Whether the views' background is cut off and they are framed together (four_views.py).
        level_first: Whether LGM knows cameras only as a whole so turned that the first one is level.
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
    matte_views: bool = False
    level_first: bool = False
    tell_generated: bool = False
    remove_floaters: bool = False

    @property
    def averaged_views(self) -> list[bool]:
        """Which of the four views, in LGM's order, it is told to be unsure: those of several samples, or all that are
        generated; never the image, where that is kept."""
        told = self.samples > 1 or self.tell_generated
        return [told and not (self.keep_image and i == 0) for i in range(len(FRAMES_TO_LGM))]


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
        matte_views=preset.matte_views and mode == "text",
        level_first=preset.level_first,
        tell_generated=preset.tell_generated and mode == "image",
        remove_floaters=preset.remove_floaters,
    )


def given_settings(preset: Preset) -> Settings:
    """A preset's settings for views that it did not make itself."""
    return Settings(level_first=preset.level_first, remove_floaters=preset.remove_floaters)


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
    kept: Mapping[int, np.ndarray] | None = None,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """The model's views in LGM's order, [B, 4, S, S, 3] float32 in 0..1.

    The arguments are MultiViewPipeline's, but for `kept`, whose views have their numbers in LGM's order.
    """

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
        kept={FRAMES_TO_LGM[view]: picture for view, picture in (kept or {}).items()},
        samples=settings.samples,
        refine=settings.refine,
        on_step=tell if on_step else None,
    )
    return frames[:, list(FRAMES_TO_LGM)]


def finish_frames(
    frames: np.ndarray,
    image: np.ndarray | None,
    settings: Settings,
    kept: Mapping[int, np.ndarray] | None = None,
    warnings: list[str] | None = None,
) -> np.ndarray:
    """What LGM sees of sampled views [4, S, S, 3].

    In the image's colours and with it among them, or cut out and framed together, as is set; and those that were kept
    are what they were.

    Args:
        warnings: Gets a sentence if they can't be cut out; they stay as they are then.
    """
    from .four_views import framed_again, resized
    from .multiview.colors import finish_views

    kept = kept or {}
    if settings.matte_views and not kept:
        return framed_again(frames, [] if warnings is None else warnings)
    match, keep = settings.match_colors and 0 not in kept, settings.keep_image and 0 not in kept
    views = finish_views(frames, image, match=match, keep=keep)
    return np.stack([resized(kept[i], len(view)) if i in kept else view for i, view in enumerate(views)])


def reconstruct(
    lgm: LGM,
    views: np.ndarray,
    settings: Settings,
    *,
    generated: Sequence[bool] | None = None,
    elevation: float = 0.0,
    poses: np.ndarray | None = None,
    warnings: list[str] | None = None,
) -> Gaussians:
    """The visible Gaussians of four views [4, S, S, 3] float32 in 0..1, on white, in LGM's frame.

    Args:
        lgm: From `load_lgm`.
        views: At azimuth 0, 90, 180, 270, the image's side first.
        settings: How the views were made.
        generated: Which of them LGM is told to be unsure of; None leaves that to the settings.
        elevation: Degrees of the four cameras above the object.
        poses: [4, 4, 4] float32, camera-to-world, of views from other cameras.
        warnings: Gets a sentence if values are not finite.
    """
    from .lgm import gaussians_from_views

    poses, turn = orbit_cameras(elevation) if poses is None else poses, None
    if settings.level_first:
        poses, turn = levelled(poses)
    told = settings.averaged_views if generated is None else generated
    gaussians = gaussians_from_views(lgm, views, poses=poses, averaged=told)
    gaussians = gaussians.only_finite([] if warnings is None else warnings).prune()
    return gaussians if turn is None else turned(gaussians, turn)


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
