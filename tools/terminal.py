"""Running commands from a terminal: something moves while they work, and what goes wrong is shown."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import tools
from lgm_blender.blender.process import clean_variables
from lgm_blender.blender.tasks import Step, Task


class Failure(Exception):
    """Something the person at the terminal must know; the text says what to do."""


class Progress:
    """Shows that something is alive: in a terminal twice a second, with what it last said, elsewhere every 10 s."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.start = self.shown = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.start

    def tick(self, label: str, message: str = "") -> None:
        """Call it often."""
        if time.monotonic() - self.shown < (0.5 if self.terminal else 10.0):
            return
        self.shown = time.monotonic()
        text = f"  {label}: {self.seconds:.0f} s"
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + f"{text}  {message}"[:width].ljust(width), end="", flush=True)
        else:
            print(text, flush=True)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if self.terminal:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="")
        print(f"  {line}", flush=True)


def follow(task: Task, what: str = "") -> None:
    """Carries a task out and shows how far it is.

    Args:
        task: What is done.
        what: Added to the label of each of its steps.

    Raises:
        Failure: If it fails: why, and the last lines that were printed.
    """
    progress, index, label, notes = Progress(), -1, task.label, 0
    try:
        while task.state == "running":
            changed = task.step()
            for note in task.notes[notes:]:
                progress.say(note)
            notes = len(task.notes)
            if task.index != index or task.state == "done":
                if index >= 0:
                    progress.say(f"{label}{what}: {progress.seconds:.1f} s")
                progress, index, label = Progress(), task.index, task.label
            progress.tick(label + what, task.message)
            if not changed:
                time.sleep(0.02)
    except BaseException:
        task.cancel()
        raise
    if task.state == "failed":
        tail = "\n".join("    " + line for line in task.output[-15:])
        raise Failure(f"{task.error}\n\nThe last lines of its output:\n{tail}\n\nAll of it is in {relative(task.log)}.")


def run(command: Sequence[object], label: str, log: str, variables: Mapping[str, str] | None = None) -> None:
    """Runs a command with its output in build/logs/LOG.txt.

    Raises:
        Failure: If it ends with an error.
    """
    follow(Task([Step.of(label, command)], tools.BUILD / "logs" / f"{log}.txt", variables))


def call(command: Sequence[object], variables: Mapping[str, str] | None = None) -> int:
    """Runs a command in the repository's folder that prints for itself; its exit code."""
    child = start(command, variables)
    try:
        return child.wait()
    except BaseException:  # Ctrl-C
        child.kill()
        raise


def start(command: Sequence[object], variables: Mapping[str, str] | None = None, **options) -> subprocess.Popen:
    """Starts such a command."""
    settings = clean_variables({"PYTHONUNBUFFERED": "1", **(variables or {})})
    return subprocess.Popen(
        [str(part) for part in command], cwd=tools.ROOT, env=settings, stdin=subprocess.DEVNULL, **options
    )


def relative(path: Path) -> str:
    """A path as seen from where the user is, if it lies below."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
