"""The node group and the material of splats. Run: python build.py test tests/blender/test_nodes.py"""

from __future__ import annotations

from dataclasses import fields, replace

import bpy
import numpy as np
import pytest

from lgm_blender.blender import compat
from lgm_blender.blender.scene import render, splat_data, splats
from lgm_blender.blender.scene.nodes import splat_geometry as geometry
from lgm_blender.blender.scene.nodes import splat_material as material
from lgm_blender.blender.scene.nodes import splat_points as points_
from lgm_blender.blender.scene.nodes.build import VARIANT_KEY, VERSION, VERSION_KEY
from lgm_blender.blender.scene.nodes.splat_inputs import inputs
from lgm_blender.core.cameras import orbit_camera, to_blender
from lgm_blender.core.color import srgb_to_linear
from lgm_blender.core.gaussians import Gaussians, rotation_matrices
from lgm_blender.core.harmonics import seen_colors

COUNT = 200
needs_native = pytest.mark.skipif(not compat.has_native_splats(), reason="this Blender has no splats of its own")


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
    group[VERSION_KEY] = VERSION - 1
    group.nodes.clear()
    assert geometry.splat_geometry() == group
    assert group[VERSION_KEY] == VERSION
    assert compat.get_modifier_input(modifier, "Scale") == 2.5
    assert compat.get_modifier_input(modifier, "Viewport") == "Points"
    assert evaluated(made, "POINTCLOUD") is not None


def test_a_newer_one_is_left_alone():
    group = geometry.splat_geometry()
    group[VERSION_KEY] = VERSION + 1
    group.nodes.clear()
    assert geometry.splat_geometry() == group
    assert len(group.nodes) == 0


def test_defaults(shown):
    _, modifier = shown
    names = ("Viewport", "Viewport Amount", "Render Amount", "Scale", "Opacity", "Min Opacity", "Colors")
    found = {name: compat.get_modifier_input(modifier, name) for name in names}
    assert found == dict(zip(names, ("Splats", 1.0, 1.0, 1.0, 1.0, 0.0, "Linear"), strict=True))
    assert compat.get_modifier_input(modifier, "Shadows") == "Solid"


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
    compat.set_modifier_input(modifier, "Shadows", "None")
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


def test_a_number_keeps_rather_what_shows_much_and_as_much_area(shown, gaussians):
    visible = gaussians.select(gaussians.opacities >= material.CUTOFF)
    area = np.sort(visible.scales, 1)[:, 1:].prod(1)
    compat.set_modifier_input(shown[1], "Number", 60)
    points = evaluated(shown[0], "POINTCLOUD")
    found = values(points, "splat:center")
    assert len(found) == 60
    kept = (to_blender(visible).positions[:, None] == found).all(2).any(1)
    importance = visible.opacities * area
    assert importance[kept].mean() > 1.2 * importance.mean()
    growth = np.sqrt(importance.sum() / importance[kept].sum())
    whiten = np.linalg.norm(values(points, "splat:whiten_x"), axis=1)
    np.testing.assert_allclose(np.sort(1 / whiten), np.sort(growth * visible.scales[kept, 0]), rtol=1e-3)
    compat.set_modifier_input(shown[1], "Number", 10_000)
    whiten = np.linalg.norm(values(evaluated(shown[0], "POINTCLOUD"), "splat:whiten_x"), axis=1)
    np.testing.assert_allclose(np.sort(1 / whiten), np.sort(visible.scales[:, 0]), rtol=1e-3)


def test_the_crop_box_hides_what_is_outside_of_it(shown, gaussians):
    made, modifier = shown
    box = bpy.data.objects.new("box", None)
    bpy.context.scene.collection.objects.link(box)
    box.location, box.rotation_euler, box.scale = (0.1, -0.1, 0.2), (0.3, 0.2, 0.9), (0.3, 0.4, 0.5)
    made.location, made.scale = (0.2, 0.0, 0.1), (1.2, 1.2, 1.2)
    splats.set_display(made, crop=True, crop_box=box)
    bpy.context.view_layer.update()
    visible = to_blender(gaussians.select(gaussians.opacities >= material.CUTOFF)).positions
    matrix = np.array(box.matrix_world.inverted() @ made.matrix_world)
    inside = (np.abs(visible @ matrix[:3, :3].T + matrix[:3, 3]) < 1).all(1)
    assert 5 < inside.sum() < len(visible) - 5
    np.testing.assert_array_equal(values(evaluated(made, "POINTCLOUD"), "splat:center"), visible[inside])
    compat.set_modifier_input(modifier, "Crop", False)
    assert len(evaluated(made, "POINTCLOUD").points) == len(visible)


