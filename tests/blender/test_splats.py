"""Gaussians as a Blender object, and back. Run: python build.py test tests/blender/test_splats.py"""

from __future__ import annotations

import json

import bpy
import numpy as np
import pytest
from points import delete_points

from lgm_blender.blender import compat
from lgm_blender.blender.scene import splats
from lgm_blender.core.cameras import from_blender, to_blender
from lgm_blender.core.errors import LGMError
from lgm_blender.core.gaussians import SH_C0, Gaussians, rotation_matrices

COUNT = 2000


@pytest.fixture
def gaussians():
    random = np.random.default_rng(0)
    rotations = random.normal(size=(COUNT, 4))
    return Gaussians(
        positions=random.uniform(-1, 1, (COUNT, 3)),
        opacities=random.uniform(0, 1, COUNT),
        scales=np.exp(random.normal(np.log(0.02), 0.5, (COUNT, 3))),
        rotations=rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        colors=random.uniform(0, 1, (COUNT, 3)),
    )


def one(position=(0, 0, 0)) -> Gaussians:
    return Gaussians([position], [0.9], [[0.1, 0.1, 0.1]], [[1, 0, 0, 0]], [[0.5, 0.5, 0.5]])


def covariances(gaussians: Gaussians) -> np.ndarray:
    axes = rotation_matrices(gaussians.rotations.astype(np.float64)) * gaussians.scales[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def assert_same(found: Gaussians, expected: Gaussians, atol=1e-6):
    for name in ("positions", "opacities", "scales", "colors"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=atol, err_msg=name)
    signs = np.sign((found.rotations * expected.rotations).sum(1, keepdims=True))  # q and -q are the same rotation
    np.testing.assert_allclose(found.rotations * signs, expected.rotations, atol=atol)


def test_attributes_are_those_of_blender_5_3(gaussians):
    made = splats.add_splats(gaussians, "splats", stand=False)
    data = made.data
    expected = to_blender(gaussians)
    kinds = {name: data.attributes[name].data_type for name in ("position", "scale", "rotation", "radiance:base")}
    assert kinds == {
        "position": "FLOAT_VECTOR",
        "scale": "FLOAT_VECTOR",
        "rotation": "QUATERNION",
        "radiance:base": compat.radiance_type(),
    }
    assert all(data.attributes[name].domain == "POINT" for name in kinds)
    i = COUNT // 2
    np.testing.assert_array_equal(data.attributes["position"].data[i].vector, expected.positions[i])
    np.testing.assert_array_equal(data.attributes["scale"].data[i].vector, gaussians.scales[i])
    np.testing.assert_array_equal(data.attributes["rotation"].data[i].value, expected.rotations[i])
    radiance = getattr(
        data.attributes["radiance:base"].data[i], "color" if "COLOR" in kinds["radiance:base"] else "vector"
    )
    np.testing.assert_allclose(radiance[:3], (gaussians.colors[i] - 0.5) / SH_C0, atol=1e-6)
    assert radiance[3] == gaussians.opacities[i]


@pytest.mark.parametrize(("lgm", "blender"), [((0, 0, 1), (0, -1, 0)), ((0, 1, 0), (0, 0, 1)), ((1, 0, 0), (1, 0, 0))])
def test_front_is_minus_y_and_up_is_z(lgm, blender):
    made = splats.add_splats(one(lgm), "one", stand=False)
    np.testing.assert_allclose(made.data.attributes["position"].data[0].vector, blender, atol=1e-6)


def test_one_object_with_one_modifier_in_the_scenes_collection(gaussians):
    made = splats.add_splats(gaussians, "splats")
    assert list(bpy.data.objects) == [made]
    assert [m.type for m in made.modifiers] == ["NODES"]
    assert made.name in bpy.context.collection.objects


def test_other_scenes_and_collections(gaussians):
    scene = bpy.data.scenes.new("Other")
    assert splats.add_splats(gaussians, "a", scene=scene).name in scene.collection.objects
    collection = bpy.data.collections.new("Collection")
    assert splats.add_splats(gaussians, "b", collection=collection).name in collection.objects
    assert not bpy.context.scene.objects


def test_what_went_in_comes_out(gaussians):
    made = splats.add_splats(gaussians, "splats", size=2.5, location=(1, 2, 3))
    made.rotation_euler = (1, 2, 3)
    assert_same(splats.read_splats(made), gaussians)


@pytest.mark.parametrize("scale", [(0.5, 2.0, -3.0), (2.0, 2.0, 2.0), (-2.0, -2.0, -2.0)])
def test_world_applies_the_object_s_transform(gaussians, scale):
    made = splats.add_splats(gaussians, "splats", stand=False, location=(1, 2, 3))
    made.rotation_euler = (0.3, -0.8, 1.7)
    made.scale = scale  # Gaussians stay Gaussians under any of these
    bpy.context.view_layer.update()
    matrix = np.array(made.matrix_world)
    found = to_blender(splats.read_splats(made, world=True))
    before = to_blender(gaussians)
    np.testing.assert_allclose(found.positions, before.positions @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-5)
    expected = matrix[:3, :3] @ covariances(before) @ matrix[:3, :3].T
    np.testing.assert_allclose(covariances(found), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.rotations, axis=1), 1, atol=1e-6)


