"""The interface in other languages. Run: pytest tests/blender/test_translations.py

Blender as a Python module has no languages. In a Blender that has them nothing is skipped: tests/window/languages.py.
"""

from __future__ import annotations

import string
import unicodedata
from types import SimpleNamespace

import bpy
import pytest
from translatable import strings

import lgm_blender
from lgm_blender.blender.ui import translations

NAMES = ("de_DE", "zh_HANS", "ja_JP")
has_languages = pytest.mark.skipif(
    not set(NAMES) <= set(bpy.app.translations.locales), reason="this Blender has no languages"
)


@pytest.fixture
def registered():
    lgm_blender.register()
    yield
    lgm_blender.unregister()


@pytest.fixture
def language():
    """Sets the interface's language."""
    view = bpy.context.preferences.view
    before = view.language

    def choose(name):
        view.language = name
        view.use_translate_interface = view.use_translate_tooltips = True

    yield choose
    view.language = before


def fields(text: str) -> list[tuple[str, str]]:
    """The placeholders of a text, in their order."""
    return [(name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name is not None]


def test_every_string_is_translated_and_nothing_else(registered):
    shown = strings()
    assert len(shown) > 400
    table = translations.read_table()
    assert tuple(table) == NAMES
    for texts in table.values():
        assert shown - set(texts) == set()
        assert set(texts) - shown == set()  # of what is shown no longer
        assert all(text and text == text.strip() for text in texts.values())


def test_placeholders_are_the_same_in_all_languages():
    for texts in translations.read_table().values():
        for text, told in texts.items():
            assert fields(told) == fields(text), told
            assert told.format(*[7] * len(fields(text)))


def test_no_sentence_loses_its_script():
    """A row whose columns have been swapped, or that was left in English."""
    table = translations.read_table()
    for text in table["de_DE"]:
        german, chinese, japanese = (table[name][text] for name in NAMES)
        assert not any("CJK" in unicodedata.name(letter, "") for letter in german), text
        assert not any(unicodedata.name(letter, "").startswith(("HIRAGANA", "KATAKANA")) for letter in chinese), text
        if len(text) > 30:
            assert len({text, german, chinese, japanese}) == 4


def test_registering_a_hundred_times_leaves_nothing(monkeypatch):
    """Blender's own register(), which refuses a second time, but where Blender was built without languages."""
    there = {}

    def register(owner, texts):
        assert owner not in there
        there[owner] = texts
        bpy.app.translations.register(owner, texts)

    def unregister(owner):
        del there[owner]
        bpy.app.translations.unregister(owner)

    stand_in = SimpleNamespace(register=register, unregister=unregister)
    monkeypatch.setattr(translations, "bpy", SimpleNamespace(app=SimpleNamespace(translations=stand_in)))
    for _ in range(100):
        lgm_blender.register()
        assert set(there) == {"lgm_blender.blender"}
        assert set(there["lgm_blender.blender"]) == {*NAMES, "zh_CN"}
        lgm_blender.unregister()
        assert not there


@has_languages
@pytest.mark.parametrize("name", NAMES)
def test_blender_shows_them(registered, language, name):
    language(name)
    texts = translations.read_table()[name]
    for text, told in texts.items():
        assert bpy.app.translations.pgettext(text, translations.CONTEXT) == told
    assert bpy.app.translations.pgettext_iface("Output Folder") == texts["Output Folder"] != "Output Folder"
    assert bpy.app.translations.pgettext_iface("Install Worker", "Operator") == texts["Install Worker"]
    lgm_blender.unregister()
    assert bpy.app.translations.pgettext_iface("Output Folder") == "Output Folder"


def test_lines_are_as_wide_as_they_may_be():
    """A Chinese or Japanese letter is as wide as two Latin ones."""
    for texts in translations.read_table().values():
        for told in texts.values():
            for line in translations.wrapped(told, 60):
                wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in line)
                assert len(line) + wide <= 72, line
    assert translations.wrapped("a few words", 5) == ["a few", "words"]
    assert "".join(translations.wrapped("画像を選んでください", 6)) == "画像を選んでください"
    assert max(map(len, translations.wrapped("画像を選んでください", 6))) == 3
    assert translations.wrapped("", 20) == []
