"""Training views rendered by Blender, and by both makers. Run: pytest tests/blender/test_training_views.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest
from glb import box, bumpy_ball, patchwork, piece, write_glb
from PIL import Image

import lgm_blender
from lgm_blender.blender import compat, training_views
from lgm_blender.blender.scene import view_maker
from lgm_blender.blender.scene.nodes.even_light import EvenLight
from lgm_blender.blender.scene.training_items import _all_blocks, object_items
from lgm_blender.blender.scene.view_maker import ViewMaker
from lgm_blender.blender.ui import training
from lgm_blender.core.formats.transforms import read_transforms

ROOT = Path(__file__).parents[2]


def blocks() -> dict[str, tuple]:
    """Everything in the file: each data-block's users, and what objects, scenes and materials are made of."""
    found = {}
    for block in _all_blocks():
        # Blender 4.2 itself miscounts the users of a node group when a material with it is copied and removed.
        facts = [] if isinstance(block, bpy.types.NodeTree) else [block.users]
        if isinstance(block, bpy.types.Object):
            facts += [tuple(map(tuple, block.matrix_world)), block.hide_render, block.data, block.parent]
            facts += [[slot.material for slot in block.material_slots], len(block.modifiers)]
        if isinstance(block, bpy.types.Scene):
            facts += [block.render.engine, block.render.filepath, block.frame_current, block.camera, block.world]
            facts += [block.view_settings.view_transform, list(block.collection.all_objects)]
        if isinstance(block, bpy.types.Mesh | bpy.types.Curve):
            facts += [list(block.materials)]
        if isinstance(block, bpy.types.Material) and block.node_tree:
            facts += [[node.type for node in block.node_tree.nodes]]
        found[f"{type(block).__name__}/{block.name_full}"] = tuple(map(str, facts))
    return found


def material(name: str, color=(0.8, 0.2, 0.1, 1.0), **inputs) -> bpy.types.Material:
    made = bpy.data.materials.new(name)
    tree = compat.node_tree(made)
    shader = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
    for key, value in {"Base Color": color, **inputs}.items():
        shader.inputs[key.replace("_", " ")].default_value = value
    return made


def cube(name="Cube", size=1.0, location=(0, 0, 0), color=(0.8, 0.2, 0.1, 1.0)) -> bpy.types.Object:
    positions, faces = box((-size / 2,) * 3, (size / 2,) * 3)
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(positions.tolist(), [], faces.tolist())
    if color:
        mesh.materials.append(material(name, color))
    made = bpy.data.objects.new(name, mesh)
    made.location = location
    bpy.context.scene.collection.objects.link(made)
    bpy.context.view_layer.update()
    return made


def make(objects, output, views=4, size=32, **options) -> ViewMaker:
    maker = ViewMaker(object_items(objects), output, views=views, size=size, **options)
    while maker.step():
        pass
    return maker


def picture(path: Path) -> np.ndarray:
    """[H, W, 4] in 0 to 1, straight alpha."""
    return np.asarray(Image.open(path)).astype(np.float64) / 255


def on_white(path: Path) -> np.ndarray:
    rgba = picture(path)
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def srgb(value: float) -> float:
    return 1.055 * value ** (1 / 2.4) - 0.055


# Both makers


