"""Models are loaded when the panel is first shown. Run: pytest tests/blender/test_preload.py"""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import bpy
import pytest

from lgm_blender.blender import install, session
from lgm_blender.blender.ui import panel
from lgm_blender.core.messages import GenerateRequest


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """The file in which the stand-in for the worker writes down what it has loaded."""
    monkeypatch.setenv("FAKE_LOADED", str(tmp_path / "loaded.json"))
    return tmp_path / "loaded.json"


def step_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        session.current().step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def begin(folder, **values):
    request = GenerateRequest(job="", output=str(folder / "out"), prompt="x", **values)
    return session.current().begin(request, bpy.context.scene)


def test_models_are_loaded_once(worker, loaded):
    now = session.current()
    now.show("mini", "text")  # which the stand-in's mini can't: it is loaded for what it can
    step_until(lambda: now.preload.job and now.preload.job.ended)
    assert now.preload.job.result.loaded
    asked = json.loads(loaded.read_text())
    assert (asked["preset"], asked["mode"], asked["device"]) == ("mini", "image", "auto")
    assert now.engine.state == "ready"
    assert (now.job, now.problem, now.outcome) == (None, None, None)  # nobody is told
    loaded.unlink()
    now.show("mini", "image")
    for _ in range(20):
        now.step()
    assert not now.preload.asked
    assert not loaded.exists()


def test_a_preset_without_weights_is_not_loaded(worker, loaded):
    now = session.current()
    now.show("lgm", "image")
    step_until(lambda: now.engine and now.engine.state == "ready" and not now.preload.asked)
    assert now.preload.job is None
    now.show("lgm", "image")  # as each time that the panel is drawn
    assert not now.preload.asked
    now.show("mini", "image")  # the user chooses another
    step_until(lambda: now.preload.job and now.preload.job.ended)
    assert json.loads(loaded.read_text())["preset"] == "mini"


def test_nothing_happens_without_a_worker(worker, loaded, monkeypatch):
    now = session.current()
    with monkeypatch.context() as patch:
        patch.setattr(now, "worker", lambda: install.WorkerPython(None, "There is none."))
        now.show("mini", "image")
        for _ in range(5):
            now.step()
        assert now.engine is None
    now.show("mini", "image")  # it has been installed
    step_until(lambda: now.preload.job and now.preload.job.ended)
    assert loaded.exists()


def test_a_worker_that_does_not_start_is_told_to_who_asks_for_something(worker, loaded):
    worker("dies_at_start")
    now = session.current()
    now.show("mini", "image")
    step_until(lambda: not now.preload.asked and now.engine.state == "off")
    assert now.problem is None
    assert "could not start" in now.engine.problem


def test_a_click_meanwhile_waits_for_the_rest(worker, loaded, tmp_path):
    worker("slow")
    now = session.current()
    now.show("mini", "image")
    step_until(lambda: now.preload.loading and now.preload.job.progress)
    job = begin(tmp_path)
    assert now.preload.loading  # it goes on
    step_until(lambda: now.job is None)
    assert now.outcome, now.problem
    assert job.state == now.preload.job.state == "done"


def test_a_click_meanwhile_can_be_cancelled(worker, loaded, tmp_path):
    worker("slow")
    now = session.current()
    now.show("mini", "image")
    step_until(lambda: now.preload.loading and now.preload.job.progress)
    job = begin(tmp_path)
    now.cancel()
    step_until(lambda: now.job is None)
    assert job.state == "cancelled"


@pytest.mark.parametrize("values", [{"preset": "other"}, {"device": "cpu"}])
def test_what_a_click_has_no_use_for_is_not_loaded(worker, loaded, tmp_path, values):
    worker("steady")
    now = session.current()
    now.show("mini", "image")
    step_until(lambda: now.preload.loading and now.preload.job.progress)
    begin(tmp_path, **values)
    step_until(lambda: now.preload.job.ended)
    assert now.preload.job.state == "cancelled"
    now.cancel()
    step_until(lambda: now.job is None)


def test_a_click_before_it_began_is_all_that_happens(worker, loaded, tmp_path):
    now = session.current()
    now.show("mini", "image")
    begin(tmp_path)
    step_until(lambda: now.job is None)
    assert now.outcome, now.problem
    assert now.preload.job is None


def test_the_panel_asks_in_a_window_alone(worker, monkeypatch):
    """Blender as a module never draws; the panel's own words are looked at."""
    asked = []
    monkeypatch.setattr(session.current(), "show", lambda *given: asked.append(given))
    layout = SimpleNamespace()
    for background in (True, False):
        app = SimpleNamespace(background=background)
        monkeypatch.setattr(panel, "bpy", SimpleNamespace(app=app, types=bpy.types))
        with pytest.raises(AttributeError):  # at the first thing that it draws
            panel.LGM_PT_main.draw(SimpleNamespace(layout=layout), bpy.context)
    assert asked == [("mini", "image")]
