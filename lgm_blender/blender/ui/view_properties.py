"""What is set about the four views of a scene, and about cameras that render them."""

from __future__ import annotations

import bpy

from ...core.messages import VIEW_NAMES
from .. import session
from ..scene import splats, view_rig
from .translations import CONTEXT

TITLES = {"front": "Front", "right": "Right", "back": "Back", "left": "Left"}
SIDES = {
    "front": "what faces the camera, -Y in Blender",
    "right": "what is seen from +X",
    "back": "what is seen from behind, +Y",
    "left": "what is seen from -X",
}


def _image(view: str) -> bpy.props.PointerProperty:
    return bpy.props.PointerProperty(
        name=TITLES[view],
        description=f"The object from the {view}: {SIDES[view]}",
        type=bpy.types.Image,
        poll=lambda self, image: image.type not in ("RENDER_RESULT", "COMPOSITING"),
    )


def _keep(view: str) -> bpy.props.BoolProperty:
    return bpy.props.BoolProperty(
        name=f"Keep {TITLES[view]}", description=f"Leave the view from the {view} as it is when others are sampled"
    )


def _live_changed(self, context) -> None:
    session.current().live.switched(context.scene, self.live)


class LGM_Views(bpy.types.PropertyGroup):
    """The four views: `scene.lgm.views`."""

    front: _image("front")
    right: _image("right")
    back: _image("back")
    left: _image("left")
    keep_front: _keep("front")
    keep_right: _keep("right")
    keep_back: _keep("back")
    keep_left: _keep("left")
    cut_out: bpy.props.BoolProperty(
        name="Cut Out",
        description="For photographs: cut the object out of all four and frame it by one scale. Leave it off for "
        "sampled or rendered views, which show the object as LGM's cameras do",
    )
    elevation: bpy.props.FloatProperty(
        name="Elevation",
        description="Degrees that the four cameras are above the object",
        min=-90.0,
        max=90.0,
        soft_min=-30.0,
        soft_max=60.0,
    )
    live: bpy.props.BoolProperty(
        name="Live",
        description="Whenever a view changes, make its splats again, in place: paint on a view in the Image Editor, or "
        "move what the cameras see",
        update=_live_changed,
    )
    target: bpy.props.PointerProperty(
        name="Splats",
        description="What Live changes. Empty: new splats",
        type=bpy.types.Object,
        poll=lambda self, thing: splats.is_splats(thing),
    )
    rig: bpy.props.PointerProperty(
        name="Cameras",
        description="The empty whose four cameras render the views",
        type=bpy.types.Object,
        poll=lambda self, thing: view_rig.is_rig(thing),
        translation_context=CONTEXT,
    )
    facts: bpy.props.StringProperty(
        name="Facts", description="How the views were made, as JSON: it goes into the result's settings"
    )

    def images(self) -> list[bpy.types.Image | None]:
        """The four, in the order of VIEW_NAMES."""
        return [getattr(self, view) for view in VIEW_NAMES]

    def kept(self) -> list[bool]:
        """Which of them stay when others are sampled."""
        return [getattr(self, f"keep_{view}") for view in VIEW_NAMES]


class LGM_RigObject(bpy.types.PropertyGroup):
    """One of the objects that a rig's cameras see."""

    object: bpy.props.PointerProperty(name="Object", description="What the cameras see", type=bpy.types.Object)


def _elevation_changed(self, context) -> None:
    view_rig.set_elevation(self.id_data, self.elevation)


class LGM_Rig(bpy.types.PropertyGroup):
    """An empty with four cameras: `object.lgm_rig`."""

    objects: bpy.props.CollectionProperty(
        name="Objects",
        description="What the cameras see; with none, all that is rendered but splats",
        type=LGM_RigObject,
    )
    elevation: bpy.props.FloatProperty(
        name="Elevation",
        description="Degrees that the four cameras are above the middle",
        min=-89.0,
        max=89.0,
        update=_elevation_changed,
    )


CLASSES = (LGM_Views, LGM_RigObject, LGM_Rig)
