"""The session as the window drives it: its timer, its undo steps, other files opened meanwhile.

Run: pytest tests/blender/test_session.py

Blender as a module has a window and an undo history, but never draws and fires no timers: what only happens in a window
is called here.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import bpy
import pytest

import lgm_blender
from lgm_blender.blender import engine as engine_module
from lgm_blender.blender import install, session, tasks
from lgm_blender.blender.scene import results
from lgm_blender.blender.ui import icons, timer
from lgm_blender.core import environment
from lgm_blender.core.messages import GenerateRequest


class Window:
    """bpy, but not in the background; and a window manager that writes down what it would show."""

    def __init__(self):
        self.app = SimpleNamespace(background=False, timers=bpy.app.timers, tempdir=bpy.app.tempdir)
        self.context = self
        self.window_manager = self
        self.sentences = []
        self.shown_tab = ""  # of the one 3D view's side panel; '' if it is closed

    def __getattr__(self, name):
        return getattr(bpy.context if hasattr(bpy.context, name) else bpy, name)

    @property
    def windows(self):
        region = SimpleNamespace(type="UI", active_panel_category=self.shown_tab, tag_redraw=lambda: None)
        space = SimpleNamespace(show_region_ui=bool(self.shown_tab))
        area = SimpleNamespace(type="VIEW_3D", regions=[region], spaces=SimpleNamespace(active=space))
        return [SimpleNamespace(screen=SimpleNamespace(areas=[area]))]

    def temp_override(self, window):
        return bpy.context.temp_override()

    def popup_menu(self, draw, title, icon):
        lines = []
        draw(
            SimpleNamespace(layout=SimpleNamespace(label=lambda text, translate=True: lines.append(text))), bpy.context
        )
        self.sentences.append(" ".join(lines))


@pytest.fixture
def window(monkeypatch):
    window = Window()
    monkeypatch.setattr(timer, "bpy", window)
    yield window
    timer.stop()


def start(folder, **options):
    """A job as the window starts it."""
    request = GenerateRequest(job="", output=str(folder / "out"), prompt="x", **options)
    return session.current().begin(request, bpy.context.scene)


def tick_until(condition, seconds=20.0):
    """Calls the timer's function as Blender would; what it last returned."""
    end = time.monotonic() + seconds
    while True:
        pause = timer._tick()
        if condition():
            return pause
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


# The timer


def test_timer_runs_while_there_is_something_to_do(worker, window, tmp_path):
    assert not bpy.app.timers.is_registered(timer._tick)
    job = start(tmp_path, previews=True)
    assert bpy.app.timers.is_registered(timer._tick)
    assert tick_until(lambda: job.progress) == timer.BUSY
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "file.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "file.blend"))
    assert bpy.app.timers.is_registered(timer._tick)  # another file does not end it
    assert tick_until(lambda: session.current().job is None) == timer.IDLE  # the worker waits for the next job
    session.current().engine.stop()
    assert timer._tick() is None
    lgm_blender.unregister()
    assert not bpy.app.timers.is_registered(timer._tick)


def test_views_are_shown_as_they_come(worker, window, tmp_path):
    worker("slow")
    start(tmp_path, previews=True)
    tick_until(lambda: icons.views)
    first = session.current().views
    assert len(icons.views) == 4
    tick_until(lambda: session.current().views != first and len(icons.views) == 4)
    tick_until(lambda: session.current().job is None)
    assert session.current().views == str(tmp_path / "out" / "x_views.png")
    previews = list(icons._views._previews.values())  # without a window they have no numbers yet
    assert {tuple(preview.image_size) for preview in previews} == {(64, 64)}
    assert len({preview.image_pixels_float[0] for preview in previews}) == 4
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    assert session.current().views == ""  # they were of the file that is closed
    timer._tick()
    assert icons.views == []


def test_failure_is_announced_once_where_no_panel_tells_of_it(worker, window, tmp_path):
    worker("refuses")
    start(tmp_path)
    tick_until(lambda: session.current().problem)
    timer._tick()
    assert window.sentences == ["The image is empty. Choose another one."]
    for tab, times in (("LGM", 1), ("Tool", 2)):
        window.shown_tab = tab
        start(tmp_path)
        tick_until(lambda: session.current().problem)
        assert len(window.sentences) == times


def test_error_of_our_own_is_told_once_and_does_not_end_the_timer(worker, window, tmp_path, monkeypatch, capsys):
    worker("long")
    start(tmp_path)

    def fail():
        raise ZeroDivisionError("in step")

    monkeypatch.setattr(session.current(), "step", fail)
    assert [timer._tick() for _ in range(3)] == [timer.BUSY] * 3
    assert session.current().problem.kind == "internal"
    assert len(window.sentences) == 1
    assert "in step" in capsys.readouterr().err


# Undo


