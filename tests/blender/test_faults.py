"""What becomes of a job when something breaks that nobody has asked for. Run: pytest tests/blender/test_faults.py

Every fault ends in one sentence, nothing hangs, nothing is left over, and the next job works; how often each was tried
with the real worker, and how long it took, is in docs/reliability.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from processes import is_running

from lgm_blender.blender import engine as engine_module
from lgm_blender.blender import process as process_module
from lgm_blender.blender.engine import Engine
from lgm_blender.blender.process import Process, clean_variables
from lgm_blender.core.errors import LGMError
from lgm_blender.core.messages import GenerateRequest

FAKE = Path(__file__).with_name("fake_worker.py")
ROOT = Path(__file__).parents[2]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture
def make_engine(tmp_path, monkeypatch):
    """Engines of the fake worker's behaviours; stopped at the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    engines = []

    def make(behaviour, **options):
        variables = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), tempfile.tempdir)
        engine = Engine(
            [sys.executable, "-u", str(FAKE), behaviour], variables=variables, logs=tmp_path / "logs", **options
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close(patience=0.1)


def request(folder) -> GenerateRequest:
    return GenerateRequest(job="", output=str(folder / "out"), image="/somewhere/apple.png", previews=False)


def until(condition, seconds=20.0, step=lambda: None):
    end = time.monotonic() + seconds
    while not condition():
        step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def next_job_works(engine, folder):
    engine.command[-1], engine.start_timeout = "well", 20
    assert engine.wait(engine.submit(request(folder)), timeout=20).gaussians == 4000


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("other_number", "answered what nobody had asked."),
        ("list_for_a_number", "answered what nobody had asked."),
        ("no_number", "answered what nobody had asked: This line is no message."),
        ("other_job", "for another, 'another'"),
        ("prints_garbage", "did not answer within 0.5 seconds"),
        ("mute_at_once", "closed its output"),
        ("killed_while_saving", "not enough memory"),
    ],
)
def test_a_worker_that_breaks_the_rules(make_engine, tmp_path, monkeypatch, behaviour, words):
    monkeypatch.setattr(process_module, "GRACE", 0.2)
    engine = make_engine(behaviour, start_timeout=0.5 if behaviour == "prints_garbage" else 20)
    with pytest.raises(LGMError) as caught:
        engine.wait(engine.submit(request(tmp_path)), timeout=20)
    assert words in caught.value.message
    assert len(caught.value.message) < 2000
    assert not engine.busy
    next_job_works(engine, tmp_path)


def test_a_second_answer_is_not_the_next_jobs(make_engine, tmp_path):
    engine = make_engine("answers_twice")
    engine.wait(engine.submit(request(tmp_path)))
    until(lambda: engine.state == "off", step=engine.step)
    assert "answered what nobody had asked" in engine.problem
    next_job_works(engine, tmp_path)


def test_a_flood_stops_nobody_and_fills_no_memory(make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "MAX_WAITING", 1 << 18)
    engine = make_engine("floods", cancel_timeout=0.5)
    job = engine.submit(request(tmp_path))
    slowest, most = 0.0, 0
    end = time.monotonic() + 1
    while not job.ended:
        before = time.monotonic()
        if before > end:
            engine.cancel(job)
        engine.step()
        slowest = max(slowest, time.monotonic() - before)
        most = max(most, engine._process._waiting if engine._process else 0)
        time.sleep(0.01)
    assert job.state == "cancelled"
    assert slowest < 0.5
    assert 0 < most < (1 << 18) + process_module.MAX_LINE
    until(lambda: engine.gone)
    until(lambda: not [thread for thread in threading.enumerate() if "_read" in thread.name])
    next_job_works(engine, tmp_path)


@POSIX
def test_what_a_killed_worker_left_is_removed_and_nobody_elses(make_engine, tmp_path):
    others = [tmp_path / "out" / ".lgm-0123456789ab-0000.part", tmp_path / "temporary" / "lgm_blender_previews_other_0"]
    (tmp_path / "out").mkdir()
    others[0].write_bytes(b"")
    others[1].mkdir()
    engine = make_engine("killed_while_saving")
    with pytest.raises(LGMError, match="memory"):
        engine.wait(engine.submit(request(tmp_path)))
    folders = tmp_path / "out", tmp_path / "temporary"
    until(lambda: sorted(path for folder in folders for path in folder.iterdir()) == others)


