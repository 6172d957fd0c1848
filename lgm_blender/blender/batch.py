"""Many images become splats, meshes or both, one after the other, without a window.

    blender --background --python …/lgm_blender/blender/batch.py -- --input FILES-OR-FOLDER --output DIR
    python …/lgm_blender/blender/batch.py -- …          with a Python that has bpy

For each image: NAME.ply (the splats), NAME.glb (the mesh), NAME.blend (a scene with them), NAME.png (a render),
NAME_views.png (the four views) and NAME.json (every setting, the seed, the versions, the time of each stage). One line
of progress per image goes to stderr, one JSON object per image to stdout. The exit code is 0 if all went well, 1 if any
image failed, 2 if the command makes no sense. `run` is the same for a script that runs inside Blender.
"""

if __name__ == "__main__":  # run as a script, this file belongs to no package; it goes on as a module of its own
    import pathlib
    import runpy

    runpy.run_path(str(pathlib.Path(__file__).with_name("script.py")))["run"](__file__)

import argparse
import contextlib
import glob
import json
import os
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import bpy

from ..core.environment import PYTHON_VARIABLE
from ..core.errors import LGMError
from ..core.files import output_error, replacing
from ..core.messages import (
    FACES,
    TEXTURE_SIZE,
    GenerateRequest,
    GenerateResult,
    MeshRequest,
    OutputKind,
    from_params,
    to_params,
)
from . import compat, install, session
from .engine import Engine, log_folder, worker_command
from .scene import images, render, results, splats
from .ui import preferences

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_WORKER_FILES = {"ply": ".ply", "glb": ".glb", "json": ".json", "views": "_views.png", "input": "_input.png"}
_KIND_FILES = {"splats": ["ply"], "mesh": ["glb"], "both": ["ply", "glb"]}  # of them, which an output kind needs
LIT_SAMPLES = 64  # of NAME.blend where light falls on a mesh, which has noise
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


@dataclass(frozen=True)
class Item:
    """One thing to make: its image, or None for a prompt alone, and the stem of its files' names."""

    image: Path | None
    name: str

    def __str__(self) -> str:
        return self.image.name if self.image else self.name


def make_parser() -> argparse.ArgumentParser:
    """The batch's command line."""
    parser = argparse.ArgumentParser(
        prog="batch.py", description="Makes splats or meshes from images, in Blender, without a window."
    )
    add = parser.add_argument
    add("--input", nargs="+", default=[], metavar="PATH", help="images, or folders of images")
    add("--prompt", default="", metavar="TEXT", help="what it shows; without --input, what to make")
    add("--negative-prompt", default=None, metavar="TEXT", help="what the views should not show")
    add("--output", required=True, metavar="DIR", help="folder for the results; made if missing")
    add("--preset", default="mini", help="which models (default: %(default)s)")
    add("--seed", type=integer(0, 2**32 - 1), default=0, help="0 to 4294967295 (default: %(default)s)")
    add("--steps", type=integer(1, 500), default=None, help="denoising steps (default: the preset's)")
    add("--guidance", type=float, default=None, help="guidance scale, 1 is none (default: the preset's)")
    add("--view-samples", type=integer(1, 16), default=None, help="average so many samples of the views; 1 is crispest")
    add("--elevation", type=float, default=0.0, help="degrees that the image's camera is above the object")
    add("--output-kind", choices=get_args(OutputKind), default="splats", help="NAME.ply, NAME.glb or both")
    add("--faces", type=integer(100, 1_000_000), default=FACES, help="triangles at most (default: %(default)s)")
    add("--quads", action="store_true", help="join triangles to quads; for --faces each is two")
    sizes = (512, 1024, 2048, 4096)
    add("--texture-size", type=int, choices=sizes, default=TEXTURE_SIZE, help="of a mesh (default: %(default)s)")
    about = "longest side in NAME.blend, 0 as LGM makes it (default: %(default)s)"
    add("--object-size", type=float, default=results.SIZE, metavar="METRES", help=about)
    add("--device", choices=("auto", "cpu", "cuda"), default=None, help="what computes (default: the preferences')")
    add("--timeout", type=float, default=None, metavar="SECONDS", help="give an image up after this long")
    add("--blend", action=argparse.BooleanOptionalAction, default=True, help="save NAME.blend")
    add("--render", action=argparse.BooleanOptionalAction, default=True, help="render NAME.png")
    add("--size", type=integer(16, 8192), default=512, help="the render's pixels a side (default: %(default)s)")
    add("--samples", type=integer(1, 65536), default=None, help="the render's samples a pixel (default: 4)")
    add("--overwrite", action="store_true", help="replace results of the same name instead of adding a number")
    add("--skip-existing", action="store_true", help="leave out images whose results are there: go on after a stop")
    return parser


