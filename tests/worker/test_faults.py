"""What becomes of a job when something breaks in the worker, or it is given up at a bad moment; see also tests/blender.

How often each fault was tried, and how long a cancel takes, is in docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tiny_preset import write_preset

from lgm_blender.core import messages
from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.core.messages import GenerateRequest
from lgm_blender.worker import server
from lgm_blender.worker.jobs import Imports, Job
from lgm_blender.worker.pipeline import Pipeline
from lgm_blender.worker.presets import file_table
from lgm_blender.worker.threads import parallel
from lgm_blender.worker.weights import CheckedFiles

ROOT = Path(__file__).parents[2]
LGM, UNET = "lgm/model.safetensors", "multiview/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny")


@pytest.fixture
def request_(tmp_path, preset) -> GenerateRequest:
    picture = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 60, 50), fill=(200, 60, 30))
    picture.save(tmp_path / "apple.png")
    return GenerateRequest(
        "job", str(tmp_path / "out"), image=str(tmp_path / "apple.png"), preset=str(preset), device="cpu"
    )


@pytest.fixture
def worker(tmp_path) -> Pipeline:
    return Pipeline(checked=CheckedFiles(tmp_path / "checked.json"))


# ---- Cancelled at any moment


def test_a_library_in_between_does_not_take_a_cancel_for_an_error_of_its_own():
    asked = iter([False, True])
    job = Job("a", ["load"], cancelled=lambda: next(asked))

    def library():
        tensor = torch.ones(1) + 1
        try:
            return tensor + 1
        except Exception as error:
            raise ValueError("unable to make a tensor") from error

    with pytest.raises(Cancelled), job.listening():
        library()
    assert torch.zeros(1) == 0  # nobody listens any more


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_cancel_leaves_torch_as_it_was(mode):
    """What puts a mode back goes through torch too, and must not be stopped itself."""
    job = Job("j", ("views",), cancelled=lambda: True)
    before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    tensor = torch.ones(1)
    with pytest.raises(Cancelled), job.listening(), mode():
        tensor + 1
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


@pytest.mark.parametrize("stage", ["load", "views", "gaussians"])
def test_a_cancel_is_heard_within_a_stage_and_the_next_job_is_well(worker, request_, stage):
    """Its first ten questions in the stage are answered with no: more are asked than by the steps alone."""
    now, questions = [""], [0]

    def cancelled() -> bool:
        questions[0] += now[0] == stage
        return questions[0] > 10

    with pytest.raises(Cancelled):
        worker.generate(request_, lambda progress: now.__setitem__(0, progress.stage), cancelled)
    assert now[0] == stage
    assert 11 <= questions[0] <= 20  # several threads may ask at once
    assert not Path(request_.output).exists()
    assert Path(worker.generate(request_).ply).exists()


def test_imports_go_on_behind_a_cancelled_job():
    imports, go_on, loaded = Imports(), threading.Event(), []
    started = time.monotonic()
    with pytest.raises(Cancelled):
        imports.run(lambda: go_on.wait(20) and loaded.append(1), lambda: time.monotonic() - started > 0.1)
    assert not loaded
    threading.Timer(0.1, go_on.set).start()
    imports.run(lambda: loaded.append(2), lambda: False)
    assert loaded == [1, 2]  # never two at once
    with pytest.raises(ZeroDivisionError):
        imports.run(lambda: 1 / 0, lambda: False)
    imports.run(lambda: loaded.append(3), lambda: False)
    assert loaded == [1, 2, 3]


def test_work_that_waits_for_a_thread_is_dropped():
    done = []

    def slow(i):
        time.sleep(0.02)
        done.append(i)

    def stop_after_two():
        with parallel("cpu") as (each, _):
            for i, _ in enumerate(each(slow, range(100))):
                if i == 2:
                    raise Cancelled

    with pytest.raises(Cancelled):
        stop_after_two()
    assert len(done) < 50


def test_a_job_that_does_not_listen_leaves_nothing_when_stdin_ends(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lgm_blender.core.files import temporary_file\n"
        "from lgm_blender.worker import server\n"
        "class Deaf:\n"
        "    previews, loaded = Path(sys.argv[1]) / 'previews', False\n"
        "    def generate(self, request, *_):\n"
        "        temporary_file(Path(request.output)).write_bytes(b'half')\n"
        "        time.sleep(60)\n"
        "server.Server(Deaf(), 0, 1, None, 60).run()\n"
    )
    (tmp_path / "previews").mkdir()
    line = messages.encode(messages.request(1, "generate", {"job": "a", "output": str(tmp_path)}))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    process.stdin.write(line)
    process.stdin.flush()
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".lgm-*")):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.communicate()
    assert list(tmp_path.iterdir()) == []


# ---- Disks


def test_a_worker_without_a_temporary_folder_works_without_previews(monkeypatch):
    seen = []

    class Stub:
        def __init__(self, pipeline, *_):
            seen.append(pipeline.previews)

        def run(self):
            pass

    def full():
        raise OSError("no usable temporary directory")

    monkeypatch.setattr(server, "make_temporary_folder", full)
    monkeypatch.setattr(server, "Server", Stub)
    monkeypatch.setattr(server, "_take_standard_streams", lambda: (0, 1))
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    server.serve()
    assert seen == [None]


# ---- Weights


@pytest.mark.parametrize(
    ("way", "part"),
    [
        ("cut", UNET),
        ("flipped", LGM),
        ("header", LGM),
        ("swapped", UNET),
        ("lacking", LGM),
        ("shape", UNET),
        ("whole numbers", LGM),
        ("nan", LGM),
        ("nan", UNET),
    ],
)
def test_spoiled_weights_are_a_sentence(worker, request_, preset, tmp_path, way, part):
    folder = tmp_path / "spoiled"
    shutil.copytree(preset, folder)
    path = folder / part
    data = path.read_bytes()
    state = load_file(path)
    name = random.Random(0).choice(sorted(state))
    if way == "cut":
        path.write_bytes(data[: len(data) // 3])
    elif way == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif way == "header":
        path.write_bytes((1 << 62).to_bytes(8, "little") + data[8:])
    elif way == "swapped":
        path.write_bytes((folder / "multiview/vae/diffusion_pytorch_model.safetensors").read_bytes())
    elif way == "lacking":
        save_file({key: tensor for key, tensor in state.items() if key != name}, path)
    elif way == "shape":
        save_file(state | {name: state[name].flatten()[:-1].clone()}, path)
    elif way == "whole numbers":
        save_file({key: tensor.to(torch.uint8) for key, tensor in state.items()}, path)
    else:
        save_file({key: torch.full_like(tensor, torch.nan) for key, tensor in state.items()}, path)
    if way != "flipped":  # its hash is what the table says: what is in the file must be looked at
        settings = json.loads((folder / "preset.json").read_text())
        (folder / "preset.json").write_text(json.dumps(settings | {"files": file_table(folder)}))
    with pytest.raises(LGMError) as caught:
        worker.generate(replace(request_, preset=str(folder)))
    assert caught.value.message.endswith(".")
    if way != "nan":
        assert caught.value.kind == "weights"
        assert path.name in caught.value.message
    assert not Path(request_.output).exists()
    if way == "swapped":
        assert Path(worker.generate(request_).ply).exists()
