"""Where the image comes from, besides Blender's own image menu: a file, the render, the clipboard, the 3D view."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import bpy
from bpy_extras.io_utils import ImportHelper

from ...core.errors import LGMError
from ...core.pictures import BLENDER_PICTURES, OTHER_PICTURES, WORKER_PICTURES
from ..scene import capture, images
from .operators import Operator

ELEVATIONS = (("Front", 0.0), ("Slightly Above", 15.0), ("Above", 30.0))  # what most pictures were taken from


class _Source(Operator):
    """What operators share that give the scene its image; a job under way has its own already."""

    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def obstacle(cls, context) -> str:
        return ""

    def act(self, context):
        context.scene.lgm.image = self.image(context)
        return {"FINISHED"}


class LGM_OT_open_image(_Source, ImportHelper, bpy.types.Operator):
    """Choose a picture of one object: any kind that Blender or the models' own program can read"""

    bl_idname = "lgm.open_image"
    bl_label = "Open Image for LGM"

    filepath: bpy.props.StringProperty(
        name="File", description="The picture's path", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )  # set by a drop, and only then
    filter_image: bpy.props.BoolProperty(
        name="Images", description="Show pictures", default=True, options={"HIDDEN", "SKIP_SAVE"}
    )
    filter_folder: bpy.props.BoolProperty(
        name="Folders", description="Show folders", default=True, options={"HIDDEN", "SKIP_SAVE"}
    )

    def invoke(self, context, event):
        return self.execute(context) if self.filepath else super().invoke(context, event)

    def image(self, context) -> bpy.types.Image:
        return images.open_image(Path(bpy.path.abspath(self.filepath)).absolute())


class LGM_OT_use_render(_Source, bpy.types.Operator):
    """Take the last render as it is shown, with its alpha if the film is transparent"""

    bl_idname = "lgm.use_render"
    bl_label = "Render Result"

    def image(self, context) -> bpy.types.Image:
        return images.render_result(context.scene)


class LGM_OT_paste_image(_Source, bpy.types.Operator):
    """Take the picture that was copied last in any program, or that of a file whose path was"""

    bl_idname = "lgm.paste_image"
    bl_label = "From Clipboard"

    def image(self, context) -> bpy.types.Image:
        if bpy.app.background or context.screen is None:
            raise LGMError("The clipboard can only be read in a window. Choose an image file instead.")
        before = {image.session_uid for image in bpy.data.images}
        with _image_editor(context) as area:
            region = next(region for region in area.regions if region.type == "WINDOW")
            with context.temp_override(area=area, region=region):
                if bpy.ops.image.clipboard_paste.poll():
                    bpy.ops.image.clipboard_paste()
        made = [image for image in bpy.data.images if image.session_uid not in before]
        if not made and (path := copied_file(context.window_manager.clipboard)):
            return images.open_image(path)
        if not made:  # under X11 Blender sees none
            raise LGMError(
                "There is no picture on the clipboard that Blender can read. Copy one, or the path of its file, or "
                "save it and choose its file."
            )
        made[-1].pack()  # it has no file that would keep it
        return made[-1]


def copied_file(text: str) -> Path | None:
    """The file whose path or address was copied, as file managers do, or None. Of several it is the first."""
    line = next((line.strip().strip("\"'") for line in text[:10_000].splitlines() if line.strip()), "")
    if line.startswith("file:"):
        line = url2pathname(urlsplit(line).path)
    if line.startswith(("\\\\", "//")):  # on another machine, which Windows would tell the user's password hash
        return None
    with contextlib.suppress(OSError, ValueError):  # a text that can't be a path
        if line and Path(line).is_absolute() and Path(line).is_file():
            return Path(line)
    return None


@contextlib.contextmanager
def _image_editor(context: bpy.types.Context) -> Iterator[bpy.types.Area]:
    """An image editor, without which Blender pastes no picture: one that is there, or another editor for a moment."""
    areas = list(context.screen.areas)
    area = next((area for area in areas if area.type == "IMAGE_EDITOR"), None)
    before = None
    if area is None:
        others = [area for area in areas if area != context.area]  # which has the button that was pressed
        area = min(others or areas, key=lambda area: area.width * area.height)
        before = area.ui_type
        area.type = "IMAGE_EDITOR"
    shown = area.spaces.active.image
    try:
        yield area
    finally:
        area.spaces.active.image = shown
        if before is not None:
            area.ui_type = before


class LGM_OT_capture_view(_Source, bpy.types.Operator):
    """Take what this 3D view shows of the selected objects, or of all, and from how far above it looks"""

    bl_idname = "lgm.capture_view"
    bl_label = "Object in View"

    def act(self, context):
        area = context.area if context.area and context.area.type == "VIEW_3D" else _any_view(context)
        image, elevation = capture.capture(context, area)
        settings = context.scene.lgm
        settings.image, settings.elevation = image, elevation
        self.report({"INFO"}, f"{image.name}, seen from {elevation:.0f} degrees above")
        return {"FINISHED"}


def _any_view(context: bpy.types.Context) -> bpy.types.Area:
    areas = context.screen.areas if context.screen else ()
    area = next((area for area in areas if area.type == "VIEW_3D"), None)
    if area is None:
        raise LGMError("There is no 3D view to capture. Open one first.")
    return area


class LGM_OT_set_elevation(_Source, bpy.types.Operator):
    """Say how far above the object the image was taken from: how much of its top is seen"""

    bl_idname = "lgm.set_elevation"
    bl_label = "Set Elevation"
    bl_options = {"REGISTER", "UNDO", "INTERNAL"}

    elevation: bpy.props.FloatProperty(
        name="Elevation", description="Degrees above the object", min=-90.0, max=90.0, options={"SKIP_SAVE"}
    )

    def act(self, context):
        context.scene.lgm.elevation = self.elevation
        return {"FINISHED"}


class LGM_FH_image(bpy.types.FileHandler):
    """An image dropped on a 3D view whose LGM tab is open becomes the image; on others Blender does what it always
    does with it."""

    bl_idname = "LGM_FH_image"
    bl_label = "Image for LGM"
    bl_import_operator = "lgm.open_image"
    bl_file_extensions = ";".join((*WORKER_PICTURES, *BLENDER_PICTURES, *OTHER_PICTURES))

    @classmethod
    def poll_drop(cls, context):
        area = context.area
        if area is None or area.type != "VIEW_3D" or not area.spaces.active.show_region_ui:
            return False
        return any(region.type == "UI" and region.active_panel_category == "LGM" for region in area.regions)


def draw_sources(layout: bpy.types.UILayout) -> None:
    """Buttons for where the image may come from."""
    row = layout.row(align=True)
    row.operator("lgm.capture_view", text="View", icon="VIEW3D")
    row.operator("lgm.use_render", text="Render", icon="RENDER_RESULT")
    row.operator("lgm.paste_image", text="Clipboard", icon="PASTEDOWN")


def draw_elevation(layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup) -> None:
    """The elevation, and buttons for the usual ones."""
    layout.prop(settings, "elevation")
    row = layout
    for (text, degrees), share in zip(ELEVATIONS, (0.26, 0.64, 1.0), strict=True):  # as wide as their texts
        row = row.split(factor=share, align=True)
        pressed = abs(settings.elevation - degrees) < 0.5
        row.operator("lgm.set_elevation", text=text, depress=pressed).elevation = degrees


CLASSES = (
    LGM_OT_open_image,
    LGM_OT_use_render,
    LGM_OT_paste_image,
    LGM_OT_capture_view,
    LGM_OT_set_elevation,
    LGM_FH_image,
)
