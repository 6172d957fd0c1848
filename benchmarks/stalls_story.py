"""What `stalls.py` has done in the window."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import ADDON, SHARE, behave, gaps, open_tab, override, picture, report, run, session, side_panel, until

timer = sys.modules[f"{ADDON}.blender.ui.timer"]
ours = []  # (when, seconds) of each call of the add-on's timer


def watch_timer() -> None:
    """Has the add-on's timer write down how long each of its calls takes."""
    function = session.current().step

    def step():
        start = time.perf_counter()
        try:
            return function()
        finally:
            ours.append((time.monotonic(), time.perf_counter() - start))

    session.current().step = step
    show = timer.icons.show

    def watched(path):
        start = time.perf_counter()
        show(path)
        ours.append((time.monotonic(), time.perf_counter() - start))

    timer.icons.show = watched


def note(name: str, start: float, end: float) -> None:
    between = gaps(start, end)
    own = [seconds for when, seconds in ours if start <= when <= end + 0.1]
    report.setdefault("rows", {})[name] = {
        "median": 1000 * between[len(between) // 2],
        "p99": 1000 * between[int(0.99 * len(between))],
        "longest": 1000 * between[-1],
        "ours": 1000 * max(own, default=0.0),
        "seconds": end - start,
    }


def job(area, name: str):
    now = session.current()
    yield 2.0
    start = time.monotonic()
    with bpy.context.temp_override(**override(area)):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    job = now.job
    yield from until(lambda: job.ended, 600.0)
    ready = job.started + job.seconds
    note(f"{name}: the job runs", start, ready)
    yield from until(lambda: now.job is None, 60.0)
    arrived = time.monotonic()
    report[f"problem {name}"] = now.problem and now.problem.sentence
    if now.outcome:
        report[f"gaussians {name}"] = now.outcome.result.gaussians
    yield 3.0
    note(f"{name}: the result arrives", ready - 0.05, arrived + 0.05)
    note(f"{name}: and is drawn", arrived + 0.05, time.monotonic())
    yield from picture(name.replace(" ", "_").replace(",", ""))
    with bpy.context.temp_override(**override(area)):
        bpy.ops.ed.undo()


def story():
    area, _ = side_panel()
    yield from open_tab()
    yield 3.0
    settings = bpy.context.scene.lgm
    settings.image = bpy.data.images.load(str(SHARE / "cactus.png"))
    # What is measured is the add-on, not how fast this machine draws splats and compiles shaders without a GPU.
    area.spaces.active.region_3d.view_distance = 12.0
    bpy.ops.ed.undo_push(message="An image is chosen")
    watch_timer()
    start = time.monotonic()
    yield 3.0
    note("nothing", start, time.monotonic())
    behave("steady", "large.ply")
    for number in (1, 2):
        yield from job(area, f"65,536 Gaussians, {('first', 'second')[number - 1]}")
    session.current().engine.stop()
    session.worker_command = worker_command
    import os

    os.environ["LGM_BLENDER_PYTHON"] = str(SHARE / "worker_python")
    session.current().forget_worker()
    for number in (1, 2):
        yield from job(area, f"mini, {('first', 'second')[number - 1]}")


worker_command = session.worker_command
run(story)