def test_both_makers_render_the_same(tmp_path):
    """A textured ball with bumps, a plain box and a half-transparent one: 30 dB or more, on white, in each view."""
    positions, uv, faces = bumpy_ball()
    red, blue = box((-0.2, 0.3, -0.2), (0.4, 0.9, 0.3)), box((0.5, -0.2, 0.2), (0.8, 0.1, 0.5))
    write_glb(
        tmp_path / "ein Ding.glb",
        piece(positions, faces, uv=uv, picture=patchwork()),
        piece(*red, material={"pbrMetallicRoughness": {"baseColorFactor": [0.9, 0.02, 0.1, 1]}}),
        piece(
            *blue, material={"pbrMetallicRoughness": {"baseColorFactor": [0.1, 0.2, 0.9, 0.5]}, "alphaMode": "BLEND"}
        ),
    )
    code = training_views.run(
        [
            "--input",
            str(tmp_path / "ein Ding.glb"),
            "--output",
            str(tmp_path / "slow"),
            "--views",
            "6",
            "--size",
            "128",
        ],
        lambda line: None,
    )
    assert code == 0
    command = [sys.executable, "-m", "lgm_blender.training", "views", str(tmp_path / "ein Ding.glb")]
    command += ["--output", str(tmp_path / "fast"), "--views", "6", "--size", "128", "--processes", "1"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    slow, fast = (read_transforms(tmp_path / name / "ein Ding") for name in ("slow", "fast"))
    assert slow.caption == fast.caption == "ein ding"
    found = []
    for a, b in zip(slow.frames, fast.frames, strict=True):
        np.testing.assert_allclose(a.pose, b.pose)
        assert (a.focal, a.center, a.size) == (b.focal, b.center, b.size)
        found.append(-10 * np.log10(((on_white(a.file) - on_white(b.file)) ** 2).mean()))
    print("dB between the makers:", " ".join(f"{value:.1f}" for value in found))
    assert min(found) >= 30
    assert on_white(slow.frames[0].file).std() > 0.1


# What is in the pictures


def test_a_side_has_its_colour_and_the_light_is_the_object_s(tmp_path):
    """The front, seen straight: 0.8 + 0.2 · its share of the light, times the colour as it is displayed."""
    make([cube(color=(0.5, 0.2, 0.05, 1.0))], tmp_path)
    middle = picture(tmp_path / "Cube" / "000.png")[16, 16]
    light = 0.8 + 0.2 * 0.45 / np.linalg.norm((0.3, 0.85, 0.45))
    np.testing.assert_allclose(middle, [srgb(0.5) * light, srgb(0.2) * light, srgb(0.05) * light, 1], atol=2 / 255)
    # From behind the same face would be turned away from the light.
    behind = picture(tmp_path / "Cube" / "002.png")[16, 16]
    light = 0.8 - 0.2 * 0.45 / np.linalg.norm((0.3, 0.85, 0.45))
    np.testing.assert_allclose(behind[0], srgb(0.5) * light, atol=2 / 255)


def test_size_and_place_do_not_matter(tmp_path):
    thing = cube(size=0.001, location=(7, -3, 2))
    make([thing], tmp_path / "a")
    thing.scale, thing.location = (1e6, 1e6, 1e6), (0, 0, 0)
    bpy.context.view_layer.update()
    make([thing], tmp_path / "b")
    for i in range(4):
        a, b = (picture(tmp_path / name / "Cube" / f"{i:03d}.png") for name in "ab")
        assert np.abs(a - b).mean() < 0.003
    alpha = picture(tmp_path / "a" / "Cube" / "000.png")[..., 3]
    half = 0.62 / np.sqrt(3)
    assert (alpha[16] > 0.5).sum() == pytest.approx(32 * half / (np.tan(np.radians(49.1 / 2)) * (1.5 - half)), abs=1)


def test_up_and_front_are_lgm_s(tmp_path):
    """Blender's z is up, and its front, seen from -y, is view 0."""
    body = cube(color=(0.1, 0.1, 0.1, 1))
    for name, location, color in (("top", (0, 0, 0.7), (1, 0, 0, 1)), ("front", (0.3, -0.7, 0), (0, 1, 0, 1))):
        part = cube(name, 0.3, location, color)
        part.parent = body
    make([body], tmp_path)
    front, right, back, _ = (picture(tmp_path / "Cube" / f"{i:03d}.png") for i in range(4))
    red, green = front[..., 0] - front[..., 1] > 0.3, front[..., 1] - front[..., 0] > 0.3
    assert np.argwhere(red)[:, 0].mean() < 10
    assert np.argwhere(green)[:, 1].mean() > 17  # +x is at the right of it
    assert np.argwhere(right[..., 1] - right[..., 0] > 0.3)[:, 1].mean() < 10  # from +x the front is at the left
    assert not (back[..., 1] - back[..., 0] > 0.3).any()


def test_modifiers_instances_and_other_kinds_of_objects_are_shown(tmp_path):
    thing = cube()
    modifier = thing.modifiers.new("Array", "ARRAY")
    modifier.count = 3
    make([thing], tmp_path)
    alpha = picture(tmp_path / "Cube" / "000.png")[..., 3] > 0.5
    assert np.ptp(np.argwhere(alpha), axis=0)[1] > 2 * np.ptp(np.argwhere(alpha), axis=0)[0]

    inside = bpy.data.collections.new("inside")
    inside.objects.link(cube("Part"))
    empty = bpy.data.objects.new("Empty", None)
    empty.instance_type, empty.instance_collection = "COLLECTION", inside
    text = bpy.data.objects.new("Text", bpy.data.curves.new("Text", "FONT"))
    text.data.body, text.data.extrude = "O", 0.2
    for made in (empty, text):
        bpy.context.scene.collection.objects.link(made)
    maker = make([empty, text], tmp_path)
    assert [result["ok"] for result in maker.results] == [True, True]
    assert picture(tmp_path / "Empty" / "000.png")[16, 16, 0] > 0.5
    assert picture(tmp_path / "Text" / "000.png")[..., 3].any()


def test_what_is_not_rendered_is_not_shown(tmp_path):
    body = cube()
    helper = cube("helper", 5)
    helper.parent, helper.hide_render = body, True
    make([body], tmp_path)
    assert picture(tmp_path / "Cube" / "000.png")[1, 1, 3] == 0


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"Metallic": 1.0, "Roughness": 0.0}, (0.5, 0.2, 0.05, 1)),
        ({"Alpha": 0.5}, (0.5, 0.2, 0.05, 0.75)),  # front and back, one behind the other
        ({"Alpha": 0.0}, None),
        ({"Emission Color": (0.1, 0.5, 0, 1), "Emission Strength": 1.0}, (0.6, 0.7, 0.05, 1)),
    ],
)
def test_materials(tmp_path, inputs, expected):
    thing = cube(color=None)
    thing.data.materials.append(material("m", (0.5, 0.2, 0.05, 1), **inputs))
    maker = make([thing], tmp_path)
    if expected is None:
        assert "nothing of it can be seen" in maker.results[0]["error"]
        assert not list(tmp_path.iterdir())
        return
    *color, alpha = expected
    middle = picture(tmp_path / "Cube" / "000.png")[16, 16]
    light = 0.8 + 0.2 * 0.45 / np.linalg.norm((0.3, 0.85, 0.45))
    np.testing.assert_allclose(middle[3], alpha, atol=2 / 255)
    if alpha == 1:
        np.testing.assert_allclose(middle[:3], [srgb(value) * light for value in color], atol=3 / 255)


