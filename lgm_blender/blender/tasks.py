"""Commands that are run one after the other while the caller goes on: what fetches packages and weights.

No bpy here: build.py uses it as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ..core.errors import LGMError
from .process import Process, clean_variables

State = Literal["running", "done", "failed", "cancelled"]


class Way(NamedTuple):
    """Commands that lead somewhere if all of them succeed, and what the user should know if it comes to that."""

    commands: tuple[tuple[str, ...], ...]
    note: str = ""


class Step(NamedTuple):
    """One step of a task.

    Attributes:
        label: What it does, for the user.
        ways: How it can be done; the first that succeeds ends the step.
        attached: Whether a command keeps its stdin, by whose end it notices that Blender is gone.
    """

    label: str
    ways: tuple[Way, ...]
    attached: bool = False

    @classmethod
    def of(cls, label: str, command: Sequence[object], attached: bool = False) -> Step:
        """A step of one command."""
        return cls(label, (Way((tuple(map(str, command)),)),), attached)


class Task:
    """Steps, one after the other. Call `step` often, from a timer or a loop, until `state` is not 'running'.

    Args:
        steps: What is run.
        log: File that receives everything that was run and printed; rewritten.
        variables: Environment variables on top of the cleaned ones of this process.

    Attributes:
        state: 'running', 'done', 'failed' or 'cancelled'.
        index, count: Number of the current step from 0, and of steps.
        label: The current step.
        message: The last line that the current command printed.
        output: All its lines.
        notes: What the user should know, whatever comes of it.
        error: Once failed, a sentence for the user.
    """

    def __init__(self, steps: Sequence[Step], log: Path, variables: Mapping[str, str] | None = None):
        self.state: State = "running"
        self.index, self.count = -1, len(steps)
        self.label, self.message, self.error = "", "", ""
        self.output: list[str] = []
        self.notes: list[str] = []
        self.log = log
        self._steps = list(steps)
        self._variables = clean_variables(variables)
        self._process: Process | None = None
        self._work = self._run()

    @property
    def factor(self) -> float:
        """About how much of it is done, 0 to 1."""
        return (max(0, self.index) + 0.5) / max(1, self.count)

    def step(self) -> bool:
        """Goes on as far as is possible without waiting; whether anything changed."""
        if self.state != "running":
            return False
        try:
            return next(self._work)
        except StopIteration:
            self.state = "done"
        except LGMError as error:
            self._fail(error.message)
        except OSError as error:
            self._fail(f"{self.log.parent} is not usable: {error}")
        return True

    def cancel(self) -> None:
        """Stops at once. What was fetched stays; another run goes on from there."""
        if self.state == "running":
            self.state = "cancelled"
            self._kill()

    def _run(self) -> Iterator[bool]:
        """The work, which comes back whenever it would have to wait: whether anything changed meanwhile."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("", encoding="utf-8")
        self.count = len(self._steps)
        for step in self._steps:
            self.index += 1
            self.label = step.label
            for way in step.ways:
                if way.note and way.note not in self.notes:
                    self.notes.append(way.note)
                    self._write(way.note)
                code = 0
                for command in way.commands:
                    code = yield from self._command(command, step.attached)
                    if code:
                        break
                if code == 0:
                    break
            else:
                raise LGMError(self._explain(), "worker")

    def _command(self, command: Sequence[str], attached: bool) -> Iterator[bool]:
        """Runs a command; its exit code in the end."""
        self.output, self.message = [], ""
        self._write("$ " + " ".join(word if "\n" not in word else "..." for word in command))
        try:
            self._process = Process(command, self._variables, merge_errors=True)
        except OSError as error:
            self.output.append(f"{command[0]} could not be started ({error.strerror}).")
            self._write(self.output[-1])
            return -1
        if not attached:
            self._process.close()
        yield True
        code = None
        while code is None:
            changed = False
            code = self._process.exit_code()  # asked first: once it has ended, nothing comes after these lines
            for raw in self._process.lines():
                if line := raw.decode("utf-8", "replace").strip():
                    self.output.append(line)
                    self._write(line)
                    self.message, changed = line, True
            if code is None:
                yield changed
        self._write(f"exit code {code}")
        return code

    def _explain(self) -> str:
        """A sentence about the command that failed."""
        return f"{self.label} failed: {(self.output or ['it said nothing'])[-1].rstrip('.')}. Try again."

    def _fail(self, sentence: str) -> None:
        self.state, self.error = "failed", sentence
        self._write(sentence)
        self._kill()

    def _kill(self) -> None:
        if self._process:
            self._process.kill()

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
