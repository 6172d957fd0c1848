"""The operators that edit splats. Run: python build.py test tests/blender/test_editing.py"""

from __future__ import annotations

import bpy
import numpy as np
import pytest
from splat_scenes import (
    COUNT,
    about,
    add,
    assert_seen,
    choose,
    gaussians,
    leave,
    picture,
    place,
    psnr,
    seen,
    select_points,
    turn_z,
)

import lgm_blender
from lgm_blender.blender import compat
from lgm_blender.blender.scene import conversion, editing, repair, splat_data, splats
from lgm_blender.blender.ui import editing as ui
from lgm_blender.core.cameras import to_blender
from lgm_blender.core.gaussians import Gaussians

native = pytest.mark.skipif(not compat.has_native_splats(), reason="there are no native splats")


@pytest.fixture(autouse=True)
def registered():
    lgm_blender.register()
    yield
    lgm_blender.unregister()


def as_points(made: bpy.types.Object) -> bpy.types.Object:
    """The object as a mesh of points, in 5.3 too."""
    return conversion.convert(made, native=False) if compat.has_native_splats() else made


def mesh_object(name, vertices, faces) -> bpy.types.Object:
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(vertices, [], faces)
    made = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(made)
    return made


def cube(name="cube") -> bpy.types.Object:
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return mesh_object(name, corners, faces)


@pytest.mark.parametrize("scale", [(1.5, 1.5, 1.5), (-0.7, -0.7, -0.7), (-1, 1, 1)])
def test_apply(tmp_path, scale):
    made = add()
    child = bpy.data.objects.new("child", None)
    bpy.context.scene.collection.objects.link(child)
    child.parent, child.location = made, (1, 2, 3)
    place(made, scale=scale)
    before, shot, world = seen(made), picture(tmp_path, made), child.matrix_world.copy()
    choose(made)
    assert bpy.ops.lgm.splats_apply() == {"FINISHED"}
    bpy.context.view_layer.update()
    assert np.allclose(made.matrix_world, np.eye(4))
    assert np.allclose(child.matrix_world, world, atol=1e-5)
    assert_seen(seen(made), before)
    assert psnr(picture(tmp_path, made), shot) > 40
    found = splats.read_splats(made)  # what is exported is what is seen
    assert_seen(found.select(np.argsort(found.positions[:, 0], kind="stable")), before)


def test_apply_some_of_it():
    made = add()
    place(made, scale=(0.5, 2, 1))
    before = seen(made)
    choose(made)
    bpy.ops.lgm.splats_apply(location=False, rotation=False)
    assert tuple(made.scale) == (1, 1, 1)
    assert made.location.x == pytest.approx(0.3)
    bpy.context.view_layer.update()
    assert np.abs(seen(made).positions - before.positions).max() < 1e-5


def test_apply_leaves_others_that_share_the_data():
    made = add()
    other = made.copy()
    bpy.context.scene.collection.objects.link(other)
    place(made)
    place(other, location=(3, 0, 0))
    before, before_other = seen(made), seen(other)
    choose(made)
    bpy.ops.lgm.splats_apply()
    bpy.context.view_layer.update()
    assert_seen(seen(made), before)
    assert_seen(seen(other), before_other)


def test_join_of_three_with_different_harmonics(tmp_path):
    first, second, third = add("first", 0, harmonics=0), add("second", 1, harmonics=8), add("third", 2, harmonics=3)
    first["mine"] = 5
    place(second, (0.2, 0.5, 0), (1, 2, 3), (0.5, 0.5, 0.5))
    place(third, (-0.5, 0, 0.3), (0, 2, 0), (-1, 1, 1))
    place(first, (0.1, 0, 0), (0.3, 0, 0), (2, 2, 2))
    if compat.has_native_splats():
        second = as_points(second)
    before, shot = seen(first, second, third), picture(tmp_path, first, second, third)
    choose(first, second, third)
    assert bpy.ops.lgm.splats_join() == {"FINISHED"}
    assert [thing.name for thing in bpy.context.scene.objects] == ["first"]
    assert splat_data.is_native(first.data) == compat.has_native_splats()
    assert splat_data.harmonic_count(first.data) == 8
    assert first["mine"] == 5
    assert splats.FRAME not in first
    assert_seen(seen(first), before)
    assert psnr(picture(tmp_path, first), shot) > 40
    choose(first)
    bpy.ops.object.transform_apply()
    assert_seen(seen(first), before)


