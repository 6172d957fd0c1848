"""Scenes that get splats in other ways than by the add-on. Run: python build.py test tests/blender/test_handlers.py"""

from __future__ import annotations

import bpy
import numpy as np
import pytest

from lgm_blender.blender import compat, handlers
from lgm_blender.blender.scene import render, splats
from lgm_blender.blender.scene.nodes.build import VARIANT_KEY
from lgm_blender.core.gaussians import Gaussians


@pytest.fixture(autouse=True)
def watched():
    """The handlers, and nothing else of the add-on."""
    handlers.register()
    yield
    handlers.unregister()


def stack(count=40) -> Gaussians:
    """White faint Gaussians behind each other: more than Cycles' 8 transparent bounces go through."""
    positions = np.zeros((count, 3))
    positions[:, 2] = np.linspace(0.2, 0, count)
    return Gaussians(
        positions, np.full(count, 0.1), np.full((count, 3), 0.3), [[1, 0, 0, 0]] * count, np.ones((count, 3))
    )


@pytest.fixture
def saved(tmp_path):
    """A file with splats in the collection 'Things', whose scene nobody has set up: (path, name of the object)."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    collection = bpy.data.collections.new("Things")
    bpy.context.scene.collection.children.link(collection)
    made = splats.add_splats(stack(), "stack", collection=collection, stand=False)
    splats.set_display(made, display="Exact")
    path = tmp_path / "things.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    return path


def middle(tmp_path, scene=None) -> float:
    """Brightness 0 to 1 in the middle of a scene's render, by its own settings, seen from the front."""
    scene = scene or bpy.context.scene
    camera = render.camera_from_pose(render.orbit_camera(0, 0, 2.0))
    scene.collection.objects.link(camera)
    scene.camera = camera
    scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 4, False
    scene.render.resolution_x = scene.render.resolution_y = 8
    scene.view_settings.view_transform = "Raw"
    scene.render.image_settings.file_format = "PNG"
    scene.render.filepath = str(tmp_path / "render.png")
    bpy.ops.render.render(write_still=True, scene=scene.name)
    image = bpy.data.images.load(scene.render.filepath)
    pixels = np.array(image.pixels[:], np.float32).reshape(8, 8, 4)
    bpy.data.images.remove(image)
    return float(pixels[3:5, 3:5, :3].mean())


def append(path, *, link=False):
    with bpy.data.libraries.load(str(path), link=link) as (there, here):
        here.collections = there.collections
    return here.collections[0]


WHITE = 0.9


def test_cycles_as_it_is_shows_too_little(tmp_path, saved):
    """The tests here can fail."""
    handlers.unregister()
    bpy.context.scene.collection.children.link(append(saved))
    assert middle(tmp_path) < 0.75


@pytest.mark.parametrize("link", [False, True])
def test_appended_and_linked(tmp_path, saved, link):
    bpy.context.scene.collection.children.link(append(saved, link=link))
    assert middle(tmp_path) > WHITE


@pytest.mark.parametrize("link", [False, True])
def test_instance_of_a_collection(tmp_path, saved, link):
    empty = bpy.data.objects.new("instance", None)
    empty.instance_type, empty.instance_collection = "COLLECTION", append(saved, link=link)
    bpy.context.scene.collection.objects.link(empty)
    assert middle(tmp_path) > WHITE


def test_appended_by_the_operator(tmp_path, saved):
    bpy.ops.wm.append(directory=f"{saved}/Object/", filename="stack")
    assert bpy.context.scene.cycles.transparent_max_bounces == splats.MAX_TRANSPARENT_BOUNCES


def test_a_new_scene_of_the_same_file(tmp_path, saved):
    bpy.ops.wm.open_mainfile(filepath=str(saved))
    scene = bpy.data.scenes.new("New")
    scene.collection.objects.link(bpy.data.objects["stack"])
    assert middle(tmp_path, scene) > WHITE


def test_an_opened_file(tmp_path, saved):
    bpy.ops.wm.open_mainfile(filepath=str(saved))
    bpy.context.scene.cycles.transparent_max_bounces = 8
    bpy.ops.wm.save_as_mainfile(filepath=str(saved))
    bpy.ops.wm.open_mainfile(filepath=str(saved))
    assert bpy.context.scene.cycles.transparent_max_bounces == splats.MAX_TRANSPARENT_BOUNCES


def test_a_render_begins_with_what_splats_need(tmp_path, saved):
    """Set after all else, it is the render's own handler that raises it, and this render has it."""
    bpy.context.scene.collection.children.link(append(saved))
    bpy.context.view_layer.update()
    bpy.context.scene.cycles.transparent_max_bounces = 8
    assert middle(tmp_path) > WHITE


def test_what_somebody_chose_is_left_and_told(saved):
    scene = bpy.context.scene
    scene.collection.children.link(append(saved))
    bpy.context.view_layer.update()
    scene.cycles.transparent_max_bounces = 100
    handlers.raise_what_nobody_chose([scene])
    assert scene.cycles.transparent_max_bounces == 100
    (sentence,) = splats.settings_too_low(scene)
    assert "is 100, and should be 512" in sentence
    splats.prepare_scene_for_splats(scene)
    assert splats.settings_too_low(scene) == []


def test_scenes_without_splats_are_left_alone(saved):
    scene = bpy.context.scene
    mesh = bpy.data.objects.new("mesh", bpy.data.meshes.new("mesh"))
    scene.collection.objects.link(mesh)
    bpy.context.view_layer.update()
    append(saved)  # in the file, but in no scene
    handlers.raise_what_nobody_chose(bpy.data.scenes)
    assert scene.cycles.transparent_max_bounces == 8
    assert splats.settings_too_low(scene) == []


@pytest.mark.skipif(not compat.has_native_splats(), reason="there are no native splats")
def test_native_splats_need_samples_and_denoising():
    scene = bpy.context.scene
    made = splats.add_splats(stack(), "stack")
    scene.cycles.samples, scene.cycles.use_denoising = 4, False
    assert len(splats.settings_too_low(scene)) == 2
    splats.set_display(made, display="Exact")
    assert splats.settings_too_low(scene) == []
    splats.set_display(made, display="Native")
    assert len(splats.prepare_scene_for_splats(scene)) == 2
    assert scene.cycles.samples == splats.NATIVE_SAMPLES
    assert scene.cycles.use_denoising


def test_the_node_group_of_another_blender_is_made_anew_when_its_file_is_opened(tmp_path):
    made = splats.add_splats(stack(), "stack")
    splats.set_display(made, display="Exact", scale=2.0)
    group = splats.display_modifier(made).node_group
    group.nodes.clear()
    group[VARIANT_KEY] = "another Blender's"
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    modifier = splats.display_modifier(bpy.data.objects["stack"])
    assert len(modifier.node_group.nodes) > 10
    assert compat.get_modifier_input(modifier, "Scale") == 2.0
