"""What the user sets for each scene."""

from __future__ import annotations

import zlib
from pathlib import Path

import bpy

from ...core.cameras import VIEWS
from ...core.messages import FACES, MAX_CANDIDATES, TEXTURE_SIZE, PresetInfo
from .. import session
from ..scene import results
from .translations import CONTEXT
from .view_properties import LGM_Views

# What every worker has; it tells more once it runs.
BUNDLED = "mini"
PRESETS = ((BUNDLED, "Mini", "Small models that come with the add-on"), ("lgm", "LGM", "The published models"))
MASK_OF = "lgm_mask_of"  # custom property of a mask: the name of the image that it was made for
FOLDER = "folder"  # the item of the enum that stands for a preset in a folder
_items: list[tuple] = []


def known_presets() -> list[PresetInfo]:
    """What the worker told of its presets, once it has."""
    engine = session.current().engine
    return engine.info.presets if engine and engine.info else []


def preset_items(self, context) -> list[tuple[str, str, str, str, int]]:
    """The presets that the worker told of, or those every worker has; and that of a folder."""
    presets = [(p.name, p.label, p.problem or "Ready") for p in known_presets()] or PRESETS
    presets = [*presets, (FOLDER, "Folder...", "A preset in a folder, as training makes it")]
    # Blender keeps no reference to these strings: they must live on.
    _items[:] = [(name, label, tip, "NONE", preset_number(name)) for name, label, tip in presets]
    return _items


def cut_out(self, context) -> None:
    """Has the image cut out as it is set now, to be looked at."""
    if not bpy.app.background:
        session.current().cut_out(self.id_data)


def choose_image(self, context) -> None:
    """A mask that was painted for another image goes."""
    if self.image and self.mask and self.mask.get(MASK_OF, self.image.name) != self.image.name:
        self.mask = None  # which cuts out
    else:
        cut_out(self, context)