@pytest.mark.parametrize("kind", ["splats", "both"])
def test_a_result_is_one_undo_step(worker, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(results, "bpy", SimpleNamespace(
        app=SimpleNamespace(background=False), context=bpy.context, ops=bpy.ops, types=bpy.types
    ))  # fmt: skip
    undo(bpy.ops.ed.undo_push, message="start")
    bpy.ops.mesh.primitive_cube_add()
    undo(bpy.ops.ed.undo_push, message="cube")
    for _ in range(2):
        start(tmp_path, output_kind=kind, faces=100, texture_size=512)
        tick_until(lambda: session.current().job is None)
    assert session.current().problem is None
    made = {"splats": 1, "both": 2}[kind]
    counts = [len(bpy.data.objects)]
    for _ in range(3):
        undo(bpy.ops.ed.undo)
        counts.append(len(bpy.data.objects))
    assert counts == [1 + 2 * made, 1 + made, 1, 0]
    undo(bpy.ops.ed.redo)
    undo(bpy.ops.ed.redo)
    assert len(bpy.data.objects) == 1 + made


def undo(operator, **options):
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        assert operator(**options) == {"FINISHED"}


# Other files


def test_file_that_can_not_be_read_does_not_end_the_job(worker, tmp_path):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "file.blend"), compress=False)
    (tmp_path / "cut.blend").write_bytes((tmp_path / "file.blend").read_bytes()[:3000])
    worker("slow")
    job = start(tmp_path)
    step_until(lambda: job.progress)
    with pytest.raises(RuntimeError):
        bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "cut.blend"))
    step_until(lambda: session.current().job is None)
    assert job.state == "done"
    assert "x" in bpy.data.objects


def test_file_is_opened_while_a_result_comes_in(worker, tmp_path):
    start(tmp_path)
    now = session.current()
    step_until(lambda: now.arriving)
    assert now.job.label == "Adding it to the scene"
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    assert not now.working
    for _ in range(30):
        now.step()
    assert not bpy.data.objects
    assert (now.problem, now.outcome) == (None, None)
    start(tmp_path)
    step_until(lambda: now.job is None)
    assert len(bpy.data.objects) == 1


def test_undo_while_a_result_comes_in_takes_only_what_is_made_again(worker, tmp_path):
    now = session.current()
    undo(bpy.ops.ed.undo_push, message="start")
    bpy.ops.mesh.primitive_cube_add()
    undo(bpy.ops.ed.undo_push, message="cube")
    start(tmp_path)
    step_until(lambda: bpy.data.node_groups)
    undo(bpy.ops.ed.undo)
    step_until(lambda: now.job is None)
    assert now.problem is None
    assert [thing.name for thing in bpy.data.objects] == ["x"]


def test_what_takes_how_long_is_remembered(worker, tmp_path):
    now = session.current()
    start(tmp_path)
    assert now.forecast.remaining(time.monotonic()) is None
    step_until(lambda: now.job is None)
    start(tmp_path)
    assert now.forecast.remaining(now.job.started) > 0
    step_until(lambda: now.job is None)


# Installs and downloads


@pytest.fixture
def installing(worker, tmp_path, monkeypatch):
    """An install that takes until a file `go` is there."""
    python = environment.environment_python(install.environment_folder())
    code = (
        "import os, sys, time\n"
        f"os.makedirs({str(python.parent)!r}, exist_ok=True)\n"
        f"open({str(python)!r}, 'w').close()\n"
        f"print('waiting', flush=True)\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "print('torch 9')"
    )
    steps = [tasks.Step.of("Trying", (sys.executable, "-c", code))]
    monkeypatch.setattr(install, "install_steps", lambda *_: steps)
    monkeypatch.setattr(install.lock, "size", lambda *_: None)  # however full the disk is
    monkeypatch.setattr(install, "suitable_build", lambda: "cpu")
    return worker


def step_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        session.current().step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_install_goes_on_when_another_file_is_opened(installing, tmp_path):
    now = session.current()
    now.install()
    step_until(lambda: now.task.message == "waiting")
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "file.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "file.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    assert now.fetching
    (tmp_path / "go").touch()
    step_until(lambda: not now.fetching)
    assert now.task.state == "done", now.task.error
    assert environment.read_marker(install.environment_folder())["trial"] == "torch 9"


def test_download_goes_on_when_another_file_is_opened(worker, tmp_path, monkeypatch):
    code = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"
    monkeypatch.setattr(session, "worker_command", lambda python, *arguments: [sys.executable, "-c", code])
    now = session.current()
    now.download("lgm")
    step_until(lambda: now.task.label)
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    (tmp_path / "go").touch()
    step_until(lambda: not now.fetching)
    assert now.task.state == "done", now.task.error


def test_install_begins_when_the_worker_has_left(installing, tmp_path, monkeypatch):
    """Windows can't replace files that a process uses."""
    monkeypatch.setattr(engine_module, "PATIENCE", 0.5)
    installing("deaf")
    job = start(tmp_path)
    step_until(lambda: job.progress)
    now, process = session.current(), session.current().engine._process
    before = time.monotonic()
    now.install()
    assert time.monotonic() - before < 0.4  # nobody waits for it
    (tmp_path / "go").touch()
    while not process.wait(0):
        now.step()
        assert now.task.index == -1
        time.sleep(0.01)
    step_until(lambda: not now.fetching)
    assert now.task.state == "done", now.task.error


def test_unregistering_ends_a_deaf_worker(worker, tmp_path):
    worker("deaf")
    job = start(tmp_path)
    step_until(lambda: job.progress)
    process = session.current().engine._process
    before = time.monotonic()
    lgm_blender.unregister()
    assert time.monotonic() - before < 2
    assert process.wait(0)


def test_another_worker_in_the_preferences_replaces_the_one_that_runs(worker, tmp_path):
    start(tmp_path)
    step_until(lambda: session.current().job is None)
    process = session.current().engine._process
    worker("slow")
    start(tmp_path)
    assert session.current().engine._process is not process
    step_until(lambda: session.current().job is None)
    assert process.wait(10)
