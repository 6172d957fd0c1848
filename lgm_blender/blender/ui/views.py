"""The four views in the side panel: look at each, replace it, paint on it, sample the others, render them, go live."""

from __future__ import annotations

import random
from pathlib import Path

import bpy
from bpy.app.translations import pgettext_iface as iface

from ...core.errors import LGMError
from ...core.messages import VIEW_NAMES, GenerateResult, SampleResult
from .. import session, views
from ..scene import results, splats, view_images, view_rig
from . import preferences
from .operators import MAX_SEED, JobOperator, Operator, scene_image
from .panel import SubPanel
from .view_properties import TITLES


class LGM_OT_reconstruct(JobOperator, bpy.types.Operator):
    """Turn the four views into Gaussian splats, a textured mesh or both, by LGM alone: nothing is made up"""

    bl_idname = "lgm.reconstruct"
    bl_label = "Reconstruct"
    bl_options = {"REGISTER"}  # the undo step comes with the result

    output_kind: bpy.props.StringProperty(
        name="Output", description="What comes into the scene: splats, mesh or both", options={"SKIP_SAVE"}
    )
    size: bpy.props.FloatProperty(
        name="Size", description="Longest side of what comes into the scene. 0: as LGM makes it", subtype="DISTANCE",
        min=0.0, options={"SKIP_SAVE"},
    )  # fmt: skip

    @classmethod
    def obstacle(cls, context) -> str:
        return super().obstacle(context) or views.missing(context.scene)

    def begin(self, context):
        now, scene, settings = session.current(), context.scene, context.scene.lgm
        request = views.reconstruct_request(
            scene,
            now.temporary_folder(),
            output_kind=self.given(context, "output_kind"),
            faces=self.given(context, "faces"),
            texture_size=int(self.given(context, "texture_size")),
            quads=self.given(context, "quads"),
        )
        rig = settings.views.rig if "cameras" in request.facts else None
        size = 0.0 if rig else self.given(context, "size")
        now.begin(request, scene, size=size, take=_placed_by(rig) if rig else None)


def _placed_by(rig: bpy.types.Object) -> session.Take:
    """Adds a result where a rig's cameras have seen it."""
    uid = rig.session_uid

    def take(result: GenerateResult, scene: bpy.types.Scene, files: results.Files) -> list[bpy.types.Object]:
        made = results.add_result(result, scene, files=files)
        rig = next((thing for thing in bpy.data.objects if thing.session_uid == uid), None)
        for thing in made if rig else ():
            view_rig.place(thing, rig)
        return made

    return take


class LGM_OT_sample_others(JobOperator, bpy.types.Operator):
    """Sample the views that are not pinned anew, so that they go with the pinned ones"""

    bl_idname = "lgm.sample_others"
    bl_label = "Sample the Others"
    bl_options = {"REGISTER"}

    def begin(self, context):
        now, settings = session.current(), context.scene.lgm
        if settings.use_random_seed:
            settings.seed = random.randint(0, MAX_SEED)
        request = views.sample_request(
            context.scene,
            now.temporary_folder(),
            now.samples_folder(),
            scene_image(settings),
            seeds=[settings.seed],
            steps=settings.steps or None,
            guidance=settings.guidance or None,
            negative_prompt=settings.negative_prompt or None,
            previews=not bpy.app.background,
        )

        def take(result: SampleResult, scene: bpy.types.Scene, files: None) -> list[bpy.types.Object]:
            views.fill_from_candidate(scene, result, settings.seed)
            return []

        now.begin(request, context.scene, take=take)


class LGM_OT_views_from_result(Operator, bpy.types.Operator):
    """Take the four views that the active object, or the last result, was made of"""

    bl_idname = "lgm.views_from_result"
    bl_label = "From Result"
    bl_options = {"REGISTER", "UNDO"}

    def act(self, context):
        found = _views_of(context.object) if context.object else None
        outcome = session.current().outcome
        if found is None and outcome is not None and isinstance(outcome.result, GenerateResult):
            found = outcome.result.views, outcome.result.settings
        if found is None or not Path(found[0]).is_file():
            raise LGMError("There is no result whose views are still there. Generate something first.")
        file, facts = found
        pictures = view_images.row_pixels(file)
        if len(pictures) != len(VIEW_NAMES):
            raise LGMError(f"{file} does not show four views side by side. Generate something first.")
        generated = facts.get("generated") or [True] * len(VIEW_NAMES)
        known = {key: value for key, value in facts.items() if key in ("image", "prompt", "seed", "steps", "guidance")}
        views.fill(context.scene, pictures, generated=generated, elevation=facts.get("elevation", 0.0), facts=known)
        context.scene.lgm.views.target = context.object if splats.is_splats(context.object) else None
        return {"FINISHED"}


def _views_of(thing: bpy.types.Object) -> tuple[str, dict] | None:
    """The picture of an object's views, and its settings, if LGM made it."""
    settings = splats.read_settings(thing)
    file = settings.get("ply") or settings.get("glb")
    if not file:
        return None
    path = Path(bpy.path.abspath(file))
    return str(path.with_name(f"{path.stem}_views.png")), settings


