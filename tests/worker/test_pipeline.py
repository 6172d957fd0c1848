"""worker/pipeline.py: the whole path with tiny models, and an answer to everything that can be wrong with a request."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from shapes import sphere
from tiny_preset import write_preset

from lgm_blender.core.cameras import orbit_cameras
from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.core.files import output_error
from lgm_blender.core.formats.gltf import read_glb
from lgm_blender.core.formats.ply import read_ply, write_ply
from lgm_blender.core.formats.splat_files import read_splat_file
from lgm_blender.core.gaussians import Gaussians
from lgm_blender.core.messages import MESH_STAGES, STAGES, GenerateRequest, LoadRequest, MeshRequest
from lgm_blender.worker import devices, meshing, outputs, pipeline, reconstruct, webp
from lgm_blender.worker.floaters import without_floaters
from lgm_blender.worker.pipeline import Pipeline
from lgm_blender.worker.weights import CheckedFiles


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny")


@pytest.fixture(scope="module")
def worker(tmp_path_factory) -> Pipeline:
    """One for all tests: its models stay loaded, as in a session."""
    return Pipeline(tmp_path_factory.mktemp("previews"), CheckedFiles(tmp_path_factory.mktemp("data") / "checked.json"))


@pytest.fixture
def image(tmp_path) -> Path:
    picture = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 60, 50), fill=(200, 60, 30))
    path = tmp_path / "in put" / "żółw & 亀.png"
    path.parent.mkdir()
    picture.save(path)
    return path


@pytest.fixture
def request_(preset, image, tmp_path) -> GenerateRequest:
    return GenerateRequest(job="j1", output=str(tmp_path / "out" / "new folder"), image=str(image), preset=str(preset))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_an_image_becomes_files(worker, request_, image):
    told = []
    result = worker.generate(request_, told.append)

    output = Path(request_.output)
    stem = image.stem
    assert files(output) == sorted(f"{stem}{end}" for end in (".json", ".ply", "_input.png", "_views.png"))
    gaussians = read_ply(result.ply)
    assert len(gaussians) == result.gaussians > 0
    assert gaussians.opacities.min() >= 0.005 * 0.999
    assert Image.open(result.views).size == (4 * 16, 16)
    assert Image.open(result.input).size == (256, 256)

    assert json.loads(Path(result.json).read_text(encoding="utf-8")) == json.loads(json.dumps(result.__dict__))
    assert result.settings["steps"] == 3
    assert result.settings["guidance"] == 2.0
    assert result.settings["view_samples"] == 1
    assert result.settings["negative_prompt"] == "ugly"
    assert result.settings["device"] in ("cpu", "cuda")
    assert result.settings["matting"] == "border"
    assert result.settings["name"] == stem
    assert {"lgm_blender", "python", "torch", "numpy", "preset"} <= set(result.versions)
    assert result.versions["preset"].endswith(" 7")
    assert list(result.timings) == [*STAGES, "total"]
    assert result.timings["total"] >= sum(result.timings[stage] for stage in STAGES) * 0.99
    assert result.warnings == []

    assert [p.stage for p in told if p.step == 0] == list(STAGES)
    assert [p.stage_index for p in told] == sorted(p.stage_index for p in told)
    assert [(p.step, p.steps) for p in told if p.stage == "views"] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert {p.job for p in told} == {"j1"}
    previews = [p.preview for p in told if p.preview]
    assert previews
    assert Image.open(previews[-1]).size == (4 * 16, 16)


def test_the_same_request_gives_the_same_bytes(worker, request_):
    first = worker.generate(request_)
    worker.free()
    assert not worker.loaded
    second = worker.generate(request_)
    assert Path(second.ply).name == f"{Path(request_.image).stem}_001.ply"
    assert Path(first.ply).read_bytes() == Path(second.ply).read_bytes()
    other = worker.generate(replace(request_, seed=1))
    assert Path(first.ply).read_bytes() != Path(other.ply).read_bytes()


def test_the_result_can_be_made_again_from_its_settings(worker, request_):
    first = worker.generate(replace(request_, seed=5, steps=2, guidance=1.0, view_samples=2, elevation=20))
    settings = json.loads(Path(first.json).read_text(encoding="utf-8"))["settings"]
    for name in ("mode", "matting", "scheduler", "chosen_of"):
        settings.pop(name)
    again = worker.generate(GenerateRequest(job="again", **settings))
    assert again.ply != first.ply
    assert Path(first.ply).read_bytes() == Path(again.ply).read_bytes()


def test_a_negative_prompt_without_guidance_is_warned_of(worker, request_):
    request = replace(request_, negative_prompt="blue", steps=2)
    (warning,) = worker.generate(replace(request, guidance=1.0)).warnings
    assert "guidance above 1" in warning
    assert worker.generate(replace(request, guidance=2.0)).warnings == []
    assert worker.generate(replace(request, negative_prompt=None, guidance=1.0)).warnings == []


def test_words_that_no_model_reads_are_named(worker, request_):
    """Case F4. The tiny model reads 14 letters."""
    request = replace(request_, image=None, prompt="a red ball with a very long tail", negative_prompt="blue", steps=1)
    result = worker.generate(request)
    (warning,) = result.warnings
    assert "'very long tail'" in warning
    assert "The prompt is too long" in warning
    assert json.loads(Path(result.json).read_text(encoding="utf-8"))["warnings"] == [warning]
    other = worker.generate(replace(request, prompt="a red ball with a vain old hat"))
    assert Path(other.ply).read_bytes() == Path(result.ply).read_bytes()
    short = replace(request, prompt="a red ball", negative_prompt="a blue one with many thorns")
    (warning,) = worker.generate(short).warnings
    assert "negative prompt is too long" in warning


def test_text_alone(worker, request_):
    told = []
    request = replace(request_, image=None, prompt='a "red" ball: on/off, and more words')
    result = worker.generate(request, told.append)
    assert Path(result.ply).name == "a _red_ ball_ on_off, and more.ply"
    assert result.input is None
    assert "matting" not in {p.stage for p in told}
    assert result.settings["mode"] == "text"
    assert files(Path(request.output)) == sorted(Path(p).name for p in (result.ply, result.views, result.json))


def test_a_text_beside_an_image_changes_the_views(worker, request_):
    plain = worker.generate(request_)
    told = worker.generate(replace(request_, prompt="a red ball"))
    assert not told.warnings
    assert Path(plain.views).read_bytes() != Path(told.views).read_bytes()


def test_a_white_object_on_white_is_warned_of(worker, request_, tmp_path):
    picture = Image.new("RGBA", (60, 60))
    picture.paste((255, 255, 255, 255), (20, 10, 40, 50))
    picture.save(tmp_path / "white.png")
    assert (
        "as white as the background"
        in worker.generate(replace(request_, image=str(tmp_path / "white.png"))).warnings[0]
    )
    assert not any("as white" in warning for warning in worker.generate(request_).warnings)


def test_a_preset_without_text_says_that_it_was_left_out(worker, request_, tmp_path):
    preset = write_preset(tmp_path / "image only", text=False)
    result = worker.generate(replace(request_, preset=str(preset), prompt="a red ball"))
    assert "takes no text" in result.warnings[0]
    assert result.settings["prompt"] == ""


def test_views_go_to_lgm_in_its_order(worker, request_, monkeypatch):
    """LGM's views are frames 1, 2, 3, 0 (reference: LGM's app), and the picture of the views is in the same order."""
    worker.generate(request_)
    frames = np.stack([np.full((16, 16, 3), i / 10, np.float32) for i in range(4)])
    seen = []

    class Model:
        modes = ("image",)

        def __call__(self, prompts, images, **settings):
            return frames[None]

    def gaussians_from_views(model, views, poses, averaged):
        seen.append((views[:, 0, 0, 0], poses, averaged))
        return random_gaussians()

    monkeypatch.setattr(worker, "_models", dict.fromkeys(worker._models, Model()))
    monkeypatch.setattr("lgm_blender.worker.lgm.gaussians_from_views", gaussians_from_views)
    result = worker.generate(replace(request_, elevation=-30))
    np.testing.assert_allclose(seen[0][0], [0.1, 0.2, 0.3, 0.0])
    np.testing.assert_array_equal(seen[0][1], orbit_cameras(-30))
    assert seen[0][2] == [False] * 4
    row = np.asarray(Image.open(result.views))[0, ::16, 0]
    np.testing.assert_array_equal(row, np.uint8(np.float32([0.1, 0.2, 0.3, 0]) * 255 + 0.5))


def random_gaussians(count: int = 5) -> Gaussians:
    r = np.random.default_rng(0)
    return Gaussians(
        r.normal(size=(count, 3)),
        np.full(count, 0.5),
        np.full((count, 3), 0.1),
        np.eye(4)[[0] * count],
        np.ones((count, 3)),
    )


def test_what_is_not_finite_or_not_visible_is_left_out(worker, request_, monkeypatch):
    gaussians = random_gaussians(5)
    gaussians.positions[1, 1] = np.nan
    gaussians.opacities[2] = 0.001
    monkeypatch.setattr("lgm_blender.worker.lgm.gaussians_from_views", lambda *_, **__: gaussians)
    result = worker.generate(request_)
    assert result.gaussians == 3
    assert result.warnings == ["1 Gaussians were left out: their values are not finite."]

    gaussians.opacities[:] = 0
    with pytest.raises(LGMError, match="Nothing visible"):
        worker.generate(replace(request_, name="none"))
    assert not any(name.startswith("none") for name in files(Path(request_.output)))


def test_floaters_are_removed_where_the_preset_says_so(worker, request_, tmp_path):
    before = read_ply(worker.generate(request_).ply)
    clear = write_preset(tmp_path / "clear", remove_floaters=True)
    cleared = read_ply(worker.generate(replace(request_, preset=str(clear))).ply)
    assert len(cleared) < len(before)
    np.testing.assert_array_equal(cleared.to_array(), without_floaters(before).to_array())


def test_removing_floaters_is_told_and_can_be_cancelled(worker, request_, tmp_path):
    request = replace(request_, preset=str(write_preset(tmp_path / "clear", remove_floaters=True)))
    told = []
    worker.generate(request, told.append)
    steps = [(p.step, p.steps) for p in told if p.stage == "floaters"]
    assert len(set(steps)) > 3
    assert steps[-1][0] < steps[-1][1] == 8
    before = files(Path(request_.output))
    cancelled = []
    with pytest.raises(Cancelled):
        worker.generate(request, cancelled.append, lambda: any(p.stage == "floaters" and p.step > 1 for p in cancelled))
    assert [p.stage for p in cancelled][-1] == "floaters"
    assert len([p for p in cancelled if p.stage == "floaters"]) < len(steps)
    assert files(Path(request_.output)) == before


@pytest.mark.parametrize("step", [0, 1, 2])
def test_cancel_takes_effect_within_a_step(worker, request_, step):
    told = []
    with pytest.raises(Cancelled):
        worker.generate(request_, told.append, lambda: any(p.stage == "views" and p.step >= step for p in told))
    assert max(p.step for p in told) <= step + 1
    assert {p.stage for p in told} == {"matting", "load", "views"}
    assert not Path(request_.output).exists()
    worker.generate(request_)  # and the next one is well


def test_cancel_before_the_files_get_their_names(worker, request_):
    told = []
    with pytest.raises(Cancelled):
        worker.generate(request_, told.append, lambda: bool(told) and told[-1].stage == "save")
    assert not any(path.is_file() for path in Path(request_.output).rglob("*"))


def test_nothing_is_overwritten_unless_asked(worker, request_):
    request = replace(request_, name="thing")
    first = worker.generate(request)
    second = worker.generate(replace(request, seed=1))
    third = worker.generate(replace(request, seed=2, overwrite=True))
    assert [Path(r.ply).name for r in (first, second, third)] == ["thing.ply", "thing_001.ply", "thing.ply"]
    assert json.loads(Path(first.json).read_text())["settings"]["seed"] == 2


def test_the_input_image_is_never_overwritten(worker, request_, image):
    """A batch in Blender saves its render as NAME.png."""
    before = image.read_bytes()
    result = worker.generate(replace(request_, output=str(image.parent)))
    assert Path(result.ply).stem == f"{image.stem}_001"
    result = worker.generate(replace(request_, output=str(image.parent), overwrite=True))
    assert Path(result.ply).stem == f"{image.stem}_001"
    assert image.read_bytes() == before


def broken(tmp_path: Path) -> dict[str, tuple[dict, str, str]]:
    """Changes to a good request, and the kind and words of their answer."""
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "file").write_text("in a folder's place")
    Image.new("RGBA", (64, 64)).save(tmp_path / "transparent.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    Image.new("RGB", (20_000, 10)).save(tmp_path / "long.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    return {
        "no such file": ({"image": str(tmp_path / "none.png")}, "bad_input", "There is no file"),
        "a folder": ({"image": str(tmp_path)}, "bad_input", "is a folder"),
        "not an image": ({"image": str(tmp_path / "text.png")}, "bad_input", "not an image"),
        "zero bytes": ({"image": str(tmp_path / "zero.png")}, "bad_input", "empty file"),
        "transparent": ({"image": str(tmp_path / "transparent.png")}, "bad_input", "fully transparent"),
        "one colour": ({"image": str(tmp_path / "white.png")}, "bad_input", "of one colour"),
        "20000 x 10": ({"image": str(tmp_path / "long.png")}, "bad_input", "too narrow"),
        "not plain": ({"image": str(tmp_path / "noise.png")}, "matting", "not plain"),
        "nothing": ({"image": None, "prompt": " \n"}, "bad_input", "nothing to start from"),
        "unknown preset": ({"preset": "maxi"}, "bad_input", "no preset 'maxi'"),
        "no preset there": ({"preset": str(tmp_path)}, "weights", "is no preset"),
        "seed": ({"seed": 2**32}, "bad_input", "seed must be"),
        "negative seed": ({"seed": -1}, "bad_input", "seed must be"),
        "no steps": ({"steps": 0}, "bad_input", "number of steps must be"),
        "many steps": ({"steps": 501}, "bad_input", "number of steps must be"),
        "guidance": ({"guidance": float("nan")}, "bad_input", "guidance must be"),
        "no samples": ({"view_samples": 0}, "bad_input", "number of view samples must be from 1 to 16"),
        "many samples": ({"view_samples": 17}, "bad_input", "number of view samples must be"),
        "elevation": ({"elevation": 91.0}, "bad_input", "elevation must be"),
        "device": ({"device": "tpu"}, "bad_input", "no device 'tpu'"),
        "output kind": ({"output_kind": "cubes"}, "bad_input", "no output kind 'cubes'"),
        "few faces": ({"output_kind": "mesh", "faces": 4}, "bad_input", "from 100 to 1,000,000, not 4"),
        "many faces": ({"output_kind": "both", "faces": 10_000_000}, "bad_input", "not 10,000,000"),
        "texture": ({"output_kind": "mesh", "texture_size": 1000}, "bad_input", "must be 512"),
        "output is a file": ({"output": str(tmp_path / "file")}, "output", "is not a folder"),
        "output in a file": ({"output": str(tmp_path / "file" / "x")}, "output", "is not a folder"),
        "no output": ({"output": ""}, "output", "no output folder"),
        "null": ({"output": str(tmp_path / "a\0b")}, "output", "no output folder"),
        "null image": ({"image": "a\0b.png"}, "bad_input", "There is no file"),
        **(
            {"unwritable": ({"output": "/proc/lgm"}, "output", "Nothing can be saved")}
            if Path("/proc/self").exists()
            else {}
        ),
    }


def test_bad_input_is_answered_before_anything_is_loaded(request_, tmp_path, monkeypatch):
    for name in ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    worker = Pipeline(checked=CheckedFiles(tmp_path / "checked.json"))
    for name, (change, kind, words) in broken(tmp_path).items():
        before = files(tmp_path)
        with pytest.raises(LGMError) as caught:
            worker.generate(replace(request_, **change))
        assert words in caught.value.message, name
        assert caught.value.message.endswith("."), name
        assert caught.value.kind == kind, name
        assert files(tmp_path) == before, name
    assert not worker.loaded


@pytest.mark.parametrize("damage", ["missing", "cut short", "of other bytes"])
def test_weights_that_are_not_whole(request_, preset, tmp_path, damage):
    folder = shutil.copytree(preset, tmp_path / "preset")
    path = folder / "multiview" / "unet" / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-100] if damage == "cut short" else data[:-1] + bytes([data[-1] ^ 255]))
    worker = Pipeline(checked=CheckedFiles(tmp_path / "checked.json"))
    with pytest.raises(LGMError, match=f"{path.name} is (missing|cut short|damaged)") as caught:
        worker.generate(replace(request_, preset=str(folder)))
    assert caught.value.kind == "weights"
    assert not Path(request_.output).exists()


def test_a_disk_that_fills_up_leaves_nothing(worker, request_, monkeypatch):
    written = []

    def fsync(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    Path(request_.output).mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", fsync)
    quiet = replace(request_, previews=False)
    with pytest.raises(LGMError, match="disk is full") as caught:
        worker.generate(quiet)
    assert caught.value.kind == "output"
    assert files(Path(request_.output)) == []


def test_a_failed_preview_loses_no_job(worker, request_, monkeypatch):
    def refuse(path):
        raise output_error(Path(path), OSError(28, "full"))

    monkeypatch.setattr(outputs, "replacing", refuse)
    told = []
    worker.generate(request_, told.append)
    assert not any(p.preview for p in told)


def test_no_previews_where_none_are_wanted(worker, request_):
    told = []
    worker.generate(replace(request_, previews=False), told.append)
    assert not any(p.preview for p in told)


def test_previews_do_not_pile_up(worker, request_, monkeypatch):
    monkeypatch.setattr(outputs, "PREVIEW_INTERVAL", 0)
    monkeypatch.setattr(outputs, "PREVIEW_SHARE", 1e9)
    told = []
    worker.generate(replace(request_, steps=5), told.append)
    assert len({p.preview for p in told if p.preview}) == 5
    assert len(list(worker.previews.iterdir())) == 2


def test_cuda_that_is_not_there(worker, request_, monkeypatch):
    monkeypatch.setattr(devices, "cuda_problem", lambda: "there is no NVIDIA GPU")
    with pytest.raises(LGMError, match="'cuda' can't be used: there is no NVIDIA GPU"):
        worker.generate(replace(request_, device="cuda"))
    assert worker.generate(request_).device == "cpu"


def test_models_that_were_loaded_ahead_are_used(preset, request_, tmp_path, monkeypatch):
    worker = Pipeline(tmp_path, CheckedFiles(tmp_path / "checked.json"))
    loads = []
    load_lgm = reconstruct.load_lgm
    monkeypatch.setattr(reconstruct, "load_lgm", lambda *given: loads.append(given) or load_lgm(*given))
    result = worker.load(LoadRequest("l", str(preset), "image"))
    assert (result.loaded, result.warnings, list(result.timings)) == (True, [], ["load"])
    assert worker.loaded
    worker.generate(replace(request_, preset=str(preset)))
    assert len(loads) == 1
    with pytest.raises(Cancelled):
        worker.load(LoadRequest("l", str(preset), "text"), cancelled=lambda: True)


def test_nothing_is_loaded_ahead_where_memory_is_short(preset, tmp_path, monkeypatch):
    worker = Pipeline(None, CheckedFiles(tmp_path / "checked.json"))
    monkeypatch.setattr(pipeline, "free_memory", lambda: 2 << 30)
    result = worker.load(LoadRequest("l", str(preset)))
    assert not result.loaded
    assert not worker.loaded
    assert "2.1 GB of memory are free" in result.warnings[0]


def test_full_memory_is_told_and_given_back(worker, request_, monkeypatch):
    worker.generate(request_)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 8 * 2**30))
    for error, words in (
        (torch.OutOfMemoryError("CUDA out of memory"), r"GPU's memory \(8 GB\) is full.*mini"),
        (RuntimeError("CUDA error: out of memory"), r"GPU's memory \(8 GB\) is full.*mini"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), r"GPU's memory \(8 GB\) is full.*mini"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "computer's memory is full"),
        (MemoryError(), "computer's memory is full"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("lgm_blender.worker.lgm.gaussians_from_views", fail)
        with pytest.raises(LGMError, match=words) as caught:
            worker.generate(request_)
        assert caught.value.kind == "out_of_memory"
        assert not worker.loaded


def test_other_errors_are_not_swallowed(worker, request_, monkeypatch):
    monkeypatch.setattr("lgm_blender.worker.lgm.gaussians_from_views", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.generate(request_)


def test_models_are_kept_and_exchanged(worker, request_, tmp_path):
    worker.generate(request_)
    loaded = list(worker._models.values())
    worker.generate(request_)
    assert list(worker._models.values()) == loaded
    worker.generate(replace(request_, preset=str(write_preset(tmp_path / "other"))))
    assert not any(model in loaded for model in worker._models.values())


# Meshes


@pytest.fixture
def of_a_ball(request_, monkeypatch) -> GenerateRequest:
    """A request whose Gaussians turn out to be a ball's, so that there is a surface, and whose mesh takes a second."""
    monkeypatch.setitem(meshing.EFFORT, "cpu", (12, 64, 64))
    monkeypatch.setattr("lgm_blender.worker.lgm.gaussians_from_views", lambda *_, **__: sphere(2000))
    return replace(request_, name="ball", device="cpu", faces=500, texture_size=512)


