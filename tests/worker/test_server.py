"""worker/server.py as Blender meets it: a process, lines in, lines out."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from shapes import sphere
from tiny_preset import write_preset

from lgm_blender.core import messages
from lgm_blender.core.formats.ply import write_ply
from lgm_blender.core.messages import (
    GenerateRequest,
    GenerateResult,
    Initialized,
    JobError,
    LoadRequest,
    LoadResult,
    MatteRequest,
    MatteResult,
    MeshRequest,
    MeshResult,
    Progress,
)
from lgm_blender.worker import server
from lgm_blender.worker.server import Server

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds; importing torch on a busy machine takes many


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny")


@pytest.fixture
def image(tmp_path) -> Path:
    picture = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 60, 50), fill=(200, 60, 30))
    picture.save(tmp_path / "żółw 亀.png")
    return tmp_path / "żółw 亀.png"


class Client:
    """A worker process and what it says."""

    def __init__(self, folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "lgm_blender.worker", "serve")):
        self.temporary = folder / "temporary"
        self.logs = folder / "logs"
        self.temporary.mkdir(exist_ok=True)
        variables = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "TEMP": str(self.temporary),
            "LGM_BLENDER_LOG_DIR": str(self.logs),
            "XDG_DATA_HOME": str(folder / "data"),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
        }
        self.stderr = (folder / "stderr.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=variables,
            cwd=folder,
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self.numbers = iter(range(1, 1000))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def write(self, data: bytes):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def ask(self, method: str, params=None) -> int:
        number = next(self.numbers)
        self.write(messages.encode(messages.request(number, method, params)))
        return number

    def generate(self, **fields) -> int:
        return self.ask("generate", messages.to_params(GenerateRequest(**fields)))

    def hear(self) -> dict:
        """The next message; every line must be one."""
        line = self.lines.get(timeout=PATIENCE)
        assert line, "the worker left"
        return messages.decode(line)

    def hear_until(self, stop) -> list[dict]:
        heard = []
        while not heard or not stop(heard[-1]):
            heard.append(self.hear())
        return heard

    def answer(self, number: int | None) -> dict:
        return self.hear_until(lambda message: "id" in message and message["id"] == number)[-1]

    def close(self) -> int:
        self.process.stdin.close()
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Client:
    """One worker for the tests that need no end."""
    client = Client(tmp_path_factory.mktemp("worker"))
    yield client
    assert client.close() == 0


@pytest.fixture
def client(tmp_path) -> Client:
    client = Client(tmp_path)
    yield client
    client.process.kill()
    client.process.wait()


def error_of(message: dict) -> tuple[int, str, JobError]:
    error = message["error"]
    return error["code"], error["message"], messages.from_params(JobError, error["data"])


def test_initialize(shared):
    ready = messages.from_params(Initialized, shared.answer(shared.ask("initialize"))["result"])
    assert ready.protocol == messages.PROTOCOL_VERSION
    assert ready.device in ("cpu", "cuda")
    assert {"mini", "lgm"} <= {preset.name for preset in ready.presets}
    assert all(preset.ready or preset.problem for preset in ready.presets)
    assert Path(ready.log).parent == shared.logs
    assert "started" in Path(ready.log).read_text(encoding="utf-8")


def test_generate(shared, preset, image, tmp_path):
    number = shared.generate(job="ä 1", output=str(tmp_path / "out"), image=str(image), preset=str(preset))
    *told, answer = shared.hear_until(lambda message: message.get("id") == number)
    result = messages.from_params(GenerateResult, answer["result"])
    assert result.job == "ä 1"
    for path in (result.ply, result.views, result.input, result.json):
        assert Path(path).parent == tmp_path / "out"
        assert Path(path).name.startswith("żółw 亀")
    assert json.loads(Path(result.json).read_text(encoding="utf-8")) == answer["result"]

    assert {message["method"] for message in told} == {"progress"}
    progress = [messages.from_params(Progress, message["params"]) for message in told]
    assert {p.job for p in progress} == {"ä 1"}
    assert list(dict.fromkeys(p.stage for p in progress)) == list(messages.STAGES)
    assert [p.step for p in progress if p.stage == "views"] == [0, 1, 2, 3]
    previews = [p.preview for p in progress if p.preview]
    assert previews
    assert Image.open(previews[-1]).size == (64, 16)
    assert shared.temporary in Path(previews[-1]).parents


def test_bad_input_is_a_sentence_and_the_worker_goes_on(shared, preset, image, tmp_path):
    for change, kind in (
        ({"image": str(tmp_path / "none.png")}, "bad_input"),
        ({"preset": "maxi"}, "bad_input"),
        ({"output": str(image / "x")}, "output"),
        ({"preset": str(tmp_path)}, "weights"),
    ):
        fields = {"job": "j", "output": str(tmp_path / "out"), "image": str(image), "preset": str(preset)}
        code, sentence, data = error_of(shared.answer(shared.generate(**fields | change)))
        assert code == messages.JOB_FAILED
        assert sentence.endswith(".")
        assert (data.job, data.kind) == ("j", kind)
        assert Path(data.log).exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "code", "id"),
    [
        (b"{", messages.PARSE_ERROR, None),
        (b"\xff\xfe\x00garbage", messages.PARSE_ERROR, None),
        (b"[1, 2]", messages.PARSE_ERROR, None),
        (b'"hello"', messages.PARSE_ERROR, None),
        (b"[" * 100_000, messages.PARSE_ERROR, None),
        (b"x" * 300_000, messages.PARSE_ERROR, None),
        (b"{}", messages.INVALID_REQUEST, None),
        (b'{"id": 3}', messages.INVALID_REQUEST, 3),
        (b'{"id": [1], "method": "cancel", "params": {"job": 1}}', messages.INVALID_REQUEST, None),
        (b'{"id": {}, "method": "initialize"}', messages.INVALID_REQUEST, None),
        (b'{"id": true, "method": "initialize"}', messages.INVALID_REQUEST, None),
        (b'{"method": "initialize"}', messages.INVALID_REQUEST, None),
        (b'{"id": "x", "method": "explode"}', messages.METHOD_NOT_FOUND, "x"),
        (b'{"id": 4, "method": "generate"}', messages.INVALID_PARAMS, 4),
        (b'{"id": 4, "method": "generate", "params": 7}', messages.INVALID_PARAMS, 4),
        (b'{"id": 4, "method": "generate", "params": {"job": 1, "output": "x"}}', messages.INVALID_PARAMS, 4),
        (
            b'{"id": 4, "method": "generate", "params": {"job": "a", "output": "x", "sed": 1}}',
            messages.INVALID_PARAMS,
            4,
        ),
    ],
)
def test_garbage_is_answered(shared, line, code, id):
    shared.write(b"\n  \r\n" + line + b"\n")
    message = shared.hear()
    assert message["jsonrpc"] == "2.0"
    assert message["id"] == id or (id is None and message["id"] is not None and code == messages.INVALID_REQUEST)
    assert message["error"]["code"] == code
    assert message["error"]["message"].endswith(".")


@pytest.mark.parametrize("job", ["NaN", "1e999", "[1]", '"none"'])
def test_a_job_that_is_none_can_not_be_cancelled(shared, job):
    shared.write(b'{"id": 5, "method": "cancel", "params": {"job": %s}}\n' % job.encode())
    assert shared.hear()["result"]["cancelled"] is False


def test_a_message_may_come_in_pieces(shared):
    line = messages.encode(messages.request(77, "cancel", {"job": "none"}))
    for i in range(0, len(line), 9):
        shared.write(line[i : i + 9])
        time.sleep(0.002)
    assert shared.answer(77)["result"] == {"job": "none", "cancelled": False}


def test_cancel_within_a_step_and_the_next_job_is_well(shared, preset, image, tmp_path):
    fields = {"output": str(tmp_path / "out"), "image": str(image), "preset": str(preset)}
    first = shared.generate(job="long", steps=500, **fields)
    second = shared.generate(job="short", **fields)
    shared.hear_until(lambda m: m.get("params", {}).get("step", 0) >= 2)
    cancel = shared.ask("cancel", {"job": "long"})
    waiting = {first, cancel}  # whose answers come in either order
    heard = shared.hear_until(lambda m: waiting.discard(m.get("id")) or not waiting)
    answers = {m["id"]: m for m in heard if m.get("id") in (first, cancel)}
    assert answers[cancel]["result"] == {"job": "long", "cancelled": True}
    assert len([m for m in heard[heard.index(answers[cancel]) :] if m.get("method") == "progress"]) <= 1
    assert error_of(answers[first])[2].kind == "cancelled"
    assert "result" in shared.answer(second)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_waiting_job_is_cancelled_at_once(shared, preset, image, tmp_path):
    fields = {"output": str(tmp_path / "out"), "image": str(image), "preset": str(preset)}
    first = shared.generate(job="first", steps=500, **fields)
    second = shared.generate(job="second", **fields)
    shared.hear_until(lambda m: m.get("params", {}).get("step", 0) >= 1)
    shared.ask("cancel", {"job": "second"})
    heard = shared.hear_until(lambda m: m.get("id") == second)
    assert error_of(heard[-1])[2] == JobError("second", "cancelled", error_of(heard[-1])[2].log)
    assert not any(m.get("id") == first for m in heard)
    shared.ask("cancel", {"job": "first"})
    assert error_of(shared.answer(first))[2].kind == "cancelled"


def test_a_mesh_is_a_job_like_any_other(shared, tmp_path):
    write_ply(tmp_path / "ball.ply", sphere(2000))
    fields = {"ply": str(tmp_path / "ball.ply"), "output": str(tmp_path / "out"), "device": "cpu"}
    first = shared.ask("mesh", messages.to_params(MeshRequest("m", **fields)))
    shared.hear_until(lambda m: m.get("params", {}).get("stage") == "render" and m["params"]["step"] >= 2)
    shared.ask("cancel", {"job": "m"})
    heard = shared.hear_until(lambda m: m.get("id") == first)
    assert error_of(heard[-1])[2].kind == "cancelled"
    assert not (tmp_path / "out").exists()
    for change, words in (({"faces": 4}, "not 4"), ({"ply": "none.ply"}, "There is no file")):
        number = shared.ask("mesh", messages.to_params(MeshRequest("m", **fields | change)))
        code, sentence, data = error_of(shared.answer(number))
        assert (code, data.kind) == (messages.JOB_FAILED, "bad_input")
        assert words in sentence
    number = shared.ask("mesh", {"job": "m", "ply": "x"})
    assert error_of(shared.answer(number))[0] == messages.INVALID_PARAMS


def test_a_cut_out_is_a_job_like_any_other(shared, image, tmp_path):
    fields = {"image": str(image), "output": str(tmp_path / "out")}
    answer = shared.answer(shared.ask("matte", messages.to_params(MatteRequest("c", **fields))))
    result = messages.from_params(MatteResult, answer["result"])
    assert result.matting == "border"
    assert Image.open(result.cutout).size == (80, 60)
    number = shared.ask("matte", messages.to_params(MatteRequest("c", **fields, matting="network")))
    assert error_of(shared.answer(number))[2].kind == "matting"


def test_two_jobs_of_one_name(shared, preset, image, tmp_path):
    fields = {"output": str(tmp_path / "out"), "image": str(image), "preset": str(preset)}
    first = shared.generate(job="same", steps=500, **fields)
    second = shared.generate(job="same", **fields)
    code, sentence, _ = error_of(shared.answer(second))
    assert code == messages.INVALID_PARAMS
    assert "already" in sentence
    shared.ask("cancel", {"job": "same"})
    shared.answer(first)


def test_leaves_when_stdin_ends_and_cleans_up(client):
    client.answer(client.ask("initialize"))
    assert list(client.temporary.glob("lgm_blender_previews_*"))
    assert client.close() == 0
    assert client.lines.get(timeout=5) == b""
    assert not list(client.temporary.glob("lgm_blender_previews_*"))


def test_leaves_within_a_step_when_stdin_ends_during_a_job(client, preset, image, tmp_path):
    client.generate(job="long", output=str(tmp_path / "out"), image=str(image), preset=str(preset), steps=500)
    client.hear_until(lambda m: m.get("params", {}).get("step", 0) >= 2)
    began = time.monotonic()
    assert client.close() == 0
    assert time.monotonic() - began < 10
    assert not (tmp_path / "out").exists()
    assert not list(client.temporary.glob("lgm_blender_previews_*"))


def test_what_was_asked_before_stdin_ended_is_answered(client):
    number = client.ask("initialize")
    client.process.stdin.close()
    assert client.answer(number)["result"]["protocol"] == messages.PROTOCOL_VERSION
    assert client.process.wait(PATIENCE) == 0


def test_shutdown(client):
    number = client.ask("shutdown")
    assert client.answer(number)["result"] == {}
    assert client.process.wait(PATIENCE) == 0


# A worker whose GPU fails in the job that is called 'sick'.
SICK = """
import time
from lgm_blender.worker import lgm, pipeline, server
def fail(*_, **__):
    time.sleep(0.3)  # so that the other job has come
    raise RuntimeError("CUDA error: an illegal memory access was encountered\\nCompile with TORCH_USE_CUDA_DSA")
