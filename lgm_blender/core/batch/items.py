"""What a batch is to make: of files, folders, wildcards and lists (rows.py), and a name for each that no other has."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LGMError
from ..formats.splat_files import META, SUFFIXES, stem_of
from ..paths import expanded
from ..pictures import BLENDER_PICTURES, OTHER_PICTURES, WORKER_PICTURES
from ..system.names import file_stem
from .rows import read_rows

# Splats that are taken of a folder; .glb and .gltf mostly hold meshes, and .json is SOG's only by its name.
SPLAT_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in (".glb", ".gltf"))
NAMED = 5  # as many files as a sentence names


@dataclass(frozen=True)
class Item:
    """One thing to make.

    Attributes:
        source: Its image or file of splats, or None for a prompt alone.
        name: Stem of its files' names.
        values: Of a row of a list, what it sets in place of the command line: prompt, negative_prompt, seed, elevation.
    """

    source: Path | None
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.source.name if self.source else self.name

    @property
    def key(self) -> str:
        """What it is known by in the journal, whatever else is made beside it."""
        return json.dumps([str(self.source or ""), dict(sorted(self.values.items()))])

    @property
    def has_splats(self) -> bool:
        """Whether there are splats in place of an image."""
        source = self.source
        return source is not None and (
            source.suffix.lower() in SUFFIXES or source.name == META or (source / META).is_file()
        )


@dataclass(frozen=True)
class Found:
    """The items, and sentences about what was left out."""

    items: list[Item]
    remarks: list[str]


def find_items(
    inputs: Sequence[str], prompt: str, output: Path, names: Mapping[str, str] | None = None, *, blender: bool = True
) -> Found:
    """What there is to make.

    Args:
        inputs: Files, folders, wildcards and lists (.csv).
        prompt: The command line's; makes an item of its own where there are no inputs.
        output: The folder for the results.
        names: The journal's: key -> the name that an item has had before, and keeps.
        blender: Whether what only Blender reads is taken of folders, and splats.

    Raises:
        LGMError: If a folder holds no images, or a list has a mistake.
    """
    remarks: list[str] = []
    if not inputs:
        items = [Item(None, "_".join(prompt.split()[:8]), {"prompt": prompt})]
    else:
        items = [item for name in inputs for item in _expand(name, prompt, output, blender, remarks)]
    unique = list({item.key: item for item in items}.values())
    if len(unique) < len(items):
        remarks.append(f"{len(items) - len(unique)} of the inputs are named more than once, and made once.")
    return Found(_with_names(unique, output, names or {}), remarks)


def _expand(name: str, prompt: str, output: Path, blender: bool, remarks: list[str]) -> list[Item]:
    path = expanded(name).absolute()
    if not path.exists() and glob.has_magic(name):  # Windows' shell leaves that to the program
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        found = [item for file in found for item in _expand(str(file), prompt, output, blender, remarks)]
        return found or [Item(path)]
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return [Item(row.image, row.name, row.values) for row in read_rows(path, prompt)]
    if not path.is_dir() or (path / META).is_file():
        return [Item(path)]
    pictures = (*WORKER_PICTURES, *BLENDER_PICTURES) if blender else WORKER_PICTURES
    splats = SPLAT_SUFFIXES if blender else ()
    try:
        files = sorted(path.iterdir(), key=lambda file: (file.name.casefold(), file.name))
    except OSError as error:
        raise LGMError(f"{path} could not be read ({error.strerror or error}). Choose another folder.") from error
    files = [file for file in files if not file.name.startswith(".") and file.is_file()]
    unread = [file for file in files if file.suffix.lower() in OTHER_PICTURES + (() if blender else BLENDER_PICTURES)]
    if unread:
        remarks.append(f"{_listed(unread)} can't be read here, and {path} is made without. Save them as PNG or JPEG.")
    found = [file for file in files if file.suffix.lower() in (*pictures, *splats)]
    found = [file for file in found if not (file.suffix.lower() in SPLAT_SUFFIXES and _is_made(file))]
    if path == output:
        found = [file for file in found if not _is_result(file)]
    if not found:
        kinds = "images or splats" if blender else "images"
        raise LGMError(f"{path} holds no {kinds} ({', '.join((*pictures, *splats))}). Choose another folder.")
    return [Item(file) for file in found]


def _listed(files: Sequence[Path]) -> str:
    names = [file.name for file in files[:NAMED]]
    more = [f"{len(files) - NAMED} more"] if len(files) > NAMED else []
    return " and ".join(filter(None, (", ".join([*names, *more][:-1]), [*names, *more][-1])))


def _is_made(splats: Path) -> bool:
    """Whether a file of splats, or a mesh in a PLY, lies beside the JSON file of the job that made it."""
    stem = stem_of(splats)
    return splats.with_name(f"{stem}.json").exists() or stem.endswith("_mesh")


def _is_result(picture: Path) -> bool:
    stem = picture.stem.removesuffix("_views").removesuffix("_input")
    there = [suffix for suffix in (".json", ".ply", ".glb") if (picture.parent / f"{stem}{suffix}").exists()]
    return len(there) > 1 and there[0] == ".json"


def _with_names(items: Sequence[Item], output: Path, names: Mapping[str, str]) -> list[Item]:
    """The items with their names: the journal's; else the one that is wanted, made unique by a suffix or a number."""
    wanted = {item.key: file_stem(item.name or stem_of(item.source), None) for item in items}
    stems = Counter(name.casefold() for key, name in wanted.items() if key not in names)
    taken = {name.casefold() for name in names.values()}
    named = []
    for item in items:
        name = names.get(item.key)
        if name is None:
            name = stem = wanted[item.key]
            if not item.name and item.source:
                shared = stems[stem.casefold()] > 1 or stem.casefold() in taken
                if shared and not _made_of(output / f"{stem}.json", item.source):
                    name = f"{stem}_{item.source.suffix[1:].lower()}"
                if item.source.parent == output:
                    name += "_splats"  # the render of apple.png must not become apple.png
            unique, number = name, 1
            while unique.casefold() in taken:
                number += 1
                unique = f"{name}_{number}"
            name = unique
            taken.add(name.casefold())
        named.append(Item(item.source, name, item.values))
    return named


def _made_of(result: Path, source: Path) -> bool:
    """Whether a result that no journal tells of was made of this image."""
    try:
        return json.loads(result.read_text(encoding="utf-8"))["settings"]["image"] == str(source)
    except (OSError, ValueError, LookupError, TypeError):
        return False
