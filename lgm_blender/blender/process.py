"""A child process that never makes its parent wait: threads read and write its pipes."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # no console may open beside Blender on Windows

MAX_LINE = 1 << 20  # bytes; a longer line is no message
MAX_LOG = 16 << 20  # bytes of one run's log
GRACE = 2.0  # seconds in which a dead process's pipes must end: a grandchild may hold them open for ever


def clean_variables(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for another Python: nothing of Blender's own Python may leak into it."""
    leaking = ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(leaking)}
    return {**variables, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", **(extra or {})}


class Process:
    """A running command.

    Args:
        command: The program and its arguments.
        environment: All its environment variables.
        log: A file that receives everything it writes to stderr; rewritten.
        merge_errors: Whether stderr comes out of `lines` too.

    Raises:
        OSError: If the program can't be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        merge_errors: bool = False,
    ):
        # A session of its own: Ctrl-C in a terminal is for us to answer, and `kill` reaches its children too.
        self._popen = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge_errors else subprocess.PIPE,
            start_new_session=sys.platform != "win32",
            creationflags=NO_WINDOW,
        )
        self.tail: collections.deque[str] = collections.deque(maxlen=40)  # the last lines of stderr
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._died: float | None = None
        self._muted: float | None = None
        readers = [threading.Thread(target=self._read_lines, daemon=True)]
        if not merge_errors:
            readers.append(threading.Thread(target=self._read_errors, args=(log,), daemon=True))
        self._readers = readers
        for thread in (*readers, threading.Thread(target=self._write, daemon=True)):
            thread.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._popen.pid

    def lines(self, limit: int | None = None) -> list[bytes]:
        """The lines of stdout since the last call, the first `limit` of them."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while limit is None or len(lines) < limit:
                lines.append(self._lines.get_nowait())
        return lines

    def write(self, data: bytes) -> None:
        """Sends `data` to its stdin, some time: a full pipe stops a thread and not the caller."""
        self._outbox.put(data)

    def close(self) -> None:
        """Ends its stdin, after everything that was written."""
        self._outbox.put(None)

    def exit_code(self) -> int | None:
        """Its exit code once it has ended and was read to the end, else None. Negative: the signal that ended it."""
        code = self._popen.poll()
        if code is None:
            return None
        self._died = self._died or time.monotonic()
        reading = any(thread.is_alive() for thread in self._readers)
        return None if reading and time.monotonic() - self._died < GRACE else code

    def is_mute(self) -> bool:
        """Whether it lives on but has closed its stdout."""
        if self._readers[0].is_alive() or self._popen.poll() is not None:
            return False
        self._muted = self._muted or time.monotonic()  # a process that ends closes its pipes a moment earlier
        return time.monotonic() - self._muted > GRACE

    def kill(self) -> None:
        """Ends it and its children at once."""
        self.close()
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self._popen.kill()
            else:
                os.killpg(self._popen.pid, signal.SIGKILL)

    def leave(self, patience: float) -> None:
        """Ends its stdin; without waiting, sees to it that it ends by itself, or after `patience` seconds by force.

        With a patience of 0 it and its children are ended at once.
        """
        self.close() if patience > 0 else self.kill()
        # Not a timer of Blender's: these end with the add-on.
        with contextlib.suppress(RuntimeError):  # this Python is ending, and starts no threads any more
            threading.Thread(target=self._see_off, args=(patience,), daemon=True).start()

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for its end; whether it came."""
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _see_off(self, patience: float) -> None:
        if not self.wait(patience):
            self.kill()
            self.wait(GRACE)  # so that it is no zombie

    def _read_lines(self) -> None:
        with self._popen.stdout as pipe:
            skipping = False
            while line := pipe.readline(MAX_LINE):
                whole = line.endswith(b"\n")
                if not skipping and (whole or len(line) < MAX_LINE):
                    self._lines.put(line)
                elif not skipping:
                    self.tail.append(f"(a line longer than {MAX_LINE} bytes was left out)")
                skipping = not whole

    def _read_errors(self, log: Path | None) -> None:
        with contextlib.ExitStack() as stack:
            pipe = stack.enter_context(self._popen.stderr)
            file = None
            with contextlib.suppress(OSError):
                file = log and stack.enter_context(log.open("wb", buffering=0))
            logged = 0
            while line := pipe.readline(MAX_LINE):
                text = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]  # the last state of a progress bar
                if text:
                    self.tail.append(text)
                logged += len(line)
                if file and logged < MAX_LOG:
                    with contextlib.suppress(OSError):
                        file.write(line)

    def _write(self) -> None:
        with contextlib.suppress(OSError), self._popen.stdin as pipe:  # a process that has ended reads nothing
            while (data := self._outbox.get()) is not None:
                pipe.write(data)
                pipe.flush()
