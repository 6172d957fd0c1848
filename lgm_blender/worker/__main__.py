"""The worker: python -m lgm_blender.worker serve | generate | sample | reconstruct | matte | batch | mesh |
convert | models."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

try:
    from ..core.arguments import count_or_auto, positive
    from ..core.batch.options import add_options
    from ..core.cutout import NETWORK
    from ..core.cutout import add_options as add_matting_options
    from ..core.errors import LGMError
    from ..core.formats.splat_files import WRITTEN
    from ..core.messages import (
        DEVICES,
        FACES,
        JOBS,
        TEXTURE_SIZE,
        VIEW_NAMES,
        ConvertRequest,
        MatteRequest,
        OutputKind,
        to_params,
    )
    from .meshing.settings import MeshSettings, Method, Up
except ImportError as error:
    sys.exit(f"The worker's Python ({sys.executable}) lacks {error.name}. Install the worker again.")
from .console import DownloadPrinter, end_with_stdin, print_progress, run


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns:
        0 if all went well, 1 after an error (a sentence on stderr), 130 after Ctrl-C.
    """
    first = (sys.argv[1:] if arguments is None else arguments)[:1]
    if first and first[0] in ("views", "train", "evaluate"):  # where they were before training was a subpackage
        print(f"Error: type python -m lgm_blender.training {first[0]} in its place.", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(prog="python -m lgm_blender.worker", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_serve,
        _add_generate,
        _add_sample,
        _add_reconstruct,
        _add_matte,
        _add_batch,
        _add_mesh,
        _add_convert,
        _add_models,
    ):
        add(commands)
    return run(parser, arguments)


def _add_serve(commands) -> None:
    about = "Serve Blender: JSON-RPC on stdin and stdout, until stdin ends."
    parser = commands.add_parser("serve", help=about, description=about)
    parser.add_argument("--idle-minutes", type=float, default=5.0, help="free the models after that long without a job")
    about = "fail a job with which this process holds more of the computer's memory, and end"
    parser.add_argument("--memory", type=positive, metavar="GB", help=about)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from .server import serve

    serve(options.idle_minutes, options.memory)
    return 0


def _add_generate(commands) -> None:
    about = "Make Gaussians, a mesh or both of an image, a text or both. Prints the paths of the files it made."
    parser = commands.add_parser("generate", help=about, description=about)
    _add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, help="0 to 4294967295 (default: 0)")
    about = "sample so many seeds from this one on, and take the one whose views agree best (default: 1)"
    parser.add_argument("--candidates", type=int, default=1, metavar="N", help=about)
    _add_results(parser)
    parser.set_defaults(run=_generate)


def _add_sample(commands) -> None:
    about = (
        "Sample the four views of several seeds, to choose from. Prints the paths of the views, the best seed's first."
    )
    parser = commands.add_parser("sample", help=about, description=about)
    _add_sampling(parser)
    about = "0 to 4294967295 each, at most 16 (default: 0 1 2 3)"
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="N", help=about)
    for view in VIEW_NAMES:
        about = f"the view from the {view}, to which the others are sampled; square"
        parser.add_argument(f"--keep-{view}", metavar="FILE", default="", help=about)
    parser.set_defaults(run=_sample)


def _add_reconstruct(commands) -> None:
    about = "Make Gaussians, a mesh or both of four views of an object. Prints the paths of the files it made."
    parser = commands.add_parser("reconstruct", help=about, description=about)
    about = "from the front, its right (+x), the back and the left, at one height and distance"
    parser.add_argument("--views", nargs=4, metavar=("FRONT", "RIGHT", "BACK", "LEFT"), required=True, help=about)
    about = "they are square and as LGM's cameras see the object; else they are cut out and framed together"
    parser.add_argument("--framed", action="store_true", help=about)
    parser.add_argument("--elevation", type=float, default=0.0, help="degrees of the cameras above the object")
    _add_place(parser)
    _add_results(parser)
    parser.set_defaults(run=_reconstruct)