@pytest.mark.parametrize("keep", ["INSIDE", "OUTSIDE"])
def test_crop_by_a_turned_and_scaled_cube(keep):
    made, cutter = add(), cube()
    place(made)
    place(cutter, (0.3, -0.2, 0.6), (0.5, 0.2, 0.9), (0.5, 0.2, 0.4))
    world = np.linalg.inv(np.array(cutter.matrix_world))
    positions = splat_data.get(made.data, "position") @ np.array(made.matrix_world)[:3, :3].T
    positions = (positions + np.array(made.matrix_world)[:3, 3]) @ world[:3, :3].T + world[:3, 3]
    within = (np.abs(positions) < 1).all(1)
    expected = splat_data.read_data(made.data).select(within if keep == "INSIDE" else ~within)
    assert 50 < within.sum() < COUNT - 50
    choose(made, cutter)
    assert bpy.ops.lgm.splats_crop(keep=keep) == {"FINISHED"}
    found = splat_data.read_data(made.data)
    for name in ("positions", "scales", "rotations", "harmonics", "opacities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert repair.has_rest(made.data)
    assert splats.FRAME in made


def test_crop_by_what_is_not_closed_is_refused():
    made = add()
    plane = mesh_object("plane", [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)], [(0, 1, 2, 3)])
    choose(made, plane)
    with pytest.raises(RuntimeError, match="plane is not closed"):
        bpy.ops.lgm.splats_crop()
    far = cube("far")
    far.location.x = 50
    bpy.context.view_layer.update()
    choose(made, far)
    with pytest.raises(RuntimeError, match="would be left"):
        bpy.ops.lgm.splats_crop()
    assert len(splats.read_splats(made)) == COUNT


def ball_with_specks() -> tuple[Gaussians, np.ndarray]:
    """Gaussians on a ball and a few groups of them around it, and which those are."""
    random = np.random.default_rng(0)
    ball = random.normal(size=(2000, 3))
    ball *= 0.5 / np.linalg.norm(ball, axis=1, keepdims=True)
    around = random.normal(size=(10, 3))
    around *= np.linspace(0.8, 1.4, 10)[:, None] / np.linalg.norm(around, axis=1, keepdims=True)
    around = np.repeat(around, 3, axis=0) + random.normal(0, 0.01, (30, 3))
    positions = np.concatenate([ball, around])
    count = len(positions)
    found = Gaussians(
        positions, np.full(count, 0.9), np.full((count, 3), 0.03), [[1, 0, 0, 0]] * count, np.full((count, 3), 0.5)
    )
    return found, np.arange(count) >= 2000


def test_floaters_are_selected_and_can_be_deleted():
    found, specks = ball_with_specks()
    made = splats.add_splats(found, "ball")
    choose(made)
    assert bpy.ops.lgm.splats_select_floaters() == {"FINISHED"}
    assert made.mode == "EDIT"
    chosen = editing.selection(made)
    assert chosen[specks].all()
    assert chosen[~specks].mean() < 0.01
    if made.type == "MESH":
        bpy.ops.mesh.delete(type="VERT")
    else:
        bpy.ops.pointcloud.delete()
    leave()
    assert len(splats.read_splats(made)) == (~chosen).sum()


@pytest.mark.parametrize("points", [False, True])
def test_faint_ones_and_a_selection_narrowed_by_opacity(points):
    made = add()
    if points:
        made = as_points(made)
    opacities = splats.read_splats(made).opacities
    choose(made)
    bpy.ops.lgm.splats_select_faint(opacity=0.4)
    np.testing.assert_array_equal(editing.selection(made), opacities <= np.float32(0.4))
    leave()
    np.testing.assert_array_equal(editing.selection(made), opacities <= np.float32(0.4))
    half = np.arange(COUNT) % 2 == 0
    select_points(made, half)
    bpy.ops.lgm.splats_select_opacity(low=0.5, high=0.8)
    between = (opacities >= 0.5) & (opacities <= np.float32(0.8))
    np.testing.assert_array_equal(editing.selection(made), half & between)
    bpy.ops.lgm.splats_select_opacity(low=0.5, high=0.8, within=False)
    np.testing.assert_array_equal(editing.selection(made), between)


@pytest.mark.parametrize("mode", ["OBJECT", "EDIT"])
def test_separate(mode):
    made = add()
    place(made)
    before, mask = seen(made), np.arange(COUNT) % 3 == 0
    select_points(made, mask)
    if mode == "OBJECT":
        leave()
    assert bpy.ops.lgm.splats_separate() == {"FINISHED"}
    leave()
    other = next(thing for thing in bpy.context.scene.objects if thing != made)
    assert len(splats.read_splats(other)) == mask.sum()
    assert_seen(seen(made, other), before)
    assert [m.name for m in other.modifiers] == [m.name for m in made.modifiers]


