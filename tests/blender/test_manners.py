"""Every property says what it is, and the same thing has one name. Run: pytest tests/blender/test_manners.py"""

from __future__ import annotations

import argparse
import inspect

import bpy
import pytest

import lgm_blender
from lgm_blender import blender
from lgm_blender.blender import batch
from lgm_blender.core.batch import options

NOT_OURS = {"rna_type", "name", "bl_idname", "bl_label", "check_existing", "filter_glob", "directory", "files"}


@pytest.fixture(autouse=True)
def registered():
    lgm_blender.register()
    yield
    lgm_blender.unregister()


def properties():
    """(where, property) of all that users meet."""
    for cls in blender._classes():
        names = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        rna = cls.bl_rna
        if issubclass(cls, bpy.types.Operator):
            family, _, name = cls.bl_idname.partition(".")
            rna = getattr(getattr(bpy.ops, family), name).get_rna_type()
        for prop in rna.properties:
            if prop.identifier in names and not prop.is_hidden:
                yield f"{cls.__name__}.{prop.identifier}", prop


def is_a_tooltip(text: str, name: str) -> bool:
    """Whether a text says more than a name, in Blender's way: a capital first, and no full stop at the end."""
    return len(text.split()) > 1 and text != name and text[0].isupper() and not text.endswith(".")


def test_every_property_has_a_tooltip():
    found = list(properties())
    assert len(found) > 60
    bad = [where for where, prop in found if not is_a_tooltip(prop.description, prop.name)]
    assert not bad, " ".join(bad)


def test_every_item_of_a_menu_says_what_it_is():
    items = [
        (f"{where}.{item.identifier}", item)
        for where, prop in properties()
        if prop.type == "ENUM"
        for item in prop.enum_items
        if not item.identifier.isdigit()  # what a number is, the property says
    ]
    assert len(items) > 20
    assert [where for where, item in items if not item.description or item.description == item.name] == []


def test_every_operator_has_a_tooltip():
    operators = [cls for cls in blender._classes() if issubclass(cls, bpy.types.Operator)]
    for cls in operators:
        family, _, name = cls.bl_idname.partition(".")
        text = getattr(getattr(bpy.ops, family), name).get_rna_type().description
        assert is_a_tooltip(text, cls.bl_label), cls.__name__


def test_what_decides_the_result_has_one_name():
    """A batch's options, the operator's properties and the scene's settings."""
    operator = set(bpy.ops.lgm.generate.get_rna_type().properties.keys())
    told = set(vars(batch.make_parser().parse_args(["--output", "x"])))
    decided = {*options.SETTINGS, "device", "output", "object_size"}
    assert decided <= told
    assert decided <= operator
    mesh = set(bpy.ops.lgm.convert_to_mesh.get_rna_type().properties.keys())
    assert {"faces", "texture_size", "quads", "device", "output"} <= mesh & told
    scene = set(bpy.types.Scene.bl_rna.properties["lgm"].fixed_type.properties.keys())
    assert decided - {"device", "splat_formats", "object_size"} <= scene


def test_what_the_operator_takes_the_batch_takes():
    parser = argparse.ArgumentParser()
    options.add_options(parser, "images")
    values = vars(parser.parse_args(["--output", "x", "--splat-formats", "spz", "--texture-size", "1024"]))
    rna = bpy.ops.lgm.generate.get_rna_type().properties
    assert set(values["splat_formats"]) <= {item.identifier for item in rna["splat_formats"].enum_items}
    assert rna["texture_size"].hard_min <= values["texture_size"] <= rna["texture_size"].hard_max


def test_an_operators_tooltip_is_the_panels():
    scene = bpy.types.Scene.bl_rna.properties["lgm"].fixed_type.properties
    for prop in bpy.ops.lgm.generate.get_rna_type().properties:
        if prop.identifier in ("steps", "guidance", "seed", "prompt", "negative_prompt", "elevation", "faces", "quads"):
            assert prop.description == scene[prop.identifier].description
