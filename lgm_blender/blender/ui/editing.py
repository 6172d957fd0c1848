"""Splats edited: the operators, the sub-panel "Edit", what Blender's menus get, and what a scene is warned of."""

from __future__ import annotations

import bpy
import numpy as np
from bpy.app.translations import pgettext_iface as iface

from ...core.errors import LGMError
from .. import compat
from ..scene import conversion, editing, repair, splat_data, splats
from . import preferences
from .operators import Operator
from .panel import SubPanel
from .translations import CONTEXT

CONVERT = {"NATIVE": "Convert to Native", "POINTS": "Convert to Points"}


class _Edit(Operator):
    """What operators share that edit the splats of the active object, or of all that are selected."""

    modes = ("OBJECT",)

    @classmethod
    def obstacle(cls, context) -> str:
        target = context.object
        if not splats.is_splats(target):
            return "The active object holds no splats"
        if target.library or target.data.library:
            return "The active object is linked from another file. Make it local first"
        if target.mode not in cls.modes:
            return "Leave Edit Mode first" if target.mode == "EDIT" else "Go to Object Mode first"
        return ""


def _selected(context) -> list[bpy.types.Object]:
    """The splats that are selected, the active ones among them in any case, and first."""
    others = [thing for thing in context.selected_objects if thing != context.object and splats.is_splats(thing)]
    return [context.object, *others]


class LGM_OT_splats_apply(_Edit, bpy.types.Operator):
    """Move the transform of the selected splats into the Gaussians, turned and scaled with it, harmonics too"""

    bl_idname = "lgm.splats_apply"
    bl_label = "Apply Transform"
    bl_options = {"REGISTER", "UNDO"}

    location: bpy.props.BoolProperty(name="Location", description="Move the Gaussians as the object is", default=True)
    rotation: bpy.props.BoolProperty(name="Rotation", description="Turn them as the object is", default=True)
    scale: bpy.props.BoolProperty(name="Scale", description="Scale them as the object is", default=True)

    def act(self, context):
        for target in _selected(context):
            editing.apply_transform(target, location=self.location, rotation=self.rotation, scale=self.scale)
        return {"FINISHED"}


class LGM_OT_splats_join(_Edit, bpy.types.Operator):
    """Join the selected splats to the active ones, each where and as it is seen; native and others may be mixed"""

    bl_idname = "lgm.splats_join"
    bl_label = "Join"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def obstacle(cls, context) -> str:
        return super().obstacle(context) or ("" if len(_selected(context)) > 1 else "Select other splats too")

    def act(self, context):
        target, *others = _selected(context)
        editing.join(target, others)
        return {"FINISHED"}


class LGM_OT_splats_separate(_Edit, bpy.types.Operator):
    """Take the Gaussians that are selected in Edit Mode into an object of their own"""

    bl_idname = "lgm.splats_separate"
    bl_label = "Separate Selected"
    bl_options = {"REGISTER", "UNDO"}
    modes = ("OBJECT", "EDIT")

    def act(self, context):
        target = context.object
        edited = target.mode == "EDIT"
        if edited:
            bpy.ops.object.mode_set(mode="OBJECT")
        try:
            editing.separate(target).select_set(True)
        finally:
            if edited:
                bpy.ops.object.mode_set(mode="EDIT")
        return {"FINISHED"}


class LGM_OT_splats_crop(_Edit, bpy.types.Operator):
    """Delete the Gaussians outside, or inside, of the closed meshes that are selected with the splats"""

    bl_idname = "lgm.splats_crop"
    bl_label = "Crop by Mesh"
    bl_options = {"REGISTER", "UNDO"}

    keep: bpy.props.EnumProperty(
        name="Keep",
        description="Which Gaussians stay",
        items=[
            ("INSIDE", "Inside", "What is outside of all of the meshes is deleted"),
            ("OUTSIDE", "Outside", "What is inside of any of the meshes is deleted"),
        ],
        translation_context=CONTEXT,
    )

    @classmethod
    def obstacle(cls, context) -> str:
        cutters, targets = _cutters_and_splats(context)
        if not targets:
            return "Select splats, and a closed mesh"
        return "" if cutters else "Select a closed mesh too"

    def act(self, context):
        cutters, targets = _cutters_and_splats(context)
        gone = sum(editing.crop(target, cutters, keep_inside=self.keep == "INSIDE") for target in targets)
        self.report({"INFO"}, f"{gone:,} Gaussians were deleted.")
        return {"FINISHED"}


