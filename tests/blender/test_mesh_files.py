"""The worker's mesh files in Blender's own importers (python build.py test tests/blender/test_mesh_files.py)."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Vector

from lgm_blender.worker.meshing import TexturedMesh
from lgm_blender.worker.meshing.files import encode_files, file_name

NAME = "Käktus 仙 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A wedge 1 wide, 2 tall and 3 deep, its tip up and to the front (+z); red and green texture."""
    vertices = np.float32([[-0.5, 0, -1.5], [0.5, 0, -1.5], [0, 0, 1.5], [0, 2, 1.5]])
    faces = np.int32([[0, 1, 2], [0, 2, 3], [2, 1, 3], [1, 0, 3]])
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    # The face to the left of the front shows red, the one to its right green.
    uvs = np.float32([[[0.1, 0.1], [0.4, 0.1], [0.1, 0.4]]] * 4)
    uvs[2, :, 0] += 0.5
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:, :32, 0] = texture[:, 32:, 1] = 255
    colors = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
    mesh = TexturedMesh(vertices, faces, uvs, np.repeat(normals[:, None], 3, 1).astype(np.float32), colors, texture)
    path = tmp_path_factory.mktemp("a b")
    write(mesh, path, NAME)
    return path


def write(mesh: TexturedMesh, folder: Path, name: str) -> None:
    for suffix, data in encode_files(mesh, name).items():
        (folder / file_name(name, suffix)).write_bytes(data)


IMPORTS = {
    "glb": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    "obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    "ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_it_stands_upright_and_faces_the_front(folder, kind):
    IMPORTS[kind](str(folder / (f"{NAME}_mesh.ply" if kind == "ply" else f"{NAME}.{kind}")))
    bpy.context.view_layer.update()
    (found,) = (item for item in bpy.data.objects if item.type == "MESH")
    points = np.array([found.matrix_world @ vertex.co for vertex in found.data.vertices])
    np.testing.assert_allclose(points.min(0), [-0.5, -1.5, 0], atol=1e-5)
    np.testing.assert_allclose(points.max(0), [0.5, 1.5, 2], atol=1e-5)
    tip = points[points[:, 2].argmax()]
    np.testing.assert_allclose(tip, [0, -1.5, 2], atol=1e-5)  # z up, front towards -y
    assert len(found.data.polygons) == 4
    center = Vector(points.mean(0))
    for polygon in found.data.polygons:
        outwards = found.matrix_world @ polygon.center - center
        assert (found.matrix_world.to_3x3() @ polygon.normal).dot(outwards) > 0
    if kind == "ply":
        attribute = found.data.color_attributes[0]
        colors = {tuple(np.round(p, 3)): tuple(d.color_srgb[:3]) for p, d in zip(points, attribute.data, strict=True)}
        np.testing.assert_allclose(colors[0.0, -1.5, 2.0], (1, 1, 1), atol=0.01)
        np.testing.assert_allclose(colors[-0.5, 1.5, 0.0], (1, 0, 0), atol=0.01)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_the_texture_is_in_place(folder, kind):
    IMPORTS[kind](str(folder / f"{NAME}.{kind}"))
    (found,) = (item for item in bpy.data.objects if item.type == "MESH")
    (material,) = found.data.materials
    nodes = {node.type: node for node in material.node_tree.nodes}
    image = nodes["TEX_IMAGE"].image
    assert nodes["BSDF_PRINCIPLED"].inputs["Base Color"].links[0].from_node == nodes["TEX_IMAGE"]
    assert nodes["BSDF_PRINCIPLED"].inputs["Metallic"].default_value == 0
    pixels = np.array(image.pixels[:]).reshape(64, 64, 4)  # the first row is at the bottom
    assert image.has_data  # it is read when it is asked for
    uvs = found.data.uv_layers.active.data
    for polygon in found.data.polygons:
        u, v = np.mean([uvs[i].uv for i in polygon.loop_indices], axis=0)
        right = (found.matrix_world @ polygon.center).x > 0.1
        expected = (0, 1, 0) if right else (1, 0, 0)
        np.testing.assert_allclose(pixels[int(v * 64), int(u * 64), :3], expected, atol=0.01)


@pytest.mark.parametrize("kind", IMPORTS)
def test_quads(tmp_path, kind):
    """A cube of five quads and two triangles; glTF has triangles only."""
    vertices = np.float32([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.int32([face for a, b, c, d in sides for face in ((a, b, c), (a, c, d))])
    uvs = np.float32([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]] * 6)
    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    normals = np.repeat(normals[:, None], 3, 1)
    pixels = np.zeros((64, 64, 3), np.uint8)
    write(TexturedMesh(vertices, faces, uvs, normals, np.zeros((8, 3), np.uint8), pixels, quads=5), tmp_path, "a")
    IMPORTS[kind](str(tmp_path / ("a_mesh.ply" if kind == "ply" else f"a.{kind}")))
    (found,) = (item for item in bpy.data.objects if item.type == "MESH")
    assert sorted(len(polygon.vertices) for polygon in found.data.polygons) == (
        [3] * 12 if kind == "glb" else [3] * 2 + [4] * 5
    )
    if kind != "ply":
        shown = [tuple(found.data.uv_layers.active.data[i].uv) for i in found.data.polygons[0].loop_indices]
        assert shown == [(0, 0), (1, 0), (1, 1), (0, 1)][: len(shown)]
    assert sum(polygon.area for polygon in found.data.polygons) == pytest.approx(6)