def test_separate_of_nothing_is_refused():
    made = add()
    select_points(made, np.zeros(COUNT, bool))
    leave()
    with pytest.raises(RuntimeError, match="Select some"):
        bpy.ops.lgm.splats_separate()


def test_crop_box_is_around_it_and_moves_with_it():
    made = add()
    place(made)
    choose(made)
    assert bpy.ops.lgm.splats_crop_box() == {"FINISHED"}
    bpy.context.view_layer.update()
    box, modifier = bpy.context.object, made.modifiers[0]
    assert compat.get_modifier_input(modifier, "Crop")
    assert compat.get_modifier_input(modifier, "Crop Box") == box
    inverse = np.linalg.inv(np.array(box.matrix_world))
    positions = to_blender(splats.read_splats(made, world=True)).positions
    positions = positions @ inverse[:3, :3].T + inverse[:3, 3]
    assert 0.9 < np.abs(positions).max() < 1.1
    relative = inverse @ np.array(made.matrix_world)
    place(made, location=(5, 5, 5))
    assert np.allclose(np.linalg.inv(np.array(box.matrix_world)) @ np.array(made.matrix_world), relative, atol=1e-4)


@pytest.mark.parametrize(
    ("operator", "options"),
    [("splats_apply", {}), ("splats_crop", {}), ("splats_join", {}), ("splats_crop_box", {}), ("splats_mend", {})],
)
def test_each_is_one_undo_step(operator, options):
    made, other, cutter = add(), add("other", 3), cube()
    cutter.scale = (0.3, 0.3, 0.3)
    place(made, location=(0, 0, 0))
    choose(made, other, cutter)
    before = seen(made)
    bpy.ops.ed.undo_push(message="Before")
    getattr(bpy.ops.lgm, operator)(**options)
    bpy.ops.ed.undo_push(message=operator)
    bpy.context.view_layer.update()
    names, after = {thing.name for thing in bpy.data.objects}, seen(bpy.data.objects["splats"])
    bpy.ops.ed.undo()
    assert {thing.name for thing in bpy.data.objects} == {"splats", "other", "cube"}
    assert_seen(seen(bpy.data.objects["splats"]), before)
    bpy.ops.ed.redo()
    assert {thing.name for thing in bpy.data.objects} == names
    assert_seen(seen(bpy.data.objects["splats"]), after)


def test_mend_by_hand(tmp_path):
    made = add()
    place(made)
    before = seen(made)
    lgm_blender.unregister()
    choose(made)
    bpy.ops.object.transform_apply()
    lgm_blender.register()  # mends it at once, so that it is spoilt again
    matrix = about((0, 0, 0), turn_z(0.5))
    splat_data.put(made.data, "position", "FLOAT_VECTOR", splat_data.get(made.data, "position") @ matrix[:3, :3].T)
    assert bpy.ops.lgm.splats_mend() == {"FINISHED"}
    made.rotation_euler.z = -0.5
    bpy.context.view_layer.update()
    assert_seen(seen(made), before)


def test_why_not_is_said():
    made = add()
    lamp = bpy.data.objects.new("empty", None)
    bpy.context.scene.collection.objects.link(lamp)
    choose(lamp)
    for cls in ui.CLASSES:
        if cls.__name__.startswith("LGM_OT_splats") and cls not in (ui.LGM_OT_splats_convert, ui.LGM_OT_splats_crop):
            assert cls.obstacle(bpy.context) == "The active object holds no splats"
    choose(made)
    assert ui.LGM_OT_splats_join.obstacle(bpy.context) == "Select other splats too"
    assert ui.LGM_OT_splats_crop.obstacle(bpy.context) == "Select a closed mesh too"
    bpy.ops.object.mode_set(mode="EDIT")
    assert ui.LGM_OT_splats_apply.obstacle(bpy.context) == "Leave Edit Mode first"
    assert not ui.LGM_OT_splats_select_faint.obstacle(bpy.context)
    leave()
    assert bool(ui.LGM_OT_splats_convert.obstacle(bpy.context)) == (not compat.has_native_splats())


def test_how_many_is_said():
    made, other = add(), add("other", 2)
    choose(made)
    assert ui.describe(bpy.context) == "1,500 Gaussians"
    choose(made, other)
    assert ui.describe(bpy.context) == "1,500 Gaussians, and 1,500 of 1 other selected objects"
    select_points(made, np.arange(COUNT) < 70)
    assert "70" in ui.describe(bpy.context)
    leave()


def test_scene_is_prepared():
    add()
    cycles = bpy.context.scene.cycles
    cycles.transparent_max_bounces = 100
    assert ui.LGM_PT_prepare.poll(bpy.context)
    assert bpy.ops.lgm.prepare_scene() == {"FINISHED"}
    assert cycles.transparent_max_bounces == splats.MAX_TRANSPARENT_BOUNCES
    assert not ui.LGM_PT_prepare.poll(bpy.context)


