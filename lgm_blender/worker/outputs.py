"""What a job leaves behind: folders, names, pictures, previews, and files that are whole or not there."""

from __future__ import annotations

import io
import logging
import math
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..core.errors import LGMError
from ..core.files import output_error, replacing, sweep, temporary_file, write_together
from ..core.paths import expanded
from ..core.system.names import fitting_stem
from ..core.version import VERSION

log = logging.getLogger(__name__)

PREVIEW_SHARE = 0.1  # of the time, at most, goes into previews
PREVIEW_INTERVAL = 0.3  # seconds


def check_output(folder: str) -> Path:
    """The output folder as an absolute path, in which a file can be made. It is not made yet.

    Raises:
        LGMError: (kind 'output') if it is no folder, or can't be written to.
    """
    if not folder.strip() or "\0" in folder:
        raise LGMError("There is no output folder of that name. Choose one.", "output")
    try:
        folder = expanded(folder).absolute()
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise LGMError(
                f"{existing} is not a folder, so nothing can be saved in {folder}. Choose another.", "output"
            )
        # Whether one may write is best found out by writing: permissions do not tell of read-only disks.
        probe = temporary_file(existing)
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, StopIteration) as error:
        reason = getattr(error, "strerror", "") or "there is no such disk"
        raise LGMError(
            f"Nothing can be saved in {folder} ({reason}). Choose another output folder.", "output"
        ) from error
    return folder


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, if they are missing.

    Raises:
        LGMError: (kind 'output') if it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder / "result", error) from error


def save_together(
    folder: Path,
    stem: str,
    suffixes: Iterable[str],
    contents: Callable[[str], dict[str, bytes]],
    *,
    overwrite: bool = False,
    source: str | Path | None = None,
    file_name: Callable[[str, str], str] = str.__add__,
) -> dict[str, Path]:
    """Writes files NAME + suffix of one result, all or none; the last one gets its name last.

    Args:
        folder: Made if missing.
        stem: NAME, to which a number is appended if a file of the result is there and may not be replaced.
        suffixes: Of all files that belong to such a result, whether this one has them or not.
        contents: Given NAME, what each suffix's file is to hold.
        overwrite: Whether files of that name may be replaced; all but `source`.
        source: What the result was made from.
        file_name: What the file of NAME and a suffix is called.

    Returns:
        The files' paths by their suffixes.

    Raises:
        LGMError: (kind 'output') if they can't be written; none of them is there then.
    """
    make_folder(folder)
    sweep(folder)
    stem, suffixes = fitting_stem(stem, folder), tuple(suffixes)
    for number in range(1_000_000):
        name = f"{stem}_{number:03}" if number else stem
        taken = [folder / file_name(name, suffix) for suffix in suffixes]
        if overwrite:
            taken = [path for path in taken if source and path.resolve() == Path(source).resolve()]
        if any(os.path.lexists(path) for path in taken):
            continue
        data = contents(name)
        paths = {suffix: folder / file_name(name, suffix) for suffix in data}
        try:
            write_together({paths[suffix]: content for suffix, content in data.items()}, overwrite=overwrite)
        except FileExistsError:  # another process took the name meanwhile
            continue
        return paths
    raise LGMError(f"{folder} holds a million results named {stem}. Choose another folder.", "output")


class Previews:
    """Pictures of the views while they are sampled, at intervals that cost little.

    Args:
        folder: Where they are written; the last two are kept.
    """

    def __init__(self, folder: Path):
        self.folder, self.prefix = folder, secrets.token_hex(4)
        self._pause, self._last = 0.0, -math.inf

    def write(self, step: int, decode: Callable[[], np.ndarray]) -> str | None:
        """A file with the views [B, V, H, W, 3] of each candidate in a row, or None if it is too early for another one.

        Each is a file of its own, so that who reads one never sees it change.
        """
        if time.monotonic() - self._last <= self._pause:
            return None
        started = time.monotonic()
        path = self.folder / f"{self.prefix}_{step:04}.png"
        try:
            with replacing(path) as file:
                file.write(encode_png(np.concatenate([side_by_side(views) for views in decode()])))
            for old in sorted(self.folder.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)[:-2]:
                old.unlink(missing_ok=True)
        except (LGMError, OSError) as error:  # a full temporary disk is no reason to lose the job
            log.warning("no preview: %s", error)
            return None
        finally:
            self._last = time.monotonic()
            self._pause = max(PREVIEW_INTERVAL, (self._last - started) / PREVIEW_SHARE)
        return str(path)


def side_by_side(views: np.ndarray) -> np.ndarray:
    """Views [V, H, W, 3] in one row [H, V * W, 3]."""
    return np.concatenate(list(views), axis=1)


def encode_png(picture: np.ndarray, level: int = -1) -> bytes:
    """A picture [H, W, 3], uint8 or in 0..1, as a PNG file; `level` is zlib's, 0 to 9, or -1 for its default."""
    from PIL import Image

    if picture.dtype != np.uint8:
        picture = np.uint8(np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Of the extension, Python, and the packages that decide what comes out."""
    found = {"lgm_blender": VERSION, "python": platform.python_version()}
    for package in ("torch", "numpy"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
