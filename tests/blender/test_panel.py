"""What panels and preferences draw, on a layout that checks what it is asked for.

Run: pytest tests/blender/test_panel.py
"""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import get_args

import bpy
import pytest
from PIL import Image

from lgm_blender.blender import compat, install, session, tasks
from lgm_blender.blender.scene import splats
from lgm_blender.blender.scene.nodes.splat_inputs import inputs
from lgm_blender.blender.ui import editing, files, installing, operators, panel, preferences, training
from lgm_blender.blender.ui import splats as splats_panel
from lgm_blender.core import lock
from lgm_blender.core.errors import ErrorKind
from lgm_blender.core.gaussians import Gaussians
from lgm_blender.core.messages import GenerateRequest

FUNCTIONS = bpy.types.UILayout.bl_rna.functions
ICONS = FUNCTIONS["label"].parameters["icon"].enum_items.keys()


class Layout:
    """Takes what a UILayout takes, and writes down the texts, operators and properties."""

    def __init__(self, seen):
        object.__setattr__(self, "seen", seen)

    def __setattr__(self, name, value):
        assert name in bpy.types.UILayout.bl_rna.properties, name

    def __getattr__(self, name):
        parameters = FUNCTIONS[name].parameters

        def call(*arguments, **options):
            for key, value in options.items():
                assert key in parameters, f"{name} has no {key}"
                assert key != "icon" or value in ICONS, value
            if name in ("row", "column", "box", "split"):
                return Layout(self.seen)
            if name == "panel":
                return Layout(self.seen), Layout(self.seen)
            if name == "operator_menu_enum":
                self.seen.append(arguments[0])
                return SimpleNamespace(input="")
            if name in ("prop", "prop_enum", "prop_search", "template_ID_preview"):
                known = arguments[1] in arguments[0].bl_rna.properties
                assert known or arguments[1].strip('[]"') in arguments[0], arguments[
                    1
                ]  # the latter in Blender up to 5.1
                self.seen.append(arguments[1] if known and arguments[1] != "value" else options["text"])
            if name == "operator":
                family, _, verb = arguments[0].partition(".")
                operator = getattr(getattr(bpy.ops, family), verb)
                self.seen.append(arguments[0])
                return SimpleNamespace(**dict.fromkeys(operator.get_rna_type().properties.keys()))
            if text := options.get("text"):
                self.seen.append(text)
            return None

        return call


class With:
    """A thing of Blender's with a few attributes of another value."""

    def __init__(self, thing, **values):
        self.thing = thing
        self.__dict__.update(values)

    def __getattr__(self, name):
        return getattr(self.thing, name)


PANELS = (*panel.CLASSES, files.LGM_PT_files, training.LGM_PT_training, preferences.LGM_Preferences)


def drawn(*classes) -> str:
    """Everything that the panels would show now, on one line each."""
    seen = []
    area = next(area for area in bpy.context.window_manager.windows[0].screen.areas if area.type == "VIEW_3D")
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=area):
        system = With(bpy.context.preferences.system, ui_scale=1.0)  # 0 without a window
        context = With(bpy.context, preferences=With(bpy.context.preferences, system=system))
        for cls in classes or PANELS:
            names = ("worker_python", "device", "load_ahead", "idle_minutes", "output")
            facts = dict.fromkeys(names) | {"layout": Layout(seen), "bl_rna": SimpleNamespace(properties=names)}
            for method in ("draw_header_preset", "draw"):
                if function := cls.__dict__.get(method):
                    function(SimpleNamespace(**facts), context)
    return "\n".join(map(str, seen))


def sentences(told: str) -> str:
    """With the lines joined that a sentence was broken into."""
    return told.replace("\n", " ")


def step_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        session.current().step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def start(tmp_path):
    request = GenerateRequest(job="", output=str(tmp_path / "out"), prompt="x")
    return session.current().begin(request, bpy.context.scene)


def test_nothing_chosen_yet(worker):
    told = drawn()
    assert "Choose an image or write a prompt." in sentences(told)
    assert "elevation" not in told
    for name in (
        "seed",
        "output_kind",
        "faces",
        "guidance",
        "lgm.convert_to_mesh",
        "lgm.import_splats",
        "idle_minutes",
    ):
        assert name in told.splitlines()


