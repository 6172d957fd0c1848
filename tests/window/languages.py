"""Shows the tab and the preferences in every language. `check.py` starts it; its pictures are there to be looked at."""

from __future__ import annotations

import sys
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import ADDON, SHARE, behave, open_tab, override, picture, report, run, session, side_panel, until

blender = sys.modules[f"{ADDON}.blender"]
panel = sys.modules[f"{ADDON}.blender.ui.panel"]
translations = sys.modules[f"{ADDON}.blender.ui.translations"]
SCROLLS = 6  # pictures of the tab from top to bottom


def scroll(region, area, pixels: int):
    """Moves what the side panel shows; Blender stops at its ends."""
    with bpy.context.temp_override(**override(area) | {"region": region}):
        bpy.ops.view2d.pan(deltay=pixels)
    yield 0.3


def make_splats(area):
    """A result, so that the panels for splats are seen."""
    behave("well")
    scene = bpy.context.scene
    scene.lgm.image = bpy.data.images.load(str(SHARE / "cactus.png"))
    with bpy.context.temp_override(**override(area)):
        bpy.ops.lgm.generate("INVOKE_DEFAULT")
    yield from until(lambda: session.current().job is None)
    report["problem"] = session.current().problem and session.current().problem.sentence


def story():
    panel.SubPanel.bl_options = set()  # all of them open
    blender.unregister()
    blender.register()
    yield from open_tab()
    area, region = side_panel()
    yield from make_splats(area)
    view = bpy.context.preferences.view
    view.use_translate_interface = view.use_translate_tooltips = True
    told = bpy.app.translations.pgettext_iface
    for language, texts in translations.read_table().items():
        view.language = language
        report[f"wrong_{language}"] = [text for text in texts if told(text, translations.CONTEXT) != texts[text]]
        report[f"operator_{language}"] = told("Install Worker", "Operator") == texts["Install Worker"]
        yield from scroll(region, area, 10_000)
        for number in range(SCROLLS):
            yield from picture(f"{language}_{number}")
            yield from scroll(region, area, -650)
    blender.unregister()
    report["after"] = told("Output Folder")
    blender.register()
    bpy.ops.lgm.show_preferences()
    for language in translations.read_table():
        view.language = language
        yield 1.0
        yield from picture(f"{language}_preferences")


run(story)
