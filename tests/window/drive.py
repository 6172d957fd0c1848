"""Runs inside a real Blender window: uses the panel as a user would, and writes down what happened.

`check.py` starts it and takes the pictures: this side asks for one by writing NAME.want and waits for NAME.done.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import bpy

SHARE = Path(__file__).resolve().parent
ADDON = "bl_ext.user_default.lgm_blender"
os.environ["LGM_BLENDER_PYTHON"] = sys.executable
bpy.context.preferences.view.show_splash = False
bpy.ops.preferences.addon_enable(module=ADDON)
session = sys.modules[f"{ADDON}.blender.session"]

ticks = []  # when this side's timer ran: how long the window stood still is the longest gap
report = {"blender": bpy.app.version_string, "python": sys.version.split()[0]}


def behave(behaviour: str) -> None:
    """Sets how the stand-in for the worker behaves, from the next start on."""
    command = [sys.executable, "-u", str(SHARE / "fake_worker.py"), behaviour, str(SHARE / "lgm.ply")]
    session.worker_command = lambda python, *arguments: command


def tick():
    ticks.append(time.monotonic())
    return 0.01


def side_panel():
    """The 3D view's area and its side panel."""
    area = next(area for area in bpy.context.window_manager.windows[0].screen.areas if area.type == "VIEW_3D")
    return area, next(region for region in area.regions if region.type == "UI")


def picture(name: str):
    """Waits until check.py has taken a picture of the screen."""
    side_panel()[1].tag_redraw()
    for _ in range(5):
        yield 0.1
    (SHARE / f"{name}.want").touch()
    while not (SHARE / f"{name}.done").exists():
        yield 0.05


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it never happened")
        yield 0.02


def longest_gap(start, end) -> float:
    """The longest time between two ticks: so long the window stood still."""
    inside = [start, *(t for t in ticks if start <= t <= end), end]
    return max(b - a for a, b in itertools.pairwise(inside))


def look(area, name: str, seconds: float):
    """What was made looks like in the 3D view. EEVEE compiles its shaders, which takes long without a GPU."""
    window = next(region for region in area.regions if region.type == "WINDOW")
    bpy.data.objects["Cube"].hide_set(True)
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=area, region=window):
        bpy.ops.view3d.view_selected()
    yield 1.0
    yield from picture(f"{name}_solid")
    area.spaces.active.shading.type = "MATERIAL"
    yield seconds
    yield from picture(f"{name}_material")
    area.spaces.active.shading.type = "SOLID"


def make_meshes(area, region):
    """A mesh of the image, and one of splats that are in the scene; each is there at once, and gone at one undo."""
    now = session.current()
    override = {"window": bpy.context.window_manager.windows[0], "area": area, "region": region}

    def job(name: str, operator) -> None:
        yield 2.0  # what was done before is drawn
        before = len(bpy.data.objects)
        start = time.monotonic()
        with bpy.context.temp_override(**override):
            operator("INVOKE_DEFAULT")
        report[f"seconds_of_the_click_{name}"] = time.monotonic() - start
        job = now.job
        yield from until(lambda: now.job is None, 300.0)
        ready, end = job.started + job.seconds, time.monotonic()
        yield 0.5
        report[f"seconds_{name}"] = job.seconds
        report[f"standstill_{name}"] = longest_gap(start, ready)
        report[f"standstill_at_end_{name}"] = longest_gap(ready - 0.1, end + 0.5)
        report[f"problem_{name}"] = now.problem and now.problem.sentence
        report[f"objects_added_{name}"] = len(bpy.data.objects) - before
        report[f"faces_{name}"] = len(bpy.context.object.data.polygons)
        report[f"texture_{name}"] = list(
            bpy.context.object.data.materials[0].node_tree.nodes["Image Texture"].image.size
        )
        yield from picture(f"5_{name}")
        if (SHARE / "worker_python").exists():
            yield from look(area, f"5_{name}", 60.0)
        with bpy.context.temp_override(**override):
            bpy.ops.ed.undo()
        report[f"objects_after_undo_{name}"] = len(bpy.data.objects) - before
        yield 0.5

    bpy.context.scene.lgm.output_kind = "mesh"
    bpy.ops.ed.undo_push(message="Mesh is chosen")
    yield from job("mesh", bpy.ops.lgm.generate)
    bpy.context.scene.lgm.output_kind = "splats"
    bpy.ops.lgm.import_ply(filepath=str(SHARE / "lgm.ply"))
    bpy.context.object.display_type = "BOUNDS"  # without a GPU, drawing splats is what the window would stand still for
    bpy.ops.ed.undo_push(message="Splats are imported")
    yield from job("converted", bpy.ops.lgm.convert_to_mesh)
    report["splats_are_seen_again"] = not bpy.data.objects["lgm"].hide_get()
    with bpy.context.temp_override(**override):
        bpy.data.objects.remove(bpy.data.objects["lgm"])
    bpy.ops.ed.undo_push(message="Splats are removed")


