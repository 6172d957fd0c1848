"""core/formats/splat_files.py: every format there and back, other programs' files, and what is not one."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import time
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import webp
from packed_files import COEFFICIENTS, gaussians_of, ksplat_file, spz_file
from test_ply import build, random_gaussians

from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats import compressed_ply, gltf_splats, sog, spz
from lgm_blender.core.formats.checks import unpack_limit
from lgm_blender.core.formats.ply import PROPERTIES, read_ply, write_ply
from lgm_blender.core.formats.splat_files import (
    FORMATS,
    WRITTEN,
    encode_splats,
    format_of,
    losses,
    read_splat_file,
    write_splat_file,
)
from lgm_blender.core.gaussians import Gaussians, joined, rotation_matrices

# What a format rounds: positions (of an extent of 2), opacities, log scales, colours, harmonics, covariance (share).
ERRORS = {
    "ply": (0, 1e-6, 1e-4, 1e-6, 0, 1e-5),
    "compressed": (1e-3, 2e-3, 3e-3, 2e-3, 0.016, 0.02),
    "spz": (1e-6, 2e-3, 0.032, 4e-3, 0.004, 0.15),
    "sog": (1e-4, 2e-3, 0.03, 4e-3, 0.02, 0.2),
    "glb": (0, 0, 1e-6, 1e-6, 0, 1e-6),
    "splat": (0, 2e-3, 1e-6, 2e-3, 0, 0.1),
}


def covariances(gaussians: Gaussians) -> np.ndarray:
    axes = rotation_matrices(gaussians.rotations) * gaussians.scales[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def reordered(name: str, gaussians: Gaussians) -> Gaussians:
    """As these formats order them."""
    if name in ("compressed", "sog"):
        return gaussians.select(compressed_ply.morton_order(gaussians.positions))
    return gaussians


def assert_close(name: str, read: Gaussians, wanted: Gaussians, slack: float = 1e-9) -> None:
    position, opacity, scale, color, harmonics, covariance = ERRORS[name]
    np.testing.assert_allclose(read.positions, wanted.positions, atol=position + slack)
    np.testing.assert_allclose(read.opacities, wanted.opacities, atol=opacity + slack)
    np.testing.assert_allclose(np.log(read.scales), np.log(wanted.scales), atol=scale + slack)
    np.testing.assert_allclose(read.colors, wanted.colors, atol=color + slack)
    np.testing.assert_allclose(read.harmonics, wanted.harmonics, atol=harmonics + slack)
    difference = np.abs(covariances(read) - covariances(wanted)).max(axis=(1, 2))
    assert (difference / np.abs(covariances(wanted)).max(axis=(1, 2))).max() <= covariance + slack


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("name", WRITTEN)
def test_round_trip(tmp_path, name, coefficients):
    gaussians, warnings = gaussians_of(coefficients), []
    path = tmp_path / f"žluťoučký 亀{FORMATS[name].suffix}"
    write_splat_file(path, gaussians, warnings.append, webp=webp)
    read = read_splat_file(path, warnings.append, webp=webp)
    held = min(coefficients, COEFFICIENTS[FORMATS[name].degree])
    assert bool(warnings) == (held < coefficients)
    wanted = reordered(name, gaussians)
    assert_close(name, read, Gaussians(*columns(wanted), wanted.harmonics[:, :held]))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    # What was read once is rounded already: a second time next to nothing changes.
    write_splat_file(path, read, webp=webp)
    again = read_splat_file(path, webp=webp)
    if name not in ("sog", "compressed"):  # these round within ranges that they choose anew
        np.testing.assert_allclose(again.positions, read.positions, atol=1e-6)
        np.testing.assert_allclose(again.colors, read.colors, atol=1e-6)
        np.testing.assert_allclose(again.harmonics, read.harmonics, atol=1e-6)


def columns(gaussians: Gaussians) -> list[np.ndarray]:
    return [getattr(gaussians, name) for name in ("positions", "opacities", "scales", "rotations", "colors")]


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257])
@pytest.mark.parametrize("name", WRITTEN)
def test_any_number(tmp_path, name, count):
    gaussians = gaussians_of(3, count)
    path = tmp_path / f"a{FORMATS[name].suffix}"
    write_splat_file(path, gaussians, webp=webp)
    read = read_splat_file(path, webp=webp)
    np.testing.assert_allclose(read.positions, reordered(name, gaussians).positions, atol=1e-3)


@pytest.mark.parametrize("name", WRITTEN)
def test_far_and_tiny_scenes(tmp_path, name):
    plain = gaussians_of(0, 200)
    for factor in (1e-3, 1e3):
        scaled = Gaussians(plain.positions * factor, plain.opacities, plain.scales * factor, *columns(plain)[3:])
        path = tmp_path / f"a{FORMATS[name].suffix}"
        write_splat_file(path, scaled, webp=webp)
        read, wanted = read_splat_file(path, webp=webp), reordered(name, scaled)
        share = 2e-2 if name in ("sog", "compressed") else 1e-6  # SOG's logarithm is finest at the origin
        np.testing.assert_allclose(read.positions, wanted.positions, atol=share * factor + 1e-7)
        if factor > 1:  # SPZ's scales end at 4.5e-5
            np.testing.assert_allclose(np.log(read.scales), np.log(wanted.scales), atol=0.04)


@pytest.mark.parametrize("name", [name for name in WRITTEN if FORMATS[name].colors == (-np.inf, np.inf)])
def test_colours_beyond_0_and_1_survive(tmp_path, name):
    """Case F10: f_dc of 3.0 is a colour of 1.35."""
    plain = gaussians_of(0)
    colors = np.float32(0.5 + 0.28209479 * np.random.default_rng(3).uniform(-4, 4, (len(plain), 3)))
    wanted = reordered(name, Gaussians(*columns(plain)[:4], colors))
    path, warnings = tmp_path / f"a{FORMATS[name].suffix}", []
    write_splat_file(path, wanted, warnings.append, webp=webp)
    read = read_splat_file(path, warnings.append, webp=webp)
    np.testing.assert_allclose(read.colors, wanted.colors, atol=0.012)
    assert not warnings


@pytest.mark.parametrize(("name", "sentence"), [("spz", "colours from -0.44 to 1.44"), ("splat", "colours from 0.00")])
def test_it_is_said_what_a_format_can_not_hold(tmp_path, name, sentence):
    plain, warnings = gaussians_of(15), []
    plain.colors[:7] = 2.5
    plain.harmonics[:5, 2] = 3
    path = tmp_path / f"a{FORMATS[name].suffix}"
    write_splat_file(path, plain, warnings.append)
    assert any(sentence in warning and " 7 Gaussians were clipped" in warning for warning in warnings)
    assert any("harmonics" in warning for warning in warnings)
    assert read_splat_file(path).colors.max() == pytest.approx(FORMATS[name].colors[1], abs=1e-3)


def test_nothing_is_said_where_nothing_is_lost():
    plain = gaussians_of(15)
    assert [losses(plain, FORMATS[name]) for name in ("ply", "glb", "sog", "compressed", "spz")] == [[]] * 5


# ------------------------------------------------------------------------------------------------------------- PLY


def test_a_ply_of_degree_3_has_the_published_order(tmp_path):
    """f_rest_0 to 14 are red's, 15 to 29 green's, 30 to 44 blue's."""
    gaussians = gaussians_of(15, 5)
    write_ply(tmp_path / "a.ply", gaussians)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    names = [line.split()[-1] for line in header.decode().splitlines() if line.startswith("property")]
    rows = np.frombuffer(body, "<f4").reshape(5, -1)
    for channel in range(3):
        for index in range(15):
            column = rows[:, names.index(f"f_rest_{15 * channel + index}")]
            np.testing.assert_array_equal(column, gaussians.harmonics[:, index, channel])