def _add_place(parser: argparse.ArgumentParser) -> None:
    """Where results go, of which models, computed where."""
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--name", default="", help="of the results; by default the image's, or the text's first words")
    parser.add_argument("--preset", default="mini", help="mini, lgm, or the folder of one (default: mini)")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--json", action="store_true", help="print the whole result as one line of JSON")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """What views are sampled of, and how."""
    parser.add_argument("--image", metavar="FILE", help="a picture of one object")
    parser.add_argument("--prompt", metavar="TEXT", default="", help="what it is; may go without an image")
    _add_place(parser)
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
    add_matting_options(parser)
    _add_mask(parser)


def _add_results(parser: argparse.ArgumentParser) -> None:
    """What is made of the views."""
    parser.add_argument("--overwrite", action="store_true", help="replace results of that name; else a number is added")
    parser.add_argument("--output-kind", choices=get_args(OutputKind), default="splats", help="NAME.ply, .glb or both")
    about = "of the splats; PLY is always written"
    parser.add_argument("--splat-formats", nargs="+", choices=WRITTEN, default=["ply"], help=about)
    _add_mesh_settings(parser)


def _add_mask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mask", metavar="FILE", help="a picture whose white is the object, in place of both")


def _generate(options: argparse.Namespace) -> int:
    return _run_job("generate", options, previews=False)


def _sample(options: argparse.Namespace) -> int:
    kept = [getattr(options, f"keep_{view}") for view in VIEW_NAMES]
    kept = [file and str(Path(file).absolute()) for file in kept]
    return _run_job("sample", options, previews=False, kept=kept if any(kept) else [])


def _reconstruct(options: argparse.Namespace) -> int:
    return _run_job("reconstruct", options, views=[str(Path(file).absolute()) for file in options.views])


def _run_job(method: str, options: argparse.Namespace, **values: Any) -> int:
    """Does a job as the options and `values` describe it, and prints what it made."""
    from .pipeline import Pipeline

    kind, _ = JOBS[method]
    asked = {field.name: getattr(options, field.name) for field in fields(kind) if field.name in options}
    for path in asked.keys() & {"output", "image", "mask"}:
        asked[path] = asked[path] and str(Path(asked[path]).absolute())
    result = getattr(Pipeline(), method)(kind(job=method, **asked | values), print_progress)
    for warning in result.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    print(json.dumps(to_params(result)) if options.json else "\n".join(result.files))
    return 0


def _add_matte(commands) -> None:
    about = "Cut the object out of an image as generate would. Prints the cut-out's path, and that of what models see."
    parser = commands.add_parser("matte", help=about, description=about)
    parser.add_argument("image", metavar="FILE", help="a picture of one object")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--name", default="", help="of the results; by default the image's")
    parser.add_argument("--overwrite", action="store_true", help="replace results of that name; else a number is added")
    add_matting_options(parser)
    _add_mask(parser)
    parser.set_defaults(run=_matte)


def _matte(options: argparse.Namespace) -> int:
    from .cutout import matte

    asked = {field.name: getattr(options, field.name) for field in fields(MatteRequest) if field.name in options}
    for path in ("output", "image", "mask"):
        asked[path] = asked[path] and str(Path(asked[path]).absolute())
    result = matte(MatteRequest(job="matte", **asked))
    for warning in result.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    print(f"cut out by: {result.matting}", file=sys.stderr)
    print(result.cutout, result.input, sep="\n")
    return 0


def _add_batch(commands) -> None:
    about = "Make splats or meshes of many images, on all GPUs of this machine or a Ray cluster: docs/batch.md."
    parser = commands.add_parser("batch", help=about, description=about)
    add_options(parser, "images")
    about = "how many processes work; auto: one for each GPU, else one for each machine (default: auto)"
    parser.add_argument("--processes", type=count_or_auto, default=None, metavar="N", help=about)
    about = "of a Ray cluster that runs, HOST:PORT or auto; without it Ray is started on this machine"
    parser.add_argument("--ray-address", metavar="ADDRESS", help=about)
    parser.set_defaults(run=_batch)


def _batch(options: argparse.Namespace) -> int:
    from .scale.batch import run_batch

    return run_batch(options)


def _add_mesh(commands) -> None:
    about = "Make a textured mesh of Gaussians. Prints the paths of the files it made."
    parser = commands.add_parser("mesh", help=about, description=about)
    parser.add_argument(
        "file", metavar="FILE", help="3D Gaussians: PLY, compressed PLY, SPZ, SOG, glTF, .splat, .ksplat"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--name", default="", help="of the results; by default the file's")
    parser.add_argument("--overwrite", action="store_true", help="replace results of that name; else a number is added")
    parser.add_argument("--formats", nargs="+", choices=("glb", "obj", "ply"), default=["glb", "obj", "ply"])
    _add_mesh_settings(parser)
    _add_up(parser)
    parser.add_argument(
        "--method",
        choices=get_args(Method),
        default="fusion",
        help="fusion of depth pictures; a density field fitted to pictures as in LGM's paper: minutes on a CPU; or "
        "screened Poisson, smooth where scans have gaps and noise, by pymeshlab (default: fusion)",
    )
    parser.add_argument("--remesh", action="store_true", help="triangles of one size, nearly equilateral, by pymeshlab")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--json", action="store_true", help="print files, timings and warnings as one line of JSON")
    parser.set_defaults(run=_mesh)


def _add_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--up",
        choices=get_args(Up),
        default="y",
        help="the file's axis that points up; of most captures it is -y: --up=-y (default: y, as of LGM, SPZ, glTF)",
    )


def _add_mesh_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--faces", type=int, default=FACES, help="triangles at most; a quad is two (default: %(default)s)"
    )
    parser.add_argument(
        "--texture-size", type=int, default=TEXTURE_SIZE, help="512, 1024, 2048 or 4096 (default: %(default)s)"
    )
    parser.add_argument("--quads", action="store_true", help="join triangles to quads where they can be")


def _mesh(options: argparse.Namespace) -> int:
    from .mesh_file import mesh_file

    result = mesh_file(
        options.file,
        options.output,
        MeshSettings.of(options),
        name=options.name,
        overwrite=options.overwrite,
        formats=tuple(options.formats),
        progress=print_progress,
    )
    for warning in result.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    print(json.dumps(asdict(result)) if options.json else "\n".join(result.files))
    return 0


def _add_convert(commands) -> None:
    about = "Write files of splats in other formats, y up. Prints the paths of the files it made."
    parser = commands.add_parser("convert", help=about, description=about)
    about = "3D Gaussians: PLY, compressed PLY, SPZ, SOG (also as a folder), glTF, .splat, .ksplat"
    parser.add_argument("files", nargs="+", metavar="FILE", help=about)
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the results, made if missing")
    parser.add_argument("--format", nargs="+", dest="formats", choices=WRITTEN, required=True, help="what to write")
    parser.add_argument("--overwrite", action="store_true", help="replace results of that name; else a number is added")
    _add_up(parser)
    parser.add_argument("--size", type=float, default=0.0, help="longest side of what is written (default: as it is)")
    parser.add_argument("--pad", action="store_true", help="PLY with normals and harmonics, for programs that insist")
    parser.add_argument("--json", action="store_true", help="print each result as one line of JSON")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from .convert import convert

    names = {field.name for field in fields(ConvertRequest)} & vars(options).keys() - {"output"}
    asked = {name: getattr(options, name) for name in names}
    failed = 0
    for file in options.files:  # one that can't be read must not stop the others
        source, output = (str(Path(path).absolute()) for path in (file, options.output))
        try:
            result = convert(ConvertRequest(job="convert", file=source, output=output, **asked))
        except LGMError as error:
            print(f"Error: {error.message}", file=sys.stderr)
            failed += 1
            continue
        for warning in result.warnings:
            print(f"Warning: {warning}", file=sys.stderr)
        print(json.dumps(to_params(result)) if options.json else "\n".join(result.files))
    return 1 if failed else 0


def _add_models(commands) -> None:
    about = "List the presets, check that their weights are whole, or fetch them."
    parser = commands.add_parser("models", help=about, description=about)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", metavar="PRESET", help="read all its files and compare them with their SHA-256")
    about = f"fetch what is missing into the Hugging Face cache; {NETWORK.name}: the matting network"
    group.add_argument("--download", metavar="PRESET", help=about)
    parser.add_argument("--mode", choices=("image", "text"), action="append", help="only what this mode needs")
    parser.add_argument("--until-stdin-ends", action="store_true", help="end with the program that started this")
    parser.set_defaults(run=_models)


def _models(options: argparse.Namespace) -> int:
    from . import presets
    from .weights import CheckedFiles

    if options.until_stdin_ends:
        end_with_stdin()
    if options.download == NETWORK.name:
        _fetch_network()
    elif options.download:
        from .download import download

        preset = presets.find_preset(options.download)
        modes = options.mode or preset.modes
        for line in preset.terms(modes):
            print(line, file=sys.stderr, flush=True)
        download(preset, modes, DownloadPrinter())
        print(f"The preset '{preset.name}' is here.")
    elif options.check:
        preset = presets.find_preset(options.check)
        checked = CheckedFiles()
        checked.entries.clear()  # asked for by hand, files are read again
        for part in ("lgm", *(options.mode or preset.modes)):
            preset.verify(part, checked)
            print(f"{part}: {preset.locate(part)} is whole.")
    else:
        for info in presets.preset_infos():
            state = f"ready, from {' or '.join(info.modes)}" if info.ready else info.problem
            print(f"{info.name}: {info.label}: {state}")
    return 0


def _fetch_network() -> None:
    from .download import fetch_network

    for line in NETWORK.terms():
        print(line, file=sys.stderr, flush=True)
    print(f"The matting network is here: {fetch_network(DownloadPrinter())}")


if __name__ == "__main__":
    sys.exit(main())
