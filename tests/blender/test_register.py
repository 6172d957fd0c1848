"""Registering and giving everything back. Run: pytest tests/blender/test_register.py"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import bpy
import bpy.utils.previews
import pytest

import lgm_blender
from lgm_blender.blender import handlers, session
from lgm_blender.blender.ui import editing, icons, timer

PICTURE = Path(__file__).parents[2] / "docs" / "samples" / "cactus.png"


def traces() -> dict[str, object]:
    """Everything the add-on could leave behind in Blender."""
    return {
        "types": {name for name in dir(bpy.types) if name.startswith("LGM")},
        "operators": set(dir(bpy.ops.lgm)),
        "scene": hasattr(bpy.types.Scene, "lgm"),
        "handlers": {
            name: list(functions) for name in dir(bpy.app.handlers)
            if isinstance(functions := getattr(bpy.app.handlers, name), list)
        },
        "timer": bpy.app.timers.is_registered(timer._tick),
        "menus": {
            name: len(getattr(bpy.types, name)._dyn_ui_initialize())
            for name in ("TOPBAR_MT_file_import", "TOPBAR_MT_file_export", *editing._MENUS)
            if hasattr(bpy.types, name)
        },
        "threads": threading.active_count(),
        "previews": set(bpy.utils.previews._uuid_open),
        "keymaps": {
            keymap.name: len(keymap.keymap_items)
            for keymap in bpy.context.window_manager.keyconfigs.addon.keymaps
        },
        "timers": bpy.app.timers.is_registered(handlers._catch_up),
        "folders": {
            str(path) for folder in {tempfile.gettempdir(), bpy.app.tempdir} for path in Path(folder).glob("*lgm*")
        },
    }  # fmt: skip


@pytest.fixture(autouse=True)
def unregistered():
    lgm_blender.unregister()
    yield
    lgm_blender.unregister()


def test_registering_a_hundred_times_leaves_nothing_behind():
    lgm_blender.register()
    lgm_blender.unregister()
    before = traces()
    assert not before["types"]
    assert not before["scene"]
    for _ in range(100):
        lgm_blender.register()
        assert traces() != before
        icons.show(str(PICTURE))
        lgm_blender.unregister()
        assert traces() == before


def test_twice_is_no_mistake():
    lgm_blender.register()
    now = session.current()
    lgm_blender.register()
    assert session.current() is now
    lgm_blender.unregister()
    lgm_blender.unregister()


@pytest.fixture
def copy():
    """The same package under another name, as an extension beside the add-on has it."""
    folder = Path(lgm_blender.__file__).parent
    places = {"submodule_search_locations": [str(folder)]}
    spec = importlib.util.spec_from_file_location("bl_ext_lgm", folder / "__init__.py", **places)
    module = sys.modules["bl_ext_lgm"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    module.unregister()
    for name in [name for name in sys.modules if name.partition(".")[0] == "bl_ext_lgm"]:
        del sys.modules[name]


def test_a_second_copy_says_so_and_stays_off(copy):
    """Enabled as an add-on and as an extension: whichever comes second, and whichever is disabled first."""
    for first, second in ((lgm_blender, copy), (copy, lgm_blender)):
        first.register()
        before = traces()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"enabled already, as '{first.__name__}'. Disable"):
                second.register()
            second.unregister()
            assert traces() == before
        assert bpy.context.scene.lgm.preset == "mini"
        first.unregister()
        assert not hasattr(bpy.types.Scene, "lgm")
        second.register()  # now it may
        second.unregister()


def test_registration_asks_for_no_worker_and_no_torch():
    lgm_blender.register()
    assert session.current().engine is None
    assert "torch" not in sys.modules


def test_settings_survive_in_a_file(tmp_path):
    lgm_blender.register()
    bpy.context.scene.lgm.preset = "lgm"
    bpy.context.scene.lgm.prompt = "grüner Apfel"
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "file.blend"))
    lgm_blender.unregister()
    lgm_blender.register()
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "file.blend"))
    assert bpy.context.scene.lgm.preset == "lgm"
    assert bpy.context.scene.lgm.prompt == "grüner Apfel"
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)


def test_package_imports_without_blender():
    """The worker imports the same package, in a Python without bpy."""
    code = "import sys; sys.modules['bpy'] = None; import lgm_blender, lgm_blender.blender.engine"
    folder = Path(lgm_blender.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
