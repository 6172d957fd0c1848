"""Splats from and to files: the operators, the sub-panel "Files", and what a dropped file does."""

from __future__ import annotations

import math
from pathlib import Path

import bpy
from bpy_extras.io_utils import ExportHelper, ImportHelper

from ...core.errors import LGMError
from ...core.formats.ply import read_ply, write_ply
from ..scene import results, splats
from .operators import Operator

# How files of 3D Gaussians lie: radians about x that turn their frame into LGM's, whose y is up.
UP_AXES = [
    ("Y", "Y up", "As LGM writes them", 0),
    ("-Y", "Y down", "As most captures are", 1),
    ("Z", "Z up", "As Blender itself", 2),
]
_TURNS = {"Y": 0.0, "-Y": math.pi, "Z": -math.pi / 2}


class LGM_OT_import_ply(bpy.types.Operator, ImportHelper):
    """Import 3D Gaussians from PLY files, as 3D Gaussian Splatting writes them"""

    bl_idname = "lgm.import_ply"
    bl_label = "Import Splats (.ply)"
    bl_options = {"REGISTER", "UNDO"}

    filename_ext = ".ply"
    filepath: bpy.props.StringProperty(subtype="FILE_PATH", options={"SKIP_SAVE"})  # set by a drop, and only then
    filter_glob: bpy.props.StringProperty(default="*.ply", options={"HIDDEN"})
    files: bpy.props.CollectionProperty(type=bpy.types.OperatorFileListElement, options={"HIDDEN", "SKIP_SAVE"})
    directory: bpy.props.StringProperty(subtype="DIR_PATH", options={"HIDDEN", "SKIP_SAVE"})
    up: bpy.props.EnumProperty(name="Up", description="Which way the file's up is", items=UP_AXES)

    def invoke(self, context, event):
        return self.invoke_popup(context)

    def execute(self, context):
        names = [file.name for file in self.files if file.name]
        paths = [Path(self.directory, name) for name in names] or [Path(self.filepath)]
        made = []
        for path in paths:
            try:
                gaussians = read_ply(path, on_warning=lambda sentence: self.report({"WARNING"}, sentence))
                made.append(splats.add_splats(gaussians, path.stem, settings={"ply": str(path)}, scene=context.scene))
            except LGMError as error:
                self.report({"ERROR"}, error.message)
                continue
            made[-1].rotation_euler.x = _TURNS[self.up]
            results.select(made[-1:], context.scene)
        return {"FINISHED"} if made else {"CANCELLED"}


class LGM_OT_export_ply(Operator, bpy.types.Operator, ExportHelper):
    """Export the active object's Gaussians as a PLY that 3D Gaussian Splatting programs read"""

    bl_idname = "lgm.export_ply"
    bl_label = "Export Splats (.ply)"

    filename_ext = ".ply"
    filter_glob: bpy.props.StringProperty(default="*.ply", options={"HIDDEN"})
    pad: bpy.props.BoolProperty(
        name="Pad Spherical Harmonics",
        description="Add normals and 45 zero coefficients, which some older programs insist on",
    )

    @classmethod
    def obstacle(cls, context) -> str:
        return "" if splats.is_splats(context.object) else "The active object holds no splats"

    def act(self, context):
        gaussians = splats.read_splats(context.object)
        write_ply(self.filepath, gaussians, sh_degree=3 if self.pad else 0, normals=self.pad)
        self.report({"INFO"}, f"{len(gaussians):,} Gaussians were written to {self.filepath}")
        return {"FINISHED"}


class LGM_FH_ply(bpy.types.FileHandler):
    """Dropping a .ply on the window offers to import it as splats."""

    bl_idname = "LGM_FH_ply"
    bl_label = "Gaussian Splats"
    bl_import_operator = "lgm.import_ply"
    bl_file_extensions = ".ply"

    @classmethod
    def poll_drop(cls, context):
        return context.area is not None and context.area.type in ("VIEW_3D", "OUTLINER")


class LGM_PT_files(bpy.types.Panel):
    """Splats from and to files."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "LGM"

    bl_idname = "LGM_PT_files"
    bl_label = "Files"
    bl_parent_id = "LGM_PT_main"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        column = self.layout.column(align=True)
        column.operator("lgm.import_ply", icon="IMPORT")
        column.operator("lgm.export_ply", icon="EXPORT")


CLASSES = (LGM_OT_import_ply, LGM_OT_export_ply, LGM_FH_ply, LGM_PT_files)