def preset_number(name: str) -> int:
    """The number a preset is saved under in a .blend. It follows from the name, so presets may come and go."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


class LGM_TrainingSettings(bpy.types.PropertyGroup):
    """What training views to render: `scene.lgm.training`."""

    source: bpy.props.EnumProperty(
        name="Objects",
        description="What is rendered; each object, with all its children, gives one training object",
        items=[
            ("SELECTED", "Selected", "The selected objects"),
            ("COLLECTION", "Collection", "All objects of a collection and those in it"),
            ("ASSETS", "Asset Library", "The object assets of a library, or of this file"),
        ],
    )
    collection: bpy.props.StringProperty(name="Collection", description="Empty: the active one")
    library: bpy.props.StringProperty(
        name="Library", description="One of the asset libraries in the preferences. Empty: this file"
    )
    output: bpy.props.StringProperty(
        name="Folder",
        description="Gets a folder for each object. Empty: a folder training beside this file's results",
        subtype="DIR_PATH",
    )
    size: bpy.props.IntProperty(
        name="Size", description="Width and height of a view in pixels", default=256, min=16, max=4096, soft_max=1024
    )
    views: bpy.props.IntProperty(
        name="Views",
        description="Views of each object: 16 all round at eye level, 8 at another height and 12 from anywhere",
        default=VIEWS,
        min=4,
        max=VIEWS,
        translation_context=CONTEXT,
    )
    overwrite: bpy.props.BoolProperty(
        name="Overwrite", description="Render objects again whose folders are there; else they are passed over"
    )


class LGM_Settings(bpy.types.PropertyGroup):
    """What to make: `scene.lgm`."""

    image: bpy.props.PointerProperty(
        name="Image",
        description="A picture of one object. An alpha channel is used; a plain background is cut out",
        type=bpy.types.Image,
        poll=lambda self, image: image.type not in ("RENDER_RESULT", "COMPOSITING"),
        update=choose_image,
    )
    matting: bpy.props.EnumProperty(
        name="Method",
        description="How the object is cut out of the image",
        items=[
            ("auto", "Automatic", "The first of the others that can"),
            ("alpha", "Alpha", "By the image's own transparency"),
            ("border", "Plain Background", "By the colours along the image's border: one colour, gradients, vignettes"),
            ("network", "Network", "By a network that finds what stands out, whatever is behind it"),
        ],
        update=cut_out,
    )
    matting_threshold: bpy.props.FloatProperty(
        name="Threshold",
        description="More cuts away more. Alpha, network: the least opacity. Plain background: the least distance from "
        "its colour. 0: automatic",
        min=0.0,
        max=1.0,
        step=1,
        update=cut_out,
    )
    mask: bpy.props.PointerProperty(
        name="Mask",
        description="A picture whose white is the object, in place of method and threshold",
        type=bpy.types.Image,
        poll=lambda self, image: image.type not in ("RENDER_RESULT", "COMPOSITING"),
        update=cut_out,
    )
    prompt: bpy.props.StringProperty(
        name="Prompt",
        description="What it is, in a few words. With an image it may stay empty",
        options={"TEXTEDIT_UPDATE"},
        translation_context=CONTEXT,
    )
    preset: bpy.props.EnumProperty(
        name="Preset", description="Which models", items=preset_items, default=preset_number(BUNDLED)
    )
    preset_folder: bpy.props.StringProperty(
        name="Preset Folder",
        description="The folder of a preset: it holds a preset.json, as what training makes does",
        subtype="DIR_PATH",
    )
    seed: bpy.props.IntProperty(name="Seed", description="The same seed gives the same result", min=0)
    use_random_seed: bpy.props.BoolProperty(
        name="Random Seed", description="Draw a new seed for every run; the one that was used stays in the field"
    )
    negative_prompt: bpy.props.StringProperty(
        name="Negative Prompt", description="What the views should not show. Empty: the preset's own"
    )
    steps: bpy.props.IntProperty(
        name="Steps", description="Denoising steps. 0: the preset's own", min=0, max=500, soft_max=100
    )
    guidance: bpy.props.FloatProperty(
        name="Guidance",
        description="How closely the views follow image and prompt; 1 is no guidance. 0: the preset's own",
        min=0.0,
        soft_max=15.0,
    )
    view_samples: bpy.props.IntProperty(
        name="View Samples",
        description="How many samples of the views are averaged. One is crisp; the mean of more is mostly nearer to "
        "the ground truth, and softer where they differ. 0: the preset's own",
        min=0,
        max=16,
    )
    elevation: bpy.props.FloatProperty(
        name="Elevation",
        description="Degrees that the image's camera is above the object; negative if it looks up at it",
        min=-90.0,
        max=90.0,
        soft_min=-45.0,
        soft_max=45.0,
    )
    output_kind: bpy.props.EnumProperty(
        name="Output",
        description="What comes into the scene",
        items=[
            ("splats", "Splats", "Gaussian splats: fuzzy things and fine detail look best; lights don't fall on them"),
            ("mesh", "Mesh", "A mesh with a UV map and a texture, to be lit, edited and exported"),
            ("both", "Both", "The splats, and next to them the mesh"),
        ],
        translation_context=CONTEXT,
    )
    size: bpy.props.FloatProperty(
        name="Size",
        description="Longest side of what comes into the scene. 0: as LGM makes it",
        subtype="DISTANCE",
        default=results.SIZE,
        min=0.0,
        soft_max=100.0,
    )
    faces: bpy.props.IntProperty(
        name="Faces",
        description="Triangles of a mesh, at most; a quad counts as two",
        default=FACES,
        min=100,
        max=1_000_000,
        soft_max=100_000,
    )
    quads: bpy.props.BoolProperty(
        name="Quads", description="Join a mesh's triangles to quads where they can be", default=False
    )
    texture_size: bpy.props.EnumProperty(
        name="Texture",
        description="Width and height of a mesh's texture in pixels",
        items=[(str(size), str(size), "") for size in (512, 1024, 2048, 4096)],
        default=str(TEXTURE_SIZE),
    )
    output: bpy.props.StringProperty(
        name="Output Folder",
        description="Where the files of this scene go. Empty: the folder in the preferences, "
        "else a folder lgm beside the saved .blend",
        subtype="DIR_PATH",
    )
    candidates: bpy.props.IntProperty(
        name="Candidates",
        description="How many seeds to sample before anything becomes 3D. With more than one you choose among their "
        "views; the ones that agree best come first",
        default=1,
        min=1,
        max=MAX_CANDIDATES,
        soft_max=8,
    )
    views: bpy.props.PointerProperty(name="Views", description="The four views of the object", type=LGM_Views)
    history_page: bpy.props.IntProperty(name="Page", description="Which page of the history is shown", default=1, min=1)
    training: bpy.props.PointerProperty(
        name="Training Data", description="What training views are rendered of", type=LGM_TrainingSettings
    )

    def chosen_preset(self) -> str:
        """What a request calls the preset: its name or its folder; '' if the folder is yet to be chosen."""
        if self.preset != FOLDER:
            return self.preset
        return str(Path(bpy.path.abspath(self.preset_folder)).absolute()) if self.preset_folder else ""


CLASSES = (LGM_TrainingSettings, LGM_Settings)
