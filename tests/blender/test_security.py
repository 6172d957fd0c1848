"""What a .blend could try (docs/security.md names each test). Run: pytest tests/blender/test_security.py"""

from __future__ import annotations

import bpy
import pytest
from test_ply import random_gaussians

import lgm_blender
from lgm_blender.blender import training_views
from lgm_blender.blender.scene import splats
from lgm_blender.blender.ui import properties


@pytest.fixture
def registered():
    lgm_blender.register()
    yield
    lgm_blender.unregister()


@pytest.fixture
def hostile(tmp_path, registered) -> str:
    """A .blend whose text, driver and settings would make the file 'ran' if anything ran them."""
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()"
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    made = splats.add_splats(random_gaussians(20), "Cloud")
    text = bpy.data.texts.new("lgm.py")
    text.write(code)
    text.use_module = True
    cube = bpy.data.objects.new("Cube", bpy.data.meshes.new("Cube"))
    bpy.context.scene.collection.objects.link(cube)
    for owner in (made, cube):
        driver = owner.driver_add("location", 0).driver
        driver.expression = f"__import__('os').close(__import__('os').open({str(marker)!r}, 66)) or 1"
    settings = bpy.context.scene.lgm
    settings.prompt = code
    settings.preset = "lgm"
    for key in ("lgm", "lgm_code"):
        made[key] = code
    path = tmp_path / "hostile.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path), check_existing=False)
    marker.unlink(missing_ok=True)  # this session trusts its own drivers
    return str(path)


def test_opening_a_file_runs_nothing_of_it(hostile, tmp_path):
    path = hostile
    bpy.ops.wm.open_mainfile(filepath=path, use_scripts=False)
    bpy.context.view_layer.update()
    assert bpy.context.scene.lgm.prompt  # our own handlers have run over what is in it
    assert splats.is_splats(bpy.data.objects["Cloud"])
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "again.blend"))
    assert not (tmp_path / "ran").exists()
    bpy.ops.wm.open_mainfile(filepath=path, use_scripts=True)  # the bait is one
    bpy.context.view_layer.update()
    assert (tmp_path / "ran").exists()


def test_views_of_a_file_run_nothing_of_it(hostile, tmp_path):
    training_views._open_blend(hostile)
    bpy.context.view_layer.update()
    assert "Cube" in bpy.data.objects
    assert not (tmp_path / "ran").exists()


def test_a_file_chooses_no_program(registered):
    """Which Python the worker is stands in the preferences, and these in no .blend."""
    names = set(properties.LGM_Settings.__annotations__)
    assert "prompt" in names
    assert not {name for name in names if "python" in name or "command" in name or "program" in name}
