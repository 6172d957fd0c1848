"""Meshes in the scene. Run: python build.py test tests/blender/test_meshes.py"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Matrix

from lgm_blender.blender.scene import meshes, render, results, splats
from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.gltf import read_glb
from lgm_blender.core.formats.ply import read_ply
from lgm_blender.core.gaussians import Gaussians
from lgm_blender.core.messages import GenerateResult, MeshResult

from .fake_worker import ball

CENTER = (1.0, 2.0, 3.0)  # of the ball in LGM's frame; in Blender's, (1, -3, 2)


@pytest.fixture
def glb(tmp_path) -> Path:
    """A ball of radius 0.5 about CENTER: red to its left, green to its right."""
    path = tmp_path / "Käktus 仙.glb"
    ball(path, 2000, 64, center=CENTER)
    return path


def world_points(thing) -> np.ndarray:
    bpy.context.view_layer.update()
    return np.array([thing.matrix_world @ vertex.co for vertex in thing.data.vertices])


def test_it_stands_at_the_origin_and_faces_the_front(glb):
    made = meshes.add_mesh(read_glb(glb), "thing")
    points = world_points(made)
    np.testing.assert_allclose(points.min(0), [-0.5, -0.5, 0], atol=0.01)
    np.testing.assert_allclose(points.max(0), [0.5, 0.5, 1], atol=0.01)
    assert made.name in bpy.context.scene.collection.objects
    assert made.matrix_world == Matrix.Identity(4)
    # Red is where x < 0, to the left of who looks from the front, from -y.
    uvs, pixels = made.data.uv_layers.active.uv, np.array(bpy.data.images[0].pixels[:]).reshape(64, 64, 4)
    for polygon in made.data.polygons:
        u, v = np.mean([uvs[i].vector for i in polygon.loop_indices], axis=0)
        front = abs(u - 0.5) < 0.1
        assert not front or polygon.center.y < 0.2
        if 0.05 < u < 0.45 or 0.55 < u < 0.95:
            red, green, _, _ = pixels[int(v * 64), int(u * 64)]
            assert (red > green) == (polygon.center.x < 0), polygon.center


def test_faces_look_outwards_and_are_smooth(glb):
    made = meshes.add_mesh(read_glb(glb), "thing")
    center = np.array([0, 0, 0.5])
    assert all(np.dot(polygon.normal, np.array(polygon.center) - center) > 0 for polygon in made.data.polygons)
    corners = np.array([normal.vector for normal in made.data.corner_normals])
    points = np.array([made.data.vertices[loop.vertex_index].co for loop in made.data.loops]) - center
    np.testing.assert_allclose((corners * points).sum(1) / np.linalg.norm(points, axis=1), 1, atol=0.01)


def test_edges_are_edges(tmp_path, glb):
    """A ball of 8 faces, whose edges are sharp: each corner has its face's normal."""
    path = tmp_path / "diamond.glb"
    ball(path, 4, 64)
    mesh = read_glb(path)
    octahedron = np.float32([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = np.int32([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    made = meshes.add_mesh(replace(mesh, vertices=octahedron, faces=faces, corner_uvs=np.zeros((8, 3, 2))), "diamond")
    for polygon in made.data.polygons:
        for i in polygon.loop_indices:
            np.testing.assert_allclose(made.data.corner_normals[i].vector, polygon.normal, atol=1e-3)


def test_quads_arrive_as_quads(glb):
    mesh = read_glb(glb)
    triangles = meshes.add_mesh(mesh, "triangles").data
    pole = next(n for n in range(4, 400, 2) if n * (n - 2) == len(mesh.faces))  # triangles around each

    def joined(corners):
        middle = corners[pole:-pole].reshape(-1, 2, *corners.shape[1:])[:, ::-1]  # (a, b, c), then (a, c, d)
        return np.concatenate([middle.reshape(-1, *corners.shape[1:]), corners[:pole], corners[-pole:]])

    count = len(mesh.faces) // 2 - pole
    made = meshes.add_mesh(
        replace(mesh, faces=joined(mesh.faces), corner_uvs=joined(mesh.corner_uvs), quads=count), "quads"
    ).data
    assert [len(polygon.vertices) for polygon in made.polygons] == [4] * count + [3] * 2 * pole
    assert len(triangles.edges) - len(made.edges) == count
    for polygon in made.polygons:
        assert np.dot(polygon.normal, np.array(polygon.center) - (0, 0, 0.5)) > 0
        for i in polygon.loop_indices:  # v is the latitude
            height = made.vertices[made.loops[i].vertex_index].co.z - 0.5
            assert made.uv_layers.active.uv[i].vector.y == pytest.approx(1 - np.arccos(2 * height) / np.pi, abs=0.01)


def test_material_and_texture(glb):
    mesh = read_glb(glb)
    made = meshes.add_mesh(mesh, "thing", settings={"seed": 7})
    (material,) = made.data.materials
    nodes = {node.type: node for node in material.node_tree.nodes}
    shader, texture = nodes["BSDF_PRINCIPLED"], nodes["TEX_IMAGE"]
    assert shader.inputs["Base Color"].links[0].from_node == texture
    assert nodes["OUTPUT_MATERIAL"].inputs["Surface"].links[0].from_node == shader
    assert shader.inputs["Roughness"].default_value == pytest.approx(0.8)
    assert (shader.inputs["Metallic"].default_value, shader.inputs["Emission Strength"].default_value) == (0, 0)
    assert texture.image.packed_file.data == mesh.texture
    assert tuple(texture.image.size) == (64, 64)
    assert texture.image.colorspace_settings.name == "sRGB"
    assert splats.read_settings(made) == {"seed": 7}
    assert [layer.name for layer in made.data.uv_layers] == ["UVMap"]


def test_it_is_in_the_blend_file(glb, tmp_path):
    meshes.add_mesh(read_glb(glb), "thing")
    glb.unlink()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    pixels = np.array(bpy.data.images["thing Texture"].pixels[:]).reshape(64, 64, 4)
    assert pixels[..., 0][:, :32].min() == 1.0
    assert len(bpy.data.objects["thing"].data.polygons) > 1500


@pytest.mark.parametrize("size", [0.02, 3.0])
def test_size(glb, size):
    mesh = read_glb(glb)
    tall = replace(mesh, vertices=mesh.vertices * np.float32([1, 2, 0.5]))
    points = world_points(meshes.add_mesh(tall, "thing", size=size, location=(4, 5, 6)))
    np.testing.assert_allclose(np.ptp(points, axis=0), [size / 2, size / 4, size], rtol=0.01)
    np.testing.assert_allclose((points.min(0) + points.max(0))[:2] / 2, [4, 5], atol=0.01 * size)
    assert points[:, 2].min() == pytest.approx(6)


def test_it_stays_where_it_is(glb):
    made = meshes.add_mesh(read_glb(glb), "thing", location=None)
    np.testing.assert_allclose(world_points(made).mean(0), [1, -3, 2], atol=0.02)
    np.testing.assert_allclose(made.location, [1, -3, 1.5], atol=0.01)  # under it


def test_many_of_one_name(glb):
    made = [meshes.add_mesh(read_glb(glb), "thing", location=(i, 0, 0)) for i in range(3)]
    assert len({thing.name for thing in made}) == 3
    images = {thing.data.materials[0].node_tree.nodes["Image Texture"].image for thing in made}
    assert len(images) == len(bpy.data.images) == len(bpy.data.materials) == 3
    for thing in made:
        bpy.data.objects.remove(thing)
    bpy.data.orphans_purge(do_recursive=True)
    assert not len(bpy.data.images) + len(bpy.data.materials) + len(bpy.data.meshes)


def result(golden, glb, **changes) -> GenerateResult:
    fields = {"ply": str(golden / "lgm.ply"), "glb": str(glb), "settings": {"seed": 3}, "device": "cpu"}
    numbers = {"gaussians": 1, "faces": 2, "versions": {}, "timings": {}}
    return GenerateResult("j", views="v", input=None, json="j", **fields | numbers | changes)


def test_both_stand_next_to_each_other(golden, glb):
    one, two = results.add_result(result(golden, glb), bpy.context.scene, 2.0)
    assert (one.name, two.name) == ("lgm", "Käktus 仙 Mesh")
    assert splats.is_splats(one)
    points = world_points(two)
    found = read_ply(golden / "lgm.ply")
    low, high = splats.extent(splats.read_splats(one, world=True).positions, found.opacities)
    assert (high - low).max() == pytest.approx(2, rel=0.01)
    assert np.ptp(points, axis=0).max() == pytest.approx(2, rel=0.01)
    assert points[:, 0].min() > high[0]
    assert points[:, 0].min() < high[0] + 0.5
    assert points[:, 2].min() == pytest.approx(0, abs=1e-6)
    assert {splats.read_settings(thing)["glb"] for thing in (one, two)} == {str(glb)}


def test_a_file_that_is_gone_leaves_nothing(golden, glb):
    with pytest.raises(LGMError, match="can't be read"):
        results.add_result(result(golden, glb.with_name("none")), bpy.context.scene)
    assert not bpy.data.objects


def test_converted_where_the_splats_are(glb):
    """The file is of the splats as they are in the world; the mesh gets no rotation and no scale."""
    collection = bpy.data.collections.new("things")
    bpy.context.scene.collection.children.link(collection)
    r = np.random.default_rng(0)
    cloud = Gaussians(
        r.normal(size=(50, 3)) * 0.1, np.ones(50), np.full((50, 3), 0.01), np.eye(4)[[0] * 50], np.ones((50, 3))
    )
    source = splats.add_splats(cloud, "splats", collection=collection)
    made = results.add_converted(
        MeshResult("j", str(glb), 50, 2000, {"ply": "/tmp/x.ply", "up": "y", "faces": 9}, {}, "cpu"),
        "splats Mesh",
        bpy.context.scene,
        source,
    )
    assert list(made.users_collection) == [collection]
    assert source.hide_render
    assert source.hide_get()
    assert not made.hide_get()
    np.testing.assert_allclose(world_points(made).mean(0), [1, -3, 2], atol=0.02)
    assert splats.read_settings(made) == {"faces": 9, "device": "cpu", "glb": str(glb)}
    assert tuple(made.scale) == (1, 1, 1)
    # The splats' object may have been deleted meanwhile.
    assert (
        results.add_converted(
            MeshResult("j", str(glb), 50, 2000, {"ply": "", "up": "y"}, {}, "cpu"), "alone", bpy.context.scene, None
        ).name
        in bpy.context.scene.collection.objects
    )


def test_picture(glb, tmp_path):
    """Seen from the front, with the colours of the texture under an even light."""
    made = meshes.add_mesh(read_glb(glb), "thing", location=(5, 0, 0))
    bpy.context.view_layer.update()
    before = set(bpy.data.materials), set(bpy.data.node_groups), len(bpy.data.objects)
    render.render_objects(made, tmp_path / "a.png", size=(64, 64), azimuth=0, elevation=0)
    assert (set(bpy.data.materials), set(bpy.data.node_groups), len(bpy.data.objects)) == before
    assert [slot.link for slot in made.material_slots] == ["DATA"]
    image = bpy.data.images.load(str(tmp_path / "a.png"))
    pixels = np.array(image.pixels[:]).reshape(64, 64, 4)
    left, right = pixels[32, 20, :3], pixels[32, 44, :3]
    assert left[0] > left[1] + 0.2
    assert right[1] > right[0] + 0.2
    corner, rows = pixels[0, 0, :3], np.flatnonzero((pixels[:, 32, :3] < 0.95).any(1))
    np.testing.assert_allclose(corner, 1, atol=0.01)
    assert 50 <= len(rows) <= 60  # it fills the picture
