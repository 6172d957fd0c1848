"""What was made before: a list of results that outlives Blender, the newest last, in the extension's own folder.

It holds nothing but where each result's JSON is; that has the settings, and names the other files. A result whose files
were deleted or moved by hand is in it no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import LGMError
from ..core.files import output_error, replacing
from ..core.messages import GenerateResult, from_params
from ..core.paths import read_regular
from . import settings

FILE = "history.json"
MOST = 500  # results that are remembered
LARGEST = 1 << 20  # bytes of a JSON that is read


@dataclass(frozen=True)
class Entry:
    """A result that is still there."""

    path: Path  # of its JSON
    result: GenerateResult

    @property
    def name(self) -> str:
        """Its files' name."""
        return self.path.stem


def history_file() -> Path:
    """Where the list is."""
    return settings.user_folder() / FILE


def paths() -> list[Path]:
    """Of the results' JSON files, the newest last; what is no list counts as none."""
    try:
        found = json.loads(read_regular(history_file(), LARGEST))
    except (OSError, ValueError, LGMError):
        return []
    return [Path(path) for path in found if isinstance(path, str)] if isinstance(found, list) else []


def add(path: str | Path) -> None:
    """Notes a result. One that can't be noted is no reason to lose it: then nothing is."""
    path = Path(path)
    known = [other for other in paths() if other != path]
    _write([*known, path][-MOST:])


def remove(path: str | Path) -> None:
    """Forgets a result; its files stay."""
    _write(other for other in paths() if other != Path(path))


def _write(entries: Iterable[Path]) -> None:
    file = history_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write((json.dumps([str(path) for path in entries], indent=1) + "\n").encode(errors="backslashreplace"))
    except (OSError, LGMError):
        pass


def read(path: Path) -> Entry | None:
    """A result, or None if its JSON or what it made is gone or can't be read."""
    try:
        result = from_params(GenerateResult, json.loads(read_regular(path, LARGEST)))
    except (OSError, ValueError, LGMError):
        return None
    return Entry(path, result) if Path(result.file).is_file() else None


def delete(entry: Entry) -> None:
    """Deletes a result's files, those beside its JSON that it names, and forgets it.

    Raises:
        LGMError: (kind 'output') If one can't be deleted; it is remembered then.
    """
    files = [Path(file) for file in entry.result.files]
    files = [file for file in files if file.parent == entry.path.parent and file.name.startswith(entry.name)]
    try:
        for file in [*files, entry.path]:  # the JSON last: as long as it is there, the result can be found
            file.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(file, error) from error
    remove(entry.path)
