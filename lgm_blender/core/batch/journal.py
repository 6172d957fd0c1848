"""The journal of an output folder: results.jsonl, a line for each item that has ended, added when it ends.

It says what is finished, so that a batch goes on where it was stopped, and which name each item has, so that it keeps
it when there are more. One batch at a time writes it; anybody may read it meanwhile, whose last line may lack its end.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import LGMError
from ..files import output_error
from ..system.disks import take_lock

NAME = "results.jsonl"
FILES = ("ply", "glb", "views", "json", "blend", "png")  # of a record: names in the output folder

Record = dict[str, Any]
_NEEDED = dict.fromkeys(("key", "item", "name", "fingerprint", "started", "ended"), str) | {"ok": bool}
_NEEDED |= {"seconds": int | float, "attempts": int}
_OPTIONAL = dict.fromkeys((*FILES, "input", "prompt", "error", "kind"), str | None)
_OPTIONAL |= dict.fromkeys(("gaussians", "faces", "seed"), int | None) | {"elevation": int | float | None}
_OPTIONAL |= dict.fromkeys(("splat_files", "warnings"), list | None)
_OPTIONAL |= dict.fromkeys(("thumbnails", "timings"), dict | None)


class Journal:
    """Opens, or begins, the journal of a folder, and keeps other batches out until it is closed.

    Args:
        folder: The output folder; it is there.

    Attributes:
        records: All that it holds, the oldest first.
        names: Item's key -> the name it was given.

    Raises:
        LGMError: (kind 'output') If another batch is at work there, if the file is something else, or can't be written.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise output_error(self.path, error) from error
        try:
            if not take_lock(self._file):
                raise LGMError(
                    f"Another batch is at work in {folder}. Wait for its end, stop it, or choose another output "
                    "folder.",
                    "output",
                )
            self.records = self._read()
        except BaseException:
            self._file.close()
            raise
        self.names: dict[str, str] = {}
        self._by_settings: dict[tuple[str, str], Record] = {}
        self._made: dict[str, Record] = {}  # name -> what has its files now
        for record in self.records:
            self._note(record)

    def _read(self) -> list[Record]:
        data = self.path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        lines = data.split(b"\n")
        records = [record for line in lines if (record := _parse(line)) is not None]
        if data.strip() and not records and not (data.startswith(b'{"') and not whole):
            raise LGMError(
                f"{self.path} is there and no batch's journal. Move it away, or choose another output folder.", "output"
            )
        try:
            if torn and _parse(torn) is None:  # the power went while it was written
                self._file.truncate(len(data) - len(torn))
            elif torn:
                self._append(b"\n")
        except OSError as error:
            raise output_error(self.path, error) from error
        return records

    def finished(self, key: str, fingerprint: str) -> Record | None:
        """What is said of an item that was made with these settings and whose files are there, or None."""
        made = self._by_settings.get((key, fingerprint))
        record = made and self._made[made["name"]]
        if record is None or record is not made:  # its files were replaced by those of other settings
            return None
        files = [record[kind] for kind in FILES if record.get(kind)] + record.get("splat_files", [])
        return record if all((self.folder / file).is_file() for file in files) else None

    def add(self, record: Record) -> None:
        """Writes a line, to the disk itself.

        Raises:
            LGMError: (kind 'output') If it can't be written; the journal is as it was then.
        """
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._append(json.dumps(record).encode("ascii") + b"\n")
        except OSError as error:
            self._file.truncate(size)
            raise output_error(self.path, error) from error
        self.records.append(record)
        self._note(record)

    def _note(self, record: Record) -> None:
        self.names[record["key"]] = record["item"]
        if record["ok"]:
            self._made[record["name"]] = self._by_settings[record["key"], record["fingerprint"]] = record

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def latest(self) -> list[Record]:
        """What there is to show: the last result of each name, and the failures that nothing has made good."""
        shown: dict[tuple, Record] = {}
        for record in self.records:
            failure = ("failed", record["key"], record["fingerprint"])
            place = ("made", record["name"]) if record["ok"] else failure
            shown.pop(place, None)
            if record["ok"]:
                shown.pop(failure, None)
            shown[place] = record
        return list(shown.values())

    def close(self) -> None:
        """Lets other batches in."""
        self._file.close()


def read_journal(folder: Path) -> list[Record]:
    """The records of a folder's journal, also while a batch writes it; none if there is no journal.

    Raises:
        LGMError: If it can't be read.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LGMError(f"{path} could not be read ({error.strerror or error}). Close what keeps it open.") from error
    return [record for line in data.split(b"\n") if (record := _parse(line)) is not None]


def _parse(line: bytes) -> Record | None:
    """The record in a line, or None if it is none of ours."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and all(isinstance(record.get(field), kind) for field, kind in _NEEDED.items())
    if not whole or not all(isinstance(record.get(field, None), kind) for field, kind in _OPTIONAL.items()):
        return None
    texts = [*(record.get("splat_files") or []), *(record.get("warnings") or [])]
    texts += (record.get("thumbnails") or {}).values()
    numbers = (record.get("timings") or {}).values()
    fits = all(isinstance(text, str) for text in texts) and all(isinstance(number, int | float) for number in numbers)
    return record if fits else None