def test_a_preset_in_a_folder(worker):
    assert "preset_folder" not in drawn(panel.LGM_PT_main).splitlines()
    bpy.context.scene.lgm.preset, bpy.context.scene.lgm.prompt = "folder", "x"
    told = drawn(panel.LGM_PT_main)
    assert "preset_folder" in told.splitlines()
    assert "Choose the preset's folder." in sentences(told)


def test_before_models_are_fetched_their_licences_are_shown(worker):
    fetch, seen = operators.LGM_OT_fetch_weights, []
    asked = SimpleNamespace(preset="lgm", terms=fetch.terms, layout=Layout(seen))
    fetch.draw(asked, bpy.context)
    assert "LGM's licence is MIT" in " ".join(seen)  # before the worker has told more
    assert bpy.ops.lgm.check_worker() == {"FINISHED"}
    seen.clear()
    fetch.draw(asked, bpy.context)
    assert seen == ["a/b: 1 GB, licence MIT", "They go into the cache"]


def test_image_is_chosen(worker, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    bpy.context.scene.lgm.image = bpy.data.images.load(str(tmp_path / "a.png"))
    told = drawn(panel.LGM_PT_main).splitlines()
    assert "elevation" in told
    assert "lgm.generate" in told
    assert "Choose an image" not in "".join(told)


def test_job_on_its_way_and_done(worker, tmp_path):
    worker("slow")
    job = start(tmp_path)
    assert "Starting the worker" in drawn(panel.LGM_PT_main)
    step_until(lambda: job.progress)
    told = drawn(panel.LGM_PT_main)
    assert "Sampling the views" in told
    assert "lgm.cancel" in told
    step_until(lambda: session.current().job is None)
    told = drawn()
    assert "4,000 Gaussians" in told
    assert "seed 0" in told
    assert "lgm.open_folder" in told
    assert "computes on a CPU" in told


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("bad_input", "lgm.open_image"),
        ("output", "output"),
        ("weights", "extensions.package_install_files"),
        ("matting", "lgm.open_image"),
        ("out_of_memory", "view_samples"),
        ("worker", "lgm.open_log"),
        ("device", "lgm.open_log"),
        ("internal", "lgm.open_log"),
        ("cancelled", "lgm.dismiss"),  # nobody is told of it
    ],
)
def test_problem_and_the_button_that_helps(worker, kind, shown):
    bpy.context.scene.lgm.image = bpy.data.images.new("x", 4, 4)
    before = drawn(panel.LGM_PT_main).splitlines()
    session.current().problem = session.Problem("It went wrong.", kind)
    told = drawn(panel.LGM_PT_main).splitlines()
    assert "It went wrong." in told
    assert shown in told
    assert shown not in before
    bpy.context.scene.lgm.preset = "lgm"
    assert "lgm.fetch_weights" in drawn(panel.LGM_PT_main) or kind != "weights"


def test_every_kind_of_problem_has_its_button():
    marks = test_problem_and_the_button_that_helps.pytestmark[0]
    assert {kind for kind, _ in marks.args[1]} == set(get_args(ErrorKind))


def test_preset_that_is_not_here(worker):
    bpy.context.scene.lgm.prompt = "x"
    bpy.ops.lgm.check_worker()
    bpy.context.scene.lgm.preset = "lgm"
    told = drawn(panel.LGM_PT_main)
    assert "Not fetched." in told
    assert "Blender is not allowed to go online" in sentences(told)
    assert "lgm.fetch_weights" in told


