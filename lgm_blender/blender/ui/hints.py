"""What the user is told while there is time to change something: words that no model reads, and how long it takes."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy.app.translations import pgettext_iface

from ...core import prompts
from ..engine import PACKAGE
from . import preferences
from .properties import BUNDLED, FOLDER, known_presets


def prompt_model(settings: bpy.types.PropertyGroup) -> Path | None:
    """The folder of the model that will read the prompt, if that can be known before the worker runs."""
    told = next((preset for preset in known_presets() if preset.name == settings.preset), None)
    if told is not None and told.text_model:
        return Path(told.text_model)
    if settings.preset == FOLDER:
        return Path(settings.chosen_preset(), "multiview") if settings.preset_folder else None
    return PACKAGE / "weights" / BUNDLED / "multiview" if settings.preset == BUNDLED else None


def unread_words(settings: bpy.types.PropertyGroup) -> list[str]:
    """A sentence for each of the two prompts that is longer than the preset's model reads. Cheap enough for drawing."""
    model = prompt_model(settings)
    if model is None:
        return []
    sentences = (
        prompts.left_out_warning(text, model, what)
        for text, what in ((settings.prompt, "prompt"), (settings.negative_prompt, "negative prompt"))
    )
    return [sentence for sentence in sentences if sentence]


def draw_unread_words(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Says which words no model will read."""
    for sentence in unread_words(context.scene.lgm):
        preferences.draw_text(layout, sentence, context, icon="ERROR")


def told_time(passed: float, remaining: float | None) -> str:
    """How long a job has taken, and how much longer it takes: no number where nothing like it was done before."""
    text = pgettext_iface("{} s").format(round(passed))
    if remaining is None:
        return text
    if remaining >= 90:
        rest = pgettext_iface("about {} min left").format(round(remaining / 60))
    elif remaining >= 1.5:
        seconds = round(remaining) if remaining < 20 else 5 * round(remaining / 5)
        rest = pgettext_iface("about {} s left").format(seconds)
    else:
        rest = pgettext_iface("nearly done")
    return f"{text}, {rest}"