pipeline._import_models()
lgm.gaussians_from_views = fail
server.serve()
"""


def test_a_worker_whose_gpu_failed_answers_and_leaves(tmp_path, preset, image):
    client = Client(tmp_path, program=("-c", SICK))
    fields = {"output": str(tmp_path / "out"), "image": str(image), "preset": str(preset)}
    sick, waiting = client.generate(job="sick", **fields), client.generate(job="waiting", **fields)
    _, sentence, data = error_of(client.answer(sick))
    assert sentence.startswith("The GPU failed (CUDA error: an illegal memory access was encountered), and its worker")
    assert (data.job, data.kind) == ("sick", "device")
    _, sentence, data = error_of(client.answer(waiting))
    assert sentence == "The GPU failed in an earlier job. Try again, with a new worker."
    assert data.kind == "device"
    assert client.process.wait(PATIENCE) == 0  # while its stdin is open
    assert not (tmp_path / "out").exists()
    assert not list(client.temporary.glob("lgm_blender_previews_*"))


def test_models_are_loaded_ahead(shared, preset, image, tmp_path):
    number = shared.ask("load", messages.to_params(LoadRequest("l", str(preset), "image", "cpu")))
    *told, answer = shared.hear_until(lambda message: message.get("id") == number)
    result = messages.from_params(LoadResult, answer["result"])
    assert (result.job, result.loaded, result.warnings) == ("l", True, [])
    assert {message["params"]["stage"] for message in told} == {"load"}
    number = shared.ask("load", messages.to_params(LoadRequest("l", str(tmp_path))))
    assert error_of(shared.answer(number))[2].kind == "weights"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_killed_worker_leaves_no_results_and_a_new_one_starts(client, preset, image, tmp_path):
    client.generate(job="long", output=str(tmp_path / "out"), image=str(image), preset=str(preset), steps=500)
    client.hear_until(lambda m: m.get("params", {}).get("step", 0) >= 2)
    client.process.send_signal(signal.SIGKILL)
    assert client.process.wait(PATIENCE) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()

    second = Client(tmp_path)
    number = second.generate(job="short", output=str(tmp_path / "out"), image=str(image), preset=str(preset))
    assert "result" in second.answer(number)
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(PATIENCE) == 0


def test_prints_of_libraries_do_not_reach_the_protocol(tmp_path):
    """The process's own stdout is a pipe to stderr; only the server has the real one."""
    code = (
        "import os, sys\n"
        "from lgm_blender.worker.server import _take_standard_streams\n"
        "stdin, stdout = _take_standard_streams()\n"
        "print('from Python', flush=True)\n"
        "os.system('echo from a child')\n"
        "os.write(1, b'from C')\n"
        "assert os.read(0, 9) == b''\n"
        "os.write(stdout, os.read(stdin, 9))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"message", capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == b"message"
    for words in (b"from Python", b"from a child", b"from C"):
        assert words in done.stderr


# The rest is tested on the object, in this process.


class FakePipeline:
    """Stands in for Pipeline: counts, fails and waits as it is told."""

    def __init__(self, previews=None):
        self.previews = previews
        self.loaded = False
        self.freed = threading.Event()

    def generate(self, request, progress, cancelled):
        self.loaded = True
        if request.name == "crash":
            raise ZeroDivisionError("division by zero\nand more")
        return GenerateResult(request.job, "p", "v", None, "j", 1, {}, {}, {}, "cpu")

    def mesh(self, request, progress, cancelled):
        return MeshResult(request.job, "g", 1, 2, {"up": request.up}, {}, "cpu")

    def free(self):
        self.loaded = False
        self.freed.set()


def close_when_read(*descriptors: int) -> None:
    """Closes a server's descriptors once its reader has left: on a number used anew it would read the next test's."""
    for thread in threading.enumerate():
        if thread.name == "reader":
            thread.join(10)
            assert not thread.is_alive()
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def inside(tmp_path):
    """(what writes to the server, what reads from it, its pipeline); it is told to leave at the end."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    pipeline = FakePipeline()
    instance = Server(pipeline, in_read, out_write, tmp_path / "log", idle_seconds=0.0)
    thread = threading.Thread(target=instance.run)
    thread.start()
    with os.fdopen(in_write, "wb", buffering=0) as stdin, os.fdopen(out_read, "rb") as stdout:
        yield stdin, stdout, pipeline
        stdin.close()
        thread.join(10)
        assert not thread.is_alive()
    close_when_read(in_read, out_write)


def ask(stdin, stdout, method, params) -> dict:
    stdin.write(messages.encode(messages.request(1, method, params)))
    return messages.decode(stdout.readline())


def test_each_method_has_its_result(inside):
    stdin, stdout, _ = inside
    answer = ask(stdin, stdout, "mesh", {"job": "a", "ply": "p", "output": "o", "up": "z"})["result"]
    assert messages.from_params(MeshResult, answer).settings == {"up": "z"}
    answer = ask(stdin, stdout, "generate", {"job": "a", "output": "o"})["result"]
    assert messages.from_params(GenerateResult, answer).ply == "p"


def test_a_crash_in_a_job_is_a_sentence_and_no_end(inside, tmp_path):
    stdin, stdout, _ = inside
    code, sentence, data = error_of(ask(stdin, stdout, "generate", {"job": "a", "output": "o", "name": "crash"}))
    assert code == messages.JOB_FAILED
    assert sentence.startswith("Something went wrong in the worker (ZeroDivisionError: division by zero). Try again")
    assert data == JobError("a", "internal", str(tmp_path / "log"))
    assert "result" in ask(stdin, stdout, "generate", {"job": "a", "output": "o"})


def test_memory_is_given_back_when_idle(inside):
    stdin, stdout, pipeline = inside
    ask(stdin, stdout, "generate", {"job": "a", "output": "o"})
    assert pipeline.freed.wait(10)
    assert not pipeline.loaded


def test_a_job_that_does_not_listen_is_ended_by_force(tmp_path):
    """Loading a large model takes long and asks nobody. The process ends all the same, and this one must not."""
    code = (
        "import os, sys, time\n"
        "from lgm_blender.worker import server\n"
        "server.GRACE = 0.2\n"
        "class Deaf:\n"
        "    previews, loaded = None, False\n"
        "    def generate(self, *_):\n"
        "        time.sleep(60)\n"
        "server.Server(Deaf(), 0, 1, None, 60).run()\n"
    )
    line = messages.encode(messages.request(1, "generate", {"job": "a", "output": "o"}))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], input=line, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 30


def test_a_server_that_has_left_ends_nothing_later(monkeypatch, inside):
    ended = []
    monkeypatch.setattr(server.os, "_exit", ended.append)
    stdin, stdout, _ = inside
    ask(stdin, stdout, "shutdown", {})
    deadline = time.monotonic() + 10
    while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not ended


def test_a_closed_stdout_ends_the_worker(tmp_path):
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    os.close(out_read)
    instance = Server(FakePipeline(), in_read, out_write, None, 60)
    thread = threading.Thread(target=instance.run)
    thread.start()
    os.write(in_write, messages.encode(messages.request(1, "generate", {"job": "a", "output": "o"})))
    thread.join(60)
    assert not thread.is_alive()
    os.close(in_write)
    close_when_read(in_read, out_write)


def test_lines_that_never_end_are_cut(monkeypatch):
    monkeypatch.setattr(server, "LINE_LIMIT", 1000)
    read, write = os.pipe()
    os.write(write, b"a" * 3000 + b"\nb\nc")
    os.close(write)
    lines = list(server._lines(read))
    os.close(read)
    assert b"".join(lines) == b"a" * 3000 + b"bc"
    assert lines[-2:] == [b"b", b"c"]


def test_a_worker_without_its_packages_says_so(monkeypatch):
    monkeypatch.setattr(server.environment, "modules", lambda: ["json", "no_such_package"])
    with pytest.raises(server.LGMError, match=r"lacks no_such_package. Install the worker again") as caught:
        server.describe()
    assert caught.value.kind == "worker"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux to tell what listens")
def test_no_port_is_open_and_what_is_temporary_is_private(shared, preset, image, tmp_path):
    """Nobody on this machine or the network can talk to it, or look at what it makes meanwhile."""
    shared.answer(shared.generate(job="port", output=str(tmp_path), image=str(image), preset=str(preset)))
    links = [str(each.readlink()) for each in Path(f"/proc/{shared.process.pid}/fd").iterdir()]
    sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
    listening = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        listening |= {row[9] for row in rows if row[3] in ("0A", "07")}
    assert not sockets & listening
    folders = [shared.logs, *shared.temporary.iterdir()]
    assert len(folders) > 1
    assert [folder.stat().st_mode & 0o077 for folder in folders] == [0] * len(folders)