@pytest.mark.parametrize(("kind", "endings"), [("mesh", {".glb"}), ("both", {".ply", ".glb"})])
def test_a_mesh(worker, of_a_ball, kind, endings):
    told = []
    result = worker.generate(replace(of_a_ball, output_kind=kind), told.append)
    output = Path(of_a_ball.output)
    assert files(output) == sorted(f"ball{end}" for end in (*endings, ".json", "_input.png", "_views.png"))
    assert result.ply == (str(output / "ball.ply") if kind == "both" else None)
    mesh = read_glb(result.glb)
    assert len(mesh.faces) == result.faces == 500
    assert Image.open(io.BytesIO(mesh.texture)).size == (512, 512)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.5, atol=0.06)
    assert json.loads(Path(result.json).read_text(encoding="utf-8")) == json.loads(json.dumps(result.__dict__))
    assert {"output_kind": kind, "faces": 500, "texture_size": 512}.items() <= result.settings.items()

    stages = [*STAGES[:-1], *MESH_STAGES, STAGES[-1]]
    assert list(dict.fromkeys(p.stage for p in told)) == stages
    assert [p.stage_index for p in told] == sorted(p.stage_index for p in told)
    assert {p.stages for p in told} == {len(stages)}
    assert all(p.label != p.stage for p in told)  # in words
    assert list(result.timings) == [*stages, "total"]


