"""What the user can do: generate, convert, cancel, install."""

from __future__ import annotations

import random
import textwrap
from dataclasses import fields
from functools import partial
from pathlib import Path

import bpy
from bpy.app.translations import pgettext_iface as iface

from ...core.errors import LGMError
from ...core.formats.ply import write_ply
from ...core.formats.splat_files import FORMATS, WRITTEN
from ...core.messages import MAX_CANDIDATES, GenerateRequest, MeshRequest, SampleRequest
from .. import session
from ..scene import images, splats
from ..settings import ADDON, output_folder, preference
from .properties import known_presets
from .translations import CONTEXT

FORMAT_ITEMS = [(name, FORMATS[name].label, FORMATS[name].about) for name in WRITTEN]
MAX_SEED = (1 << 31) - 1  # Blender's integers end there

ONLINE_NEEDED = (
    "Blender is not allowed to go online. Turn on Preferences > System > Network > Allow Online Access, "
    "or start it with --online-mode."
)


class Operator:
    """What the operators here share: they say why they can't be pressed, and what goes wrong."""

    @classmethod
    def poll(cls, context):
        why = cls.obstacle(context)
        if why:
            cls.poll_message_set(iface(why))
        return not why

    @classmethod
    def obstacle(cls, context) -> str:
        """Why it can't be done now, or ''."""
        return "Something else is going on" if session.current().working else ""

    def execute(self, context):
        return self.attempt(self.act, context)

    def attempt(self, act, context):
        """Does it; an error is told in Blender's way."""
        try:
            return act(context)
        except LGMError as error:
            self.report({"ERROR"}, error.message)
            return {"CANCELLED"}


class JobOperator(Operator):
    """What operators share that give the worker a job: one at a time, waited for where nobody would see it end."""

    output: bpy.props.StringProperty(
        name="Output Folder", description="Where the files go", subtype="DIR_PATH", options={"SKIP_SAVE"}
    )
    faces: bpy.props.IntProperty(
        name="Faces", description="Triangles of a mesh, at most; a quad counts as two", min=100, max=1_000_000,
        options={"SKIP_SAVE"},
    )  # fmt: skip
    texture_size: bpy.props.IntProperty(
        name="Texture Size", description="Width and height of a mesh's texture in pixels", min=512, max=4096,
        options={"SKIP_SAVE"},
    )  # fmt: skip
    quads: bpy.props.BoolProperty(
        name="Quads", description="Join a mesh's triangles to quads where they can be", options={"SKIP_SAVE"}
    )
    device: bpy.props.StringProperty(
        name="Device", description="What computes: auto, cpu or cuda", options={"SKIP_SAVE"}
    )
    wait: bpy.props.BoolProperty(
        name="Wait", description="Return when the result is there; the window stands still until then",
        options={"SKIP_SAVE"},
    )  # fmt: skip

    @classmethod
    def obstacle(cls, context) -> str:
        now = session.current()
        if now.job:
            return "A job is running. Wait for it, or cancel it"
        if now.fetching:
            return "Something is being fetched. Wait for it, or cancel it"
        return now.worker().where if now.worker().path is None else ""

    def act(self, context):
        now = session.current()
        try:
            self.begin(context)
        except LGMError as error:
            now.problem = session.Problem(error.message, error.kind)
            raise
        if not (self.wait or bpy.app.background):
            return {"FINISHED"}
        now.wait()
        if now.problem:
            self.report({"ERROR"}, now.problem.sentence)
        return {"FINISHED"} if now.ended_well else {"CANCELLED"}

    def given(self, context, name: str):
        """What the operator was told, else what the scene is set to."""
        return getattr(self if self.properties.is_property_set(name) else context.scene.lgm, name)


