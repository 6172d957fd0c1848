"""Operators and session with a stand-in for the worker. Run: pytest tests/blender/test_operators.py"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import bpy
import numpy as np
import pytest
from PIL import Image
from points import delete_points

from lgm_blender.blender import install, session, tasks
from lgm_blender.blender.scene import splats
from lgm_blender.blender.ui import panel
from lgm_blender.core import environment
from lgm_blender.core.formats.ply import read_ply
from lgm_blender.core.messages import MeshRequest

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "ein Bild, schön.png"
    Image.new("RGBA", (4, 4), (200, 200, 200, 200)).save(path)
    return path


def generate(tmp_path, **options):
    return bpy.ops.lgm.generate(output=str(tmp_path / "out"), **options)


def run_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        session.current().step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_image_file_becomes_an_object(worker, tmp_path, picture, golden):
    assert generate(tmp_path, image_path=str(picture), seed=7) == {"FINISHED"}
    made = bpy.context.object
    assert made.name == "ein Bild, schön"
    assert made.select_get()
    assert list(made["lgm"].keys())
    assert made["lgm"]["seed"] == 7
    assert len(splats.read_splats(made)) == len(read_ply(golden / "lgm.ply"))
    outcome = session.current().outcome
    assert outcome.objects == [made.name]
    assert Path(outcome.result.ply) == tmp_path / "out" / "ein Bild, schön.ply"


def test_scene_settings_are_used(worker, tmp_path, picture):
    settings = bpy.context.scene.lgm
    settings.image = bpy.data.images.load(str(picture))
    settings.prompt, settings.seed, settings.steps, settings.elevation = "a thing", 3, 9, -10.0
    settings.preset, settings.output, settings.view_samples = "lgm", str(tmp_path / "out"), 2
    assert bpy.ops.lgm.generate() == {"FINISHED"}
    asked = session.current().outcome.result.settings
    assert {k: asked[k] for k in ("prompt", "seed", "elevation", "preset", "image", "view_samples")} == {
        "prompt": "a thing", "seed": 3, "elevation": -10.0, "preset": "lgm", "image": str(picture), "view_samples": 2
    }  # fmt: skip


def test_given_prompt_replaces_the_scenes_image(worker, tmp_path, picture):
    bpy.context.scene.lgm.image = bpy.data.images.load(str(picture))
    generate(tmp_path, prompt="a red apple")
    asked = session.current().outcome.result.settings
    assert (asked["image"], asked["prompt"], asked["view_samples"]) == (None, "a red apple", None)


def test_image_datablock_without_a_file(worker, tmp_path):
    bpy.data.images.new("Gemälde", 8, 8, alpha=True)
    assert generate(tmp_path, image_name="Gemälde") == {"FINISHED"}
    result = session.current().outcome.result
    assert Path(result.ply).name == "Gemälde.ply"
    assert not Path(result.settings["image"]).exists()  # the temporary file is gone


def test_image_file_that_only_blender_reads(worker, tmp_path):
    bpy.context.scene.render.image_settings.file_format = "OPEN_EXR"
    path = tmp_path / "a thing.exr"
    bpy.data.images.new("x", 8, 8, float_buffer=True).save_render(str(path), scene=bpy.context.scene)
    assert generate(tmp_path, image_path=str(path)) == {"FINISHED"}
    assert (tmp_path / "out" / "a thing_seen.bin").read_bytes().startswith(b"\x89PNG")
    bpy.context.scene.lgm.image = bpy.data.images.load(str(path))
    (tmp_path / "out" / "a thing_seen.bin").unlink()
    assert generate(tmp_path) == {"FINISHED"}
    assert (tmp_path / "out" / "a thing_seen.bin").read_bytes().startswith(b"\x89PNG")


def test_random_seed_is_shown(worker, tmp_path):
    settings = bpy.context.scene.lgm
    settings.use_random_seed = True
    seeds = set()
    for _ in range(2):
        generate(tmp_path, prompt="x")
        seeds.add(settings.seed)
        assert session.current().outcome.result.settings["seed"] == settings.seed
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "Choose an image or write a prompt first."),
        ({"image_path": "/no/such/file.png"}, "There is no file"),
        ({"image_name": "nobody"}, "no image called 'nobody'"),
    ],
)
def test_bad_input_is_a_sentence(worker, tmp_path, options, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        generate(tmp_path, **options)
    assert sentence in session.current().problem.sentence
    assert session.current().engine is None  # nothing was started for it
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("behaviour", "sentence", "kind"),
    [
        ("dies_at_start", "No module named 'torch'", "worker"),
        ("dies_in_job", "the roof is on fire", "worker"),
        ("refuses", "The image is empty", "bad_input"),
    ],
)
def test_failure_is_a_sentence(worker, tmp_path, behaviour, sentence, kind):
    worker(behaviour)
    with pytest.raises(RuntimeError, match=sentence):
        generate(tmp_path, prompt="x")
    assert session.current().problem.kind == kind
    assert session.current().job is None
    assert not bpy.data.objects
    worker("well")
    assert generate(tmp_path, prompt="x") == {"FINISHED"}
    assert session.current().problem is None


def test_no_worker(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("LGM_BLENDER_PYTHON", str(tmp_path / "nowhere"))
    session.current().forget_worker()
    with pytest.raises(RuntimeError, match="LGM_BLENDER_PYTHON does not exist"):
        generate(tmp_path, prompt="x")


def start(tmp_path, **options):
    """A job that is not waited for, as the window starts it."""
    from lgm_blender.core.messages import GenerateRequest

    request = GenerateRequest(job="", output=str(tmp_path / "out"), prompt="x", **options)
    return session.current().begin(request, bpy.context.scene)


def test_step_by_step(worker, tmp_path):
    job = start(tmp_path)
    assert not bpy.ops.lgm.generate.poll()  # one at a time
    labels, factors = [], []
    while session.current().job:
        session.current().step()
        labels.append(job.label)
        factors.append(panel.job_factor(job))
        time.sleep(0.005)
    assert {"Waiting", "Sampling the views 1/4", "Sampling the views 4/4"} <= set(labels)
    assert factors == sorted(factors)
    assert 0 < factors[-1] <= 1
    assert bpy.context.object.name == "x"


def test_cancel(worker, tmp_path):
    worker("long")
    assert not bpy.ops.lgm.cancel.poll()
    job = start(tmp_path)
    run_until(lambda: job.progress)
    assert bpy.ops.lgm.cancel() == {"FINISHED"}
    run_until(lambda: session.current().job is None)
    assert job.state == "cancelled"
    assert session.current().problem is None
    assert not bpy.data.objects


def test_another_file_is_opened_meanwhile(worker, tmp_path):
    worker("slow")
    job = start(tmp_path)
    run_until(lambda: job.progress)
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    run_until(lambda: session.current().job is None)
    assert job.state == "cancelled"
    assert not bpy.data.objects
    assert session.current().problem is None
    assert hasattr(bpy.types.Scene, "lgm")


def test_scene_is_deleted_meanwhile(worker, tmp_path):
    other = bpy.data.scenes.new("other")
    job = start(tmp_path)
    bpy.data.scenes.remove(next(s for s in bpy.data.scenes if s is not other))
    run_until(lambda: session.current().job is None)
    assert job.state == "done"
    assert "scene is gone" in session.current().problem.sentence
    assert job.result.ply in session.current().problem.sentence


def test_object_being_edited_is_left_alone(worker, tmp_path):
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    bpy.ops.object.mode_set(mode="EDIT")
    generate(tmp_path, prompt="x")
    assert bpy.context.object is cube
    assert cube.mode == "EDIT"
    assert "x" in bpy.data.objects


def test_ply_that_can_not_be_read(worker, tmp_path, monkeypatch):
    command = [sys.executable, "-u", str(FAKE), "well"]  # writes no real PLY
    monkeypatch.setattr(session, "worker_command", lambda python, *arguments: command)
    with pytest.raises(RuntimeError):
        generate(tmp_path, prompt="x")
    assert session.current().problem.kind == "bad_input"


def test_worker_stays_for_the_next_job_and_leaves_with_the_add_on(worker, tmp_path):
    generate(tmp_path, prompt="x")
    process = session.current().engine._process
    generate(tmp_path, prompt="x")
    assert session.current().engine._process is process
    session.close_session()
    assert process.wait(0)  # it has ended; reading its last words may take a moment longer
    session.open_session()


def test_presets_of_the_worker(worker, tmp_path):
    settings = bpy.context.scene.lgm
    assert settings.preset == "mini"
    assert panel.what_is_missing(settings) == "Choose an image or write a prompt."
    settings.prompt = "x"
    assert panel.what_is_missing(settings) == ""
    assert bpy.ops.lgm.check_worker() == {"FINISHED"}
    assert "needs an image" in panel.what_is_missing(settings)
    settings.preset = "lgm"
    assert panel.what_is_missing(settings) == "Not fetched."


def test_a_preset_in_a_folder(worker, tmp_path):
    settings = bpy.context.scene.lgm
    settings.prompt, settings.preset = "x", "folder"
    assert panel.what_is_missing(settings) == "Choose the preset's folder."
    with pytest.raises(RuntimeError, match="Choose the preset's folder first"):
        generate(tmp_path)
    settings.preset_folder = f"{tmp_path / 'my preset'}/"
    assert panel.what_is_missing(settings) == ""
    assert generate(tmp_path) == {"FINISHED"}
    assert session.current().outcome.result.settings["preset"] == str(tmp_path / "my preset")
    assert bpy.ops.lgm.check_worker() == {"FINISHED"}
    assert settings.preset == "folder"  # also among what the worker tells of


def test_install_asks_before_it_goes_online(worker):
    assert not bpy.app.online_access
    assert not bpy.ops.lgm.install_worker.poll()
    with pytest.raises(RuntimeError, match="Allow Online Access"):
        bpy.ops.lgm.install_worker()


def test_install_and_remove(worker, tmp_path, monkeypatch):
    python = environment.environment_python(install.environment_folder())
    code = f"import os; os.makedirs({str(python.parent)!r}); open({str(python)!r}, 'w'); print('torch 9')"
    steps = [tasks.Step.of("Trying", (sys.executable, "-c", code))]
    monkeypatch.setattr(install, "install_steps", lambda *_: steps)
    monkeypatch.setattr(install.lock, "size", lambda *_: None)  # however full the disk is
    now = session.current()
    now.install()
    run_until(lambda: not now.fetching)
    assert now.task.state == "done", now.task.error
    folder = python.parents[1]
    assert environment.read_marker(folder)["trial"] == "torch 9"
    assert bpy.ops.lgm.remove_worker() == {"FINISHED"}
    assert environment.read_marker(folder) is None


def test_a_folder_of_wheels_needs_no_leave_to_go_online(worker, tmp_path, monkeypatch):
    """And what it lacks is told before anything is made."""
    monkeypatch.setattr(install.environment, "unsupported", lambda: "")
    monkeypatch.setattr(install, "suitable_build", lambda: "cpu")
    assert not bpy.app.online_access
    assert bpy.ops.lgm.install_from_folder.poll()
    with pytest.raises(RuntimeError, match=r"lacks wheels of torch 2\.13\.0.*Add them"):
        bpy.ops.lgm.install_from_folder(directory=str(tmp_path))
    assert not install.is_started()


def test_fetch_weights(worker, monkeypatch):
    lines = ["[1/2] a: 5 of 10 MB", "Error: The server is on holiday."]
    code = f"import sys; print({lines[0]!r}); print({lines[1]!r}, file=sys.stderr); sys.exit(1)"
    asked = []

    def command(python, *arguments):
        asked.append(arguments)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(session, "worker_command", command)
    now = session.current()
    now.download("lgm")
    factors = set()
    while now.fetching:
        now.step()
        factors.add(now.task.factor)
    assert asked == [("models", "--download", "lgm", "--until-stdin-ends")]
    assert now.problem.sentence == "The server is on holiday."
    assert not bpy.ops.lgm.fetch_weights.poll()  # not without leave to go online


def test_open_log(worker, tmp_path):
    assert bpy.ops.lgm.open_log() == {"CANCELLED"}
    generate(tmp_path, prompt="x")
    assert bpy.ops.lgm.open_log() == {"FINISHED"}
    assert session.current().log() == tmp_path / "logs" / "worker_stderr.log"


@pytest.mark.parametrize(("kind", "endings"), [("mesh", {".glb"}), ("both", {".ply", ".glb"})])
def test_mesh_or_both(worker, tmp_path, kind, endings):
    settings = bpy.context.scene.lgm
    settings.output_kind, settings.faces, settings.texture_size, settings.size = kind, 400, "512", 2.5
    assert generate(tmp_path, prompt="x") == {"FINISHED"}
    assert {path.suffix for path in (tmp_path / "out").glob("x.*")} == endings | {".json"}
    outcome = session.current().outcome
    assert outcome.objects == {"mesh": ["x"], "both": ["x", "x Mesh"]}[kind]
    assert {thing.name for thing in bpy.context.selected_objects} == set(outcome.objects)
    made = bpy.data.objects[outcome.objects[-1]]
    assert len(made.data.polygons) == outcome.result.faces
    assert 300 < outcome.result.faces <= 420
    assert max(made.dimensions) == pytest.approx(2.5, rel=0.01)
    assert tuple(bpy.data.images["x Texture" if kind == "mesh" else "x Mesh Texture"].size) == (512, 512)
    assert made["lgm"]["output_kind"] == kind


def test_given_settings_of_a_mesh_replace_the_scenes(worker, tmp_path):
    bpy.context.scene.lgm.size = 7.0
    generate(tmp_path, prompt="x", output_kind="mesh", faces=100, texture_size=1024, quads=True, object_size=0.0)
    asked = session.current().outcome.result.settings
    assert {k: asked[k] for k in ("output_kind", "faces", "texture_size", "quads")} == {
        "output_kind": "mesh", "faces": 100, "texture_size": 1024, "quads": True
    }  # fmt: skip
    assert max(bpy.context.object.dimensions) == pytest.approx(1.0, rel=0.01)


def test_convert_to_mesh(worker, tmp_path, golden):
    """What the worker gets are the splats as they are in the world, without those that were deleted."""
    bpy.ops.lgm.import_ply(filepath=str(golden / "lgm.ply"), up="-Y")
    source = bpy.context.object
    source.name = "Ding: 1"
    source.scale, source.location = (2, 2, 2), (1, 2, 3)
    bpy.context.scene.lgm.quads = True
    bpy.context.view_layer.update()
    delete_points(source, np.arange(len(splats.read_splats(source))) < 1000)
    bpy.ops.object.mode_set(mode="OBJECT")
    expected = splats.read_splats(source, world=True)
    assert bpy.ops.lgm.convert_to_mesh(output=str(tmp_path / "out"), faces=400, texture_size=512) == {"FINISHED"}
    sent = read_ply(tmp_path / "out" / "Ding_ 1_input.ply")
    assert len(sent) == len(read_ply(golden / "lgm.ply")) - 1000
    np.testing.assert_allclose(sent.positions, expected.positions, atol=1e-6)
    np.testing.assert_allclose(sent.scales, expected.scales, rtol=1e-4)
    made = bpy.context.object
    assert made.name == "Ding: 1 Mesh"
    assert made.type == "MESH"
    assert made.data.polygons
    assert source.hide_get()
    outcome = session.current().outcome
    assert (outcome.objects, outcome.result.settings["faces"]) == ([made.name], 400)
    assert outcome.result.settings["quads"] is True
    assert not list(Path(bpy.app.tempdir).glob("lgm_*"))
    assert not bpy.ops.lgm.convert_to_mesh.poll()  # of a mesh


def test_convert_failed_or_cancelled(worker, tmp_path, golden):
    assert not bpy.ops.lgm.convert_to_mesh.poll()
    bpy.ops.lgm.import_ply(filepath=str(golden / "lgm.ply"))
    worker("refuses")
    with pytest.raises(RuntimeError, match="no Gaussian is visible"):
        bpy.ops.lgm.convert_to_mesh(output=str(tmp_path))
    assert session.current().problem.kind == "bad_input"
    worker("long")
    request = MeshRequest("", str(golden / "lgm.ply"), str(tmp_path / "out"), name="x")
    job = session.current().begin(request, bpy.context.scene, source=bpy.context.object)
    run_until(lambda: job.progress)
    assert 0 <= panel.job_factor(job) < 1
    bpy.ops.lgm.cancel()
    run_until(lambda: session.current().job is None)
    assert (job.state, len(bpy.data.objects)) == ("cancelled", 1)
    assert not bpy.context.object.hide_get()
    delete_points(bpy.context.object, np.ones(len(splats.read_splats(bpy.context.object)), bool))
    bpy.ops.object.mode_set(mode="OBJECT")
    with pytest.raises(RuntimeError, match="lgm holds no splats any more"):
        bpy.ops.lgm.convert_to_mesh(output=str(tmp_path))
