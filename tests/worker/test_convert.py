"""Splats in files: converted, meshed, read by another program. Run: pytest tests/worker/test_convert.py"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webp as plain_webp
from shapes import sphere
from test_splat_files import assert_close, gaussians_of, reordered

from lgm_blender.core.affine import from_upright
from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.core.formats.compressed_ply import morton_order
from lgm_blender.core.formats.ply import read_ply
from lgm_blender.core.formats.splat_files import FORMATS, WRITTEN, read_splat_file, write_splat_file
from lgm_blender.core.gaussians import Gaussians, joined
from lgm_blender.core.messages import ConvertRequest, from_params, to_params
from lgm_blender.worker import meshing, webp
from lgm_blender.worker.__main__ import main
from lgm_blender.worker.convert import SUFFIXES, convert
from lgm_blender.worker.pipeline import Pipeline


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def request_(tmp_path) -> ConvertRequest:
    write_splat_file(tmp_path / "ein Topf.ply", gaussians_of(8))
    return ConvertRequest("c1", str(tmp_path / "ein Topf.ply"), str(tmp_path / "out"), list(WRITTEN))


def test_all_formats_at_once(request_, tmp_path):
    told = []
    result = Pipeline().convert(request_, told.append)
    assert [Path(file).name for file in result.files] == [f"ein Topf{SUFFIXES[name]}" for name in WRITTEN]
    assert files(tmp_path / "out") == sorted(f"ein Topf{SUFFIXES[name]}" for name in WRITTEN)
    assert (result.job, result.gaussians, result.file) == ("c1", 300, result.files[0])
    assert list(dict.fromkeys(p.stage for p in told)) == ["read", "save"]
    for name, file in zip(WRITTEN, result.files, strict=True):
        wanted = reordered(name, gaussians_of(8))
        read = read_splat_file(file, webp=webp)
        if name != "splat":
            assert_close(name, read, wanted, slack=2e-5)
    assert ["Splat holds no spherical harmonics" in warning for warning in result.warnings] == [True]
    json.dumps(to_params(result))
    assert from_params(ConvertRequest, to_params(request_)) == request_


def test_names_are_free_or_replaced(request_, tmp_path):
    request_ = replace(request_, formats=["spz"])
    names = [Path(convert(request_).file).name for _ in range(2)]
    names.append(Path(convert(replace(request_, overwrite=True)).file).name)
    assert names == ["ein Topf.spz", "ein Topf_001.spz", "ein Topf.spz"]
    # What it is made from is never replaced.
    same = replace(request_, output=str(tmp_path), formats=["ply"], overwrite=True)
    assert Path(convert(same).file).name == "ein Topf_001.ply"


@pytest.mark.parametrize("up", ["y", "-y", "z", "-z", "x", "-x"])
def test_upright_and_of_a_size(request_, tmp_path, up):
    tall = gaussians_of(3)
    tall = Gaussians(tall.positions * np.float32([1, 4, 1]), tall.opacities, tall.scales, tall.rotations, tall.colors)
    write_splat_file(tmp_path / "a.splat", from_upright(tall, up))
    result = convert(replace(request_, file=str(tmp_path / "a.splat"), up=up, size=2.0, formats=["ply"]))
    low, high = np.quantile(read_ply(result.file).positions, (0, 1), axis=0)
    assert (high - low).argmax() == 1
    assert (high - low).max() == pytest.approx(2.0, rel=0.02)
    scale = np.median(read_ply(result.file).scales / tall.scales)
    assert scale == pytest.approx(2 / np.ptp(tall.positions[:, 1]), rel=0.02)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"file": "/nowhere/none.spz"}, "bad_input", "There is no file"),
        ({"up": "w"}, "bad_input", "no axis 'w'"),
        ({"formats": ["ksplat"]}, "bad_input", "no format 'ksplat'"),
        ({"formats": []}, "bad_input", "no format chosen"),
        ({"size": -1.0}, "bad_input", "The size must be 0"),
        ({"size": float("nan")}, "bad_input", "The size must be 0"),
        ({"output": ""}, "output", "no output folder"),
    ],
)
def test_what_can_not_be_done_leaves_nothing(request_, tmp_path, change, kind, words):
    with pytest.raises(LGMError, match=words) as caught:
        convert(replace(request_, **change))
    assert caught.value.kind == kind
    assert files(tmp_path) == ["ein Topf.ply"]


def test_cancelled_leaves_nothing(request_, tmp_path):
    with pytest.raises(Cancelled):
        convert(request_, cancelled=lambda: True)
    assert files(tmp_path) == ["ein Topf.ply"]


def test_the_command_line(request_, tmp_path, capsys):
    write_splat_file(tmp_path / "b.compressed.ply", gaussians_of(0))
    (tmp_path / "bad.spz").write_bytes(b"\x1f\x8b")
    inputs = [str(tmp_path / name) for name in ("ein Topf.ply", "bad.spz", "b.compressed.ply")]
    assert main(["convert", *inputs, "--output", str(tmp_path / "out"), "--format", "spz", "ply", "--up=-y"]) == 1
    out, err = capsys.readouterr()
    assert [Path(line).name for line in out.splitlines()] == ["ein Topf.spz", "ein Topf.ply", "b.spz", "b.ply"]
    assert "Error: " in err
    assert "bad.spz" in err
    assert main(["convert", inputs[0], "--output", str(tmp_path / "out"), "--format", "glb", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gaussians"] == 300


@pytest.fixture
def small_meshes(monkeypatch):
    monkeypatch.setitem(meshing.EFFORT, "cpu", (12, 64, 64))


SMALL = ["--faces", "500", "--texture-size", "512", "--device", "cpu", "--formats", "glb"]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_mesh_of_every_format(small_meshes, tmp_path, capsys, name):
    path = tmp_path / f"ball{FORMATS[name].suffix}"
    write_splat_file(path, sphere(2000), webp=webp)
    assert main(["mesh", str(path), "--output", str(tmp_path / "out"), *SMALL]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "ball.glb"


def test_a_scene_is_named_as_one(small_meshes, tmp_path, capsys):
    balls = [sphere(400, center=(3 * i, 0, 3 * k)) for i in range(3) for k in range(3)]
    write_splat_file(tmp_path / "street.spz", joined(balls))
    main(["mesh", str(tmp_path / "street.spz"), "--output", str(tmp_path / "out"), *SMALL])
    assert "this looks like a scene, not an object" in capsys.readouterr().err
    write_splat_file(tmp_path / "ball.spz", sphere(2000))
    main(["mesh", str(tmp_path / "ball.spz"), "--output", str(tmp_path / "out"), *SMALL])
    assert "scene" not in capsys.readouterr().err


def test_pillow_keeps_every_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 52, 4), dtype=np.uint8)
    np.testing.assert_array_equal(webp.decode(webp.encode(pixels)), pixels)
    np.testing.assert_array_equal(plain_webp.decode(webp.encode(pixels)), pixels)


# ------------------------------------------------------------------------------------------- an independent program


def node(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def splat_transform(tmp_path_factory) -> list[str]:
    """PlayCanvas' own program, from npm."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    made = node("npm", "install", "--no-audit", "--no-fund", "@playcanvas/splat-transform@2.7.1", folder=folder)
    if made.returncode:
        pytest.skip(f"npm can't fetch @playcanvas/splat-transform: {made.stderr.strip()[-200:]}")
    return [str(folder / "node_modules/.bin/splat-transform"), "-q", "-w", "-g", "cpu"]