def test_a_mesh_of_quads(worker, of_a_ball):
    result = worker.generate(replace(of_a_ball, output_kind="mesh", quads=True))
    mesh = read_glb(result.glb)
    assert (len(mesh.faces), result.settings["quads"]) == (500, True)
    assert 0.7 * result.faces < mesh.quads == 500 - result.faces


def test_without_a_mesh_nothing_is_said_of_it(worker, of_a_ball):
    result = worker.generate(of_a_ball)
    assert (result.glb, result.faces) == (None, 0)
    assert not {"faces", "texture_size", "quads"} & set(result.settings)


@pytest.mark.parametrize("stage", ["render", "bake", "save"])
def test_cancel_while_a_mesh_is_made(worker, of_a_ball, stage):
    told = []
    with pytest.raises(Cancelled):
        worker.generate(
            replace(of_a_ball, output_kind="both"), told.append, lambda: bool(told) and told[-1].stage == stage
        )
    assert told[-1].stage == stage
    assert not any(path.is_file() for path in Path(of_a_ball.output).rglob("*"))


def test_nothing_to_make_a_mesh_of(worker, of_a_ball, monkeypatch):
    monkeypatch.setattr("lgm_blender.worker.lgm.gaussians_from_views", lambda *_, **__: sphere(8))
    with pytest.raises(LGMError, match="too little to make a mesh of"):
        worker.generate(replace(of_a_ball, output_kind="mesh"))
    assert not Path(of_a_ball.output).exists()
    # Where splats were asked for too, they are not lost with it.
    result = worker.generate(replace(of_a_ball, output_kind="both"))
    assert result.glb is None
    assert Path(result.ply).is_file()
    assert any("only the splats" in w and "too little to make a mesh of" in w for w in result.warnings)


