"""Judge a preset on objects it has not seen: from four ground-truth views, from one image, from a text.

The protocol is in docs/evaluation.md, what is shown and compared in ground_truth.py, the figures in metrics.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ...core.errors import LGMError
from ...core.files import write_together
from ...worker.devices import device_name, explain_out_of_memory, resolve_device
from ...worker.outputs import check_output, make_folder, versions
from ...worker.presets import find_preset
from ...worker.reconstruct import load_lgm
from ..data.placement import SIZE
from ..loops.lpips import LPIPS
from .contact_sheet import contact_sheet
from .ground_truth import ObjectsZip, ViewFolders
from .modes import Objects, Options, Progress, from_image, from_text, from_views
from .report import sheet_note

EvaluationMode = Literal["reconstruct", "image", "text"]

RESULTS = "results.json"


def evaluate(
    preset: str | Path,
    data: str | Path | None,
    modes: Sequence[EvaluationMode] | None,
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
        modes: 'reconstruct' from four ground-truth views, 'image' from one, 'text' from captions; None for the first
            two, or what of them the preset can do.
        output: Folder for the results, made if missing.
        lgm: A safetensors file with other weights for the preset's LGM, to be judged in its place.
        lpips: LPIPS weights (lpips.convert); by default those that lpips.fetch left. Without, LPIPS is left out.
        prompts: A text file with a prompt a line, instead of the objects' captions.
        views_cache: Folder that keeps the generated views, so that another LGM is judged on the very same ones.
        limit: Take only the first so many objects or prompts.
        device: One of messages.DEVICES.
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
    network = LPIPS.find(lpips, device)
    options = Options(device, network, limit, views_cache, sheet_size, progress)
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
        if lgm is None:
            found.verify("lgm", options.checked)
        model = load_lgm(found, device, lgm)
        for mode in modes:
            if mode == "reconstruct":
                judged = from_views(found, model, source, options)
            elif mode == "image":
                judged = from_image(found, model, source, options)
            else:
                judged = from_text(found, model, source, texts, options)
            results["modes"][mode] = judged.section
            files[folder / f"{mode}.png"] = contact_sheet(
                f"{found.label}: {mode}",
                judged.columns,
                judged.rows,
                size=sheet_size,
                count=sheet_rows,
                note=sheet_note(judged.section),
            )
    except Exception as error:
        sentence = explain_out_of_memory(error)
        if sentence is None:
            raise
        raise LGMError(sentence, "out_of_memory") from error
    files[folder / RESULTS] = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    make_folder(folder)
    write_together(files)
    return results


def open_data(path: Path, limit: int | None) -> Objects:
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
