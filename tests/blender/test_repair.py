"""Splats after Blender's own tools. Run: python build.py test tests/blender/test_repair.py"""

from __future__ import annotations

from dataclasses import replace
from math import radians
from types import SimpleNamespace

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

from lgm_blender.blender import compat, handlers
from lgm_blender.blender.scene import repair, splat_data, splats
from lgm_blender.core.cameras import from_blender, to_blender
from lgm_blender.core.gaussians import Gaussians


@pytest.fixture(autouse=True)
def watched():
    """The handlers, and nothing else of the add-on."""
    handlers.register()
    yield
    handlers.unregister()


SCALES = {"uniform": (1.5, 1.5, 1.5), "mirror": (-0.7, -0.7, -0.7), "mirror x": (-1, 1, 1), "stretch": (0.5, 2.0, 1.0)}


@pytest.mark.parametrize("scale", SCALES)
def test_apply_changes_nothing_that_is_seen(tmp_path, scale):
    made = add()
    place(made, scale=SCALES[scale])
    if scale == "stretch":  # harmonics can only turn: what a stretch makes of them is no harmonic
        data = splat_data.read_data(made.data)
        splat_data.write_data(made.data, replace(data, harmonics=0 * data.harmonics))
    before, shot = seen(made), picture(tmp_path, made)
    choose(made)
    bpy.ops.object.transform_apply(location=True, rotation=True, scale=True)
    assert np.allclose(made.matrix_world, np.eye(4))
    assert_seen(seen(made), before)
    assert psnr(picture(tmp_path, made), shot) > 40
    assert_seen(splats.read_splats(made).select(np.argsort(splats.read_splats(made).positions[:, 0])), before)


def test_what_blender_does_alone_is_not_right(tmp_path):
    """The tests here can fail."""
    made = add()
    place(made)
    before, shot = seen(made), picture(tmp_path, made)
    handlers.unregister()
    choose(made)
    bpy.ops.object.transform_apply(location=True, rotation=True, scale=True)
    with pytest.raises(AssertionError):
        assert_seen(seen(made), before)
    assert psnr(picture(tmp_path, made), shot) < 30
    assert repair.mend(made.data).changed == COUNT
    assert_seen(seen(made), before)


@pytest.mark.parametrize("scale", SCALES)
def test_join_with_an_object_of_another_scale_and_turn(tmp_path, scale):
    first, second = add("first", 0), add("second", 1, harmonics=3)
    place(first, (0, 0.2, 0), (0.2, 0.1, 0), (0.8, 0.8, 0.8))
    place(second, (0.1, -0.6, 0.3), (1.0, -0.4, 2.0), SCALES[scale] if scale != "stretch" else (2, 2, 2))
    before, shot = seen(first, second), picture(tmp_path, first, second)
    choose(first, second)
    bpy.ops.object.join()
    assert len(bpy.context.scene.objects) == 1
    assert_seen(seen(first), before)
    assert psnr(picture(tmp_path, first), shot) > 40
    assert splats.FRAME not in first


def test_join_of_copies():
    first = add("first")
    copies = []
    for i in range(3):
        copy = first.copy()
        copy.data = first.data.copy()
        bpy.context.scene.collection.objects.link(copy)
        place(copy, (i + 1.5, 0, 0), (i, 0.5, 0), (1 + i, 1 + i, 1 + i))
        copies.append(copy)
    before = seen(first, *copies)
    choose(first, *copies)
    bpy.ops.object.join()
    assert_seen(seen(first), before)


def test_apply_after_join_after_apply():
    first, second = add("first"), add("second", 1)
    place(first)
    place(second, (1, 2, 3), (0, 0, 1), (0.3, 0.3, 0.3))
    before = seen(first, second)
    choose(first)
    bpy.ops.object.transform_apply()
    choose(second, first)
    bpy.ops.object.join()
    choose(second)
    bpy.ops.object.transform_apply()
    assert_seen(seen(second), before)


def turned_by(found: Gaussians, mask, matrix) -> Gaussians:
    """World-space Gaussians, in Blender's axes, of which some were moved by a map."""
    from lgm_blender.core.affine import transformed

    whole, part = to_blender(found), transformed(to_blender(found).select(mask), matrix)
    arrays = {name: getattr(whole, name).copy() for name in ("positions", "scales", "rotations", "harmonics")}
    for name, array in arrays.items():
        array[mask] = getattr(part, name)
    return from_blender(replace(whole, **arrays))


def sorted_by_x(found: Gaussians) -> Gaussians:
    return found.select(np.argsort(found.positions[:, 0], kind="stable"))