@pytest.mark.parametrize("coefficients", [3, 8])
def test_padding_keeps_the_harmonics_there_are(tmp_path, coefficients):
    gaussians = gaussians_of(coefficients)
    write_splat_file(tmp_path / "a.ply", gaussians, pad=True)
    read = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(read.harmonics[:, :coefficients], gaussians.harmonics)
    assert read.harmonics.shape[1] == 15
    assert not read.harmonics[:, coefficients:].any()


def test_harmonics_of_degree_4_are_cut_and_it_is_said(tmp_path):
    gaussians, warnings = gaussians_of(15, 4), []
    names = [f"f_rest_{i}" for i in range(72)]
    data = build(gaussians, extra=tuple(names))  # of bytes: 7 each
    table = np.frombuffer(data.split(b"end_header\n")[1], np.uint8).reshape(4, -1).copy()
    table[:, -72:] = np.arange(72)
    (tmp_path / "a.ply").write_bytes(data.split(b"end_header\n")[0] + b"end_header\n" + table.tobytes())
    read = read_ply(tmp_path / "a.ply", warnings.append)
    np.testing.assert_array_equal(read.harmonics[0].T, [np.arange(15), np.arange(24, 39), np.arange(48, 63)])
    assert ["above degree 3" in warning for warning in warnings] == [True]


