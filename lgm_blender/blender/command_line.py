"""What this package's command lines share: their options' types, their progress and how they end."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence

import bpy

from ..core.console import escape_unprintable
from .engine import log_folder

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 130

Write = Callable[[str], None]  # receives a line of JSON for stdout, without its newline


def tell(sentence: str) -> None:
    """Says something to who runs the batch."""
    print(sentence, file=sys.stderr, flush=True)


class ProgressLine:
    """One line of progress on stderr: rewritten in a terminal, written once, at the end, elsewhere."""

    def __init__(self, start: str):
        self._start = start
        self._live = sys.stderr.isatty()

    def show(self, state: str) -> None:
        """What is being done now."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{f'{self._start}: {state}'[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    def end(self, state: str) -> None:
        """How it went."""
        if self._live:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", file=sys.stderr)
        tell(f"{self._start}: {state}")


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, Write], int],
    arguments: Sequence[str],
    write: Write | None = None,
) -> int:
    """Reads a command line and does what it says; the exit code.

    Args:
        work: Does it; gives the exit code.
        write: Receives the lines for stdout; printed by default.
    """
    escape_unprintable()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # --help: stdout is for results
            options = parser.parse_args(list(arguments))
        return work(options, write or (lambda line: print(line, flush=True)))
    except SystemExit as stop:  # argparse has said why
        return EXIT_OK if not stop.code else EXIT_USAGE


def main(batch: Callable[[Sequence[str], Write], int], stopped: str) -> None:
    """Runs the command line of this process and ends the process.

    Args:
        batch: Is given its arguments, and what receives the lines for stdout; gives the exit code.
        stopped: What Ctrl-C is answered with.
    """
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    if not bpy.app.background:
        tell("A batch would stop this Blender's window for its whole length. Start Blender with --background.")
        sys.exit(EXIT_USAGE)
    # Blender prints to stdout too, some of it from C; the results get it for themselves.
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(_noise(), 1)
    try:
        code = batch(arguments, lambda line: print(line, file=results, flush=True))
    except KeyboardInterrupt:
        tell(stopped)
        code = EXIT_STOPPED
    except BaseException:
        traceback.print_exc()
        code = EXIT_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    shutil.rmtree(bpy.app.tempdir, ignore_errors=True)
    # Blender crashes or hangs on the way out if an enabled add-on has left it a class or a handler, whoever's it is.
    os._exit(code)


def _noise() -> int:
    """Where Blender's own prints go."""
    with contextlib.suppress(OSError):
        log_folder().mkdir(parents=True, exist_ok=True)
        return os.open(log_folder() / "batch.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    return os.open(os.devnull, os.O_WRONLY)
