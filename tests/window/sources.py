"""Where the image comes from, and what a new file shows of the first result, in a real window. `check.py` starts it."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import bpy
import numpy as np
from mathutils import Quaternion, Vector

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bpy_extras.view3d_utils import location_3d_to_region_2d
from harness import ADDON, SHARE, behave, open_tab, override, picture, report, run, session, side_panel, until


def pixels() -> np.ndarray:
    """Of the scene's image, [H, W, 4]."""
    image = bpy.context.scene.lgm.image
    found = np.empty(image.size[0] * image.size[1] * 4, np.float32)
    image.pixels.foreach_get(found)
    return found.reshape(image.size[1], image.size[0], 4)


def press(area, name: str, **options):
    with bpy.context.temp_override(**override(area)):
        return getattr(bpy.ops.lgm, name)("INVOKE_DEFAULT", **options)


def first_result(area):
    """The first result of a new file, as Blender makes it."""
    now, view = session.current(), area.spaces.active.region_3d
    placement = sys.modules[f"{ADDON}.blender.scene.placement"]
    report["without_gpu"] = placement.draws_without_gpu()
    placement.draws_without_gpu = lambda: False
    report["factory_view"] = [view.view_distance, *view.view_rotation, *view.view_location]
    report["objects_before"] = len(bpy.data.objects)
    bpy.context.scene.lgm.prompt = "a cactus"
    bpy.ops.ed.undo_push(message="A prompt")
    behave("steady")
    press(area, "generate")
    yield from until(lambda: now.job and now.job.progress and now.job.progress.step > 20)
    yield from picture("1_running_first")
    yield from until(lambda: now.job is None)
    report["problem"] = now.problem and now.problem.sentence
    made = bpy.context.object
    report["first_location"] = list(made.location)
    yield 2.0
    region = override(area)["region"]
    corners = [made.matrix_world @ Vector(corner) for corner in made.bound_box]
    seen = [location_3d_to_region_2d(region, view, corner) for corner in corners]
    height = max(point.y for point in seen) - min(point.y for point in seen)
    report["framed"] = height / region.height
    report["shading"] = area.spaces.active.shading.type
    yield 20.0
    yield from picture("2_first_result")
    with bpy.context.temp_override(**override(area)):
        bpy.ops.ed.undo()
    report["objects_after_undo"] = len(bpy.data.objects)
    area.spaces.active.shading.type = "SOLID"
    view.view_rotation = Quaternion((1, 0, 0), math.radians(60))
    view.view_distance = 9.0
    yield 0.5
    before = view.view_matrix.copy()
    press(area, "generate")
    yield from until(lambda: now.job and now.job.progress and now.job.progress.step > 20)
    yield from picture("3_running_second")
    yield from until(lambda: now.job is None)
    yield 1.0
    report["view_stayed"] = view.view_matrix == before and area.spaces.active.shading.type == "SOLID"
    yield from picture("4_second_result")
    with bpy.context.temp_override(**override(area)):
        bpy.ops.ed.undo()


def capture(area):
    """Suzanne from the view and from the camera, the cube beside her left out."""
    bpy.data.objects["Cube"].location = (4, 0, 0)
    bpy.ops.mesh.primitive_monkey_add(location=(0, 0, 1), rotation=(0, 0, 0.5))
    material = bpy.data.materials.new("fur")
    material.diffuse_color = (0.8, 0.3, 0.1, 1)
    bpy.context.object.data.materials.append(material)
    view, space = area.spaces.active.region_3d, area.spaces.active
    space.shading.color_type = "MATERIAL"
    view.view_location = (0, 0, 1)
    view.view_distance = 8.0
    view.view_rotation = Quaternion((1, 0, 0), math.radians(90 - 25))
    yield 1.0
    kept = [space.overlay.show_overlays, space.shading.type, space.shading.show_object_outline, view.view_matrix.copy()]
    press(area, "capture_view")
    yield 0.5
    now = [space.overlay.show_overlays, space.shading.type, space.shading.show_object_outline, view.view_matrix.copy()]
    report["kept"] = kept == now and not bpy.data.objects["Cube"].hide_get()
    report["image_view"] = bpy.context.scene.lgm.image.name
    report["elevation_view"], report["expected_view"] = bpy.context.scene.lgm.elevation, 25.0
    alpha = pixels()[..., 3]
    report["alpha_view"] = [float(alpha[i, i].round(2)) for i in (2, 256, -3)]
    columns = np.flatnonzero(alpha.any(0))
    report["others_in_view"] = bool(columns.min() < 10 or columns.max() > 501)
    report["scenes"] = len(bpy.data.scenes)
    bpy.context.scene.lgm.image.save(filepath=str(SHARE / "view.out.png"))
    yield from picture("5_captured")
    material.use_nodes = True
    material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (0.8, 0.3, 0.1, 1)
    space.shading.type = "RENDERED"  # Cycles, which draws in windows only
    bpy.context.scene.render.engine = "CYCLES"
    yield 1.0
    start = time.monotonic()
    press(area, "capture_view")
    report["seconds_of_a_capture_in_material_preview"] = time.monotonic() - start
    report["kept"] = report["kept"] and space.shading.type == "RENDERED"
    found = pixels()
    report["material_alpha"] = [float(found[i, i, 3].round(2)) for i in (2, 256, -3)]
    report["material_color"] = found[found[..., 3] > 0.9][:, :3].mean(0).tolist()
    bpy.context.scene.lgm.image.save(filepath=str(SHARE / "material.out.png"))
    space.shading.type = "SOLID"
    view.view_perspective = "CAMERA"
    yield 1.0
    press(area, "capture_view")
    report["image_camera"] = bpy.context.scene.lgm.image.name
    report["elevation_camera"] = bpy.context.scene.lgm.elevation
    bpy.context.scene.lgm.image.save(filepath=str(SHARE / "camera.out.png"))
    yield from picture("6_captured_by_camera")
    view.view_perspective = "PERSP"


def paste(area):
    """A picture of another program; and nothing."""
    screen = bpy.context.window_manager.windows[0].screen
    editors = [other.ui_type for other in screen.areas]
    try:
        press(area, "paste_image")
        report["no_clipboard"] = "it was pasted"
    except RuntimeError as error:
        report["no_clipboard"] = str(error)
    yield 0.5
    bpy.context.window_manager.clipboard = str(SHARE / "cactus.png")  # no picture: under X11 Blender sees none
    yield 0.5
    press(area, "paste_image")
    report["image_clipboard"] = bpy.context.scene.lgm.image.name
    bpy.context.scene.lgm.image = None
    yield 0.5
    report["editors_kept"] = [other.ui_type for other in screen.areas] == editors
    yield from picture("7_pasted")


def drop(area):
    """What Blender does with a dropped file: it asks the file handlers."""
    with bpy.context.temp_override(**override(area)):
        files = [{"name": "cactus.png"}]
        bpy.ops.wm.drop_import_file("INVOKE_DEFAULT", directory=f"{SHARE}/", files=files)
    yield from picture("8_drop")
    (SHARE / "o.key").touch()  # Blender asks who shall have it: Open Image for LGM
    yield 1.5
    image = bpy.context.scene.lgm.image
    report["dropped"] = image and image.name
    yield from picture("8_dropped")
    bpy.context.scene.lgm.prompt = (
        "a very tall green cactus with long thorns in a small round pot of clay on a wooden table with flowers"
    )
    yield from picture("9_long_prompt")


def story():
    area, _ = side_panel()
    yield from open_tab()
    yield from first_result(area)
    yield from capture(area)
    yield from paste(area)
    yield from drop(area)


run(story)
