"""What is done without being asked: splats are mended after Blender's own tools, and scenes made fit to render them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import bpy

from .scene import repair, splat_data, splats

LARGE = 300_000  # Gaussians of a data-block from which a look takes so long that it isn't had after each small change
PAUSE = 0.5  # seconds without a look at such a one, while somebody drags a slider


class Watch:
    """Looks after data-blocks of splats whose geometry was updated.

    Blender tells that the geometry of an object was updated, not what of it: a slider of the modifier looks like Apply.
    So all positions are compared, 14 ms for a million. In a window, where updates come in rows, large data-blocks are
    looked at once, and then again when the row has ended.
    """

    def __init__(self):
        self._looked: dict[int, float] = {}  # when at each large data-block, by session_uid
        self._edited: set[int] = set()  # seen in Edit Mode and not looked at since
        self._waiting = False

    def forget(self) -> None:
        """Looks at all again: after another file or another step of the undo history was loaded."""
        self._looked.clear()
        self._edited.clear()

    def look(self, data: bpy.types.ID) -> repair.Mended:
        """Mends a data-block if its points are elsewhere than they were when they were right."""
        if data.library or data.override_library or not splat_data.point_count(data):
            return repair.Mended()
        result = repair.mend(data)
        self._edited.discard(data.session_uid)
        self._looked[data.session_uid] = time.monotonic()
        if result.unknown:
            print(
                f"LGM: {result.unknown:,} Gaussians of {data.name!r} moved, but not as one: their sizes and turns are "
                "as they were."
            )
        return result

    def may_wait(self, data: bpy.types.ID) -> bool:
        """Whether a data-block is looked at later: it is large, was looked at just now, and a window will tell when."""
        uid = data.session_uid
        if bpy.app.background or splat_data.point_count(data) < LARGE or uid in self._edited:
            return False
        return time.monotonic() - self._looked.get(uid, -PAUSE) < PAUSE

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
                shown = splats.is_splats(block.original) or block.instance_collection is not None
        if shown or changed:
            raise_what_nobody_chose([depsgraph.scene.original])
        if not changed:
            return
        edited = set(_in_edit_mode())
        for data in changed:
            if data in edited:
                self._edited.add(data.session_uid)
            elif self.may_wait(data):
                self.wait()
            else:
                self.look(data)

    def wait(self) -> None:
        """Sees to it that all that waits is looked at in a moment."""
        if not self._waiting:
            self._waiting = True
            bpy.app.timers.register(_catch_up, first_interval=PAUSE)

    def catch_up(self) -> None:
        """Looks at all that waits, now: for the timer, and before anything that must not see it as it is."""
        if self._waiting:
            self._waiting = False
            self.look_at_all()

    def look_at_all(self) -> None:
        """Looks at all splats of the file."""
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


def _in_edit_mode() -> Iterator[bpy.types.ID]:
    return (thing.data for thing in bpy.data.objects if thing.mode != "OBJECT" and thing.data is not None)


_watch = Watch()


def _catch_up() -> None:
    _watch.catch_up()


@bpy.app.handlers.persistent
def _after_update(scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
    _watch.after_update(depsgraph)


@bpy.app.handlers.persistent
def _after_load(*_) -> None:
    splats.renew_displays()
    _watch.forget()
    _watch.look_at_all()
    raise_what_nobody_chose(bpy.data.scenes)


@bpy.app.handlers.persistent
def _after_import(*_) -> None:
    raise_what_nobody_chose(bpy.data.scenes)


@bpy.app.handlers.persistent
def _after_undo(*_) -> None:
    _watch.forget()


@bpy.app.handlers.persistent
def _before_save(*_) -> None:
    _watch.catch_up()


@bpy.app.handlers.persistent
def _before_render(*_) -> None:
    _watch.catch_up()
    raise_what_nobody_chose(bpy.data.scenes)


_HANDLERS: dict[str, Callable[..., None]] = {
    "depsgraph_update_post": _after_update,
    "load_post": _after_load,
    "blend_import_post": _after_import,  # from 4.3
    "undo_post": _after_undo,
    "redo_post": _after_undo,
    "save_pre": _before_save,
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
    if bpy.app.timers.is_registered(_catch_up):
        bpy.app.timers.unregister(_catch_up)
    _watch.forget()
