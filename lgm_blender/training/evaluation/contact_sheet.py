"""Contact sheets: labelled columns of pictures, a row for each object with its name and figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAGE, INK, FAINT = (243, 243, 241), (34, 34, 34), (120, 120, 120)
MARGIN, GAP, LABEL = 16, 4, 168  # pixels: around the sheet, between tiles, the column of names
WIDE_GAP = 14  # between groups of columns
# From no error to the largest one that is told apart, a mean of 0.5 over the colours.
ERROR_COLORS = np.array([(255, 255, 255), (255, 214, 120), (238, 105, 50), (150, 20, 40), (40, 0, 20)], np.float32)
LARGEST_ERROR = 0.5


@dataclass(frozen=True)
class Row:
    """One object.

    Attributes:
        name: What it is.
        lines: Its figures.
        tiles: One uint8 picture [S, S, 3] for each column, all of the sheet's tile size.
        order: What rows are sorted by, the best first: the larger the better.
    """

    name: str
    lines: list[str]
    tiles: list[np.ndarray]
    order: float = 0.0


def tile(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture [H, W, 3] in 0 to 1 as a uint8 tile [size, size, 3]."""
    image = Image.fromarray(np.uint8(np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX if size < len(picture) else Image.BICUBIC))


def four_in_one(pictures: np.ndarray) -> np.ndarray:
    """Four pictures [4, H, W, 3] as one [2H, 2W, 3]: the first two above the others."""
    return np.concatenate([np.concatenate(list(pictures[:2]), 1), np.concatenate(list(pictures[2:]), 1)], 0)


def error_picture(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where pictures [H, W, 3] in 0 to 1 differ, and how much: white for not at all, black for 0.5 or more."""
    levels = np.linspace(0, LARGEST_ERROR, len(ERROR_COLORS))
    error = np.abs(a - b).mean(-1)
    return np.stack([np.interp(error, levels, channel) for channel in ERROR_COLORS.T], -1) / 255


def evenly(rows: Sequence[Row], count: int) -> list[tuple[int, Row]]:
    """At most `count` rows from the best to the worst, at even steps, each with its rank from 1."""
    ranked = list(enumerate(sorted(rows, key=lambda row: -row.order), 1))
    if len(ranked) <= count:
        return ranked
    return [ranked[i] for i in np.linspace(0, len(ranked) - 1, count).round().astype(int)]


def contact_sheet(
    heading: str,
    groups: Sequence[tuple[str, Sequence[str]]],
    rows: Sequence[Row],
    *,
    size: int = 96,
    count: int = 12,
    note: str = "",
) -> bytes:
    """A sheet as a PNG file.

    Args:
        heading: Its first line.
        groups: The columns: what a group has in common, and the columns' own names.
        rows: One for each object.
        size: Side of a tile in pixels.
        count: How many rows it has at most; from the best to the worst at even steps.
        note: A line below the heading.
    """
    chosen = evenly(rows, count)
    lefts, x = [], MARGIN + LABEL
    for _, columns in groups:
        x += WIDE_GAP
        for _ in columns:
            lefts.append(x)
            x += size + GAP
        x -= GAP
    large, plain, small = (ImageFont.load_default(points) for points in (20, 13, 11))
    top = MARGIN + 28 + (18 if note else 0) + 40
    pitch = max(size, 20 + 16 * max((len(row.lines) for row in rows), default=0) + 14) + 2 * GAP
    image = Image.new("RGB", (x + MARGIN, top + pitch * len(chosen) + MARGIN), PAGE)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), heading, INK, large)
    if note:
        draw.text((MARGIN, MARGIN + 28), note, FAINT, plain)

    column = 0
    for group, columns in groups:
        first, last = lefts[column], lefts[column + len(columns) - 1] + size
        if group:
            draw.text(((first + last) / 2, top - 30), group, INK, plain, anchor="mm")
        for name in columns:
            draw.text((lefts[column] + size / 2, top - 12), name, FAINT, small, anchor="mm")
            if name == "error":
                _key(draw, lefts[column], lefts[column] + size, top - 4)
            column += 1

    for i, (rank, row) in enumerate(chosen):
        y = top + i * pitch + GAP
        number = f"{rank} of {len(rows)}" if len(rows) > 1 else ""
        draw.text((MARGIN, y), number, FAINT, small)
        for line in textwrap.wrap(row.name, LABEL // 7)[:2]:  # letters are 7 pixels wide on average
            y += 15
            draw.text((MARGIN, y), line, INK, plain)
        for line in row.lines:
            y += 15
            draw.text((MARGIN, y), line, FAINT, small)
        for left, pixels in zip(lefts, row.tiles, strict=True):
            image.paste(Image.fromarray(pixels), (left, top + i * pitch + GAP))
    return _small_png(image)


def _key(draw: ImageDraw.ImageDraw, left: int, right: int, y: int) -> None:
    """The error's colours, in a line below the column's name."""
    for x in range(left, right):
        level = (x - left) / (right - left) * LARGEST_ERROR
        color = error_picture(np.full((1, 1, 3), level), np.zeros((1, 1, 3)))[0, 0] * 255
        draw.line([(x, y), (x, y + 2)], tuple(int(value) for value in color))


def _small_png(image: Image.Image) -> bytes:
    """256 colours are a third of the size and look the same; dithered, rare ones would get specks of others."""
    buffer = io.BytesIO()
    palette = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