def test_harmonics_of_no_degree_are_left_out_and_it_is_said(tmp_path):
    warnings = []
    (tmp_path / "a.ply").write_bytes(build(gaussians_of(0, 4), extra=tuple(f"f_rest_{i}" for i in range(7))))
    assert read_ply(tmp_path / "a.ply", warnings.append).harmonics.shape == (4, 0, 3)
    assert ["number is that of no degree" in warning for warning in warnings] == [True]


@pytest.mark.parametrize("logarithm", [60, 88, 300])
def test_absurd_scales_are_left_out(tmp_path, logarithm):
    """Case F11: 3 of 2,500 Gaussians whose log scale is 88."""
    gaussians, warnings = random_gaussians(2500), []
    data = bytearray(build(gaussians, types="double"))
    offset = data.index(b"end_header\n") + len(b"end_header\n") + 8 * PROPERTIES.index("scale_0")
    for row in range(3):
        data[offset + 112 * row : offset + 112 * row + 8] = struct.pack("<d", logarithm)
    (tmp_path / "a.ply").write_bytes(data)
    read = read_ply(tmp_path / "a.ply", warnings.append)
    assert len(read) == 2497
    assert ["3 of 2,500 Gaussians" in warning and "left out" in warning for warning in warnings] == [True]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_sky_and_a_lone_gaussian_stay(tmp_path, count):
    gaussians, warnings = random_gaussians(count), []
    gaussians.scales[0] = 90
    gaussians.positions[0] = 400
    write_ply(tmp_path / "a.ply", gaussians)
    assert len(read_ply(tmp_path / "a.ply", warnings.append)) == count
    assert not warnings


def test_what_is_far_away_is_left_out(tmp_path):
    gaussians, warnings = random_gaussians(100), []
    gaussians.positions[5] = 1e30
    write_ply(tmp_path / "a.ply", gaussians)
    assert len(read_ply(tmp_path / "a.ply", warnings.append)) == 99
    assert len(warnings) == 1


def test_values_that_look_activated_are_named(tmp_path):
    """Case F11: opacities and scales that were written as they are, not as logits and logarithms."""
    gaussians, warnings = random_gaussians(200), []
    data = build(gaussians)
    start = data.index(b"end_header\n") + len(b"end_header\n")
    table = np.frombuffer(data[start:], "<f4").reshape(200, -1).copy()
    table[:, 6], table[:, 7:10] = gaussians.opacities, gaussians.scales
    (tmp_path / "a.ply").write_bytes(data[:start] + table.tobytes())
    assert len(read_ply(tmp_path / "a.ply", warnings.append)) == 200
    assert ["look activated already" in warning for warning in warnings] == [True]
    warnings.clear()
    (tmp_path / "a.ply").write_bytes(data)
    read_ply(tmp_path / "a.ply", warnings.append)
    assert not warnings


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([name for name in PROPERTIES if name != "scale_2"], "2D Gaussians (2DGS)"),
        ([*(name for name in PROPERTIES if "f_dc" not in name), "red", "green", "blue"], "plain red, green and blue"),
        (["x", "y", "z", "red", "green", "blue"], "a point cloud or a mesh"),
    ],
)
def test_another_kind_of_ply_is_named(tmp_path, names, sentence):
    properties = "".join(f"property float {name}\n" for name in names)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex 2\n{properties}end_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + bytes(8 * len(names)))
    with pytest.raises(LGMError) as caught:
        read_ply(tmp_path / "a.ply")
    assert sentence in caught.value.message
    assert "not of 3D Gaussians" in caught.value.message


