"""python -m lgm_blender.worker from a shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_home import own_home  # noqa: F401
from PIL import Image, ImageDraw
from shapes import sphere
from tiny_preset import write_preset

from lgm_blender.worker import meshing, presets
from lgm_blender.worker.__main__ import main
from lgm_blender.worker.console import DownloadPrinter
from lgm_blender.worker.download import Fetched

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny")


@pytest.fixture
def image(tmp_path) -> Path:
    picture = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 60, 50), fill=(200, 60, 30))
    picture.save(tmp_path / "a ż.png")
    return tmp_path / "a ż.png"


def start(*arguments: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lgm_blender.worker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        text=True,
        encoding="utf-8",
    )


def test_generate(preset, image, tmp_path):
    """In a process of its own, with paths relative to where it was started."""
    options = ["--image", image.name, "--output", "out put", "--preset", str(preset), "--seed", "3"]
    process = start("generate", *options, folder=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    paths = [Path(line) for line in out.splitlines()]
    assert [path.name for path in paths] == ["a ż.ply", "a ż_views.png", "a ż_input.png", "a ż.json"]
    assert all(path.is_file() and path.parent == tmp_path / "out put" for path in paths)
    assert "Sampling the views 3/3" in err.splitlines()
    assert json.loads(paths[-1].read_text(encoding="utf-8"))["settings"]["seed"] == 3


def test_generate_prints_json_and_takes_every_option(preset, tmp_path, capsys):
    options = ["--prompt", "a red ball", "--negative-prompt", "blue", "--name", "ball", "--steps", "2"]
    options += ["--guidance", "1", "--view-samples", "2", "--elevation", "-10", "--device", "cpu", "--json"]
    assert main(["generate", "--output", str(tmp_path / "out"), "--preset", str(preset), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    wanted = {"prompt": "a red ball", "negative_prompt": "blue", "steps": 2, "guidance": 1.0, "elevation": -10.0}
    wanted["view_samples"] = 2
    assert wanted.items() <= result["settings"].items()
    assert Path(result["ply"]).name == "ball.ply"


def test_generate_a_mesh(preset, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(meshing.EFFORT, "cpu", (12, 64, 64))
    monkeypatch.setattr("lgm_blender.worker.lgm.gaussians_from_views", lambda *_, **__: sphere(2000))
    options = ["--prompt", "ball", "--output-kind", "both", "--faces", "500", "--texture-size", "512"]
    options += ["--device", "cpu"]
    assert main(["generate", "--output", str(tmp_path), "--preset", str(preset), *options]) == 0
    captured = capsys.readouterr()
    names = [Path(line).name for line in captured.out.splitlines()]
    assert names == ["ball.ply", "ball.glb", "ball_views.png", "ball.json"]
    assert "Finding the surface" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--image", "none.png", "--output", "out", "--preset", "PRESET"], "There is no file"),
        (["generate", "--output", "out", "--preset", "PRESET"], "nothing to start from"),
        (["generate", "--image", "", "--output", "out", "--preset", "PRESET"], "is a folder"),
        (["generate", "--prompt", "x", "--output", "out", "--preset", "maxi"], "no preset 'maxi'"),
        (["generate", "--prompt", "x", "--output", "", "--preset", "lgm"], "no output folder"),
        (["generate", "--prompt", "x", "--output", "out", "--preset", "lgm"], "models --download lgm"),
        (["models", "--check", "lgm"], "models --download lgm"),
        (["models", "--download", "maxi"], "no preset 'maxi'"),
        (["models", "--download", "PRESET"], "not on the internet"),
    ],
)
def test_errors_are_a_sentence_and_exit_code_1(arguments, words, preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(preset) if argument == "PRESET" else argument for argument in arguments]) == 1
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert words in last
    assert "Traceback" not in captured.err
    assert not captured.out
    assert not (tmp_path / "out").exists()


def test_unknown_options_and_no_command(capsys):
    for arguments in ([], ["explode"], ["generate"], ["generate", "--output", "o", "--device", "tpu"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    for command in ([], ["serve"], ["generate"], ["models"]):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0
    assert "--guidance" in capsys.readouterr().out


def test_help_does_not_wait_for_torch(tmp_path):
    code = (
        "import sys\nimport lgm_blender.worker.__main__, lgm_blender.worker.server\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to the whole console")
def test_ctrl_c(preset, image, tmp_path):
    options = ["--image", image.name, "--output", "out", "--preset", str(preset), "--steps", "500"]
    process = start("generate", *options, folder=tmp_path)
    for line in process.stderr:
        if "Sampling the views 2/" in line:
            break
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 20
    assert out == ""
    assert err.splitlines()[-1] == "Cancelled."
    assert not (tmp_path / "out").exists()


def test_matte(image, tmp_path, capsys):
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 0, 20, 30))
    mask.save(tmp_path / "mask.png")
    options = [str(image), "--output", str(tmp_path / "out")]
    assert main(["matte", *options, "--matting", "border", "--matting-threshold", "0.3"]) == 0
    told = capsys.readouterr()
    assert [Path(line).name for line in told.out.splitlines()] == ["a ż_cutout.png", "a ż_input.png"]
    assert "cut out by: border" in told.err
    assert main(["matte", *options, "--mask", str(tmp_path / "mask.png")]) == 0
    cut = Image.open(capsys.readouterr().out.splitlines()[0])
    assert cut.getchannel("A").getbbox()[2] in range(38, 48)  # the left half, whatever is there
    assert main(["matte", *options, "--matting-threshold", "2"]) == 1
    assert "from 0 to 1" in capsys.readouterr().err


def test_models(preset, capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == presets.preset_names()
    assert main(["models", "--check", str(preset)]) == 0
    assert "lgm: " in capsys.readouterr().out
    assert main(["models", "--check", str(preset), "--mode", "text"]) == 0
    assert "image: " not in capsys.readouterr().out


def test_download_tells_how_far_it_is(capsys):
    """Blender reads these lines (blender/install.py)."""
    show = DownloadPrinter()
    for done in (0, 1_000_000, 50_400_000, 830_000_000):  # all within a second: the first and the last are told
        show(Fetched("ashawkey/LGM/m.safetensors", 1, 2, done, 830_000_000))
    show(Fetched("some/other/config.json", 2, 2, 400, 400))
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] ashawkey/LGM/m.safetensors: 0 of 830 MB",
        "[1/2] ashawkey/LGM/m.safetensors: 830 of 830 MB",
        "[2/2] some/other/config.json: 0 of 0 MB",
    ]


@pytest.mark.parametrize("command", ["views", "train", "evaluate"])
def test_training_commands_are_pointed_to_where_they_are_now(command, capsys):
    assert main([command, "--data", "x"]) == 1
    assert f"python -m lgm_blender.training {command}" in capsys.readouterr().err
