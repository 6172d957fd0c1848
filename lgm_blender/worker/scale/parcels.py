"""A preset's weights for machines that have none: its files, and where they go there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import LGMError
from ..presets import BUNDLED, Preset, find_preset
from ..weights import Weights

PIECE = 256 << 20  # bytes that travel at once
FOLDER = "preset"


@dataclass(frozen=True)
class Parcel:
    """Files to send.

    Attributes:
        name: Of the folder that receives them; changes with their sizes and names.
        files: Where each goes below that folder, and where it is here.
        folder: Which folder of it is the preset, '' for a published one.
    """

    name: str
    files: dict[str, Path]
    folder: str

    @property
    def sizes(self) -> dict[str, int]:
        """How large each file is, in bytes."""
        return {name: path.stat().st_size for name, path in self.files.items()}


def parcel_of(preset_name: str) -> Parcel | None:
    """What other machines need for a preset; None for a bundled one, which comes with the code.

    Raises:
        LGMError: If there is no such preset, or its weights are not whole here.
    """
    preset = find_preset(preset_name)
    if preset_name == Path(preset_name).name and (BUNDLED / preset_name).is_dir():
        return None
    files: dict[str, Path] = {}
    folder = ""
    if Path(preset_name).is_dir():
        folder = FOLDER
        files[f"{FOLDER}/preset.json"] = Path(preset_name) / "preset.json"
    for part in ("lgm", *preset.modes):
        files |= _files(preset, preset.weights[part], part, Path(preset_name))
    facts = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in sorted(files.items())]
    return Parcel(hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16], files, folder)


def _files(preset: Preset, weights: Weights, part: str, own: Path) -> dict[str, Path]:
    here = preset.locate(part)
    if weights.repository:
        return {f"{weights.repository}/{name}": here / name for name in weights.files}
    try:
        below = here.resolve().relative_to(own.resolve())
    except ValueError:
        raise LGMError(
            f"The preset '{preset.name}' takes its models from {here}, another preset's folder, and can't be sent "
            "to other machines. Put it at the same path there.",
            "weights",
        ) from None
    return {f"{FOLDER}/{(below / name).as_posix()}": here / name for name in weights.files}


def pieces(path: Path, size: int = PIECE) -> Iterator[tuple[int, bool, bytes]]:
    """A file in pieces: number, whether it is the last, and content."""
    number, left = 0, path.stat().st_size
    with path.open("rb") as file:
        while True:
            data = file.read(size)
            left -= len(data)
            yield number, left <= 0, data
            if left <= 0:
                return
            number += 1
