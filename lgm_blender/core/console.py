"""What both processes print on: consoles whose encoding may lack the letters of a path."""

from __future__ import annotations

import sys


def escape_unprintable() -> None:
    """Has stdout and stderr escape what their encoding lacks: no path may end a job whose work is done."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or Blender has put something else in their place
            stream.reconfigure(errors="backslashreplace")
