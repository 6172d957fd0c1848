"""Gaussians in a file to meshes in files. Run with `python build.py test tests/worker/test_meshing_files.py`."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import shapes

from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.core.formats.gltf import read_glb
from lgm_blender.core.formats.ply import write_ply
from lgm_blender.core.messages import MESH_STAGES
from lgm_blender.worker import meshing
from lgm_blender.worker.__main__ import main
from lgm_blender.worker.mesh_file import mesh_file
from lgm_blender.worker.meshing import MeshSettings
from lgm_blender.worker.meshing.files import SUFFIXES

SETTINGS = MeshSettings(faces=500, texture_size=512, device="cpu")


@pytest.fixture(autouse=True)
def little_effort(monkeypatch):
    monkeypatch.setitem(meshing.EFFORT, "cpu", (12, 64, 64))


@pytest.fixture
def splats(tmp_path):
    path = tmp_path / "Käktus 仙 1.ply"
    write_ply(path, shapes.sphere(2000))
    return path


def test_all_formats(splats, tmp_path):
    told = []
    result = mesh_file(splats, tmp_path / "out put", SETTINGS, progress=told.append)
    names = [path.name for path in sorted((tmp_path / "out put").iterdir())]
    named = {".mtl": "Käktus_仙_1.mtl", "_texture.png": "Käktus_仙_1_texture.png"}  # in files, where spaces end names
    assert sorted(names) == sorted(named.get(suffix, f"Käktus 仙 1{suffix}") for suffix in SUFFIXES)
    assert sorted(names) == sorted(Path(p).name for p in result.files)
    assert result.faces == 500
    assert result.gaussians == 2000
    assert told[-1].label == "Saving"
    assert all(0 <= p.stage_index < p.stages for p in told)

    glb = (tmp_path / "out put" / "Käktus 仙 1.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", glb[:12])
    assert (magic, version, length) == (b"glTF", 2, len(glb))
    (size,) = struct.unpack("<I", glb[12:16])
    document = json.loads(glb[20 : 20 + size])
    assert document["accessors"][0]["count"] == 1500
    assert document["meshes"][0]["name"] == "Käktus 仙 1"
    np.testing.assert_allclose(document["accessors"][1]["max"], 0.5, atol=0.05)

    obj = (tmp_path / "out put" / "Käktus 仙 1.obj").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("v ") for line in obj) == result.vertices
    assert sum(line.startswith("f ") for line in obj) == 500
    assert "mtllib Käktus_仙_1.mtl" in obj
    assert "map_Kd Käktus_仙_1_texture.png" in (tmp_path / "out put" / "Käktus_仙_1.mtl").read_text(encoding="utf-8")


def test_quads(splats, tmp_path, capsys):
    options = ["--faces", "500", "--texture-size", "512", "--device", "cpu", "--quads", "--json"]
    assert main(["mesh", str(splats), "--output", str(tmp_path / "out"), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    obj = (tmp_path / "out" / "Käktus 仙 1.obj").read_text(encoding="utf-8").splitlines()
    sides = [len(line.split()) - 1 for line in obj if line.startswith("f ")]
    quads = read_glb(tmp_path / "out" / "Käktus 仙 1.glb").quads
    assert sides == [4] * quads + [3] * (500 - 2 * quads)
    assert told["faces"] == len(sides)
    assert quads > 0.7 * len(sides)
    assert f"element face {len(sides)}\n".encode() in (tmp_path / "out" / "Käktus 仙 1_mesh.ply").read_bytes()


def test_nothing_is_overwritten_unasked(splats, tmp_path):
    first = mesh_file(splats, tmp_path, SETTINGS, formats=("glb",)).files
    second = mesh_file(splats, tmp_path, SETTINGS, formats=("glb",)).files
    third = mesh_file(splats, tmp_path, SETTINGS, formats=("glb",), overwrite=True).files
    assert [Path(p).name for p in first + second] == ["Käktus 仙 1.glb", "Käktus 仙 1_001.glb"]
    assert first == third


def test_the_disk_fills_up(splats, tmp_path, monkeypatch):
    """At each of the files in turn: none is there then."""
    for number in range(5):
        calls = []

        def full(descriptor, calls=calls, number=number):
            calls.append(descriptor)
            if len(calls) > number:
                raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(LGMError, match="disk is full") as caught:
            mesh_file(splats, tmp_path / "out", SETTINGS)
        assert caught.value.kind == "output"
        assert list((tmp_path / "out").iterdir()) == []


def test_cancelled_before_anything_is_written(splats, tmp_path):
    with pytest.raises(Cancelled):
        mesh_file(splats, tmp_path / "out", SETTINGS, cancelled=lambda: True)
    assert not (tmp_path / "out").exists()


def test_command_line(splats, tmp_path, capsys):
    options = ["--output", str(tmp_path / "out"), "--formats", "ply", "glb", "--faces", "400", "--texture-size", "512"]
    assert (
        main(
            [
                "mesh",
                str(splats),
                *options,
                "--name",
                "a b",
                "--up=-y",
                "--device",
                "cpu",
                "--method",
                "fusion",
                "--json",
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in result["files"]] == ["a b.glb", "a b_mesh.ply"]
    assert list(result["timings"]) == [*MESH_STAGES, "save"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table, column: table[:0], "no Gaussian"),
        (lambda table, column: table + np.where(column == "opacity", -50, 0), "no Gaussian is visible"),
        (lambda table, column: table * np.where(column == "x", np.nan, 1), "no Gaussian whose values are all finite"),
        (lambda table, column: table[:1], "only one Gaussian is visible"),
        (lambda table, column: table - np.where(np.char.startswith(column, "scale"), 12, 0), "nothing solid"),
        (lambda table, column: table[:, :5], "cut short"),
    ],
)
def test_files_without_an_object(change, words, splats, tmp_path, capsys):
    header, body = splats.read_bytes().split(b"end_header\n", 1)
    columns = np.array([line.split()[-1].decode() for line in header.splitlines() if line.startswith(b"property")])
    table = change(np.frombuffer(body, "<f4").reshape(2000, len(columns)), columns).astype("<f4")
    header = header.replace(b"element vertex 2000", b"element vertex %d" % len(table))
    splats.write_bytes(header + b"end_header\n" + table.tobytes())
    assert main(["mesh", str(splats), "--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert words in captured.err.strip().splitlines()[-1]
    assert not captured.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.ply"], "There is no file"),
        (["FILE", "--faces", "4"], "from 100 to 1,000,000, not 4"),
        (["FILE", "--faces", "10000000"], "not 10,000,000"),
        (["FILE", "--texture-size", "1000"], "must be 512"),
        (["."], "is a folder"),
    ],
)
def test_errors_are_a_sentence(arguments, words, splats, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [str(splats) if argument == "FILE" else argument for argument in arguments]
    assert main(["mesh", *arguments, "--output", "out"]) == 1
    captured = capsys.readouterr()
    assert words in captured.err.strip().splitlines()[-1]
    assert not captured.out
    assert not (tmp_path / "out").exists()
