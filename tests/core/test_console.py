"""core/console.py: what can't be printed is escaped (python build.py test tests/core/test_console.py)."""

from __future__ import annotations

import io

import pytest

from lgm_blender.core.console import escape_unprintable


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp932", "utf-8"])
def test_any_path_can_be_printed(monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    escape_unprintable()
    for stream in (out, err):
        print("猫の像.png żółw K\udce4fer", file=stream, flush=True)
        assert b".png" in stream.buffer.getvalue()


def test_streams_that_are_none_are_left_alone(monkeypatch):
    """As in a Blender without a console on Windows."""
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    escape_unprintable()