def graded(colors: np.ndarray, brightness: float, saturation: float, tint: np.ndarray) -> np.ndarray:
    gray = colors @ np.array([0.2126, 0.7152, 0.0722])[:, None]
    return (gray + (colors - gray) * saturation) * brightness * tint


def test_brightness_saturation_and_tint(shown, gaussians):
    tint = np.array([1.0, 0.5, 0.2])
    inputs = {"colors": "Exact", "brightness": 1.3, "saturation": 0.6, "tint": (*srgb_to_linear(tint), 1.0)}
    splats.set_display(shown[0], **inputs)
    colors = gaussians.colors[gaussians.opacities >= material.CUTOFF]
    found = values(evaluated(shown[0], "POINTCLOUD"), "splat:color")[:, :3]
    np.testing.assert_allclose(found, graded(colors, 1.3, 0.6, tint), atol=1e-5)


def with_harmonics(gaussians: Gaussians) -> Gaussians:
    return replace(gaussians, harmonics=np.random.default_rng(2).normal(0, 0.15, (len(gaussians), 15, 3)))


def test_a_render_shows_the_side_that_the_camera_sees(gaussians):
    gaussians = with_harmonics(gaussians)
    made = splats.add_splats(gaussians, "splats", stand=False)
    made.rotation_euler, made.location = (0.4, 0.2, 1.0), (0.1, 0.2, 0.3)
    camera = render.camera_from_pose(orbit_camera(25, 40))
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    modifier = splats.set_display(made, display="Exact", viewport="As Rendered", colors="Exact", shadows="None")
    assert compat.get_modifier_input(modifier, "View-Dependent")
    bpy.context.view_layer.update()
    shown = splat_data.get(evaluated(made, "MESH"), "splat:color")[::4, :3]
    seen = to_blender(splats.read_splats(made, world=True).select(gaussians.opacities >= material.CUTOFF))
    sight = seen.positions - np.array(camera.matrix_world.translation)
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    np.testing.assert_allclose(shown, seen_colors(seen.colors, seen.harmonics, sight), atol=2e-5)
    compat.set_modifier_input(modifier, "View-Dependent", False)
    shown = splat_data.get(evaluated(made, "MESH"), "splat:color")[::4, :3]
    np.testing.assert_allclose(shown, seen.colors, atol=1e-5)


@needs_native
def test_native_splats_are_shown_as_they_are(gaussians):
    gaussians = with_harmonics(gaussians)
    made = splats.add_splats(gaussians, "splats", stand=False)
    assert splat_data.is_native(made.data)
    shown = evaluated(made, "POINTCLOUD")
    assert shown.type == "GAUSSIAN_SPLAT"
    kept = to_blender(gaussians.select(gaussians.opacities >= material.CUTOFF))
    found = splat_data.read_data(shown)
    for field in fields(kept):
        np.testing.assert_allclose(getattr(found, field.name), getattr(kept, field.name), atol=1e-5)


@needs_native
@pytest.mark.parametrize("harmonics", [False, True])
def test_native_splats_are_graded_with_their_sides(gaussians, harmonics):
    gaussians = with_harmonics(gaussians) if harmonics else gaussians
    made = splats.add_splats(gaussians, "splats", stand=False)
    splats.set_display(made, brightness=1.5, saturation=0.5, scale=2.0, opacity=0.5, view_dependent=harmonics)
    kept = to_blender(gaussians.select(gaussians.opacities * 0.5 >= material.CUTOFF))
    found = splat_data.read_data(evaluated(made, "POINTCLOUD"))
    np.testing.assert_allclose(found.colors, graded(kept.colors, 1.5, 0.5, np.ones(3)), atol=1e-5)
    np.testing.assert_allclose(found.scales, 2 * kept.scales, rtol=1e-5)
    np.testing.assert_allclose(found.opacities, 0.5 * kept.opacities, rtol=1e-5)
    assert found.harmonics.shape[1] == (15 if harmonics else 0)
    if harmonics:
        expected = graded(kept.harmonics.reshape(-1, 3), 1.5, 0.5, np.ones(3)).reshape(kept.harmonics.shape)
        np.testing.assert_allclose(found.harmonics, expected, atol=1e-5)


