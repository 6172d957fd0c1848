"""Lists of what to make: CSV files with a row for each item."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..cutout import Method
from ..errors import LGMError
from ..formats.splat_files import META
from ..paths import expanded

COLUMNS = ("image", "prompt", "negative_prompt", "seed", "elevation", "matting", "name")
MAX_SIZE = 64 << 20  # bytes; a list of a million rows has less


@dataclass(frozen=True)
class Row:
    """A row: its image's absolute path or None, its name or '', and what else it sets."""

    image: Path | None
    name: str
    values: dict[str, Any]


def read_rows(path: Path, prompt: str = "") -> list[Row]:
    """The rows of a list: UTF-8, separated by commas, semicolons or tabs, its first row names the columns.

    Args:
        path: The list. Relative paths in it are relative to its folder.
        prompt: What rows without a prompt have; without it, each needs an image or a prompt of its own.

    Raises:
        LGMError: If it can't be read, or a cell can't be right; names its row, as spreadsheets count, and column.
    """
    text = _read(path)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise LGMError(f"{path} is no list that can be read ({error}). Save it as CSV (UTF-8) again.") from None
    columns = [name.strip().casefold() for name in table[0]] if table else []
    while columns and not columns[-1]:
        columns.pop()
    for name in columns:
        if name not in COLUMNS:
            known = ", ".join(COLUMNS)
            raise LGMError(f"{path}, row 1: there is no column '{name}'. Name the columns by some of {known}.")
        if columns.count(name) > 1:
            raise LGMError(f"{path}, row 1: there are two columns '{name}'. Remove one.")
    rows = []
    for number, cells in enumerate(table[1:], 2):
        cells = [cell.strip() for cell in cells]
        if any(cells[len(columns) :]):
            raise LGMError(
                f"{path}, row {number}: it has more cells than there are columns. Put text that holds "
                f"'{separator}' in quotes."
            )
        if any(cells):
            given = {name: cell for name, cell in zip(columns, cells, strict=False) if cell}
            rows.append(_row(given, f"{path}, row {number}", path.parent, prompt, separator))
    if not rows:
        raise LGMError(f"{path} has no rows. Put the columns' names in the first and an item in each other.")
    return rows


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_SIZE:
            raise LGMError(f"{path} is larger than {MAX_SIZE >> 20} MB, which no list is. Choose another.")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise LGMError(f"There is no list {path}. Choose another.") from None
    except OSError as error:
        raise LGMError(f"{path} could not be read ({error.strerror or error}). Choose another list.") from error
    except UnicodeDecodeError:
        raise LGMError(f"{path} is not in UTF-8. Save it as 'CSV UTF-8' again.") from None


def _row(given: dict[str, str], where: str, folder: Path, prompt: str, separator: str) -> Row:
    image, name = given.pop("image", None), given.pop("name", "")
    if image is None and not given.get("prompt") and not prompt:
        raise LGMError(f"{where}: it has neither an image nor a prompt. Give it one of them.")
    path = None
    if image is not None:
        try:
            path = (folder / expanded(image)).absolute()
            path = path.parent.resolve() / path.name
            there = path.is_file() or (path / META).is_file()
        except (ValueError, RuntimeError):  # a null character; a home of nobody
            there = False
        if not there:
            raise LGMError(
                f"{where}, column image: there is no file {path or image}. Write paths as seen from the list."
            )
    values: dict[str, Any] = {column: given[column] for column in ("prompt", "negative_prompt") if column in given}
    if "seed" in given:
        values["seed"] = _number(given["seed"], f"{where}, column seed", 0, 2**32 - 1, whole=True)
    if "elevation" in given:
        # Where the comma separates decimals, spreadsheets write lists with semicolons.
        text = given["elevation"] if separator == "," else given["elevation"].replace(",", ".")
        values["elevation"] = _number(text, f"{where}, column elevation", -90, 90)
    if "matting" in given:
        method, methods = given["matting"], get_args(Method)
        if method not in methods:
            raise LGMError(f"{where}, column matting: '{method[:40]}' is none of {', '.join(methods)}. Correct it.")
        values["matting"] = method
    return Row(path, name or ("" if path else "_".join(values.get("prompt", prompt).split()[:8])), values)


def _number(text: str, where: str, least: int, most: int, whole: bool = False) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise LGMError(f"{where}: '{text[:40]}' is not {kind} from {least} to {most}. Correct it.")
    return value
