"""Training views of Blender's objects, rendered evenly lit: folders that training/data/dataset.py reads.

    blender --background --python …/lgm_blender/blender/training_views.py -- --input FILE-OR-FOLDER --output DIR
    python …/lgm_blender/blender/training_views.py -- …          with a Python that has bpy

Of a .blend the object assets are rendered, or, where it has none, each object of its scene with all its children; any
other file is one object. One line of progress per object goes to stderr, one JSON object per object to stdout. Objects
that are broken or empty are reported and left out. The exit code is 0 if any views were made or are there, else 1.
"""

if __name__ == "__main__":  # run as a script, this file belongs to no package; it goes on as a module of its own
    import pathlib
    import runpy

    runpy.run_path(str(pathlib.Path(__file__).with_name("script.py")))["run"](__file__)

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import bpy

from ..core.arguments import integer
from ..core.cameras import VIEWS
from ..core.errors import LGMError
from ..core.formats.transforms import caption_from_name, unique_names
from ..core.paths import expanded
from . import command_line, compat
from .command_line import EXIT_FAILED, EXIT_OK, ProgressLine, Write, tell
from .scene.training_items import Item, object_items
from .scene.view_maker import ViewMaker


def make_parser() -> argparse.ArgumentParser:
    """The batch's command line."""
    parser = argparse.ArgumentParser(
        prog="training_views.py", description="Renders training views of objects, in Blender, without a window."
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help=f"files ({', '.join(_OPENERS)}) or folders of them")
    add("--output", required=True, metavar="DIR", help="folder of the data set; made if missing")
    add("--collection", metavar="NAME", help="of a .blend, render the objects of this collection")
    add("--size", type=integer(16, 4096), default=256, help="of the views in pixels (default: %(default)s)")
    add(
        "--views",
        type=integer(4, VIEWS),
        default=VIEWS,
        help="of each object, 4 to 36 (default: %(default)s)",
    )
    add("--split", choices=("train", "val"), default="", help="what the objects are for")
    add("--overwrite", action="store_true", help="render objects again whose folders are there")
    return parser


def run(arguments: Sequence[str], write: Write | None = None) -> int:
    """Runs a batch; the exit code. It blocks until all is done, and opens new files in this Blender.

    Args:
        arguments: The command line after '--'.
        write: Receives one line of JSON per object, without a newline; printed to stdout by default.
    """
    return command_line.run(make_parser(), _run, arguments, write)


def _run(options: argparse.Namespace, write: Write) -> int:
    try:
        files = find_files(options.input)
    except LGMError as error:
        tell(error.message)
        return EXIT_FAILED
    good = bad = 0

    def note(result: dict) -> None:
        nonlocal good, bad
        good, bad = good + result["ok"], bad + (not result["ok"])
        write(json.dumps(result, ensure_ascii=False))

    for number, (file, name) in enumerate(files.items(), 1):
        line = ProgressLine(f"[{number}/{len(files)}] {file.name}")
        try:
            items = _open(file, name, options.collection, len(files) > 1)
        except (LGMError, RuntimeError, OSError) as error:
            reason = error.message if isinstance(error, LGMError) else f"it could not be read: {str(error).strip()}"
            line.end(f"left out: {reason}")
            note({"name": name, "ok": False, "error": reason})
            continue
        maker = ViewMaker(
            items,
            expanded(options.output).absolute(),
            size=options.size,
            views=options.views,
            overwrite=options.overwrite,
            split=options.split,
            tell=note,
        )
        try:
            while maker.step():
                line.show(f"{maker.current}, view {maker.view} of {maker.views}, {maker.done} of {len(items)} done")
        finally:
            maker.cancel()
        for result in maker.results:
            if not result["ok"]:
                tell(f"{result['name']} is left out: {result['error']}")
        if maker.error:
            line.end(maker.error)
            return EXIT_FAILED
        made = sum(result["ok"] and not result["skipped"] for result in maker.results)
        there = sum(result["skipped"] for result in maker.results)
        line.end(f"{made} of {len(items)} made{f', {there} were there' if there else ''}")
    tell(f"{good} objects in {options.output}, {bad} left out.")
    return EXIT_OK if good else EXIT_FAILED


def find_files(inputs: Sequence[str]) -> dict[Path, str]:
    """The files to open, and a name for each: its own, or where it lies in a folder, as the fast maker has it.

    Raises:
        LGMError: If one is not there, can't be opened, or a folder holds none.
    """
    files = {}
    for name in inputs:
        path = expanded(name).absolute()
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix.lower() in _OPENERS and f.is_file())
            if not found:
                raise LGMError(
                    f"{path} holds nothing that Blender could open ({', '.join(_OPENERS)}). Choose another folder."
                )
            files |= {file: "_".join(file.relative_to(path).with_suffix("").parts) for file in found}
        elif not path.is_file():
            raise LGMError(f"There is no file or folder {path}. Choose another.")
        elif path.suffix.lower() not in _OPENERS:
            raise LGMError(f"{path} is of no kind that is known here. Choose one of {', '.join(_OPENERS)}.")
        else:
            files[path] = path.stem
    return dict(zip(files, unique_names(list(files.values())), strict=True))


def _open(file: Path, name: str, collection: str | None, several: bool) -> list[Item]:
    """Opens a file in place of the current one; its items."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    _OPENERS[file.suffix.lower()](str(file))
    if file.suffix.lower() != ".blend":
        # All of it is one object, whatever it consists of.
        everything = list(bpy.context.scene.objects)
        return [Item(name, caption_from_name(file.stem), lambda: contextlib.nullcontext(everything))]
    objects = bpy.context.scene.objects
    if collection is not None:
        if collection not in bpy.data.collections:
            raise LGMError(f"{file} has no collection '{collection}'. Choose one that it has.")
        objects = bpy.data.collections[collection].all_objects
    elif any(thing.asset_data for thing in bpy.data.objects):
        objects = [thing for thing in bpy.data.objects if thing.asset_data]
    items = object_items(objects, f"{name}_" if several else "")
    if not items:
        raise LGMError(f"{file} has no objects with a surface. Choose another file or collection.")
    return items


def _open_blend(path: str) -> None:
    bpy.ops.wm.open_mainfile(filepath=path, load_ui=False, use_scripts=False)


def _import_gltf(path: str) -> None:
    bpy.ops.import_scene.gltf(filepath=path)


_OPENERS = {
    ".blend": _open_blend,
    ".glb": _import_gltf,
    ".gltf": _import_gltf,
    ".obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    # A PLY doesn't say which way is up; the fast maker takes it as y, and so LGM's own meshes have it.
    ".ply": lambda path: bpy.ops.wm.ply_import(filepath=path, forward_axis="NEGATIVE_Z", up_axis="Y"),
    ".fbx": compat.import_fbx,
    **dict.fromkeys((".usd", ".usda", ".usdc", ".usdz"), lambda path: bpy.ops.wm.usd_import(filepath=path)),
}


def main() -> None:
    """Runs the command line of this process and ends the process."""
    command_line.main(run, "Stopped. The same command goes on from here.")
