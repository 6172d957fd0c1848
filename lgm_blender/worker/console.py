"""What the command lines of worker and training share: how they run, and what they print."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..core.console import escape_unprintable
from ..core.errors import LGMError
from ..core.messages import Progress
from ..core.system.folders import ensure_home

if TYPE_CHECKING:
    from .download import Fetched


def run(parser: argparse.ArgumentParser, arguments: list[str] | None, remedy: str = "") -> int:
    """Runs the command that the arguments name: its parser's default `run`, called with the options.

    Args:
        parser, arguments: The command line.
        remedy: What to type where one of the packages is missing that it names.

    Returns:
        0 if all went well, 1 after an error (a sentence on stderr), 130 after Ctrl-C.
    """
    escape_unprintable()
    ensure_home()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except LGMError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Cancelled.", file=sys.stderr)
        return 130
    except ImportError as error:
        told = remedy if (error.name or "").partition(".")[0] in remedy.split() else error
        print(f"Error: the worker's Python ({sys.executable}) lacks {error.name}. {told}", file=sys.stderr)
        return 1


def print_progress(progress: Progress) -> None:
    count = f" {progress.step}/{progress.steps}" if progress.steps else ""
    if sys.stderr.isatty():  # in a terminal one line per stage that counts up
        first = "\n" if progress.step == 0 and progress.stage_index else "\r"
        last = "\n" if progress.stage_index == progress.stages - 1 else ""
        print(f"{first}{progress.label}{count}", end=last, file=sys.stderr, flush=True)
    else:
        print(f"{progress.label}{count}", file=sys.stderr, flush=True)


def end_with_stdin() -> None:
    """Has this process end when its stdin does: a pipe from a program that is gone has ended, however it went."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1 << 16):  # not sys.stdin, whose lock Python would wait for at exit
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class DownloadPrinter:
    """A line per file and second, '[2/7] NAME: 120 of 830 MB'; Blender reads them too."""

    def __init__(self):
        self.name, self.time = "", 0.0

    def __call__(self, fetched: Fetched) -> None:
        now = time.monotonic()
        if self.name == fetched.name and now - self.time < 1 and fetched.done != fetched.total:
            return
        start = "\n" if self.name and self.name != fetched.name else ""
        self.name, self.time = fetched.name, now
        size = f"{fetched.done / 1e6:,.0f} of {fetched.total / 1e6:,.0f} MB"
        line = f"[{fetched.index}/{fetched.count}] {fetched.name}: {size}"
        if sys.stderr.isatty():
            print(f"{start}\r{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
