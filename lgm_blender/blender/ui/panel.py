"""The tab "LGM" in the 3D view's side panel. Drawing asks nothing that takes time."""

from __future__ import annotations

import time

import bpy
from bpy.app.translations import pgettext_iface as iface

from ...core.messages import STAGES, PresetInfo
from .. import install, session
from ..settings import preference
from . import cutout, hints, icons, preferences, sources
from .properties import BUNDLED, FOLDER, known_presets
from .translations import CONTEXT


class Panel:
    """What all panels of the tab share."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "LGM"
    bl_translation_context = CONTEXT


class SubPanel(Panel):
    """What those below the main one share."""

    bl_parent_id = "LGM_PT_main"
    bl_options = {"DEFAULT_CLOSED"}


class LGM_PT_main(Panel, bpy.types.Panel):
    """Image and prompt in, splats or a mesh out."""

    bl_idname = "LGM_PT_main"
    bl_label = "LGM"

    def draw_header_preset(self, context):
        self.layout.operator("lgm.show_preferences", text="", icon="PREFERENCES", emboss=False)

    def draw(self, context):
        layout = self.layout
        now = session.current()
        settings = context.scene.lgm
        if preference("load_ahead") and not bpy.app.background:
            now.show(settings.chosen_preset(), "text" if settings.image is None and settings.prompt else "image")

        column = layout.column()
        column.active = now.job is None
        column.template_ID_preview(settings, "image", open="image.open", rows=3, cols=6)
        sources.draw_sources(column)
        if settings.image:
            cutout.draw(column, context, now)
        column.prop(settings, "prompt", text="", icon="TEXT", placeholder="What is it?")
        hints.draw_unread_words(column, context)
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.active = now.job is None
        column.prop(settings, "preset")
        if settings.preset == FOLDER:
            column.prop(settings, "preset_folder", text="Folder")
        row = column.row(align=True)
        row.prop(settings, "seed")
        row.prop(settings, "use_random_seed", text="", icon="FILE_REFRESH")
        column.prop(settings, "candidates")
        if settings.image:  # taken for another than it is, what was seen of a top becomes a tilted front
            sources.draw_elevation(column, settings)
        column.separator(factor=0.5)
        row = column.row()
        row.use_property_split = False  # in as wide a row as there is: Japanese words are long
        row.prop(settings, "output_kind", expand=True)
        column.prop(settings, "size")

        if now.job:
            draw_job(layout, now)
        elif now.fetching:
            preferences.draw_task(layout, now.task)
        elif now.worker().path is None:
            draw_install(layout, context, now)
        else:
            draw_generate(layout, context)
        if now.choice:
            draw_choice(layout, context, now)
        if now.problem:
            draw_problem(layout.box(), context, now.problem)
        if now.outcome:
            draw_outcome(layout.box(), context, now)


class LGM_PT_mesh(SubPanel, bpy.types.Panel):
    """How meshes are made, and of what else."""

    bl_idname = "LGM_PT_mesh"
    bl_label = "Mesh"

    def draw(self, context):
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(context.scene.lgm, "faces")
        column.prop(context.scene.lgm, "quads")
        column.prop(context.scene.lgm, "texture_size")
        self.layout.operator("lgm.convert_to_mesh", icon="OUTLINER_OB_MESH")


class LGM_PT_advanced(SubPanel, bpy.types.Panel):
    """What one seldom changes."""

    bl_idname = "LGM_PT_advanced"
    bl_label = "Advanced"

    def draw(self, context):
        settings = context.scene.lgm
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        for name in ("negative_prompt", "steps", "guidance", "view_samples", "output"):
            column.prop(settings, name)


def draw_install(layout: bpy.types.UILayout, context: bpy.types.Context, now: session.Session) -> None:
    """Why nothing can be made yet, and the button that changes it."""
    now.suitable_build()  # so that it is known when the button is pressed
    preferences.draw_text(layout, now.worker().where, context, icon="INFO")
    if not bpy.app.online_access:
        preferences.draw_online(layout, context)
    column = layout.column(align=True)
    row = column.row(align=True)
    row.scale_y = 1.6
    row.operator("lgm.install_worker", text=install.label(), icon="IMPORT")
    column.operator("lgm.show_preferences", text="Preferences", icon="PREFERENCES")


def draw_generate(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """The button, or why it can't be pressed."""
    missing = what_is_missing(context.scene.lgm)
    row = layout.row()
    row.scale_y = 1.6
    row.enabled = not missing
    mesh = context.scene.lgm.output_kind == "mesh"
    row.operator("lgm.generate", text="Generate", icon="OUTLINER_OB_MESH" if mesh else "OUTLINER_OB_POINTCLOUD")
    if missing:
        preferences.draw_text(layout, missing, context, icon="INFO")
    preset = preset_info(context.scene.lgm)
    if preset and not preset.ready:
        draw_fetch(layout, context)


