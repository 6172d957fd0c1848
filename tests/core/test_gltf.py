"""core/formats/gltf.py: what the worker writes is what is read (python build.py test tests/core/test_gltf.py)."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from glb import bumpy_ball, patchwork, piece, write_glb

from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.gltf import ROUGHNESS, GlbMesh, decode_glb, encode_glb, read_glb

PNG = b"\x89PNG: nobody looks into it, and its length is no multiple of four"


@pytest.mark.parametrize("joined", [0, 4, 6])
def test_the_workers_mesh(tmp_path, joined):
    """A cube whose corners have three UVs and three normals each, of which glTF makes 24 vertices."""
    vertices = np.float32([[x, y, z] for x in (-0.0, 1) for y in (0, 2) for z in (0, 3)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.int32([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])
    square = np.float32([[0, 0], [0.1, 0], [0.1, 0.1], [0, 0.1]])
    uvs = np.stack([square[[0, 1, 2] if i % 2 == 0 else [0, 2, 3]] + i // 2 / 8 for i in range(12)])
    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    normals = np.repeat(normals[:, None] / np.linalg.norm(normals, axis=1)[:, None, None], 3, 1).astype(np.float32)
    mesh = GlbMesh(vertices, faces, uvs, PNG, normals, quads=joined)
    path = tmp_path / "Würfel 亀.glb"
    path.write_bytes(encode_glb(mesh, "Würfel 亀"))
    found = read_glb(path)
    assert found.vertices.shape == (8, 3)
    np.testing.assert_array_equal(found.vertices[found.faces], vertices[faces])
    np.testing.assert_allclose(found.corner_uvs, uvs, atol=1e-6)
    np.testing.assert_array_equal(found.corner_normals, normals)
    assert found.texture == PNG
    assert found.quads == joined
    assert found.roughness == pytest.approx(ROUGHNESS)


def test_a_ball_is_closed_again(tmp_path):
    """Its seam and its poles are there more than once in the file."""
    positions, uv, faces = bumpy_ball()
    positions = positions.round(4)
    found = read_glb(write_glb(tmp_path / "ball.glb", piece(positions, faces, uv=uv, picture=patchwork())))
    assert len(found.vertices) < len(positions)
    np.testing.assert_allclose(found.vertices[found.faces], positions[faces].astype(np.float32))
    real = found.faces[[len(set(face)) == 3 for face in found.faces.tolist()]]
    edges = np.sort(real[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    assert set(np.unique(edges, axis=0, return_counts=True)[1]) == {2}


def test_other_peoples_have_no_normals_and_their_own_roughness(tmp_path):
    positions, uv, faces = bumpy_ball(4, 6)
    material = {"pbrMetallicRoughness": {"roughnessFactor": 0.25}}
    path = write_glb(tmp_path / "a.glb", piece(positions, faces, uv=uv, picture=patchwork(), material=material))
    found = read_glb(path)
    assert found.corner_normals is None
    assert found.roughness == 0.25
    again = decode_glb(encode_glb(replace(found, corner_normals=np.zeros((len(faces), 3, 3))), "a"))
    assert again.roughness == 0.25
    np.testing.assert_array_equal(again.vertices[again.faces], found.vertices[found.faces])


def glb_of(text: bytes) -> bytes:
    """A GLB of this JSON."""
    return struct.pack("<4sII", b"glTF", 2, 20 + len(text)) + struct.pack("<I4s", len(text), b"JSON") + text


def test_files_that_are_none_of_ours(tmp_path):
    positions, uv, faces = bumpy_ball(4, 6)
    whole = write_glb(tmp_path / "whole.glb", piece(positions, faces, uv=uv, picture=patchwork())).read_bytes()
    files = {
        "cut": whole[:-100],
        "empty": b"",
        "deep": glb_of(b"[" * 100_000),
        "no objects": glb_of(b'{"meshes": [{"primitives": [{"attributes": "none"}]}]}'),
        "not even a list": glb_of(b'{"meshes": 3}'),
        "text": b"o cube\nv 0 0 0\n",
        "ends in the header": whole[:15],
        "another length": struct.pack("<4sII", b"glTF", 2, len(whole) + 1) + whole[12:],
        "no UVs": write_glb(tmp_path / "a", piece(positions, faces, picture=patchwork())).read_bytes(),
        "no picture": write_glb(tmp_path / "b", piece(positions, faces, uv=uv)).read_bytes(),
        "nan": write_glb(tmp_path / "c", piece(positions * np.nan, faces, uv=uv, picture=patchwork())).read_bytes(),
        "points to what is not there": write_glb(
            tmp_path / "d", piece(positions, faces + 10_000, uv=uv, picture=patchwork())
        ).read_bytes(),
        "no faces": write_glb(tmp_path / "e", piece(positions, faces[:0], uv=uv, picture=patchwork())).read_bytes(),
    }
    for name, data in files.items():
        path = tmp_path / f"{name}.glb"
        path.write_bytes(data)
        with pytest.raises(LGMError) as caught:
            read_glb(path)
        assert f"{path} is damaged, or no mesh that LGM made." in caught.value.message, name
    with pytest.raises(LGMError, match="can't be read"):
        read_glb(tmp_path / "none.glb")


@pytest.mark.parametrize("quads", [-1, 1, 3, 1e9, "2"])
def test_quads_that_are_none(tmp_path, quads):
    """Two triangles that have no edge in common, or fewer than are spoken of."""
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = np.int32([[0, 1, 2], [1, 2, 3], [0, 2, 3]])
    corners = np.zeros((3, 3, 3), np.float32)
    mesh = GlbMesh(vertices, faces, corners[..., :2], PNG, corners)
    path = tmp_path / "a.glb"
    path.write_bytes(encode_glb(replace(mesh, quads=quads), "a"))
    with pytest.raises(LGMError, match="is damaged"):
        read_glb(path)
