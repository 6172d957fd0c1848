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
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np

from ..core.cameras import VIEWS, into_sphere, pose_to_blender, view_poses
from ..core.errors import LGMError
from ..core.files import output_error
from ..core.formats.transforms import (
    caption_from_name,
    file_name,
    find_transforms,
    new_folder,
    unique_names,
    write_transforms,
)
from . import batch, compat
from .scene import images
from .scene.nodes.even_light import EvenLight
from .scene.render import camera_from_pose

SAMPLES = 16  # per pixel; there is no noise but at edges and in fine textures
VISIBLE = 0.9  # share of the views in which something must be seen
SHAPES = {"MESH", "CURVE", "SURFACE", "FONT", "META"}  # types of objects that have a surface


# ---- What there is to render


@dataclass(frozen=True)
class Item:
    """One object of the data set.

    Attributes:
        name: Of its folder, and what its cameras follow from.
        caption: What it is.
        open: Gives the Blender objects it consists of, and takes back what it loaded for that.
    """

    name: str
    caption: str
    open: Callable[[], AbstractContextManager[list[bpy.types.Object]]]


def object_items(objects: Iterable[bpy.types.Object], prefix: str = "") -> list[Item]:
    """An item for each object that is not below another one of them, with all its children."""
    objects = list(objects)
    chosen = set(objects)
    items = []
    for top in objects:
        family = [top, *top.children_recursive]
        if not _ancestors(top) & chosen and any(_has_surface(member) for member in family):
            name = images.file_stem(prefix + top.name)
            items.append(Item(name, caption_from_name(top.name), lambda family=family: contextlib.nullcontext(family)))
    return items


def asset_items(path: Path | None) -> list[Item]:
    """An item for each object asset in the .blend files of a folder, or in the open file for None.

    Raises:
        LGMError: If there are none.
    """
    if path is None:
        items = object_items(o for o in bpy.data.objects if o.asset_data)
    else:
        files = sorted(path.rglob("*.blend"))
        places = ["_".join(file.relative_to(path).with_suffix("").parts) for file in files]
        items = [
            item
            for file, place in zip(files, places, strict=True)
            for item in _library_items(file, f"{place}_" if len(files) > 1 else "")
        ]
    if not items:
        raise LGMError(f"There are no object assets in {path or 'this file'}. Mark objects as assets first.")
    return items


def _library_items(file: Path, prefix: str) -> list[Item]:
    try:
        with bpy.data.libraries.load(str(file), link=True, assets_only=True) as (source, _):
            names = list(source.objects)
    except OSError as error:
        return [_broken(images.file_stem(file.stem), f"{file} could not be read ({str(error).strip()}).")]

    @contextlib.contextmanager
    def linked(name: str) -> Iterator[list[bpy.types.Object]]:
        before = {(type(block), block.session_uid) for block in _all_blocks()}
        with bpy.data.libraries.load(str(file), link=True, assets_only=True) as (_, target):
            target.objects = [name]
        added = [block for block in _all_blocks() if (type(block), block.session_uid) not in before]
        try:
            yield [block for block in target.objects if block is not None]
        finally:
            bpy.data.batch_remove(added)

    return [
        Item(images.file_stem(prefix + name), caption_from_name(name), lambda name=name: linked(name)) for name in names
    ]


def _broken(name: str, sentence: str) -> Item:
    """An item that only says what is wrong with it."""

    @contextlib.contextmanager
    def fail() -> Iterator[list[bpy.types.Object]]:
        raise LGMError(sentence)
        yield

    return Item(name, "", fail)


def _all_blocks() -> Iterator[bpy.types.ID]:
    for prop in bpy.data.bl_rna.properties:
        if prop.type == "COLLECTION":
            yield from getattr(bpy.data, prop.identifier)


def _ancestors(thing: bpy.types.Object) -> set[bpy.types.Object]:
    found = set()
    while (thing := thing.parent) is not None:
        found.add(thing)
    return found


def _has_surface(thing: bpy.types.Object) -> bool:
    return not thing.hide_render and (thing.type in SHAPES or thing.instance_type == "COLLECTION")


# ---- Rendering


