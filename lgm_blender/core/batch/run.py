"""A batch's life, whoever does the work: which item is next, what is tried again, what is written down of each.

Whoever has a worker free takes a task, makes it and hands back what came of it:

    while run.unfinished:
        if task := run.take():
            try: run.done(task, make(task))
            except LGMError as error: run.failed(task, error)

All methods are for one thread.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import ErrorKind, LGMError
from .items import Item
from .journal import FILES, Journal
from .progress import Progress
from .summary import Summary
from .under_way import UnderWay

# What may succeed a second time, and after how many seconds: a worker that died, hung or took too long; a GPU that
# failed; memory and disks that others fill, files that others hold open. A bad image stays one.
RETRIED: dict[ErrorKind, float] = {"worker": 0.0, "device": 0.0, "out_of_memory": 2.0, "output": 2.0}
MAX_LOST = 5  # times that an item may go down with a machine, which is no fault of its own

Thumbnail = Callable[[Path, Path], None]  # writes a small picture of the first file as the second, or raises
THUMBNAILS = "thumbnails"
THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH = 160, 480  # pixels at most; the four views lie side by side
THUMBNAIL_SUFFIX = ".webp"


@dataclass
class Task:
    """An item on its way.

    Attributes:
        attempts: How often it was begun.
        lost: How often the machine that made it was gone.
        not_before: time.monotonic() before which it is not tried again.
        spent: Seconds of the last attempt in a worker and, where it has a part, in Blender; waiting is not counted.
        started: The first attempt's time.
        saved: Whether its files are there, of a batch that was killed before it could say so.
        kept: What an attempt had made before it failed, for the next one.
    """

    item: Item
    settings: Mapping[str, Any]
    fingerprint: str
    attempts: int = 0
    lost: int = 0
    not_before: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    started: str = ""
    saved: bool = False
    kept: Any = None

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def seconds(self) -> float:
        """Of the last attempt."""
        return round(sum(self.spent.values()), 3)

    @contextmanager
    def spending(self, part: Literal["worker", "blender"]) -> Iterator[None]:
        """Takes the time of a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spent[part] = time.monotonic() - began


