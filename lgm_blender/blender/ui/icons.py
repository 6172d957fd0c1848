"""Pictures as icons for the panel: the views of the job on its way, or of the last result, and the cut-out."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import bpy
import bpy.utils.previews
import imbuf


class Row:
    """A picture of several squares side by side, cut apart, so that a narrow panel can show them large.

    Attributes:
        icons: Their numbers, one a square.
    """

    def __init__(self):
        self.icons: list[int] = []
        self._previews: bpy.utils.previews.ImagePreviewCollection | None = None
        self._shown = ""

    def show(self, path: str) -> None:
        """Shows a picture. Does nothing if it is shown already.

        Args:
            path: The picture; '' shows nothing.
        """
        if path == self._shown:
            return
        self.clear()
        self._shown = path
        if not path:
            return
        self._previews = bpy.utils.previews.new()
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=bpy.app.tempdir) as folder:
            row = imbuf.load(path)
            width, height = row.size
            for left in range(0, width - height + 1, height):
                view = row.copy()
                view.crop((left, 0), (left + height - 1, height - 1))
                file = str(Path(folder, f"{left}.png"))
                imbuf.write(view, filepath=file)
                preview = self._previews.load(f"{path} {left}", file, "IMAGE")
                tuple(preview.image_size)  # asking reads the file, which is gone when the panel is drawn
                self.icons.append(preview.icon_id)

    def clear(self) -> None:
        """Takes the icons away."""
        if self._previews is not None:
            bpy.utils.previews.remove(self._previews)
        self._previews, self._shown = None, ""
        self.icons.clear()


_views, cutout = Row(), Row()
views, show = _views.icons, _views.show


def clear() -> None:
    """Takes all icons away."""
    _views.clear()
    cutout.clear()


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
