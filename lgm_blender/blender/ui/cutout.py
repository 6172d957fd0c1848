"""The cut-out in the panel: what it looks like before it costs anything, and what corrects it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import bpy
import numpy as np
from bpy.app.translations import pgettext_iface as iface

from ...core.cutout import NETWORK
from ...core.errors import LGMError
from .. import session
from . import icons, preferences
from .operators import Fetch, Operator
from .properties import MASK_OF
from .translations import CONTEXT

USED = {
    "mask": "Cut out by the mask",
    "alpha": "Cut out by its alpha",
    "border": "Cut off a plain background",
    "network": "Cut out by the network",
}


class LGM_OT_cut_out(bpy.types.Operator):
    """Cut the image out again, as it is now: it or its mask was painted on"""

    bl_idname = "lgm.cut_out"
    bl_label = "Update Cut-Out"

    @classmethod
    def poll(cls, context):
        return context.scene.lgm.image is not None

    def execute(self, context):
        session.current().cut_out(context.scene)
        return {"FINISHED"}


class LGM_OT_paint_mask(Operator, bpy.types.Operator):
    """Paint by hand what is the object: white in a mask that begins as the cut-out that is shown"""

    bl_idname = "lgm.paint_mask"
    bl_label = "Paint Mask"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def obstacle(cls, context) -> str:
        return "" if context.scene.lgm.image else "Choose an image first"

    def act(self, context):
        settings = context.scene.lgm
        if settings.mask is None:
            settings.mask = make_mask(settings.image, session.current().cutout)
        if not show_mask(context, settings.mask):
            self.report({"INFO"}, f"Open an Image Editor, choose '{settings.mask.name}' and its mode Paint.")
        return {"FINISHED"}


class LGM_OT_clear_mask(bpy.types.Operator):
    """Cut the image out without the mask again; its image stays in the file"""

    bl_idname = "lgm.clear_mask"
    bl_label = "Clear Mask"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        return context.scene.lgm.mask is not None

    def execute(self, context):
        context.scene.lgm.mask = None
        return {"FINISHED"}


class LGM_OT_fetch_network(Fetch, bpy.types.Operator):
    """Fetch a network that cuts objects out of any background"""

    bl_idname = "lgm.fetch_network"
    bl_label = "Fetch Network"

    def invoke(self, context, event):
        return context.window_manager.invoke_props_dialog(self, width=550, confirm_text=iface("Fetch", CONTEXT))

    def draw(self, context):
        for line in NETWORK.terms():
            for part in textwrap.wrap(line, 90, break_on_hyphens=False):
                self.layout.label(text=part)

    def begin(self, context):
        session.current().download(NETWORK.name)


def make_mask(image: bpy.types.Image, cutout) -> bpy.types.Image:
    """A new image as large as `image`: white where the cut-out that is known of it shows the object, else black.

    Args:
        cutout: The session's. Where nothing is known, all is white.

    Raises:
        LGMError: If the image has no pixels.
    """
    width, height = image.size
    if not width or not height:
        raise LGMError(f"The image '{image.name}' has no pixels. Choose another one.")
    mask = bpy.data.images.new(f"{image.name} Mask", width, height)
    mask.use_fake_user = True  # what was painted must not be lost because the mask was cleared
    mask[MASK_OF] = image.name
    white = np.ones((height, width), np.float32)
    if cutout.result and Path(cutout.result.cutout).is_file():
        white = _alpha(cutout.result.cutout, width, height)
    pixels = np.ones((height, width, 4), np.float32)
    pixels[..., :3] = white[..., None]
    mask.pixels.foreach_set(pixels.ravel())
    mask.pack()  # or it would be black in the file that is saved
    return mask


def _alpha(path: str, width: int, height: int) -> np.ndarray:
    """The alpha channel of a picture in that size, [height, width] in 0..1, from the bottom up."""
    picture = bpy.data.images.load(path, check_existing=False)
    try:
        picture.scale(width, height)
        pixels = np.empty(4 * width * height, np.float32)
        picture.pixels.foreach_get(pixels)
    finally:
        bpy.data.images.remove(picture)
    return pixels.reshape(height, width, 4)[..., 3]


def show_mask(context: bpy.types.Context, mask: bpy.types.Image) -> bool:
    """Opens the mask in an Image Editor in its paint mode; whether there is one in any window."""
    manager = context.window_manager
    for area in (area for window in manager.windows for area in window.screen.areas if area.type == "IMAGE_EDITOR"):
        space = area.spaces.active
        space.image = mask
        space.ui_mode = "PAINT"
        return True
    return False


def draw(layout: bpy.types.UILayout, context: bpy.types.Context, now: session.Session) -> None:
    """What the image looks like cut out, and beside it as the models see it; doubts; and what corrects it."""
    settings, cutout = context.scene.lgm, now.cutout
    known = cutout.is_of(context.scene)
    if known and cutout.result:
        row = layout.row(align=True)
        for icon in icons.cutout.icons:
            row.template_icon(icon_value=icon, scale=5.5)
    header, body = layout.panel("lgm_cutout", default_closed=True)
    header.label(text=_state(now, known))
    header.operator("lgm.cut_out", text="", icon="FILE_REFRESH", emboss=False)
    if known and cutout.result:
        for warning in cutout.result.warnings:
            preferences.draw_text(layout, warning, context, icon="ERROR")
    if known and cutout.refusal:
        preferences.draw_text(layout, cutout.refusal.sentence, context, icon="ERROR")
        if cutout.refusal.kind == "matting":
            draw_fetch(layout, context)
    if body:
        draw_controls(body, settings)


def _state(now: session.Session, known: bool) -> str:
    cutout = now.cutout
    if cutout.busy:
        return "Cutting out ..." if cutout.is_asked else "Cut-out: waits"
    if known and cutout.result:
        return USED.get(cutout.result.matting, "Cut out")
    return "Not cut out" if known and cutout.refusal else "Cut-Out"


def draw_controls(layout: bpy.types.UILayout, settings) -> None:
    """Method, threshold and mask."""
    column = layout.column()
    column.use_property_split = True
    column.use_property_decorate = False
    automatic = column.column()
    automatic.active = settings.mask is None
    automatic.prop(settings, "matting")
    automatic.prop(settings, "matting_threshold", slider=True)
    column.prop(settings, "mask")
    row = layout.row(align=True)
    row.operator("lgm.paint_mask", icon="BRUSH_DATA")
    row.operator("lgm.clear_mask", icon="X")


def draw_fetch(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """The button that fetches the network, and what it waits for."""
    if session.current().fetching:
        return
    if not bpy.app.online_access:
        preferences.draw_online(layout, context)
    layout.operator("lgm.fetch_network", icon="IMPORT")


CLASSES = (LGM_OT_cut_out, LGM_OT_paint_mask, LGM_OT_clear_mask, LGM_OT_fetch_network)
