"""Objects of Gaussians for the tests of editing, and what is seen of them."""

from __future__ import annotations

import bpy
import numpy as np

from lgm_blender.blender.scene import render, splat_data, splats
from lgm_blender.core.gaussians import Gaussians, rotation_matrices
from lgm_blender.core.harmonics import seen_colors

COUNT = 1500


def gaussians(seed=0, count=COUNT, harmonics=3, offset=(0.0, 0.0, 0.0)) -> Gaussians:
    random = np.random.default_rng(seed)
    rotations = random.normal(size=(count, 4))
    return Gaussians(
        positions=random.uniform(-0.5, 0.5, (count, 3)) + offset,
        opacities=random.uniform(0.3, 1, count),
        scales=np.exp(random.normal(np.log(0.03), 0.7, (count, 3))),
        rotations=rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        colors=random.uniform(0.2, 0.8, (count, 3)),
        harmonics=random.normal(0, 0.1, (count, harmonics, 3)),
    )


def add(name="splats", seed=0, **options) -> bpy.types.Object:
    made = splats.add_splats(gaussians(seed, **options), name, stand=False)
    bpy.context.view_layer.update()
    return made


def choose(*objects: bpy.types.Object) -> None:
    """Selects objects, the first of them active."""
    for thing in bpy.context.scene.objects:
        thing.select_set(thing in objects)
    bpy.context.view_layer.objects.active = objects[0]


def place(thing, location=(0.3, -0.2, 0.5), rotation=(0.4, -0.9, 1.3), scale=(1.5, 1.5, 1.5)):
    thing.location, thing.rotation_euler, thing.scale = location, rotation, scale
    bpy.context.view_layer.update()


def covariances(found: Gaussians) -> np.ndarray:
    axes = rotation_matrices(found.rotations.astype(np.float64)) * found.scales[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def seen(*objects) -> Gaussians:
    """What is seen in the world, by position, so that the order doesn't matter."""
    parts = [splats.read_splats(thing, world=True) for thing in objects]
    count = max(part.harmonics.shape[1] for part in parts)
    names = ("positions", "opacities", "scales", "rotations", "colors")
    whole = Gaussians(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in names),
        np.concatenate([np.pad(p.harmonics, ((0, 0), (0, count - p.harmonics.shape[1]), (0, 0))) for p in parts]),
    )
    return whole.select(np.argsort(whole.positions[:, 0], kind="stable"))


DIRECTIONS = np.eye(3)


def assert_seen(after: Gaussians, before: Gaussians, atol=2e-5) -> None:
    """The same Gaussians: places, shapes, and colours from three sides."""
    assert len(after) == len(before)
    np.testing.assert_allclose(after.positions, before.positions, atol=atol)
    np.testing.assert_allclose(after.opacities, before.opacities, atol=1e-6)
    expected = covariances(before)
    assert np.abs(covariances(after) - expected).max() < 1e-4 * np.abs(expected).max()
    for direction in DIRECTIONS:
        sight = np.tile(direction, (len(after), 1))
        found = seen_colors(after.colors, after.harmonics, sight)
        np.testing.assert_allclose(found, seen_colors(before.colors, before.harmonics, sight), atol=1e-4)


def picture(tmp_path, *objects) -> np.ndarray:
    pose = render.orbit_camera(20, 40, 3.0)
    for thing in objects:
        splats.set_display(thing, view_dependent=True)
    path = render.render_objects(objects, tmp_path / "picture.png", size=(48, 48), samples=1, pose=pose)
    image = bpy.data.images.load(str(path))
    pixels = np.array(image.pixels[:], np.float32)
    bpy.data.images.remove(image)
    return pixels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(((a - b) ** 2).mean(), 1e-12)))


def select_points(thing: bpy.types.Object, mask: np.ndarray) -> None:
    """Selects points and enters Edit Mode."""
    choose(thing)
    if thing.type == "MESH":
        bpy.context.tool_settings.mesh_select_mode = (True, False, False)
        thing.data.vertices.foreach_set("select", mask)
    else:
        splat_data.put(thing.data, ".selection", "BOOLEAN", mask)
    bpy.ops.object.mode_set(mode="EDIT")


def leave() -> None:
    bpy.ops.object.mode_set(mode="OBJECT")


def about(center, linear) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.asarray(center) - np.asarray(linear) @ np.asarray(center)
    return matrix


def turn_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