def test_no_worker_and_its_install(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("LGM_BLENDER_PYTHON", str(tmp_path / "nowhere"))
    session.current().forget_worker()
    for cls in (panel.LGM_PT_main, preferences.LGM_Preferences):
        assert "lgm.install_worker" in drawn(cls)
        assert "does not exist" in sentences(drawn(cls))
    session.current().task = tasks.Task([], tmp_path / "log")
    session.current().task.label = "Fetching torch"
    for cls in (panel.LGM_PT_main, preferences.LGM_Preferences):
        assert "Fetching torch" in drawn(cls)


def test_what_installing_takes_is_said_first(worker, tmp_path, monkeypatch):
    """As soon as the driver has told which PyTorch it is, and before that of both."""
    now = session.current()
    builds = [None]
    monkeypatch.setattr(now, "suitable_build", lambda: builds[-1])
    size = lock.Size(400_000_000, 1_500_000_000)
    monkeypatch.setattr(lock, "size", lambda build: size if build == "cpu" else lock.Size(3_000_000_000, 5_400_000_000))
    told = drawn(installing.LGM_OT_install_worker)
    assert "Without an NVIDIA GPU: 0.4 GB to fetch, 1.5 GB on disk" in told
    assert "With an NVIDIA GPU: 3.0 GB to fetch, 5.4 GB on disk" in told
    assert "is being asked" in told
    builds.append("cu130")
    told = sentences(drawn(installing.LGM_OT_install_worker))
    assert "PyTorch with CUDA 13.0 for the NVIDIA GPU" in told
    assert "3.0 GB to fetch" in told
    assert "0.4 GB to fetch" not in told
    assert "SHA-256 that came with LGM" in told
    assert re.search(rf"It goes into {tmp_path}.* GB are free", told)
    builds.append("cu126")
    assert "is too old for the PyTorch whose SHA-256 is known here" in sentences(
        drawn(installing.LGM_OT_install_worker)
    )
    monkeypatch.setattr(install, "is_finished", lambda: True)
    assert "Looks at every file" in drawn(installing.LGM_OT_install_worker)


def test_training_views_are_rendered(worker, monkeypatch, tmp_path):
    maker = training.ViewMaker([], tmp_path)
    maker.results = [{"name": "a", "ok": False, "error": "it has no faces", "skipped": False}]
    monkeypatch.setattr(training, "_maker", maker)
    told = drawn(training.LGM_PT_training)
    assert "a: it has no faces" in told
    monkeypatch.setattr(training, "_running", True)
    assert "Esc stops it" in drawn(training.LGM_PT_training)


def test_how_splats_are_shown_can_be_set(worker):
    gaussians = Gaussians([[0, 0, 0]], [0.9], [[0.1, 0.1, 0.1]], [[1, 0, 0, 0]], [[0.5, 0.5, 0.5]])
    made = splats.add_splats(gaussians, "one")
    bpy.context.view_layer.objects.active = made
    assert splats_panel.LGM_PT_splats.poll(bpy.context)
    seen = drawn(splats_panel.LGM_PT_splats).splitlines()
    for row in inputs():
        assert row.name in seen
    assert seen.count("lgm.set_splat_menu") == sum(row.kind == "Menu" for row in inputs())
    assert bpy.ops.lgm.set_splat_menu(input="Viewport", item="Discs") == {"FINISHED"}
    assert compat.get_modifier_input(splats.display_modifier(made), "Viewport") == "Discs"
    made.modifiers.clear()
    assert drawn(splats_panel.LGM_PT_splats) == "lgm.show_splats"
    assert bpy.ops.lgm.show_splats() == {"FINISHED"}
    assert splats.display_modifier(made) is not None
    bpy.context.view_layer.objects.active = None
    assert not splats_panel.LGM_PT_splats.poll(bpy.context)


def test_editing_is_offered_for_splats_and_low_settings_are_told(worker):
    gaussians = Gaussians([[0, 0, 0]], [0.9], [[0.1, 0.1, 0.1]], [[1, 0, 0, 0]], [[0.5, 0.5, 0.5]])
    made = splats.add_splats(gaussians, "one")
    bpy.context.view_layer.objects.active = made
    assert not editing.LGM_PT_prepare.poll(bpy.context)
    bpy.context.scene.cycles.transparent_max_bounces = 9
    assert editing.LGM_PT_prepare.poll(bpy.context)
    assert "is 9, and should" in " ".join(drawn(editing.LGM_PT_prepare).split())
    assert "lgm.prepare_scene" in drawn(editing.LGM_PT_prepare)
    assert editing.LGM_PT_edit.poll(bpy.context)
    made.data["lgm_unmended"] = 12
    seen = drawn(editing.LGM_PT_edit)
    assert "1 Gaussians" in seen
    assert "12 Gaussians moved" in seen
    offered = {f"lgm.{name[7:]}" for name in dir(editing) if name.startswith("LGM_OT_splats")}
    offered -= set() if compat.has_native_splats() else {"lgm.splats_convert"}
    assert offered <= set(seen.splitlines())
    bpy.context.view_layer.objects.active = None
    assert not editing.LGM_PT_edit.poll(bpy.context)