def draw_fetch(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """The button that fetches the chosen preset's models, if they can be."""
    if context.scene.lgm.preset == BUNDLED:
        return
    if not bpy.app.online_access:
        preferences.draw_online(layout, context)
    layout.operator("lgm.fetch_weights", icon="IMPORT").preset = context.scene.lgm.chosen_preset()


def preset_info(settings) -> PresetInfo | None:
    """What the worker told of the chosen preset, if it has."""
    return next((preset for preset in known_presets() if preset.name == settings.preset), None)


def what_is_missing(settings) -> str:
    """A sentence about what the user has yet to give, or ''."""
    if settings.image is None and not settings.prompt.strip():
        return "Choose an image or write a prompt."
    if not settings.chosen_preset():
        return "Choose the preset's folder."
    preset = preset_info(settings)
    if preset and not preset.ready:
        return preset.problem
    if preset and settings.image is None and "text" not in preset.modes:
        return iface("{} needs an image: it can't start from a prompt alone.").format(preset.label)
    return ""


def draw_job(layout: bpy.types.UILayout, now: session.Session) -> None:
    """How far the job is, what it looks like, and a way to stop it."""
    job = now.job
    row = layout.row(align=True)
    row.scale_y = 1.4
    label = iface("Starting the worker") if now.engine.state == "starting" else job_label(job)
    if job.state == "waiting" and now.preload.loading:
        label = job_label(now.preload.job)
    row.progress(factor=job_factor(job), text=label, translate=False)
    row.operator("lgm.cancel", text="", icon="X")
    seconds = time.monotonic()
    told = hints.told_time(seconds - job.started, now.forecast.remaining(seconds))
    layout.label(text=told, icon="TIME", translate=False)
    draw_views(layout, now)


def job_label(job) -> str:
    """What a job does, in the interface's language; the number of its step stays."""
    words, _, step = job.label.rpartition(" ")
    return f"{iface(words)} {step}" if "/" in step else iface(job.label)


def draw_views(layout: bpy.types.UILayout, now: session.Session) -> None:
    """The views, two by two."""
    column = layout.column(align=True)
    shown = icons.views if now.views else []
    for first in range(0, len(shown), 2):
        row = column.row(align=True)
        for icon in shown[first : first + 2]:
            row.template_icon(icon_value=icon, scale=5.5)


def job_factor(job) -> float:
    """How much of the job is done, 0 to 1: the stages count alike, but for the views, which take most of the time."""
    progress = job.progress
    if progress is None:
        return 0.0
    weights = [1.0] * max(1, progress.stages)
    if job.method == "generate" and len(weights) >= len(STAGES):
        weights[STAGES.index("views")] = 4.0
    within = progress.step / progress.steps if progress.steps else 0.0
    done = sum(weights[: progress.stage_index]) + weights[min(progress.stage_index, len(weights) - 1)] * within
    return min(1.0, done / sum(weights))


def draw_choice(layout: bpy.types.UILayout, context: bpy.types.Context, now: session.Session) -> None:
    """The candidates, four views in a row each, the one whose views agree best first, and what can be made of them."""
    for warning in now.choice.result.warnings:
        preferences.draw_text(layout, warning, context, icon="INFO")
    box = layout.box()
    row = box.row()
    row.label(text="Candidates, the best first", icon="PRESET")
    row.operator("lgm.drop_candidates", text="", icon="X", emboss=False)
    for candidate in now.choice.result.candidates:
        column = box.column(align=True)
        row = column.row(align=True)
        for file in candidate.views:
            row.template_icon(icon_value=icons.of_file(file), scale=3.2)
        row = column.row(align=True)
        done = candidate.seed in now.choice.made
        text, icon = (iface("Made"), "CHECKMARK") if done else (iface("Make 3D"), "OUTLINER_OB_POINTCLOUD")
        row.operator("lgm.make_candidate", text=text, icon=icon).seed = str(candidate.seed)
        row.operator("lgm.views_from_candidate", text="", icon="IMAGE_DATA").seed = str(candidate.seed)


def draw_problem(layout: bpy.types.UILayout, context: bpy.types.Context, problem: session.Problem) -> None:
    """What went wrong, and the button that helps."""
    row = layout.row()
    preferences.draw_text(row.column(), problem.sentence, context, icon="ERROR")
    row.operator("lgm.dismiss", text="", icon="X", emboss=False)
    settings, row = context.scene.lgm, layout.row(align=True)
    if problem.kind in ("bad_input", "matting") and settings.image:
        row.operator("lgm.open_image", text="Another Image", icon="FILE_FOLDER")
        if problem.kind == "matting":
            cutout.draw_fetch(layout, context)
    elif problem.kind == "output":
        row.prop(settings, "output", text="Folder")
    elif problem.kind == "weights" and settings.preset == BUNDLED:  # they come with the extension, and only with it
        row.operator("extensions.package_install_files", text="Install from Disk", icon="IMPORT")
    elif problem.kind == "weights" and not session.current().fetching:
        draw_fetch(layout, context)
    elif problem.kind == "out_of_memory":
        row.prop(settings, "view_samples")
        row.operator("lgm.show_preferences", text="Device", icon="PREFERENCES")
    elif problem.kind in ("worker", "device", "internal"):
        row.operator("lgm.open_log", icon="TEXT")
        row.operator("lgm.show_preferences", text="Preferences", icon="PREFERENCES")
        if problem.kind == "worker" and session.current().worker().where == "installed":
            row.operator("lgm.install_worker", text=install.label(), icon="IMPORT")


def draw_outcome(layout: bpy.types.UILayout, context: bpy.types.Context, now: session.Session) -> None:
    """What the last job made."""
    outcome = now.outcome
    result = outcome.result
    icons = ["OUTLINER_OB_POINTCLOUD"] * bool(getattr(result, "ply", None)) + ["OUTLINER_OB_MESH"]
    for name, icon in zip(outcome.objects, icons, strict=False):
        layout.label(text=name, icon=icon, translate=False)
    faces, gaussians = iface("{:,} faces").format(result.faces), iface("{:,} Gaussians").format(result.gaussians)
    facts = [faces if result.faces else gaussians]
    facts += [iface("seed {}").format(result.settings["seed"])] if "seed" in result.settings else []
    facts += [iface("{} s").format(round(outcome.seconds))]
    layout.label(text=", ".join(facts), translate=False)
    row = layout.row(align=True)
    row.operator_context = "INVOKE_REGION_WIN"
    row.operator("view3d.view_selected", text="Frame", icon="ZOOM_SELECTED")
    shading = context.space_data.shading
    if shading.type in ("WIREFRAME", "SOLID"):
        row.prop_enum(shading, "type", "MATERIAL", text="Show Colors")
    draw_views(layout, now)
    for warning in outcome.warnings:
        preferences.draw_text(layout, warning, context, icon="INFO")
    layout.operator("lgm.open_folder", icon="FILE_FOLDER")


CLASSES = (LGM_PT_main, LGM_PT_mesh, LGM_PT_advanced)
