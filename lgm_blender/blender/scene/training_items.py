"""What training views can be rendered of: objects of the open file, and the object assets of a library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import bpy

from ...core.errors import LGMError
from ...core.formats.transforms import caption_from_name
from .images import file_stem

SHAPES = {"MESH", "CURVE", "SURFACE", "FONT", "META"}  # types of objects that have a surface


@dataclass(frozen=True)
class Item:
    """One object of the data set.

    Attributes:
        name: Of its folder, and what its cameras follow from.
        caption: What it is.
        open: Gives the Blender objects it consists of, and takes back what it loaded for that.
    """

    name: str
    caption: str
    open: Callable[[], AbstractContextManager[list[bpy.types.Object]]]


def object_items(objects: Iterable[bpy.types.Object], prefix: str = "") -> list[Item]:
    """An item for each object that is not below another one of them, with all its children."""
    objects = list(objects)
    chosen = set(objects)
    items = []
    for top in objects:
        family = [top, *top.children_recursive]
        if not _ancestors(top) & chosen and any(_has_surface(member) for member in family):
            name = file_stem(prefix + top.name)
            items.append(Item(name, caption_from_name(top.name), lambda family=family: contextlib.nullcontext(family)))
    return items


def asset_items(path: Path | None) -> list[Item]:
    """An item for each object asset in the .blend files of a folder, or in the open file for None.

    Raises:
        LGMError: If there are none.
    """
    if path is None:
        items = object_items(o for o in bpy.data.objects if o.asset_data)
    else:
        files = sorted(path.rglob("*.blend"))
        places = ["_".join(file.relative_to(path).with_suffix("").parts) for file in files]
        items = [
            item
            for file, place in zip(files, places, strict=True)
            for item in _library_items(file, f"{place}_" if len(files) > 1 else "")
        ]
    if not items:
        raise LGMError(f"There are no object assets in {path or 'this file'}. Mark objects as assets first.")
    return items


def _library_items(file: Path, prefix: str) -> list[Item]:
    try:
        with bpy.data.libraries.load(str(file), link=True, assets_only=True) as (source, _):
            names = list(source.objects)
    except OSError as error:
        return [_broken(file_stem(file.stem), f"{file} could not be read ({str(error).strip()}).")]

    @contextlib.contextmanager
    def linked(name: str) -> Iterator[list[bpy.types.Object]]:
        before = {(type(block), block.session_uid) for block in _all_blocks()}
        with bpy.data.libraries.load(str(file), link=True, assets_only=True) as (_, target):
            target.objects = [name]
        added = [block for block in _all_blocks() if (type(block), block.session_uid) not in before]
        try:
            yield [block for block in target.objects if block is not None]
        finally:
            bpy.data.batch_remove(added)

    return [Item(file_stem(prefix + name), caption_from_name(name), lambda name=name: linked(name)) for name in names]


def _broken(name: str, sentence: str) -> Item:
    """An item that only says what is wrong with it."""

    @contextlib.contextmanager
    def fail() -> Iterator[list[bpy.types.Object]]:
        raise LGMError(sentence)
        yield

    return Item(name, "", fail)


def _all_blocks() -> Iterator[bpy.types.ID]:
    for prop in bpy.data.bl_rna.properties:
        if prop.type == "COLLECTION":
            yield from getattr(bpy.data, prop.identifier)


def _ancestors(thing: bpy.types.Object) -> set[bpy.types.Object]:
    found = set()
    while (thing := thing.parent) is not None:
        found.add(thing)
    return found


def _has_surface(thing: bpy.types.Object) -> bool:
    return not thing.hide_render and (thing.type in SHAPES or thing.instance_type == "COLLECTION")
