"""Many images become splats, meshes or both, one after the other, without a window.

    blender --background --python …/lgm_blender/blender/batch.py -- --input FILES-OR-FOLDER --output DIR
    python …/lgm_blender/blender/batch.py -- …          with a Python that has bpy

For each image: NAME.ply (the splats; --splat-formats: others too), NAME.glb (the mesh), NAME.blend (a scene with them),
NAME.png (a render), NAME_views.png (the four views) and NAME.json (every setting, the seed, the versions, the time of
each stage). Files of splats are taken as well, in place of an image. One line of progress per input goes to stderr, one
JSON object per input to stdout. The exit code is 0 if all went well, 1 if any failed, 2 if the command makes no sense.
`run` is the same for a script that runs inside Blender.
"""

if __name__ == "__main__":  # run as a script, this file belongs to no package; it goes on as a module of its own
    import pathlib
    import runpy

    runpy.run_path(str(pathlib.Path(__file__).with_name("script.py")))["run"](__file__)

import argparse
import contextlib
import glob
import json
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import bpy

from ..core.affine import UPRIGHT
from ..core.environment import PYTHON_VARIABLE
from ..core.errors import LGMError
from ..core.files import output_error, replacing
from ..core.formats.splat_files import META, SUFFIXES, WRITTEN, stem_of
from ..core.messages import (
    FACES,
    TEXTURE_SIZE,
    ConvertRequest,
    GenerateRequest,
    GenerateResult,
    MeshRequest,
    OutputKind,
    Request,
    from_params,
    to_params,
)
from . import command_line, settings
from .command_line import EXIT_FAILED, EXIT_OK, ProgressLine, Write, integer, tell
from .engine import Engine, worker_command
from .scene import document, images, render, results

# What is taken of a folder; a file that is named may be of any kind that Blender or the worker can read.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".exr", ".hdr", ".dpx")
# Splats that are taken of a folder; .glb and .gltf mostly hold meshes, and .json is SOG's only by its name.
SPLAT_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in (".glb", ".gltf"))
_WORKER_FILES = {"ply": ".ply", "glb": ".glb", "json": ".json", "views": "_views.png", "input": "_input.png"}
_KIND_FILES = {"splats": ["ply"], "mesh": ["glb"], "both": ["ply", "glb"]}  # of them, which an output kind needs


@dataclass(frozen=True)
class Item:
    """One thing to make: its image or file of splats, or None for a prompt alone, and the stem of its files' names."""

    image: Path | None
    name: str

    def __str__(self) -> str:
        return self.image.name if self.image else self.name

    @property
    def has_splats(self) -> bool:
        """Whether there are splats in place of an image."""
        source = self.image
        return source is not None and (
            source.suffix.lower() in SUFFIXES or source.name == META or (source / META).is_file()
        )


def make_parser() -> argparse.ArgumentParser:
    """The batch's command line."""
    parser = argparse.ArgumentParser(
        prog="batch.py", description="Makes splats or meshes from images, in Blender, without a window."
    )
    add = parser.add_argument
    add("--input", nargs="+", default=[], metavar="PATH", help="images, files of splats, or folders of them")
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
    about = "of the splats; PLY is always written (default: ply)"
    add("--splat-formats", nargs="+", choices=WRITTEN, default=["ply"], help=about)
    about = "the axis that points up in files of splats; of most captures it is -y: --up=-y (default: %(default)s)"
    add("--up", choices=tuple(UPRIGHT), default="y", help=about)
    add("--faces", type=integer(100, 1_000_000), default=FACES, help="triangles at most (default: %(default)s)")
    add("--quads", action="store_true", help="join triangles to quads; for --faces each is two")
    sizes = (512, 1024, 2048, 4096)
    add("--texture-size", type=int, choices=sizes, default=TEXTURE_SIZE, help="of a mesh (default: %(default)s)")
    usual = render.SAMPLES["CYCLES"]
    about = "longest side in NAME.blend, 0 as LGM makes it (default: %(default)s)"
    add("--object-size", type=float, default=results.SIZE, metavar="METRES", help=about)
    add("--device", choices=("auto", "cpu", "cuda"), default=None, help="what computes (default: the preferences')")
    add("--timeout", type=float, default=None, metavar="SECONDS", help="give an image up after this long")
    add("--blend", action=argparse.BooleanOptionalAction, default=True, help="save NAME.blend")
    add("--render", action=argparse.BooleanOptionalAction, default=True, help="render NAME.png")
    add("--size", type=integer(16, 8192), default=512, help="the render's pixels a side (default: %(default)s)")
    add("--samples", type=integer(1, 65536), default=None, help=f"of the render, a pixel (default: {usual})")
    add("--overwrite", action="store_true", help="replace results of the same name instead of adding a number")
    add("--skip-existing", action="store_true", help="leave out images whose results are there: go on after a stop")
    return parser


