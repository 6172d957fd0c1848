"""Names of files that every system can have."""

from __future__ import annotations

import re
from pathlib import Path

_RESERVED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def file_stem(name: str, source: str | Path | None, prompt: str = "") -> str:
    """The stem of the files' names: the name that was asked for, else the source's, else the text's first words.

    Letters of all languages and spaces are kept; what some system's file names can't have becomes '_'.
    """
    stem = name or (Path(source).stem if source else " ".join(prompt.split()[:6]))
    stem = _RESERVED.sub("_", stem).strip().rstrip(". ")
    while len(stem.encode()) > 200:  # of 255 bytes, which most file systems allow
        stem = stem[:-1].rstrip(". ")
    return f"_{stem}" if _DEVICES.fullmatch(stem) else stem or "untitled"
