"""Whether an environment is whole: its Python, and every file that its packages brought along.

Standard library only: build.py reads this with nothing installed.
"""

from __future__ import annotations

import csv
import os
import re
from contextlib import suppress
from pathlib import Path

from .environment import environment_python, site_packages


def python_problem(folder: Path) -> str:
    """Why an environment's Python can't run, as a clause, or ''. Asks a few files: cheap enough for drawing.

    The Python that it was made with may be gone, with the Blender that brought it for example, or be of another
    version by now.
    """
    if not environment_python(folder).exists():
        return "its Python is gone"
    values = dict(re.findall(r"^(\w+) *= *(.+)$", _text(folder / "pyvenv.cfg"), re.MULTILINE))
    home = values.get("home", "").strip()
    if not home:
        return "its pyvenv.cfg is gone"
    if not Path(home).is_dir():
        return f"the Python that it was made with is gone from {home}"
    made_for = re.match(r"\d+\.\d+", values.get("version_info", values.get("version", "")))
    found = {path.parent.name.removeprefix("python") for path in site_packages(folder) if path.parent.name != "Lib"}
    if made_for and found and made_for[0] not in found:
        return f"its packages are for Python {', '.join(sorted(found))}, and its Python is {made_for[0]}"
    return ""


def damaged_packages(folder: Path) -> list[str]:
    """The packages of an environment of which a file is missing or of another size than it was installed with.

    Looks at every file, some 20,000: a second, or many on a slow disk.
    """
    found = set()
    for libraries in site_packages(folder):
        for record in libraries.glob("*.dist-info/RECORD"):
            if not _is_whole(libraries, record):
                found.add(record.parent.name.partition("-")[0])
        for metadata in libraries.glob("*.dist-info"):
            if not (metadata / "RECORD").is_file():
                found.add(metadata.name.partition("-")[0])
    return sorted(found)


def _is_whole(libraries: Path, record: Path) -> bool:
    for name, _, size in (row for row in csv.reader(_text(record).splitlines()) if len(row) == 3):
        if not size:
            continue  # what is written anew at any time: bytecode, and this list itself
        try:
            if os.stat(libraries / name).st_size != int(size):  # noqa: PTH116 - a third of pathlib's time
                return False
        except (OSError, ValueError):
            return False
    return True


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
