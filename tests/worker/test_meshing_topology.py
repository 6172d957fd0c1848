"""worker/meshing/topology.py and raster.py. Run with `python build.py test tests/worker/test_meshing_topology.py`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lgm_blender.core.errors import LGMError
from lgm_blender.worker.devices import CPU, MPS
from lgm_blender.worker.meshing import topology
from lgm_blender.worker.meshing.atlas import unwrap
from lgm_blender.worker.meshing.fusion import Field, surface
from lgm_blender.worker.meshing.quads import make_quads
from lgm_blender.worker.meshing.raster import barycentric, rasterize
from lgm_blender.worker.meshing.texture import fill_gaps, texel_corners
from lgm_blender.worker.meshing.topology import components, decimate, defects, volume

TETRAHEDRON = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
SIDES = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def meshed(function, samples: int = 48):
    """The surface of what `function` of x, y and z in -1 to 1 is negative in."""
    axis = torch.linspace(-1, 1, samples)
    values = function(*torch.meshgrid(axis, axis, axis, indexing="ij"))
    return surface(Field((values * 5).clamp(-1, 1), torch.full((3,), -1.0), 2 / (samples - 1)))


def ball(x, y, z, at=0.0, radius=0.6):
    return ((x - at) ** 2 + y**2 + z**2).sqrt() - radius


def test_a_surface_is_closed_and_looks_outwards():
    vertices, faces = meshed(ball)
    assert not any(defects(vertices, faces).values())
    assert volume(vertices, faces) == pytest.approx(0.905, rel=0.03)


def test_islands_are_left_out_and_the_border_is_closed():
    vertices, faces = meshed(lambda x, y, z: torch.minimum(ball(x, y, z), ball(x, y, z, 0.9, 0.03)))
    assert components(faces, len(vertices))[0] == 1
    vertices, faces = meshed(lambda x, y, z: y - 0.1)  # solid up to the field's very border
    assert not any(defects(vertices, faces).values())


@pytest.mark.parametrize("target", [2000, 300, 100])
def test_decimation_reaches_its_target_and_keeps_the_shape(target):
    vertices, faces = meshed(ball)
    less, fewer = decimate(vertices, faces, target)
    assert target - 1 <= len(fewer) <= target
    assert not any(defects(less, fewer).values())
    assert volume(less, fewer) == pytest.approx(volume(vertices, faces), rel=0.06)
    assert less.norm(dim=1).max() < 0.68


def test_a_device_without_double_precision_gets_the_same(monkeypatch):
    """It is done on the CPU then."""
    vertices, faces = meshed(ball, 24)
    expected = decimate(vertices, faces, 100)
    devices = [MPS, CPU]
    monkeypatch.setattr(topology, "device_of", lambda device: devices.pop(0))
    less, fewer = decimate(vertices, faces, 100)
    assert devices == []
    assert torch.equal(less, expected[0])
    assert torch.equal(fewer, expected[1])


def test_decimation_keeps_holes_and_what_nearly_touches_apart():
    def shape(x, y, z):
        ring = (((x * x + z * z).sqrt() - 0.6) ** 2 + y * y).sqrt() - 0.2
        return torch.minimum(ring, ball(x, y, z, 0.0, 0.36))  # a ball in the hole, a voxel away

    vertices, faces = meshed(shape)
    less, fewer = decimate(vertices, faces, 150)
    assert not any(defects(less, fewer).values())
    before, after = (components(f, len(v))[0] for v, f in ((vertices, faces), (less, fewer)))
    assert before == after
    assert len(vertices) - len(faces) // 2 == len(less) - len(fewer) // 2  # as many holes


def test_decimation_stops_where_nothing_is_left_to_collapse():
    vertices, faces = decimate(TETRAHEDRON, SIDES, 2)
    assert len(faces) == 4
    torch.testing.assert_close(vertices, TETRAHEDRON)


@pytest.mark.parametrize(
    ("faces", "found"),
    [
        (SIDES, {}),
        (SIDES[:3], {"open_edges": 3}),
        (torch.cat([SIDES[:3], SIDES[3:].flip(1)]), {"inconsistent_edges": 3}),
        (torch.cat([SIDES, SIDES[:1]]), {"crowded_edges": 3, "duplicate_faces": 1}),
        (torch.cat([SIDES, torch.tensor([[1, 1, 2]])]), {"degenerate_faces": 1}),
        # Two tetrahedra that share a corner.
        (torch.cat([SIDES, torch.where(SIDES == 0, 0, SIDES + 3)]), {"pinched_vertices": 1}),
    ],
)
def test_defects_are_found(faces, found):
    vertices = torch.cat([TETRAHEDRON, 1.5 * TETRAHEDRON[1:] * torch.tensor([-1, -1, 1])])
    result = defects(vertices, faces)
    for name, number in found.items():
        assert result[name] == number, result
    if not found:
        assert not any(result.values())


def test_the_nearest_triangle_wins():
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 3, 2, generator=random) * 40 - 4
    depths = torch.rand(40, 3, generator=random) + 1
    found = rasterize(corners, depths, 32)
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    points = torch.stack([x, y], -1).view(-1, 2)
    best, expected = torch.zeros(1024), torch.full((1024,), -1)
    for i in range(40):
        weights = barycentric(corners[i].expand(1024, 3, 2), points)
        nearness = (weights / depths[i]).sum(1)
        nearer = (weights >= 0).all(1) & (nearness > best)
        best, expected = torch.where(nearer, nearness, best), torch.where(nearer, i, expected)
    assert (found.view(-1) == expected).float().mean() > 0.999  # but for ties
    assert (found >= 0).float().mean() > 0.5


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_charts_lie_apart(size):
    """Every face has its place in the map, seen from the front, and no chart is nearer to another than the padding."""
    vertices, faces = decimate(*meshed(lambda x, y, z: torch.minimum(ball(x, y, z), ball(x, y, z, 0.7, 0.4))), 5000)
    corners = unwrap(vertices, faces, size)
    assert corners.shape == (5000, 3, 2)
    assert 0 < corners.min() < corners.max() < 1
    pixels = texel_corners(corners, size)
    a, b, c = corners.double().unbind(1)
    assert ((b - a)[:, 0] * (c - a)[:, 1] > (b - a)[:, 1] * (c - a)[:, 0]).all()
    # Faces that share an edge of the map are one chart.
    _, names = corners.view(-1, 2).unique(dim=0, return_inverse=True)
    _, chart = components(names.view(-1, 3), int(names.max()) + 1)
    chart = chart[names.view(-1, 3)[:, 0]]
    assert chart.max() > 1
    found = rasterize(pixels, None, size)
    label = torch.where(found >= 0, chart[found.clamp(min=0)].float(), -1)
    radius = max(2, size // 512) // 2
    largest = F.max_pool2d(label[None, None], 2 * radius + 1, 1, radius)
    nothing = torch.where(label >= 0, -label, -torch.inf)
    smallest = -F.max_pool2d(nothing[None, None], 2 * radius + 1, 1, radius)
    assert ((largest == smallest) | (largest < 0)).all()


def test_charts_that_do_not_fit():
    vertices, faces = meshed(ball)
    with pytest.raises(LGMError, match="larger"):
        unwrap(vertices, faces, 8)


def test_gaps_take_the_colour_of_what_is_around_them():
    texture = torch.zeros(64, 64, 4)
    texture[10:20, 10:20] = torch.tensor([1.0, 0, 0, 1])
    texture[40:50, 40:50] = torch.tensor([0.0, 0, 1, 1])
    filled = fill_gaps(texture)
    assert (filled[10:20, 10:20] == torch.tensor([1.0, 0, 0])).all()
    torch.testing.assert_close(filled[8:22, 8:22, 0], torch.ones(14, 14))
    torch.testing.assert_close(filled.sum(-1), torch.ones(64, 64))  # nothing but red and blue anywhere


class OfFloats(TorchDispatchMode):
    """Lets no product of integer matrices through: CUDA has none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "mv", "bmm", "addmm", "addmv", "dot"):
            assert all(a.is_floating_point() for a in args if isinstance(a, torch.Tensor)), f"{func} of integers"
        return func(*args, **(kwargs or {}))


def test_no_integers_are_multiplied_as_matrices():
    with OfFloats(), pytest.raises(AssertionError, match="of integers"):
        SIDES @ SIDES[0]
    vertices, faces = meshed(ball)
    with OfFloats():
        make_quads(*decimate(vertices, faces, 400))