class ViewMaker:
    """Renders items, one view a step. Call `step` until it gives False, or `cancel`; nothing of it stays in the file.

    Args:
        items: What to render.
        output: The data set's folder, made if missing.
        size: Width and height of the views in pixels.
        views: How many of each object.
        overwrite: Whether objects are rendered again whose folders are there.
        split: 'train' or 'val', or '' to write none.
        tell: Is given each of `results` as it comes.

    Attributes:
        done: How many items are behind it.
        current: The name of the item it is at.
        view: How many of its views are there.
        results: Of each item behind it, what the batch prints.
        error: Why it ended before all was done, or ''.
    """

    def __init__(
        self,
        items: Sequence[Item],
        output: Path,
        *,
        size: int = 256,
        views: int = VIEWS,
        overwrite: bool = False,
        split: str = "",
        tell: Callable[[dict], None] | None = None,
    ):
        names = unique_names([item.name for item in items])
        self.items = [replace(item, name=name) for item, name in zip(items, names, strict=True)]
        self.output, self.size, self.views = output, size, views
        self.overwrite, self.split, self.tell = overwrite, split, tell
        self.done, self.view, self.current, self.error = 0, 0, "", ""
        self.results: list[dict] = []
        self._steps = self._run()

    @property
    def factor(self) -> float:
        """How much of it is done, 0 to 1."""
        return min(1.0, (self.done + self.view / self.views) / max(1, len(self.items)))

    def step(self) -> bool:
        """Does what takes about as long as one view; whether there is more to do."""
        try:
            next(self._steps)
        except StopIteration:
            return False
        except LGMError as error:  # one that would stop every object
            self.error = error.message
            return False
        return True

    def cancel(self) -> None:
        """Stops. Whole objects stay, the one on its way vanishes."""
        self._steps.close()

    def _run(self) -> Iterator[None]:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.output / "-", error) from error
        if not hasattr(bpy.context.scene, "cycles"):
            raise LGMError("Cycles is turned off. Turn the add-on 'Cycles Render Engine' on in Blender's preferences.")
        for item in self.items:
            self.current, self.view = item.name, 0
            folder = self.output / item.name
            result = {"name": item.name, "ok": True, "folder": str(folder), "skipped": False}
            try:
                if not self.overwrite and find_transforms(folder):
                    result["skipped"] = True
                else:
                    yield from self._make(item)
            except LGMError as error:
                if error.kind == "output" and not folder.exists():
                    raise
                result |= {"ok": False, "error": error.message}
            except Exception as error:  # one broken object must not stop the others
                traceback.print_exc()
                result |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
            self.done, self.view = self.done + 1, 0
            self.results.append(result)
            if self.tell:
                self.tell(result)
            yield

    def _make(self, item: Item) -> Iterator[None]:
        poses = view_poses(item.name, self.views)[0]
        with contextlib.ExitStack() as stack:
            objects = stack.enter_context(item.open())
            stage = stack.enter_context(_stage(objects, self.size))
            folder = stack.enter_context(new_folder(self.output, item.name, self.overwrite))
            seen = 0
            for i, pose in enumerate(poses):
                yield
                seen += stage.shoot(pose, folder / file_name(i))
                self.view = i + 1
            if seen < VISIBLE * len(poses):
                raise LGMError("nothing of it can be seen in most of its views.")
            write_transforms(folder, poses, self.size, item.caption, self.split)


@dataclass
class _Stage:
    """A scene of its own with an object in it; where the object's middle is, and what makes it fit LGM's sphere."""

    scene: bpy.types.Scene
    center: np.ndarray
    factor: float

    def shoot(self, pose: np.ndarray, path: Path) -> bool:
        """Renders a view from a pose in LGM's frame into a PNG; whether anything can be seen in it."""
        # The camera comes to the object: what textures are made of positions must stay where it is.
        matrix = pose_to_blender(pose.astype(np.float64))
        matrix[:3, 3] = matrix[:3, 3] / self.factor + self.center
        self.scene.camera.matrix_world = matrix.T.tolist()  # bpy takes columns
        self.scene.render.filepath = str(path)
        try:
            bpy.ops.render.render(write_still=True, scene=self.scene.name)
        except RuntimeError as error:
            raise LGMError(f"{path.parent.parent} could not be written: {error}", "output") from error
        if not path.is_file():
            raise LGMError("It could not be rendered; the system console says more.", "internal")
        picture = bpy.data.images.load(str(path), check_existing=False)
        try:
            pixels = np.empty(4 * self.scene.render.resolution_x**2, np.float32)
            picture.pixels.foreach_get(pixels)
        finally:
            bpy.data.images.remove(picture)
        return bool(pixels[3::4].any())


