"""Processes: one that ends together with all that it has started, and with this program; how a process has ended."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # no console may open beside Blender on Windows
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


def start_tied(
    command: Sequence[str], options: dict[str, Any], system: str = sys.platform
) -> tuple[subprocess.Popen, Callable[[], None]]:
    """Starts a command that ends with this program at the latest, however that ends, and all that it has started too.

    Args:
        command: The program and its arguments.
        options: subprocess.Popen's; `env` among them.

    Returns:
        The process, and what ends all of that at once; it is to be called once, also when the process has ended.

    Raises:
        OSError: If the program can't be started.
    """
    start = _start_in_job_object if system == "win32" else _start_in_session
    return start(list(command), options)


def _start_in_session(command: list[str], options: dict[str, Any]) -> tuple[subprocess.Popen, Callable[[], None]]:
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


def _start_in_job_object(command: list[str], options: dict[str, Any]) -> tuple[subprocess.Popen, Callable[[], None]]:
    """On Windows: a process in a job object, which ends with the last handle to it, and what ends all of that."""
    import ctypes
    from ctypes import wintypes

    class Limits(ctypes.Structure):  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION
        _fields_ = (
            ("times", ctypes.c_int64 * 2),
            ("flags", ctypes.c_uint32),
            ("working_set", ctypes.c_size_t * 2),
            ("processes", ctypes.c_uint32),
            ("affinity", ctypes.c_size_t),
            ("classes", ctypes.c_uint32 * 2),
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


def program(name: str, system: str = sys.platform) -> str:
    """A program's name with the suffix that it has on a system."""
    return f"{name}.exe" if system == "win32" else name


def was_killed(code: int, system: str = sys.platform) -> bool:
    """Whether an exit code is that of a process which was ended by force, as systems do when memory runs out."""
    return system != "win32" and code == -9  # on Windows such an end looks like any other


def describe_exit(code: int) -> str:
    """An exit code in words: 'exit code 1', 'exit code 0xc0000005' as Windows writes its own, 'ended by SIGSEGV'."""
    if code >= 0:
        return f"exit code {code}" if code < 1 << 16 else f"exit code {code:#x}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-code).name}"
    return f"ended by signal {-code}"
