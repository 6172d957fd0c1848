"""Presets: sets of weights, each with the settings that suit it.

`mini` comes with the extension. `lgm` is the published models, 3.4 to 7.4 GB, looked for in the folder that the
environment variable LGM_BLENDER_WEIGHTS names and in the Hugging Face cache, and fetched into that cache only when
asked (download.py). Any folder of the form of `weights/mini` is a preset too, named by its path:

    preset.json                 see `read_preset`
    lgm/                        config.json, model.safetensors
    multiview/                  unet, vae, scheduler, and the encoders it has, in diffusers' layout
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub import constants

from ..core.errors import LGMError
from ..core.files import replacing
from ..core.messages import PresetInfo
from ..core.paths import read_regular
from .configs import LARGEST
from .weights import CheckedFiles, File, Weights, file_sha256

ModelPart = Literal["lgm", "image", "text"]
Mode = Literal["image", "text"]

BUNDLED = Path(__file__).resolve().parent.parent / "weights"
DOWNLOAD_COMMAND = "python -m lgm_blender.worker models --download"

# Of the 1000 steps of training, the published "leading" spacing takes every (1000 // steps)th: with more
# than 500 steps it would start from the middle of the noise, and with 1000 outside of it.
MAX_STEPS = 500
MAX_SAMPLES = 16  # they are sampled at once, so they need so many times the memory of one

# Files that load without a complaint and give wrong results: their quaternions are normalised over the wrong axis.
ROTATION_BUG = "5a7ab3128a73dce6d2927d5c7c7ec79a7f7ca885fec960db86d991f272fe2e9d"

NEGATIVE_PROMPT = (
    "ugly, blurry, pixelated obscure, unnatural colors, poor lighting, dull, unclear, cropped, lowres, low quality, "
    "artifacts, duplicate"
)

# Short names of diffusers' classes; a preset.json may use either.
SCHEDULERS = {"ddim": "DDIMScheduler", "unipc": "UniPCMultistepScheduler", "dpm": "DPMSolverMultistepScheduler"}

# Switches of preset.json, false where they are missing; presets that were trained before have two by their old names.
FLAGS = (
    "match_colors",
    "keep_image",
    "refine",
    "matte_views",
    "level_first",
    "tell_generated",
    "remove_floaters",
)
OLD_FLAGS = {"refine": "redraw", "remove_floaters": "clear_haze"}


@dataclass(frozen=True)
class Preset:
    """A set of weights and the settings that suit them.

    Attributes:
        name: As requests name it.
        label: As users see it.
        version: Of the weights.
        modes: What it can start from.
        weights: The models of its parts; 'image' and 'text' are the multi-view models of the two modes.
        steps, guidance: Defaults of each mode.
        scheduler: A class of diffusers, one of SCHEDULERS' values.
        negative_prompt: Default.
        match_colors: Whether views of an image get its colours (multiview.colors); for models whose own drift.
        keep_image: Whether the view from the image's side is the image itself, and the others are sampled to go with
            it; for models that were trained with the image as that view, recentred as here.
        samples: In each mode, how many samples of the views are averaged (MultiViewPipeline); 1 where none is given.
        refine: Whether such a mean is made sharp again by SDEdit (MultiViewPipeline).
        matte_views: Whether the views of a text are cut out and framed together; for models whose background is not
            white.
        level_first: Whether LGM knows cameras only as a whole so turned that the first one is level.
        tell_generated: Whether LGM is told which views of an image are generated, even if each is a single sample; for
            one that has learnt what to make of such views.
        remove_floaters: Whether faint Gaussians around the object are left out (floaters.py); for models that are
            unsure.
    """

    name: str
    label: str
    version: str
    modes: tuple[Mode, ...]
    weights: dict[ModelPart, Weights] = field(repr=False)
    steps: dict[Mode, int]
    guidance: dict[Mode, float]
    scheduler: str
    negative_prompt: str = ""
    match_colors: bool = False
    keep_image: bool = False
    samples: dict[Mode, int] = field(default_factory=dict)
    refine: bool = False
    matte_views: bool = False
    level_first: bool = False
    tell_generated: bool = False
    remove_floaters: bool = False

    def mode(self, image: bool) -> Mode:
        """Which multi-view model serves a request.

        Raises:
            LGMError: If the preset has none for it.
        """
        mode: Mode = "image" if image else "text"
        if mode not in self.modes:
            needed = "an image" if mode == "text" else "a text"
            raise LGMError(f"The preset '{self.name}' can't start from {mode} alone. Give {needed}.")
        return mode

    def locate(self, part: ModelPart) -> Path:
        """The folder of one of its models, all files there and of their size.

        Raises:
            LGMError: (kind 'weights') if a file is missing or cut short.
        """
        folder, faults = self.weights[part].locate()
        if folder is None:
            what = ", ".join(faults[:2]) + (f" and {len(faults) - 2} more" if len(faults) > 2 else "")
            raise LGMError(f"The weights of the preset '{self.name}' are not whole: {what}. {self.remedy()}", "weights")
        return folder

    def verify(self, part: ModelPart, checked: CheckedFiles, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Compare a model's files with their SHA-256, where it is known.

        Raises:
            LGMError: (kind 'weights') if one differs, or is the published file with the rotation bug.
        """
        folder = self.locate(part)
        for name, file in self.weights[part].files.items():
            path = folder / name
            if not (file.sha256 or (part == "lgm" and path.suffix == ".safetensors")):
                continue
            found = checked.sha256(path, cancelled)
            if found == ROTATION_BUG:
                raise LGMError(
                    f"{path} is the LGM file whose rotations are wrong (model_fp16.safetensors). Use "
                    "model_fp16_fixrot.safetensors in its place.",
                    "weights",
                )
            if file.sha256 and found != file.sha256:
                raise LGMError(
                    f"{path} is damaged: it is not the file it should be. Delete it. {self.remedy()}", "weights"
                )

    def remedy(self) -> str:
        """What to do about weights that are missing or damaged."""
        if any(weights.repository for weights in self.weights.values()):
            return f"Fetch them with: {DOWNLOAD_COMMAND} {self.name}"
        if self.name == "mini":
            return "They come with the extension: install its release zip again."
        return "Copy the preset's folder again."

    def published(self, modes: Sequence[Mode] = ("image", "text")) -> list[Weights]:
        """Those of its models, for `modes`, that can be fetched."""
        parts = ("lgm", *(mode for mode in self.modes if mode in modes))
        return [self.weights[part] for part in parts if self.weights[part].repository]

    def terms(self, modes: Sequence[Mode] = ("image", "text")) -> list[str]:
        """What the user should know before its published models are fetched: a line for each, and where they go."""
        lines = [
            f"{weights.repository}: {weights.size / 1e9:.1f} GB, licence {weights.licence} "
            f"(https://huggingface.co/{weights.repository})"
            for weights in self.published(modes)
        ]
        return [*lines, f"They go into {constants.HF_HUB_CACHE}"] if lines else []

    def info(self) -> PresetInfo:
        """What `initialize` tells of it: ready if at least one mode is, with the modes that are."""
        faults, folders = {}, {}
        for part, weights in self.weights.items():
            folders[part], found = weights.locate()
            if folders[part] is None:
                faults[part] = found
        ready = [mode for mode in self.modes if not faults.keys() & {"lgm", mode}]
        if ready:
            return PresetInfo(self.name, self.label, list(ready), True, text_model=str(folders[ready[-1]]))
        first = next(iter(faults.values()))[0]
        problem = f"Its weights are missing: {first}. {self.remedy()}"
        return PresetInfo(self.name, self.label, list(self.modes), False, problem, "\n".join(self.terms()))


