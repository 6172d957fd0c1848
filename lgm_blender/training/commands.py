"""The command lines of the stages that make the bundled models, and how training's commands run.

What a stage does is in stages.py, which needs training's own packages; this file needs none.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from ..core.cameras import VIEWS
from ..worker import console

PACKAGES = "accelerate moderngl trimesh tokenizers matplotlib"  # training's own, beside the worker's
STAGES = {
    "render": "Bundled models: render objects, variants of them or procedural shapes into sets.",
    "vae": "Bundled models: train the VAE on sets of views; --init is a preset's multiview/.",
    "encode": "Bundled models: do ahead what multiview does first with each set of orbits.",
    "multiview": "Bundled models: train the multi-view model on sets of orbits; --init is a preset's multiview/.",
    "generate": "Bundled models: let a preset's multi-view model make the views of sets of placed objects.",
    "lgm": "Bundled models: train LGM on sets of views, and on generated ones.",
    "bundle": "Bundled models: write the preset's folder of what was trained.",
}
OPTIONS = {
    "--objects": {"metavar": "ZIP", "type": Path, "required": True, "help": "an objects.zip"},
    "--limit": {"type": int, "default": None, "help": "only the first objects, to try things out"},
    "--sets": {"nargs": "*", "default": ["train"], "help": "train, train-1 (a variant), procedural (default: train)"},
    "--views": {"type": int, "default": VIEWS, "help": f"how many an object has in sets of views (default: {VIEWS})"},
    "--processes": {"type": int, "default": 8, "help": "how many run at once on the CPU (default: 8)"},
    "--lpips": {"metavar": "FILE", "type": Path, "default": None, "help": "LPIPS weights, see lpips.convert"},
    "--init": {"type": Path, "help": "weights to start from; for multiview and vae a preset's multiview/"},
}
KINDS = (
    "views from all round, for vae and lgm; orbits of four views and their image, for encode and multiview; or objects "
    "placed as large as in use, as the set NAME-placed, for generate"
)


def run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """`console.run`, which says how to get training's packages where one is missing."""
    pip = f"{sys.executable} -m pip install"
    if importlib.util.find_spec("pip") is None:  # uv makes environments without it
        pip = f"uv pip install --python {sys.executable}"
    return console.run(parser, arguments, remedy=f"Training needs it. Type: {pip} {PACKAGES}")


def add_stages(commands) -> None:
    """Add the stages to a parser's commands. What is not given of a training's settings stays as it is there."""

    def add(name: str, *shared: str) -> argparse.ArgumentParser:
        about = STAGES[name]
        parser = commands.add_parser(name, help=about, description=about, argument_default=argparse.SUPPRESS)
        parser.add_argument("--work", type=Path, required=True, help="folder for views, checkpoints and logs")
        for option in shared:
            parser.add_argument(option, **OPTIONS[option])
        parser.set_defaults(run=lambda options: _stage(name, options))
        return parser

    objects = ("--objects", "--limit")
    render = add("render", *objects, "--views", "--processes")
    render.add_argument("--kind", choices=("views", "orbits", "placed"), default="views", help=KINDS)
    look = render.add_mutually_exclusive_group()
    look.add_argument("--variant", type=int, default=0, help="objects stretched and in other colours")
    look.add_argument("--procedural", type=int, default=0, help="so many procedural shapes, as the set 'procedural'")
    render.add_argument("--split", choices=("train", "val"), nargs="*", default=("val", "train"), help="which objects")
    render.add_argument("--size", type=int, default=256, help="of the pictures in pixels (default: 256)")

    vae = add("vae", *objects, "--sets", "--views", "--lpips", "--init")
    vae.add_argument("--decoder-only", action="store_true", help="leave the latents as they are")
    add("encode", *objects, "--sets", "--init")
    multiview = add("multiview", *objects, "--sets", "--init")

    generate = add("generate", *objects, "--sets", "--processes")
    generate.add_argument("--preset", default="mini", help="whose multi-view model makes the views")
    generate.add_argument("--steps", type=int, default=None, help="of denoising (default: the preset's)")
    generate.add_argument("--batch", type=int, default=128, help="objects at once (default: 128)")
    generate.add_argument("--seed", type=int, default=0)

    lgm = add("lgm", *objects, "--sets", "--views", "--lpips", "--init")
    lgm.add_argument("--supervised-inputs", type=int, help="how many input views are supervised")
    lgm.add_argument("--supervised-others", type=int, help="how many other views are")
    lgm.add_argument("--surface-weight", type=float, help="of the distances' loss")
    lgm.add_argument("--lpips-from", type=float, help="part of the run before LPIPS comes in")
    lgm.add_argument("--no-augmentation", dest="augmentation", action="store_false", help="views as rendered")
    lgm.add_argument("--generated", nargs="+", default=(), help="sets of `generate`, as further input")
    lgm.add_argument("--generated-share", type=float, help="of the steps")

    for parser in (vae, multiview, lgm):  # RunSettings
        length = parser.add_mutually_exclusive_group()
        length.add_argument("--seconds", type=float, default=600, help="without compilation (default: 600)")
        length.add_argument("--until", type=float, help="seconds since 1970 when it ends; on lent machines")
        length.add_argument("--steps", type=int, help="such a run gives the same numbers each time")
        parser.add_argument("--batch", type=int, help="samples a step and process")
        parser.add_argument("--learning-rate", "--rate", type=float)
        parser.add_argument("--optimizer", choices=("adamw", "muon"))
        parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
        parser.add_argument("--no-compile", dest="compile", action="store_false")
        parser.add_argument("--seed", type=int)

    add("bundle").add_argument("--output", type=Path, required=True, help="the preset's folder")


def _stage(name: str, options: argparse.Namespace) -> int:
    from . import stages

    getattr(stages, name)(options)
    return 0