def test_microsofts_not_a_number_and_old_macs_line_ends(tmp_path):
    gaussians, warnings = random_gaussians(20), []
    text = build(gaussians, "ascii")
    start = text.index(b"end_header\n") + len(b"end_header\n")
    for wrong in (b"-nan(ind)", b"1.#QNAN", b"-1.#IND"):
        first = text[start:].split(b" ", 1)[0]
        (tmp_path / "a.ply").write_bytes(text[:start] + wrong + text[start + len(first) :])
        assert len(read_ply(tmp_path / "a.ply", warnings.append)) == 19
    (tmp_path / "a.ply").write_bytes(text.replace(b"\n", b"\r"))
    assert len(read_ply(tmp_path / "a.ply", warnings.append)) == 20


def test_a_compressed_ply_without_ranges_of_colours(tmp_path):
    """As SuperSplat wrote it until 2024: 12 values a chunk."""
    data = compressed_ply.encode(gaussians_of(0, 256))
    header, body = data.split(b"end_header\n", 1)
    for end in ("min", "max"):
        for channel in "rgb":
            header = header.replace(f"property float {end}_{channel}\n".encode(), b"")
    path = tmp_path / "a.ply"
    path.write_bytes(header + b"end_header\n" + body[:48] + body[72:])
    colors = np.frombuffer(body, "<u4", offset=72).reshape(256, 4)[:, 3]
    np.testing.assert_allclose(read_splat_file(path).colors[:, 0], (colors >> 24) / 255, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- SPZ


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_all_versions_of_spz(tmp_path, version, coefficients):
    gaussians = gaussians_of(coefficients)
    (tmp_path / "a.spz").write_bytes(spz_file(gaussians, version))
    read = read_splat_file(tmp_path / "a.spz")
    np.testing.assert_allclose(read.positions, gaussians.positions, atol=5e-4 if version == 1 else 1.3e-4)
    np.testing.assert_allclose(read.opacities, gaussians.opacities, atol=2e-3)
    np.testing.assert_allclose(np.log(read.scales), np.log(gaussians.scales), atol=0.032)
    np.testing.assert_allclose(read.colors, gaussians.colors, atol=4e-3)
    np.testing.assert_allclose(read.harmonics, gaussians.harmonics, atol=0.004)
    same = np.abs((read.rotations * gaussians.rotations).sum(axis=1))
    assert same.min() > (0.9 if version < 3 else 0.99999)  # where w is small, version 2 knows little of it


def test_other_versions_of_spz_are_named(tmp_path):
    data = bytearray(gzip.decompress(spz_file(gaussians_of(0), 3)))
    data[4] = 9
    (tmp_path / "a.spz").write_bytes(gzip.compress(data))
    with pytest.raises(LGMError, match="version 9"):
        read_splat_file(tmp_path / "a.spz")


def test_extensions_of_spz_are_passed_over(tmp_path):
    gaussians = gaussians_of(3)
    data = spz_file(gaussians, 4)
    extension = struct.pack("<II", 7, 4) + b"abcd"
    moved = data[:16] + struct.pack("<I", 32 + len(extension)) + data[20:32] + extension + data[32:]
    (tmp_path / "a.spz").write_bytes(moved)
    assert len(read_splat_file(tmp_path / "a.spz")) == 300


def test_bombs_are_refused_before_they_go_off(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    count = 400_000_000
    header = struct.pack("<4sIIBBBB", b"NGSP", 3, count, 3, 12, 0, 0)
    bombs = {"gzip.spz": gzip.compress(header + bytes(200_000_000), 1)}
    packed = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    sizes = [9, 1, 3, 3, 4]
    table = b"".join(struct.pack("<QQ", len(packed), count * size) for size in sizes)
    bombs["zstd.spz"] = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, count, 0, 12, 0, 5, 32) + table + packed * 5
    table = b"".join(struct.pack("<QQ", len(packed), 100 * size) for size in sizes)  # more than it says
    bombs["more.spz"] = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 100, 0, 12, 0, 5, 32) + table + packed * 5
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", bytes(200_000_000))
    bombs["zip.sog"] = buffer.getvalue()
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
        assert len(data) < 1_000_000
        tracemalloc.start()
        with pytest.raises(LGMError):
            read_splat_file(tmp_path / name, webp=webp)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2.5 * unpack_limit(len(data)), name


# ---------------------------------------------------------------------------------------------- .splat and .ksplat


