"""Where the image may come from. Run: pytest tests/blender/test_sources.py

Blender as a module draws no 3D view and has no clipboard: tests/window does those.
"""

from __future__ import annotations

import math
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Matrix, Vector
from PIL import Image

from lgm_blender.blender.scene import capture, images
from lgm_blender.blender.ui import sources
from lgm_blender.core.pictures import BLENDER_PICTURES, OTHER_PICTURES, WORKER_PICTURES

# Files


def test_a_file_becomes_the_image(worker, tmp_path):
    Image.new("RGBA", (4, 6), (200, 10, 10, 128)).save(tmp_path / "ein Bild, schön.png")
    for _ in range(2):
        assert bpy.ops.lgm.open_image(filepath=str(tmp_path / "ein Bild, schön.png")) == {"FINISHED"}
        assert tuple(bpy.context.scene.lgm.image.size) == (4, 6)
        assert len(bpy.data.images) == 1


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "JPEG2000", "WEBP", "TGA", "ICO", "PCX"])
def test_what_only_the_worker_reads_is_taken(worker, tmp_path, kind):
    suffix = {"JPEG2000": "jp2"}.get(kind, kind.lower())
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (16, 16), (200, 10, 10)).save(path)
    bpy.ops.lgm.open_image(filepath=str(path))
    assert images.image_file(bpy.context.scene.lgm.image, tmp_path / "unused") == path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.png", "no file"),
        ("a.heic", "Save it as PNG"),
        ("b.exr", "no image that can be read"),
        ("c.txt", "can.t be read|no image"),
    ],
)
def test_what_nothing_reads_is_a_sentence(worker, tmp_path, name, sentence):
    for name_of_another in ("a.heic", "b.exr", "c.txt"):
        (tmp_path / name_of_another).write_text("nonsense")
    bpy.context.scene.lgm.image = kept = bpy.data.images.new("kept", 4, 4)
    with pytest.raises(RuntimeError, match=sentence):
        bpy.ops.lgm.open_image(filepath=str(tmp_path / name))
    assert bpy.context.scene.lgm.image == kept
    assert list(bpy.data.images) == [kept]


def test_dropped_images_go_to_the_tab_that_is_open(worker):
    handler = bpy.types.LGM_FH_image
    assert set(handler.bl_file_extensions.split(";")) == {*WORKER_PICTURES, *BLENDER_PICTURES, *OTHER_PICTURES}
    area = next(area for area in bpy.context.window_manager.windows[0].screen.areas if area.type == "VIEW_3D")
    area.spaces.active.show_region_ui = False
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=area):
        assert not sources.LGM_FH_image.poll_drop(bpy.context)


# The render result


def test_the_render_as_it_is_shown(worker, tmp_path):
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 1
    scene.render.resolution_x, scene.render.resolution_y, scene.render.film_transparent = 32, 16, True
    scene.render.image_settings.file_format = "JPEG"
    before = {name: getattr(scene.render.image_settings, name) for name in ("color_mode", "color_depth", "file_format")}
    scene.view_settings.view_transform = "Standard"
    camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
    camera.location = (0, 0, 5)
    scene.collection.objects.link(camera)
    scene.camera = camera
    bpy.ops.mesh.primitive_plane_add(size=1)
    material = bpy.data.materials.new("red")
    bpy.context.object.data.materials.append(material)
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    light, out = tree.nodes.new("ShaderNodeEmission"), tree.nodes.new("ShaderNodeOutputMaterial")
    light.inputs["Color"].default_value = (1, 0, 0, 1)
    tree.links.new(light.outputs[0], out.inputs[0])
    scenes = len(bpy.data.scenes)
    bpy.ops.render.render()
    assert bpy.ops.lgm.use_render() == {"FINISHED"}
    image = scene.lgm.image
    assert image.packed_file
    assert tuple(image.size) == (32, 16)
    found = np.array(image.pixels[:]).reshape(16, 32, 4)
    np.testing.assert_allclose(found[8, 16], [1, 0, 0, 1], atol=0.01)
    assert found[0, 0, 3] == 0
    assert {name: getattr(scene.render.image_settings, name) for name in before} == before
    assert len(bpy.data.scenes) == scenes
    assert images.image_file(image, tmp_path) == tmp_path / "Render.png"


def test_nothing_rendered_yet_is_a_sentence(worker):
    with pytest.raises(RuntimeError, match="Nothing has been rendered yet"):
        bpy.ops.lgm.use_render()
    assert bpy.context.scene.lgm.image is None
    assert len(bpy.data.scenes) == 1


def test_without_a_window_view_and_clipboard_are_sentences(worker):
    for operator in (bpy.ops.lgm.capture_view, bpy.ops.lgm.paste_image):
        with pytest.raises(RuntimeError, match="in a window"):
            operator()
    assert not bpy.data.images


@pytest.mark.parametrize("text", ["//machine/share/a.png", r"\\machine\share\a.png", "file:////machine/share/a.png"])
def test_no_other_machine_is_asked_for_a_path_that_was_copied(text, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda self: pytest.fail(f"{self} was looked at"))
    assert sources.copied_file(text) is None