def test_shaders_of_any_kind_and_in_groups_show_their_colour(tmp_path):
    """A glossy shader in a group, mixed half and half with a transparent one."""
    group = bpy.data.node_groups.new("inner", "ShaderNodeTree")
    group.interface.new_socket("Shader", in_out="OUTPUT", socket_type="NodeSocketShader")
    glossy = group.nodes.new("ShaderNodeBsdfAnisotropic")
    glossy.inputs["Color"].default_value = (0.2, 0.5, 0.9, 1)
    group.links.new(glossy.outputs[0], group.nodes.new("NodeGroupOutput").inputs[0])
    made = bpy.data.materials.new("m")
    tree = compat.node_tree(made)
    tree.nodes.clear()
    node = tree.nodes.new("ShaderNodeGroup")
    node.node_tree = group
    mix = tree.nodes.new("ShaderNodeMixShader")
    tree.links.new(tree.nodes.new("ShaderNodeBsdfTransparent").outputs[0], mix.inputs[1])
    tree.links.new(node.outputs[0], mix.inputs[2])
    tree.links.new(mix.outputs[0], tree.nodes.new("ShaderNodeOutputMaterial").inputs["Surface"])
    thing = cube(color=None)
    thing.data.materials.append(made)
    before = blocks()
    make([thing], tmp_path)
    assert blocks() == before
    middle = picture(tmp_path / "Cube" / "000.png")[16, 16]
    assert middle[3] == pytest.approx(0.75, abs=2 / 255)
    assert middle[2] / srgb(0.9) == pytest.approx(middle[0] / srgb(0.2), abs=0.03)


def test_without_a_material_vertex_colours_are_shown(tmp_path):
    thing = cube(color=None)
    colors = thing.data.color_attributes.new("paint", "FLOAT_COLOR", "POINT")
    colors.data.foreach_set("color", np.tile([0.1, 0.6, 0.3, 1], 8).astype(np.float32))
    make([thing], tmp_path)
    light = 0.8 + 0.2 * 0.45 / np.linalg.norm((0.3, 0.85, 0.45))
    middle = picture(tmp_path / "Cube" / "000.png")[16, 16]
    np.testing.assert_allclose(middle[:3], [srgb(value) * light for value in (0.1, 0.6, 0.3)], atol=2 / 255)