STARTS = """
import sys, time
from pathlib import Path
from lgm_blender.blender.engine import Engine
from lgm_blender.core.system import processes
processes.ORPHANED = 0.3
engine = Engine([sys.executable, "-u", sys.argv[1], "parent"], logs=Path(sys.argv[2]))
info = engine.wait_ready()
print(engine._process.pid, info.python, flush=True)
time.sleep(100)
"""
INSTALLS = """
import subprocess, sys, time
from pathlib import Path
from lgm_blender.blender.tasks import Step, Task
from lgm_blender.core.system import processes
processes.ORPHANED = 0.3
code = ("import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; "
        "time.sleep(100)']); print(os.getpid(), child.pid, flush=True); time.sleep(100)")
task = Task([Step.of("Fetching", [sys.executable, "-c", code])], Path(sys.argv[2]) / "log")
while not task.message:
    task.step()
    time.sleep(0.01)
print(task.message, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("code", [STARTS, INSTALLS], ids=["worker", "installer"])
def test_killed_blender_leaves_neither_child_nor_grandchild(tmp_path, code):
    """The worker is deaf: neither the end of its stdin nor a shutdown moves it. The installer has no stdin."""
    command = [sys.executable, "-c", code, str(FAKE), str(tmp_path)]
    blender = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    numbers = [int(word) for word in blender.stdout.readline().split()]
    assert len(numbers) == 2
    assert all(is_running(number) for number in numbers)
    blender.kill()
    blender.wait()
    blender.stdout.close()
    until(lambda: not any(is_running(number) for number in numbers), 5.0)


def test_what_a_process_started_ends_with_it(tmp_path):
    code = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], stdout=2); "
        "print(child.pid, flush=True)"
    )
    process = Process([sys.executable, "-c", code], clean_variables())
    until(lambda: process.exit_code() is not None)
    (line,) = process.lines()
    until(lambda: not is_running(int(line)))
    assert process.exit_code() == 0


@POSIX
def test_exit_codes_and_signals_are_the_commands_own():
    for code, expected in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM)):
        process = Process([sys.executable, "-c", code], clean_variables())
        until(lambda process=process: process.exit_code() is not None)
        assert process.exit_code() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_command_starts_with_no_signal_ignored_and_no_file_open():
    code = "grep SigIgn /proc/self/status; ls /proc/self/fd | wc -l"
    process = Process(["/bin/sh", "-c", code], clean_variables())
    until(lambda: process.exit_code() is not None)
    ignored, files = process.lines()
    by_shells = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP))  # `&`, nohup
    assert int(ignored.split()[1], 16) & ~by_shells == 0
    assert int(files) <= 4  # its three, and the folder that is listed


@POSIX
def test_a_stopped_worker_is_ended_when_cancelled(make_engine, tmp_path):
    engine = make_engine("steady", cancel_timeout=0.3)
    job = engine.submit(request(tmp_path))
    until(lambda: job.progress, step=engine.step)
    pid = engine._process.pid
    os.kill(pid, signal.SIGSTOP)
    engine.cancel(job)
    until(lambda: job.ended, step=engine.step)
    assert "did not react" in job.error
    until(lambda: not is_running(pid))
    next_job_works(engine, tmp_path)


@pytest.mark.parametrize("doing", ["starting", "cancelling", "waiting", "idle"])
def test_a_laptop_that_slept_does_not_blame_the_worker(make_engine, tmp_path, monkeypatch, doing):
    """After an hour the clock is past every deadline, and the worker has just woken up too."""
    real, slept = time.monotonic, [0.0]
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: real() + slept[0])
    behaviour = "slow" if doing == "waiting" else "steady"
    engine = make_engine(behaviour, start_timeout=60, cancel_timeout=30, idle_timeout=30)
    if doing == "idle":
        engine.wait_ready()
        process = engine._process
        slept[0] = 3600.0
        engine.step()
    else:
        job = engine.submit(request(tmp_path))
        process = engine._process
        if doing == "starting":
            slept[0] = 3600.0
        else:
            until(lambda: job.progress, step=engine.step)
        if doing == "cancelling":
            os.kill(process.pid, getattr(signal, "SIGSTOP", 0))  # so that its answer comes after the deadline
            engine.cancel(job)
            slept[0] = 3600.0
            engine.step()
            assert job.state == "cancelling"
            os.kill(process.pid, getattr(signal, "SIGCONT", 0))
        if doing == "waiting":
            threading.Timer(0.2, slept.__setitem__, (0, 3600.0)).start()
            assert engine.wait(job, timeout=60).gaussians == 4000
        until(lambda: job.progress or job.ended, step=engine.step)
    assert engine._process is process
    assert not engine.problem
