"""What makes items on some machine of a cluster: files come in and go out as bytes, so no disk need be shared."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import ErrorKind, LGMError
from ...core.files import TEMPORARY_SUFFIX
from ...core.messages import GenerateRequest, GenerateResult
from ...core.system.folders import data_folder
from ..devices import device_name, resolve_device
from ..memory import watch_memory
from ..pipeline import Pipeline
from ..presets import find_preset
from ..weights import WEIGHTS_VARIABLE

ITEM_PREFIX = "lgm_blender_item_"  # of a folder for one item


@dataclass
class Answer:
    """What came of an item: a result with its files' contents by their suffixes, or an error's sentence and kind."""

    result: GenerateResult | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    error: str = ""
    kind: ErrorKind = "internal"


class Maker:
    """A `Pipeline` with its models loaded, on whichever machine this process runs.

    Args:
        memory: GB that the process may hold during an item, or None.
    """

    def __init__(self, memory: float | None = None):
        self.memory = memory
        self.pipeline = Pipeline()
        self._presets: dict[str, str] = {}  # as they are asked for: where they were put here
        sweep_items()

    def hello(self, preset: str, device: str) -> tuple[bool, str]:
        """Whether the preset's weights are on this machine, and what its device is called.

        Raises:
            LGMError: If there is no such device.
        """
        ready = False
        with suppress(LGMError):
            found = find_preset(preset)
            ready = all(found.locate(part) for part in ("lgm", *found.modes))
        return ready, device_name(resolve_device(device))

    def has_files(self, parcel: str, sizes: dict[str, int]) -> list[str]:
        """Which files of a parcel of weights are not on this machine, whole."""
        root = parcels_folder() / parcel
        return [name for name, size in sizes.items() if not _has_size(root / name, size)]

    def receive(self, parcel: str, name: str, number: int, last: bool, data: bytes) -> None:
        """Takes a piece of a file of weights; the pieces come in their order."""
        path = _inside(parcels_folder() / parcel, name)
        partial = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab" if number else "wb") as file:
            file.write(data)
        if last:
            partial.replace(path)

    def use(self, parcel: str, preset: str, folder: str) -> None:
        """Takes a preset's weights from a parcel that is here; `folder` is the preset's own in it, or ''."""
        root = parcels_folder() / parcel
        os.environ[WEIGHTS_VARIABLE] = str(root)
        if folder:
            self._presets[preset] = str(_inside(root, folder))

    def make(self, request: GenerateRequest, image: bytes | None, source: str) -> Answer:
        """Makes one item.

        Args:
            request: Its paths are not looked at.
            image: The content of its image, or None.
            source: The image's path where it comes from; errors and warnings name it so.
        """
        answers: list[Answer] = []
        ended = threading.Event()

        def end(answer: Answer) -> None:
            answers.append(answer)
            ended.set()

        def work() -> None:
            end(self._make(request, image, source))

        watch = self.memory and watch_memory(
            self.memory, lambda sentence: end(Answer(error=sentence, kind="out_of_memory"))
        )
        threading.Thread(target=work, name="item", daemon=True).start()
        ended.wait()  # whichever comes first; after too much memory this process is ended by who asked
        if watch:
            watch.set()
        return answers[0]

    def _make(self, request: GenerateRequest, image: bytes | None, source: str) -> Answer:
        with tempfile.TemporaryDirectory(prefix=ITEM_PREFIX) as folder:
            path = Path(folder, f"image{Path(source).suffix}") if image is not None else None
            try:
                if path is not None:
                    path.write_bytes(image)
                result = self.pipeline.generate(self._here(request, folder, path))
                return _answer(result, lambda text: _as_at_home(text, path, source))
            except LGMError as error:
                return Answer(error=_as_at_home(error.message, path, source), kind=error.kind)
            except Exception as error:
                traceback.print_exc()
                return Answer(error=f"Something went wrong in the worker ({type(error).__name__}: {error}).")

    def _here(self, request: GenerateRequest, folder: str, path: Path | None) -> GenerateRequest:
        values = vars(request) | {"output": str(Path(folder, "out")), "image": path and str(path), "previews": False}
        return GenerateRequest(**values | {"preset": self._presets.get(request.preset, request.preset)})


def sweep_items() -> None:
    """Removes the items of makers that were killed, once they are a day old."""
    for folder in Path(tempfile.gettempdir()).glob(f"{ITEM_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > 86_400:
                shutil.rmtree(folder, ignore_errors=True)


def parcels_folder() -> Path:
    """Where a machine keeps the weights that it was sent."""
    return data_folder() / "parcels"


def _answer(result: GenerateResult, at_home: Callable[[str], str]) -> Answer:
    stem = Path(result.json).stem
    paths = [result.ply, result.glb, result.views, result.input, *result.splat_files]
    files = {Path(path).name[len(stem) :]: Path(path).read_bytes() for path in paths if path}
    result.warnings[:] = [at_home(warning) for warning in result.warnings]
    return Answer(result, files)


def _as_at_home(text: str, path: Path | None, source: str) -> str:
    return text.replace(str(path), source) if path is not None else text


def _inside(root: Path, name: str) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise LGMError(f"{name} would be written outside of {root}. Check the preset's files.", "weights")
    return path


def _has_size(path: Path, size: int) -> bool:
    with suppress(OSError):
        return path.stat().st_size == size
    return False


def settings_at_home(result: GenerateResult, request: GenerateRequest, name: str) -> dict[str, Any]:
    """A result's settings with the paths of who asked, under the name that it got there."""
    return result.settings | {
        "image": request.image,
        "output": request.output,
        "preset": request.preset,
        "overwrite": request.overwrite,
        "name": name,
    }
