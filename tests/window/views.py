"""Candidates, the four views, painting on them, cameras and Live, in a real window. `check.py` starts it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import bpy
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import (
    SHARE,
    behave,
    longest_gap,
    open_tab,
    override,
    picture,
    report,
    run,
    session,
    side_panel,
    until,
    use_real_worker,
)


def press(area, operator, **options):
    with bpy.context.temp_override(**override(area)):
        operator("INVOKE_DEFAULT", **options)


def stroke(image, row: float, color) -> None:
    """Paints a bar across an image, as a brush would."""
    width, height = image.size
    pixels = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(pixels)
    pixels = pixels.reshape(height, width, 4)
    pixels[int(row * height) : int((row + 0.04) * height), int(0.42 * width) : int(0.58 * width)] = color
    image.pixels.foreach_set(np.ascontiguousarray(pixels, np.float32).ravel())
    image.update()


def change(name: str, times: int, make):
    """Makes changes, one after the other; how long each takes to become splats, and the window to stand still."""
    live = session.current().live
    seconds, stills = [], []
    for number in range(times):
        before, start = live.done, time.monotonic()
        make(number)
        yield from until(lambda before=before: live.done > before)
        end = time.monotonic()
        seconds.append(end - start)
        stills.append(longest_gap(start, end))
        yield 0.2
    report[f"seconds_{name}"], report[f"standstill_{name}"] = seconds, stills


def story():
    now, (area, _) = session.current(), side_panel()
    yield from open_tab()
    if not use_real_worker():
        behave("well")
    settings = bpy.context.scene.lgm
    settings.image = bpy.data.images.load(str(SHARE / "cactus.png"))
    settings.seed, settings.candidates = 5, 3
    bpy.data.objects["Cube"].hide_set(True)
    press(area, bpy.ops.lgm.generate)
    yield from until(lambda: now.job is None and not now.working, 300.0)
    report["candidates"] = [candidate.seed for candidate in now.choice.result.candidates]
    yield from picture("1_gallery")
    best = str(report["candidates"][0])
    press(area, bpy.ops.lgm.make_candidate, seed=best)
    bpy.ops.lgm.views_from_candidate(seed=best)
    yield from until(lambda: now.job is None, 120.0)
    report["problem"] = now.problem and now.problem.sentence
    settings.views.target = bpy.context.object
    press(area, bpy.ops.lgm.drop_candidates)
    bpy.context.object.display_type = "BOUNDS"  # without a GPU, drawing splats is what the window would stand still for
    press(area, bpy.ops.lgm.paint_view, view="front")
    report["editors"] = [a.type for a in bpy.context.window_manager.windows[0].screen.areas].count("IMAGE_EDITOR")
    yield 1.0
    settings.views.live = True
    yield from until(lambda: now.live.done > 0 and not now.live.working, 120.0)
    yield from change("stroke", 4, lambda i: stroke(settings.views.front, 0.4 + 0.05 * i, (0.9, 0.1, 0.1, 1)))
    objects = len(bpy.data.objects)
    yield 2.5
    yield from picture("2_painted")
    report["objects_of_live"] = len(bpy.data.objects) - objects
    settings.views.live = False

    settings.views.target = None
    for thing in list(bpy.data.objects):
        thing.select_set(False)
    cube = bpy.data.objects["Cube"]
    cube.hide_set(False)
    cube.select_set(True)
    press(area, bpy.ops.lgm.add_view_cameras)
    yield 0.5
    press(area, bpy.ops.lgm.render_views)
    yield 0.5
    settings.views.live = True
    done = now.live.done
    yield from until(lambda: now.live.done > done and not now.live.working, 120.0)
    settings.views.target.display_type = "BOUNDS"

    def turn(number: int) -> None:
        cube.rotation_euler.z += 0.3

    yield from change("moved", 3, turn)
    report["scenes"] = len(bpy.data.scenes)
    report["place"] = [round(x, 4) for x in settings.views.target.matrix_world.translation]
    yield 1.5
    yield from picture("3_cameras")
    settings.views.live = False
    report["problem"] = report["problem"] or (now.problem and now.problem.sentence)


if __name__ == "__main__":
    run(story)
