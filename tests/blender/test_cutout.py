"""The cut-out before anything is made: asked beside jobs, shown in the panel, corrected.

Run: pytest tests/blender/test_cutout.py
"""

from __future__ import annotations

import time
from pathlib import Path

import bpy
import numpy as np
import pytest
from test_panel import Layout, With, drawn, sentences

from lgm_blender.blender import session, tasks
from lgm_blender.blender.ui import cutout, icons, operators, panel, properties
from lgm_blender.core.messages import GenerateRequest


def image(name="ball", size=(48, 32)) -> bpy.types.Image:
    """A picture that exists in Blender alone."""
    made = bpy.data.images.new(name, *size)
    made.pixels.foreach_set(np.full(size[0] * size[1] * 4, 0.5, np.float32))
    return made


@pytest.fixture
def settings(worker):
    bpy.context.scene.lgm.image = image()
    return bpy.context.scene.lgm


@pytest.fixture
def windowed(monkeypatch):
    """Settings are heard as in a window, where a timer would step the session."""
    monkeypatch.setattr(properties.bpy, "app", With(bpy.app, background=False))


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        session.current().step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def cut() -> session.Cutout:
    """The cut-out, once it is there."""
    now = session.current()
    now.cut_out(bpy.context.scene)
    until(lambda: not now.cutout.busy)
    return now.cutout


def test_choosing_an_image_cuts_it_out(settings, windowed):
    now = session.current()
    settings.image = image("another")
    assert now.cutout.busy
    until(lambda: not now.cutout.busy)
    assert now.cutout.result.matting == "border"
    assert now.job is None
    assert now.outcome is None
    icons.cutout.show(now.cutout.result.preview)
    assert len(icons.cutout.icons) == 2
    told = drawn(panel.LGM_PT_main)
    assert "Cut off a plain background" in told
    assert "lgm.paint_mask" in told
    settings.image = None
    assert now.cutout.result is None
    assert "Cut" not in drawn(panel.LGM_PT_main)


def test_in_the_background_nobody_looks(settings):
    settings.image = image("another")
    assert not session.current().cutout.busy


def test_the_last_change_counts(settings, windowed, worker):
    worker("slow")
    now = session.current()
    for threshold in (0.1, 0.2, 0.3):
        settings.matting_threshold = threshold
        now.step()
    settings.matting = "alpha"
    until(lambda: not now.cutout.busy)
    assert now.cutout.result.settings["matting_threshold"] == pytest.approx(0.3)
    assert now.cutout.result.matting == "alpha"


def test_a_job_pushes_it_aside(settings, worker, tmp_path):
    worker("slow")
    now = session.current()
    now.cut_out(bpy.context.scene)
    until(lambda: now.cutout.is_asked)
    now.begin(GenerateRequest(job="", output=str(tmp_path), prompt="x"), bpy.context.scene)
    assert not now.cutout.is_asked
    assert "Cut-out: waits" in drawn(panel.LGM_PT_main)
    until(lambda: now.job is None)
    assert now.outcome
    until(lambda: not now.cutout.busy)
    assert now.cutout.result


def test_it_stands_in_nobodys_way(settings, worker):
    """Neither the button's nor a script's that waits for a job."""
    worker("slow")
    now = session.current()
    now.start_worker()
    until(lambda: now.engine.state == "ready")
    now.cut_out(bpy.context.scene)
    now.step()
    assert now.cutout.is_asked
    assert not now.working
    assert operators.LGM_OT_generate.obstacle(bpy.context) == ""
    now.wait()


def test_why_there_is_none_and_the_button_that_helps(settings):
    settings.image = image("busy street")
    refusal = cut().refusal
    assert refusal.kind == "matting"
    told = drawn(panel.LGM_PT_main)
    assert "The background is not plain." in sentences(told)
    assert "lgm.fetch_network" in told.splitlines()
    seen = []
    cutout.LGM_OT_fetch_network.draw(type("Fetch", (), {"layout": Layout(seen)}), bpy.context)
    assert "179 MB, licence Apache-2.0" in " ".join(seen)


