"""worker/meshing/quads.py. Run with `python build.py test tests/worker/test_meshing_quads.py`."""

from __future__ import annotations

import math

import pytest
import torch
from test_meshing_topology import ball, meshed

from lgm_blender.worker.meshing.atlas import unwrap
from lgm_blender.worker.meshing.quads import corner_angles, even_quads, make_quads, pair_triangles, quad_corners
from lgm_blender.worker.meshing.topology import decimate, defects, volume


@pytest.fixture(scope="module")
def sphere():
    return decimate(*meshed(ball), 1200)


def box(cells: int = 4):
    """The surface of a cube, each side a grid of squares that are cut in two, any way."""
    vertices, faces, names = [], [], {}
    generator = torch.Generator().manual_seed(0)
    for axis in range(3):
        for far in (0, cells):
            for i in range(cells):
                for j in range(cells):
                    corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
                    places = [(*place[:axis], far, *place[axis:]) for place in corners]
                    if (far == 0) != (axis == 1):  # counter-clockwise seen from outside
                        places.reverse()
                    for place in places:
                        if place not in names:
                            names[place] = len(vertices)
                            vertices.append(place)
                    a, b, c, d = (names[place] for place in places)
                    cut = torch.rand(1, generator=generator) < 0.5
                    faces += [(a, b, c), (a, c, d)] if cut else [(b, c, d), (b, d, a)]
    faces = torch.tensor(faces)
    return torch.tensor(vertices, dtype=torch.float32), faces[torch.randperm(len(faces), generator=generator)]


def test_the_squares_of_a_box_are_found():
    vertices, faces = box()
    assert not any(defects(vertices, faces).values())
    assert volume(vertices, faces) == 64
    order, quads = pair_triangles(vertices, faces)
    assert quads == 96 == len(faces) / 2
    corners = vertices[quad_corners(faces.flatten()[order], quads)]
    torch.testing.assert_close(corner_angles(corners), torch.full((96, 4), math.pi / 2))


def test_pairs_are_the_same_triangles_and_share_their_diagonal(sphere):
    vertices, faces = sphere
    order, quads = pair_triangles(vertices, faces)
    assert torch.equal(order.flatten().sort().values, torch.arange(faces.numel()))
    assert torch.equal(order // 3, (order // 3)[:, :1].expand(-1, 3))  # corners stay with their triangle
    paired = faces.flatten()[order]
    assert not any(defects(vertices, paired).values())
    halves = paired[: 2 * quads].view(-1, 2, 3)
    assert torch.equal(halves[:, 0][:, [0, 2]], halves[:, 1][:, :2])
    assert quads / (len(faces) - quads) > 0.9


def test_those_left_over_get_partners(sphere, monkeypatch):
    quads = pair_triangles(*sphere)[1]
    monkeypatch.setattr("lgm_blender.worker.meshing.quads.REACH", 0)
    assert quads > 1.1 * pair_triangles(*sphere)[1]


def test_quads_become_squarer_and_the_shape_stays(sphere):
    vertices, faces = sphere

    def crookedness(points, faces, quads):
        return (corner_angles(points[quad_corners(faces, quads)]).rad2deg() - 90).abs().mean()

    order, quads = pair_triangles(vertices, faces)
    paired = faces.flatten()[order]
    even = even_quads(vertices, paired, quads)
    assert crookedness(even, paired, quads) < crookedness(vertices, paired, quads) - 5
    moved, faces = make_quads(vertices, faces)
    order, quads = pair_triangles(moved, faces)
    assert crookedness(moved, faces.flatten()[order], quads) < 20
    assert not any(defects(moved, faces).values())
    assert volume(moved, faces) == pytest.approx(volume(*sphere), rel=0.01)
    assert (moved.norm(dim=1) - 0.6).abs().max() < 0.03


def test_a_box_keeps_its_edges_and_corners():
    vertices, faces = box()
    within = ((vertices > 0) & (vertices < 4)).sum(1, keepdim=True) == 2
    shift = 0.2 * torch.rand(vertices.shape, generator=torch.Generator().manual_seed(1))
    shaken = torch.where(within & (vertices > 0) & (vertices < 4), vertices + shift, vertices)
    moved, faces = make_quads(shaken, faces)
    assert volume(moved, faces) == pytest.approx(64, rel=0.01)
    corner = ((vertices == 0) | (vertices == 4)).all(1)
    assert (moved - vertices)[corner].norm(dim=1).max() < 0.1


def test_seams_cut_no_quad(sphere):
    vertices, faces = sphere
    uvs = unwrap(vertices, faces, 512)
    order, quads = pair_triangles(vertices, faces, uvs)
    one, two = uvs.flatten(0, 1)[order][: 2 * quads].view(-1, 2, 3, 2).unbind(1)
    torch.testing.assert_close(one[:, [0, 2]], two[:, :2])
    assert quads < pair_triangles(vertices, faces)[1]
