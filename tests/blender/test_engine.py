"""The engine against workers that behave and misbehave. Run: pytest tests/blender/test_engine.py"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import is_running

from lgm_blender.blender import engine as engine_module
from lgm_blender.blender import process as process_module
from lgm_blender.blender.engine import Engine, log_folder, worker_command
from lgm_blender.blender.process import MAX_LINE, Process, clean_variables
from lgm_blender.core.errors import LGMError
from lgm_blender.core.messages import GenerateRequest

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def make_engine(tmp_path):
    """Engines of the fake worker's behaviours; stopped at the end."""
    engines = []

    def make(behaviour="well", **options):
        engine = Engine([sys.executable, "-u", str(FAKE), behaviour], logs=tmp_path / "logs", **options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close(patience=0.1)


def request(folder, **values) -> GenerateRequest:
    return GenerateRequest(**{"job": "", "output": str(folder / "out"), "image": "/somewhere/apple.png", **values})


def run_until(engine, condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        engine.step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def sleep_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_generates(make_engine, tmp_path):
    engine = make_engine()
    seen = []
    result = engine.wait(engine.submit(request(tmp_path)), on_progress=lambda job: seen.append(job.state))
    assert Path(result.ply) == tmp_path / "out" / "apple.ply"
    assert seen[0] == "running"
    assert seen[-1] == "done"
    assert engine.state == "ready"
    assert [preset.name for preset in engine.info.presets] == ["mini", "lgm"]


def test_step_never_waits(make_engine, tmp_path):
    engine = make_engine("slow")
    job = engine.submit(request(tmp_path))
    longest = 0.0
    while not job.ended:
        before = time.monotonic()
        engine.step()
        longest = max(longest, time.monotonic() - before)
        time.sleep(0.01)
    assert job.state == "done"
    assert longest < 0.1


def test_step_tells_each_change_once(make_engine, tmp_path):
    engine = make_engine()
    job = engine.submit(request(tmp_path))
    changes = []
    while not job.ended:
        changes += engine.step()
        time.sleep(0.01)
    assert changes[-1] is job
    assert engine.step() == []


def test_second_job_needs_no_second_start(make_engine, tmp_path):
    engine = make_engine()
    engine.wait(engine.submit(request(tmp_path)))
    pid = engine._process.pid
    result = engine.wait(engine.submit(request(tmp_path)))
    assert engine._process.pid == pid
    assert Path(result.ply).name == "apple_2.ply"


def test_after_a_gpu_failed_the_next_job_gets_a_new_worker(make_engine, tmp_path):
    engine = make_engine("sick_once")
    first, second = engine.submit(request(tmp_path)), engine.submit(request(tmp_path))
    run_until(engine, lambda: first.ended and second.ended)
    assert (first.kind, second.kind) == ("device", "device")
    assert "The GPU failed" in first.error
    assert second.error == "The GPU failed in another job. Try again, with a new worker."
    assert (engine.state, engine.problem) == ("off", "")
    third = engine.submit(request(tmp_path))  # at once: the old worker may still be leaving
    assert Path(engine.wait(third).ply).name == "apple.ply"
    run_until(engine, lambda: all(process.wait(0) for process in engine._leaving))


def test_two_jobs_at_once(make_engine, tmp_path):
    engine = make_engine()
    first, second = engine.submit(request(tmp_path)), engine.submit(request(tmp_path))
    engine.wait(second)
    assert first.state == "done"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("dies_at_start", ["could not start", "exit code 1", "No module named 'torch'", "worker_stderr.log"]),
        ("haunted", ["could not start", "exit code 3"]),
        ("dies_in_job", ["stopped unexpectedly", "exit code 7", "the roof is on fire"]),
        ("old", ["version 99"]),
        ("mute", ["closed its output"]),
    ],
)
def test_death_is_a_sentence(make_engine, tmp_path, monkeypatch, behaviour, words):
    if behaviour in ("haunted", "mute"):
        monkeypatch.setattr(process_module, "GRACE", 0.2)
    engine = make_engine(behaviour)
    with pytest.raises(LGMError) as caught:
        engine.wait(engine.submit(request(tmp_path)), timeout=20)
    for word in words:
        assert word in caught.value.message
    assert caught.value.kind == "worker"
    assert engine.state == "off"
    assert not engine.busy


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_killed_for_memory(make_engine, tmp_path):
    engine = make_engine("killed_in_job")
    with pytest.raises(LGMError, match="memory") as caught:
        engine.wait(engine.submit(request(tmp_path)))
    assert caught.value.kind == "out_of_memory"


