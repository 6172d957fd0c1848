"""Weights: the files of a model, where they are looked for, and whether they are whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open

from ..core.errors import Cancelled, LGMError
from ..core.files import replacing
from ..core.paths import expanded
from ..core.system.folders import data_folder

WEIGHTS_VARIABLE = "LGM_BLENDER_WEIGHTS"
MAIN = "main"  # the branch of a repository
OURS = "lgm_blender"  # the reference in the Hugging Face cache that holds the commit that was fetched for us


@dataclass(frozen=True)
class File:
    """What a file must be: its size in bytes and its SHA-256, where they are known."""

    size: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """The files of one model.

    Attributes:
        files: Path below the model's folder -> what the file must be.
        folder: Where they are, for a preset that is a folder.
        repository: OWNER/NAME on Hugging Face, for a published model.
        revision: Its commit, or MAIN where none is known: then the one that is fetched first is stayed on.
        licence: What a published model may be used under.
        size: About how many bytes a published model has.
    """

    files: dict[str, File]
    folder: Path | None = None
    repository: str = ""
    revision: str = MAIN
    licence: str = ""
    size: int = 0

    def revisions(self) -> list[str]:
        """Commits that the files may be of, the first choice first, and last the branch."""
        pinned = self.revision if self.revision != MAIN else ""
        return [commit for commit in (pinned, _reference(self.repository, OURS)) if commit] + [MAIN]

    def candidates(self) -> Iterator[Path]:
        """Folders that may hold the files, the first choice first."""
        if self.folder is not None:
            yield self.folder
            return
        if chosen := os.environ.get(WEIGHTS_VARIABLE):
            root = expanded(chosen)
            yield from (root / self.repository, root / self.repository.split("/")[1], root)
        snapshots = cache_folder(self.repository) / "snapshots"
        *commits, _ = self.revisions()
        yield from (snapshots / commit for commit in (*commits, _reference(self.repository, MAIN)) if commit)
        yield from sorted(snapshots.glob("*"))

    def locate(self) -> tuple[Path | None, list[str]]:
        """The first folder whose files are all there and of their size, or None and what is wrong with the best one."""
        best: list[str] | None = None
        for folder in self.candidates():
            faults = [fault for name, file in self.files.items() if (fault := _fault(folder / name, file))]
            if not faults:
                return folder, []
            if best is None or len(faults) < len(best):
                best = faults
        return None, best or [f"{name} is missing" for name in self.files]


def cache_folder(repository: str) -> Path:
    """Where the Hugging Face cache keeps a repository."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _reference(repository: str, name: str) -> str:
    """The commit that a reference in the Hugging Face cache holds, or ''."""
    with suppress(OSError):
        return (cache_folder(repository) / "refs" / name).read_text(encoding="utf-8").strip()
    return ""


def _fault(path: Path, file: File) -> str:
    """What is wrong with a file, as far as can be told without reading all of it, or ''."""
    try:
        size = path.stat().st_size
        if size and file.size is None and path.suffix == ".safetensors":
            with safe_open(path, "numpy"):  # compares the file's size with its header
                pass
    except SafetensorError as error:
        return f"{path} is cut short or damaged ({error})"
    except OSError:
        return f"{path} is missing"
    if file.size not in (None, size):
        return f"{path} is {'cut short' if size < file.size else 'too long'} ({size:,} of {file.size:,} bytes)"
    return "" if size else f"{path} is empty"


def file_sha256(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        Cancelled: If `cancelled` says so meanwhile.
        LGMError: (kind 'weights') if it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                if cancelled():
                    raise Cancelled
                digest.update(block)
    except OSError as error:
        raise LGMError(
            f"{path} can't be read ({error.strerror or error}). Check its permissions.", "weights"
        ) from error
    return digest.hexdigest()


class CheckedFiles:
    """Remembers the SHA-256 of large files by their size and time of change, so that each is read through once.

    Args:
        path: Where it is kept; it is no harm if it can't be.
    """

    def __init__(self, path: Path | None = None):
        self.path = path or data_folder() / "checked_files.json"
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = entries if isinstance(entries, dict) else {}
        except (OSError, ValueError, RecursionError):
            self.entries = {}

    def sha256(self, path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
        """The SHA-256 of a file, from memory if it has not changed."""
        stat = path.stat()
        if stat.st_size < 1 << 20:
            return file_sha256(path, cancelled)
        key, state = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = self.entries.get(key)
        if not (isinstance(entry, list) and len(entry) == 3 and entry[:2] == state):
            entry = self.entries[key] = [*state, file_sha256(path, cancelled)]
            with suppress(OSError, LGMError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path) as file:
                    file.write(json.dumps(self.entries).encode())
        return entry[2]
