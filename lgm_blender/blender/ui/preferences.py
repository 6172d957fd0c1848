"""What the user sets once: the worker, the device, where files go. And what is installed."""

from __future__ import annotations

import bpy
from bpy.app.translations import pgettext_iface as iface

from .. import install, session, tasks
from ..settings import ADDON, DEFAULTS
from . import translations


class LGM_Preferences(bpy.types.AddonPreferences):
    """Settings of the machine rather than of a scene."""

    bl_idname = ADDON

    worker_python: bpy.props.StringProperty(
        name="Worker Python",
        description="Python of the environment that holds torch. Empty: the one that is installed below",
        subtype="FILE_PATH",
        update=lambda self, context: session.current().forget_worker(),
    )
    device: bpy.props.EnumProperty(
        name="Device",
        description="What computes",
        items=[
            ("auto", "Automatic", "The GPU if there is one that torch can use, else the CPU"),
            ("cpu", "CPU", "Slower, but works everywhere and with little memory"),
            ("cuda", "GPU", "The NVIDIA or AMD GPU, or an error if there is none"),
            ("mps", "Apple GPU", "The GPU of a Mac with an Apple processor, or an error if there is none"),
        ],
    )
    load_ahead: bpy.props.BoolProperty(
        name="Load Models Ahead",
        description="Load the models when the panel is first shown, so that the first result comes sooner. Not where "
        "memory is short; they are given back as after any job",
        default=DEFAULTS["load_ahead"],
    )
    idle_minutes: bpy.props.IntProperty(
        name="Keep Models (Minutes)",
        description="Minutes without work after which the worker is ended and its memory given back. 0: never",
        default=DEFAULTS["idle_minutes"],
        min=0,
        soft_max=120,
    )
    output: bpy.props.StringProperty(
        name="Output Folder",
        description="Where generated files go. Empty: a folder lgm beside the saved .blend",
        subtype="DIR_PATH",
    )

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        draw_worker(layout.box(), context)
        column = layout.column()
        column.prop(self, "worker_python")
        column.prop(self, "device")
        column.prop(self, "load_ahead")
        column.prop(self, "idle_minutes")
        column.prop(self, "output")


def draw_worker(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What is installed, and buttons to change it."""
    now = session.current()
    if now.fetching:
        draw_task(layout, now.task)
        return
    if now.task and now.task.state == "failed":
        draw_text(layout, now.task.error, context, icon="ERROR")
    for note in now.task.notes if now.task else ():
        draw_text(layout, note, context, icon="INFO")
    worker = now.worker()
    if worker.path is None:
        draw_text(layout, worker.where, context, icon="INFO")
    else:
        text = iface("Worker: {} ({})").format(worker.path, iface(worker.where))
        layout.label(text=text, icon="CHECKMARK", translate=False)
        if now.engine and now.engine.state == "starting":
            layout.label(text="Starting it ...", icon="TIME")
        elif now.engine and now.engine.info:
            info = now.engine.info
            text = iface("Python {}, torch {}, computes on {}").format(info.python, info.torch, info.device_name)
            layout.label(text=text, icon="BLANK1", translate=False)
        elif now.engine and now.engine.problem:
            draw_text(layout, now.engine.problem, context, icon="ERROR")
    if worker.path is None:
        now.suitable_build()  # so that it is known when the button is pressed
    if worker.path is None and not bpy.app.online_access:
        draw_online(layout, context)
    row = layout.row(align=True)
    row.operator("lgm.install_worker", text=install.label(), icon="IMPORT")
    row.operator("lgm.install_from_folder", icon="FILE_FOLDER")
    row = layout.row(align=True)
    row.operator("lgm.check_worker", icon="FILE_REFRESH")
    row.operator("lgm.open_log", icon="TEXT")
    row.operator("lgm.remove_worker", icon="TRASH")


def draw_task(layout: bpy.types.UILayout, task: tasks.Task) -> None:
    """How far the installer or a download is, and a way to stop it."""
    row = layout.row(align=True)
    row.scale_y = 1.4
    row.progress(factor=task.factor, text=task.label)
    row.operator("lgm.cancel", text="", icon="X")
    layout.label(text=task.message, translate=False)


def draw_online(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Why nothing can be fetched, and the switch for it."""
    if bpy.app.online_access_override:
        draw_text(
            layout, "Blender was started with --offline-mode: nothing can be fetched.", context, icon="INTERNET_OFFLINE"
        )
        return
    draw_text(layout, "Blender is not allowed to go online. Fetching needs it.", context, icon="INTERNET_OFFLINE")
    layout.prop(context.preferences.system, "use_online_access", text="Allow Online Access")


def draw_text(layout: bpy.types.UILayout, text: str, context: bpy.types.Context, icon: str = "NONE") -> None:
    """A sentence, translated where it can be, in as many lines as it needs: labels don't wrap."""
    width = context.region.width if context.region else 300
    letters = max(20, int(width / (7.0 * context.preferences.system.ui_scale)) - 12)  # less icon, box and button
    column = layout.column(align=True)
    column.scale_y = 0.85
    for number, line in enumerate(translations.wrapped(iface(text), letters)):
        there = icon if number == 0 else "NONE" if icon == "NONE" else "BLANK1"
        column.label(text=line, icon=there, translate=False)


CLASSES = (LGM_Preferences,)
