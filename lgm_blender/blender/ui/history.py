"""Results made before: back into the scene, again with another seed, or deleted."""

from __future__ import annotations

import random
import time
from dataclasses import fields
from pathlib import Path

import bpy
from bpy.app.translations import pgettext_iface as iface

from ...core.errors import LGMError
from ...core.messages import GenerateRequest
from .. import history, session
from ..scene import results
from ..settings import output_folder, preference
from . import icons, preferences
from .operators import MAX_SEED, JobOperator, Operator
from .panel import SubPanel

SHOWN = 6  # results at once
LOOK_AGAIN = 2.0  # seconds after which the list is read again

_read: tuple[float, list[Path]] = (0.0, [])
_entries: dict[Path, history.Entry | None] = {}


def shown_entries(page: int) -> tuple[list[history.Entry], int]:
    """A page of results, the newest first, and how many pages there are. Cheap enough for drawing."""
    global _read
    now = time.monotonic()
    if now - _read[0] > LOOK_AGAIN:
        _read = now, history.paths()[::-1]
        _entries.clear()
    found = _read[1]
    page = min(page, max(0, (len(found) - 1) // SHOWN))
    here = found[page * SHOWN : (page + 1) * SHOWN]
    for path in here:
        if path not in _entries:
            _entries[path] = history.read(path)
    return [entry for path in here if (entry := _entries[path])], -(-len(found) // SHOWN)


def forget_entries() -> None:
    """Has the list read again when it is next drawn."""
    global _read
    _read = (0.0, [])


class _OfEntry(Operator):
    """What operators share that do something with a result made before."""

    path: bpy.props.StringProperty(name="File", description="The result's JSON", options={"SKIP_SAVE"})

    def entry(self) -> history.Entry:
        """The result.

        Raises:
            LGMError: If it is gone.
        """
        entry = history.read(Path(self.path))
        if entry is None:
            history.remove(self.path)
            forget_entries()
            raise LGMError(f"{self.path} or what it names is gone. Choose another result.")
        return entry


class LGM_OT_restore_result(_OfEntry, bpy.types.Operator):
    """Put this result into the scene again"""

    bl_idname = "lgm.restore_result"
    bl_label = "Restore"
    bl_options = {"REGISTER", "UNDO"}

    def act(self, context):
        entry = self.entry()
        made = results.add_result(entry.result, context.scene, context.scene.lgm.size or None)
        results.select(made, context.scene)
        return {"FINISHED"}


class LGM_OT_repeat_result(JobOperator, bpy.types.Operator):
    """Make this result again with another seed"""

    bl_idname = "lgm.repeat_result"
    bl_label = "Repeat with Another Seed"
    bl_options = {"REGISTER"}

    path: bpy.props.StringProperty(name="File", description="The result's JSON", options={"SKIP_SAVE"})

    def begin(self, context):
        entry = history.read(Path(self.path))
        if entry is None:
            raise LGMError(f"{self.path} or what it names is gone. Choose another result.")
        settings, scene = entry.result.settings, context.scene
        if not (settings.get("image") or settings.get("prompt")):
            raise LGMError("It was made of given views, which have no seed. Choose one of an image or a prompt.")
        if settings.get("image") and not Path(settings["image"]).is_file():
            raise LGMError(f"Its image {settings['image']} is gone. Choose the image and generate anew.")
        names = {field.name for field in fields(GenerateRequest)}
        asked = {name: value for name, value in settings.items() if name in names and value is not None}
        given = {"job": "", "seed": random.randint(0, MAX_SEED), "candidates": 1, "overwrite": False}
        given |= {"output": str(output_folder(scene.lgm.output)), "device": preference("device")}
        session.current().begin(GenerateRequest(**asked | given), scene, size=scene.lgm.size)


class LGM_OT_delete_result(_OfEntry, bpy.types.Operator):
    """Delete this result's files. What is in the scene stays"""

    bl_idname = "lgm.delete_result"
    bl_label = "Delete Result"

    def invoke(self, context, event):
        return context.window_manager.invoke_confirm(
            self, event, message=iface("Delete the files of {}?").format(Path(self.path).stem)
        )

    def act(self, context):
        history.delete(self.entry())
        icons.clear_files()
        forget_entries()
        return {"FINISHED"}


class LGM_PT_history(SubPanel, bpy.types.Panel):
    """Results made before, the newest first."""

    bl_idname = "LGM_PT_history"
    bl_label = "History"

    def draw(self, context):
        layout, settings = self.layout, context.scene.lgm
        entries, pages = shown_entries(settings.history_page - 1)
        if not entries:
            preferences.draw_text(layout, "What you make is listed here.", context, icon="INFO")
        for entry in entries:
            row = layout.box().row()
            if entry.result.views:
                row.template_icon(icon_value=icons.of_file(entry.result.views, first=True), scale=3.0)
            column = row.column(align=True)
            column.label(text=entry.name, translate=False)
            made = entry.result
            facts = [iface("seed {}").format(made.settings["seed"])] if "seed" in made.settings else []
            facts += [iface("{:,} Gaussians").format(made.gaussians)]
            column.label(text=", ".join(facts), translate=False)
            buttons = column.row(align=True)
            buttons.operator("lgm.restore_result", text="Restore").path = str(entry.path)
            buttons.operator("lgm.repeat_result", text="", icon="FILE_REFRESH").path = str(entry.path)
            buttons.operator("lgm.delete_result", text="", icon="TRASH").path = str(entry.path)
        if pages > 1:
            layout.prop(settings, "history_page", text=iface("Page of {}").format(pages), translate=False)


CLASSES = (LGM_OT_restore_result, LGM_OT_repeat_result, LGM_OT_delete_result, LGM_PT_history)