def run(arguments: Sequence[str], write: Callable[[str], None] | None = None) -> int:
    """Runs a batch; the exit code. It blocks until all is done, and opens new files in this Blender.

    Args:
        arguments: The command line after '--'.
        write: Receives one line of JSON per image, without a newline; printed to stdout by default.
    """
    write = write or (lambda line: print(line, flush=True))
    parser = make_parser()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # --help: stdout is for results
            options = parser.parse_args(list(arguments))
        if not options.input and not options.prompt.strip():
            parser.error("give --input, --prompt or both")
    except SystemExit as stop:  # argparse has said why
        return EXIT_OK if not stop.code else EXIT_USAGE
    engine = None
    try:
        output = Path(options.output).expanduser().absolute()
        items = find_items(options.input, options.prompt, output)
        _make_folder(output)
        engine = make_engine()
        engine.wait_ready()  # a worker that can't start would fail every image in turn
        good = 0
        for number, item in enumerate(items, 1):
            good += _run_item(engine, item, options, output, f"[{number}/{len(items)}]", write)
    except LGMError as error:
        tell(error.message)
        return EXIT_FAILED
    finally:
        if engine:
            engine.stop()
    if good < len(items):
        tell(f"{len(items) - good} of {len(items)} failed.")
    return EXIT_OK if good == len(items) else EXIT_FAILED


def make_engine() -> Engine:
    """The worker of the preferences, the environment or build.py.

    Raises:
        LGMError: (kind 'worker') If there is none.
    """
    python, where = install.worker_python(preferences.value("worker_python"))
    if python is None:
        raise LGMError(f"{where} Or set {PYTHON_VARIABLE} to a Python that has the packages.", "worker")
    return Engine(worker_command(python, "serve"), variables=session.worker_variables())


def find_items(inputs: Sequence[str], prompt: str, output: Path) -> list[Item]:
    """What there is to make, and a name for each that no other has.

    Raises:
        LGMError: If a folder holds no images.
    """
    if not inputs:
        return [Item(None, images.file_stem("_".join(prompt.split()[:8])))]
    paths = [path for name in inputs for path in _expand(name, output)]
    stems = Counter(path.stem.casefold() for path in paths)
    items, taken = [], set()
    for path in paths:
        name = path.stem if stems[path.stem.casefold()] == 1 else f"{path.stem}_{path.suffix[1:].lower()}"
        if path.parent == output:
            name += "_splats"  # the render of apple.png must not become apple.png
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique.casefold())
        items.append(Item(path, unique))
    return items


def _expand(name: str, output: Path) -> list[Path]:
    path = Path(name).expanduser().absolute()
    if not path.exists() and glob.has_magic(name):  # Windows' shell leaves that to the program
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) or [path]
    if not path.is_dir():
        return [path]
    found = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
    if path == output:
        found = [file for file in found if not _is_result(file)]
    if not found:
        raise LGMError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}). Choose another folder.")
    return sorted(found, key=lambda file: file.name.casefold())


def _is_result(picture: Path) -> bool:
    stem = picture.stem.removesuffix("_views").removesuffix("_input")
    there = [suffix for suffix in (".json", ".ply", ".glb") if (picture.parent / f"{stem}{suffix}").exists()]
    return len(there) > 1 and there[0] == ".json"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder / "-", error) from error


def _run_item(
    engine: Engine, item: Item, options: argparse.Namespace, output: Path, place: str, write: Callable[[str], None]
) -> bool:
    """Makes one item, whatever happens, and tells about it; whether it went well."""
    started = time.monotonic()
    line = ProgressLine(f"{place} {item}")
    try:
        record = {"ok": True, **_make_item(engine, item, options, output, line.show)}
    except LGMError as error:
        record = {"ok": False, "error": error.message, "kind": error.kind}
    except Exception as error:  # one bad image must not stop the others
        traceback.print_exc()
        record = {"ok": False, "error": f"Something went wrong in the add-on: {error!r}", "kind": "internal"}
    seconds = round(time.monotonic() - started, 3)
    if not record["ok"]:
        line.end(f"failed: {record['error']}")
    elif record["skipped"]:
        line.end("is there already, skipped")
    else:
        what = f"{record['faces']:,} faces" if record["faces"] else f"{record['gaussians']:,} Gaussians"
        line.end(f"{what} in {seconds:.1f} s, {record.get('ply') or record['glb']}")
    write(json.dumps({"input": str(item.image) if item.image else None, **record, "seconds": seconds}))
    return record["ok"]