def run(arguments: Sequence[str], write: Write | None = None) -> int:
    """Runs a batch; the exit code. It blocks until all is done, and opens new files in this Blender.

    Args:
        arguments: The command line after '--'.
        write: Receives one line of JSON per image, without a newline; printed to stdout by default.
    """
    return command_line.run(make_parser(), _run, arguments, write)


def _run(options: argparse.Namespace, write: Write) -> int:
    options.prompt = options.prompt.strip()
    options.device = options.device or settings.preference("device")
    if not options.input and not options.prompt:
        make_parser().error("give --input, --prompt or both")
    engine = None
    try:
        output = Path(options.output).expanduser().absolute()
        items = find_items(options.input, options.prompt, output)
        _make_folder(output)
        engine = make_engine()
        engine.wait_ready()  # a worker that can't start would fail every image in turn
        good = 0
        for number, item in enumerate(items, 1):
            line = ProgressLine(f"[{number}/{len(items)}] {item}")
            good += _Maker(engine, item, options, output, line).run(write)
    except LGMError as error:
        tell(error.message)
        return EXIT_FAILED
    finally:
        if engine:
            engine.close()
    if good < len(items):
        tell(f"{len(items) - good} of {len(items)} failed.")
    return EXIT_OK if good == len(items) else EXIT_FAILED


def make_engine() -> Engine:
    """The worker of the preferences, the environment or build.py.

    Raises:
        LGMError: (kind 'worker') If there is none.
    """
    try:
        python = settings.worker_python()
    except LGMError as error:
        raise LGMError(
            f"{error.message} Or set {PYTHON_VARIABLE} to a Python that has the packages.", "worker"
        ) from error
    return Engine(worker_command(python, "serve"), variables=settings.worker_variables())


def find_items(inputs: Sequence[str], prompt: str, output: Path) -> list[Item]:
    """What there is to make, and a name for each that no other has.

    Raises:
        LGMError: If a folder holds no images.
    """
    if not inputs:
        return [Item(None, images.file_stem("_".join(prompt.split()[:8])))]
    paths = [path for name in inputs for path in _expand(name, output)]
    stems = Counter(stem_of(path).casefold() for path in paths)
    items, taken = [], set()
    for path in paths:
        name = stem_of(path)
        if stems[name.casefold()] > 1:
            name = f"{name}_{path.suffix[1:].lower()}"
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
    if not path.is_dir() or (path / META).is_file():
        return [path]
    taken = (*IMAGE_SUFFIXES, *SPLAT_SUFFIXES)
    found = [file for file in path.iterdir() if file.suffix.lower() in taken and not file.name.startswith(".")]
    found = [file for file in found if not (file.suffix.lower() in SPLAT_SUFFIXES and _is_made(file))]
    if path == output:
        found = [file for file in found if not _is_result(file)]
    if not found:
        raise LGMError(f"{path} holds no images or splats ({', '.join(taken)}). Choose another folder.")
    return sorted(found, key=lambda file: file.name.casefold())


def _is_made(splats: Path) -> bool:
    """Whether a file of splats, or a mesh in a PLY, lies beside the JSON file of the job that made it."""
    stem = stem_of(splats)
    return splats.with_name(f"{stem}.json").exists() or stem.endswith("_mesh")


def _is_result(picture: Path) -> bool:
    stem = picture.stem.removesuffix("_views").removesuffix("_input")
    there = [suffix for suffix in (".json", ".ply", ".glb") if (picture.parent / f"{stem}{suffix}").exists()]
    return len(there) > 1 and there[0] == ".json"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder / "-", error) from error


