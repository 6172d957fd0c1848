"""The three ways in which a preset is judged: from four ground-truth views, from one image, from a text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...core.cameras import RADIUS, VIEW_AZIMUTHS, evaluation_poses, orbit_camera, orbit_cameras
from ...core.errors import LGMError
from ...core.gaussians import Gaussians
from ...worker.lgm import LGM
from ...worker.presets import Preset
from ...worker.reconstruct import clean_up, given_settings, reconstruct
from ...worker.weights import CheckedFiles
from ..data.placement import INPUTS, LeftOut
from ..loops.lpips import LPIPS
from .contact_sheet import Row, error_picture, four_in_one, tile
from .ground_truth import GroundTruth, ObjectsZip, ViewFolders
from .metrics import psnr, scores
from .pictures import Pictures, as_array, as_tensor, blank, nearest, on_white, render_gaussians
from .report import row_lines, words
from .text_scores import ClipScore, Retrieval
from .view_sampler import ViewSampler, photo_input

Objects = ObjectsZip | ViewFolders
Progress = Callable[[str, int, int, str], None]  # the mode, how many objects of how many are done, and the last one
Columns = Sequence[tuple[str, Sequence[str]]]

SHOWN = (1, 3, 6)  # which of the eight judged views are on the sheets
SIDES = ((15, 45), (15, 225))  # elevation and azimuth from which the sheet shows what a text became


@dataclass
class Options:
    """How to judge; see `evaluate`."""

    device: str
    lpips: LPIPS | None
    limit: int | None
    views_cache: Path | None
    sheet_size: int
    progress: Progress
    checked: CheckedFiles = field(default_factory=CheckedFiles)


class Judged(NamedTuple):
    """A mode's section of results.json, and its contact sheet's rows and columns."""

    section: dict[str, Any]
    rows: list[Row]
    columns: Columns


def from_views(preset: Preset, lgm: LGM, source: Objects, options: Options) -> Judged:
    """LGM by itself: four ground-truth views go in."""
    settings = given_settings(preset)
    entries, rows, left_out = [], [], []
    for entry, target in _objects(source, "reconstruct", left_out, options):
        given = on_white(target.pixels[:INPUTS], options.device)
        began = time.perf_counter()
        gaussians = reconstruct(lgm, as_array(given.rgb), settings, poses=target.poses[:INPUTS])
        seconds = {"gaussians": time.perf_counter() - began}
        repeated = given._replace(views=nearest(target.poses[INPUTS:], target.poses[:INPUTS]))
        compared = _score(entry, gaussians, target, repeated, seconds, options)
        entries.append(entry)
        rows.append(_row(entry, [tile(four_in_one(as_array(given.rgb)), options.sheet_size), *compared]))
    section = {"cameras": _cameras(), **_summary(entries, left_out), "left_out": left_out, "objects": entries}
    return Judged(section, rows, [("input", ["four views"]), *_comparison_columns()])


def from_image(preset: Preset, lgm: LGM, source: Objects, options: Options) -> Judged:
    """The whole way from one image of a placed object."""
    sample = ViewSampler(preset, "image", options.device, options.views_cache, options.checked)
    entries, rows, left_out = [], [], []
    for entry, target in _objects(source, "image", left_out, options):
        picture = photo_input(target)
        views, seconds = sample(entry["id"], image=picture, elevation=target.elevation)
        gaussians = _reconstruct(lgm, views, sample, seconds, options, target.elevation)
        given = on_white(target.pixels[:1], options.device)
        if target.rerendered:
            alpha = torch.from_numpy(target.photo[None, ..., 3]).to(options.device) / 255
            given = Pictures(as_tensor(picture[None], options.device), alpha)
        every = torch.zeros(len(target.pixels) - INPUTS, dtype=torch.long, device=options.device)
        entry["smaller"] = target.smaller
        compared = _score(entry, gaussians, target, given._replace(views=every), seconds, options)
        if target.rerendered:  # the generated views by themselves; the first one shows what was given
            unseen = Pictures(on_white(target.pixels[1:INPUTS], options.device).rgb)
            contenders = {
                "prediction": Pictures(as_tensor(views[1:], options.device)),
                "repeated_input": Pictures(given.rgb, None, every[: len(unseen.rgb)]),
                "blank": blank(len(unseen.rgb), options.device),
            }
            entry["views_scores"] = scores(unseen, contenders, options.lpips)
        entries.append(entry)
        tiles = [tile(each, options.sheet_size) for each in (picture, four_in_one(views))]
        rows.append(_row(entry, [*tiles, *compared]))
    section = {
        "cameras": _cameras(),
        "settings": asdict(sample.settings) | {"scheduler": preset.scheduler},
        **_summary(entries, left_out),
        "smaller": float(np.mean([entry["smaller"] for entry in entries])),
        "left_out": left_out,
        "objects": entries,
    }
    return Judged(section, rows, [("input", ["image"]), ("generated", ["four views"]), *_comparison_columns()])


def from_text(preset: Preset, lgm: LGM, source: Objects | None, texts: list[str] | None, options: Options) -> Judged:
    """The whole way from `texts`, or from the objects' captions."""
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

    sample = ViewSampler(preset, "text", options.device, options.views_cache, options.checked)
    poses = np.concatenate([orbit_cameras(), [orbit_camera(*side) for side in SIDES]])
    entries, rows = [], []
    for number, prompt in enumerate(texts):
        views, seconds = sample(prompt, prompt=prompt)
        gaussians = _reconstruct(lgm, views, sample, seconds, options)
        rendered = render_gaussians(gaussians, poses, options.device)
        pictures = as_tensor(views, options.device)
        entry: dict[str, Any] = {
            "prompt": prompt,
            "empty": rendered.empty,
            "consistency": psnr(rendered.rgb[: len(views)], pictures).mean().item(),
        }
        if score is not None:
            entry["clip"] = score(rendered.rgb[: len(views)], prompt)
        if prompt in owner and retrieval is not None:
            entry["rank"] = retrieval.rank(pictures, owner[prompt])
        entries.append(entry | {"gaussians": len(gaussians), "seconds": seconds})
        lines = [f"consistency {entry['consistency']:.1f} dB"]
        lines += [f"CLIP {entry['clip']:.1f}"] if score is not None else []
        lines += [f"retrieval: {entry['rank']} of {len(owner)}"] if "rank" in entry else []
        tiles = [tile(each, options.sheet_size) for each in (*views, *as_array(rendered.rgb[len(views) :]))]
        rows.append(Row(prompt, lines, tiles, -entry.get("rank", number)))
        options.progress("text", number + 1, len(texts), f"{prompt}: {', '.join(lines)}")
    section = {
        "settings": asdict(sample.settings) | {"scheduler": preset.scheduler},
        "non_empty": float(np.mean([not entry["empty"] for entry in entries])),
        "consistency": float(np.mean([entry["consistency"] for entry in entries])),
        "clip": {"model": clip[0], "score": float(np.mean([entry["clip"] for entry in entries]))} if clip else None,
        "retrieval": _ranks([entry["rank"] for entry in entries if "rank" in entry], len(owner)) if retrieval else None,
        "objects": entries,
    }
    generated = [f"{azimuth}°" for azimuth in VIEW_AZIMUTHS]
    columns = [("generated", generated), ("Gaussians", [f"{azimuth}°, from above" for _, azimuth in SIDES])]
    return Judged(section, rows, columns)


