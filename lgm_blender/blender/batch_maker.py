"""How a batch makes one item: a worker's part, which may run in a thread, and Blender's part, which may not."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import bpy

from ..core.batch.items import Item
from ..core.errors import LGMError
from ..core.files import replacing
from ..core.messages import (
    ConvertRequest,
    GenerateRequest,
    GenerateResult,
    MeshRequest,
    Request,
    from_params,
    to_params,
)
from .engine import Engine
from .scene import document, images, render

_WORKER_FILES = {"ply": ".ply", "glb": ".glb", "json": ".json", "views": "_views.png", "input": "_input.png"}
_KIND_FILES = {"splats": ["ply"], "mesh": ["glb"], "both": ["ply", "glb"]}  # of them, which an output kind needs


@dataclass
class Made:
    """The worker's part: what NAME.json says, and whether Blender's part is there already."""

    result: dict[str, Any]
    skipped: bool


class Maker:
    """Makes one item of a batch.

    Args:
        item: Which.
        options: The batch's command line; the item's row is heard first.
        output: The folder for the results.
        show: Told what is being done now.
        saved: Whether files are there of its name that belong to it.
    """

    def __init__(
        self,
        item: Item,
        options: argparse.Namespace,
        output: Path,
        show: Callable[[str], None],
        saved: bool = False,
    ):
        self.item, self.output, self.show = item, output, show
        self.finds = options.skip_existing or saved
        self.options = argparse.Namespace(**{**vars(options), **item.values})
        self.kinds = _KIND_FILES[options.output_kind]
        # The files that Blender adds to the worker's.
        self.suffixes = [suffix for suffix, wanted in ((".blend", options.blend), (".png", options.render)) if wanted]
        self._folder = Path(bpy.app.tempdir, f"lgm_{secrets.token_hex(4)}")
        self._image: Path | None = item.source

    # ---- Before, in Blender's thread

    def prepare(self) -> None:
        """Makes a PNG of an image that only Blender can read."""
        source = self.item.source
        if source and not self.item.has_splats:
            self._image = images.readable_file(source, self._folder)

    # ---- The worker's part, in any thread: nothing of bpy here

    def make(self, engine: Engine) -> Made:
        """Makes the worker's files, or finds them.

        Raises:
            LGMError: If it fails.
        """
        try:
            return self._make(engine)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, engine: Engine) -> Made:
        name = self.item.name
        result = _finished(self.output, name) if self.finds else None
        skipped = result is not None and all((self.output / f"{name}{suffix}").exists() for suffix in self.suffixes)
        if result and not all(result[kind] for kind in self.kinds):
            # Of splats that are there a mesh can be made; else all begins anew, under another name.
            result = self._add_mesh(engine, result) if result["ply"] else None
            skipped = False
        if result is None:
            result = self._take(engine) if self.item.has_splats else self._generate(engine)
        elif not {*self.options.splat_formats} <= self._formats(result):
            result = self._add_formats(engine, result)
        return Made(result, skipped)

    def _generate(self, engine: Engine) -> dict[str, Any]:
        image = self._image
        result = self._ask(engine, GenerateRequest, image=image and str(image), name=self.item.name, previews=False)
        if image != self.item.source:
            result["settings"]["image"] = str(self.item.source)
            _write_result(result)
        return result

    def _take(self, engine: Engine) -> dict[str, Any]:
        """The splats of a file in place of generated ones: NAME.ply, y up, other formats, a mesh and NAME.json."""
        formats, source = list(dict.fromkeys(["ply", *self.options.splat_formats])), self.item.source
        made = self._ask(engine, ConvertRequest, file=str(source), name=self.item.name, formats=formats, size=0.0)
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
        return to_params(result) if "glb" not in self.kinds else self._add_mesh(engine, to_params(result))

    def _formats(self, result: dict[str, Any]) -> set[str]:
        """The formats that a result's splats are there in."""
        there = {name for name in result["settings"].get("splat_formats", []) if name != "ply"}
        whole = all(Path(file).is_file() for file in result["splat_files"])
        return {"ply", *(there if whole else ())} if result["ply"] else {*self.options.splat_formats}

    def _add_formats(self, engine: Engine, result: dict[str, Any]) -> dict[str, Any]:
        """A result of splats with those formats that are missing; NAME.json is brought up to date."""
        formats = list(dict.fromkeys([*sorted(self._formats(result) - {"ply"}), *self.options.splat_formats]))
        formats = [name for name in formats if name != "ply"]
        stem = Path(result["ply"]).stem
        made = self._ask(
            engine, ConvertRequest, file=result["ply"], name=stem, formats=formats, up="y", size=0.0, overwrite=True
        )
        settings = result["settings"] | {"splat_formats": ["ply", *formats]}
        result = result | {"splat_files": made["files"], "settings": settings}
        _write_result(result)
        return result

    def _add_mesh(self, engine: Engine, result: dict[str, Any]) -> dict[str, Any]:
        """A result of splats with their mesh; NAME.json is brought up to date."""
        ply = Path(result["ply"])
        made = self._ask(engine, MeshRequest, ply=str(ply), name=ply.stem, up="y", overwrite=True)  # there is none yet
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

    def _ask(self, engine: Engine, kind: type[Request], **values: Any) -> dict[str, Any]:
        """What the worker answers to a request of these values, and for the others the command line's."""
        names = [field.name for field in fields(kind) if hasattr(self.options, field.name)]
        given = {name: getattr(self.options, name) for name in names} | {"output": str(self.output)}
        job = engine.submit(kind(job="", **given | values))
        return to_params(engine.wait(job, lambda job: self.show(job.label), self.options.timeout))

    # ---- Blender's part, in its thread

    def finish(self, made: Made) -> dict[str, Any]:
        """Adds Blender's files; what the record says about all of them.

        Raises:
            LGMError: If it fails.
        """
        result = made.result
        if not made.skipped and self.suffixes:
            result = self._add_scene(result)
        files = {kind: result[kind] for kind in (*self.kinds, "views", "json") if result[kind]}
        files |= {"splat_files": result["splat_files"]} if result["splat_files"] else {}
        stem = Path(result["json"]).stem
        files |= {suffix[1:]: str(self.output / f"{stem}{suffix}") for suffix in self.suffixes}
        facts = {"gaussians": result["gaussians"], "faces": result["faces"] if "glb" in self.kinds else 0}
        facts |= {"seed": result["settings"].get("seed"), "warnings": result["warnings"]}
        return {"name": stem, "skipped": made.skipped, **files, **facts, "timings": result["timings"]}

    def _add_scene(self, result: dict[str, Any]) -> dict[str, Any]:
        """A scene with what was made, saved and rendered; NAME.json with Blender's times added."""
        path, options, times = Path(result["json"]), self.options, {}
        with _timed(times, "scene"):
            self.show("Building the scene")
            shown = from_params(GenerateResult, result | {k: None for k in ("ply", "glb") if k not in self.kinds})
            made = document.new_document(shown, options.object_size, options.size, options.samples)
        if options.blend:
            with _timed(times, "blend"):
                document.save_document(path.with_suffix(".blend"))
        if options.render:
            with _timed(times, "render"):
                self.show("Rendering")
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
