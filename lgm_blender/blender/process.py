"""A child process that never makes its parent wait, and does not outlive it: threads read and write its pipes."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # no console may open beside Blender on Windows

MAX_LINE = 1 << 20  # bytes; a longer line is no message
MAX_WORDS = 500  # letters of a line of stderr that is shown
MAX_LOG = 16 << 20  # bytes of one run's log
MAX_WAITING = 16 << 20  # bytes that are read ahead; then the process waits in its turn
GRACE = 2.0  # seconds in which a dead process's pipes must end: a grandchild may hold them open for ever
ORPHANED = 1.2  # seconds that a process is given to leave by itself once this one is gone, however that went

# Becomes the command, and leaves a child of its own behind in the command's process group: when the other end of the
# pipe is closed, by the end of this program at the latest, that child ends the group. What the system has for this
# (PR_SET_PDEATHSIG) is Linux's alone, reaches no grandchildren, and takes the end of a thread for that of a program.
_TIED = """\
import os, signal, sys, time
pipe, patience, command = int(sys.argv[1]), float(sys.argv[2]), os.getpid()
if os.fork() == 0:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.read(pipe, 1)
    end = time.monotonic() + patience
    while os.getppid() == command and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)
os.close(pipe)
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and so would the command
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def clean_variables(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for another Python: nothing of Blender's own Python may leak into it."""
    leaking = ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(leaking)}
    return {**variables, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", **(extra or {})}


class Process:
    """A running command. It and what it has started end with this program at the latest, however that ends.

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
        options = {
            "env": dict(environment),
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT if merge_errors else subprocess.PIPE,
        }
        start = _start_in_job_object if sys.platform == "win32" else _start_tied
        self._popen, self._end_all = start(list(command), options)
        self.tail: collections.deque[str] = collections.deque(maxlen=40)  # the last lines of stderr
        self._lines: collections.deque[bytes] = collections.deque()
        self._room = threading.Condition()  # guards the lines
        self._waiting = 0  # bytes of them
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._died: float | None = None
        self._muted: float | None = None
        self._over = False
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
        """The lines of stdout since the last call, or the first `limit` of them, and then no more than about 1 MB."""
        lines, size = [], 0
        with self._room:
            while self._lines and (limit is None or (len(lines) < limit and size < MAX_LINE)):
                lines.append(self._lines.popleft())
                size += len(lines[-1])
            self._waiting -= size
            self._room.notify()
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
        self._end_group()
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
        """Ends it and what it has started at once."""
        self._end_group()

    def leave(self, patience: float, then: Callable[[], None] = lambda: None) -> None:
        """Ends its stdin; without waiting, sees to it that it ends by itself, or after `patience` seconds by force.

        With a patience of 0 it and what it has started are ended at once. `then` is called once it is gone.
        """
        self.close() if patience > 0 else self.kill()
        # Not a timer of Blender's: these end with the add-on.
        with contextlib.suppress(RuntimeError):  # this Python is ending, and starts no threads any more
            threading.Thread(target=self._see_off, args=(patience, then), daemon=True).start()

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for its end; whether it came."""
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._end_group()
        return True

    def note(self, line: bytes) -> None:
        """Adds a line to the tail: of a progress bar its last state, and nothing that is meant for a terminal."""
        text = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2][:MAX_WORDS]
        text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
        if text:
            self.tail.append(text)

    def _end_group(self) -> None:
        with self._room:
            if self._over:
                return
            self._over = True  # once: its number may be another's by now
            self._room.notify_all()
        self.close()  # nobody reads it: the thread that writes ends
        self._end_all()

    def _see_off(self, patience: float, then: Callable[[], None]) -> None:
        if not self.wait(patience):
            self.kill()
            self.wait(GRACE)  # so that it is no zombie
        then()

    def _read_lines(self) -> None:
        with self._popen.stdout as pipe:
            skipping = False
            while line := pipe.readline(MAX_LINE):
                whole = line.endswith(b"\n")
                if not skipping and (whole or len(line) < MAX_LINE):
                    self._keep(line)
                elif not skipping:
                    self.tail.append(f"(a line longer than {MAX_LINE} bytes was left out)")
                skipping = not whole

    def _keep(self, line: bytes) -> None:
        with self._room:
            self._room.wait_for(lambda: self._waiting < MAX_WAITING or self._over)
            self._lines.append(line)
            self._waiting += len(line)

    def _read_errors(self, log: Path | None) -> None:
        with contextlib.ExitStack() as stack:
            pipe = stack.enter_context(self._popen.stderr)
            file = None
            with contextlib.suppress(OSError):
                file = log and stack.enter_context(log.open("wb", buffering=0))
            logged = 0
            while line := pipe.readline(MAX_LINE):
                self.note(line)
                logged += len(line)
                if file and logged < MAX_LOG:
                    with contextlib.suppress(OSError):
                        file.write(line)

    def _write(self) -> None:
        with contextlib.suppress(OSError), self._popen.stdin as pipe:  # a process that has ended reads nothing
            while (data := self._outbox.get()) is not None:
                pipe.write(data)
                pipe.flush()


# ---- What ends a program together with all that it has started: the one part that differs between systems


def _start_tied(command: list[str], options: dict) -> tuple[subprocess.Popen, Callable[[], None]]:
    """Not on Windows: a process that leads a session of its own, and what ends all of that."""
    if shutil.which(command[0], path=options["env"].get("PATH")) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    its, ours = os.pipe()  # nothing is ever written to it
    python = sys.executable and shutil.which(sys.executable)
    tied = [python, "-I", "-S", "-c", _TIED, str(its), str(ORPHANED)] if python else []
    try:
        # A session of its own: Ctrl-C in a terminal is for us to answer.
        popen = subprocess.Popen([*tied, *command], **options, start_new_session=True, pass_fds=(its,))
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(its)

    def end_all() -> None:
        with contextlib.suppress(OSError):
            os.killpg(popen.pid, signal.SIGKILL)
        os.close(ours)

    return popen, end_all


def _start_in_job_object(command: list[str], options: dict) -> tuple[subprocess.Popen, Callable[[], None]]:
    """On Windows: a process in a job object, which ends with the last handle to it, and what ends all of that."""
    import ctypes
    from ctypes import wintypes

    class Limits(ctypes.Structure):  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION
        _fields_ = (
            ("times", ctypes.c_int64 * 2),
            ("flags", wintypes.DWORD),
            ("working_set", ctypes.c_size_t * 2),
            ("processes", wintypes.DWORD),
            ("affinity", ctypes.c_size_t),
            ("classes", wintypes.DWORD * 2),
            ("counters", ctypes.c_uint64 * 6),
            ("memory", ctypes.c_size_t * 4),
        )

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.CreateJobObjectW.restype = wintypes.HANDLE
    kernel.CreateJobObjectW.argtypes = (ctypes.c_void_p, wintypes.LPCWSTR)
    kernel.SetInformationJobObject.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
    kernel.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
    kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
    popen = subprocess.Popen(command, **options, creationflags=NO_WINDOW)
    job = kernel.CreateJobObjectW(None, None)
    limits = Limits(flags=0x2000)  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    kernel.SetInformationJobObject(job, 9, ctypes.byref(limits), ctypes.sizeof(limits))
    kernel.AssignProcessToJobObject(job, int(popen._handle))

    def end_all() -> None:
        popen.kill()
        kernel.CloseHandle(job)

    return popen, end_all
