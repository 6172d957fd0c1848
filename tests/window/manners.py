"""Two windows of one Blender, and Blender quitted in the middle of a job. `check.py` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import behave, open_tab, picture, report, run, session, until


def view_of(window) -> dict:
    """What `temp_override` takes for what is done in a window's 3D view."""
    area = next(area for area in window.screen.areas if area.type == "VIEW_3D")
    region = next(region for region in area.regions if region.type == "WINDOW")
    return {"window": window, "area": area, "region": region}


def two_windows():
    """A job from a second window, which shows another scene, comes into that one."""
    now, manager = session.current(), bpy.context.window_manager
    bpy.ops.wm.window_new_main()  # with a scene of its own
    yield 1.0
    first, second = manager.windows
    other = second.scene = bpy.data.scenes.new("Other")
    area = view_of(second)["area"]
    area.spaces.active.show_region_ui = True
    yield 1.0
    next(region for region in area.regions if region.type == "UI").active_panel_category = "LGM"
    other.lgm.prompt = "a cactus"
    bpy.ops.ed.undo_push(message="Another scene")
    behave("steady")
    before = len(first.scene.objects)
    with bpy.context.temp_override(**view_of(second)):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    yield from until(lambda: now.job and now.job.progress and now.job.progress.step > 20)
    with bpy.context.temp_override(**view_of(first)):
        report["one_job_at_a_time"] = not bpy.ops.lgm.generate.poll()
    yield from picture("1_two_windows")
    yield from until(lambda: now.job is None)
    report["problem"] = now.problem and now.problem.sentence
    report["objects_in_its_scene"] = len(other.objects)
    report["objects_in_the_other"] = len(first.scene.objects) - before
    yield 0.5
    with bpy.context.temp_override(**view_of(second)):
        bpy.ops.ed.undo()
    report["objects_after_undo"] = len(bpy.data.scenes["Other"].objects)
    first, second = manager.windows
    with bpy.context.temp_override(window=second):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    yield from until(lambda: now.job and now.job.progress)
    with bpy.context.temp_override(window=second):
        bpy.ops.wm.window_close()
    yield from until(lambda: now.job is None)
    report["objects_after_its_window_was_closed"] = len(bpy.data.scenes["Other"].objects)
    report["problem"] = report["problem"] or (now.problem and now.problem.sentence)


def story():
    yield from open_tab()
    yield from two_windows()
    now = session.current()
    now.engine.stop()
    behave("long")
    bpy.context.scene.lgm.prompt = "a cactus"
    with bpy.context.temp_override(**view_of(bpy.context.window_manager.windows[0])):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    yield from until(lambda: now.job.progress)
    report["worker"] = now.engine._process.pid
    report["quits"] = True


run(story)