def _cutters_and_splats(context) -> tuple[list[bpy.types.Object], list[bpy.types.Object]]:
    chosen = {*context.selected_objects, context.object} - {None}
    targets = [thing for thing in chosen if splats.is_splats(thing)]
    cutters = [thing for thing in chosen if thing.type == "MESH" and thing not in targets and thing.data.polygons]
    return cutters, targets


class _Select(_Edit):
    """What operators share that select Gaussians in Edit Mode."""

    modes = ("OBJECT", "EDIT")

    def act(self, context):
        target = context.object
        if target.mode == "OBJECT":
            repair.mend(target.data)
        chosen = self.chosen(target)
        editing.select(target, chosen)
        if target.mode == "OBJECT":
            if target.type == "MESH":
                context.tool_settings.mesh_select_mode = (True, False, False)
            bpy.ops.object.mode_set(mode="EDIT")
        self.report({"INFO"}, f"{chosen.sum():,} of {len(chosen):,} Gaussians are selected.")
        return {"FINISHED"}


class LGM_OT_splats_select_floaters(_Select, bpy.types.Operator):
    """Select small clusters apart from the rest, and faint Gaussians on their own"""

    bl_idname = "lgm.splats_select_floaters"
    bl_label = "Select Floaters"
    bl_options = {"REGISTER", "UNDO"}

    share: bpy.props.FloatProperty(
        name="Share", description="Clusters with less than this part of the opacity are floaters", default=0.01,
        min=0.0, max=1.0, subtype="FACTOR",
    )  # fmt: skip

    def chosen(self, target) -> np.ndarray:
        return editing.floaters(target, self.share)


class LGM_OT_splats_select_faint(_Select, bpy.types.Operator):
    """Select the Gaussians that one can hardly see"""

    bl_idname = "lgm.splats_select_faint"
    bl_label = "Select Faint"
    bl_options = {"REGISTER", "UNDO"}

    opacity: bpy.props.FloatProperty(
        name="Opacity", description="Up to which", default=editing.FAINT, min=0.0, max=1.0, subtype="FACTOR"
    )

    def chosen(self, target) -> np.ndarray:
        return editing.by_opacity(target, 0.0, self.opacity)


class LGM_OT_splats_select_opacity(_Select, bpy.types.Operator):
    """Keep selected what has an opacity between two: of a box or lasso, the solid or the faint Gaussians only"""

    bl_idname = "lgm.splats_select_opacity"
    bl_label = "Narrow by Opacity"
    bl_options = {"REGISTER", "UNDO"}

    low: bpy.props.FloatProperty(
        name="From", description="Least opacity", default=0.0, min=0.0, max=1.0, subtype="FACTOR"
    )
    high: bpy.props.FloatProperty(
        name="To", description="Highest opacity", default=0.5, min=0.0, max=1.0, subtype="FACTOR",
        translation_context=CONTEXT,
    )  # fmt: skip
    within: bpy.props.BoolProperty(name="Within the Selection", description="Else of all Gaussians", default=True)

    def chosen(self, target) -> np.ndarray:
        chosen = editing.by_opacity(target, self.low, self.high)
        return chosen & editing.selection(target) if self.within else chosen


class LGM_OT_splats_crop_box(_Edit, bpy.types.Operator):
    """Show only what is in a box: adds one around the splats, to be moved, turned and scaled; nothing is deleted"""

    bl_idname = "lgm.splats_crop_box"
    bl_label = "Add Crop Box"
    bl_options = {"REGISTER", "UNDO"}

    def act(self, context):
        box = editing.add_crop_box(context.object)
        for thing in context.selected_objects:
            thing.select_set(False)
        context.view_layer.update()  # else it does not know the box yet
        box.select_set(True)
        context.view_layer.objects.active = box
        return {"FINISHED"}


