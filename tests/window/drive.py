"""Uses the panel in a real Blender window as a user would, and writes down what happened. `check.py` starts it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import (
    ADDON,
    SHARE,
    behave,
    longest_gap,
    open_tab,
    picture,
    report,
    run,
    session,
    side_panel,
    ticks,
    until,
    use_real_worker,
)


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
    yield from open_tab()
    area.spaces.active.region_3d.view_distance = 15.0  # a view that is somebody's: it stays as it is (sources.py)
    yield from picture("1_empty")

    settings = bpy.context.scene.lgm
    settings.image = bpy.data.images.load(str(SHARE / "cactus.png"))
    settings.seed = 5
    bpy.ops.ed.undo_push(message="An image is chosen")
    yield from picture("2_ready")

    if not use_real_worker():
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


run(story)