def test_pictures_say_nothing_of_the_user(tmp_path):
    make([cube()], tmp_path)
    told = set(Image.open(tmp_path / "Cube" / "000.png").info)
    assert not told & {"File", "Date", "Time", "Scene", "Camera", "Hostname", "Frame", "Memory", "RenderTime"}


# The user's file


def users_file() -> list[bpy.types.Object]:
    """A scene with a camera, a light, a world, a parented pair and a render of its own."""
    scene = bpy.context.scene
    scene.world = bpy.data.worlds.new("World")
    scene.camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    scene.collection.objects.link(scene.camera)
    scene.collection.objects.link(bpy.data.objects.new("Light", bpy.data.lights.new("Light", "SUN")))
    scene.frame_current, scene.render.filepath = 7, "//mine.png"
    thing, part = cube(), cube("Part", 0.5, (0, 0, 1))
    part.parent = thing
    bpy.context.view_layer.objects.active = thing
    thing.select_set(True)
    return [thing]


def test_the_user_s_file_is_left_as_it_was(tmp_path):
    chosen = users_file()
    before, dirty, scene = blocks(), bpy.data.is_dirty, bpy.context.scene
    maker = make(chosen, tmp_path)
    assert maker.results[0]["ok"]
    assert blocks() == before
    assert bpy.data.is_dirty == dirty
    assert bpy.context.scene == scene
    assert bpy.context.view_layer.objects.active == chosen[0]
    assert chosen[0].select_get()


def test_the_user_s_render_is_still_there(tmp_path):
    chosen = users_file()
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 1
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 40, 30, 100
    scene.render.image_settings.file_format = "PNG"
    bpy.ops.render.render()
    bpy.data.images["Render Result"].save_render(str(tmp_path / "before.png"), scene=scene)
    make(chosen, tmp_path / "out")
    bpy.data.images["Render Result"].save_render(str(tmp_path / "after.png"), scene=scene)
    before, after = (Image.open(tmp_path / name) for name in ("before.png", "after.png"))
    assert before.size == after.size == (40, 30)
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 6])
def test_cancelling_leaves_nothing_behind(tmp_path, steps):
    chosen = [*users_file(), cube("Second", 1, (5, 0, 0))]
    before = blocks()
    maker = ViewMaker(object_items(chosen), tmp_path / "out", views=4, size=16)
    for _ in range(steps):
        assert maker.step()
    maker.cancel()
    assert blocks() == before
    there = sorted(path.name for path in (tmp_path / "out").iterdir()) if steps else []
    assert there == (["Cube"] if steps > 5 else [])  # whole ones stay


def test_an_error_while_rendering_leaves_nothing_behind(tmp_path, monkeypatch):
    chosen = users_file()
    before = blocks()
    monkeypatch.setattr(view_maker, "set_up", lambda scene, size: 1 / 0)
    maker = make(chosen, tmp_path / "out")
    assert "division by zero" in maker.results[0]["error"]
    assert blocks() == before
    assert not list((tmp_path / "out").iterdir())


# Broken objects


