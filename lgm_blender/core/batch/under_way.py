"""What a batch is making now, in a small file: one that was killed between an item's files and its line is told so."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import LGMError
from ..files import TEMPORARY_SUFFIX, replacing

NAME = ".lgm-under-way.json"
SCRAP_AGE = 900.0  # seconds; nobody writes one file for that long


class UnderWay:
    """The file of an output folder. Whoever uses it holds the journal's lock.

    Args:
        folder: The output folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        self._now: dict[str, dict[str, Any]] = {}
        self._before: dict[str, dict[str, Any]] = {}  # of a batch that was killed
        with suppress(OSError, ValueError, AttributeError):
            before = json.loads(self.path.read_text(encoding="utf-8"))
            self._before = {name: entry for name, entry in before.items() if isinstance(entry, dict)}
        remove_scraps(folder, {entry.get("process") for entry in self._before.values()})

    def was_saved(self, name: str, fingerprint: str) -> bool:
        """Whether the batch before made NAME's files with these settings, and was killed before it could say so."""
        entry = self._before.get(name)
        if entry is None or entry.get("fingerprint") != fingerprint:
            return False
        state = self._state(name)
        return state is not None and state != entry.get("json")

    def begin(self, name: str, fingerprint: str) -> None:
        """NAME is being made.

        Raises:
            LGMError: (kind 'output') If that can't be written down.
        """
        if not self.was_saved(name, fingerprint):
            self._before.pop(name, None)
        entry = self._before.get(name) or {"fingerprint": fingerprint, "json": self._state(name)}
        self._now[name] = entry | {"process": os.getpid()}
        self._write()

    def end(self, name: str) -> None:
        """NAME's line is written."""
        self._before.pop(name, None)
        self._now.pop(name, None)

    def close(self) -> None:
        """Nothing is being made any more; what was not begun again is still known."""
        with suppress(OSError, LGMError):
            if self._before or self._now:
                self._write()
            else:
                self.path.unlink(missing_ok=True)

    def _state(self, name: str) -> int | None:
        """When NAME.json was written, or None if there is none."""
        with suppress(OSError):
            return (self.folder / f"{name}.json").stat().st_mtime_ns
        return None

    def _write(self) -> None:
        with replacing(self.path) as file:
            file.write(json.dumps(self._before | self._now).encode("ascii"))


def remove_scraps(folder: Path, gone: Collection[int | None] = ()) -> None:
    """Removes what killed processes left half-written under another name, once it is old enough to be nobody's.

    Args:
        gone: Numbers of processes that are known to have ended: what is theirs goes at once.
    """
    owned = tuple(f".lgm-{number}{end}" for number in gone for end in "-.")
    for pattern in (f".lgm-*{TEMPORARY_SUFFIX}", ".lgm-*.blend"):
        for scrap in folder.glob(pattern):
            with suppress(OSError):
                if scrap.name.startswith(owned) or time.time() - scrap.stat().st_mtime > SCRAP_AGE:
                    scrap.unlink()