def test_silent_worker_is_given_up(make_engine, tmp_path):
    engine = make_engine("silent", start_timeout=0.5)
    job = engine.submit(request(tmp_path))
    pid = engine._process.pid
    with pytest.raises(LGMError, match=r"did not answer within 0\.5 seconds"):
        engine.wait(job)
    run_until(engine, lambda: not is_running(pid))


def test_program_that_is_not_there(tmp_path):
    engine = Engine([str(tmp_path / "no python")], logs=tmp_path)
    job = engine.submit(request(tmp_path))
    assert engine.step() == [job]
    assert "could not be started" in job.error
    with pytest.raises(LGMError, match="could not be started"):
        engine.wait_ready()


def test_starts_again_after_a_death(make_engine, tmp_path):
    engine = make_engine("dies_once")
    with pytest.raises(LGMError, match="exit code 7"):
        engine.wait(engine.submit(request(tmp_path)))
    assert engine.wait(engine.submit(request(tmp_path))).gaussians == 4000


def test_starts_again_after_an_unnoticed_death(make_engine, tmp_path):
    engine = make_engine()
    engine.wait(engine.submit(request(tmp_path)))
    engine._process.kill()
    assert engine._process.wait(5)
    time.sleep(0.1)
    assert engine.wait(engine.submit(request(tmp_path)), timeout=20)


def test_error_of_a_job(make_engine, tmp_path):
    engine = make_engine("refuses")
    with pytest.raises(LGMError, match="The image is empty") as caught:
        engine.wait(engine.submit(request(tmp_path)))
    assert caught.value.kind == "bad_input"
    assert engine.state == "ready"


def test_result_of_another_shape(make_engine, tmp_path):
    engine = make_engine("bad_result")
    with pytest.raises(LGMError, match="can't be read"):
        engine.wait(engine.submit(request(tmp_path)))


@pytest.mark.parametrize("line", [b'{"id": {}}', b'{"id": NaN}', b'{"method": []}', b"[" * 100_000])
def test_a_line_that_makes_no_sense_is_passed_over(make_engine, tmp_path, line):
    engine = make_engine()
    engine.wait_ready(20)
    job = engine.submit(request(tmp_path))
    engine._receive(line)
    assert engine.wait(job, timeout=20)


def test_noise_on_stdout_is_not_a_message(make_engine, tmp_path):
    engine = make_engine("chatty")
    assert engine.wait(engine.submit(request(tmp_path)), timeout=20).gaussians == 4000
    assert any("a library says" in line for line in engine._process.tail)
    assert any(str(MAX_LINE) in line for line in engine._process.tail)


def test_cancel(make_engine, tmp_path):
    engine = make_engine("long")
    job = engine.submit(request(tmp_path))
    run_until(engine, lambda: job.progress)
    engine.cancel(job)
    assert job.state == "cancelling"
    run_until(engine, lambda: job.ended, 1.0)
    assert (job.state, job.kind) == ("cancelled", "cancelled")
    assert engine.state == "ready"


def test_cancel_before_the_worker_is_up(make_engine, tmp_path):
    engine = make_engine()
    job = engine.submit(request(tmp_path))
    engine.cancel(job)
    assert job.state == "cancelled"
    run_until(engine, lambda: engine.state == "ready")
    assert not (tmp_path / "out").exists()


def test_deaf_worker_is_ended_and_the_next_job_runs(make_engine, tmp_path):
    engine = make_engine("deaf", cancel_timeout=0.3)
    job, waiting = engine.submit(request(tmp_path)), engine.submit(request(tmp_path))
    run_until(engine, lambda: job.progress)
    pid = engine._process.pid
    engine.cancel(job)
    run_until(engine, lambda: job.ended)
    assert job.state == "cancelled"
    run_until(engine, lambda: waiting.progress)
    assert engine._process.pid != pid
    assert not is_running(pid)


def test_job_that_is_cancelled_too_does_not_come_back_with_the_next_worker(make_engine, tmp_path):
    engine = make_engine("deaf", cancel_timeout=0.3)
    first, second = engine.submit(request(tmp_path)), engine.submit(request(tmp_path))
    run_until(engine, lambda: first.progress)
    engine.cancel(first)
    time.sleep(0.1)
    engine.cancel(second)
    run_until(engine, lambda: first.ended)
    assert second.state == "cancelled"
    assert not engine.busy


def test_timeout_of_a_job(make_engine, tmp_path):
    engine = make_engine("long")
    with pytest.raises(LGMError, match="longer than"):
        engine.wait(engine.submit(request(tmp_path)), timeout=0.5)
    assert not engine.busy