def _make_item(
    engine: Engine, item: Item, options: argparse.Namespace, output: Path, show: Callable[[str], None]
) -> dict[str, Any]:
    """The files of one item; what the JSON line says about them."""
    result = _finished(output, item.name) if options.skip_existing else None
    skipped = result is not None and all((output / f"{item.name}{suffix}").exists() for suffix in _suffixes(options))
    if result and not all(result[kind] for kind in _KIND_FILES[options.output_kind]):
        # Of splats that are there a mesh can be made; else all begins anew, under another name.
        result = _add_mesh(engine, result, options, show) if result["ply"] else None
        skipped = False
    if result is None:
        request = GenerateRequest(
            job="",
            output=str(output),
            image=str(item.image) if item.image else None,
            prompt=options.prompt.strip(),
            name=item.name,
            overwrite=options.overwrite,
            negative_prompt=options.negative_prompt,
            preset=options.preset,
            seed=options.seed,
            steps=options.steps,
            guidance=options.guidance,
            view_samples=options.view_samples,
            elevation=options.elevation,
            device=options.device or preferences.value("device"),
            previews=False,
            output_kind=options.output_kind,
            faces=options.faces,
            texture_size=options.texture_size,
            quads=options.quads,
        )
        result = _wait(engine, request, options, show)
    if not skipped and _suffixes(options):
        result = finish(result, options, show)
    kinds = _KIND_FILES[options.output_kind]
    files = {kind: result[kind] for kind in (*kinds, "views", "json")}
    stem = Path(result["json"]).stem
    files |= {suffix[1:]: str(output / f"{stem}{suffix}") for suffix in _suffixes(options)}
    facts = {"gaussians": result["gaussians"], "faces": result["faces"] if "glb" in kinds else 0}
    facts |= {"seed": result["settings"].get("seed"), "warnings": result["warnings"]}
    return {"name": stem, "skipped": skipped, **files, **facts}


def _wait(
    engine: Engine, request: GenerateRequest | MeshRequest, options: argparse.Namespace, show: Callable[[str], None]
) -> dict[str, Any]:
    job = engine.submit(request)
    return to_params(engine.wait(job, lambda job: show(job.label), options.timeout))


def _add_mesh(
    engine: Engine, result: dict[str, Any], options: argparse.Namespace, show: Callable[[str], None]
) -> dict[str, Any]:
    """A result of splats with their mesh; NAME.json is brought up to date."""
    request = MeshRequest(
        job="",
        ply=result["ply"],
        output=str(Path(result["ply"]).parent),
        name=Path(result["ply"]).stem,
        overwrite=True,  # there is none yet
        faces=options.faces,
        texture_size=options.texture_size,
        quads=options.quads,
        device=options.device or preferences.value("device"),
    )
    made = _wait(engine, request, options, show)
    settings = {name: getattr(options, name) for name in ("faces", "texture_size", "quads")} | {"output_kind": "both"}
    times = result["timings"] | made["timings"]
    result = {
        **result,
        "glb": made["glb"],
        "faces": made["faces"],
        "settings": result["settings"] | settings,
        "timings": times | {"total": round(sum(times.values()) - times.get("total", 0.0), 3)},
        "warnings": result["warnings"] + made["warnings"],
    }
    _write_result(result)
    return result


def _write_result(result: dict[str, Any]) -> None:
    with replacing(result["json"]) as file:
        file.write(json.dumps(result, indent=2, ensure_ascii=False).encode() + b"\n")


def finish(result: dict[str, Any], options: argparse.Namespace, show: Callable[[str], None]) -> dict[str, Any]:
    """Blender's part: a scene with what was made, saved and rendered; the result with Blender's times added.

    Args:
        result: What the worker made, as it stands in NAME.json, which is brought up to date.
    """
    path = Path(result["json"])
    times = {}
    with _timed(times, "scene"):
        show("Building the scene")
        made = make_scene(result, options)
    if options.blend:
        with _timed(times, "blend"):
            save_blend(path.with_suffix(".blend"))
    if options.render:
        with _timed(times, "render"):
            show("Rendering")
            picture = path.with_suffix(".png")
            render.render_objects(made, picture, size=(options.size, options.size), samples=options.samples)
    before = dict(result["timings"])
    total = before.pop("total", 0.0) - sum(before.get(name, 0.0) for name in times) + sum(times.values())
    result = {
        **result,
        "versions": {**result["versions"], "blender": bpy.app.version_string},
        "timings": {**before, **times, "total": round(total, 3)},
    }
    _write_result(result)
    return result