class _Maker:
    """Makes one item and tells about it."""

    def __init__(self, engine: Engine, item: Item, options: argparse.Namespace, output: Path, line: ProgressLine):
        self.engine, self.item, self.options, self.output, self.line = engine, item, options, output, line
        self.kinds = _KIND_FILES[options.output_kind]
        # The files that Blender adds to the worker's.
        self.suffixes = [suffix for suffix, wanted in ((".blend", options.blend), (".png", options.render)) if wanted]

    def run(self, write: Write) -> bool:
        """Makes it, whatever happens; whether it went well."""
        started = time.monotonic()
        try:
            record = {"ok": True, **self.make()}
        except LGMError as error:
            record = {"ok": False, "error": error.message, "kind": error.kind}
        except Exception as error:  # one bad image must not stop the others
            traceback.print_exc()
            record = {"ok": False, "error": f"Something went wrong in the add-on: {error!r}", "kind": "internal"}
        seconds = round(time.monotonic() - started, 3)
        if not record["ok"]:
            self.line.end(f"failed: {record['error']}")
        elif record["skipped"]:
            self.line.end("is there already, skipped")
        else:
            what = f"{record['faces']:,} faces" if record["faces"] else f"{record['gaussians']:,} Gaussians"
            self.line.end(f"{what} in {seconds:.1f} s, {record.get('ply') or record['glb']}")
        image = self.item.image
        write(json.dumps({"input": str(image) if image else None, **record, "seconds": seconds}))
        return record["ok"]

    def make(self) -> dict[str, Any]:
        """Makes the files; what the JSON line says about them."""
        name = self.item.name
        result = _finished(self.output, name) if self.options.skip_existing else None
        skipped = result is not None and all((self.output / f"{name}{suffix}").exists() for suffix in self.suffixes)
        if result and not all(result[kind] for kind in self.kinds):
            # Of splats that are there a mesh can be made; else all begins anew, under another name.
            result = self.add_mesh(result) if result["ply"] else None
            skipped = False
        if result is None:
            result = self.take() if self.item.has_splats else self.generate()
        elif not {*self.options.splat_formats} <= self.formats(result):
            result = self.add_formats(result)
        if not skipped and self.suffixes:
            result = self.finish(result)
        files = {kind: result[kind] for kind in (*self.kinds, "views", "json") if result[kind]}
        files |= {"splat_files": result["splat_files"]} if result["splat_files"] else {}
        stem = Path(result["json"]).stem
        files |= {suffix[1:]: str(self.output / f"{stem}{suffix}") for suffix in self.suffixes}
        facts = {"gaussians": result["gaussians"], "faces": result["faces"] if "glb" in self.kinds else 0}
        facts |= {"seed": result["settings"].get("seed"), "warnings": result["warnings"]}
        return {"name": stem, "skipped": skipped, **files, **facts}

    def generate(self) -> dict[str, Any]:
        """The worker's part."""
        source = self.item.image
        with tempfile.TemporaryDirectory(prefix="lgm_", dir=bpy.app.tempdir) as folder:
            image = source and images.readable_file(source, Path(folder))
            result = self.ask(GenerateRequest, image=image and str(image), name=self.item.name, previews=False)
        if image != source:
            result["settings"]["image"] = str(source)
            _write_result(result)
        return result

    def take(self) -> dict[str, Any]:
        """The splats of a file in place of generated ones: NAME.ply, y up, other formats, a mesh and NAME.json."""
        formats, source = list(dict.fromkeys(["ply", *self.options.splat_formats])), self.item.image
        made = self.ask(ConvertRequest, file=str(source), name=self.item.name, formats=formats, size=0.0)
        path = Path(made["files"][0])
        result = GenerateResult(
            job="",
            ply=str(path),
            views="",
            input=None,
            json=str(path.with_suffix(".json")),
            gaussians=made["gaussians"],
            settings=made["settings"] | {"output_kind": "splats", "splat_formats": formats},
            versions={},
            timings=made["timings"] | {"total": round(sum(made["timings"].values()), 3)},
            device=made["device"],
            warnings=made["warnings"],
            splat_files=made["files"][1:],
        )
        _write_result(to_params(result))
        return to_params(result) if "glb" not in self.kinds else self.add_mesh(to_params(result))

    def formats(self, result: dict[str, Any]) -> set[str]:
        """The formats that a result's splats are there in."""
        there = {name for name in result["settings"].get("splat_formats", []) if name != "ply"}
        whole = all(Path(file).is_file() for file in result["splat_files"])
        return {"ply", *(there if whole else ())} if result["ply"] else {*self.options.splat_formats}

    def add_formats(self, result: dict[str, Any]) -> dict[str, Any]:
        """A result of splats with those formats that are missing; NAME.json is brought up to date."""
        formats = list(dict.fromkeys([*sorted(self.formats(result) - {"ply"}), *self.options.splat_formats]))
        formats = [name for name in formats if name != "ply"]
        stem = Path(result["ply"]).stem
        made = self.ask(
            ConvertRequest, file=result["ply"], name=stem, formats=formats, up="y", size=0.0, overwrite=True
        )
        settings = result["settings"] | {"splat_formats": ["ply", *formats]}
        result = result | {"splat_files": made["files"], "settings": settings}
        _write_result(result)
        return result

    def add_mesh(self, result: dict[str, Any]) -> dict[str, Any]:
        """A result of splats with their mesh; NAME.json is brought up to date."""
        ply = Path(result["ply"])
        made = self.ask(MeshRequest, ply=str(ply), name=ply.stem, up="y", overwrite=True)  # there is none yet
        chosen = {name: getattr(self.options, name) for name in ("faces", "texture_size", "quads")}
        times = result["timings"] | made["timings"]
        result = {
            **result,
            "glb": made["glb"],
            "faces": made["faces"],
            "settings": result["settings"] | chosen | {"output_kind": "both"},
            "timings": times | {"total": round(sum(times.values()) - times.get("total", 0.0), 3)},
            "warnings": result["warnings"] + made["warnings"],
        }
        _write_result(result)
        return result

    def ask(self, kind: type[Request], **values: Any) -> dict[str, Any]:
        """What the worker answers to a request of these values, and for the others the command line's."""
        names = [field.name for field in fields(kind) if hasattr(self.options, field.name)]
        given = {name: getattr(self.options, name) for name in names} | {"output": str(self.output)}
        job = self.engine.submit(kind(job="", **given | values))
        return to_params(self.engine.wait(job, lambda job: self.line.show(job.label), self.options.timeout))

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Blender's part: a scene with what was made, saved and rendered; NAME.json with Blender's times added."""
        path, options, times = Path(result["json"]), self.options, {}
        with _timed(times, "scene"):
            self.line.show("Building the scene")
            shown = from_params(GenerateResult, result | {k: None for k in ("ply", "glb") if k not in self.kinds})
            made = document.new_document(shown, options.object_size, options.size, options.samples)
        if options.blend:
            with _timed(times, "blend"):
                document.save_document(path.with_suffix(".blend"))
        if options.render:
            with _timed(times, "render"):
                self.line.show("Rendering")
                size = (options.size, options.size)
                render.render_objects(made, path.with_suffix(".png"), size=size, samples=options.samples)
        before = dict(result["timings"])
        total = before.pop("total", 0.0) - sum(before.get(name, 0.0) for name in times) + sum(times.values())
        result = {
            **result,
            "versions": {**result["versions"], "blender": bpy.app.version_string},
            "timings": {**before, **times, "total": round(total, 3)},
        }
        _write_result(result)
        return result


def _write_result(result: dict[str, Any]) -> None:
    with replacing(result["json"]) as file:
        file.write(json.dumps(result, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def _finished(output: Path, name: str) -> dict[str, Any] | None:
    """What NAME.json says, if the worker's part of that name is done; of splats and mesh, those that are there."""
    try:
        result = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
        result |= {kind: str(output / f"{name}{end}") for kind, end in _WORKER_FILES.items()}
        result |= {kind: None for kind in ("ply", "glb") if not Path(result[kind]).is_file()}
        result |= {"views": ""} if not Path(result["views"]).is_file() else {}
        result["splat_files"] = [str(output / Path(file).name) for file in result.get("splat_files", [])]
        result = to_params(from_params(GenerateResult, result))
    except (OSError, ValueError, TypeError, LGMError):
        return None
    return result if result["ply"] or result["glb"] else None


@contextlib.contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[name] = round(time.perf_counter() - start, 3)


def main() -> None:
    """Runs the command line of this process and ends the process."""
    command_line.main(run, "Stopped. With --skip-existing the same command goes on from here.")
