"""Where results come into a scene. Run: pytest tests/blender/test_placement.py"""

from __future__ import annotations

import itertools

import bpy
import numpy as np
import pytest

from lgm_blender.blender.scene import placement, splats
from lgm_blender.core.gaussians import Gaussians


def cloud(name, size=1.0):
    """Splats in a cube of that side about the origin, and one faint one far away."""
    draw = np.random.default_rng(0)
    positions = np.concatenate([draw.uniform(-0.5, 0.5, (999, 3)), [[50.0, 0.0, 0.0]]])
    opacities = np.concatenate([np.full(999, 0.9), [0.01]])
    gaussians = Gaussians(
        positions, opacities, np.full((1000, 3), 0.01), [[1.0, 0, 0, 0]] * 1000, np.full((1000, 3), 0.5)
    )
    return splats.add_splats(gaussians, name, size=size)


def cube(size, location=(0, 0, 0)):
    bpy.ops.mesh.primitive_cube_add(size=size, location=location)
    bpy.context.view_layer.update()
    return bpy.context.object


def placed(made):
    placement.place([made], bpy.context.scene)
    bpy.context.view_layer.update()
    return made.location


def test_an_empty_scene_has_it_at_the_origin():
    assert tuple(placed(cloud("one"))) == (0, 0, 0)


def test_it_comes_to_the_cursor_whatever_is_there():
    bpy.context.scene.cursor.location = (1, 2, 3)
    cube(2, (1, 2, 3))
    assert tuple(placed(cloud("one"))) == (1, 2, 3)


def test_it_comes_beside_the_default_cube():
    there = cube(2)
    made = cloud("one")
    assert placed(made).x == pytest.approx(1 + 0.5 + placement.GAP, abs=0.05)
    assert tuple(made.location)[1:] == (0, 0)
    assert tuple(there.location) == (0, 0, 0)


def test_results_come_one_beside_the_other():
    places = [placed(cloud(name)).x for name in "abc"]
    assert places == sorted(places)
    assert all(1.0 < b - a < 1.2 for a, b in itertools.pairwise(places))


def test_what_is_hidden_large_or_elsewhere_is_in_nobodys_way():
    cube(50)
    cube(2).hide_set(True)
    cube(1, (0, 5, 0))
    bpy.ops.object.light_add(location=(0, 0, 0))
    bpy.context.view_layer.update()
    assert tuple(placed(cloud("one"))) == (0, 0, 0)


def test_two_of_one_result_stay_beside_each_other():
    cube(2)
    one, two = cloud("one"), cloud("two")
    two.location.x = 1.1
    placement.place([one, two], bpy.context.scene)
    assert two.location.x - one.location.x == pytest.approx(1.1)
    assert one.location.x > 1


def test_free_place_is_free():
    draw = np.random.default_rng(1)
    for _ in range(200):
        lows = draw.uniform(-3, 3, (8, 3))
        boxes = [(low, low + draw.uniform(0.1, 2, 3)) for low in lows]
        low = draw.uniform(-1, 0, 3)
        high = low + draw.uniform(0.2, 1, 3)
        step = placement.free_place(low, high, boxes, 0.1)
        shift = [step, 0, 0]
        assert step >= 0
        assert not any((low + shift < b).all() and (high + shift > a).all() for a, b in boxes)


def test_the_views_of_a_new_file_are_known():
    """Of Blender's own, in whatever version this is; not those that somebody has turned, moved, or shaded."""
    bpy.ops.wm.read_factory_settings()
    area = next(area for area in bpy.data.screens["Layout"].areas if area.type == "VIEW_3D")
    space = area.spaces.active
    assert placement.is_untouched(space)
    for owner, name, value in (
        (space.region_3d, "view_distance", 12.0),
        (space.region_3d, "view_location", (0.0, 1.0, 0.0)),
        (space.region_3d, "view_rotation", (1.0, 0.0, 0.0, 0.0)),
        (space.shading, "type", "WIREFRAME"),
    ):
        before = getattr(owner, name)
        before = before if isinstance(before, str | float) else before.copy()
        setattr(owner, name, value)
        assert not placement.is_untouched(space), name
        setattr(owner, name, before)
    assert placement.is_untouched(space)
    bpy.ops.wm.read_factory_settings(use_empty=True)
