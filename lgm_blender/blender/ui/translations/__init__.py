"""The interface's strings in other languages: a table, Blender's own mechanism, and lines that fit a panel."""

from __future__ import annotations

import textwrap
import unicodedata
from pathlib import Path

import bpy
from bpy.app.translations import contexts

# Our own context: for words that mean something else where Blender has them (a Number, the History).
CONTEXT = "LGM"
OLDER_NAMES = {"zh_HANS": "zh_CN"}


def read_table() -> dict[str, dict[str, str]]:
    """What each English string is called in each language, by the languages' names in Blender."""
    lines = Path(__file__).with_name("table.tsv").read_text(encoding="utf-8").splitlines()
    (_, *languages), *rows = (line.split("\t") for line in lines)
    return {language: {row[0]: row[number] for row in rows} for number, language in enumerate(languages, 1)}


def register(owner: str) -> None:
    """Gives Blender the strings. Outside of our own context, Blender's own translation of a string comes first.

    Args:
        owner: The name they are kept under.
    """
    # Blender asks for the texts of operators in a context of their own, and for all others in the default one.
    places = (contexts.default, contexts.operator_default, CONTEXT)
    found = {}
    for language, texts in read_table().items():
        found[language] = {(place, text): told for text, told in texts.items() for place in places}
        if language in OLDER_NAMES:
            found[OLDER_NAMES[language]] = found[language]
    bpy.app.translations.register(owner, found)


def unregister(owner: str) -> None:
    """Takes the strings away again. Does nothing if they are not there."""
    bpy.app.translations.unregister(owner)


def wrapped(text: str, letters: int) -> list[str]:
    """A text in lines.

    Args:
        letters: How many Latin letters a line holds; a Chinese or Japanese one takes the place of two.
    """
    columns = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
    return textwrap.wrap(text, max(1, letters * len(text) // max(1, columns)), break_on_hyphens=False)
