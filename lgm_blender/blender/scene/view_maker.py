"""Renders training views of objects, evenly lit, in a scene of its own; nothing of it stays in the file."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np

from ...core.cameras import VIEWS, into_sphere, pose_to_blender, view_poses
from ...core.errors import LGMError
from ...core.files import output_error
from ...core.formats.transforms import file_name, find_transforms, new_folder, unique_names, write_transforms
from . import stage
from .nodes.even_light import EvenLight
from .render import camera_from_pose
from .training_items import Item

SAMPLES = 16  # per pixel; there is no noise but at edges and in fine textures
VISIBLE = 0.9  # share of the views in which something must be seen


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
            scene = stack.enter_context(_stage(objects, self.size))
            folder = stack.enter_context(new_folder(self.output, item.name, self.overwrite))
            seen = 0
            for i, pose in enumerate(poses):
                yield
                seen += scene.shoot(pose, folder / file_name(i))
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
            raise LGMError(
                f"{path.parent.parent} could not be written: {str(error).strip()}. Choose another folder.", "output"
            ) from error
        if not path.is_file():
            raise LGMError("It could not be rendered. Look into the system console, which says why.", "internal")
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
        LGMError: If they have no faces.
    """
    user = bpy.context.scene
    with stage.own_scene("LGM Training Views") as (scene, light, made):
        scene.frame_set(user.frame_current, subframe=user.frame_subframe)
        low, high = realise(objects, scene, light, made)
        center, factor = into_sphere(low, high)
        stage.put_camera(scene, camera_from_pose(np.eye(4), near=0.05 / factor, far=10 / factor), made)
        set_up(scene, size)
        yield _Stage(scene, center, factor)


def realise(
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


def set_up(scene: bpy.types.Scene, size: int) -> None:
    """The render settings: colours as they are, box-filtered as the fast maker's are, alpha kept."""
    stage.set_up_render(scene, (size, size), SAMPLES, transparent=True)
    scene.render.image_settings.compression = 30
    scene.render.use_persistent_data = True  # from view to view only the camera moves
    for prop in scene.render.bl_rna.properties:
        if prop.identifier.startswith("use_stamp_"):  # no names and paths of the user's in a data set
            setattr(scene.render, prop.identifier, False)
    scene.cycles.transparent_max_bounces = scene.cycles.min_transparent_bounces = 128
    scene.cycles.pixel_filter_type = "BOX"