@pytest.mark.parametrize("kind", ["turn", "scale"])
def test_edit_mode_moves_a_selection(kind):
    made = add()
    found = splats.read_splats(made, world=True)
    mask = to_blender(found).positions[:, 0] > 0.1
    linear = turn_z(radians(40)) if kind == "turn" else 1.7 * np.eye(3)
    select_points(made, mask)
    center = bpy.context.scene.cursor.location = (0.2, 0.3, 0.1)
    bpy.context.scene.tool_settings.transform_pivot_point = "CURSOR"
    if kind == "turn":
        rotate_z(40, center)
    else:
        bpy.ops.transform.resize(value=(1.7, 1.7, 1.7), center_override=center)
    leave()
    expected = turned_by(found, mask, about(center, linear))
    assert np.abs(expected.positions - found.positions).max() > 0.1
    assert_seen(seen(made), sorted_by_x(expected))
    assert splats.FRAME in made  # the others are where they were


def rotate_z(degrees: float, center) -> None:
    """Turns what is selected counterclockwise about z."""
    sign = 1 if bpy.app.version >= (5, 0) else -1  # without a window 4.2 looks along z, not against it
    bpy.ops.transform.rotate(value=sign * radians(degrees), orient_axis="Z", center_override=center)


def test_edit_mode_moves_several_selections_in_one_session():
    made = add(count=4000)
    found = splats.read_splats(made, world=True)
    x = to_blender(found).positions[:, 0]
    masks = [x > 0.2, x < -0.2, abs(x) < 0.1]
    maps = [about((1.0, 0, 0), turn_z(1.0)), about((-1.0, 0, 0), 0.5 * np.eye(3)), about((0, 0, 0), turn_z(-2.0))]
    expected = found
    data = made.data
    for mask, matrix in zip(masks, maps, strict=True):
        expected = turned_by(expected, mask, matrix)
        position = splat_data.get(data, "position")
        position[mask] = position[mask] @ matrix[:3, :3].T.astype(np.float32) + matrix[:3, 3].astype(np.float32)
        splat_data.put(data, "position", "FLOAT_VECTOR", position)
    data.update_tag()
    bpy.context.view_layer.update()
    assert_seen(seen(made), sorted_by_x(expected))


def test_edit_mode_duplicates_deletes_and_moves():
    made = add()
    found = splats.read_splats(made, world=True)
    mask = to_blender(found).positions[:, 2] > 0.3
    select_points(made, mask)
    ops = bpy.ops.mesh if made.type == "MESH" else bpy.ops.pointcloud
    ops.duplicate()
    rotate_z(90, (0, 0, 0))
    leave()
    copies = turned_by(found, mask, about((0, 0, 0), turn_z(radians(90)))).select(mask)
    names = ("positions", "opacities", "scales", "rotations", "colors", "harmonics")
    both = Gaussians(*(np.concatenate([getattr(found, n), getattr(copies, n)]) for n in names))
    assert_seen(seen(made), sorted_by_x(both))


