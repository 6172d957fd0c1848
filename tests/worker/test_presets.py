"""worker/presets.py: what presets are, and what is said about those that are not whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from own_home import own_home  # noqa: F401
from tiny_preset import write_preset

from lgm_blender.core.errors import LGMError
from lgm_blender.worker import presets
from lgm_blender.worker.presets import Preset
from lgm_blender.worker.weights import CheckedFiles, File, Weights, file_sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny")


@pytest.fixture
def tiny(whole, tmp_path) -> Path:
    """A preset's folder that may be damaged."""
    return shutil.copytree(whole, tmp_path / "tiny ż")


def checked(tmp_path: Path) -> CheckedFiles:
    return CheckedFiles(tmp_path / "checked.json")


def verify(preset: Preset, tmp_path: Path) -> None:
    for part in preset.weights:
        preset.verify(part, checked(tmp_path))


def test_a_folder_is_a_preset(tiny, tmp_path):
    preset = presets.find_preset(str(tiny))
    assert preset.modes == ("image", "text")
    assert preset.scheduler == "DDIMScheduler"
    assert preset.steps == {"image": 3, "text": 3}
    assert preset.locate("lgm") == tiny / "lgm"
    assert preset.locate("text") == tiny / "multiview"
    verify(preset, tmp_path)
    info = preset.info()
    assert (info.ready, info.problem, info.modes) == (True, "", ["image", "text"])


def test_scheduler_by_its_class(tmp_path):
    folder = write_preset(tmp_path / "a", text=False, scheduler="UniPCMultistepScheduler")
    assert presets.read_preset(folder).scheduler == "UniPCMultistepScheduler"


def test_unknown_preset(tmp_path):
    with pytest.raises(LGMError, match="no preset 'maxi'") as caught:
        presets.find_preset("maxi")
    assert "'mini'" in caught.value.message
    assert "'lgm'" in caught.value.message
    assert caught.value.kind == "bad_input"
    for name in ("", ".", "../weights"):
        with pytest.raises(LGMError):
            presets.find_preset(name)
    with pytest.raises(LGMError, match=r"is no preset: .*preset\.json"):
        presets.find_preset(str(tmp_path))


def test_a_name_too_long_for_any_file():
    with pytest.raises(LGMError, match="There is no preset 'aaa") as caught:
        presets.find_preset("a" * 5000)
    assert len(caught.value.message) < 400


def test_the_bundled_preset_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "BUNDLED", tmp_path)
    with pytest.raises(LGMError, match="Install the extension's release zip") as caught:
        presets.find_preset("mini")
    assert caught.value.kind == "weights"
    infos = {info.name: info for info in presets.preset_infos()}
    assert not infos["mini"].ready
    assert "Install" in infos["mini"].problem
    assert not infos["lgm"].ready
    assert "models --download lgm" in infos["lgm"].problem


@pytest.mark.parametrize(
    "change",
    [
        {"modes": []},
        {"modes": ["video"]},
        {"scheduler": "euler"},
        {"scheduler": 3},
        {"files": {}},
        {"files": []},
        {"steps": {}},
        {"guidance": None},
        {"samples": 4},
        {"samples": {"image": 0}},
        {"refine": "false"},
        {"redraw": "false"},
        {"keep_image": 1},
    ],
)
def test_a_damaged_preset_json(tiny, change):
    path = tiny / "preset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LGMError, match=r"preset\.json is damaged") as caught:
        presets.read_preset(tiny)
    assert caught.value.kind == "weights"
    path.write_text("{")
    with pytest.raises(LGMError, match=r"preset\.json is damaged"):
        presets.read_preset(tiny)


def test_weights_missing_cut_short_or_damaged(tiny, tmp_path):
    preset = presets.find_preset(str(tiny))
    path = tiny / "lgm" / "model.safetensors"
    data = path.read_bytes()

    path.write_bytes(data[:-1])
    with pytest.raises(LGMError, match="cut short") as caught:
        preset.locate("lgm")
    assert str(path) in caught.value.message
    assert caught.value.kind == "weights"
    assert not preset.info().ready

    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    preset.locate("lgm")  # of the right size
    with pytest.raises(LGMError, match="is damaged"):
        verify(preset, tmp_path)

    path.unlink()
    with pytest.raises(LGMError, match="is missing"):
        preset.locate("lgm")


def test_one_mode_may_be_ready_without_the_other(tiny):
    preset = presets.find_preset(str(tiny))
    other = Weights({"unet/config.json": File()}, tiny / "nowhere")
    info = replace(preset, weights=preset.weights | {"text": other}).info()
    assert info.ready
    assert info.modes == ["image"]


def test_the_file_with_the_rotation_bug_is_refused(tiny, tmp_path, monkeypatch):
    path = tiny / "lgm" / "model.safetensors"
    monkeypatch.setattr(presets, "ROTATION_BUG", file_sha256(path))
    with pytest.raises(LGMError, match="rotations are wrong"):
        verify(presets.find_preset(str(tiny)), tmp_path)


def test_a_mode_that_is_not_there(tmp_path):
    preset = presets.read_preset(write_preset(tmp_path / "a", text=False))
    assert preset.mode(image=True) == "image"
    with pytest.raises(LGMError, match="can't start from text alone"):
        preset.mode(image=False)


def test_switches_by_their_old_names(tmp_path):
    """As they stand in presets that users trained."""
    folder = write_preset(tmp_path / "a", redraw=True, clear_haze=True)
    preset = presets.read_preset(folder)
    assert (preset.refine, preset.remove_floaters) == (True, True)
    assert not presets.read_preset(write_preset(tmp_path / "b")).refine
    (tmp_path / "c" / "lgm").mkdir(parents=True)
    presets.write_preset(tmp_path / "c", "c", "C", str(folder))
    written = json.loads((tmp_path / "c" / "preset.json").read_text())
    assert (written["refine"], written["remove_floaters"]) == (True, True)
    assert "redraw" not in written


def test_no_code_is_among_the_published_files():
    for weights in presets.PUBLISHED.weights.values():
        assert {Path(name).suffix for name in weights.files} <= {".json", ".txt", ".safetensors"}


def test_what_is_said_before_models_are_fetched(tiny):
    lines = presets.PUBLISHED.terms(["image"])
    assert lines[0] == "ashawkey/LGM: 0.8 GB, licence MIT (https://huggingface.co/ashawkey/LGM)"
    assert lines[1].startswith("ashawkey/imagedream-ipmv-diffusers: 4.0 GB, licence OpenRAIL (https://")
    assert lines[2] == f"They go into {constants.HF_HUB_CACHE}"
    assert presets.PUBLISHED.info().terms.splitlines() == presets.PUBLISHED.terms()
    assert presets.find_preset(str(tiny)).terms() == []
