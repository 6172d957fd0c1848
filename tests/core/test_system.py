"""core/system: what each system is asked for, on whichever one this runs."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
import time
from pathlib import Path, PureWindowsPath

import pytest
from processes import is_running

from lgm_blender.core import environment
from lgm_blender.core.errors import LGMError
from lgm_blender.core.system import disks, names, processes
from lgm_blender.core.system.names import file_stem, fitting_stem

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lgm_blender"

FAMILY = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


def wait_for_the_end(number: int) -> None:
    end = time.monotonic() + 20
    while is_running(number):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_and_its_children_end_together():
    options = {"env": dict(os.environ), "stdout": subprocess.PIPE}
    parent, end_all = processes.start_tied([sys.executable, "-c", FAMILY], options)
    with parent.stdout as pipe:
        child = int(pipe.readline())
        assert is_running(child)
        end_all()
        parent.wait(20)
        wait_for_the_end(child)


def test_a_program_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        processes.start_tied(["/no/such/program"], {"env": dict(os.environ)})


class FakeKernel:
    """Windows' functions for job objects: what was called, in order, and the limits that were set."""

    def __init__(self):
        self.calls, self.limits = [], b""

    def __getattr__(self, name: str):
        if name not in ("CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject", "CloseHandle"):
            raise AttributeError(name)

        def call(*given):
            self.calls.append((name, *given))
            if name == "SetInformationJobObject":
                self.limits = ctypes.string_at(ctypes.addressof(given[2]._obj), given[3])
            return 17

        self.__dict__[name] = call
        return call


class FakeChild:
    _handle, killed = 42, False

    def kill(self):
        self.killed = True


@pytest.mark.skipif(sys.platform == "win32", reason="has the real ones")
def test_on_windows_a_job_object_ends_them(monkeypatch):
    kernel, child, given = FakeKernel(), FakeChild(), {}
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: given.update(options, command=command) or child)
    started, end_all = processes.start_tied(["program.exe", "word"], {"env": {}}, "win32")
    assert started is child
    assert given == {"command": ["program.exe", "word"], "env": {}, "creationflags": processes.NO_WINDOW}
    assert [call[0] for call in kernel.calls] == [
        "CreateJobObjectW",
        "SetInformationJobObject",
        "AssignProcessToJobObject",
    ]
    assert kernel.calls[2][1:] == (17, 42)
    # JOBOBJECT_EXTENDED_LIMIT_INFORMATION of 64 bits: its length, and JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE in it.
    assert kernel.calls[1][2] == 9
    assert len(kernel.limits) == 144
    assert struct.unpack_from("<qqI", kernel.limits) == (0, 0, 0x2000)
    assert kernel.limits.count(0) == 143
    end_all()
    assert kernel.calls[-1] == ("CloseHandle", 17)
    assert child.killed


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit code 0"), (1, "exit code 1"), (0xC0000005, "exit code 0xc0000005"), (-99, "ended by signal 99")],
)
def test_exit_codes_in_words(code, words):
    assert processes.describe_exit(code) == words


def test_only_where_signals_are_an_end_by_force_can_be_told():
    assert [processes.was_killed(-9, name) for name in ("linux", "darwin", "win32")] == [True, True, False]
    assert not processes.was_killed(1, "linux")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Käse und 猫", "Käse und 猫"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("tab\there\x7f", "tab_here_"),
        ("K\udce4fer", "K_fer"),  # a byte that is no UTF-8
        ("ends in dots. .", "ends in dots"),
        ("con", "_con"),
        ("NUL.tar", "_NUL.tar"),
        ("COM1", "_COM1"),
        ("lpt³", "_lpt³"),
        ("CONOUT$", "_CONOUT$"),
        ("console", "console"),
        ("com10", "com10"),
        ("..", "untitled"),
        ("", "untitled"),
    ],
)
def test_names_that_every_system_takes(name, stem):
    assert file_stem(name) == stem


def test_a_long_name_is_cut_between_letters():
    stem = file_stem("猫" * 100)
    assert stem == "猫" * 66
    assert len(stem.encode()) <= names.NAME_BYTES