@native
def test_conversion_there_and_back_loses_nothing(tmp_path):
    made, parent, target = add(harmonics=8), cube("parent"), cube("target")
    place(made)
    collection = bpy.data.collections.new("Mine")
    bpy.context.scene.collection.children.link(collection)
    collection.objects.link(made)
    made.parent = parent
    made.matrix_parent_inverse[0][3] = 0.5
    target.parent = made
    made["mine"], made["group"] = 5, {"a": [1, 2]}
    made.data["his"] = "x"
    splat_data.put(made.data, "extra", "FLOAT", np.arange(COUNT))
    made.data.materials.append(bpy.data.materials.new("Paint"))
    made.constraints.new("COPY_SCALE").target = target
    made.keyframe_insert("location", index=0, frame=3)
    made.driver_add("location", 2).driver.expression = "1.5"
    other = splats.splat_geometry().copy()
    mine = made.modifiers.new("Mine", "NODES")
    mine.node_group = other
    compat.set_modifier_input(mine, "Saturation", 0.25)
    splats.set_display(made, scale=1.25, saturation=0.5, crop_box=parent)
    made.hide_render, made.pass_index, made.rotation_mode = True, 7, "XZY"
    cycles = bpy.context.scene.cycles
    cycles.samples = 64
    choose(made)
    bpy.context.view_layer.update()
    raw = {a.name: splat_data.get(made.data, a.name) for a in made.data.attributes if splat_data.is_kept(a)}
    world, data_name, action = made.matrix_world.copy(), made.data.name, made.animation_data.action
    for kind in ("POINTS", "NATIVE"):
        assert bpy.ops.lgm.splats_convert(target=kind) == {"FINISHED"}
        made = bpy.data.objects["splats"]
        assert splat_data.is_native(made.data) == (kind == "NATIVE")
        assert (made.type == "MESH") == (kind == "POINTS")
        for name, values in raw.items():
            np.testing.assert_array_equal(splat_data.get(made.data, name), values, err_msg=name)
        bpy.context.view_layer.update()
        assert np.allclose(made.matrix_world, world)
        assert (made.parent, target.parent) == (parent, made)
        assert {c.name for c in made.users_collection} == {"Mine", bpy.context.scene.collection.name}
        assert (made["mine"], list(made["group"]["a"]), made.data["his"]) == (5, [1, 2], "x")
        assert made.data.name == data_name
        assert made.data.materials[0].name == "Paint"
        assert made.constraints[0].target == target
        assert made.animation_data.action == action
        assert made.animation_data.drivers[0].driver.expression == "1.5"
        modifier = made.modifiers[0]
        assert compat.get_modifier_input(modifier, "Display") == {"POINTS": "Exact", "NATIVE": "Native"}[kind]
        assert compat.get_modifier_input(modifier, "Scale") == 1.25
        assert [m.name for m in made.modifiers] == ["LGM Splats", "Mine"]
        assert compat.get_modifier_input(made.modifiers["Mine"], "Saturation") == 0.25
        assert compat.get_modifier_input(modifier, "Crop Box") == parent
        assert (made.hide_render, made.pass_index, made.rotation_mode) == (True, 7, "XZY")
        assert made.select_get()
        assert bpy.context.object == made
    assert len(bpy.data.objects) == 3
    assert len(bpy.data.meshes) == 2
    assert len(bpy.data.pointclouds) == 1


@native
def test_conversion_of_all_in_the_scene_that_share_data():
    made = add()
    other = made.copy()
    bpy.context.scene.collection.objects.link(other)
    choose(made)
    assert bpy.ops.lgm.splats_convert(target="POINTS", all_objects=True) == {"FINISHED"}
    first, second = bpy.data.objects["splats"], bpy.data.objects["splats.001"]
    assert first.type == "MESH"
    assert first.data == second.data
    assert not bpy.data.pointclouds


@native
def test_conversion_is_one_undo_step():
    made = add()
    choose(made)
    bpy.ops.ed.undo_push(message="Before")
    bpy.ops.lgm.splats_convert(target="POINTS")
    bpy.ops.ed.undo_push(message="Convert")
    bpy.ops.ed.undo()
    assert bpy.data.objects["splats"].type == "POINTCLOUD"
    bpy.ops.ed.redo()
    assert bpy.data.objects["splats"].type == "MESH"
    np.testing.assert_allclose(splats.read_splats(bpy.data.objects["splats"]).scales, gaussians().scales, rtol=1e-6)