def test_a_path_that_was_copied(tmp_path):
    path = tmp_path / "ein Bild, schön.png"
    path.write_text("")
    for text in (str(path), f"  '{path}'\nmore", path.as_uri(), f'"{path}"\r\n'):
        assert sources.copied_file(text) == path
    for text in (
        "",
        "a.png",
        str(tmp_path),
        str(path) + "x",
        "https://example.org/a.png",
        "\0",
        "x" * 100_000,
        "/" * 9000,
    ):
        assert sources.copied_file(text) is None


# The elevation


def test_three_elevations_besides_the_number(worker):
    for _, degrees in sources.ELEVATIONS:
        bpy.ops.lgm.set_elevation(elevation=degrees)
        assert bpy.context.scene.lgm.elevation == degrees
    assert [degrees for _, degrees in sources.ELEVATIONS] == [0, 15, 30]


def view_from(eye, target=(0, 0, 0), aspect=1.5, perspective=True):
    """A view as Blender's 3D view has it."""
    back = (Vector(eye) - Vector(target)).normalized()
    to_world = Matrix.LocRotScale(Vector(eye), back.to_track_quat("Z", "Y"), None)
    camera = bpy.data.cameras.new("c")
    camera.type = "PERSP" if perspective else "ORTHO"
    camera.ortho_scale = 4
    thing = bpy.data.objects.new("c", camera)
    projection = thing.calc_matrix_camera(bpy.context.evaluated_depsgraph_get(), x=int(600 * aspect), y=600)
    return capture.View(np.array(to_world.inverted()), np.array(projection), aspect)


@pytest.mark.parametrize("degrees", [-60.0, -5.0, 0.0, 15.0, 30.0, 89.0])
@pytest.mark.parametrize("perspective", [True, False])
def test_elevation_of_a_view(degrees, perspective):
    angle = math.radians(degrees)
    for turn in (0.0, 1.0, 4.0):
        eye = np.array([math.cos(angle) * math.sin(turn), -math.cos(angle) * math.cos(turn), math.sin(angle)]) * 6
        view = view_from(eye, perspective=perspective)
        assert capture.elevation(view) == pytest.approx(degrees, abs=0.06)
        assert capture.elevation(view, np.zeros(3)) == pytest.approx(degrees, abs=0.06)


def test_elevation_onto_an_object_that_is_not_in_the_middle():
    view = view_from((0, -6, 0))
    target = np.array([0.0, 0.0, -6 * math.tan(math.radians(20))])
    assert capture.elevation(view, target) == pytest.approx(20, abs=0.06)
    assert capture.elevation(view_from((0, -6, 0), perspective=False), target) == 0  # all rays are parallel


# The picture's frame


def corners(center, size):
    return np.array(center) + size * (np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T)


@pytest.mark.parametrize("perspective", [True, False])
@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_the_frame_is_square_and_holds_the_object(perspective, aspect):
    view = view_from((2, -6, 2), aspect=aspect, perspective=perspective)
    for points in (corners((0, 0, 0), 1.0), corners((1.5, 2.0, -1.0), 0.2), corners((9, 0, 0), 2.0)):
        projection = capture.cut(view, points)
        clip = np.column_stack([points, np.ones(8)]) @ (projection @ view.matrix).T
        seen = clip[:, :2] / clip[:, 3:]
        assert np.abs(seen).max() == pytest.approx(1 / capture.MARGIN)
        assert seen.min(0) == pytest.approx(-seen.max(0))  # in the middle
        scale = projection[0, 0] / projection[1, 1], view.projection[0, 0] / view.projection[1, 1]
        assert scale[0] / scale[1] == pytest.approx(aspect)  # nothing is stretched


def test_a_view_from_within_shows_what_the_view_shows():
    view = view_from((0, 0, 0.1), aspect=2.0)
    projection = capture.cut(view, corners((0, 0, 0), 5.0))
    assert projection[0, 0] == pytest.approx(view.projection[0, 0] * 2)
    assert projection[1, 1] == pytest.approx(view.projection[1, 1])


def test_selected_objects_and_what_hangs_on_them_are_wanted():
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    bpy.ops.mesh.primitive_uv_sphere_add()
    ball = bpy.context.object
    bpy.ops.object.light_add()
    bpy.ops.object.empty_add()
    empty = bpy.context.object
    ball.parent = empty
    bpy.context.view_layer.update()
    assert capture.wanted_objects(bpy.context) == ([ball], True)
    empty.select_set(False)
    assert capture.wanted_objects(bpy.context) == ([cube, ball], False)
    cube.hide_set(True)
    assert capture.wanted_objects(bpy.context) == ([ball], False)


def test_a_copy_of_the_scene_shows_them_alone():
    for place in (0, 3, 6):
        bpy.ops.mesh.primitive_cube_add(location=(place, 0, 0))
    before = [thing.visible_get() for thing in bpy.data.objects]
    with capture._alone(bpy.context, [bpy.context.object]) as (_, layer):
        found = capture._corners(layer.depsgraph)
        assert (found.min(0).tolist(), found.max(0).tolist()) == ([5, -1, -1], [7, 1, 1])
    assert [thing.visible_get() for thing in bpy.data.objects] == before
    assert len(bpy.data.scenes) == 1
    assert Path(bpy.app.tempdir).exists()
