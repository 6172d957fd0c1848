"""Judge a preset on objects it has not seen: from four true views, from one image, from a text.

The protocol is in docs/evaluation.md, what is shown and compared in truth.py, the figures in metrics.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...core.cameras import (
    RADIUS,
    VIEW_AZIMUTHS,
    evaluation_poses,
    intrinsics,
    orbit_camera,
    orbit_cameras,
    view_matrices,
)
from ...core.errors import LGMError
from ...core.files import output_error, replacing, write_together
from ...core.gaussians import Gaussians
from ..devices import device_name, explain_out_of_memory, resolve_device
from ..haze import without_haze
from ..lgm import gaussians_from_views
from ..matting import matte, recenter
from ..models import CheckedFiles, Preset, find_preset
from ..multiview.colors import finish_views
from ..multiview.pipeline import MultiViewPipeline
from ..pipeline import FRAMES_TO_LGM, check_output, guessed_views, load_preset_lgm, side_by_side, versions
from ..rendering import render
from .contact_sheet import Row, contact_sheet, error_picture, four_in_one, tile
from .lpips import LPIPS
from .lpips import default_file as default_lpips
from .metrics import Pictures, psnr, scores
from .text_scores import ClipScore, Retrieval
from .truth import INPUTS, SIZE, LeftOut, ObjectsZip, Truth, ViewFolders

Mode = Literal["reconstruct", "image", "text"]
Source = ObjectsZip | ViewFolders
Progress = Callable[[str, int, int, str], None]  # the mode, how many objects of how many are done, and the last one

RESULTS = "results.json"
SHOWN = (1, 3, 6)  # which of the eight judged views are on the sheets
SIDES = ((15, 45), (15, 225))  # elevation and azimuth from which the sheet shows what a text became
LEAST = 0.01  # share of the frame that something must cover not to count as empty

# What is judged, in the order and by the names of the table.
NAMES = {
    "prediction": "prediction",
    "repeated_input": "input view repeated",
    "blank": "blank white",
}
FIGURES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "iou": "IoU", "haze": "haze"}


@dataclass
class Options:
    """How to judge; see `evaluate`."""

    device: str
    lpips: LPIPS | None
    limit: int | None
    views_cache: Path | None
    progress: Progress
    checked: CheckedFiles = field(default_factory=CheckedFiles)


def evaluate(
    preset: str | Path,
    data: str | Path | None,
    modes: Sequence[Mode] | None,
    output: str | Path,
    *,
    lgm: Path | None = None,
    lpips: Path | None = None,
    prompts: Path | None = None,
    views_cache: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    sheet_rows: int = 12,
    sheet_size: int = 96,
    progress: Progress = lambda mode, done, total, name: None,
) -> dict[str, Any]:
    """Judge a preset and write results.json and a contact sheet for each mode.

    Args:
        preset: Its name, or its folder.
        data: An objects.zip, or a folder of training views (docs/data.md), whose `val` objects are taken. May be None
            for texts of one's own.
        modes: 'reconstruct' from four true views, 'image' from one, 'text' from captions; None for the first two, or
            what of them the preset can do.
        output: Folder for the results, made if missing.
        lgm: A safetensors file with other weights for the preset's LGM, to be judged in its place.
        lpips: LPIPS weights (lpips.convert); by default those that lpips.fetch left. Without, LPIPS is left out.
        prompts: A text file with a prompt a line, instead of the objects' captions.
        views_cache: Folder that keeps the generated views, so that another LGM is judged on the very same ones.
        limit: Take only the first so many objects or prompts.
        device: 'auto', 'cpu' or 'cuda'.
        overwrite: Whether results in `output` may be replaced.
        sheet_rows: Objects on a sheet, at even steps from the best to the worst.
        sheet_size: Side in pixels of a sheet's pictures.
        progress: Called after each object.

    Returns:
        What is in results.json (docs/evaluation.md).

    Raises:
        LGMError: With a sentence for the user; nothing is written then, but to `views_cache`.
    """
    found = find_preset(str(preset))
    if modes is None:
        modes = ["reconstruct", *(mode for mode in ("image",) if mode in found.modes)]
    modes = list(dict.fromkeys(modes))
    for mode in modes:
        if mode != "reconstruct":
            found.mode(mode == "image")
    if limit is not None and limit < 1:
        raise LGMError(f"At least one object must be judged, not {limit}.")
    folder = check_output(str(output))
    names = [*(f"{mode}.png" for mode in modes), RESULTS]
    taken = [name for name in names if (folder / name).exists()]
    if taken and not overwrite:
        raise LGMError(
            f"{folder} already holds results ({', '.join(taken)}). Choose another folder, or allow overwriting.",
            "output",
        )
    if views_cache is not None:
        views_cache = check_output(str(views_cache))
    texts = read_prompts(prompts) if prompts is not None else None
    if data is None and (texts is None or set(modes) != {"text"}):
        raise LGMError("There are no objects to judge on. Give an objects.zip or a folder with --data.")
    device = resolve_device(device)
    source = open_data(Path(data), limit) if data is not None else None
    lpips_file = lpips or default_lpips()
    network = None
    if lpips or lpips_file.is_file():
        network = LPIPS.from_file(lpips_file).to(device)

    options = Options(device, network, limit, views_cache, progress)
    results: dict[str, Any] = {
        "preset": {"name": found.name, "version": found.version},
        "lgm": str(lgm) if lgm else None,
        "data": str(data) if data is not None else None,
        "size": SIZE,
        "device": device_name(device),
        "versions": versions(),
        "lpips": network is not None,
        "files": names,
        "modes": {},
    }
    files: dict[Path, bytes] = {}
    try:
        judged_lgm = _load_lgm(found, lgm, options)
        for mode in modes:
            if mode == "reconstruct":
                section, rows, groups = _reconstruct(judged_lgm, source, options, sheet_size)
            elif mode == "image":
                section, rows, groups = _image(found, judged_lgm, source, options, sheet_size)
            else:
                section, rows, groups = _text(found, judged_lgm, source, texts, options, sheet_size)
            results["modes"][mode] = section
            files[folder / f"{mode}.png"] = contact_sheet(
                f"{found.label}: {mode}",
                groups,
                rows,
                size=sheet_size,
                count=sheet_rows,
                note=_note(section),
            )
    except Exception as error:
        sentence = explain_out_of_memory(error)
        if sentence is None:
            raise
        raise LGMError(sentence, "out_of_memory") from error
    files[folder / RESULTS] = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder / RESULTS, error) from error
    write_together(files)
    return results


def open_data(path: Path, limit: int | None) -> Source:
    """The objects to judge on.

    Raises:
        LGMError: If there are none.
    """
    if not path.exists():
        raise LGMError(f"There is no {path}. Give an objects.zip, or a folder of training views.")
    return ViewFolders(path, limit) if path.is_dir() else ObjectsZip(path, limit)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        LGMError: If it can't be read, or has none.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise LGMError(f"{path} can't be read ({error.strerror or error}). Give a text file.") from error
    except UnicodeDecodeError as error:
        raise LGMError(f"{path} is no text in UTF-8. Save it as such.") from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise LGMError(f"{path} has no prompts. Write one a line.")
    return prompts


# The modes
# ---------


def _truths(
    source: Source, mode: str, left_out: list[dict[str, str]], options: Options
) -> Iterator[tuple[dict[str, Any], Truth]]:
    """Each object's entry in the results, to be filled in, and what there is to see of it. Tells how it went."""
    count = len(source.objects)
    for number, (object_id, caption) in enumerate(source.objects):
        entry: dict[str, Any] = {"id": object_id, "caption": caption}
        try:
            yield entry, source.truth(number, placed=mode == "image")
            words = _words(entry)
        except LeftOut as reason:
            left_out.append({"id": object_id, "reason": str(reason)})
            words = f"{object_id} is left out: {reason}"
        options.progress(mode, number + 1, count, words)


