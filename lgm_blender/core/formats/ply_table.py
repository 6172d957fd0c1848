"""PLY files as tables: the header, and the rows of one element, a part at a time. What they mean is for ply.py."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from ..errors import LGMError
from .checks import AGAIN

ROWS = 1 << 16  # read and converted at once, so that a large file is in memory only once

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float32": "f4", "float64": "f8"},
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_HEADER_LIMIT = 1 << 20  # bytes; a 3DGS header has about 1,500
_NOT_A_NUMBER = re.compile(rb"[-+]?(nan\([^)\s]*\)|1\.#\w+)")  # as Microsoft's C library writes it


@dataclass
class Element:
    """One element of a PLY: how many rows, and (name, type, type of a list's length or None) of each property."""

    name: str
    count: int
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.properties]

    @property
    def has_lists(self) -> bool:
        return any(length is not None for _, _, length in self.properties)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype([(name, type) for name, type, _ in self.properties])


@dataclass(frozen=True)
class Header:
    """What a PLY's header says. `length` is its bytes, the newline of end_header included."""

    format: str
    elements: list[Element]
    length: int

    def find(self, name: str) -> Element | None:
        """The element of that name."""
        return next((element for element in self.elements if element.name == name), None)


def read_header(file: BinaryIO, path: Path) -> Header:
    """The header of a PLY whose file stands at its start.

    Raises:
        LGMError: If it is not a PLY's, or one that can't be understood.
    """
    start = file.read(_HEADER_LIMIT)
    if not start:
        raise LGMError(f"{path} is an empty file. {AGAIN}")
    if start[:3] != b"ply" or start[3:4] not in (b"\n", b"\r"):
        raise LGMError(f"{path} is not a PLY file. Choose one of 3D Gaussians.")
    newline = b"\r" if start[3:4] == b"\r" and start[4:5] != b"\n" else b"\n"
    format = order = ""
    elements: list[Element] = []
    position = 0
    while True:
        end = start.find(newline, position)
        if end < 0:
            raise LGMError(f"{path} is not a whole PLY file: its header has no end. {AGAIN}")
        line = start[position:end].decode("latin-1").strip()
        position = end + 1
        try:
            match line.split():
                case ["end_header"]:
                    break
                case ["format", format, _]:
                    order = _BYTE_ORDERS[format]
                case ["element", name, count]:
                    elements.append(Element(name, _count(count)))
                case ["property", "list", length, type, name] if order and _TYPES[length][0] in "iu":
                    elements[-1].properties.append((name, order + _TYPES[type], order + _TYPES[length]))
                case ["property", type, name] if order:
                    elements[-1].properties.append((name, order + _TYPES[type], None))
                case [] | ["ply"] | ["comment" | "obj_info", *_]:
                    pass
                case _:
                    raise ValueError(line)
        except (KeyError, IndexError, ValueError):
            raise LGMError(f"{path} has a header that can't be understood: '{line[:80]}'. {AGAIN}") from None
    if not order:
        raise LGMError(f"{path} has a header that can't be understood: it names no format. {AGAIN}")
    for names in ([element.name for element in elements], *(element.names for element in elements)):
        if len(set(names)) < len(names):
            raise LGMError(f"{path} has a header that can't be understood: a name appears in it twice. {AGAIN}")
    return Header(format, elements, position)


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ValueError(word)
    return int(word)


def rows(file: BinaryIO, header: Header, name: str, path: Path) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of an element without lists, up to ROWS at a time: where they belong, and a structured array.

    Nothing is yielded, and nothing of a promised size is made, if the file is too short to hold them all.

    Raises:
        LGMError: If it is, or if a line of an ascii file is not numbers.
    """
    element = header.find(name)
    if header.format == "ascii":
        yield from _ascii_rows(file, header, element, path)
        return
    start = header.length + _offset(file, header, element, path)
    if start + element.count * element.dtype.itemsize > os.fstat(file.fileno()).st_size:
        raise _cut_short(path, element.count)
    file.seek(start)
    for first in range(0, element.count, ROWS):
        part = np.fromfile(file, dtype=element.dtype, count=min(ROWS, element.count - first))
        yield slice(first, first + len(part)), part


def columns(
    file: BinaryIO, header: Header, name: str, names: Sequence[str], dtype: DTypeLike, path: Path
) -> np.ndarray:
    """[rows of an element, len(names)] of some of its properties; errors as of `rows`."""
    result = np.empty((0, len(names)), dtype)
    for part, table in rows(file, header, name, path):
        if not part.start:  # only now the file is known to hold them
            result = np.empty((header.find(name).count, len(names)), dtype)
        for column, each in enumerate(names):
            result[part, column] = table[each]
    return result


def _cut_short(path: Path, count: int) -> LGMError:
    return LGMError(
        f"{path} is cut short or its header is wrong: it promises {count:,} Gaussians and holds fewer. {AGAIN}"
    )


def _before(header: Header, element: Element) -> list[Element]:
    return header.elements[: header.elements.index(element)]


def _offset(file: BinaryIO, header: Header, wanted: Element, path: Path) -> int:
    """How many bytes after the header a binary file's element begins."""
    before = _before(header, wanted)
    if not any(element.has_lists for element in before):
        return sum(element.count * element.dtype.itemsize for element in before)
    # Rows with lists differ in length, so they must be walked one by one. Each takes at least a byte, so the walk ends
    # with the file whatever the header promises.
    file.seek(header.length)
    data = memoryview(file.read())
    offset = 0
    for element in before:
        if not element.has_lists:
            offset += element.count * element.dtype.itemsize
            continue
        for _ in range(element.count):
            for _, type, length in element.properties:
                items = 1
                if length is not None:
                    end = offset + np.dtype(length).itemsize
                    if end > len(data):
                        raise _cut_short(path, wanted.count)
                    items = max(0, int(np.frombuffer(data[offset:end], dtype=length)[0]))
                    offset = end
                offset += items * np.dtype(type).itemsize
    return offset


def _ascii_rows(file: BinaryIO, header: Header, element: Element, path: Path) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of an ascii file's element, one line each."""
    file.seek(header.length)
    lines = [line for line in file.read().splitlines() if line.strip()]
    first = sum(other.count for other in _before(header, element))
    lines = lines[first : first + element.count]
    if len(lines) < element.count:
        raise _cut_short(path, element.count)
    dtype = np.dtype([(name, np.float64) for name in element.names])
    for start in range(0, len(lines), ROWS):
        text = _NOT_A_NUMBER.sub(b"nan", b" ".join(lines[start : start + ROWS]))
        try:
            part = np.array(text.split(), dtype=np.float64).reshape(-1, len(element.properties))
        except ValueError:
            part = np.empty((0, 1))
        if len(part) != len(lines[start : start + ROWS]):
            raise LGMError(f"{path} is damaged: a line is not {len(element.properties)} numbers. {AGAIN}") from None
        yield slice(start, start + len(part)), part.view(dtype)[:, 0]
