"""The node group and the material of splats. Run: python build.py test tests/blender/test_nodes.py"""

from __future__ import annotations

import bpy
import numpy as np
import pytest

from lgm_blender.blender import compat
from lgm_blender.blender.scene import render, splat_data, splats
from lgm_blender.blender.scene.nodes import splat_geometry as geometry
from lgm_blender.blender.scene.nodes import splat_material as material
from lgm_blender.blender.scene.nodes import splat_points as points_
from lgm_blender.blender.scene.nodes.build import VERSION_KEY
from lgm_blender.core.cameras import orbit_camera, to_blender
from lgm_blender.core.gaussians import Gaussians, rotation_matrices

COUNT = 200


@pytest.fixture
def gaussians():
    """Small Gaussians of every shape and opacity within LGM's box."""
    random = np.random.default_rng(0)
    rotations = random.normal(size=(COUNT, 4))
    return Gaussians(
        positions=random.uniform(-0.6, 0.6, (COUNT, 3)),
        opacities=np.linspace(0.0, 1.0, COUNT),
        scales=np.exp(random.normal(np.log(0.01), 0.8, (COUNT, 3))),
        rotations=rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        colors=random.uniform(0, 1, (COUNT, 3)),
    )


@pytest.fixture
def shown(gaussians):
    """An object with these Gaussians, displayed exactly, and its modifier."""
    made = splats.add_splats(gaussians, "splats", stand=False)
    return made, splats.set_display(made, display="Exact")


def evaluated(made, kind: str):
    """The evaluated data of that kind ('POINTCLOUD' or 'MESH') that the object shows; None if it is empty."""
    bpy.context.view_layer.update()
    for instance in bpy.context.evaluated_depsgraph_get().object_instances:
        found = instance.object
        if found.type == kind and (instance.parent or found).original == made:
            shown = found.data.points if kind == "POINTCLOUD" else found.data.vertices
            return found.data if len(shown) else None
    return None


def values(data, name: str) -> np.ndarray:
    return splat_data.get(data, name)


def test_built_once_and_used_by_all(gaussians):
    first = splats.add_splats(gaussians, "a")
    second = splats.add_splats(gaussians, "b")
    assert first.modifiers[0].node_group == second.modifiers[0].node_group
    shown = [group.name for group in bpy.data.node_groups if not group.name.startswith(".")]
    assert shown == [geometry.NAME]
    names = [group.name for group in [*bpy.data.node_groups, *bpy.data.materials]]
    assert len(names) == len({name.split(".LGM")[-1] for name in names})
    assert not [name for name in names if name.endswith(".001")]


def test_a_stranger_of_that_name_is_left_alone(gaussians):
    stranger = bpy.data.materials.new(material.NAME)
    ours = material.splat_material()
    assert ours != stranger
    assert VERSION_KEY not in stranger
    assert material.splat_material() == ours


def test_an_older_one_is_rebuilt_in_place_and_modifiers_keep_their_values(shown):
    made, modifier = shown
    group = modifier.node_group
    compat.set_modifier_input(modifier, "Scale", 2.5)
    compat.set_modifier_input(modifier, "Viewport", "Points")
    group[VERSION_KEY] = geometry.VERSION - 1
    group.nodes.clear()
    assert geometry.splat_geometry() == group
    assert group[VERSION_KEY] == geometry.VERSION
    assert compat.get_modifier_input(modifier, "Scale") == 2.5
    assert compat.get_modifier_input(modifier, "Viewport") == "Points"
    assert evaluated(made, "POINTCLOUD") is not None


def test_a_newer_one_is_left_alone():
    group = geometry.splat_geometry()
    group[VERSION_KEY] = geometry.VERSION + 1
    group.nodes.clear()
    assert geometry.splat_geometry() == group
    assert len(group.nodes) == 0


def test_defaults(shown):
    _, modifier = shown
    names = ("Viewport", "Viewport Amount", "Render Amount", "Scale", "Opacity", "Min Opacity", "Colors")
    found = {name: compat.get_modifier_input(modifier, name) for name in names}
    assert found == dict(zip(names, ("Splats", 1.0, 1.0, 1.0, 1.0, 0.0, "Linear"), strict=True))
    assert compat.get_modifier_input(modifier, "Shadows and Reflections")


def test_the_viewport_shows_every_visible_gaussian_as_a_point(shown, gaussians):
    points = evaluated(shown[0], "POINTCLOUD")
    visible = gaussians.opacities >= material.CUTOFF
    assert len(points.points) == visible.sum() < COUNT
    np.testing.assert_array_equal(values(points, "splat:center"), to_blender(gaussians).positions[visible])


@pytest.mark.parametrize("mode", ["Splats", "Ellipsoids"])
def test_points_cover_what_they_show(shown, gaussians, mode):
    compat.set_modifier_input(shown[1], "Viewport", mode)
    points = evaluated(shown[0], "POINTCLOUD")
    radius = np.empty(len(points.points), np.float32)
    points.attributes["radius"].data.foreach_get("value", radius)
    end = {"Splats": material.CUTOFF, "Ellipsoids": points_.SOLID_ALPHA}[mode]
    kept = gaussians.select(gaussians.opacities >= end * (1.01 if mode == "Ellipsoids" else 1))
    reach = np.minimum(np.sqrt(2 * np.log(kept.opacities / end)), points_.MAX_REACH if mode == "Splats" else np.inf)
    np.testing.assert_allclose(radius, reach * kept.scales.max(1) * np.sqrt(2), rtol=1e-4)


