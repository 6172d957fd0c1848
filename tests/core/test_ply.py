"""core/formats/ply.py against the published code's file, and against every file that is not one."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from tensors import read_safetensors

from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.ply import PROPERTIES, read_ply, write_ply
from lgm_blender.core.gaussians import Gaussians


def random_gaussians(count: int = 50, seed: int = 0) -> Gaussians:
    r = np.random.default_rng(seed)
    rotations = r.standard_normal((count, 4))
    return Gaussians(
        positions=r.uniform(-1, 1, (count, 3)),
        opacities=r.uniform(0.01, 0.99, count),
        scales=r.uniform(1e-3, 0.1, (count, 3)),
        rotations=rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        colors=r.uniform(0, 1, (count, 3)),
    )


def assert_same(a: Gaussians, b: Gaussians, tolerance: float = 1e-6):
    np.testing.assert_allclose(a.to_array(), b.to_array(), atol=tolerance, rtol=1e-5)


def stored(path: Path) -> tuple[bytes, np.ndarray]:
    """Header and float32 rows of a file with one element of float properties."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    return header, np.frombuffer(body, "<f4").reshape(-1, header.count(b"property"))


def build(
    gaussians: Gaussians,
    format: str = "binary_little_endian",
    types: str = "float",
    order=PROPERTIES,
    extra: tuple[str, ...] = (),
    before: bytes = b"",
    before_header: str = "",
    after_header: str = "",
    after: bytes = b"",
    newline: str = "\n",
) -> bytes:
    """A PLY written independently of the module under test."""
    opacities = gaussians.opacities.astype(np.float64)
    values = dict(zip(PROPERTIES[0:3], gaussians.positions.T, strict=True))
    values |= dict(zip(PROPERTIES[3:6], gaussians.f_dc.T, strict=True))
    values["opacity"] = np.log(opacities / (1 - opacities))
    values |= dict(zip(PROPERTIES[7:10], np.log(gaussians.scales.T), strict=True))
    values |= dict(zip(PROPERTIES[10:14], gaussians.rotations.T, strict=True))
    names = [*order, *extra]
    lines = ["ply", f"format {format} 1.0", "comment made by a test", before_header.strip()]
    lines += [f"element vertex {len(gaussians)}"]
    lines += [f"property {'uchar' if name in extra else types} {name}" for name in names]
    lines += [after_header.strip(), "end_header"]
    header = "".join(line + newline for line in lines if line).encode()
    if format == "ascii":
        rows = zip(*(np.full(len(gaussians), 7) if name in extra else values[name] for name in names), strict=True)
        return header + before + "".join(" ".join(f"{v:.9g}" for v in row) + "\n" for row in rows).encode() + after
    mark = ">" if "big" in format else "<"
    code = {"float": "f4", "double": "f8"}[types]
    table = np.zeros(len(gaussians), [(name, "u1" if name in extra else mark + code) for name in names])
    for name in order:
        table[name] = values[name]
    return header + before + table.tobytes() + after


def test_is_the_published_file(golden, tmp_path):
    array = read_safetensors(golden / "lgm.safetensors")["gaussians"][0]
    write_ply(tmp_path / "a.ply", Gaussians.from_array(array).prune())

    header, rows = stored(tmp_path / "a.ply")
    expected_header, expected = stored(golden / "lgm_rows.ply")
    assert header == expected_header  # which counts all of them
    assert f"vertex {len(rows)}" in header.decode()
    rows = rows[::8]
    assert rows.shape == expected.shape
    exact = [i for i, name in enumerate(PROPERTIES) if not name.startswith(("opacity", "scale"))]
    np.testing.assert_array_equal(rows[:, exact], expected[:, exact])
    # Logarithms may differ in the last bit between torch builds.
    np.testing.assert_array_max_ulp(rows, expected, maxulp=2)


