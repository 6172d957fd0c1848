"""core/formats/obj.py (python build.py test tests/core/test_obj.py)."""

from __future__ import annotations

import numpy as np
import pytest

from lgm_blender.core.formats.gltf import GlbMesh
from lgm_blender.core.formats.obj import encode_obj, obj_name


def test_a_quad_and_a_triangle_with_a_seam_between_them():
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0.5, 1 / 3]])
    faces = np.int32([[0, 1, 2], [0, 2, 3], [1, 4, 2]])
    uvs = np.float32([[[0, 0], [0.5, 0], [0.5, 0.5]], [[0, 0], [0.5, 0.5], [0, 0.5]], [[0.6, 0], [1, 0.2], [0.6, 0.5]]])
    normals = np.zeros((3, 3, 3), np.float32)
    normals[..., 2] = 1
    obj, mtl = encode_obj(GlbMesh(vertices, faces, uvs, b"", normals, roughness=0.25, quads=1), "my thing 亀")
    lines = [line.split() for line in obj.decode().splitlines()]
    table = {word: np.array([line[1:] for line in lines if line[0] == word], float) for word in ("v", "vt", "vn")}
    np.testing.assert_allclose(table["v"], vertices, rtol=1e-6)
    polygons = [np.array([corner.split("/") for corner in line[1:]], int) - 1 for line in lines if line[0] == "f"]
    assert [polygon[:, 0].tolist() for polygon in polygons] == [[0, 1, 2, 3], [1, 4, 2]]
    quad, triangle = (table["vt"][polygon[:, 1]] for polygon in polygons)
    np.testing.assert_allclose(quad, [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]])
    np.testing.assert_allclose(triangle, uvs[2])
    assert len(table["vt"]) == 7  # what the quad's halves have in common is there once
    assert table["vn"].tolist() == [[0, 0, 1]]
    assert ["mtllib", "my_thing_亀.mtl"] in lines
    words = dict(line.split(" ", 1) for line in mtl.decode().splitlines())
    assert (words["newmtl"], words["Pr"], words["map_Kd"]) == ("my_thing_亀", "0.25", "my_thing_亀_texture.png")
    assert ["usemtl", words["newmtl"]] in lines


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("my pot", "my_pot"),
        ("#1 pot", "_1_pot"),
        ("-s 2 2 2 pot", "_s_2_2_2_pot"),
        ("-clamp on", "_clamp_on"),
        ("a\\", "a_"),
        ("tab\tnew\nline\u3000wide", "tab_new_line_wide"),
        ("K\udce4fer", "K_fer"),
        ("猫", "猫"),
        ("a-b_c.d", "a-b_c.d"),
    ],
)
def test_names_that_readers_take_whole(name, safe):
    """A space would end them, a hash begin a comment, a dash an option of the texture."""
    assert obj_name(name) == safe
    assert obj_name(safe) == safe
    vertices, faces = np.eye(3, dtype=np.float32), np.int32([[0, 1, 2]])
    uvs, normals = np.zeros((1, 3, 2), np.float32), np.ones((1, 3, 3), np.float32)
    obj, mtl = encode_obj(GlbMesh(vertices, faces, uvs, b"", normals), name)
    words = dict(line.split() for line in obj.decode().splitlines() if line.split()[0] in ("mtllib", "o", "usemtl"))
    words |= {
        line.split()[0]: line.split()[1]
        for line in mtl.decode().splitlines()
        if line.split()[0] in ("newmtl", "map_Kd")
    }
    assert words == {
        "mtllib": f"{safe}.mtl",
        "o": safe,
        "usemtl": safe,
        "newmtl": safe,
        "map_Kd": f"{safe}_texture.png",
    }