def test_splats_in_a_file_become_a_mesh(worker, of_a_ball, tmp_path):
    """Turned upright: the file's y points down, and the ball stands at y = -3 there."""
    ply = tmp_path / "ein Ball.ply"
    write_ply(ply, sphere(2000, center=(1, -3, 2)))
    told = []
    request = MeshRequest("m1", str(ply), str(tmp_path / "out"), "-y", faces=500, texture_size=512, device="cpu")
    result = worker.mesh(request, told.append)
    assert Path(result.glb) == tmp_path / "out" / "ein Ball.glb"
    assert files(tmp_path / "out") == ["ein Ball.glb"]
    mesh = read_glb(result.glb)
    np.testing.assert_allclose(mesh.vertices.mean(0), [1, 3, -2], atol=0.05)
    assert (result.job, result.gaussians, result.faces, result.device) == ("m1", 2000, 500, "cpu")
    assert {"up": "-y", "name": "ein Ball", "faces": 500}.items() <= result.settings.items()
    assert {p.job for p in told} == {"m1"}
    assert [p.stage_index for p in told] == sorted(p.stage_index for p in told)
    assert told[-1].stage_index == told[-1].stages - 1

    assert Path(worker.mesh(request).glb).name == "ein Ball_001.glb"
    assert Path(worker.mesh(replace(request, overwrite=True)).glb).name == "ein Ball.glb"
    joined = worker.mesh(replace(request, overwrite=True, quads=True))
    assert joined.settings["quads"] is True
    assert joined.faces == 500 - read_glb(joined.glb).quads < 300
    with pytest.raises(Cancelled):
        worker.mesh(replace(request, name="c"), cancelled=lambda: True)
    for change, kind, words in (
        ({"ply": str(tmp_path / "none.ply")}, "bad_input", "There is no file"),
        ({"up": "w"}, "bad_input", "no axis 'w'"),
        ({"faces": 4}, "bad_input", "not 4"),
        ({"output": ""}, "output", "no output folder"),
    ):
        with pytest.raises(LGMError, match=words) as caught:
            worker.mesh(replace(request, **change))
        assert caught.value.kind == kind
    assert len(files(tmp_path / "out")) == 2