def test_round_trip_and_nothing_else_in_the_folder(tmp_path):
    gaussians = random_gaussians(500)
    write_ply(tmp_path / "a.ply", gaussians)
    assert_same(read_ply(tmp_path / "a.ply"), gaussians)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_padding_for_importers_that_insist(tmp_path):
    gaussians = random_gaussians()
    write_ply(tmp_path / "a.ply", gaussians, sh_degree=3, normals=True)
    header, rows = stored(tmp_path / "a.ply")
    names = [line.split()[-1] for line in header.decode().splitlines() if line.startswith("property")]
    rest = [f"f_rest_{i}" for i in range(45)]
    assert names == ["x", "y", "z", "nx", "ny", "nz", *PROPERTIES[3:6], *rest, *PROPERTIES[6:]]
    assert not rows[:, 3:6].any()
    assert not rows[:, 9:54].any()
    assert_same(read_ply(tmp_path / "a.ply"), gaussians)


def test_extreme_opacities_and_scales_are_finite(tmp_path):
    gaussians = random_gaussians(3)
    gaussians.opacities[:] = [0, 1, 0.5]
    gaussians.scales[:] = [[0, 0, 0], [1e-12, 1, 5], [0.1, 0.1, 0.1]]
    write_ply(tmp_path / "a.ply", gaussians)
    assert np.isfinite(stored(tmp_path / "a.ply")[1]).all()
    back = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(back.opacities, [0, 1, 0.5], atol=1e-7)
    np.testing.assert_allclose(back.scales, gaussians.scales, atol=2e-8, rtol=1e-6)
    assert (back.scales > 0).all()