@pytest.mark.parametrize("amount", [0.0, 0.25, 1.0])
def test_amount(shown, amount):
    compat.set_modifier_input(shown[1], "Viewport Amount", amount)
    points = evaluated(shown[0], "POINTCLOUD")
    assert (len(points.points) if points else 0) == pytest.approx(amount * COUNT, abs=0.1 * COUNT)


def test_min_opacity_and_opacity(shown, gaussians):
    compat.set_modifier_input(shown[1], "Min Opacity", 0.3)
    assert len(evaluated(shown[0], "POINTCLOUD").points) == (gaussians.opacities >= 0.3).sum()
    compat.set_modifier_input(shown[1], "Opacity", 0.5)
    points = evaluated(shown[0], "POINTCLOUD")
    assert len(points.points) == (gaussians.opacities * 0.5 >= 0.3).sum()
    assert values(points, "splat:color")[:, 3].max() == pytest.approx(0.5)


def test_scale(shown, gaussians):
    visible = to_blender(gaussians.select(gaussians.opacities >= material.CUTOFF))
    compat.set_modifier_input(shown[1], "Scale", 2.0)
    points = evaluated(shown[0], "POINTCLOUD")
    rows = np.stack([values(points, f"splat:whiten_{axis}") for axis in "xyz"], axis=1)
    expected = (rotation_matrices(visible.rotations) / (2 * visible.scales[:, None, :])).transpose(0, 2, 1)
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("space", ["Linear", "Exact"])
def test_colors(shown, gaussians, space):
    compat.set_modifier_input(shown[1], "Colors", space)
    colors = gaussians.colors[gaussians.opacities >= material.CUTOFF].astype(np.float64)
    if space == "Linear":  # IEC 61966-2-1
        colors = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    found = values(evaluated(shown[0], "POINTCLOUD"), "splat:color")[:, :3]
    np.testing.assert_allclose(found, colors, atol=1e-5)


@pytest.mark.parametrize("kind", ["perspective", "turned and scaled object", "orthographic"])
def test_quads_cover_the_outline_seen_from_the_camera_and_not_much_more(shown, gaussians, kind):
    made, modifier = shown
    camera = render.camera_from_pose(orbit_camera(25, 40))
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    if kind == "orthographic":
        if not compat.has_node("GeometryNodeCameraInfo"):
            pytest.skip("this Blender's nodes can't tell an orthographic camera")
        camera.data.type = "ORTHO"
    elif kind != "perspective":
        made.rotation_euler = (0.3, 0.5, 2.0)
        made.scale = (1.5, 1.5, 1.5)
        made.location = (0.1, 0.2, -0.1)
    compat.set_modifier_input(modifier, "Viewport", "As Rendered")
    compat.set_modifier_input(modifier, "Shadows and Reflections", False)
    quads = evaluated(made, "MESH")
    assert evaluated(made, "POINTCLOUD") is None
    visible = to_blender(gaussians.select(gaussians.opacities >= material.CUTOFF))
    corners = np.empty(len(quads.vertices) * 3, np.float32)
    quads.vertices.foreach_get("co", corners)
    corners = corners.reshape(-1, 4, 3).astype(np.float64)
    assert len(corners) == len(visible)
    np.testing.assert_allclose(corners.mean(1), visible.positions, atol=1e-5)

    inverse = np.array(made.matrix_world.inverted())
    eye = inverse[:3, :3] @ np.array(camera.matrix_world.translation) + inverse[:3, 3]
    back = inverse[:3, :3] @ np.array(camera.matrix_world)[:3, 2]
    random = np.random.default_rng(1)
    on_sphere = random.normal(size=(2000, 3))
    on_sphere /= np.linalg.norm(on_sphere, axis=1, keepdims=True)
    reach = np.minimum(np.sqrt(2 * np.log(visible.opacities / material.CUTOFF)), points_.MAX_REACH)
    for i in range(len(visible)):
        half_x = (corners[i][2] - corners[i][0]) / 2
        half_y = (corners[i][1] - corners[i][0]) / 2
        axes = rotation_matrices(visible.rotations[i : i + 1])[0] * visible.scales[i]
        center = visible.positions[i].astype(np.float64)
        surface = center + reach[i] * on_sphere @ axes.T
        rays = np.broadcast_to(back, surface.shape) if kind == "orthographic" else surface - eye
        normal = np.cross(half_x, half_y)
        met = surface - rays * ((surface - center) @ normal / (rays @ normal))[:, None]
        inside = np.linalg.lstsq(np.stack([half_x, half_y], 1), (met - center).T, rcond=None)[0]
        assert 0.8 < np.abs(inside).max() < 1.005


def test_the_material_is_no_lamp():
    assert material.splat_material().cycles.emission_sampling == "NONE"
    assert material.splat_material().surface_render_method == "DITHERED"