class LGM_OT_paint_view(Operator, bpy.types.Operator):
    """Show this view in an Image Editor, to look at it or to paint on it"""

    bl_idname = "lgm.paint_view"
    bl_label = "Paint View"

    view: bpy.props.StringProperty(
        name="View", description="Which view: front, right, back or left", options={"SKIP_SAVE"}
    )

    @classmethod
    def obstacle(cls, context) -> str:
        return ""

    def act(self, context):
        image = getattr(context.scene.lgm.views, self.view, None) if self.view in VIEW_NAMES else None
        if image is None:
            raise LGMError("There is no such view. Choose an image for it first.")
        if not view_images.paint(context, image):
            raise LGMError("There is no Image Editor in this window. Open one.")
        return {"FINISHED"}


class LGM_OT_add_view_cameras(Operator, bpy.types.Operator):
    """Put four cameras around the selected objects, or at the 3D cursor; what they see can be made splats of"""

    bl_idname = "lgm.add_view_cameras"
    bl_label = "Add Cameras"
    bl_options = {"REGISTER", "UNDO"}

    elevation: bpy.props.FloatProperty(
        name="Elevation", description="Degrees of the cameras above the middle", min=-89.0, max=89.0
    )

    def act(self, context):
        chosen = [thing for thing in context.selected_objects if thing.type in view_rig.MESHES]
        chosen = [thing for thing in chosen if not splats.is_splats(thing)]
        context.scene.lgm.views.rig = view_rig.add_rig(context.scene, chosen, self.elevation)
        return {"FINISHED"}


class LGM_OT_render_views(Operator, bpy.types.Operator):
    """Render the four views with the cameras, evenly lit, as the models know objects"""

    bl_idname = "lgm.render_views"
    bl_label = "Render Views"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def obstacle(cls, context) -> str:
        rig = context.scene.lgm.views.rig
        return super().obstacle(context) or ("" if view_rig.is_rig(rig) else "There are no cameras. Add them first")

    def act(self, context):
        views.fill_from_cameras(context.scene, session.current().temporary_folder())
        return {"FINISHED"}


class LGM_PT_views(SubPanel, bpy.types.Panel):
    """The four views, and what can be done with them."""

    bl_idname = "LGM_PT_views"
    bl_label = "Views"

    def draw(self, context):
        layout, found = self.layout, context.scene.lgm.views
        now = session.current()
        row = layout.row(align=True)
        row.operator("lgm.views_from_result", icon="IMPORT")
        row.operator("lgm.add_view_cameras", icon="OUTLINER_OB_CAMERA")
        grid = layout.grid_flow(row_major=True, columns=2, even_columns=True, align=True)
        for view in VIEW_NAMES:
            draw_view(grid.box(), found, view)
        column = layout.column()
        column.use_property_split, column.use_property_decorate = True, False
        if found.rig:
            column.prop(found, "rig")
            column.prop(found.rig.lgm_rig, "elevation")
            layout.operator("lgm.render_views", icon="RENDER_STILL")
        else:
            column.prop(found, "elevation")
            column.prop(found, "cut_out")
        missing = views.missing(context.scene)
        if any(found.kept()) and not all(found.kept()):
            layout.operator("lgm.sample_others", icon="FILE_REFRESH")
        row = layout.row(align=True)
        row.scale_y = 1.4
        row.operator("lgm.reconstruct", icon="OUTLINER_OB_POINTCLOUD")
        live = row.row(align=True)
        live.enabled = not missing or found.live
        live.prop(found, "live", toggle=True, icon="PLAY" if not found.live else "PAUSE")
        if found.live:
            column.prop(found, "target")
            if now.live.seconds:
                text = iface("Last change: {:.1f} s").format(now.live.seconds)
                layout.label(text=text, icon="TIME", translate=False)
        elif missing and any(found.images()):
            preferences.draw_text(layout, missing, context, icon="INFO")


def draw_view(box: bpy.types.UILayout, found, view: str) -> None:
    """One of the views: its picture, and buttons to pin it, paint on it and choose another."""
    image = getattr(found, view)
    row = box.row(align=True)
    row.label(text=TITLES[view])
    if image is not None:
        keep = getattr(found, f"keep_{view}")
        row.prop(found, f"keep_{view}", text="", icon="PINNED" if keep else "UNPINNED", emboss=False)
        row.operator("lgm.paint_view", text="", icon="BRUSH_DATA", emboss=False).view = view
        box.template_icon(icon_value=image.preview_ensure().icon_id, scale=5.0)
    box.template_ID(found, view, open="image.open")


CLASSES = (
    LGM_OT_reconstruct,
    LGM_OT_sample_others,
    LGM_OT_views_from_result,
    LGM_OT_paint_view,
    LGM_OT_add_view_cameras,
    LGM_OT_render_views,
    LGM_PT_views,
)