class LGM_OT_splats_convert(Operator, bpy.types.Operator):
    """Make the selected splats Blender's own, or points of a mesh that show the exact picture; nothing is lost"""

    bl_idname = "lgm.splats_convert"
    bl_label = "Convert Splats"
    bl_options = {"REGISTER", "UNDO"}

    target: bpy.props.EnumProperty(
        name="To",
        description="What the splats become",
        items=[
            ("NATIVE", "Native", "Blender's own splats: fast, and blended in linear light"),
            ("POINTS", "Points", "Points of a mesh, as older Blenders have them, displayed exactly"),
        ],
    )
    all_objects: bpy.props.BoolProperty(
        name="All of the Scene", description="Convert all splats of the scene, selected or not"
    )

    @classmethod
    def obstacle(cls, context) -> str:
        if not compat.has_native_splats():
            return "Native splats are there from Blender 5.3 on"
        if next(splats.shown_splats(context.scene), None) is None:
            return "There are no splats in this scene"
        return "" if context.mode == "OBJECT" else "Go to Object Mode first"

    def act(self, context):
        wanted = context.scene.objects if self.all_objects else context.selected_objects
        data, done, problem = {}, 0, None
        for thing in [thing for thing in wanted if splats.is_splats(thing)]:
            try:
                done += conversion.convert(thing, native=self.target == "NATIVE", data=data) != thing
            except (LGMError, ReferenceError) as error:
                problem = error
        if problem is not None and not done:
            raise problem
        for sentence in splats.prepare_scene_for_splats(context.scene):
            self.report({"INFO"}, sentence)
        self.report({"INFO"}, f"{done:,} objects were converted.")
        return {"FINISHED"}


class LGM_OT_splats_mend(_Edit, bpy.types.Operator):
    """Turn and scale Gaussians after their centres, where something moved only those; it is done without this too"""

    bl_idname = "lgm.splats_mend"
    bl_label = "Mend"
    bl_options = {"REGISTER", "UNDO"}

    def act(self, context):
        results = [repair.mend(target.data) for target in _selected(context)]
        changed, unknown = sum(r.changed for r in results), sum(r.unknown for r in results)
        sentence = f"{changed:,} Gaussians were turned or scaled."
        if unknown:
            sentence += f" {unknown:,} moved, but not as one: those keep their sizes."
        self.report({"INFO"}, sentence)
        return {"FINISHED"}


class LGM_OT_prepare_scene(Operator, bpy.types.Operator):
    """Raise the scene's render settings that are too low for splats"""

    bl_idname = "lgm.prepare_scene"
    bl_label = "Prepare Scene"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def obstacle(cls, context) -> str:
        return "" if context.scene.library is None else "The scene is linked from another file"

    def act(self, context):
        for sentence in splats.prepare_scene_for_splats(context.scene):
            self.report({"INFO"}, sentence)
        return {"FINISHED"}


class LGM_PT_prepare(SubPanel, bpy.types.Panel):
    """What the scene lacks for its splats, and the button that helps."""

    bl_idname = "LGM_PT_prepare"
    bl_label = "Render Settings"
    bl_options = set()
    bl_order = -1

    @classmethod
    def poll(cls, context):
        return bool(splats.settings_too_low(context.scene))

    def draw(self, context):
        for sentence in splats.settings_too_low(context.scene):
            preferences.draw_text(self.layout, sentence, context, icon="ERROR")
        self.layout.operator("lgm.prepare_scene", icon="CHECKMARK")