def make_scene(result: dict[str, Any], options: argparse.Namespace) -> list[bpy.types.Object]:
    """A new file with nothing but the splats, the mesh or both, and a camera and settings that show them."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    scene = bpy.context.scene
    wanted = {kind: result[kind] if kind in _KIND_FILES[options.output_kind] else None for kind in ("ply", "glb")}
    made = results.add_result(
        from_params(GenerateResult, result | wanted), scene, max(0.0, options.object_size) or None
    )
    for thing in made:
        beside = {kind: f"//{Path(path).name}" for kind, path in wanted.items() if path}
        splats.write_settings(thing, splats.read_settings(thing) | beside)
    session.select(made, scene)
    scene.camera = render.camera_from_pose(render.fitted_pose(made))
    scene.collection.objects.link(scene.camera)
    scene.world = bpy.data.worlds.new("White")
    background = next(node for node in compat.node_tree(scene.world).nodes if node.type == "BACKGROUND")
    background.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = options.size
    lit = not all(map(splats.is_splats, made))
    scene.cycles.samples = options.samples or (LIT_SAMPLES if lit else render.SAMPLES["CYCLES"])
    scene.view_settings.view_transform = "Standard"  # AgX would mute colours that are meant for the display as they are
    for screen in bpy.data.screens:
        for view in (area.spaces.active for area in screen.areas if area.type == "VIEW_3D"):
            view.shading.type = "MATERIAL"
            view.region_3d.view_perspective = "CAMERA"
    return made


def save_blend(path: Path) -> None:
    """Saves the open file as a compressed .blend whose paths are relative to it.

    Raises:
        LGMError: (kind 'output') If it can't be written.
    """
    partial = path.with_name(f".lgm-{os.getpid()}.blend")  # Blender would keep the old file as a backup
    try:
        bpy.ops.wm.save_as_mainfile(filepath=str(partial), compress=True, relative_remap=True, copy=True)
        partial.replace(path)
    except (RuntimeError, OSError) as error:
        raise LGMError(f"{path} could not be written: {error}", "output") from error
    finally:
        partial.unlink(missing_ok=True)


def _suffixes(options: argparse.Namespace) -> list[str]:
    """The files that Blender adds to the worker's."""
    return [suffix for suffix, wanted in ((".blend", options.blend), (".png", options.render)) if wanted]


def _finished(output: Path, name: str) -> dict[str, Any] | None:
    """What NAME.json says, if the worker's part of that name is done; of splats and mesh, those that are there."""
    try:
        result = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
        result |= {kind: str(output / f"{name}{end}") for kind, end in _WORKER_FILES.items()}
        result |= {kind: None for kind in ("ply", "glb") if not Path(result[kind]).is_file()}
        result = to_params(from_params(GenerateResult, result))
    except (OSError, ValueError, TypeError, LGMError):
        return None
    return result if result["ply"] or result["glb"] else None


@contextlib.contextmanager
def _timed(times: dict[str, float], name: str):
    start = time.perf_counter()
    yield
    times[name] = round(time.perf_counter() - start, 3)


def integer(least: int, most: int) -> Callable[[str], int]:
    """An argument's type: an integer within bounds."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return parse


def tell(sentence: str) -> None:
    """Says something to who runs the batch."""
    print(sentence, file=sys.stderr, flush=True)


class ProgressLine:
    """One line of progress on stderr: rewritten in a terminal, written once, at the end, elsewhere."""

    def __init__(self, start: str):
        self._start = start
        self._live = sys.stderr.isatty()

    def show(self, state: str) -> None:
        """What is being done now."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{f'{self._start}: {state}'[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    def end(self, state: str) -> None:
        """How it went."""
        if self._live:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", file=sys.stderr)
        tell(f"{self._start}: {state}")


def main(
    run: Callable[[Sequence[str], Callable[[str], None]], int] = run,
    stopped: str = "Stopped. With --skip-existing the same command goes on from here.",
) -> None:
    """Runs the command line of this process and ends the process.

    Args:
        run: A batch: its arguments, and what receives the lines for stdout; gives the exit code.
        stopped: What Ctrl-C is answered with.
    """
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    if not bpy.app.background:
        tell("A batch would stop this Blender's window for its whole length. Start Blender with --background.")
        sys.exit(EXIT_USAGE)
    # Blender prints to stdout too, some of it from C; the results get it for themselves.
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(_noise(), 1)
    try:
        code = run(arguments, lambda line: print(line, file=results, flush=True))
    except KeyboardInterrupt:
        tell(stopped)
        code = 130
    except BaseException:
        traceback.print_exc()
        code = EXIT_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    shutil.rmtree(bpy.app.tempdir, ignore_errors=True)
    # Blender crashes or hangs on the way out if an enabled add-on has left it a class or a handler, whoever's it is.
    os._exit(code)


def _noise() -> int:
    """Where Blender's own prints go."""
    with contextlib.suppress(OSError):
        log_folder().mkdir(parents=True, exist_ok=True)
        return os.open(log_folder() / "batch.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    return os.open(os.devnull, os.O_WRONLY)