def _reconstruct(
    lgm: torch.nn.Module, source: Source, options: Options, size: int
) -> tuple[dict[str, Any], list[Row], list]:
    entries, rows, left_out = [], [], []
    for entry, truth in _truths(source, "reconstruct", left_out, options):
        rgb, alpha = on_white(truth.pixels, options.device)
        inputs = _pictures(rgb[:INPUTS])
        began = time.perf_counter()
        gaussians = _visible(gaussians_from_views(lgm, inputs, poses=truth.poses[:INPUTS]))
        seconds = {"gaussians": time.perf_counter() - began}
        judged = Pictures(rgb[INPUTS:], alpha[INPUTS:])
        drawn = draw(gaussians, truth.poses[INPUTS:], options.device)
        contenders = {
            "prediction": drawn,
            "repeated_input": Pictures(
                rgb[:INPUTS], alpha[:INPUTS], nearest(truth.poses[INPUTS:], truth.poses[:INPUTS])
            ),
            "blank": blank(len(judged.rgb), options.device),
        }
        entry["scores"] = scores(judged, contenders, options.lpips)
        entries.append(entry | {"gaussians": len(gaussians), "empty": _is_empty(drawn), "seconds": seconds})
        tiles = [tile(four_in_one(inputs), size), *_comparison(drawn.rgb, judged.rgb, size)]
        rows.append(Row(entry["caption"], _lines(entry), tiles, entry["scores"]["prediction"]["psnr"]))
    section = {"cameras": _cameras(), **_summary(entries, left_out), "left_out": left_out, "objects": entries}
    return section, rows, [("input", ["four views"]), *_comparison_columns()]


