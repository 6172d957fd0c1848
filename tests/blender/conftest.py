"""Blender for the tests: an empty file for each, and an end without a hang."""

from __future__ import annotations

import os
import sys

import pytest


@pytest.fixture(autouse=True)
def empty_file():
    """Every test begins with an empty file, whatever the one before left behind."""
    import bpy

    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)


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