class LGM_OT_generate(JobOperator, bpy.types.Operator):
    """Turn the image, the prompt or both into Gaussian splats, a textured mesh or both in this scene"""

    # Called with 'INVOKE_DEFAULT', or as a button, it starts the job and returns; the window stays alive, and the
    # result comes when it is done. In the background, or with wait=True, it returns when the result is there.
    # What is not given comes from the scene's settings; an image or prompt that is given replaces both of the scene's.

    bl_idname = "lgm.generate"
    bl_label = "Generate"
    bl_options = {"REGISTER"}  # the undo step comes with the result

    # The names are those of a batch's options (core/batch/options.py).
    image_path: bpy.props.StringProperty(
        name="Image File", description="Path of a picture of one object", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    image_name: bpy.props.StringProperty(name="Image", description="An image of this file", options={"SKIP_SAVE"})
    prompt: bpy.props.StringProperty(
        name="Prompt", description="What it is, in a few words. With an image it may stay empty", options={"SKIP_SAVE"}
    )
    negative_prompt: bpy.props.StringProperty(
        name="Negative Prompt", description="What the views should not show. Empty: the preset's own",
        options={"SKIP_SAVE"},
    )  # fmt: skip
    preset: bpy.props.StringProperty(
        name="Preset", description="Which models: a preset's name or its folder", options={"SKIP_SAVE"}
    )
    seed: bpy.props.IntProperty(
        name="Seed", description="The same seed gives the same result", min=0, options={"SKIP_SAVE"}
    )
    steps: bpy.props.IntProperty(
        name="Steps", description="Denoising steps. 0: the preset's own", min=0, max=500, options={"SKIP_SAVE"}
    )
    guidance: bpy.props.FloatProperty(
        name="Guidance",
        description="How closely the views follow image and prompt; 1 is no guidance. 0: the preset's own",
        min=0.0,
        options={"SKIP_SAVE"},
    )
    view_samples: bpy.props.IntProperty(
        name="View Samples", description="How many samples of the views are averaged. 0: the preset's own", min=0,
        max=16, options={"SKIP_SAVE"},
    )  # fmt: skip
    elevation: bpy.props.FloatProperty(
        name="Elevation",
        description="Degrees that the image's camera is above the object; negative if it looks up at it",
        min=-90.0,
        max=90.0,
        options={"SKIP_SAVE"},
    )
    candidates: bpy.props.IntProperty(
        name="Candidates",
        description="How many seeds are sampled; you choose among them, or without a window the best one is made",
        min=1,
        max=MAX_CANDIDATES,
        options={"SKIP_SAVE"},
    )
    output_kind: bpy.props.StringProperty(
        name="Output", description="What comes into the scene: splats, mesh or both", options={"SKIP_SAVE"}
    )
    splat_formats: bpy.props.EnumProperty(
        name="Splat Formats",
        description="Files of the splats; a PLY is always among them",
        items=FORMAT_ITEMS,
        default={"ply"},
        options={"ENUM_FLAG", "SKIP_SAVE"},
    )
    matting: bpy.props.StringProperty(
        name="Matting", description="How the object is cut out: auto, alpha, border or network", options={"SKIP_SAVE"}
    )
    matting_threshold: bpy.props.FloatProperty(
        name="Matting Threshold", description="More cuts away more. 0: each method's own", min=0.0, max=1.0,
        options={"SKIP_SAVE"},
    )  # fmt: skip
    object_size: bpy.props.FloatProperty(
        name="Size", description="Longest side of what comes into the scene. 0: as LGM makes it", subtype="DISTANCE",
        min=0.0, options={"SKIP_SAVE"},
    )  # fmt: skip

    def begin(self, context):
        now, request = session.current(), self.request(context)
        if request.candidates > 1 and not (self.wait or bpy.app.background):  # there is somebody to choose
            now.begin(as_samples(request, now.samples_folder()), context.scene)
            return
        size = self.object_size if self.properties.is_property_set("object_size") else context.scene.lgm.size
        now.begin(request, context.scene, size=size)

    def request(self, context) -> GenerateRequest:
        """The job as the operator's properties and the scene's settings describe it.

        Raises:
            LGMError: If there is nothing to make it from.
        """
        settings, given = context.scene.lgm, partial(self.given, context)
        own = any(self.properties.is_property_set(name) for name in ("image_path", "image_name", "prompt"))
        prompt = (self.prompt if own else settings.prompt).strip()
        image = self.image_file() if own else scene_image(settings)
        if image is None and not prompt:
            raise LGMError("Choose an image or write a prompt first.")
        if not (preset := self.preset or settings.chosen_preset()):
            raise LGMError("Choose the preset's folder first.")
        if settings.use_random_seed and not self.properties.is_property_set("seed"):
            settings.seed = random.randint(0, MAX_SEED)
        return GenerateRequest(
            job="",
            output=str(output_folder(given("output"))),
            image=None if image is None else str(image),
            prompt=prompt,
            negative_prompt=given("negative_prompt") or None,
            preset=preset,
            seed=given("seed"),
            candidates=given("candidates"),
            steps=given("steps") or None,
            guidance=given("guidance") or None,
            view_samples=given("view_samples") or None,
            elevation=given("elevation"),
            device=self.device or preference("device"),
            previews=not bpy.app.background,
            output_kind=given("output_kind"),
            faces=given("faces"),
            texture_size=int(given("texture_size")),
            quads=given("quads"),
            splat_formats=[name for name in WRITTEN if name in self.splat_formats],
            matting=given("matting"),
            matting_threshold=given("matting_threshold") or None,
            mask=None if own or image is None else mask_file(settings),
        )

    def image_file(self) -> Path | None:
        """The file of the image that the operator was given."""
        if self.image_path:
            path = Path(bpy.path.abspath(self.image_path)).absolute()
            if not path.is_file():
                raise LGMError(f"There is no file {path}. Choose another image.")
            return images.readable_file(path, session.current().temporary_folder())
        if self.image_name:
            image = bpy.data.images.get(self.image_name)
            if image is None:
                raise LGMError(f"This file has no image called '{self.image_name}'. Choose one that it has.")
            return images.image_file(image, session.current().temporary_folder())
        return None


def as_samples(request: GenerateRequest, folder: Path) -> SampleRequest:
    """A request for the views alone, of all its candidates."""
    names = {field.name for field in fields(SampleRequest)}
    values = {name: value for name, value in vars(request).items() if name in names}
    seeds = [(request.seed + i) % 2**32 for i in range(request.candidates)]
    return SampleRequest(**values | {"output": str(folder), "seeds": seeds})


class LGM_OT_convert_to_mesh(JobOperator, bpy.types.Operator):
    """Make a textured mesh of the active object's splats, in their place; the splats are kept, but hidden"""

    # The splats as they are in the world: moved, turned, scaled, and without those that were deleted. Modifiers are
    # not applied.

    bl_idname = "lgm.convert_to_mesh"
    bl_label = "Convert to Mesh"
    bl_options = {"REGISTER"}  # the undo step comes with the result

    @classmethod
    def obstacle(cls, context) -> str:
        return super().obstacle(context) if splats.is_splats(context.object) else "The active object holds no splats"

    def begin(self, context):
        now, source, given = session.current(), context.object, partial(self.given, context)
        gaussians = splats.read_splats(source, world=True)
        if not len(gaussians):
            raise LGMError(f"{source.name} holds no splats any more. Choose another object.")
        name = images.file_stem(source.name)
        ply = now.temporary_folder() / f"{name}.ply"
        write_ply(ply, gaussians)
        request = MeshRequest(
            job="",
            ply=str(ply),
            output=str(output_folder(given("output"))),
            name=name,
            faces=given("faces"),
            texture_size=int(given("texture_size")),
            quads=given("quads"),
            device=self.device or preference("device"),
        )
        now.begin(request, context.scene, source=source)


def scene_image(settings) -> Path | None:
    """The file of the scene's image, or None if none is chosen."""
    return images.image_file(settings.image, session.current().temporary_folder()) if settings.image else None


def mask_file(settings) -> str | None:
    """The file of the scene's mask, or None if there is none."""
    folder = session.current().temporary_folder()
    return str(images.image_file(settings.mask, folder, "mask")) if settings.mask else None


class LGM_OT_cancel(bpy.types.Operator):
    """Stop what is going on"""

    bl_idname = "lgm.cancel"
    bl_label = "Cancel"

    @classmethod
    def poll(cls, context):
        now = session.current()
        return bool(now.job or now.fetching)

    def execute(self, context):
        session.current().cancel()
        return {"FINISHED"}


class LGM_OT_dismiss(bpy.types.Operator):
    """Take the message away"""

    bl_idname = "lgm.dismiss"
    bl_label = "Dismiss"
    bl_options = {"INTERNAL"}

    def execute(self, context):
        session.current().problem = None
        return {"FINISHED"}


class Fetch(Operator):
    """What operators share that fetch something: not without leave, and not beside anything else."""

    @classmethod
    def obstacle(cls, context) -> str:
        return super().obstacle(context) or ("" if bpy.app.online_access else ONLINE_NEEDED)

    def act(self, context):
        now = session.current()
        self.begin(context)
        if not bpy.app.background:
            return {"FINISHED"}
        now.wait()
        if now.task.error:
            self.report({"ERROR"}, now.task.error)
        return {"FINISHED"} if now.task.state == "done" else {"CANCELLED"}


class LGM_OT_fetch_weights(Fetch, bpy.types.Operator):
    """Fetch the chosen preset's published models: LGM's licence is MIT, ImageDream's and MVDream's is OpenRAIL"""

    bl_idname = "lgm.fetch_weights"
    bl_label = "Fetch Models"

    preset: bpy.props.StringProperty(
        name="Preset", description="Whose models. Empty: the scene's preset", options={"SKIP_SAVE"}
    )

    def invoke(self, context, event):
        return context.window_manager.invoke_props_dialog(self, width=550, confirm_text=iface("Fetch", CONTEXT))

    def draw(self, context):
        for line in self.terms(self.preset or context.scene.lgm.chosen_preset()):
            self.layout.label(text=line, translate=False)

    @classmethod
    def terms(cls, name: str) -> list[str]:
        """What to know before a preset's models are fetched, as the worker tells it if it knows the preset."""
        known = {preset.name: preset.terms for preset in known_presets()}
        terms = known.get(name) or f"{cls.__doc__}."
        return [part for line in terms.splitlines() for part in textwrap.wrap(line, 90, break_on_hyphens=False)]

    def begin(self, context):
        session.current().download(self.preset or context.scene.lgm.chosen_preset())


class LGM_OT_check_worker(Operator, bpy.types.Operator):
    """Start the worker and show what it says about itself"""

    bl_idname = "lgm.check_worker"
    bl_label = "Check"

    @classmethod
    def obstacle(cls, context) -> str:
        worker = session.current().worker()
        return super().obstacle(context) or (worker.where if worker.path is None else "")

    def act(self, context):
        now = session.current()
        now.start_worker()
        if not bpy.app.background:
            return {"FINISHED"}
        now.wait()
        if now.engine.state != "ready":
            raise LGMError(now.engine.problem, "worker")
        info = now.engine.info
        self.report({"INFO"}, f"The worker is up: torch {info.torch} on {info.device_name}.")
        return {"FINISHED"}


class LGM_OT_open_log(bpy.types.Operator):
    """Open the log file that says most about what happened last"""

    bl_idname = "lgm.open_log"
    bl_label = "Open Log"

    def execute(self, context):
        log = session.current().log()
        if not log.is_file():
            self.report({"WARNING"}, f"There is no log yet: {log}")
            return {"CANCELLED"}
        if bpy.app.background:
            self.report({"INFO"}, str(log))
            return {"FINISHED"}
        return bpy.ops.wm.path_open(filepath=str(log))


class LGM_OT_open_folder(bpy.types.Operator):
    """Open the folder that the last result lies in"""

    bl_idname = "lgm.open_folder"
    bl_label = "Open Folder"

    @classmethod
    def poll(cls, context):
        return session.current().outcome is not None

    def execute(self, context):
        return bpy.ops.wm.path_open(filepath=str(Path(session.current().outcome.result.file).parent))


class LGM_OT_show_preferences(bpy.types.Operator):
    """Show the add-on's preferences"""

    bl_idname = "lgm.show_preferences"
    bl_label = "LGM Preferences"

    def execute(self, context):
        bpy.ops.screen.userpref_show()
        return bpy.ops.preferences.addon_show(module=ADDON)


CLASSES = (
    LGM_OT_generate,
    LGM_OT_convert_to_mesh,
    LGM_OT_cancel,
    LGM_OT_dismiss,
    LGM_OT_fetch_weights,
    LGM_OT_check_worker,
    LGM_OT_open_log,
    LGM_OT_open_folder,
    LGM_OT_show_preferences,
)
