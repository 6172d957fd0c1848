"""The batch with a stand-in for the worker. Run: pytest tests/blender/test_batch.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bpy
import pytest
from PIL import Image

from lgm_blender.blender import batch
from lgm_blender.blender.scene import splats
from lgm_blender.core.batch.items import find_items
from lgm_blender.core.formats.ply import read_ply

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def worker(monkeypatch, tmp_path, golden):
    """Sets how the stand-in for the worker behaves."""
    monkeypatch.setenv("LGM_BLENDER_PYTHON", sys.executable)
    monkeypatch.setenv("LGM_BLENDER_LOG_DIR", str(tmp_path / "logs"))

    def behave(behaviour):
        command = [sys.executable, "-u", str(FAKE), behaviour, str(golden / "lgm.ply")]
        monkeypatch.setattr(batch, "worker_command", lambda python, *arguments: command)

    behave("well")
    return behave


@pytest.fixture
def pictures(tmp_path):
    """A folder with three pictures, one of them bad, and something else."""
    folder = tmp_path / "in, mit Bildern"
    folder.mkdir()
    for name in ("Äpfel 1.png", "bad.png", "cup.PNG", ".hidden.png"):
        Image.new("RGBA", (4, 4), (200, 200, 200, 200)).save(folder / name)
    (folder / "notes.txt").write_text("")
    return folder


def run(*arguments) -> tuple[int, list[dict]]:
    lines = []
    code = batch.run([str(argument) for argument in arguments], lines.append)
    return code, [json.loads(line) for line in lines]


QUICK = ("--no-blend", "--no-render")


def made_files(folder: Path) -> set[str]:
    """The names of an output folder's files without the batch's own."""
    return {path.name for path in folder.iterdir()} - {"results.jsonl", "summary.html", "thumbnails"}


def test_folder(worker, pictures, tmp_path, capsys):
    options = ("--seed", 7, "--steps", 3, "--view-samples", 2)
    code, records = run("--input", pictures, "--output", tmp_path / "out", *options, *QUICK)
    assert code == 1
    assert [(Path(record["input"]).name, record["ok"]) for record in records] == [
        ("bad.png", False), ("cup.PNG", True), ("Äpfel 1.png", True)
    ]  # fmt: skip
    assert records[0]["error"] == "The image is empty. Choose another one."
    assert records[0]["kind"] == "bad_input"
    assert records[2]["seed"] == 7
    settings = json.loads(Path(records[2]["json"]).read_text(encoding="utf-8"))["settings"]
    assert settings["view_samples"] == 2
    assert Path(records[2]["ply"]) == tmp_path / "out" / "Äpfel 1.ply"
    lines = capsys.readouterr().err.splitlines()
    assert [line[:9] for line in lines] == ["[1/3] bad", "[2/3] cup", "[3/3] Äpf", "1 of 3 fa"]
    assert not list((tmp_path / "out").glob("bad*"))


def test_whole_way(worker, pictures, tmp_path, golden):
    picture = pictures / "Äpfel 1.png"
    code, (record,) = run("--input", picture, "--output", tmp_path / "out", "--size", 32, "--samples", 1)
    assert code == 0
    assert made_files(tmp_path / "out") == {
        f"Äpfel 1{end}" for end in (".ply", ".json", ".blend", ".png", "_views.png")
    }
    told = json.loads(Path(record["json"]).read_text(encoding="utf-8"))
    assert told["versions"]["blender"] == bpy.app.version_string
    times = told["timings"]
    assert times["total"] == pytest.approx(0.1 + times["scene"] + times["blend"] + times["render"], abs=0.01)
    render = bpy.data.images.load(record["png"])
    assert tuple(render.size) == (32, 32)
    bpy.ops.wm.open_mainfile(filepath=record["blend"])
    assert [thing.name for thing in bpy.data.objects if thing.type != "CAMERA"] == ["Äpfel 1"]
    made = bpy.data.objects["Äpfel 1"]
    assert len(splats.read_splats(made)) == len(read_ply(golden / "lgm.ply"))
    assert bpy.context.scene.camera is not None
    views = [area.spaces.active for screen in bpy.data.screens for area in screen.areas if area.type == "VIEW_3D"]
    assert {view.shading.type for view in views} == {"MATERIAL"}
    assert Path(record["blend"]).read_bytes()[:7] != b"BLENDER"  # compressed


def test_exr_is_converted(worker, tmp_path):
    """The worker gets a PNG, and the results tell of the EXR."""
    (tmp_path / "in").mkdir()
    settings = bpy.context.scene.render.image_settings
    settings.file_format = "OPEN_EXR"
    image = bpy.data.images.new("x", 8, 8, float_buffer=True)
    image.save_render(str(tmp_path / "in" / "a thing.exr"), scene=bpy.context.scene)
    code, (record,) = run("--input", tmp_path / "in", "--output", tmp_path / "out", *QUICK)
    assert (code, record["name"]) == (0, "a thing")
    told = json.loads(Path(record["json"]).read_text(encoding="utf-8"))
    assert record["input"] == told["settings"]["image"] == str(tmp_path / "in" / "a thing.exr")
    seen = (tmp_path / "out" / "a thing_seen.bin").read_bytes()
    assert seen.startswith(b"\x89PNG")
    assert not list(Path(bpy.app.tempdir).glob("lgm_*"))


def test_results_are_never_replaced_unless_asked(worker, pictures, tmp_path):
    arguments = ("--input", pictures / "cup.PNG", "--output", tmp_path / "out", *QUICK)
    names = [run(*arguments, "--seed", seed)[1][0]["name"] for seed in (0, 1)]
    assert names == ["cup", "cup_2"]
    records = [run(*arguments, "--seed", seed)[1][0] for seed in (0, 1)]
    assert [(record["name"], record["skipped"]) for record in records] == [("cup", True), ("cup_2", True)]
    (record,) = run(*arguments, "--seed", 1, "--overwrite")[1]
    assert (record["name"], record["skipped"]) == ("cup", False)
    # What was made first is not there any more, and is made again.
    assert run(*arguments, "--seed", 0)[1][0]["skipped"] is False


def test_goes_on_where_it_stopped(worker, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    run("--input", pictures / "cup.PNG", "--output", out, *QUICK)
    before = (out / "cup.ply").stat().st_mtime_ns
    _, records = run("--input", pictures, "--output", out, "--skip-existing", *QUICK)
    assert [record.get("skipped") for record in records] == [True, None, False]
    assert (out / "cup.ply").stat().st_mtime_ns == before
    assert "skipped" in capsys.readouterr().err
    # The worker's part is there, Blender's is not.
    code, (record,) = run("--input", pictures / "cup.PNG", "--output", out, "--skip-existing", "--no-render")
    assert (code, record["skipped"]) == (0, False)
    assert (out / "cup.blend").exists()
    assert (out / "cup.ply").stat().st_mtime_ns == before
    (out / "cup.json").write_text("{}")  # nothing of ours
    assert run("--input", pictures / "cup.PNG", "--output", out, "--skip-existing", *QUICK)[1][0]["name"] == "cup_2"


def test_input_is_never_replaced(worker, pictures):
    before = (pictures / "cup.PNG").read_bytes()
    arguments = (
        "--input",
        pictures,
        "--output",
        pictures,
        "--overwrite",
        "--skip-existing",
        "--size",
        16,
        "--samples",
        1,
    )
    _, records = run(*arguments)
    assert [record["name"] for record in records] == ["bad_splats", "cup_splats", "Äpfel 1_splats"]
    assert (pictures / "cup.PNG").read_bytes() == before
    assert (pictures / "cup_splats.png").exists()
    _, records = run(*arguments)  # its own pictures are no input
    assert [record.get("skipped") for record in records] == [None, True, True]


def test_names_do_not_collide(tmp_path):
    for name in ("a/x.png", "a/x.jpg", "b/X.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    items = find_items([str(tmp_path / "a"), str(tmp_path / "b")], "", tmp_path / "out").items
    assert [item.name for item in items] == ["x_jpg", "x_png", "X_png_2"]


def test_wildcards_are_understood(pictures, tmp_path):
    items = find_items([str(pictures / "c*.PNG"), str(tmp_path / "no*.png")], "", tmp_path).items
    assert [item.source.name for item in items] == ["cup.PNG", "no*.png"]


def test_prompt_alone(worker, tmp_path):
    code, (record,) = run("--prompt", "ein roter Apfel / Birne", "--output", tmp_path / "out", *QUICK)
    assert (code, record["input"], record["name"]) == (0, None, "ein_roter_Apfel___Birne")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "x"],
        ["--input", "x"],
        ["--input", "x", "--output", "y", "--steps", "0"],
        ["--nonsense"],
        ["--input", "x", "--output", "y", "--output-kind", "cubes"],
        ["--input", "x", "--output", "y", "--output-kind", "mesh", "--texture-size", "1000"],
    ],
)
def test_usage(arguments, capsys):
    assert batch.run(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_folder_without_images(worker, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("--input", tmp_path / "empty", "--output", tmp_path / "out") == (1, [])
    assert "holds no images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_that_can_not_be_made(worker, pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("--input", pictures, "--output", tmp_path / "file" / "out") == (1, [])
    assert "is not a folder" in capsys.readouterr().err


def test_worker_that_does_not_start(worker, pictures, tmp_path, capsys):
    worker("dies_at_start")
    assert run("--input", pictures, "--output", tmp_path / "out") == (1, [])
    assert "No module named 'torch'" in capsys.readouterr().err


def test_no_worker(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LGM_BLENDER_PYTHON", str(tmp_path / "nowhere"))
    assert run("--input", pictures, "--output", tmp_path / "out")[0] == 1
    assert "does not exist" in capsys.readouterr().err


def test_dead_worker_costs_one_image(worker, pictures, tmp_path):
    worker("dies_once")
    arguments = ("--input", pictures / "cup.PNG", pictures / "Äpfel 1.png", "--output", tmp_path / "out", *QUICK)
    code, records = run(*arguments, "--retries", 0)
    assert code == 1
    assert [record["ok"] for record in records] == [False, True]
    # The next run makes what failed.
    assert [record["skipped"] for record in run(*arguments)[1]] == [True, False]


def test_timeout(worker, pictures, tmp_path):
    worker("long")
    _, (record,) = run("--input", pictures / "cup.PNG", "--output", tmp_path / "out", "--timeout", 0.5, *QUICK)
    assert "longer than 0.5 seconds" in record["error"]


MESH = ("--faces", 400, "--texture-size", 512)


@pytest.mark.parametrize(("kind", "files"), [("mesh", {"glb"}), ("both", {"ply", "glb"})])
def test_meshes(worker, pictures, tmp_path, kind, files):
    arguments = ("--input", pictures / "cup.PNG", "--output", tmp_path / "out", "--output-kind", kind, *MESH)
    code, (record,) = run(*arguments, "--object-size", 2, "--size", 32, "--samples", 1)
    assert code == 0
    assert {path.suffix[1:] for path in (tmp_path / "out").glob("cup.*")} == files | {"blend", "png", "json"}
    assert {key for key in ("ply", "glb") if record.get(key)} == files
    assert 300 < record["faces"] <= 420
    bpy.ops.wm.open_mainfile(filepath=record["blend"])
    things = {thing.name: thing for thing in bpy.data.objects if thing.type != "CAMERA"}
    assert list(things) == {"mesh": ["cup"], "both": ["cup", "cup Mesh"]}[kind]
    made = things["cup" if kind == "mesh" else "cup Mesh"]
    assert max(made.dimensions) == pytest.approx(2, rel=0.01)
    assert made["lgm"]["glb"] == "//cup.glb"
    (image,) = (image for image in bpy.data.images if image.packed_file)
    assert tuple(image.size) == (512, 512)
    # Once more: all is there.
    assert run(*arguments, "--skip-existing")[1][0]["skipped"] is True


def test_splats_that_are_there_become_meshes(worker, pictures, tmp_path):
    out = tmp_path / "out"
    arguments = ("--input", pictures / "cup.PNG", "--output", out, "--skip-existing", "--quads", *QUICK, *MESH)
    _, (record,) = run(*arguments)
    before = (out / "cup.ply").stat().st_mtime_ns
    assert record["faces"] == 0
    for kind, skipped in (("mesh", False), ("both", True), ("mesh", True), ("splats", True)):
        code, (record,) = run(*arguments, "--output-kind", kind)
        assert (code, record["name"], record["skipped"]) == (0, "cup", skipped), kind
        assert ("glb" in record) == (kind != "splats")
    assert (out / "cup.ply").stat().st_mtime_ns == before
    told = json.loads((out / "cup.json").read_text(encoding="utf-8"))
    assert (told["glb"], told["settings"]["output_kind"]) == (str(out / "cup.glb"), "both")
    assert told["settings"]["quads"] is True
    assert told["faces"] > 300
    # But of a mesh there are no splats to be had.
    (out / "cup.ply").unlink()
    _, (record,) = run(*arguments, "--output-kind", "both")
    assert (record["name"], record["skipped"]) == ("cup_2", False)


def test_pictures_of_meshes_are_no_input(worker, pictures):
    arguments = ("--input", pictures, "--output", pictures, "--output-kind", "mesh", *MESH, "--size", 16)
    run(*arguments, "--samples", 1)
    _, records = run(*arguments, "--samples", 1, "--skip-existing")
    assert [record.get("skipped") for record in records] == [True, True, None]


def script(tmp_path, *arguments) -> subprocess.CompletedProcess:
    """The batch as a program, in a Python that has bpy."""
    variables = {**os.environ, "LGM_BLENDER_LOG_DIR": str(tmp_path / "logs")}
    command = [sys.executable, batch.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)


def test_program_says_what_is_wrong_and_ends(pictures, tmp_path):
    done = script(tmp_path, "--", "--input", tmp_path / "none", "--output", pictures / "cup.PNG")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not a folder" in done.stderr
    assert script(tmp_path, "--", "--output", "x").returncode == 2
    assert "usage" in script(tmp_path, "--help").stderr


def test_program_leaves_no_folder_behind(tmp_path):
    variables = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "LGM_BLENDER_LOG_DIR": str(tmp_path / "logs")}
    (tmp_path / "tmp").mkdir()
    subprocess.run([sys.executable, batch.__file__, "--", "--output", "x"], env=variables, timeout=120, check=False)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.fixture
def scans(tmp_path, golden):
    """A folder with splats in three files, one of them bad, and with what a job made of an image."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.spz", "bad.splat", "Käfer.compressed.ply", "made.ply", "made_mesh.ply", "mesh.glb"):
        (folder / name).write_bytes((golden / "lgm.ply").read_bytes())
    (folder / "made.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("kind", "endings"), [("splats", [".ply"]), ("mesh", [".ply", ".glb"])])
def test_files_of_splats(worker, scans, tmp_path, kind, endings):
    out = tmp_path / "out"
    code, records = run("--input", scans, "--output", out, "--output-kind", kind, "--up=-y", *QUICK)
    assert code == 1
    assert [(Path(record["input"]).name, record["ok"]) for record in records] == [
        ("a.spz", True), ("bad.splat", False), ("Käfer.compressed.ply", True)
    ]  # fmt: skip
    made = {name for name in made_files(out) if not Path(name).stem.endswith("_input")}
    assert made == {f"{name}{end}" for name in ("a", "Käfer") for end in (*endings, ".json")}
    assert records[0]["warnings"] == ["odd"]
    assert "views" not in records[0]
    told = json.loads((out / "Käfer.json").read_text(encoding="utf-8"))
    assert told["settings"]["up"] == "-y"
    assert told["ply"] == str(out / "Käfer.ply")
    before = {path: path.stat().st_mtime_ns for path in map(out.joinpath, made)}
    run("--input", scans, "--output", out, "--output-kind", kind, "--up=-y", "--skip-existing", *QUICK)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_file_of_splats_becomes_a_scene(worker, scans, tmp_path):
    options = ("--size", 32, "--samples", 1, "--object-size", 2)
    code, (record,) = run("--input", scans / "a.spz", "--output", tmp_path / "out", *options)
    assert code == 0
    bpy.ops.wm.open_mainfile(filepath=record["blend"])
    (made,) = [thing for thing in bpy.data.objects if thing.type != "CAMERA"]
    assert made.name == "a"
    assert Path(record["png"]).is_file()


def test_splat_formats(worker, pictures, scans, tmp_path):
    """Of images the worker is asked for them; what is missing of results that are there is added."""
    command = ("--output", tmp_path / "out", "--skip-existing", *QUICK)
    _, (record,) = run("--input", scans / "a.spz", "--splat-formats", "sog", "glb", *command)
    assert [Path(file).name for file in record["splat_files"]] == ["a.sog", "a_splats.glb"]
    assert not record["skipped"]
    _, (record,) = run("--input", scans / "a.spz", "--splat-formats", "spz", "sog", *command)
    assert {Path(file).name for file in record["splat_files"]} == {"a.sog", "a_splats.glb", "a.spz"}
    _, (record,) = run("--input", pictures / "cup.PNG", *command)
    told = json.loads(Path(record["json"]).read_text(encoding="utf-8"))
    assert told["settings"]["splat_formats"] == ["ply"]
    _, (record,) = run("--input", pictures / "cup.PNG", "--splat-formats", "ply", "spz", *command)
    assert [Path(file).name for file in record["splat_files"]] == ["cup.spz"]
    assert json.loads(Path(record["json"]).read_text(encoding="utf-8"))["splat_files"] == record["splat_files"]


def test_sog_in_a_folder_is_one_input(worker, scans, tmp_path):
    (scans / "pot").mkdir()
    (scans / "pot" / "meta.json").write_text("{}")
    code, (record,) = run("--input", scans / "pot", "--output", tmp_path / "out", *QUICK)
    assert (code, record["name"]) == (0, "pot")