class LGM_PT_edit(SubPanel, bpy.types.Panel):
    """What can be done to the splats of the active object."""

    bl_idname = "LGM_PT_edit"
    bl_label = "Edit"

    @classmethod
    def poll(cls, context):
        return splats.is_splats(context.object)

    def draw(self, context):
        layout, target = self.layout, context.object
        layout.label(text=describe(context), icon="OUTLINER_OB_POINTCLOUD", translate=False)
        if unknown := target.data.get(repair.UNMENDED, 0):
            sentence = iface(
                "{:,} Gaussians moved, but not as one (proportional editing?): they keep their sizes."
            ).format(unknown)
            preferences.draw_text(layout, sentence, context, icon="INFO")
        column = layout.column(align=True)
        column.operator("lgm.splats_apply", icon="OBJECT_ORIGIN")
        column.operator("lgm.splats_join", icon="AUTOMERGE_ON")
        column.operator("lgm.splats_separate", icon="AUTOMERGE_OFF")
        column = layout.column(align=True)
        column.operator("lgm.splats_select_floaters", icon="PARTICLES")
        column.operator("lgm.splats_select_faint", icon="IMAGE_ALPHA")
        column.operator("lgm.splats_select_opacity", icon="SELECT_INTERSECT")
        column = layout.column(align=True)
        row = column.row(align=True)
        row.operator("lgm.splats_crop", text="Crop: Keep Inside", icon="MOD_BOOLEAN").keep = "INSIDE"
        row.operator("lgm.splats_crop", text="Outside").keep = "OUTSIDE"
        column.operator("lgm.splats_crop_box", icon="CUBE")
        if compat.has_native_splats():
            column = layout.column(align=True)
            other = "POINTS" if splat_data.is_native(target.data) else "NATIVE"
            for text, everything in ((CONVERT[other], False), (iface("All of the Scene"), True)):
                button = column.operator("lgm.splats_convert", text=text, icon="FILE_REFRESH")
                button.target, button.all_objects = other, everything
        layout.operator("lgm.splats_mend", icon="MODIFIER")


def describe(context) -> str:
    """How many Gaussians the active object has, and how many are selected."""
    target = context.object
    if target.mode == "EDIT" and target.type == "MESH":
        return iface("{:,} Gaussians are selected").format(target.data.total_vert_sel)
    count = splat_data.point_count(target.data)
    if target.mode == "EDIT":
        return iface("{:,} of {:,} Gaussians are selected").format(editing.selection(target).sum(), count)
    others = [thing for thing in context.selected_objects if thing != target and splats.is_splats(thing)]
    more = sum(splat_data.point_count(thing.data) for thing in others)
    if others:
        return iface("{:,} Gaussians, and {:,} of {} other selected objects").format(count, more, len(others))
    return iface("{:,} Gaussians").format(count)


def _draw_apply(self, context) -> None:
    if splats.is_splats(context.object):
        self.layout.separator()
        self.layout.operator("lgm.splats_apply", text="Transform of Splats")


def _draw_convert(self, context) -> None:
    if compat.has_native_splats() and splats.is_splats(context.object):
        self.layout.separator()
        self.layout.operator_enum("lgm.splats_convert", "target")


def _draw_select(self, context) -> None:
    if splats.is_splats(context.object):
        self.layout.separator()
        for name in ("floaters", "faint", "opacity"):
            self.layout.operator(f"lgm.splats_select_{name}")


_MENUS = {
    "VIEW3D_MT_object_apply": _draw_apply,
    "VIEW3D_MT_object_convert": _draw_convert,
    "VIEW3D_MT_select_edit_mesh": _draw_select,
    "VIEW3D_MT_select_edit_pointcloud": _draw_select,  # where point clouds have an Edit Mode
}


def add_menus() -> None:
    """Puts entries into Blender's menus."""
    for name, draw in _MENUS.items():
        if hasattr(bpy.types, name):
            getattr(bpy.types, name).append(draw)


def remove_menus() -> None:
    """Takes them out again."""
    for name, draw in _MENUS.items():
        if hasattr(bpy.types, name):
            getattr(bpy.types, name).remove(draw)


CLASSES = (
    LGM_OT_splats_apply,
    LGM_OT_splats_join,
    LGM_OT_splats_separate,
    LGM_OT_splats_crop,
    LGM_OT_splats_select_floaters,
    LGM_OT_splats_select_faint,
    LGM_OT_splats_select_opacity,
    LGM_OT_splats_crop_box,
    LGM_OT_splats_convert,
    LGM_OT_splats_mend,
    LGM_OT_prepare_scene,
    LGM_PT_prepare,
    LGM_PT_edit,
)
