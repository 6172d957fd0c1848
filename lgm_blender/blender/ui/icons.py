"""The views of the job on its way, or of the last result, as icons for the panel."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import bpy
import bpy.utils.previews
import imbuf

_previews: bpy.utils.previews.ImagePreviewCollection | None = None
_shown = ""
views: list[int] = []  # the icons' numbers, one a view


def show(path: str) -> None:
    """Cuts a row of views apart, so that a narrow panel can show them large. Does nothing if they are shown already.

    Args:
        path: The picture; '' shows nothing.
    """
    global _previews, _shown
    if path == _shown:
        return
    clear()
    _shown = path
    if not path:
        return
    _previews = bpy.utils.previews.new()
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=bpy.app.tempdir) as folder:
        row = imbuf.load(path)
        width, height = row.size
        for left in range(0, width - height + 1, height):
            view = row.copy()
            view.crop((left, 0), (left + height - 1, height - 1))
            file = str(Path(folder, f"{left}.png"))
            imbuf.write(view, filepath=file)
            preview = _previews.load(f"{path} {left}", file, "IMAGE")
            tuple(preview.image_size)  # asking reads the file, which is gone when the panel is drawn
            views.append(preview.icon_id)


def clear() -> None:
    """Takes the icons away."""
    global _previews, _shown
    if _previews is not None:
        bpy.utils.previews.remove(_previews)
    _previews, _shown = None, ""
    views.clear()


_files: dict[tuple[str, bool], int] = {}
_file_previews: bpy.utils.previews.ImagePreviewCollection | None = None


def of_file(path: str, first: bool = False) -> int:
    """The number of an icon that shows a picture's file.

    Args:
        path: The picture.
        first: Whether it is a row of views, of which the first one is shown.
    """
    global _file_previews
    if (path, first) not in _files:
        if _file_previews is None:
            _file_previews = bpy.utils.previews.new()
        if first:
            _files[path, first] = _load_first(_file_previews, path)
        else:
            _files[path, first] = _file_previews.load(path, path, "IMAGE").icon_id
    return _files[path, first]


def _load_first(previews: bpy.utils.previews.ImagePreviewCollection, path: str) -> int:
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=bpy.app.tempdir) as folder:
        row = imbuf.load(path)
        side = row.size[1]
        row.crop((0, 0), (side - 1, side - 1))
        file = str(Path(folder, "first.png"))
        imbuf.write(row, filepath=file)
        preview = previews.load(f"{path} first", file, "IMAGE")
        tuple(preview.image_size)  # asking reads the file, which is gone when the panel is drawn
        return preview.icon_id
    return 0


def clear_files() -> None:
    """Takes the icons of files away; those that are still wanted are read again."""
    global _file_previews
    if _file_previews is not None:
        bpy.utils.previews.remove(_file_previews)
    _file_previews = None
    _files.clear()