_CONFIGURATIONS = (
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
)

# What Tang et al. published (arXiv 2402.05054), and the multi-view models their code uses. No code of theirs is among
# the files. The commits, and the hashes that reference measurements don't cover, are those that public repositories
# give (TippingGame/LevelUpAgent: modules/model3d/lgm-lab.manifest.json, read from Hugging Face's API; an NPU port's
# report for MVDream's U-Net); where two sources give a hash they agree. MVDream's commit stands nowhere in public.
PUBLISHED = Preset(
    name="lgm",
    label="LGM (published)",
    version="ashawkey/LGM fixrot",
    modes=("image", "text"),
    weights={
        "lgm": Weights(
            {
                "model_fp16_fixrot.safetensors": File(
                    830_126_160, "744d6324656342c64f871308e73db97f0eb51858d94329b30090e986a6d050ab"
                )
            },
            repository="ashawkey/LGM",
            revision="bc0097d24ffc5efc2e6a216edd579128f85f53ab",
            licence="MIT",
            size=830_126_160,
        ),
        "image": Weights(
            {
                **dict.fromkeys(_CONFIGURATIONS, File()),
                "feature_extractor/preprocessor_config.json": File(),
                "image_encoder/config.json": File(),
                "unet/diffusion_pytorch_model.safetensors": File(
                    1_883_435_904, "28d8b241a54125fa0a041c1818a5dcdb717e6f5270eea1268172acd3ab0238e0"
                ),
                "image_encoder/model.safetensors": File(
                    1_261_595_704, "2a56cfd4ffcf40be097c430324ec184cc37187f6dafef128ef9225438a3c03c4"
                ),
                "text_encoder/model.safetensors": File(
                    680_820_392, "bc1827c465450322616f06dea41596eac7d493f4e95904dcb51f0fc745c4e13f"
                ),
                "vae/diffusion_pytorch_model.safetensors": File(
                    167_335_342, "3e4c08995484ee61270175e9e7a072b66a6e4eeb5f0c266667fe1f45b90daf9a"
                ),
            },
            repository="ashawkey/imagedream-ipmv-diffusers",
            revision="73a034178e748421506492e91790cc62d6aefef5",
            licence="OpenRAIL",
            size=3_995_000_000,
        ),
        "text": Weights(
            {
                **dict.fromkeys(_CONFIGURATIONS, File()),
                "unet/diffusion_pytorch_model.safetensors": File(
                    sha256="9ff839dd8c11591c2faa8efca41ac8145be8878b8ebf7cc92255fdcab0e09e53"
                ),
                "text_encoder/model.safetensors": File(),
                "vae/diffusion_pytorch_model.safetensors": File(),
            },
            repository="ashawkey/mvdream-sd2.1-diffusers",
            licence="OpenRAIL",
            size=2_580_000_000,
        ),
    },
    steps={"image": 30, "text": 30},
    guidance={"image": 5.0, "text": 7.5},
    scheduler=SCHEDULERS["ddim"],
    negative_prompt=NEGATIVE_PROMPT,
    matte_views=True,
    level_first=True,
)