def test_windows_paths_end_at_their_longest():
    folder = PureWindowsPath("C:\\", "x" * 150)
    stem = fitting_stem("y" * 150, folder, "win32")
    assert len(str(folder / stem)) + names.LONGEST_SUFFIX == names.WINDOWS_PATH
    assert fitting_stem("apple", folder, "win32") == "apple"
    assert fitting_stem("😀" * 60, folder, "win32") == "😀" * 37  # two UTF-16 units each
    assert fitting_stem("y" * 150, folder, "linux") == "y" * 150


def test_windows_folders_without_room_are_named():
    folder = PureWindowsPath("C:\\", "x" * 226)
    assert fitting_stem("a", folder.parent, "win32") == "a"
    with pytest.raises(LGMError, match="Choose a folder with a shorter path") as caught:
        fitting_stem("apple", folder, "win32")
    assert caught.value.kind == "output"


def windows_error(number: int) -> PermissionError:
    error = PermissionError(errno.EACCES, "Zugriff verweigert")
    error.winerror = number
    return error


def refusing(monkeypatch, error: OSError, times: int) -> list[Path]:
    """Has `Path.replace` fail so many times; the list that grows with every try."""
    tries, replace = [], Path.replace

    def fail(self, target):
        tries.append(self)
        if len(tries) <= times:
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    return tries


def test_windows_tries_again_while_a_file_is_open(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "a").write_bytes(b"old")
    tries = refusing(monkeypatch, windows_error(32), 3)
    disks.replace(tmp_path / "new", tmp_path / "a", "win32")
    assert len(tries) == 4
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(("name", "number"), [("win32", 19), ("linux", 32)])
def test_other_refusals_are_told_at_once(tmp_path, monkeypatch, name, number):
    (tmp_path / "new").write_bytes(b"new")
    tries = refusing(monkeypatch, windows_error(number), 3)
    with pytest.raises(PermissionError):
        disks.replace(tmp_path / "new", tmp_path / "a", name)
    assert len(tries) == 1


def test_windows_does_not_try_for_ever(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    monkeypatch.setattr(disks, "LOCKED", 0.1)
    refusing(monkeypatch, windows_error(5), 1000)
    with pytest.raises(PermissionError):
        disks.replace(tmp_path / "new", tmp_path / "a", "win32")
    assert (tmp_path / "new").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_taken_once(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    disks.take_name(tmp_path / "first", tmp_path / "a")
    with pytest.raises(FileExistsError):
        disks.take_name(tmp_path / "second", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "first"
    disks.keep_under(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "first"


def test_full_disks_of_every_system():
    full, device = OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")
    windows = OSError(errno.EINVAL, "Datenträger voll")
    windows.winerror = 112
    assert [disks.is_full(error) for error in (full, windows, device)] == [True, True, False]


def test_programs_of_an_environment():
    folder = Path("environment")
    assert environment.environment_python(folder, "win32") == folder / "Scripts" / "python.exe"
    assert environment.environment_python(folder, "darwin") == folder / "bin" / "python"
    assert [processes.program("uv", name) for name in ("win32", "linux")] == ["uv.exe", "uv"]


def test_an_open_file_is_told_apart_from_a_forbidden_one():
    assert [disks.is_locked(windows_error(number), "win32") for number in (32, 5)] == [True, False]
    assert not disks.is_locked(windows_error(32), "linux")


def test_a_lock_is_one_processs_and_dies_with_it(tmp_path):
    path = tmp_path / "journal"
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from lgm_blender.core.system.disks import take_lock\n"
        "file = open(sys.argv[2], 'a+b'); print(take_lock(file), flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, ROOT, path], stdout=subprocess.PIPE, text=True)
    with other.stdout as pipe:
        assert pipe.readline() == "True\n"
        with path.open("a+b") as file:
            assert not disks.take_lock(file)
        other.kill()
        other.wait(20)
    with path.open("a+b") as file:
        assert disks.take_lock(file)


# What may ask for the system: what this is about, and which packages there are for which machine.
MAY_ASK = {"core/environment.py", "core/lock.py", "blender/recipe.py", "worker/devices.py"}


def test_nothing_else_asks_for_the_system():
    asking = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(words in path.read_text(encoding="utf-8") for words in ("sys.platform", "os.name", "platform.system"))
    }
    assert {path for path in asking if not path.startswith("core/system/")} <= MAY_ASK
