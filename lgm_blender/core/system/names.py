"""Names of files that every system can have, and paths as long as Windows' programs open."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ..errors import LGMError

NAME_BYTES = 200  # of the 255 that most disks allow a name: the rest is for suffixes and numbers
WINDOWS_PATH = 259  # UTF-16 units of a path that every program on Windows opens
LONGEST_SUFFIX = 30  # letters that are appended to a stem, the names of files on their way to it among them
LEAST_STEM = 8  # letters of a name that are worth having

_RESERVED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)


def file_stem(name: str, source: str | Path | None = None, prompt: str = "") -> str:
    """The stem of files' names: the name that was asked for, else the source's, else the text's first words.

    It is one that every system takes, since files travel. Letters of all languages and spaces are kept; what some
    system's names can't have becomes '_', and what is longer than NAME_BYTES is cut.
    """
    stem = name or (Path(source).stem if source else " ".join(prompt.split()[:6]))
    stem = _RESERVED.sub("_", stem).strip().rstrip(". ")
    while len(stem.encode()) > NAME_BYTES:
        stem = stem[:-1].rstrip(". ")
    return f"_{stem}" if _DEVICES.fullmatch(stem) else stem or "untitled"


def fitting_stem(stem: str, folder: Path, system: str = sys.platform) -> str:
    """A stem, cut to what fits into a folder with the longest of our suffixes: Windows has an end of paths.

    Raises:
        LGMError: (kind 'output') If the folder's own path leaves no room.
    """
    if system != "win32":
        return stem
    room = WINDOWS_PATH - _units(str(folder)) - 1 - LONGEST_SUFFIX
    if room < min(_units(stem), LEAST_STEM):
        raise LGMError(
            f"The path of {folder} is too long: Windows' programs open paths of {WINDOWS_PATH} letters at most. "
            "Choose a folder with a shorter path.",
            "output",
        )
    while _units(stem) > room:
        stem = stem[:-1].rstrip(". ")
    return stem


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
