"""Splats from and to files: the operators, the sub-panel "Files", and what a dropped file does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np
from bpy_extras.io_utils import ExportHelper, ImportHelper

from ...core.affine import from_upright, transformed, upright
from ...core.cameras import points_from_blender
from ...core.errors import LGMError
from ...core.formats.splat_files import (
    FORMATS,
    META,
    SUFFIXES,
    WRITTEN,
    format_of,
    read_splat_file,
    stem_of,
    write_splat_file,
)
from ...core.gaussians import Gaussians, joined
from ..scene import images, results, splats, webp
from .operators import FORMAT_ITEMS, Operator
from .panel import SubPanel

# How files of 3D Gaussians lie: the axis that points up in them. LGM's own, SPZ and glTF are y up.
UP_AXES = [
    ("Y", "Y up", "As LGM writes them, and as SPZ and glTF are", 0),
    ("-Y", "Y down", "As most captures in other formats are", 1),
    ("Z", "Z up", "As Blender itself", 2),
]
WHICH = [
    ("ACTIVE", "Active Object", "The active object"),
    ("JOINED", "Selected, in One File", "All selected splats as one, where they are beside each other"),
    ("EACH", "Selected, a File Each", "All selected splats, each in a file with its name added"),
]
_IMPORTED = ";".join(f"*{suffix}" for suffix in SUFFIXES) + f";{META}"
_EXPORTED = ";".join(f"*{FORMATS[name].suffix}" for name in WRITTEN)


class _Import(ImportHelper):
    """What both import operators do; the older one's name is kept for scripts."""

    bl_options = {"REGISTER", "UNDO"}

    filename_ext = ".ply"
    filepath: bpy.props.StringProperty(
        name="File Path", description="The file of splats", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )  # set by a drop, and only then
    filter_glob: bpy.props.StringProperty(default=_IMPORTED, options={"HIDDEN"})
    files: bpy.props.CollectionProperty(type=bpy.types.OperatorFileListElement, options={"HIDDEN", "SKIP_SAVE"})
    directory: bpy.props.StringProperty(subtype="DIR_PATH", options={"HIDDEN", "SKIP_SAVE"})
    up: bpy.props.EnumProperty(name="Up", description="Which way the file's up is", items=UP_AXES)
    size: bpy.props.FloatProperty(
        name="Size", description="Longest side in metres; 0 keeps the file's units", subtype="DISTANCE", min=0.0
    )

    def invoke(self, context, event):
        return self.invoke_popup(context)

    def execute(self, context):
        names = [file.name for file in self.files if file.name]
        paths = [Path(self.directory, name) for name in names] or [Path(bpy.path.abspath(self.filepath))]
        made = []
        for path in paths:
            try:
                made.append(self.add(path, context.scene))
            except LGMError as error:
                self.report({"ERROR"}, error.message)
        results.select(made[-1:], context.scene)
        return {"FINISHED"} if made else {"CANCELLED"}

    def add(self, path: Path, scene: bpy.types.Scene) -> bpy.types.Object:
        """A file's splats as an object: turned upright, and only then put on the ground."""
        gaussians = upright(read_splat_file(path, self.warn, webp=webp), self.up.lower())
        settings = {"file": str(path), "up": self.up}
        return splats.add_splats(gaussians, stem_of(path), settings=settings, scene=scene, size=self.size or None)

    def warn(self, sentence: str) -> None:
        self.report({"WARNING"}, sentence)


class LGM_OT_import_splats(_Import, bpy.types.Operator):
    """Import 3D Gaussians from PLY, compressed PLY, SPZ, SOG, glTF, .splat and .ksplat files"""

    bl_idname = "lgm.import_splats"
    bl_label = "Import Splats"


class LGM_OT_import_ply(_Import, bpy.types.Operator):
    """Import 3D Gaussians: the older name of Import Splats"""

    bl_idname = "lgm.import_ply"
    bl_label = "Import Splats (.ply)"