def test_broken_objects_are_reported_and_left_out(tmp_path):
    bad = bpy.data.objects.new("no faces", bpy.data.meshes.new("no faces"))
    bad.data.from_pydata([(0, 0, 0), (1, 1, 1)], [(0, 1)], [])
    point = cube("point")
    point.scale = (0, 0, 0)
    infinite = cube("infinite")
    infinite.data.vertices[0].co.x = float("nan")
    bpy.context.scene.collection.objects.link(bad)
    bpy.context.view_layer.update()
    before = blocks()
    maker = make([bad, point, infinite, cube("good")], tmp_path)
    told = {result["name"]: result.get("error", "") for result in maker.results}
    assert "no faces" in told["no faces"]
    assert "no extent" in told["point"]
    assert "not numbers" in told["infinite"]
    assert told["good"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert set(blocks()) - set(before) == {"Material/good", "Mesh/good", "Object/good"}


def test_objects_that_are_there_are_passed_over(tmp_path):
    thing = cube()
    make([thing], tmp_path)
    stamp = (tmp_path / "Cube" / "000.png").stat().st_mtime_ns
    assert make([thing], tmp_path).results[0]["skipped"]
    assert (tmp_path / "Cube" / "000.png").stat().st_mtime_ns == stamp
    assert not make([thing], tmp_path, overwrite=True).results[0]["skipped"]
    assert (tmp_path / "Cube" / "000.png").stat().st_mtime_ns != stamp
    assert [path.name for path in tmp_path.iterdir()] == ["Cube"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("")
    thing.name = "mine"
    assert "is there already" in make([thing], tmp_path, overwrite=True).results[0]["error"]
    assert (tmp_path / "mine" / "diary.txt").exists()


def test_a_folder_that_can_not_be_written_ends_it(tmp_path):
    (tmp_path / "file").write_text("")
    maker = make([cube()], tmp_path / "file" / "out")
    assert "is not a folder" in maker.error


def test_without_cycles_nothing_is_begun(tmp_path, monkeypatch):
    things = [cube("a"), cube("b")]
    bpy.ops.preferences.addon_disable(module="cycles")
    try:
        maker = make(things, tmp_path)
    finally:
        bpy.ops.preferences.addon_enable(module="cycles")
    assert "Cycles is turned off" in maker.error
    assert maker.results == []


def test_names_that_are_no_file_s(tmp_path):
    maker = make([cube("a/b"), cube("a:b", 1, (3, 0, 0)), cube("A_B", 1, (6, 0, 0))], tmp_path)
    assert [result["name"] for result in maker.results] == ["a_b", "a_b_2", "A_B_3"]
    assert all(result["ok"] and not result["skipped"] for result in maker.results)


# The operator


@pytest.fixture
def addon(tmp_path, monkeypatch):
    monkeypatch.setenv("LGM_BLENDER_LOG_DIR", str(tmp_path / "logs"))
    lgm_blender.register()
    yield
    lgm_blender.unregister()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_operator_on_selected_objects(addon, tmp_path):
    users_file()
    before = blocks()
    settings = bpy.context.scene.lgm.training
    settings.output, settings.views, settings.size = str(tmp_path / "out"), 4, 16
    before = blocks()
    assert bpy.ops.lgm.training_views() == {"FINISHED"}
    assert names(tmp_path / "out") == ["Cube"]
    assert blocks() == before
    found = read_transforms(tmp_path / "out" / "Cube")
    assert (len(found.frames), found.caption) == (4, "cube")
    assert not training._running


def test_operator_on_a_collection_and_on_nothing(addon, tmp_path):
    outer, inner = bpy.data.collections.new("outer"), bpy.data.collections.new("inner")
    bpy.context.scene.collection.children.link(outer)
    outer.children.link(inner)
    for name, collection in (("a", outer), ("b", inner)):
        collection.objects.link(cube(name))
    options = {"output": str(tmp_path / "out"), "views": 4, "size": 16}
    assert bpy.ops.lgm.training_views(source="COLLECTION", collection="outer", **options) == {"FINISHED"}
    assert names(tmp_path / "out") == ["a", "b"]
    bpy.context.scene.lgm.training.source = "SELECTED"
    for wrong, words in (
        ({}, "Select the objects"),
        ({"source": "COLLECTION", "collection": "no"}, "no collection called"),
        ({"source": "ASSETS", "library": "no"}, "no asset library"),
        ({"source": "ASSETS"}, "no object assets"),
    ):
        with pytest.raises(RuntimeError, match=words):
            bpy.ops.lgm.training_views(**wrong, **options)


def test_operator_on_assets(addon, tmp_path):
    """Of this file, and of a library, whose objects are linked for the time of rendering only."""
    for name in ("Chair", "Table"):
        cube(name).asset_mark()
    cube("helper")
    options = {"source": "ASSETS", "views": 4, "size": 16}
    assert bpy.ops.lgm.training_views(output=str(tmp_path / "own"), **options) == {"FINISHED"}
    assert names(tmp_path / "own") == ["Chair", "Table"]
    (tmp_path / "library").mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library" / "furniture.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    (tmp_path / "library" / "broken.blend").write_bytes(b"BLENDER, or not")
    libraries = bpy.context.preferences.filepaths.asset_libraries
    bpy.ops.preferences.asset_library_add(directory=str(tmp_path / "library"))
    try:
        libraries[-1].name = "mine"
        with bpy.data.libraries.load(str(tmp_path / "library" / "furniture.blend"), link=True) as (_, target):
            target.objects = ["Chair"]  # the user has one of them already
        before = blocks()
        assert bpy.ops.lgm.training_views(library="mine", output=str(tmp_path / "out"), **options) == {"FINISHED"}
        assert blocks() == before
        bpy.data.batch_remove([*bpy.data.objects, *bpy.data.libraries])
        before = blocks()
        again = {**options, "overwrite": True, "output": str(tmp_path / "out")}
        assert bpy.ops.lgm.training_views(library="mine", **again) == {"FINISHED"}
        assert blocks() == before
    finally:
        bpy.ops.preferences.asset_library_remove(index=len(libraries) - 1)
    assert names(tmp_path / "out") == ["furniture_Chair", "furniture_Table"]
    assert "broken.blend could not be read" in training._maker.results[0]["error"]


def test_one_rendering_at_a_time(addon):
    assert bpy.ops.lgm.training_views.poll()
    training._running = True
    try:
        assert not bpy.ops.lgm.training_views.poll()
    finally:
        training._running = False


# The batch


def batch(*arguments) -> tuple[int, list[dict]]:
    lines = []
    code = training_views.run([str(argument) for argument in arguments], lines.append)
    return code, [json.loads(line) for line in lines]


def test_batch_on_a_blend_and_a_folder(tmp_path, capsys):
    inside = bpy.data.collections.new("inside")
    bpy.context.scene.collection.children.link(inside)
    inside.objects.link(cube("a"))
    cube("Big Box.001", 1, (3, 0, 0))
    (tmp_path / "in").mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "in" / "scene.blend"))
    options = ("--output", tmp_path / "out", "--views", 4, "--size", 16)
    code, records = batch("--input", tmp_path / "in" / "scene.blend", *options, "--split", "val")
    assert (code, sorted(record["name"] for record in records)) == (0, ["Big Box.001", "a"])
    found = read_transforms(tmp_path / "out" / "Big Box.001")
    assert (found.caption, found.split) == ("big box", "val")
    assert "2 of 2 made" in capsys.readouterr().err
    _, records = batch("--input", tmp_path / "in" / "scene.blend", *options, "--collection", "inside")
    assert [(record["name"], record["skipped"]) for record in records] == [("a", True)]

    write_glb(tmp_path / "in" / "ball.glb", piece(*bumpy_ball()[::2]))
    (tmp_path / "in" / "broken.glb").write_bytes(b"glTF, or not")
    (tmp_path / "in" / "broken.blend").write_bytes(b"BLENDER?")
    code, records = batch("--input", tmp_path / "in", *options)
    told = {record["name"]: record["ok"] for record in records}
    assert code == 0
    assert told == {"ball": True, "broken": False, "broken_2": False, "scene_Big Box.001": True, "scene_a": True}
    assert "2 left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--output", "x"], 2, "usage"),
        (["--input", "nowhere", "--output", "x"], 1, "There is no file"),
        (["--input", "EMPTY", "--output", "x"], 1, "holds nothing"),
        (["--input", "x", "--output", "y", "--views", "3"], 2, "between 4 and 36"),
    ],
)
def test_batch_that_makes_no_sense(tmp_path, arguments, code, words, capsys):
    arguments = [str(tmp_path) if argument == "EMPTY" else argument for argument in arguments]
    assert training_views.run(arguments) == code
    assert words in capsys.readouterr().err


def test_batch_as_a_program(tmp_path):
    write_glb(tmp_path / "ball.glb", piece(*bumpy_ball()[::2]))
    command = [sys.executable, training_views.__file__, "--", "--input", tmp_path / "ball.glb", "--output"]
    command += [tmp_path / "out", "--views", "4", "--size", "16"]
    variables = {**os.environ, "LGM_BLENDER_LOG_DIR": str(tmp_path / "logs")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env=variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"]
    assert "1 objects in" in done.stderr


def test_copies_are_made_once():
    light = EvenLight()
    source = material("m")
    try:
        assert light.material(source) == light.material(source) != source
        assert light.material(None, "paint") == light.material(None, "paint") != light.material(None)
    finally:
        bpy.data.batch_remove(light.made)
    assert source.users == 0
    assert [node.type for node in source.node_tree.nodes] == ["BSDF_PRINCIPLED", "OUTPUT_MATERIAL"]