def test_full_memory_while_a_mesh_is_made(worker, of_a_ball, tmp_path, monkeypatch):
    write_ply(tmp_path / "a.ply", sphere(2000))
    worker.generate(of_a_ball)
    assert worker.loaded
    monkeypatch.setattr("lgm_blender.worker.meshing.fusion.fuse", lambda *_: bytearray(1 << 62))
    with pytest.raises(LGMError, match="memory is full") as caught:
        worker.mesh(MeshRequest("m", str(tmp_path / "a.ply"), str(tmp_path / "out"), device="cpu"))
    assert caught.value.kind == "out_of_memory"
    assert not worker.loaded
    with pytest.raises(LGMError, match="memory is full"):
        worker.generate(replace(of_a_ball, output_kind="mesh"))
    assert any("memory is full" in w for w in worker.generate(replace(of_a_ball, output_kind="both")).warnings)
    assert not worker.loaded


def test_splats_in_several_formats(worker, of_a_ball):
    wanted = ["spz", "glb", "ply", "sog", "spz"]
    result = worker.generate(replace(of_a_ball, output_kind="both", splat_formats=wanted))
    output = Path(of_a_ball.output)
    assert [Path(file).name for file in result.splat_files] == ["ball.spz", "ball_splats.glb", "ball.sog"]
    endings = (".ply", ".spz", ".sog", "_splats.glb", ".glb", ".json", "_input.png", "_views.png")
    assert files(output) == sorted(f"ball{end}" for end in endings)
    for file in (result.ply, *result.splat_files):
        assert len(read_splat_file(file, webp=webp)) == result.gaussians
    assert json.loads(Path(result.json).read_text(encoding="utf-8"))["splat_files"] == result.splat_files
    # None of these names is taken by another result.
    again = worker.generate(replace(of_a_ball, splat_formats=["spz"]))
    assert [Path(file).name for file in again.splat_files] == ["ball_001.spz"]
    with pytest.raises(LGMError, match="no format 'obj'"):
        worker.generate(replace(of_a_ball, splat_formats=["obj"]))


def test_no_splats_where_only_a_mesh_is_wanted(worker, of_a_ball):
    result = worker.generate(replace(of_a_ball, output_kind="mesh", splat_formats=["spz"]))
    assert (result.ply, result.splat_files) == (None, [])
    assert not list(Path(of_a_ball.output).glob("*.spz"))