class Run:
    """What of a batch is still to be made.

    Args:
        items: All of them.
        settings: What an item is made with, its row's values among it: another value, and it is made again.
        journal: Of the output folder; closed by `close`.
        progress: Hears how each ended.
        write: Receives a line of JSON for each item that has ended, without its newline.
        thumbnail: Makes the summary's small pictures.
        retries: How often an item is tried again whose failure is one of RETRIED.
        overwrite: Whether all are made, those too that the journal says are finished.
    """

    def __init__(
        self,
        items: Iterable[Item],
        settings: Callable[[Item], Mapping[str, Any]],
        journal: Journal,
        progress: Progress,
        write: Callable[[str], None],
        thumbnail: Thumbnail,
        *,
        retries: int = 1,
        overwrite: bool = False,
    ):
        self.journal, self.progress, self.write, self.thumbnail = journal, progress, write, thumbnail
        self.retries = retries
        self.folder = journal.folder
        self.good = self.bad = self.skipped = 0
        self.summary = Summary(journal)
        self._begun = UnderWay(journal.folder)
        self._todo: deque[Task] = deque()
        self._under_way = 0
        for item in items:
            chosen = settings(item)
            fingerprint = fingerprint_of(item, chosen)
            record = None if overwrite else journal.finished(item.key, fingerprint)
            if record is None:
                self._todo.append(Task(item, chosen, fingerprint))
            else:
                self._skip(item, record)

    @property
    def unfinished(self) -> bool:
        """Whether anything is still to be made or under way."""
        return bool(self._todo or self._under_way)

    def take(self) -> Task | None:
        """The next task, now under way; None if there is none now. What is tried again comes last."""
        now = time.monotonic()
        task = next((task for task in self._todo if task.not_before <= now), None)
        if task is not None:
            self._todo.remove(task)
            self._under_way += 1
            task.attempts += 1
            task.spent = {}
            task.started = task.started or _now()
            task.saved = self._begun.was_saved(task.name, task.fingerprint)
            self._begun.begin(task.name, task.fingerprint)
        return task

    def done(self, task: Task, made: Mapping[str, Any]) -> None:
        """A task was made.

        Args:
            made: Of its record: name, skipped, files by their kinds, gaussians, faces, seed, warnings, timings.
        """
        self._under_way -= 1
        self.good += 1
        picture = made.get("png") or made.get("views")
        record = self._record(task, made.get("name", task.name), picture) | {"ok": True, **made}
        if made.get("skipped"):
            self.progress.end(str(task.item), "is there already, skipped")
        else:
            what = f"{made['faces']:,} faces" if made.get("faces") else f"{made['gaussians']:,} Gaussians"
            file = made.get("ply") or made.get("glb")
            self.progress.end(str(task.item), f"{what} in {task.seconds:.1f} s, {file}", task.spent)
        self._note(record)

    def failed(self, task: Task, error: LGMError, *, lost: bool = False) -> None:
        """A task failed, and is tried again or given up.

        Args:
            lost: Whether the machine that made it is gone, through no fault of the task.
        """
        self._under_way -= 1
        if lost and task.lost < MAX_LOST:
            task.lost += 1
            task.attempts -= 1
            self.progress.say(f"{task.item}: its machine was lost, it is made elsewhere.")
            self._todo.appendleft(task)
            return
        if error.kind in RETRIED and task.attempts <= self.retries:
            self.progress.say(f"{task.item}: {error.message} It is tried again later.")
            task.not_before = time.monotonic() + RETRIED[error.kind]
            self._todo.append(task)
            return
        self.bad += 1
        record = self._record(task, task.name, None) | {"ok": False, "error": error.message, "kind": error.kind}
        self.progress.end(str(task.item), f"failed: {error.message}")
        self._note(record)

    def close(self) -> None:
        """Writes the summary and lets other batches in. What is under way is as if it had not been begun."""
        try:
            self._begun.close()
            self.summary.write()
        finally:
            self.journal.close()

    def _skip(self, item: Item, record: Mapping[str, Any]) -> None:
        self.good += 1
        self.skipped += 1
        self._begun.end(item.name)
        self.progress.end(str(item), "is finished, skipped")
        self.write(json.dumps(_absolute({**record, "skipped": True, "seconds": 0.0}, self.folder)))

    def _record(self, task: Task, name: str, picture: str | None) -> dict[str, Any]:
        source = task.item.source
        return {
            "input": str(source) if source else None,
            "name": name,
            "item": task.name,
            "key": task.item.key,
            "fingerprint": task.fingerprint,
            "attempts": task.attempts,
            "started": task.started,
            "ended": _now(),
            "seconds": task.seconds,
            **{name: task.settings.get(name) for name in ("prompt", "seed", "elevation")},
            "thumbnails": self._thumbnails(name, None if task.item.has_splats else source, picture),
        }

    def _thumbnails(self, name: str, source: Path | None, picture: str | None) -> dict[str, str]:
        made = {}
        for kind, file in (("input", source), ("result", picture)):
            target = self.folder / THUMBNAILS / f"{name}_{kind}{THUMBNAIL_SUFFIX}"
            with suppress(Exception):  # whatever a picture holds, it stops nobody
                if file:
                    target.parent.mkdir(exist_ok=True)
                    self.thumbnail(Path(file), target)
                    made[kind] = f"{THUMBNAILS}/{target.name}"
        return made

    def _note(self, record: dict[str, Any]) -> None:
        self.journal.add(_relative(record))
        self._begun.end(record["item"])
        self.write(json.dumps(record))
        self.summary.write_sometimes()

    def totals(self) -> str:
        """A sentence about how it went."""
        made = self.good - self.skipped
        parts = [f"{made} made"] + [f"{self.skipped} finished before"] * bool(self.skipped)
        parts += [f"{self.bad} failed"] * bool(self.bad)
        left = self.progress.total - self.good - self.bad
        parts += [f"{left} left"] * bool(left)
        return ", ".join(parts)


def fingerprint_of(item: Item, settings: Mapping[str, Any]) -> str:
    """Changes with an item's settings, and with its file's size and time of change."""
    state = None
    with suppress(OSError, ValueError):
        if item.source:
            stat = item.source.stat()
            state = [stat.st_size, stat.st_mtime_ns]
    text = json.dumps([state, dict(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _relative(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose files are names in the output folder, so that this may be moved."""
    names = {kind: Path(record[kind]).name for kind in FILES if record.get(kind)}
    if files := record.get("splat_files"):
        names["splat_files"] = [Path(file).name for file in files]
    return {**record, **names}


def _absolute(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    paths = {kind: str(folder / record[kind]) for kind in FILES if record.get(kind)}
    if files := record.get("splat_files"):
        paths["splat_files"] = [str(folder / file) for file in files]
    return {**record, **paths}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