def render_training_views(area, region):
    """Training views of the cube, the second time stopped by the Escape key."""
    training = sys.modules[f"{ADDON}.blender.ui.training"]
    output = SHARE / "training"

    def file() -> dict[str, int]:
        kinds = (prop.identifier for prop in bpy.data.bl_rna.properties if prop.type == "COLLECTION")
        return {block.name_full: block.users for kind in kinds for block in getattr(bpy.data, kind)}

    def start(**options):
        with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=area, region=region):
            bpy.ops.lgm.training_views("INVOKE_DEFAULT", output=str(output), source="COLLECTION", size=64, **options)

    before, began = file(), time.monotonic()
    start(views=8)
    yield from until(lambda: not training._running)
    report["standstill_training_views"] = longest_gap(began + 2, time.monotonic())  # Cycles starts in the first seconds
    report["training_views"] = len(list(output.glob("Cube/*.png")))
    start(views=36, overwrite=True)
    yield from until(lambda: training._maker.view >= 2)
    yield from picture("8_training")
    (SHARE / "Escape.key").touch()
    yield from until(lambda: not training._running)
    report["training_views_after_escape"] = len(list(output.rglob("*.png")))
    report["file_unchanged"] = file() == before


def story():
    """What the user does, one step after the other; every yield gives Blender its window back for a while."""
    now = session.current()
    if not (SHARE / "worker_python").exists():
        behave("well")  # the panel, once it is seen, has the models loaded
    area, region = side_panel()
    area.spaces.active.show_region_ui = True
    yield 2.0
    region.active_panel_category = "LGM"
    region.tag_redraw()
    yield from picture("1_empty")

    settings = bpy.context.scene.lgm
    settings.image = bpy.data.images.load(str(SHARE / "cactus.png"))
    settings.seed = 5
    bpy.ops.ed.undo_push(message="An image is chosen")
    yield from picture("2_ready")

    if (SHARE / "worker_python").exists():
        os.environ["LGM_BLENDER_PYTHON"] = str(SHARE / "worker_python")
        now.forget_worker()
    else:
        behave("steady")
        report["loaded_ahead"] = bool(now.preload.job)
    objects = len(bpy.data.objects)
    start = time.monotonic()
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=area, region=region):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    report["seconds_of_the_click"] = time.monotonic() - start
    job = now.job
    yield from until(lambda: now.job is None or (now.job.progress and now.job.progress.step > 8), 120.0)
    yield from picture("3_running")
    yield from until(lambda: now.job is None, 120.0)
    ready = job.started + job.seconds
    end = time.monotonic()
    report["job_seconds"] = end - start
    report["ticks"] = sum(start <= t <= end for t in ticks)
    report["standstill"] = longest_gap(start, ready)
    report["standstill_at_end"] = longest_gap(ready - 0.1, end)
    report["problem"] = now.problem and now.problem.sentence
    report["objects_added"] = len(bpy.data.objects) - objects
    yield from picture("4_done")
    if (SHARE / "worker_python").exists():
        yield from look(area, "4", 90.0)
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=area, region=region):
        bpy.ops.ed.undo()
    report["objects_after_undo"] = len(bpy.data.objects) - objects
    yield 0.5

    yield from make_meshes(area, region)

    os.environ["LGM_BLENDER_PYTHON"] = sys.executable
    now.engine.stop()
    behave("long")
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    yield from until(lambda: now.job.progress)
    start = time.monotonic()
    bpy.ops.lgm.cancel()
    yield from until(lambda: now.job is None)
    report["seconds_to_cancel"] = time.monotonic() - start

    now.engine.stop()
    behave("dies_in_job")
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    yield from until(lambda: now.job is None)
    report["death"] = now.problem.sentence
    yield from picture("6_died")
    now.problem = None

    behave("well")
    bpy.ops.lgm.check_worker()
    yield from until(lambda: now.engine.state == "ready")
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.lgm.show_preferences()
    yield 1.0
    yield from picture("7_preferences")
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[-1]):
        bpy.ops.wm.window_close()
    yield 0.5

    yield from render_training_views(area, region)

    os.environ["LGM_BLENDER_PYTHON"] = "/nowhere/python"
    now.forget_worker()
    region.tag_redraw()
    yield from picture("9_no_worker")
    os.environ["LGM_BLENDER_PYTHON"] = sys.executable
    now.forget_worker()

    behave("long")
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    yield from until(lambda: now.job.progress)
    process = now.engine._process
    start = time.monotonic()
    bpy.ops.preferences.addon_disable(module=ADDON)
    report["seconds_to_unregister"] = time.monotonic() - start
    report["worker_left"] = process.exit_code() is None


def go(steps=None):
    """Runs the story from a timer; ends Blender with it."""
    try:
        return next(steps)
    except StopIteration:
        pass
    except Exception as error:
        report["error"] = repr(error)
    (SHARE / "report.json").write_text(json.dumps(report, indent=2))
    os._exit(0)


bpy.app.timers.register(tick, persistent=True)
steps = story()
bpy.app.timers.register(lambda: go(steps), first_interval=2.0, persistent=True)