def test_what_was_refused_is_asked_again_once_the_network_is_there(settings, monkeypatch, tmp_path):
    settings.image = image("busy street")
    now = session.current()
    cut()
    fetched = []
    monkeypatch.setattr(type(now), "download", lambda self, name: fetched.append(name))
    monkeypatch.setattr(cutout.LGM_OT_fetch_network, "obstacle", classmethod(lambda cls, context: ""))
    now.task = tasks.Task([], tmp_path / "log")
    now.task.state = "done"
    assert bpy.ops.lgm.fetch_network() == {"FINISHED"}
    assert fetched == ["isnet-general-use"]
    now.cutout.ask_again()
    assert now.cutout.busy


def test_a_doubt_is_shown(settings):
    settings.image = image("odd one")
    cut()
    assert "Part of it may be missing." in sentences(drawn(panel.LGM_PT_main))


def test_painting_a_mask_begins_with_the_cut_out(settings, windowed):
    cut()
    bpy.ops.lgm.paint_mask()
    mask = settings.mask
    assert tuple(mask.size) == (48, 32)
    pixels = np.empty(48 * 32 * 4, np.float32)
    mask.pixels.foreach_get(pixels)
    white = pixels.reshape(32, 48, 4)[..., :3]
    assert white[:, :20].max() < 0.1
    assert white[:, 28:].min() > 0.9
    assert mask.packed_file  # it is saved with the file
    now = session.current()
    until(lambda: not now.cutout.busy)
    assert now.cutout.result.matting == "mask"
    assert Path(now.cutout.result.settings["mask"]).name == "mask.png"
    bpy.ops.lgm.paint_mask()  # goes on with the same one
    assert settings.mask == mask
    bpy.ops.lgm.clear_mask()
    assert settings.mask is None
    assert mask.use_fake_user  # nothing that was painted is lost
    until(lambda: not now.cutout.busy)
    assert now.cutout.result.matting == "border"


def test_a_mask_goes_with_its_image(settings):
    cut()
    bpy.ops.lgm.paint_mask()
    settings.image = image("another")
    assert settings.mask is None
    settings.mask = image("my own")
    settings.image = image("a third")
    assert settings.mask.name == "my own"


def test_the_mask_is_shown_in_an_image_editor(settings):
    areas = bpy.context.window_manager.windows[0].screen.areas
    area = next(area for area in areas if area.type != "VIEW_3D")
    old, area.type = area.type, "IMAGE_EDITOR"
    try:
        cut()
        bpy.ops.lgm.paint_mask()
        assert area.spaces.active.image == settings.mask
        assert area.spaces.active.ui_mode == "PAINT"
    finally:
        area.type = old


def test_what_is_shown_is_what_is_generated(settings, tmp_path):
    cut()
    bpy.ops.lgm.paint_mask()
    settings.matting, settings.matting_threshold, settings.output = "alpha", 0.25, str(tmp_path / "out")
    assert bpy.ops.lgm.generate() == {"FINISHED"}
    made = session.current().outcome.result.settings
    assert (made["matting"], made["matting_threshold"]) == ("alpha", 0.25)
    assert Path(made["mask"]).name == "mask.png"
    other = tmp_path / "other.png"
    settings.image.file_format = "PNG"
    settings.image.save(filepath=str(other))
    bpy.ops.lgm.generate(image_path=str(other), matting="border")
    made = session.current().outcome.result.settings
    assert (made["matting"], made["mask"]) == ("border", None)  # the mask is the scene's image's


def test_an_undo_is_noticed(settings):
    now = session.current()
    cut()
    assert now.cutout.is_of(bpy.context.scene)
    settings["matting_threshold"] = 0.5  # as an undo sets it: nobody is told
    if settings.matting_threshold == 0.5:
        assert not now.cutout.is_of(bpy.context.scene)
        assert "Cut off a plain background" not in drawn(panel.LGM_PT_main)


def test_another_file_knows_nothing_of_it(settings):
    now = session.current()
    folder = Path(cut().result.cutout).parent
    assert folder.is_dir()
    bpy.ops.wm.read_homefile(use_empty=True)
    assert now.cutout.result is None
    assert not folder.exists()


def test_a_worker_that_dies_is_not_asked_for_ever(settings, worker):
    worker("dies_at_start")
    refusal = cut().refusal
    assert "could not start" in refusal.sentence
    for _ in range(20):
        session.current().step()
    assert not session.current().cutout.busy