def test_world_without_a_transform_changes_nothing_that_shows(gaussians):
    made = splats.add_splats(gaussians, "splats", stand=False)
    found = splats.read_splats(made, world=True)
    np.testing.assert_allclose(found.positions, gaussians.positions, atol=1e-6)
    np.testing.assert_allclose(covariances(found), covariances(gaussians), atol=1e-7)


@pytest.mark.parametrize("size", [0.3, 4.0])
def test_size_and_standing(gaussians, size):
    stray = Gaussians(*(np.concatenate([getattr(gaussians, n), getattr(one((0, -9, 0)), n)]) for n in FIELDS))
    made = splats.add_splats(stray, "splats", size=size, location=(1, 2, 0))
    bpy.context.view_layer.update()
    positions = to_blender(splats.read_splats(made, world=True)).positions[:COUNT]
    assert np.ptp(positions, axis=0).max() == pytest.approx(size, rel=0.03)
    assert positions[:, 2].min() == pytest.approx(0, abs=0.03 * size)
    assert tuple(made.location) == (1, 2, 0)


FIELDS = ("positions", "opacities", "scales", "rotations", "colors")


def test_settings_are_kept_on_the_object_and_in_the_file(gaussians, tmp_path):
    settings = {
        "prompt": "ein Häuschen, 家",
        "seed": 2**32 - 1,
        "steps": 30,
        "guidance": 7.5,
        "previews": False,
        "negative_prompt": None,
        "versions": {"lgm_blender": "0.1.0"},
    }
    made = splats.add_splats(gaussians, "Größe 家 / splats", settings=settings)
    assert splats.read_settings(made) == settings
    group = made["lgm"]
    assert (group["prompt"], group["seed"], group["steps"], group["guidance"]) == (
        settings["prompt"],
        str(2**32 - 1),
        30,
        7.5,
    )
    assert json.loads(group["versions"]) == settings["versions"]
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a b ä.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "a b ä.blend"))
    made = bpy.data.objects["Größe 家 / splats"]
    assert splats.read_settings(made) == settings
    assert_same(splats.read_splats(made), gaussians)
    assert splats.show_splats(made) == made.modifiers[0]
    assert len(made.modifiers) == 1


def test_objects_from_elsewhere_have_no_settings():
    assert splats.read_settings(bpy.data.objects.new("empty", None)) == {}


def test_undo_takes_it_away_and_redo_brings_it_back(gaussians):
    bpy.ops.ed.undo_push(message="before")
    splats.add_splats(gaussians, "splats")
    bpy.ops.ed.undo_push(message="splats")
    bpy.ops.ed.undo()
    assert not bpy.data.objects
    assert bpy.context.scene.cycles.transparent_max_bounces == 8
    bpy.ops.ed.redo()
    assert_same(splats.read_splats(bpy.data.objects["splats"]), gaussians)


def test_render_settings_are_raised_and_told(gaussians):
    cycles = bpy.context.scene.cycles
    cycles.transparent_max_bounces = 8
    told = []
    splats.add_splats(gaussians, "splats", on_change=told.append)
    assert cycles.transparent_max_bounces == splats.MAX_TRANSPARENT_BOUNCES
    assert cycles.min_transparent_bounces == splats.MIN_TRANSPARENT_BOUNCES
    assert len(told) == 2
    assert "from 8 to 512" in told[0]
    assert splats.prepare_scene_for_splats(bpy.context.scene) == []


def test_render_settings_are_never_lowered():
    cycles = bpy.context.scene.cycles
    cycles.transparent_max_bounces, cycles.min_transparent_bounces = 1024, 500
    assert splats.prepare_scene_for_splats(bpy.context.scene) == []
    assert (cycles.transparent_max_bounces, cycles.min_transparent_bounces) == (1024, 500)


def test_gaussians_that_are_no_numbers_are_left_out(gaussians):
    positions = gaussians.positions.copy()
    positions[3] = np.nan
    bad = Gaussians(positions, *(getattr(gaussians, name) for name in FIELDS[1:]))
    assert len(splats.read_splats(splats.add_splats(bad, "splats"))) == COUNT - 1


def test_nothing_to_show(gaussians):
    with pytest.raises(LGMError, match="no Gaussian"):
        splats.add_splats(gaussians.select(np.zeros(COUNT, bool)), "nothing")
    assert not bpy.data.objects
    assert not bpy.data.meshes


def test_is_splats(gaussians):
    assert splats.is_splats(splats.add_splats(gaussians, "splats"))
    assert not splats.is_splats(None)
    assert not splats.is_splats(bpy.data.objects.new("empty", None))
    mesh = bpy.data.objects.new("mesh", bpy.data.meshes.new("mesh"))
    assert not splats.is_splats(mesh)
    with pytest.raises(LGMError, match="no Gaussian splats"):
        splats.read_splats(mesh)


def test_gaussians_deleted_in_edit_mode_are_gone(gaussians):
    made = splats.add_splats(gaussians, "splats")
    delete_points(made, np.arange(COUNT) < 100)
    assert_same(splats.read_splats(made), gaussians.select(np.arange(COUNT) >= 100))
    bpy.ops.object.mode_set(mode="OBJECT")


def test_frames_are_inverse(gaussians):
    assert_same(from_blender(to_blender(gaussians)), gaussians)
