"""The shell's batch: the same list, journal and summary as Blender's, without .blend and render."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...core.batch.items import find_items
from ...core.batch.journal import Journal
from ...core.batch.options import settings_of
from ...core.batch.progress import Progress
from ...core.batch.run import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Run, Task
from ...core.errors import LGMError
from ...core.messages import GenerateRequest, GenerateResult, from_params
from .. import outputs
from ..images import read_image
from ..presets import find_preset
from ..results import SUFFIXES
from .maker import Answer, settings_at_home
from .parcels import parcel_of

QUALITY = 75  # of thumbnails
STOPPED = 130  # the exit code after Ctrl-C


def run_batch(options: argparse.Namespace) -> int:
    """Runs the command: 0 if all went well, 1 if any failed, 130 if it was stopped.

    Raises:
        LGMError: If the command makes no sense, or nothing can be made.
    """
    options.prompt, options.device = options.prompt.strip(), options.device or "auto"
    if not options.input and not options.prompt:
        raise LGMError("There is nothing to make. Give --input, --prompt or both.")
    find_preset(options.preset)
    output = outputs.check_output(options.output)
    find = partial(find_items, options.input, options.prompt, output, blender=False)
    if splats := [str(item) for item in find().items if item.has_splats]:
        raise LGMError(f"{splats[0]} holds splats. Use the command 'convert' or 'mesh' for them, or Blender's batch.")
    outputs.make_folder(output)
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.closing(Journal(output)) as journal:
        found = find(names=journal.names)
        progress = Progress(len(found.items))
        for remark in found.remarks:
            progress.say(remark)
        run = Run(
            found.items,
            partial(settings_of, options),
            journal,
            progress,
            lambda line: print(line, flush=True),
            write_thumbnail,
            retries=options.retries,
            overwrite=options.overwrite,
        )
        try:
            if run.unfinished:
                _make_all(run, options)
        except KeyboardInterrupt:
            progress.say("Stopped. The same command goes on from here.")
            return STOPPED
        finally:
            run.close()
    progress.say(f"{run.totals()}. Look at {run.summary.path}")
    return 1 if run.bad else 0


def _make_all(run: Run, options: argparse.Namespace) -> None:
    try:
        import ray

        from .cluster import Cluster, choose_share, connect
    except ImportError as error:
        raise LGMError(
            f"The worker's Python lacks {error.name}, by which a batch shares its work. Install it: "
            "pip install 'ray>=2.48'",
            "worker",
        ) from None
    connect(options.ray_address, options.processes)
    try:
        share = choose_share(options.processes, options.device, [node for node in ray.nodes() if node["Alive"]])
        run.progress.workers = share.makers
        cluster = Cluster(
            run,
            partial(request_of, options, run.folder),
            partial(save, run.folder),
            partial(find_saved, run.folder),
            preset=options.preset,
            device=options.device,
            parcel=partial(parcel_of, options.preset),
            share=share,
            timeout=options.timeout,
            memory=options.memory,
        )
        with cluster:
            cluster.make_all()
    finally:
        ray.shutdown()


def request_of(options: argparse.Namespace, output: Path, task: Task) -> GenerateRequest:
    """What is asked for a task."""
    names = {field.name for field in fields(GenerateRequest)}
    values = {name: value for name, value in (vars(options) | task.settings).items() if name in names}
    source = task.item.source
    given = {"output": str(output), "image": source and str(source), "name": task.name}
    return GenerateRequest(job=task.name, **values | given)


def save(output: Path, task: Task, request: GenerateRequest, answer: Answer) -> dict[str, Any]:
    """Writes all files of an answer or none; what its record says of them.

    Raises:
        LGMError: (kind 'output') If they can't be written.
    """
    made: GenerateResult | None = None

    def contents(name: str) -> dict[str, bytes]:
        nonlocal made
        paths = {suffix: str(output / f"{name}{suffix}") for suffix in (*answer.files, ".json")}
        made = replace(
            answer.result,
            ply=paths.get(".ply"),
            glb=paths.get(".glb"),
            views=paths["_views.png"],
            input=paths.get("_input.png"),
            json=paths[".json"],
            splat_files=[str(output / f"{name}{_suffix(file, answer)}") for file in answer.result.splat_files],
            settings=settings_at_home(answer.result, request, name),
        )
        text = json.dumps(asdict(made), indent=2, ensure_ascii=False)
        return answer.files | {".json": text.encode(errors="backslashreplace") + b"\n"}

    outputs.save_together(output, task.name, SUFFIXES, contents, overwrite=request.overwrite, source=request.image)
    return _facts(made)


def _suffix(file: str, answer: Answer) -> str:
    return Path(file).name[len(Path(answer.result.json).stem) :]


def find_saved(output: Path, task: Task) -> dict[str, Any] | None:
    """What a task's record says if its files are there, of a batch that was killed before it could say so."""
    if not task.saved:
        return None
    try:
        result = from_params(GenerateResult, json.loads((output / f"{task.name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, LGMError):
        return None
    files = [result.ply, result.glb, result.views, *result.splat_files]
    return _facts(result) if all(Path(file).is_file() for file in files if file) else None


def _facts(result: GenerateResult) -> dict[str, Any]:
    files = {kind: path for kind in ("ply", "glb", "views", "json") if (path := getattr(result, kind))}
    files |= {"splat_files": result.splat_files} if result.splat_files else {}
    return {
        "name": Path(result.json).stem,
        "skipped": False,
        **files,
        "gaussians": result.gaussians,
        "faces": result.faces,
        "seed": result.settings.get("seed"),
        "warnings": result.warnings,
        "timings": result.timings,
    }


def write_thumbnail(picture: Path, target: Path) -> None:
    """Writes a small WebP of a picture.

    Raises:
        LGMError, OSError: If the one can't be read or the other not be written.
    """
    image = read_image(picture)
    image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT))
    image.save(target, "WEBP", quality=QUALITY)
