"""The part of a batch's command line that is the same in Blender and in the shell."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from .. import cutout
from ..arguments import integer, positive
from ..formats.splat_files import WRITTEN
from ..messages import DEVICES, FACES, MAX_CANDIDATES, TEXTURE_SIZE, OutputKind
from .items import Item

# What decides how a result looks: with another value it is made again.
SETTINGS = (
    *("prompt", "negative_prompt", "preset", "seed", "candidates", "steps", "guidance", "view_samples", "elevation"),
    *("output_kind", "splat_formats", "faces", "texture_size", "quads", "matting", "matting_threshold"),
)


def add_options(parser: argparse.ArgumentParser, inputs: str) -> None:
    """Adds the options.

    Args:
        inputs: What --input takes, for --help.
    """
    add = parser.add_argument
    add("--input", nargs="+", default=[], metavar="PATH", help=f"{inputs}, folders of them, lists (.csv)")
    add("--prompt", default="", metavar="TEXT", help="what it shows; without --input, what to make")
    add("--negative-prompt", default=None, metavar="TEXT", help="what the views should not show")
    add("--output", required=True, metavar="DIR", help="folder for the results; made if missing")
    add("--preset", default="mini", help="which models (default: %(default)s)")
    add("--seed", type=integer(0, 2**32 - 1), default=0, help="0 to 4294967295 (default: %(default)s)")
    about = "sample so many seeds from this one on, and take the one whose views agree best (default: %(default)s)"
    add("--candidates", type=integer(1, MAX_CANDIDATES), default=1, help=about)
    add("--steps", type=integer(1, 500), default=None, help="denoising steps (default: the preset's)")
    add("--guidance", type=float, default=None, help="guidance scale, 1 is none (default: the preset's)")
    add("--view-samples", type=integer(1, 16), default=None, help="average so many samples of the views; 1 is crispest")
    add("--elevation", type=float, default=0.0, help="degrees that the image's camera is above the object")
    add("--output-kind", choices=get_args(OutputKind), default="splats", help="NAME.ply, NAME.glb or both")
    about = "of the splats; PLY is always written (default: ply)"
    add("--splat-formats", nargs="+", choices=WRITTEN, default=["ply"], help=about)
    add("--faces", type=integer(100, 1_000_000), default=FACES, help="triangles at most (default: %(default)s)")
    add("--quads", action="store_true", help="join triangles to quads; for --faces each is two")
    sizes = (512, 1024, 2048, 4096)
    add("--texture-size", type=int, choices=sizes, default=TEXTURE_SIZE, help="of a mesh (default: %(default)s)")
    cutout.add_options(parser)
    add("--device", choices=DEVICES, default=None, help="what computes")
    add("--timeout", type=positive, default=None, metavar="SECONDS", help="give an item up after this long")
    about = "give an item up whose worker holds more of the computer's memory"
    add("--memory", type=positive, default=None, metavar="GB", help=about)
    about = "try an item again so often whose worker died, was too slow or had no memory (default: %(default)s)"
    add("--retries", type=integer(0, 100), default=1, metavar="N", help=about)
    about = "make what is finished again too, and replace results of the same name instead of adding a number"
    add("--overwrite", action="store_true", help=about)


def settings_of(options: argparse.Namespace, item: Item, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """What an item is made with: the command line's values, and over them its row's.

    Args:
        more: Names of further options that decide how a result looks.
    """
    return {name: getattr(options, name) for name in (*SETTINGS, *more)} | dict(item.values)