def test_separate_keeps_both_right():
    made = add()
    place(made)
    before = seen(made)
    select_points(made, np.arange(COUNT) % 3 == 0)
    if made.type == "MESH":
        bpy.ops.mesh.separate(type="SELECTED")
    else:
        bpy.ops.pointcloud.separate()
    leave()
    objects = [thing for thing in bpy.context.scene.objects if splats.is_splats(thing)]
    assert sorted(len(splats.read_splats(thing)) for thing in objects) == [COUNT // 3, COUNT - COUNT // 3]
    choose(objects[1])
    bpy.ops.object.transform_apply()
    assert_seen(seen(*objects), before)


@pytest.mark.skipif(compat.has_native_splats(), reason="points of a point cloud have no Mirror modifier")
def test_mirror_modifier_applied():
    made = add(offset=(0.7, 0, 0))
    found = splats.read_splats(made, world=True)
    modifier = made.modifiers.new("Mirror", "MIRROR")
    made.modifiers.move(1, 0)
    choose(made)
    bpy.ops.object.modifier_apply(modifier=modifier.name)
    mirrored = turned_by(found, np.ones(COUNT, bool), np.diag([-1.0, 1, 1, 1]))
    names = ("positions", "opacities", "scales", "rotations", "colors", "harmonics")
    both = Gaussians(*(np.concatenate([getattr(found, n), getattr(mirrored, n)]) for n in names))
    assert_seen(seen(made), sorted_by_x(both))


def test_moving_all_points_changes_no_bit_of_the_rest():
    made = add()
    before = splat_data.read_data(made.data)
    made.location = (1, 2, 3)
    choose(made)
    bpy.ops.object.transform_apply(location=True, rotation=False, scale=False)
    after = splat_data.read_data(made.data)
    np.testing.assert_array_equal(after.scales, before.scales)
    np.testing.assert_array_equal(after.rotations, before.rotations)
    np.testing.assert_allclose(after.positions, before.positions + np.float32([1, 2, 3]), atol=1e-6)
    assert splats.FRAME not in made


def test_what_moved_by_no_map_keeps_its_size_and_is_told(capfd):
    made = add()
    before = splat_data.read_data(made.data)
    splat_data.put(made.data, "position", "FLOAT_VECTOR", before.positions + 0.3 * before.positions**2)
    made.data.update_tag()
    bpy.context.view_layer.update()
    after = splat_data.read_data(made.data)
    np.testing.assert_array_equal(after.scales, before.scales)
    assert made.data[repair.UNMENDED] == COUNT
    assert "moved, but not as one" in capfd.readouterr().out
    place(made)  # and from there on all is as ever
    shown = seen(made)
    choose(made)
    bpy.ops.object.transform_apply()
    assert_seen(seen(made), shown)
    assert repair.UNMENDED not in made.data


def test_undo_and_redo_are_one_step_each_and_right():
    """In a window the undo step is stored before the handler mends: here both orders are tried."""
    for early in (False, True):
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        made = add()
        place(made)
        choose(made)
        before, raw = seen(made), splat_data.read_data(made.data)
        bpy.ops.ed.undo_push(message="Placed")
        if early:
            handlers.unregister()
        bpy.ops.object.transform_apply()
        bpy.ops.ed.undo_push(message="Apply")
        if early:
            handlers.register()
        bpy.context.view_layer.update()
        made = bpy.data.objects["splats"]
        assert_seen(seen(made), before)
        bpy.ops.object.select_all(action="DESELECT")
        bpy.ops.ed.undo_push(message="Something else")
        for _ in range(2):
            for _ in range(2):
                bpy.ops.ed.undo()
                bpy.context.view_layer.update()
            made = bpy.data.objects["splats"]
            assert not np.allclose(made.matrix_world, np.eye(4))
            np.testing.assert_array_equal(splat_data.read_data(made.data).scales, raw.scales)
            assert splats.FRAME in made
            assert_seen(seen(made), before)
            bpy.ops.ed.redo()
            bpy.context.view_layer.update()
            made = bpy.data.objects["splats"]
            assert np.allclose(made.matrix_world, np.eye(4))
            assert_seen(seen(made), before)
            assert splats.FRAME not in made
            bpy.ops.ed.redo()
            bpy.context.view_layer.update()
            assert_seen(seen(bpy.data.objects["splats"]), before)


def test_splats_from_elsewhere_are_taken_as_they_are_when_first_seen():
    made = add()
    for name in (splat_data.REST, splat_data.PART):
        made.data.attributes.remove(made.data.attributes[name])
    raw = splat_data.read_data(made.data)
    made.data.update_tag()
    bpy.context.view_layer.update()
    assert repair.has_rest(made.data)
    np.testing.assert_array_equal(splat_data.read_data(made.data).scales, raw.scales)
    place(made)
    before = seen(made)
    choose(made)
    bpy.ops.object.transform_apply()
    assert_seen(seen(made), before)


def test_a_file_that_was_edited_without_the_add_on_is_mended_when_opened(tmp_path):
    made = add()
    place(made)
    before = seen(made)
    choose(made)
    handlers.unregister()
    bpy.ops.object.transform_apply()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    handlers.register()
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    assert_seen(seen(bpy.data.objects["splats"]), before)


def test_writing_gaussians_is_not_taken_for_a_move():
    made = add()
    place(made)
    choose(made)
    wanted = gaussians(5)
    splat_data.write_data(made.data, wanted)
    bpy.context.view_layer.update()
    found = splat_data.read_data(made.data)
    np.testing.assert_array_equal(found.scales, wanted.scales)
    np.testing.assert_array_equal(found.positions, wanted.positions)


def test_large_ones_wait_while_updates_come_in_rows_and_are_caught_up_with(monkeypatch):
    made = add()
    place(made)
    before = seen(made)
    watch, ticks = handlers.Watch(), []
    monkeypatch.setattr(handlers, "LARGE", COUNT)
    timers = SimpleNamespace(register=lambda function, first_interval: ticks.append(function))
    fake = SimpleNamespace(background=False, timers=timers)
    monkeypatch.setattr(handlers, "bpy", SimpleNamespace(app=fake, data=bpy.data, types=bpy.types))
    assert not watch.may_wait(made.data)
    watch.look(made.data)
    assert watch.may_wait(made.data)
    monkeypatch.setattr(handlers, "_watch", watch)
    choose(made)
    bpy.ops.object.transform_apply()
    assert len(ticks) == 1
    with pytest.raises(AssertionError):
        assert_seen(seen(made), before)
    monkeypatch.undo()
    monkeypatch.setattr(handlers, "_watch", watch)
    ticks[0]()
    assert_seen(seen(made), before)
    watch.forget()
    assert not watch.may_wait(made.data)


def test_updates_that_move_no_point_are_not_looked_at(monkeypatch):
    made = add()
    monkeypatch.setattr(repair, "mend", lambda data: pytest.fail("it looked at all points"))
    made.location.x += 1
    made.select_set(not made.select_get())
    bpy.context.scene.frame_set(5)
    bpy.context.view_layer.update()