def _image(
    preset: Preset, lgm: torch.nn.Module, source: Source, options: Options, size: int
) -> tuple[dict[str, Any], list[Row], list]:
    generator = ViewGenerator(preset, "image", options)
    entries, rows, left_out = [], [], []
    for entry, truth in _truths(source, "image", left_out, options):
        picture = photo_input(truth)
        views, seconds = generator(entry["id"], image=picture, elevation=truth.elevation)
        began = time.perf_counter()
        gaussians = _visible(gaussians_from_views(lgm, views, truth.elevation, guessed=generator.guessed), preset)
        seconds["gaussians"] = time.perf_counter() - began

        rgb, alpha = on_white(truth.pixels, options.device)
        judged = Pictures(rgb[INPUTS:], alpha[INPUTS:])
        drawn = draw(gaussians, truth.poses[INPUTS:], options.device)
        given, given_alpha = rgb[:1], alpha[:1]
        if truth.redrawn:
            given = _tensor(picture[None], options.device)
            given_alpha = torch.from_numpy(truth.photo[None, ..., 3]).to(options.device) / 255
        every = torch.zeros(len(judged.rgb), dtype=torch.long, device=options.device)
        contenders = {
            "prediction": drawn,
            "repeated_input": Pictures(given, given_alpha, every),
            "blank": blank(len(judged.rgb), options.device),
        }
        entry |= {"smaller": truth.smaller, "scores": scores(judged, contenders, options.lpips)}
        if truth.redrawn:  # the generated views by themselves; the first one shows what was given
            unseen = Pictures(rgb[1:INPUTS])
            contenders = {
                "prediction": Pictures(_tensor(views[1:], options.device)),
                "repeated_input": Pictures(given, None, every[: len(unseen.rgb)]),
                "blank": blank(len(unseen.rgb), options.device),
            }
            entry["views_scores"] = scores(unseen, contenders, options.lpips)
        entries.append(entry | {"gaussians": len(gaussians), "empty": _is_empty(drawn), "seconds": seconds})
        tiles = [tile(picture, size), tile(four_in_one(views), size), *_comparison(drawn.rgb, judged.rgb, size)]
        rows.append(Row(entry["caption"], _lines(entry), tiles, entry["scores"]["prediction"]["psnr"]))
    section = {
        "cameras": _cameras(),
        "settings": generator.settings | {"clear_haze": preset.clear_haze},
        **_summary(entries, left_out),
        "smaller": float(np.mean([entry["smaller"] for entry in entries])),
        "left_out": left_out,
        "objects": entries,
    }
    return section, rows, [("input", ["image"]), ("generated", ["four views"]), *_comparison_columns()]