def test_refuses_to_write_what_is_not_finite(tmp_path):
    gaussians = random_gaussians(3)
    gaussians.positions[1, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        write_ply(tmp_path / "a.ply", gaussians)
    with pytest.raises(ValueError, match="at least one"):
        write_ply(tmp_path / "a.ply", random_gaussians(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("types", ["float", "double"])
def test_reads_any_form(tmp_path, format, types):
    gaussians = random_gaussians()
    path = tmp_path / "splats with spaces, żółw 亀.ply"
    path.write_bytes(build(gaussians, format, types, order=PROPERTIES[::-1], extra=("red", "label")))
    assert_same(read_ply(path), gaussians, 1e-5)


def test_reads_other_elements_around_the_vertices(tmp_path):
    gaussians = random_gaussians()
    path = tmp_path / "a.ply"
    path.write_bytes(
        build(
            gaussians,
            before_header="element camera 2\nproperty double fov\nproperty uchar id",
            before=bytes(18),
            after_header="element face 1\nproperty list uchar int vertex_indices",
            after=bytes([3, *[0] * 12]),
        )
    )
    assert_same(read_ply(path), gaussians)

    lists = struct.pack("<B3iBi", 3, 1, 2, 3, 1, 9)
    path.write_bytes(build(gaussians, before_header="element face 2\nproperty list uchar int v", before=lists))
    assert_same(read_ply(path), gaussians)

    path.write_bytes(
        build(gaussians, "ascii", before_header="element face 2\nproperty list uchar int v", before=b"3 1 2 3\n1 9\n")
    )
    assert_same(read_ply(path), gaussians, 1e-5)


def test_reads_windows_line_ends(tmp_path):
    gaussians = random_gaussians()
    for format in ("ascii", "binary_little_endian"):
        (tmp_path / "a.ply").write_bytes(build(gaussians, format, newline="\r\n"))
        assert_same(read_ply(tmp_path / "a.ply"), gaussians, 1e-5)


def test_normalises_quaternions_and_keeps_colours(tmp_path):
    gaussians = random_gaussians(3)
    long = Gaussians(
        gaussians.positions,
        gaussians.opacities,
        gaussians.scales,
        gaussians.rotations * np.float32([[7], [1e-3], [0]]),
        np.float32([[2, -1, 0.5]] * 3),
    )
    (tmp_path / "a.ply").write_bytes(build(long))
    back = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(back.rotations[:2], gaussians.rotations[:2], atol=1e-6)
    np.testing.assert_array_equal(back.rotations[2], [1, 0, 0, 0])
    np.testing.assert_allclose(back.colors, [[2, -1, 0.5]] * 3, atol=1e-6)  # a capture's may lie beyond 0 to 1


def test_leaves_out_what_is_not_finite(tmp_path):
    gaussians = random_gaussians(4)
    gaussians.positions[1, 0] = np.nan
    gaussians.scales[2, 0] = np.inf
    gaussians.rotations[3, 0] = np.inf
    (tmp_path / "a.ply").write_bytes(build(gaussians))
    sentences = []
    assert_same(read_ply(tmp_path / "a.ply", sentences.append), gaussians.select(np.array([0])))
    assert len(sentences) == 1
    assert "3 of 4" in sentences[0]

    (tmp_path / "a.ply").write_bytes(build(gaussians.select(np.array([1, 2]))))
    with pytest.raises(LGMError, match="no Gaussian whose values are all finite"):
        read_ply(tmp_path / "a.ply")


GOOD = build(random_gaussians(20))
ASCII = build(random_gaussians(20), "ascii")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a PLY"),
        (b"plywood is not a file format\n", "not a PLY"),
        (b"ply\n" + b"x" * 100, "no end"),
        (b"ply\nend_header\n", "names no format"),
        (b"ply\nformat binary_middle_endian 1.0\nend_header\n", "can't be understood: 'format binary_middle"),
        (GOOD.replace(b"vertex 20", b"vertex -5"), "can't be understood"),
        (GOOD.replace(b"vertex 20", b"vertex 1e9"), "can't be understood"),
        (GOOD.replace(b"vertex 20", b"vertex " + b"9" * 5000), "can't be understood"),
        (GOOD.replace(b"property float x\n", b"property quaternion x\n"), "can't be understood"),
        (GOOD.replace(b"format binary_little_endian 1.0\n", b""), "can't be understood"),
        (GOOD.replace(b"element vertex", b"element surface"), "no vertices"),
        (build(random_gaussians(0)), "no vertices"),
        (build(random_gaussians(20), order=[p for p in PROPERTIES if p not in ("opacity", "rot_3")]), "opacity, rot_3"),
        (GOOD.replace(b"property float x\n", b"property float packed_position\n"), "damaged compressed PLY"),
        (GOOD.replace(b"property float z\n", b"property float z\nproperty list uchar int i\n"), "lists"),
        (GOOD.replace(b"property float z\n", b"property float z\nproperty float z\n"), "twice"),
        (GOOD[:-1], "cut short"),
        (GOOD.replace(b"vertex 20", b"vertex 21"), "promises 21"),
        (GOOD.replace(b"vertex 20", b"vertex 4000000000000"), "promises 4,000,000,000,000"),
        (GOOD.replace(b"vertex 20", b"vertex " + b"9" * 40), "promises 9,999,"),
        (ASCII.replace(b"vertex 20", b"vertex 4000000000000"), "promises 4,000,000,000,000"),
        (ASCII.replace(b"vertex 20", b"vertex 21"), "promises 21"),
        (ASCII[:-40], "damaged"),
        (ASCII[:-40] + b" seven\n", "damaged"),
        (build(random_gaussians(2), before_header="element m " + "9" * 30 + "\nproperty int a"), "cut short"),
        (build(random_gaussians(2), before_header="element m 999999999999\nproperty list int int a"), "cut short"),
        (build(random_gaussians(2), before_header="element m 1\nproperty list float int a"), "can't be understood"),
    ],
)
def test_answers_what_is_not_a_ply_of_gaussians(tmp_path, data, sentence):
    path = tmp_path / "a.ply"
    path.write_bytes(data)
    began = time.perf_counter()
    with pytest.raises(LGMError) as caught:
        read_ply(path)
    assert sentence in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.kind == "bad_input"
    assert time.perf_counter() - began < 1  # nothing of a promised size was made


def test_no_such_file_and_a_folder(tmp_path):
    with pytest.raises(LGMError, match="There is no file"):
        read_ply(tmp_path / "none.ply")
    with pytest.raises(LGMError, match="is a folder"):
        read_ply(tmp_path)


def test_any_cut_is_answered(tmp_path):
    for end in range(0, len(GOOD) - 1, 7):
        (tmp_path / "a.ply").write_bytes(GOOD[:end])
        with pytest.raises(LGMError):
            read_ply(tmp_path / "a.ply")


def test_is_fast(tmp_path):
    gaussians = random_gaussians(65_536)
    began = time.perf_counter()
    write_ply(tmp_path / "a.ply", gaussians)
    read_ply(tmp_path / "a.ply")
    assert time.perf_counter() - began < 2