def test_a_splat_file_byte_by_byte(tmp_path):
    row = struct.pack("<6f8B", 1, 2, 3, 0.1, 0.2, 0.3, 255, 0, 51, 102, 128, 128, 256 - 1, 128)
    (tmp_path / "a.splat").write_bytes(row)
    read = read_splat_file(tmp_path / "a.splat")
    np.testing.assert_array_equal(read.positions, [[1, 2, 3]])
    np.testing.assert_allclose(read.scales, [[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(read.colors, [[1, 0, 0.2]])
    np.testing.assert_allclose(read.opacities, [0.4])
    np.testing.assert_allclose(read.rotations, [[0, 0, 1, 0]])  # w x y z


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_all_levels_of_ksplat(tmp_path, level, coefficients):
    gaussians = gaussians_of(coefficients)
    (tmp_path / "a.ksplat").write_bytes(ksplat_file(gaussians, level))
    read = read_splat_file(tmp_path / "a.ksplat")
    np.testing.assert_allclose(read.positions, gaussians.positions, atol=1e-4 if level else 0)
    np.testing.assert_allclose(read.scales, gaussians.scales, rtol=1e-3)
    np.testing.assert_allclose(read.colors, gaussians.colors, atol=2e-3)
    np.testing.assert_allclose(read.opacities, gaussians.opacities, atol=2e-3)
    np.testing.assert_allclose(read.rotations, gaussians.rotations, atol=1e-3)
    np.testing.assert_allclose(read.harmonics, gaussians.harmonics, atol=(0, 2e-4, 2.1e-3)[level])


# ------------------------------------------------------------------------------------------------------------- SOG


def test_sog_in_a_folder(tmp_path):
    gaussians = gaussians_of(8)
    zipfile.ZipFile(io.BytesIO(encode_splats("sog", gaussians, webp=webp))).extractall(tmp_path / "scan")
    for path in (tmp_path / "scan", tmp_path / "scan" / "meta.json"):
        assert_close("sog", read_splat_file(path, webp=webp), reordered("sog", gaussians))


def test_sog_without_pictures_is_a_sentence(tmp_path):
    (tmp_path / "a.sog").write_bytes(encode_splats("sog", gaussians_of(0), webp=webp))
    with pytest.raises(LGMError, match="nothing reads WebP"):
        read_splat_file(tmp_path / "a.sog")
    with pytest.raises(LGMError, match="nothing writes WebP"):
        write_splat_file(tmp_path / "b.sog", gaussians_of(0))


def test_meta_json_names_no_file_elsewhere(tmp_path):
    zipfile.ZipFile(io.BytesIO(encode_splats("sog", gaussians_of(0), webp=webp))).extractall(tmp_path / "scan")
    (tmp_path / "scan" / "sh0.webp").rename(tmp_path / "sh0.webp")
    meta = json.loads((tmp_path / "scan" / "meta.json").read_text())
    meta["sh0"]["files"] = ["../sh0.webp"]
    (tmp_path / "scan" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(LGMError, match="damaged"):
        read_splat_file(tmp_path / "scan", webp=webp)


@pytest.mark.parametrize("count", [1, 5, 1000, 70_000])
def test_the_palette_stands_for_its_vectors(count):
    values = np.random.default_rng(0).normal(size=(count, 9)).astype(np.float32)
    labels, centroids = sog.palette(values)
    assert labels.max() < len(centroids) <= 65_536
    error = np.square(centroids[labels] - values).mean()
    assert error < (1e-12 if count < 3 else 0.35)  # of variance 1
    assert len(centroids) > count / 2.2


def test_centroids_follow_clusters():
    centers = np.random.default_rng(1).normal(size=(64, 45)).astype(np.float32) * 4
    own = np.random.default_rng(2).integers(0, 64, 20_000)
    values = centers[own] + np.random.default_rng(3).normal(size=(20_000, 45)).astype(np.float32) * 0.01
    labels, centroids = sog.palette(values)
    assert np.square(centroids[labels] - values).mean() < 0.01


# ------------------------------------------------------------------------------------------------------------ glTF


def gltf(document: dict, binary: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A)
    return head + text + struct.pack("<II", len(binary), 0x004E4942) + binary


def parts_of_glb(data: bytes) -> tuple[dict, bytes]:
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def test_gltf_places_what_its_nodes_say(tmp_path):
    gaussians = gaussians_of(0)
    document, binary = parts_of_glb(gltf_splats.encode(gaussians))
    half = 0.5**0.5
    document["nodes"] = [
        {"children": [1, 2], "translation": [1, 0, 0]},
        {"mesh": 0, "scale": [2, 2, 2], "rotation": [half, 0, 0, half]},
        {"mesh": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 5, 0, 1]},
    ]
    (tmp_path / "a.glb").write_bytes(gltf(document, binary))
    read = read_splat_file(tmp_path / "a.glb")
    assert len(read) == 600
    moved = gaussians.positions + np.float32([1, 5, 0])
    turned = gaussians.positions[:, [0, 2, 1]] * [2, -2, 2] + [1, 0, 0]
    np.testing.assert_allclose(np.sort(read.positions, 0), np.sort(np.concatenate([moved, turned]), 0), atol=1e-5)


def test_gltf_with_its_numbers_beside_it(tmp_path):
    gaussians = gaussians_of(3)
    document, binary = parts_of_glb(gltf_splats.encode(gaussians))
    document["buffers"][0]["uri"] = "more.bin"
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    with pytest.raises(LGMError, match=r"more\.bin"):
        read_splat_file(tmp_path / "a.gltf")
    (tmp_path / "more.bin").write_bytes(binary)
    assert_close("glb", read_splat_file(tmp_path / "a.gltf"), gaussians)


def test_spz_within_gltf(tmp_path):
    gaussians = gaussians_of(3)
    packed = spz.encode(gaussians)
    document, _ = parts_of_glb(gltf_splats.encode(gaussians))
    document["bufferViews"] = [{"buffer": 0, "byteLength": len(packed)}]
    extension = {"extensions": {"KHR_gaussian_splatting_compression_spz_2": {"bufferView": 0}}}
    document["meshes"][0]["primitives"][0]["extensions"] = {"KHR_gaussian_splatting": extension}
    (tmp_path / "a.glb").write_bytes(gltf(document, packed))
    assert_close("spz", read_splat_file(tmp_path / "a.glb"), gaussians)


def test_a_mesh_in_gltf_is_named(tmp_path):
    from glb import box, piece, write_glb

    write_glb(tmp_path / "a.glb", piece(*box((0, 0, 0), (1, 1, 1))))
    with pytest.raises(LGMError, match="glTF without splats"):
        read_splat_file(tmp_path / "a.glb")


# ------------------------------------------------------------------------------------------------- what is not a file

WHOLE = {name: encode_splats(name, gaussians_of(3, 60), webp=webp) for name in WRITTEN}
WHOLE["ksplat"] = ksplat_file(gaussians_of(3, 150), 1)
WHOLE["spz4"] = spz_file(gaussians_of(3, 60), 4)
ENDINGS = {name: each.suffix for name, each in FORMATS.items()} | {"spz4": ".spz"}


@pytest.mark.parametrize("name", WHOLE)
def test_any_cut_is_answered(tmp_path, name):
    data = WHOLE[name]
    path = tmp_path / f"a{ENDINGS[name]}"
    for end in range(0, len(data) - 1, max(7, len(data) // 150)):
        if name == "splat" and end and end % 32 == 0:
            continue  # has no header: it holds fewer
        path.write_bytes(data[:end])
        with pytest.raises(LGMError):
            read_splat_file(path, webp=webp)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", WHOLE)
def test_any_damage_is_answered_or_read(tmp_path, name, seed):
    """Bytes changed at random, most of them in the header: an LGMError or Gaussians, soon, and nothing huge."""
    random, path = np.random.default_rng(seed), tmp_path / f"a{ENDINGS[name]}"
    began = time.perf_counter()
    for _ in range(25):
        data = bytearray(WHOLE[name])
        for _ in range(random.integers(1, 6)):
            reach = len(data) if random.random() < 0.3 else min(len(data), 900)
            data[random.integers(0, reach)] = random.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(LGMError):
            read = read_splat_file(path, webp=webp)
            assert 0 < len(read) <= 150
            assert np.isfinite(read.to_array()).all()
    assert time.perf_counter() - began < 10


def test_what_is_random_is_read_without_a_warning_of_numpys(tmp_path):
    (tmp_path / "vessel.splat").write_bytes(np.random.default_rng(0).integers(0, 255, 32 * 20, np.uint8).tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < len(read_splat_file(tmp_path / "vessel.splat")) <= 20


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.splat", b"", "empty file"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "no file of splats"),
        ("a.txt", b"hello", "no file of splats"),
        ("a.json", b'{"a": 1}', "without splats"),
        ("a.gltf", b'{"a": ' + b"[" * 100_000, "damaged"),
        ("meta.json", b'{"a": ' + b"[" * 100_000, "damaged"),
        ("meta.json", b'{"means": {}}', "version 1"),
        ("meta.json", b'{"version": 2, "count": 1000000000000}', "damaged"),
        ("a.ply", WHOLE["compressed"].replace(b"vertex 60", b"vertex 4000000000"), "don't fit"),
        (
            "a.ply",
            WHOLE["compressed"].replace(b"vertex 60", b"vertex 4000000000").replace(b"chunk 1", b"chunk 15625000"),
            "don't fit",
        ),
        (
            "a.ply",
            WHOLE["compressed"]
            .replace(b"vertex 60", b"vertex 4000000000")
            .replace(b"sh 60", b"sh 4000000000")
            .replace(b"chunk 1", b"chunk 15625000"),
            "cut short",
        ),
        ("a.sog", b"PK\x03\x04" + bytes(50), "damaged"),
        ("a.splat", bytes(31), "no multiple of 32"),
        ("a.ksplat", bytes(10), "version 0.1"),
        ("a.ksplat", b"\0\1" + bytes(6000), "no Gaussians"),
        ("a.spz", gzip.compress(b"something else, of more than 16 bytes"), "not an SPZ"),
        ("a.spz", b"\x1f\x8b" + bytes(30), "can't be unpacked"),
        ("a.spz", gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, 0, 0, 12, 0, 0)), "no Gaussians"),
        ("a.spz", gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, 9, 7, 12, 0, 0)), "degree 7"),
        ("a.spz", gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, 2**32 - 1, 0, 12, 0, 0)), "fill the memory"),
    ],
)
def test_answers_what_is_not_a_file_of_splats(tmp_path, name, data, sentence):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LGMError, match=sentence) as caught:
        read_splat_file(tmp_path / name, webp=webp)
    assert str(tmp_path / name) in caught.value.message