@needs_native
def test_a_mesh_of_an_older_blender_can_be_shown_natively_too(gaussians):
    data = splat_data.new_data("mesh", to_blender(gaussians), native=False)
    made = bpy.data.objects.new("mesh", data)
    bpy.context.scene.collection.objects.link(made)
    splats.set_display(made, display="Native")
    assert evaluated(made, "POINTCLOUD").type == "GAUSSIAN_SPLAT"
    splats.set_display(made, display="Exact")
    assert evaluated(made, "POINTCLOUD").type == "POINTS"


@pytest.mark.parametrize(("relit", "display"), [(False, "Exact"), (True, "Exact"), (False, "Native"), (True, "Native")])
def test_materials(gaussians, relit, display):
    if display == "Native" and not compat.has_native_splats():
        pytest.skip("this Blender has no splats of its own")
    made = splats.add_splats(gaussians, "splats")
    splats.set_display(made, display=display, relight=relit)
    names = {("Exact", False): material.NAME, ("Exact", True): material.RELIT, ("Native", True): material.NATIVE_RELIT}
    shown = evaluated(made, "POINTCLOUD")
    expected = names.get((display, relit))
    assert [m.name for m in shown.materials if m] == ([expected] if expected else [])
    assert ("splat:normal" in shown.attributes) == relit


def test_normals_are_the_shortest_axes(shown, gaussians):
    compat.set_modifier_input(shown[1], "Relight", True)
    kept = to_blender(gaussians.select(gaussians.opacities >= material.CUTOFF))
    shortest = rotation_matrices(kept.rotations)[np.arange(len(kept)), :, kept.scales.argmin(1)]
    found = values(evaluated(shown[0], "POINTCLOUD"), "splat:normal")
    np.testing.assert_allclose(np.abs((found * shortest).sum(1)), 1, atol=1e-5)


def test_tiles_lie_across_the_shortest_axis_of_what_is_not_faint(shown, gaussians):
    made, modifier = shown
    camera = render.camera_from_pose(orbit_camera(0, 0))
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    splats.set_display(made, viewport="As Rendered", shadows="None")
    quads = len(evaluated(made, "MESH").vertices)
    compat.set_modifier_input(modifier, "Shadows", "Solid")
    shown = evaluated(made, "MESH")
    kept = to_blender(gaussians.select(gaussians.opacities > 1.01 * points_.SOLID_ALPHA))
    assert len(shown.vertices) - quads == 4 * len(kept)
    corners = splat_data.get(shown, "position")[:-quads].reshape(-1, 4, 3)
    np.testing.assert_allclose(corners.mean(1), kept.positions, atol=1e-5)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    shortest = rotation_matrices(kept.rotations)[np.arange(len(kept)), :, kept.scales.argmin(1)]
    np.testing.assert_allclose(np.abs((normals * shortest).sum(1)), 1, atol=1e-3)


def test_an_unknown_input_is_an_error(shown):
    with pytest.raises(KeyError):
        splats.set_display(shown[0], nonsense=1)


def test_inputs_that_this_blender_has_not_go_and_the_others_keep_their_values(shown):
    made, modifier = shown
    group = modifier.node_group
    compat.set_modifier_input(modifier, "Scale", 2.5)
    group.interface.new_socket("Of Another Blender", in_out="INPUT", socket_type="NodeSocketMenu")
    group[VARIANT_KEY] = "another Blender's"
    assert splats.show_splats(made) == modifier
    assert list(compat.modifier_inputs(group)) == ["Geometry", *(row.name for row in inputs())]
    assert compat.get_modifier_input(modifier, "Scale") == 2.5