def _text(
    preset: Preset,
    lgm: torch.nn.Module,
    source: Source | None,
    texts: list[str] | None,
    options: Options,
    size: int,
) -> tuple[dict[str, Any], list[Row], list]:
    owner: dict[str, int] = {}  # a caption's object
    retrieval = None
    if texts is None:
        for number, (_, caption) in enumerate(source.objects):
            if caption.strip():
                owner.setdefault(caption.strip(), number)
        texts = list(owner)
        if not texts:
            raise LGMError("The objects have no captions. Give prompts in a file.")
        if options.lpips is not None:
            retrieval, owner = _retrieval(source, owner, options)
    texts = texts[: options.limit]
    clip = ClipScore.find()
    score = ClipScore(clip[1], options.device) if clip else None

    generator = ViewGenerator(preset, "text", options)
    poses = np.concatenate([orbit_cameras(), [orbit_camera(*side) for side in SIDES]])
    entries, rows = [], []
    for number, prompt in enumerate(texts):
        views, seconds = generator(prompt, prompt=prompt)
        began = time.perf_counter()
        gaussians = _visible(gaussians_from_views(lgm, views, guessed=generator.guessed), preset)
        seconds["gaussians"] = time.perf_counter() - began
        drawn = draw(gaussians, poses, options.device)
        pictures = _tensor(views, options.device)
        entry: dict[str, Any] = {
            "prompt": prompt,
            "empty": _is_empty(drawn),
            "consistency": psnr(drawn.rgb[: len(views)], pictures).mean().item(),
        }
        if score is not None:
            entry["clip"] = score(drawn.rgb[: len(views)], prompt)
        if prompt in owner and retrieval is not None:
            entry["rank"] = retrieval.rank(pictures, owner[prompt])
        entries.append(entry | {"gaussians": len(gaussians), "seconds": seconds})
        lines = [f"consistency {entry['consistency']:.1f} dB"]
        lines += [f"CLIP {entry['clip']:.1f}"] if score is not None else []
        lines += [f"retrieval: {entry['rank']} of {len(owner)}"] if "rank" in entry else []
        tiles = [tile(picture, size) for picture in (*views, *_pictures(drawn.rgb[len(views) :]))]
        rows.append(Row(prompt, lines, tiles, -entry.get("rank", number)))
        options.progress("text", number + 1, len(texts), f"{prompt}: {', '.join(lines)}")
    section = {
        "settings": generator.settings | {"clear_haze": preset.clear_haze},
        "non_empty": float(np.mean([not entry["empty"] for entry in entries])),
        "consistency": float(np.mean([entry["consistency"] for entry in entries])),
        "clip": {"model": clip[0], "score": float(np.mean([entry["clip"] for entry in entries]))} if clip else None,
        "retrieval": _ranks([entry["rank"] for entry in entries if "rank" in entry], len(owner)) if retrieval else None,
        "objects": entries,
    }
    generated = [f"{azimuth}°" for azimuth in VIEW_AZIMUTHS]
    columns = [("generated", generated), ("Gaussians", [f"{azimuth}°, from above" for _, azimuth in SIDES])]
    return section, rows, columns


def _retrieval(source: Source, owner: dict[str, int], options: Options) -> tuple[Retrieval | None, dict[str, int]]:
    """The true objects to find the right one among, if there are two or more, and each caption's place in them."""
    pictures, places = [], {}
    for done, (caption, number) in enumerate(owner.items(), 1):
        with contextlib.suppress(LeftOut):
            truth = source.truth(number, placed=True)
            places[caption] = len(pictures)
            pictures.append(on_white(truth.pixels[:INPUTS], options.device)[0])
        options.progress("objects", done, len(owner), caption)
    return (Retrieval(options.lpips, pictures) if len(pictures) > 1 else None), places