def by_place(gaussians: Gaussians) -> Gaussians:
    """In an order that does not depend on how a program sorts: that of values no format rounds away."""
    return gaussians.select(np.lexsort(np.rint(gaussians.positions.T * 20)))


@pytest.mark.slow
def test_another_program_reads_what_is_written_and_the_other_way_round(splat_transform, tmp_path):
    r = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3), -1).reshape(-1, 3).astype(np.float32) / 4 - 1
    plain = gaussians_of(3, len(grid))
    gaussians = Gaussians(grid[r.permutation(512)], *(getattr(plain, n) for n in ("opacities", "scales", "rotations")),
                          plain.colors, plain.harmonics)  # fmt: skip
    wanted = by_place(gaussians)
    write_splat_file(tmp_path / "source.ply", gaussians)
    # SPZ and glTF have axes of their own, and PLY has none: there it takes y to point down, and turns.
    turns = {"spz": np.diag([1.0, -1, -1]), "glb": np.diag([-1.0, -1, 1])}
    for name in ("ply", "compressed", "spz", "splat", "sog"):
        ours = gaussians if name != "sog" else Gaussians(*(getattr(gaussians, n) for n in NAMES))
        path = tmp_path / f"ours{FORMATS[name].suffix}"
        write_splat_file(path, ours, webp=webp)
        made = node(*splat_transform, str(path), "read.ply", folder=tmp_path)
        assert made.returncode == 0, (name, made.stderr)
        assert_alike(name, by_place(turned(read_ply(tmp_path / "read.ply"), turns.get(name))), wanted)
    for name in ("ply", "compressed", "spz", "glb", "sog"):
        if name == "sog":  # with harmonics it needs a GPU, or minutes
            write_splat_file(tmp_path / "source.ply", Gaussians(*(getattr(gaussians, n) for n in NAMES)))
        path = tmp_path / f"theirs{FORMATS[name].suffix}"
        made = node(*splat_transform, "source.ply", path.name, folder=tmp_path)
        assert made.returncode == 0, (name, made.stderr)
        assert_alike(name, by_place(turned(read_splat_file(path, webp=webp), turns.get(name))), wanted)


