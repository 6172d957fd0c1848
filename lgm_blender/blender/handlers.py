"""What is done without being asked: splats are mended after Blender's own tools, and scenes made fit to render them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import bpy
import numpy as np

from .scene import repair, splat_data, splats

_SAMPLE = 256  # points that are compared where nothing else says that positions changed


class Watch:
    """Looks after data-blocks of splats whose geometry was updated, and knows those that it need not look at again."""

    def __init__(self):
        self._seen: dict[int, tuple[int, ...]] = {}  # by session_uid

    def forget(self) -> None:
        """Looks at all again: after another file or another step of the undo history was loaded."""
        self._seen.clear()

    def look(self, data: bpy.types.ID) -> repair.Mended:
        """Mends a data-block, unless its points are where they were at the last look.

        Blender shares the array of positions with what it has evaluated of it, and so puts positions that change into
        another array. What changes none, a slider of the modifier for one, is told apart by that in no time.
        """
        if data.library or data.override_library or not splat_data.point_count(data):
            return repair.Mended()
        if repair.has_rest(data) and self._seen.get(data.session_uid) == _fingerprint(data) and _sample_rests(data):
            return repair.Mended()
        result = repair.mend(data)
        self._seen[data.session_uid] = _fingerprint(data)
        if result.unknown:
            print(
                f"LGM: {result.unknown:,} Gaussians of {data.name!r} moved, but not as one: their sizes and turns are "
                "as they were."
            )
        return result

    def after_update(self, depsgraph: bpy.types.Depsgraph) -> None:
        """Looks at the splats whose geometry was updated, and at the render settings of the scene where they are."""
        changed, shown = [], False
        for update in depsgraph.updates:
            if not update.is_updated_geometry and not update.is_updated_transform:
                continue
            block = update.id
            if isinstance(block, bpy.types.Mesh | bpy.types.PointCloud):
                if update.is_updated_geometry and splat_data.is_splat_data(block.original):
                    changed.append(block.original)
            elif isinstance(block, bpy.types.Object) and not shown:
                shown = splats.is_splats(block) or block.instance_collection is not None
        if shown or changed:
            raise_what_nobody_chose([depsgraph.scene.original])
        if not changed:
            return
        edited = set(_in_edit_mode())
        for data in changed:
            if data in edited:
                self._seen.pop(data.session_uid, None)  # its array may come back at the same place
            else:
                self.look(data)

    def look_at_all(self) -> None:
        """Looks at all splats of the file."""
        self.forget()
        edited = set(_in_edit_mode())
        for data in (*bpy.data.pointclouds, *bpy.data.meshes):
            if splat_data.is_splat_data(data) and data not in edited:
                self.look(data)


def raise_what_nobody_chose(scenes: Iterator[bpy.types.Scene]) -> None:
    """Raises render settings of scenes that hold splats, where they are as low as Blender sets them.

    What somebody has set, to something higher than that, is left to them: the panel warns.
    """
    for scene in scenes:
        if scene.library is None and splats.settings_too_low(scene):
            for sentence in splats.prepare_scene_for_splats(scene, chosen=False):
                print(f"LGM: {sentence}")


def _fingerprint(data: bpy.types.ID) -> tuple[int, ...]:
    arrays = (data.attributes[name].data for name in ("position", splat_data.REST))
    return (splat_data.point_count(data), *(array[0].as_pointer() for array in arrays))


def _sample_rests(data: bpy.types.ID) -> bool:
    position, rest = (data.attributes[name].data for name in ("position", splat_data.REST))
    count = len(position)
    return all(position[i].vector == rest[i].vector for i in np.linspace(0, count - 1, min(_SAMPLE, count)).astype(int))


def _in_edit_mode() -> Iterator[bpy.types.ID]:
    return (thing.data for thing in bpy.data.objects if thing.mode != "OBJECT" and thing.data is not None)


_watch = Watch()


@bpy.app.handlers.persistent
def _after_update(scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
    _watch.after_update(depsgraph)


@bpy.app.handlers.persistent
def _after_load(*_) -> None:
    _watch.look_at_all()
    raise_what_nobody_chose(bpy.data.scenes)


@bpy.app.handlers.persistent
def _after_import(*_) -> None:
    raise_what_nobody_chose(bpy.data.scenes)


@bpy.app.handlers.persistent
def _after_undo(*_) -> None:
    _watch.forget()


@bpy.app.handlers.persistent
def _before_render(*_) -> None:
    raise_what_nobody_chose(bpy.data.scenes)


_HANDLERS: dict[str, Callable[..., None]] = {
    "depsgraph_update_post": _after_update,
    "load_post": _after_load,
    "blend_import_post": _after_import,  # from 4.3
    "undo_post": _after_undo,
    "redo_post": _after_undo,
    "render_init": _before_render,
}


def register() -> None:
    """Puts the handlers in place, and looks at the splats that are there already.

    Blender hides the file from an add-on that it enables; then they are looked at when they are next updated.
    """
    for name, function in _HANDLERS.items():
        functions = getattr(bpy.app.handlers, name, None)
        if functions is not None and function not in functions:
            functions.append(function)
    if isinstance(bpy.data, bpy.types.BlendData):
        _watch.look_at_all()


def unregister() -> None:
    """Takes the handlers away."""
    for name, function in _HANDLERS.items():
        functions = getattr(bpy.app.handlers, name, None)
        if functions is not None and function in functions:
            functions.remove(function)
    _watch.forget()