def test_no_such_file_and_a_folder(tmp_path):
    with pytest.raises(LGMError, match="There is no file"):
        read_splat_file(tmp_path / "none.spz")
    with pytest.raises(LGMError, match="is a folder"):
        read_splat_file(tmp_path)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "splat"])  # which has nothing to be known by
def test_the_content_counts_and_not_the_name(tmp_path, name):
    (tmp_path / "wrong.splat").write_bytes(WHOLE[name])
    assert len(read_splat_file(tmp_path / "wrong.splat", webp=webp)) == 60


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.ply", "ply"),
        ("a.compressed.ply", "compressed"),
        ("A.SPZ", "spz"),
        ("b/c.x.splat", "splat"),
        ("a.glb", "glb"),
    ],
)
def test_the_suffix_chooses_what_is_written(path, name):
    assert format_of(path).name == name


@pytest.mark.parametrize("path", ["a.ksplat", "a", "a.gltf", "a.obj"])
def test_what_is_not_written_is_a_sentence(path):
    with pytest.raises(LGMError, match=r"Choose one of \.ply, "):
        format_of(path)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a.sog").write_bytes(b"old")
    with pytest.raises(LGMError):
        write_splat_file(tmp_path / "a.sog", gaussians_of(0))
    with pytest.raises(LGMError, match="no Gaussian"):
        write_splat_file(tmp_path / "a.sog", random_gaussians(0), webp=webp)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.sog": b"old"}


def test_what_is_not_finite_is_not_written(tmp_path):
    gaussians = gaussians_of(3, 20)
    gaussians.positions[4, 1] = np.nan
    for name in WRITTEN:
        path = tmp_path / f"a{FORMATS[name].suffix}"
        write_splat_file(path, gaussians, webp=webp)
        assert len(read_splat_file(path, webp=webp)) == 19


def test_joined_keeps_all_and_pads_harmonics():
    a, b = gaussians_of(3, 4), gaussians_of(15, 5)
    both = joined([a, b])
    assert len(both) == 9
    np.testing.assert_array_equal(both.harmonics[:4, :3], a.harmonics)
    np.testing.assert_array_equal(both.harmonics[4:], b.harmonics)
    assert not both.harmonics[:4, 3:].any()
    np.testing.assert_array_equal(both.to_array(), np.concatenate([a.to_array(), b.to_array()]))


def test_suffixes_are_of_one_format_each():
    suffixes = [suffix for each in FORMATS.values() for suffix in each.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert set(WRITTEN) == {"ply", "compressed", "spz", "sog", "glb", "splat"}