class _Export(Operator, ExportHelper):
    """What both export operators do; the older one's name is kept for scripts."""

    filename_ext = ".ply"
    filter_glob: bpy.props.StringProperty(default=_EXPORTED, options={"HIDDEN"})
    format: bpy.props.EnumProperty(
        name="Format", description="What is written; the file's suffix says the same", items=FORMAT_ITEMS
    )
    last_format: bpy.props.StringProperty(options={"HIDDEN", "SKIP_SAVE"})
    which: bpy.props.EnumProperty(name="Export", description="Which objects are written", items=WHICH)
    up: bpy.props.EnumProperty(name="Up", description="Which way the file's up will be", items=UP_AXES)
    apply_transform: bpy.props.BoolProperty(
        name="Apply Transform",
        description="Write the splats as they were moved, turned and scaled since they came into the scene; "
        "else as they came",
        default=True,
    )
    pad: bpy.props.BoolProperty(
        name="Pad Spherical Harmonics",
        description="Of PLY: add normals and spherical harmonics up to degree 3, which some older programs insist on",
    )

    @classmethod
    def obstacle(cls, context) -> str:
        return "" if exportable(context) else "No object that holds splats is active or selected"

    def check(self, context) -> bool:
        """Keeps the suffix and the menu 'Format' in step, whichever of the two was changed last."""
        before, path = (self.filepath, self.format), self.filepath
        try:
            named = format_of(path)
        except LGMError:
            named = None
        if named is None or (self.last_format and self.format != self.last_format):
            path = path.removesuffix(named.suffix) if named else path
            self.filepath = path + FORMATS[self.format].suffix
        else:
            self.format = named.name
        self.last_format = self.format
        return before != (self.filepath, self.format)

    def act(self, context):
        sources = exportable(context, self.which)
        if not sources:
            raise LGMError("Nothing to export: choose objects that hold splats.")
        active = context.object if context.object in sources else sources[0]
        path = Path(bpy.path.abspath(self.filepath))
        try:
            chosen = format_of(path)
        except LGMError:
            chosen = FORMATS[self.format]
            path = path.with_name(path.name + chosen.suffix)
        if self.which == "EACH" and len(sources) > 1:
            stem = path.name[: -len(chosen.suffix)]
            names = [f"{stem}_{images.file_stem(source.name)}{chosen.suffix}" for source in sources]
            files = {path.with_name(name): [source] for name, source in zip(names, sources, strict=True)}
            # Blender asks about the one file that was chosen, not about these.
            if self.check_existing and (there := [str(file) for file in files if file.exists()]):
                raise LGMError(f"{there[0]} is there already. Choose another name or folder.", "output")
        else:
            files = {path: sources}
        total = 0
        for file, parts in files.items():
            gaussians = gaussians_of(parts, parts[0] if self.which == "EACH" else active, self.apply_transform)
            total += len(gaussians)
            write_splat_file(file, from_upright(gaussians, self.up.lower()), self.warn, pad=self.pad, webp=webp)
        where = path if len(files) == 1 else f"{len(files)} files in {path.parent}"
        self.report({"INFO"}, f"{total:,} Gaussians were written to {where}")
        return {"FINISHED"}

    def warn(self, sentence: str) -> None:
        self.report({"WARNING"}, sentence)


class LGM_OT_export_splats(_Export, bpy.types.Operator):
    """Export splats as PLY, compressed PLY, SPZ, SOG, glTF or .splat, as they were edited"""

    bl_idname = "lgm.export_splats"
    bl_label = "Export Splats"


class LGM_OT_export_ply(_Export, bpy.types.Operator):
    """Export splats: the older name of Export Splats"""

    bl_idname = "lgm.export_ply"
    bl_label = "Export Splats (.ply)"


def exportable(context, which: str = "") -> list[bpy.types.Object]:
    """The objects that an export would write; without `which`, those that any export could."""
    active = [context.object] if splats.is_splats(context.object) else []
    selected = [thing for thing in context.selected_objects if splats.is_splats(thing)]
    if which == "ACTIVE":
        return active
    return selected or active if which else [*active, *selected]


def gaussians_of(sources: Sequence[bpy.types.Object], active: bpy.types.Object, apply: bool) -> Gaussians:
    """The Gaussians of objects in LGM's frame, all in one.

    Applied, they are where they are in the world, less what brought the active one there when it was added: standing on
    the ground, and its size. So what was imported and not touched is exported as it was, what was moved, turned and
    scaled since is so, and objects keep their places beside each other.

    Args:
        sources: Which hold splats.
        active: One of them.
        apply: Whether the objects' transforms are applied; else each is as it came in.

    Raises:
        LGMError: If there is no Gaussian any more.
    """
    parts = [splats.read_splats(source, world=apply) for source in sources]
    parts = [part for part in parts if len(part)]
    if not parts:
        raise LGMError(f"{active.name} holds no splats any more. Choose another object.")
    gaussians = joined(parts)
    factor, *offset = active.get(splats.FRAME, (1.0, 0.0, 0.0, 0.0))
    if not apply or (factor == 1 and not any(offset)):
        return gaussians
    back = np.diag([1 / factor, 1 / factor, 1 / factor, 1.0])
    back[:3, 3] = -points_from_blender(np.array(offset)) / factor
    return transformed(gaussians, back)


class LGM_FH_splats(bpy.types.FileHandler):
    """Dropping a file of splats on the window offers to import it."""

    bl_idname = "LGM_FH_splats"
    bl_label = "Gaussian Splats"
    bl_import_operator = "lgm.import_splats"
    bl_export_operator = "lgm.export_splats"
    bl_file_extensions = ";".join(SUFFIXES)

    @classmethod
    def poll_drop(cls, context):
        return context.area is not None and context.area.type in ("VIEW_3D", "OUTLINER")


class LGM_PT_files(SubPanel, bpy.types.Panel):
    """Splats from and to files."""

    bl_idname = "LGM_PT_files"
    bl_label = "Files"

    def draw(self, context):
        column = self.layout.column(align=True)
        column.operator("lgm.import_splats", icon="IMPORT")
        column.operator("lgm.export_splats", icon="EXPORT")


CLASSES = (
    LGM_OT_import_splats,
    LGM_OT_import_ply,
    LGM_OT_export_splats,
    LGM_OT_export_ply,
    LGM_FH_splats,
    LGM_PT_files,
)