def read_preset(folder: Path, name: str = "") -> Preset:
    """A preset that is a folder. Its preset.json holds

        {"name": "mini", "label": "Mini (bundled)", "version": "1", "modes": ["image"],
         "steps": {"image": 20}, "guidance": {"image": 4.0}, "scheduler": "unipc", "negative_prompt": "",
         "match_colors": true, "keep_image": true, "samples": {"image": 4}, "refine": true,
         "tell_generated": true, "remove_floaters": true,
         "files": {"lgm/model.safetensors": {"size": 123, "sha256": "..."}, ...}}

    and in place of a folder multiview may name the preset whose multi-view model it shares: "multiview": "lgm".

    Args:
        folder: Holds preset.json, lgm and mostly multiview.
        name: What requests call it; the file's own name if ''.

    Raises:
        LGMError: (kind 'weights') if there is no preset.json, or it is damaged.
    """
    path = folder / "preset.json"
    try:
        values = json.loads(read_regular(path, LARGEST))
        modes = tuple(values["modes"])
        if not modes or not set(modes) <= {"image", "text"}:
            raise ValueError("modes")
        files = {name: File(int(facts["size"]), str(facts["sha256"])) for name, facts in values["files"].items()}
        for file in files:
            if not set(file) & {"\\", ":"} and not {"..", "."} & {*PurePosixPath(file).parts} and file[:1] != "/":
                continue
            raise ValueError(f"the file {file!r} lies elsewhere")
        if shared := values.get("multiview"):
            if str(shared).startswith(("//", "\\\\")):  # Windows would tell that machine the user's password hash
                raise ValueError("multiview is on another machine")
            multiview = find_preset(str(shared)).weights
        else:
            multiview = dict.fromkeys(modes, Weights(_below(files, "multiview/"), folder / "multiview"))
        preset = Preset(
            name=name or str(values["name"]),
            label=str(values["label"]),
            version=str(values["version"]),
            modes=modes,
            weights={
                "lgm": Weights(_below(files, "lgm/"), folder / "lgm"),
                **{mode: multiview[mode] for mode in modes},
            },
            steps={mode: int(values["steps"][mode]) for mode in modes},
            guidance={mode: float(values["guidance"][mode]) for mode in modes},
            scheduler=SCHEDULERS.get(values["scheduler"], values["scheduler"]),
            negative_prompt=str(values.get("negative_prompt", "")),
            samples={mode: int(count) for mode, count in values.get("samples", {}).items()},
            **{flag: values.get(flag, values.get(OLD_FLAGS.get(flag), False)) for flag in FLAGS},
        )
        for flag in FLAGS:
            if not isinstance(getattr(preset, flag), bool):
                raise ValueError(f"{flag} must be true or false")
        for what, values, low, high in (
            ("samples", preset.samples, 1, MAX_SAMPLES),
            ("steps", preset.steps, 1, MAX_STEPS),
            ("guidance", preset.guidance, 0, 100),
        ):
            if not all(low <= value <= high for value in values.values()):
                raise ValueError(f"{what} must be from {low} to {high}")
        if preset.scheduler not in SCHEDULERS.values() or not all(w.files for w in preset.weights.values()):
            raise ValueError("scheduler or files")
    except OSError as error:
        raise LGMError(
            f"{folder} is no preset: {path} can't be read ({error.strerror or error}). Choose another folder.",
            "weights",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise LGMError(f"{path} is damaged: {error}. Copy the preset's folder again.", "weights") from error
    return preset


def _below(files: dict[str, File], prefix: str) -> dict[str, File]:
    return {name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)}


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """The "files" of a preset.json: size and SHA-256 of everything below `folder` / lgm and multiview."""
    paths = sorted(path for part in ("lgm", "multiview") for path in (folder / part).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }


def write_preset(folder: Path, name: str, label: str, base: str, level_first: bool | None = None) -> None:
    """Make `folder`, which holds an LGM in lgm/, a preset that shares the multi-view model and settings of another.

    Args:
        folder: Without a folder multiview.
        name, label: The new preset's.
        base: Name or folder of the other preset. A folder that shares a model itself gives the name it shares.
        level_first: See Preset; None takes the other one's.
    """
    preset = find_preset(base)
    if Path(base).is_dir():
        values = json.loads((Path(base) / "preset.json").read_text(encoding="utf-8"))
        base = values.get("multiview", str(Path(base).absolute()))
    values = {
        "name": name,
        "label": label,
        "version": "1",
        "modes": list(preset.modes),
        "steps": preset.steps,
        "guidance": preset.guidance,
        "scheduler": preset.scheduler,
        "negative_prompt": preset.negative_prompt,
        "samples": preset.samples,
        **{flag: getattr(preset, flag) for flag in FLAGS},
        "level_first": preset.level_first if level_first is None else level_first,
        "multiview": base,
        "files": file_table(folder),
    }
    with replacing(folder / "preset.json") as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())


def find_preset(name: str) -> Preset:
    """The preset of a name, or in a folder.

    Raises:
        LGMError: If there is none (kind 'bad_input'), or its folder holds none (kind 'weights').
    """
    if name == PUBLISHED.name:
        return PUBLISHED
    with suppress(OSError):  # a name too long for any file
        if (BUNDLED / name / "preset.json").is_file() and name == Path(name).name:
            return read_preset(BUNDLED / name)
    if name == "mini":
        raise LGMError(
            f"The bundled models are missing: there is no {BUNDLED / name}. Install the extension's release zip again.",
            "weights",
        )
    with suppress(OSError):
        if Path(name).is_dir():
            return read_preset(Path(name), name)
    known = ", ".join(f"'{preset}'" for preset in preset_names())
    raise LGMError(f"There is no preset '{name[:200]}'. Choose {known}, or the folder of one.")


def preset_names() -> list[str]:
    """The presets that need no path."""
    found = {path.parent.name for path in BUNDLED.glob("*/preset.json")} | {"mini"}
    return [*sorted(found), PUBLISHED.name]


def preset_infos() -> list[PresetInfo]:
    """What `initialize` tells of every preset. Sizes are checked, contents are not."""
    infos = []
    for name in preset_names():
        try:
            infos.append(find_preset(name).info())
        except LGMError as error:
            infos.append(PresetInfo(name, name.capitalize(), ["image"], False, error.message))
    return infos