@pytest.mark.parametrize("behaviour", ["long", "deaf", "silent"])
def test_closing_leaves_nothing(make_engine, tmp_path, behaviour):
    engine = make_engine(behaviour)
    job = engine.submit(request(tmp_path))
    if behaviour != "silent":
        run_until(engine, lambda: job.progress)
    pid = engine._process.pid
    before = time.monotonic()
    engine.close(patience=0.3)
    assert time.monotonic() - before < 2
    assert not is_running(pid)
    assert job.state == "cancelled"
    assert engine.state == "off"
    engine.close()  # twice is no mistake
    ours = (
        Process._see_off.__name__,
        Process._read_lines.__name__,
        Process._read_errors.__name__,
        Process._write.__name__,
    )
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if any(name in thread.name for name in ours)]


def test_stopping_does_not_wait_for_a_deaf_worker(make_engine, tmp_path, monkeypatch):
    """Nobody steps the engine afterwards, and yet nothing is left of it."""
    monkeypatch.setattr(engine_module, "PATIENCE", 0.5)
    engine = make_engine("deaf")
    job = engine.submit(request(tmp_path))
    run_until(engine, lambda: job.progress)
    pid = engine._process.pid
    before = time.monotonic()
    engine.stop()
    assert time.monotonic() - before < 0.4
    assert (job.state, engine.state, engine.gone) == ("cancelled", "off", False)
    sleep_until(lambda: engine.gone)
    assert not is_running(pid)


def test_worker_that_ignores_its_idle_deadline_is_ended(make_engine, monkeypatch):
    monkeypatch.setattr(engine_module, "PATIENCE", 0.3)
    engine = make_engine("deaf", idle_timeout=0.1)
    engine.start()
    pid = engine._process.pid
    run_until(engine, lambda: engine.state == "off")
    sleep_until(lambda: not is_running(pid))  # the window's timer ends when the engine is off


LEAVES = """
import sys, time
from pathlib import Path
from lgm_blender.blender.engine import Engine
engine = Engine([sys.executable, "-u", sys.argv[1], "deaf"], logs=Path(sys.argv[2]))
engine.wait_ready()
print(engine._process.pid, flush=True)
if sys.argv[3] == "stopped":
    engine.stop()
"""


@pytest.mark.parametrize("end", ["stopped", "running"])
def test_end_of_blender_leaves_no_worker(tmp_path, end):
    command = [sys.executable, "-c", LEAVES, str(FAKE), str(tmp_path), end]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=True, timeout=60)
    assert not is_running(int(done.stdout))


def test_idle_worker_is_sent_home(make_engine, tmp_path):
    engine = make_engine(idle_timeout=0.2)
    engine.wait(engine.submit(request(tmp_path)))
    pid = engine._process.pid
    run_until(engine, lambda: engine.state == "off" and not is_running(pid))
    assert engine.wait(engine.submit(request(tmp_path))).gaussians == 4000


def test_wait_ready(make_engine):
    assert make_engine().wait_ready(20).device == "cpu"


def test_full_pipe_does_not_stop_the_caller(tmp_path):
    process = Process([sys.executable, "-c", "import time; time.sleep(30)"], clean_variables())
    before = time.monotonic()
    process.write(b"x" * (8 << 20))
    assert time.monotonic() - before < 0.5
    process.kill()
    assert process.wait(5)


def test_another_python_sees_nothing_of_this_one(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    variables = clean_variables({"A": "1"})
    assert "PYTHONHOME" not in variables
    assert "PYTHONPATH" not in variables
    assert variables["PYTHONNOUSERSITE"] == variables["PYTHONUTF8"] == variables["A"] == "1"


def test_worker_command_finds_the_package_under_any_name(tmp_path, monkeypatch):
    """The worker is started from the installed folder, whose parent holds other people's modules."""
    folder = tmp_path / "an extension, by another näme"
    (folder / "worker").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "worker" / "__init__.py").write_text("")
    (tmp_path / "json.py").write_text("raise SystemExit('the neighbour was imported')")
    (folder / "worker" / "__main__.py").write_text(
        "import json, sys, lgm_blender.worker\nprint(__name__, sys.argv[1:], lgm_blender.worker.__package__)"
    )
    monkeypatch.setattr(engine_module, "PACKAGE", folder)
    process = Process(worker_command(sys.executable, "serve"), clean_variables(), merge_errors=True)
    assert process.wait(20)
    time.sleep(0.1)
    assert process.lines() == [b"__main__ ['serve'] lgm_blender.worker\n"]


def test_log_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LGM_BLENDER_LOG_DIR", str(tmp_path))
    assert log_folder() == tmp_path
