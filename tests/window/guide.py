"""The pictures of docs/guide.md, made in a real window with the real worker. `check.py --story guide` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import SHARE, open_tab, override, picture, report, run, session, side_panel, until, use_real_worker
from views import press, stroke

SHADERS = 60.0  # seconds that a 3D view without a GPU needs before it shows colours


def story():
    now, (area, _) = session.current(), side_panel()
    yield from open_tab()
    if not use_real_worker():
        raise RuntimeError("The guide's pictures need the real worker: give --worker.")
    settings, space = bpy.context.scene.lgm, area.spaces.active
    space.shading.show_object_outline = False
    space.overlay.show_outline_selected = False
    bpy.data.objects.remove(bpy.data.objects["Cube"])
    settings.image = bpy.data.images.load(str(SHARE / "cactus.png"))
    settings.seed, settings.candidates, settings.elevation = 5, 3, 20.0
    yield from until(lambda: now.cutout.result is not None, 120.0)
    yield from picture("guide_ready")
    press(area, bpy.ops.lgm.generate)
    yield from until(lambda: now.job is None and not now.working, 300.0)
    yield from picture("guide_candidates")
    best = str(now.choice.result.candidates[0].seed)
    press(area, bpy.ops.lgm.make_candidate, seed=best)
    bpy.ops.lgm.views_from_candidate(seed=best)
    yield from until(lambda: now.job is None, 120.0)
    settings.views.target = bpy.context.object
    press(area, bpy.ops.lgm.drop_candidates)
    press(area, bpy.ops.lgm.paint_view, view="front")
    space.shading.type = "MATERIAL"
    with bpy.context.temp_override(**override(area)):
        bpy.ops.view3d.view_axis(type="FRONT")
        bpy.ops.view3d.view_selected()
    yield SHADERS
    settings.views.live = True
    yield from until(lambda: now.live.done > 0 and not now.live.working, 120.0)
    for number in range(4):
        done = now.live.done
        stroke(settings.views.front, 0.22 + 0.08 * number, (0.95, 0.85, 0.2, 1))
        yield from until(lambda done=done: now.live.done > done, 60.0)
        report.setdefault("seconds_live", []).append(round(now.live.seconds, 2))
    space.show_region_ui = False
    with bpy.context.temp_override(**override(area)):
        bpy.ops.view3d.view_selected()
    yield 5.0
    yield from picture("guide_live")


if __name__ == "__main__":
    run(story)
