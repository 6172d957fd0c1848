"""What `stalls.py` has done in the window."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import (
    ADDON,
    SHARE,
    behave,
    gaps,
    open_tab,
    override,
    picture,
    report,
    run,
    session,
    side_panel,
    ticks,
    until,
    use_real_worker,
)

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


def pairs(start, end):
    return itertools.pairwise([start, *(t for t in ticks if start <= t <= end), end])


def note(name: str, start: float, end: float) -> None:
    between = gaps(start, end)
    own = [seconds for when, seconds in ours if start <= when <= end + 0.1]
    report.setdefault("rows", {})[name] = {
        "median": 1000 * between[len(between) // 2],
        "p99": 1000 * between[int(0.99 * len(between))],
        "longest": 1000 * between[-1],
        "ours": 1000 * max(own, default=0.0),
        "seconds": end - start,
        "long": [[round(b - start, 3), round(b - a, 3)] for a, b in pairs(start, end) if b - a > 0.1][:30],
        "our_long": [[round(when - start, 3), round(s, 3)] for when, s in ours if start <= when and s > 0.02][:30],
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


def look(area, away: bool) -> None:
    """Turns the view to where results come, or to where nothing is, so that Blender has nothing to draw of them."""
    view = area.spaces.active.region_3d
    view.view_distance = 12.0
    view.view_location = (0.0, -1000.0, 0.0) if away else (0.0, 0.0, 0.0)


def story():
    area, panel = side_panel()
    yield from open_tab()
    settings = bpy.context.scene.lgm
    settings.image = bpy.data.images.load(str(SHARE / "cactus.png"))
    look(area, away=True)
    bpy.ops.ed.undo_push(message="An image is chosen")
    yield 8.0
    watch_timer()
    start = time.monotonic()
    yield 3.0
    note("nothing", start, time.monotonic())
    for name, region in (("side panel", panel), ("3D view", override(area)["region"])):
        start = time.monotonic()
        while time.monotonic() < start + 3:
            region.tag_redraw()
            yield 0.1
        note(f"the {name} is drawn ten times a second", start, time.monotonic())
    for what, prepare in (("65,536 Gaussians", use_stand_in), ("mini", use_real_worker)):
        prepare()
        for away in (True, False):
            look(area, away)
            yield from job(area, f"{what}, {'not in view' if away else 'in view'}")


def use_stand_in():
    behave("steady", "large.ply")


run(story)
