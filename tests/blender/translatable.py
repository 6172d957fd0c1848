"""Which strings the add-on shows: what its classes tell Blender, and what its files give to layouts."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import bpy

from lgm_blender import blender
from lgm_blender.blender.scene.nodes import splat_inputs
from lgm_blender.blender.ui import cutout, editing, installing, properties, sources, view_properties
from lgm_blender.core.formats.splat_files import FORMATS
from lgm_blender.core.messages import STAGE_LABELS

UI = Path(blender.__file__).with_name("ui")
SAME = {"LGM", "LGM Splats", "Mini", "CPU", "splats"} | {format.label for format in FORMATS.values()}  # names
SHOWN_AS = ("text", "title", "placeholder", "confirm_text", "message")
TRANSLATED_BY = ("iface", "pgettext_iface")


def strings() -> set[str]:
    """All that need a translation. The add-on must be registered."""
    found = {text.strip() for source in (of_classes(), of_files(), of_tables()) for text in source}
    return {text for text in found if any(letter.isalpha() for letter in text)} - SAME


def of_classes() -> Iterator[str]:
    """Labels and tooltips of operators, panels and properties."""
    for cls in blender._classes():
        yield getattr(cls, "bl_label", "")
        rna = cls.bl_rna
        if issubclass(cls, bpy.types.Operator):
            family, _, verb = cls.bl_idname.partition(".")
            rna = getattr(getattr(bpy.ops, family), verb).get_rna_type()
            yield rna.description
        for prop in own_properties(cls, rna):
            for shown in (prop, *getattr(prop, "enum_items", ())):
                yield from (shown.name, shown.description)


def own_properties(cls: type, rna: bpy.types.Struct) -> list[bpy.types.Property]:
    """The properties that our code gives a class, and users see."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith(blender.__name__)]
    names = [name for base in ours for name in inspect.get_annotations(base)]
    found = [rna.properties[name] for name in names if name in rna.properties]
    return [prop for prop in found if not prop.is_hidden]


def of_files() -> Iterator[str]:
    """What the files of the interface give to layouts, and why operators can't be pressed."""
    for path in UI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                for keyword in node.keywords:
                    if keyword.arg in SHOWN_AS:
                        yield from constants(keyword.value)
                if name in TRANSLATED_BY and node.args:
                    yield from constants(node.args[0])
                if name == "draw_text":
                    yield from constants(node.args[1])
            elif isinstance(node, ast.FunctionDef) and node.name in ("obstacle", "what_is_missing", "_state"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value:
                        yield from constants(inner.value)


def constants(node: ast.expr) -> Iterator[str]:
    """The strings that an expression may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*constants(node.body), *constants(node.orelse))
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from constants(value)


def of_tables() -> Iterator[str]:
    """What the panel looks up."""
    yield from STAGE_LABELS.values()
    yield from ("Cut out", "installed", "the preferences")
    yield from (text for _, *texts in properties.PRESETS for text in texts)
    yield from ("Folder...", "A preset in a folder, as training makes it")
    yield "Gaussian Splats (.ply/.spz/.sog/.glb/.splat)"
    yield from ("Stopping", "Adding it to the scene", "Waiting", "Ready")
    yield from cutout.USED.values()
    yield from view_properties.TITLES.values()
    yield from editing.CONVERT.values()
    yield from (text for text, _ in sources.ELEVATIONS)
    yield from installing.BUILDS.values()
    yield from ("Install Worker", "Go On Installing", "Repair Worker", "Update Worker")
    for row in splat_inputs.ALL_INPUTS:
        yield from (row.name, row.about, row.panel)
    for menu in ("Display", "ViewportDisplay", "Shadows", "ColorSpace"):
        yield from getattr(splat_inputs, menu).__args__
