"""Blender for the tests: an empty file for each, and an end without a hang."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture(autouse=True)
def empty_file():
    """Every test begins with an empty file, whatever the one before left behind."""
    import bpy

    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)


@pytest.fixture
def worker(monkeypatch, tmp_path, golden):
    """Sets how the stand-in for the worker behaves; the add-on is registered in an empty file."""
    monkeypatch.setenv("LGM_BLENDER_PYTHON", sys.executable)
    monkeypatch.setenv("LGM_BLENDER_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    import bpy

    import lgm_blender
    from lgm_blender.blender import session

    bpy.ops.wm.read_factory_settings(use_empty=True)
    lgm_blender.register()

    def behave(behaviour):
        command = [sys.executable, "-u", str(FAKE), behaviour, str(golden / "lgm.ply")]
        monkeypatch.setattr(session, "worker_command", lambda python, *arguments: command)

    behave("well")
    yield behave
    lgm_blender.unregister()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Leaves without Blender's own clean-up: with a class or a timer left it crashes in 4.2 and hangs in 4.5."""
    if "bpy" in sys.modules and config.pluginmanager.hasplugin("terminalreporter"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(getattr(config, "lgm_exit_status", 1)))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    session.config.lgm_exit_status = exitstatus
