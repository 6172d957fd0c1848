"""Training views in the window: the operator, what is going on, and the sub-panel "Training Data"."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy.app.translations import pgettext_iface as iface

from ...core.cameras import VIEWS
from ...core.errors import LGMError
from .. import settings
from ..scene.training_items import Item, asset_items, object_items
from ..scene.view_maker import ViewMaker
from . import preferences, timer
from .operators import Operator
from .panel import SubPanel

_maker: ViewMaker | None = None  # the one at work, or the last one
_running = False


class LGM_OT_training_views(Operator, bpy.types.Operator):
    """Render objects from many sides into a folder that LGM can be trained with. The scene stays as it is"""

    # As a button it renders view by view, so that Blender shows how far it is and Escape stops it. In the background,
    # and when called from a script, it returns when all is done.

    bl_idname = "lgm.training_views"
    bl_label = "Render Training Views"
    bl_options = {"REGISTER"}  # nothing in the file changes, so there is nothing to undo

    source: bpy.props.StringProperty(
        name="Source", description="What is rendered: SELECTED, COLLECTION or ASSETS", options={"SKIP_SAVE"}
    )
    collection: bpy.props.StringProperty(
        name="Collection", description="Whose objects are rendered. Empty: the active one", options={"SKIP_SAVE"}
    )
    library: bpy.props.StringProperty(
        name="Asset Library", description="Whose assets are rendered. Empty: this file", options={"SKIP_SAVE"}
    )
    output: bpy.props.StringProperty(
        name="Folder", description="Gets a folder for each object", subtype="DIR_PATH", options={"SKIP_SAVE"}
    )
    size: bpy.props.IntProperty(
        name="Size", description="Width and height of a view in pixels", min=16, max=4096, options={"SKIP_SAVE"}
    )
    views: bpy.props.IntProperty(
        name="Views", description="Views of each object", min=4, max=VIEWS, options={"SKIP_SAVE"}
    )
    overwrite: bpy.props.BoolProperty(
        name="Overwrite", description="Render objects again whose folders are there", options={"SKIP_SAVE"}
    )

    @classmethod
    def obstacle(cls, context) -> str:
        if _running:
            return "Training views are being rendered"
        return super().obstacle(context) if context.mode == "OBJECT" else "Leave the edit mode first"

    def invoke(self, context, event):
        return self.attempt(self.act if bpy.app.background else self._begin_modal, context)

    def _begin_modal(self, context):
        self._begin(context)
        manager = context.window_manager
        self._timer = manager.event_timer_add(0.01, window=context.window)
        manager.progress_begin(0, 100)
        manager.modal_handler_add(self)
        self._show(context)
        return {"RUNNING_MODAL"}

    def modal(self, context, event):
        # Everything else waits: an undo, or an object deleted, would take away what is being rendered.
        if event.type == "ESC" and event.value == "PRESS":
            self.cancel(context)
            self.report({"WARNING"}, f"Stopped. {_told(_maker)}")
            return {"CANCELLED"}
        if event.type != "TIMER":
            return {"RUNNING_MODAL"}
        try:
            more = _maker.step()
        except Exception:
            self.cancel(context)
            raise
        if more:
            self._show(context)
            return {"RUNNING_MODAL"}
        self._end(context)
        return self.attempt(self._finish, context)

    def cancel(self, context):
        """Stopped by the user, or by Blender when the window is closed."""
        _maker.cancel()
        self._end(context)

    def act(self, context):
        global _running
        self._begin(context)
        try:
            while _maker.step():
                pass
        finally:
            _maker.cancel()
            _running = False
        return self._finish(context)

    def _begin(self, context) -> None:
        global _maker, _running
        chosen = context.scene.lgm.training

        def given(name):
            return getattr(self if self.properties.is_property_set(name) else chosen, name)

        items = chosen_items(context, given("source"), given("collection"), given("library"))
        output = Path(bpy.path.abspath(given("output"))) if given("output") else settings.output_folder() / "training"
        _maker = ViewMaker(items, output, size=given("size"), views=given("views"), overwrite=given("overwrite"))
        _running = True

    def _finish(self, context):
        if _maker.error:
            raise LGMError(_maker.error, "output")
        bad = [result for result in _maker.results if not result["ok"]]
        for result in bad:
            self.report({"WARNING"}, f"{result['name']} is left out: {result['error']}")
        self.report({"INFO"}, _told(_maker))
        return {"FINISHED"} if len(bad) < len(_maker.results) else {"CANCELLED"}

    def _show(self, context) -> None:
        context.window_manager.progress_update(100 * _maker.factor)
        context.workspace.status_text_set(iface("Rendering training views: {}   |   Esc: stop").format(_at(_maker)))
        timer.redraw()

    def _end(self, context) -> None:
        global _running
        _running = False
        context.window_manager.event_timer_remove(self._timer)
        context.window_manager.progress_end()
        context.workspace.status_text_set(None)
        timer.redraw()


def chosen_items(context: bpy.types.Context, source: str, collection: str, library: str) -> list[Item]:
    """What a source stands for: 'SELECTED', 'COLLECTION' of that name, or 'ASSETS' of that library ('': this file).

    Raises:
        LGMError: If it is nothing.
    """
    if source == "SELECTED":
        items = object_items(context.selected_objects)
        if not items:
            raise LGMError("Select the objects to render first. Each one gives its own training object.")
        return items
    if source == "COLLECTION":
        found = bpy.data.collections.get(collection) if collection else context.collection
        if found is None:
            raise LGMError(f"This file has no collection called '{collection}'. Choose one that it has.")
        items = object_items(found.all_objects)
        if not items:
            raise LGMError(f"The collection '{found.name}' has no objects with a surface. Choose another.")
        return items
    if not library:
        return asset_items(None)
    found = context.preferences.filepaths.asset_libraries.get(library)
    if found is None:
        raise LGMError(f"The preferences name no asset library '{library}'. Choose one that they name.")
    folder = Path(bpy.path.abspath(found.path))
    if not folder.is_dir():
        raise LGMError(
            f"The asset library '{library}' is not there: {folder} is no folder. Set another one in the preferences."
        )
    return asset_items(folder)


def _at(maker: ViewMaker) -> str:
    text = iface("{}, view {} of {}; {} of {} objects")
    return text.format(maker.current, maker.view, maker.views, maker.done, len(maker.items))


def _told(maker: ViewMaker) -> str:
    bad = sum(not result["ok"] for result in maker.results)
    there = sum(result["skipped"] for result in maker.results)
    parts = [iface("{} of {} objects rendered").format(len(maker.results) - bad - there, len(maker.items))]
    parts += [iface("{} were there already").format(there)] * (there > 0)
    parts += [iface("{} left out").format(bad)] * (bad > 0)
    return f"{', '.join(parts)}: {maker.output}"


class LGM_PT_training(SubPanel, bpy.types.Panel):
    """Objects in, training views out."""

    bl_idname = "LGM_PT_training"
    bl_label = "Training Data"
    bl_order = 10

    def draw(self, context):
        layout = self.layout
        settings = context.scene.lgm.training
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.active = not _running
        column.prop(settings, "source")
        if settings.source == "COLLECTION":
            column.prop_search(settings, "collection", bpy.data, "collections")
        elif settings.source == "ASSETS":
            column.prop_search(settings, "library", context.preferences.filepaths, "asset_libraries")
        column.prop(settings, "output")
        column.prop(settings, "views")
        column.prop(settings, "size")
        column.prop(settings, "overwrite")
        if _running:
            row = layout.row()
            row.scale_y = 1.4
            row.progress(factor=_maker.factor, text=_at(_maker), translate=False)
            layout.label(text="Esc stops it; whole objects stay", icon="INFO")
            return
        row = layout.row()
        row.scale_y = 1.4
        row.operator("lgm.training_views", icon="RENDER_ANIMATION")
        if _maker is not None and (_maker.results or _maker.error):
            box = layout.box()
            preferences.draw_text(box, _maker.error or _told(_maker), context, icon="ERROR" if _maker.error else "INFO")
            bad = [result for result in _maker.results if not result["ok"]]
            for result in bad[:3]:
                preferences.draw_text(box, f"{result['name']}: {result['error']}", context, icon="ERROR")
            if len(bad) > 3:
                text = iface("and {} more; the Info editor has them").format(len(bad) - 3)
                box.label(text=text, icon="BLANK1", translate=False)


CLASSES = (LGM_OT_training_views, LGM_PT_training)