def _ranks(ranks: list[int], objects: int) -> dict[str, float]:
    return {
        "objects": objects,
        "first": float(np.mean([rank == 1 for rank in ranks])),
        "first_five": float(np.mean([rank <= 5 for rank in ranks])),
        "median_rank": float(np.median(ranks)),
        "chance_median_rank": (objects + 1) / 2,
    }


# The models
# ----------


def _load_lgm(preset: Preset, file: Path | None, options: Options) -> torch.nn.Module:
    if file is None:
        preset.verify("lgm", options.checked)
    return load_preset_lgm(preset, options.device, file)


class ViewGenerator:
    """The preset's multi-view model with the preset's own settings, as a user's request runs it.

    The seed follows from what is asked for. Views are rounded to 8 bits, as they are in a file, so that those from the
    cache are the same as those that were just made.
    """

    def __init__(self, preset: Preset, mode: Literal["image", "text"], options: Options):
        self.cache = options.views_cache
        self.settings = {
            "steps": preset.steps[mode],
            "guidance": preset.guidance[mode],
            "scheduler": preset.scheduler,
            "negative_prompt": preset.negative_prompt,
            "match_colors": preset.match_colors,
            "keep_image": preset.keep_image,
            "samples": preset.samples.get(mode, 1),
            "redraw": preset.redraw,
        }
        self.guessed = guessed_views(self.settings["samples"], preset.keep_image and mode == "image")
        folder = preset.locate(mode)
        preset.verify(mode, options.checked)
        self.model = MultiViewPipeline.from_folder(folder, options.device, scheduler=preset.scheduler)
        weights = {name: options.checked.sha256(folder / name) for name in sorted(preset.weights[mode].files)}
        self.state = json.dumps([weights, self.settings]).encode()

    def __call__(
        self, name: str, prompt: str = "", image: np.ndarray | None = None, elevation: float = 0.0
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Four views [4, S, S, 3] in LGM's order, 0 to 1, and the seconds they took, if they were not in the cache."""
        wish = json.dumps([prompt, round(elevation, 3)]).encode() + (b"" if image is None else image.tobytes())
        digest = hashlib.sha256(self.state + wish).hexdigest()
        path = self.cache / f"{digest[:24]}.png" if self.cache is not None else None
        if path is not None and (views := _read_views(path)) is not None:
            return views, {}
        began = time.perf_counter()
        frames = self.model(
            prompt,
            image,
            negative_prompt=self.settings["negative_prompt"],
            steps=self.settings["steps"],
            guidance=self.settings["guidance"],
            elevation=elevation,
            seed=zlib.crc32(name.encode()),
            keep_image=self.settings["keep_image"],
            samples=self.settings["samples"],
            redraw=self.settings["redraw"],
        )
        seconds = time.perf_counter() - began
        views = frames[list(FRAMES_TO_LGM)]
        views = finish_views(views, image, match=self.settings["match_colors"], keep=self.settings["keep_image"])
        pixels = np.uint8(views * 255 + 0.5)
        if path is not None:
            buffer = io.BytesIO()
            Image.fromarray(side_by_side(pixels)).save(buffer, "PNG")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise output_error(path, error) from error
            with replacing(path) as file:
                file.write(buffer.getvalue())
        return np.float32(pixels) / 255, {"views": seconds}


def _read_views(path: Path) -> np.ndarray | None:
    with contextlib.suppress(OSError, ValueError, SyntaxError):  # missing, or damaged: they are made again
        pixels = np.asarray(Image.open(path).convert("RGB"))
        return np.float32(np.stack(np.split(pixels, 4, axis=1))) / 255
    return None


def photo_input(truth: Truth) -> np.ndarray:
    """What the pipeline makes of an object's photo: [256, 256, 3] in 0 to 1, cut out and recentred, on white."""
    pixels = truth.photo.astype(np.float32)
    alpha = pixels[..., 3:]
    straight = np.where(alpha > 0, pixels[..., :3] * 255 / np.maximum(alpha, 1), 0)
    rgba = np.uint8(np.concatenate([straight, alpha], -1).clip(0, 255) + 0.5)
    return recenter(matte(Image.fromarray(rgba))[0])


def _visible(gaussians: Gaussians, preset: Preset | None = None) -> Gaussians:
    """As the pipeline saves them: of generated views, of which a preset may have the haze cleared."""
    gaussians = gaussians.select(gaussians.finite()).prune()
    return without_haze(gaussians) if preset and preset.clear_haze else gaussians


# Pictures
# --------


def draw(gaussians: Gaussians, poses: np.ndarray, device: str) -> Pictures:
    """Gaussians on white from camera-to-world poses [V, 4, 4], all that are within 1 of the middle's depth."""
    values = torch.from_numpy(gaussians.to_array()).to(device)
    distances = np.linalg.norm(poses[:, :3, 3], axis=1)
    near, far = max(float(distances.min()) - 1, 0.1), float(distances.max()) + 1
    picture = render(values, view_matrices(poses), intrinsics(SIZE), SIZE, background=1.0, near=near, far=far)
    return Pictures(picture.rgb.movedim(-1, 1).clamp(0, 1), picture.alpha[..., 0])


def blank(views: int, device: str) -> Pictures:
    """White, for a number of views."""
    white = torch.ones(1, 3, SIZE, SIZE, device=device)
    return Pictures(
        white, torch.zeros(1, SIZE, SIZE, device=device), torch.zeros(views, dtype=torch.long, device=device)
    )


def nearest(poses: np.ndarray, among: np.ndarray) -> Tensor:
    """For each camera [V, 4, 4] the one of `among` whose direction from the middle is nearest, [V]."""
    directions = [p[:, :3, 3] / np.linalg.norm(p[:, :3, 3], axis=1, keepdims=True) for p in (poses, among)]
    return torch.from_numpy((directions[0] @ directions[1].T).argmax(1))


def on_white(pixels: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """Premultiplied uint8 [V, S, S, 4] as colours [V, 3, S, S] and alphas [V, S, S] in 0 to 1."""
    values = torch.from_numpy(pixels).to(device).float().movedim(-1, 1) / 255
    return values[:, :3] + 1 - values[:, 3:], values[:, 3]


def _tensor(pictures: np.ndarray, device: str) -> Tensor:
    """Pictures [V, H, W, 3] as [V, 3, SIZE, SIZE]."""
    values = torch.from_numpy(np.ascontiguousarray(pictures, np.float32)).movedim(-1, 1).to(device)
    if values.shape[-2:] != (SIZE, SIZE):
        values = F.interpolate(values, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return values


def _pictures(tensor: Tensor) -> np.ndarray:
    return tensor.movedim(1, -1).cpu().numpy()


def _is_empty(drawn: Pictures) -> bool:
    return bool((drawn.alpha > 0.5).float().mean() < LEAST)


def _comparison(prediction: Tensor, truth: Tensor, size: int) -> list[np.ndarray]:
    tiles = []
    for view in SHOWN:
        a, b = _pictures(prediction[view : view + 1])[0], _pictures(truth[view : view + 1])[0]
        tiles += [tile(a, size), tile(b, size), tile(error_picture(a, b), size)]
    return tiles


def _comparison_columns() -> list[tuple[str, list[str]]]:
    _, angles = evaluation_poses("")
    names = ["prediction", "truth", "error"]
    return [(f"azimuth {angles[INPUTS + i][1]:.0f}°, elevation {angles[INPUTS + i][0]:.0f}°", names) for i in SHOWN]


# Figures
# -------


def _cameras() -> dict[str, Any]:
    _, angles = evaluation_poses("")
    pairs = [[float(value) for value in pair] for pair in angles]
    return {"radius": RADIUS, "inputs": pairs[:INPUTS], "judged": pairs[INPUTS:]}  # elevation, azimuth in degrees


def _summary(entries: list[dict[str, Any]], left_out: list[dict[str, str]]) -> dict[str, Any]:
    """Means over the objects."""
    if not entries:
        raise LGMError("No object can be judged; of the first one: {id}: {reason}.".format(**left_out[0]))

    def means(key: str) -> dict[str, dict[str, float]]:
        return {
            name: {figure: float(np.mean([entry[key][name][figure] for entry in entries])) for figure in figures}
            for name, figures in entries[0][key].items()
        }

    result: dict[str, Any] = {"scores": means("scores")}
    if "views_scores" in entries[0]:
        result["views_scores"] = means("views_scores")
    result["non_empty"] = float(np.mean([not entry["empty"] for entry in entries]))
    return result


def _lines(entry: dict[str, Any]) -> list[str]:
    """The figures beside a row of a sheet."""
    found, repeated = entry["scores"]["prediction"], entry["scores"]["repeated_input"]
    second = [f"{FIGURES[name]} {found[name]:.3f}" for name in ("lpips", "iou") if name in found]
    return [
        f"PSNR {found['psnr']:.1f} dB   SSIM {found['ssim']:.3f}",
        "   ".join(second),
        f"input repeated: {repeated['psnr']:.1f} dB",
        *(["placed smaller"] if entry.get("smaller") else []),
    ]


def _words(entry: dict[str, Any]) -> str:
    found = entry["scores"]["prediction"]
    figures = [f"{FIGURES[name]} {value:.{1 if name == 'psnr' else 3}f}" for name, value in found.items()]
    return f"{entry['caption']}: {', '.join(figures)}"


def _note(section: dict[str, Any]) -> str:
    """A sheet's second line."""
    count = len(section["objects"])
    if "scores" not in section:
        words = f"{count} prompts:  {section['non_empty']:.0%} not empty;  consistency {section['consistency']:.1f} dB"
        found = section["retrieval"]
        return words + (f";  retrieval: median rank {found['median_rank']:.0f} of {found['objects']}" if found else "")
    parts = []
    for key, name in NAMES.items():
        found = section["scores"][key]
        parts.append(f"{name} {found['psnr']:.1f} dB" + (f", LPIPS {found['lpips']:.3f}" if "lpips" in found else ""))
    return f"{count} objects:  " + ";  ".join(parts)


def table(results: dict[str, Any]) -> str:
    """The results as text: a line for each thing judged, a column for each figure."""
    lines = []
    for mode, section in results["modes"].items():
        count = len(section["objects"])
        if "scores" not in section:
            lines += [f"{mode} ({count} prompts)", f"  {'not empty':24}{section['non_empty']:8.0%}"]
            lines += [f"  {'consistency':24}{section['consistency']:8.2f} dB"]
            if section["clip"]:
                lines += [f"  {'CLIP score':24}{section['clip']['score']:8.2f} ({section['clip']['model']})"]
            if found := section["retrieval"]:
                lines += [
                    f"  {'retrieval: first':24}{found['first']:8.0%}",
                    f"  {'retrieval: first five':24}{found['first_five']:8.0%}",
                    f"  {'retrieval: median rank':24}{found['median_rank']:8.1f} of {found['objects']} "
                    f"(chance: {found['chance_median_rank']:.1f})",
                ]
            continue
        for title, key in ((f"{mode} ({count} objects)", "scores"), ("  generated views", "views_scores")):
            if key not in section:
                continue
            figures = list(section[key]["prediction"])
            lines.append(f"{title:26}" + "".join(f"{FIGURES[figure]:>8}" for figure in figures))
            for name, words in NAMES.items():
                values = section[key][name]
                cells = "".join(
                    f"{values[figure]:8.{2 if figure == 'psnr' else 3}f}" if figure in values else " " * 8
                    for figure in figures
                )
                lines.append(f"  {words:24}{cells}")
    return "\n".join(lines)
