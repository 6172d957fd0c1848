"""How the active object's splats are shown: the sub-panel "Splats"."""

from __future__ import annotations

import bpy

from .. import compat
from ..scene import splats
from ..scene.nodes.splat_inputs import Input, inputs
from .operators import Operator
from .panel import SubPanel
from .translations import CONTEXT

_items: list[tuple] = []  # Blender keeps no reference to these strings: they must live on


def _menu_items(self, context) -> list[tuple[str, str, str]]:
    modifier = splats.display_modifier(context.object) if context and context.object else None
    if modifier is not None and self.input in compat.modifier_inputs(modifier.node_group):
        _items[:] = [(name, name, "") for name in compat.menu_items(modifier.node_group, self.input)]
    return _items


class _OnSplats(Operator):
    """What operators share that need splats to be active."""

    @classmethod
    def obstacle(cls, context) -> str:
        return "" if splats.is_splats(context.object) else "The active object holds no splats"


class LGM_OT_show_splats(_OnSplats, bpy.types.Operator):
    """Show these splats by the modifier LGM Splats: exact colours, crop, grading, number, light"""

    bl_idname = "lgm.show_splats"
    bl_label = "Add LGM Display"
    bl_options = {"REGISTER", "UNDO"}

    def act(self, context):
        splats.show_splats(context.object)
        for sentence in splats.prepare_scene_for_splats(context.scene):
            self.report({"INFO"}, sentence)
        return {"FINISHED"}


class LGM_OT_set_splat_menu(_OnSplats, bpy.types.Operator):
    """Choose how the splats are shown"""

    bl_idname = "lgm.set_splat_menu"
    bl_label = "Show As"
    bl_options = {"REGISTER", "UNDO", "INTERNAL"}

    input: bpy.props.StringProperty(name="Input", description="The modifier's input that is set", options={"SKIP_SAVE"})
    item: bpy.props.EnumProperty(name="Item", description="What it is set to", items=_menu_items, options={"SKIP_SAVE"})

    def act(self, context):
        compat.set_modifier_input(splats.show_splats(context.object), self.input, self.item)
        return {"FINISHED"}


class LGM_PT_splats(SubPanel, bpy.types.Panel):
    """How splats look."""

    bl_idname = "LGM_PT_splats"
    bl_label = "Splats"

    @classmethod
    def poll(cls, context):
        return splats.is_splats(context.object)

    def draw(self, context):
        modifier = splats.display_modifier(context.object)
        if modifier is None:
            self.layout.operator("lgm.show_splats", icon="MODIFIER")
            return
        there = compat.modifier_inputs(modifier.node_group)
        columns = {"": self.layout.column()}
        for row in inputs():
            if row.name not in there:  # of a group that an older version made, or another Blender
                continue
            if row.panel not in columns:
                header, body = self.layout.panel(f"LGM_PT_splats_{row.panel}", default_closed=True)
                header.label(text=row.panel)
                columns[row.panel] = body and body.column()
            if column := columns[row.panel]:
                column.use_property_split = True
                column.use_property_decorate = False
                draw_input(column, modifier, row)


def draw_input(column: bpy.types.UILayout, modifier: bpy.types.NodesModifier, row: Input) -> None:
    """One input of the modifier; menus as such, which Blender up to 5.1 would show as numbers."""
    if row.kind == "Menu":
        split = column.split(factor=0.4)
        name = split.row()
        name.alignment = "RIGHT"
        name.label(text=row.name, text_ctxt=CONTEXT)
        current = compat.get_modifier_input(modifier, row.name)
        split.operator_menu_enum("lgm.set_splat_menu", "item", text=current).input = row.name
        return
    owner, path = compat.modifier_input_property(modifier, row.name)
    if row.kind == "Object":
        column.prop_search(owner, path, bpy.data, "objects", text=row.name, text_ctxt=CONTEXT)
    else:
        column.prop(owner, path, text=row.name, text_ctxt=CONTEXT)


CLASSES = (LGM_OT_show_splats, LGM_OT_set_splat_menu, LGM_PT_splats)