NAMES = ("positions", "opacities", "scales", "rotations", "colors")


def turned(gaussians: Gaussians, matrix: np.ndarray | None) -> Gaussians:
    from lgm_blender.core.affine import turned

    return gaussians if matrix is None else turned(gaussians, matrix)


def assert_alike(name: str, read: Gaussians, wanted: Gaussians) -> None:
    np.testing.assert_allclose(read.positions, wanted.positions, atol=0.01, err_msg=name)
    np.testing.assert_allclose(read.opacities, wanted.opacities, atol=5e-3, err_msg=name)
    np.testing.assert_allclose(read.colors, wanted.colors, atol=0.02, err_msg=name)
    np.testing.assert_allclose(np.log(read.scales), np.log(wanted.scales), atol=0.06, err_msg=name)
    if read.harmonics.shape[1]:
        np.testing.assert_allclose(read.harmonics, wanted.harmonics, atol=0.07, err_msg=name)
    else:
        assert name in ("splat", "sog")


def test_the_order_is_along_a_curve():
    positions = np.random.default_rng(0).uniform(-1, 1, (4000, 3)).astype(np.float32)
    steps = np.linalg.norm(np.diff(positions[morton_order(positions)], axis=0), axis=1)
    assert np.median(steps) < 0.25 * np.median(np.linalg.norm(np.diff(positions, axis=0), axis=1))


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}])
def test_no_name_breaks_a_console(tmp_path, variables):
    """Cases F6 and F8: names that the console's code page has not, and that are no UTF-8."""
    inputs = [tmp_path / "猫の像.ply", Path(os.fsdecode(os.fsencode(tmp_path) + b"/K\xe4fer.ply"))]
    for path in inputs:
        write_splat_file(path, gaussians_of(0))
    command = [sys.executable, "-m", "lgm_blender.worker", "convert", *inputs, "--output", tmp_path / "out"]
    environment = os.environ | variables | {"PYTHONPATH": str(Path(__file__).parents[2])}
    made = subprocess.run([*command, "--format", "spz"], env=environment, capture_output=True, timeout=100)
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == len(files(tmp_path / "out")) == 2