@contextlib.contextmanager
def _stage(objects: Sequence[bpy.types.Object], size: int) -> Iterator[_Stage]:
    """A scene with the surfaces of `objects`, evenly lit; all that was made for it is removed at the end.

    Raises:
        LGMError: If they have no faces, or Cycles is turned off.
    """
    had_result = any(image.type == "RENDER_RESULT" for image in bpy.data.images)
    user = bpy.context.scene
    light = EvenLight()
    made: list[bpy.types.ID] = []
    try:
        scene = bpy.data.scenes.new("LGM Training Views")
        made.append(scene)
        scene.frame_set(user.frame_current, subframe=user.frame_subframe)
        low, high = _realise(objects, scene, light, made)
        center, factor = into_sphere(low, high)
        camera = camera_from_pose(np.eye(4), near=0.05 / factor, far=10 / factor)
        made += [camera, camera.data]
        scene.collection.objects.link(camera)
        scene.camera = camera
        _set_up(scene, size)
        yield _Stage(scene, center, factor)
    finally:
        if not had_result:
            made += [image for image in bpy.data.images if image.type == "RENDER_RESULT"]
        bpy.data.batch_remove(made + light.made)


def _realise(
    objects: Sequence[bpy.types.Object], scene: bpy.types.Scene, light: EvenLight, made: list[bpy.types.ID]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts meshes of all that `objects` show into `scene`: modifiers applied, instances as objects.

    Returns:
        The lowest and highest corner [3] of their faces, in the world.
    """
    for thing in objects:
        scene.collection.objects.link(thing)
    try:
        layer = scene.view_layers[0]
        layer.update()
        found: dict[tuple, bpy.types.Mesh] = {}
        placed = []
        # Text, curves and what geometry nodes make are among the instances too, as meshes.
        for instance in layer.depsgraph.object_instances:
            thing = instance.object
            if thing.type != "MESH" or not instance.show_self or thing.original.hide_render:
                continue
            own = tuple(
                slot.material and slot.material.original for slot in thing.material_slots if slot.link == "OBJECT"
            )
            key = (thing.data.as_pointer(), own)
            if key not in found:
                mesh = found[key] = thing.data.copy()
                made.append(mesh)
                for i, slot in enumerate(thing.material_slots):
                    if slot.link == "OBJECT" and i < len(mesh.materials):
                        mesh.materials[i] = slot.material and slot.material.original
            placed.append((found[key], instance.matrix_world.copy(), tuple(thing.color)))
    finally:
        for thing in objects:
            scene.collection.objects.unlink(thing)
    bounds = []
    for mesh, matrix, color in placed:
        used = np.zeros(len(mesh.loops), np.int32)
        mesh.loops.foreach_get("vertex_index", used)
        if not len(used):
            continue
        positions = np.zeros(3 * len(mesh.vertices), np.float32)
        mesh.vertices.foreach_get("co", positions)
        positions = positions.reshape(-1, 3)[np.unique(used)] @ np.array(matrix)[:3, :3].T + np.array(matrix)[:3, 3]
        if not np.isfinite(positions).all():
            raise LGMError("it has coordinates that are not numbers.")
        bounds.append((positions.min(0), positions.max(0)))
        copy = bpy.data.objects.new(mesh.name, mesh)
        made.append(copy)
        copy.matrix_world, copy.color = matrix, color
        scene.collection.objects.link(copy)
    if not bounds:
        raise LGMError("it has no faces that would be rendered.")
    low, high = np.min([b[0] for b in bounds], axis=0), np.max([b[1] for b in bounds], axis=0)
    if not np.linalg.norm(high - low) > 0:
        raise LGMError("it has no extent: all of it is in one point.")
    for mesh in found.values():
        colors = mesh.color_attributes
        shown = colors[colors.render_color_index].name if 0 <= colors.render_color_index < len(colors) else ""
        if not mesh.materials:
            mesh.materials.append(None)
        for i, material in enumerate(mesh.materials):
            mesh.materials[i] = light.material(material, shown)
    return low, high


def _set_up(scene: bpy.types.Scene, size: int) -> None:
    """The render settings: colours as they are, box-filtered as the fast maker's are, alpha kept."""
    render = scene.render
    render.engine = "CYCLES"
    render.resolution_x = render.resolution_y = size
    render.resolution_percentage = 100
    render.image_settings.file_format = "PNG"
    render.image_settings.color_mode = "RGBA"
    render.image_settings.color_depth = "8"
    render.image_settings.compression = 30
    render.film_transparent = True
    render.use_file_extension = render.use_compositing = render.use_sequencer = False
    render.use_persistent_data = True  # from view to view only the camera moves
    render.dither_intensity = 0.0
    for prop in render.bl_rna.properties:
        if prop.identifier.startswith("use_stamp_"):  # no names and paths of the user's in a data set
            setattr(render, prop.identifier, False)
    scene.view_settings.view_transform = "Raw"  # the materials give display values
    scene.view_settings.look = "None"
    cycles = scene.cycles
    cycles.samples = SAMPLES
    cycles.use_adaptive_sampling = cycles.use_denoising = False
    cycles.max_bounces = 0
    cycles.transparent_max_bounces = cycles.min_transparent_bounces = 128
    cycles.pixel_filter_type = "BOX"


# ---- The batch


def make_parser() -> argparse.ArgumentParser:
    """The batch's command line."""
    parser = argparse.ArgumentParser(
        prog="training_views.py", description="Renders training views of objects, in Blender, without a window."
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help=f"files ({', '.join(_OPENERS)}) or folders of them")
    add("--output", required=True, metavar="DIR", help="folder of the data set; made if missing")
    add("--collection", metavar="NAME", help="of a .blend, render the objects of this collection")
    add("--size", type=batch.integer(16, 4096), default=256, help="of the views in pixels (default: %(default)s)")
    add("--views", type=batch.integer(4, VIEWS), default=VIEWS, help="of each object, 4 to 36 (default: %(default)s)")
    add("--split", choices=("train", "val"), default="", help="what the objects are for")
    add("--overwrite", action="store_true", help="render objects again whose folders are there")
    return parser


def run(arguments: Sequence[str], write: Callable[[str], None] | None = None) -> int:
    """Runs a batch; the exit code. It blocks until all is done, and opens new files in this Blender.

    Args:
        arguments: The command line after '--'.
        write: Receives one line of JSON per object, without a newline; printed to stdout by default.
    """
    write = write or (lambda line: print(line, flush=True))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # --help: stdout is for results
            options = make_parser().parse_args(list(arguments))
    except SystemExit as stop:  # argparse has said why
        return batch.EXIT_OK if not stop.code else batch.EXIT_USAGE
    try:
        files = find_files(options.input)
    except LGMError as error:
        batch.tell(error.message)
        return batch.EXIT_FAILED
    good = bad = 0

    def note(result: dict) -> None:
        nonlocal good, bad
        good, bad = good + result["ok"], bad + (not result["ok"])
        write(json.dumps(result, ensure_ascii=False))

    for number, (file, name) in enumerate(files.items(), 1):
        line = batch.ProgressLine(f"[{number}/{len(files)}] {file.name}")
        try:
            items = _open(file, name, options.collection, len(files) > 1)
        except (LGMError, RuntimeError, OSError) as error:
            reason = error.message if isinstance(error, LGMError) else f"it could not be read: {str(error).strip()}"
            line.end(f"left out: {reason}")
            note({"name": name, "ok": False, "error": reason})
            continue
        maker = ViewMaker(
            items,
            Path(options.output).expanduser().absolute(),
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
                batch.tell(f"{result['name']} is left out: {result['error']}")
        if maker.error:
            line.end(maker.error)
            return batch.EXIT_FAILED
        made = sum(result["ok"] and not result["skipped"] for result in maker.results)
        there = sum(result["skipped"] for result in maker.results)
        line.end(f"{made} of {len(items)} made{f', {there} were there' if there else ''}")
    batch.tell(f"{good} objects in {options.output}, {bad} left out.")
    return batch.EXIT_OK if good else batch.EXIT_FAILED


def find_files(inputs: Sequence[str]) -> dict[Path, str]:
    """The files to open, and a name for each: its own, or where it lies in a folder, as the fast maker has it.

    Raises:
        LGMError: If one is not there, can't be opened, or a folder holds none.
    """
    files = {}
    for name in inputs:
        path = Path(name).expanduser().absolute()
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix.lower() in _OPENERS and f.is_file())
            if not found:
                raise LGMError(f"{path} holds nothing that Blender could open ({', '.join(_OPENERS)}).")
            files |= {file: "_".join(file.relative_to(path).with_suffix("").parts) for file in found}
        elif not path.is_file():
            raise LGMError(f"There is no file or folder {path}.")
        elif path.suffix.lower() not in _OPENERS:
            raise LGMError(f"{path} is of no kind that is known here: {', '.join(_OPENERS)}.")
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
            raise LGMError(f"{file} has no collection '{collection}'.")
        objects = bpy.data.collections[collection].all_objects
    elif any(thing.asset_data for thing in bpy.data.objects):
        objects = [thing for thing in bpy.data.objects if thing.asset_data]
    items = object_items(objects, f"{name}_" if several else "")
    if not items:
        raise LGMError(f"{file} has no objects with a surface.")
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
    batch.main(run, "Stopped. The same command goes on from here.")