def _objects(
    source: Objects, mode: str, left_out: list[dict[str, str]], options: Options
) -> Iterator[tuple[dict[str, Any], GroundTruth]]:
    """Each object's entry in the results, to be filled in, and what there is to see of it. Tells how it went."""
    count = len(source.objects)
    for number, (object_id, caption) in enumerate(source.objects):
        entry: dict[str, Any] = {"id": object_id, "caption": caption}
        try:
            yield entry, source.ground_truth(number, placed=mode == "image")
            told = words(entry)
        except LeftOut as reason:
            left_out.append({"id": object_id, "reason": str(reason)})
            told = f"{object_id} is left out: {reason}"
        options.progress(mode, number + 1, count, told)


def _reconstruct(
    lgm: LGM,
    views: np.ndarray,
    sample: ViewSampler,
    seconds: dict[str, float],
    options: Options,
    elevation: float = 0.0,
) -> Gaussians:
    """Gaussians of generated views, as the pipeline saves them; notes how long it took."""
    began = time.perf_counter()
    gaussians = reconstruct(lgm, views, sample.settings, elevation=elevation)
    gaussians = clean_up(gaussians, sample.settings, options.device)
    seconds["gaussians"] = time.perf_counter() - began
    return gaussians


def _score(
    entry: dict[str, Any],
    gaussians: Gaussians,
    target: GroundTruth,
    repeated: Pictures,
    seconds: dict[str, float],
    options: Options,
) -> list[np.ndarray]:
    """Fills in an object's entry, and gives the tiles that compare prediction and ground truth."""
    judged = on_white(target.pixels[INPUTS:], options.device)
    prediction = render_gaussians(gaussians, target.poses[INPUTS:], options.device)
    contenders = {
        "prediction": prediction,
        "repeated_input": repeated,
        "blank": blank(len(judged.rgb), options.device),
    }
    entry["scores"] = scores(judged, contenders, options.lpips)
    entry |= {"gaussians": len(gaussians), "empty": prediction.empty, "seconds": seconds}
    tiles = []
    for view in SHOWN:
        a, b = as_array(torch.stack([prediction.rgb[view], judged.rgb[view]]))
        tiles += [tile(each, options.sheet_size) for each in (a, b, error_picture(a, b))]
    return tiles


def _row(entry: dict[str, Any], tiles: list[np.ndarray]) -> Row:
    return Row(entry["caption"], row_lines(entry), tiles, entry["scores"]["prediction"]["psnr"])


def _retrieval(source: Objects, owner: dict[str, int], options: Options) -> tuple[Retrieval | None, dict[str, int]]:
    """The objects to find the right one among, if there are two or more, and each caption's place in them."""
    pictures, places = [], {}
    for done, (caption, number) in enumerate(owner.items(), 1):
        with contextlib.suppress(LeftOut):
            target = source.ground_truth(number, placed=True)
            places[caption] = len(pictures)
            pictures.append(on_white(target.pixels[:INPUTS], options.device).rgb)
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


def _comparison_columns() -> Columns:
    _, angles = evaluation_poses("")
    names = ["prediction", "ground truth", "error"]
    return [(f"azimuth {angles[INPUTS + i][1]:.0f}°, elevation {angles[INPUTS + i][0]:.0f}°", names) for i in SHOWN]


def _cameras() -> dict[str, Any]:
    _, angles = evaluation_poses("")
    pairs = [[float(value) for value in pair] for pair in angles]
    return {"radius": RADIUS, "inputs": pairs[:INPUTS], "judged": pairs[INPUTS:]}  # elevation, azimuth in degrees


def _summary(entries: list[dict[str, Any]], left_out: list[dict[str, str]]) -> dict[str, Any]:
    """Means over the objects."""
    if not entries:
        raise LGMError(
            "No object can be judged; of the first one: {id}: {reason}. Choose other data.".format(**left_out[0])
        )

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
