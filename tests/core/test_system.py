"""core/system.py: what each system is asked for, on whichever one this runs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path, PureWindowsPath

import pytest
from processes import is_running

from lgm_blender.core import system
from lgm_blender.core.errors import LGMError
from lgm_blender.core.system import file_stem, fitting_stem

FAMILY = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_and_its_children_end():
    parent = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, **system.child_options())
    with parent.stdout as pipe:
        child = int(pipe.readline())
        assert is_running(child)
        system.end_tree(parent)
        parent.wait(20)
        end = time.monotonic() + 20
        while is_running(child):
            assert time.monotonic() < end
            time.sleep(0.01)
    system.end_tree(parent)  # one that has ended is no error


class FakeChild:
    pid = 4711

    def __init__(self, code: int | None):
        self.code = code

    def poll(self) -> int | None:
        return self.code


def test_windows_ends_the_tree_of_a_child_that_is_there(monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: commands.append((command, options)))
    system.end_tree(FakeChild(0), "win32")
    assert not commands
    system.end_tree(FakeChild(None), "win32")
    ((command, options),) = commands
    assert command == ["taskkill", "/F", "/T", "/PID", "4711"]
    assert options["creationflags"] == 0x08000000  # CREATE_NO_WINDOW: no console blinks up


def test_the_other_systems_end_its_session(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "killpg", lambda *given: ended.append(given), raising=False)
    for name in ("linux", "darwin"):
        assert system.child_options(name) == {"start_new_session": True}
        system.end_tree(FakeChild(None), name)
    assert ended == [(4711, 9), (4711, 9)]


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit code 0"), (1, "exit code 1"), (0xC0000005, "exit code 0xc0000005"), (-99, "ended by signal 99")],
)
def test_exit_codes_in_words(code, words):
    assert system.describe_exit(code) == words


def test_only_where_signals_are_an_end_by_force_can_be_told():
    assert [system.was_killed(-9, name) for name in ("linux", "darwin", "win32")] == [True, True, False]
    assert not system.was_killed(1, "linux")


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
    assert len(stem.encode()) <= system.NAME_BYTES


def test_windows_paths_end_at_their_longest():
    folder = PureWindowsPath("C:\\", "x" * 150)
    stem = fitting_stem("y" * 150, folder, "win32")
    assert len(str(folder / stem)) + system.LONGEST_SUFFIX == system.WINDOWS_PATH
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
    system.replace(tmp_path / "new", tmp_path / "a", "win32")
    assert len(tries) == 4
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(("name", "number"), [("win32", 19), ("linux", 32)])
def test_other_refusals_are_told_at_once(tmp_path, monkeypatch, name, number):
    (tmp_path / "new").write_bytes(b"new")
    tries = refusing(monkeypatch, windows_error(number), 3)
    with pytest.raises(PermissionError):
        system.replace(tmp_path / "new", tmp_path / "a", name)
    assert len(tries) == 1


def test_windows_does_not_try_for_ever(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    monkeypatch.setattr(system, "LOCKED", 0.1)
    refusing(monkeypatch, windows_error(5), 1000)
    with pytest.raises(PermissionError):
        system.replace(tmp_path / "new", tmp_path / "a", "win32")
    assert (tmp_path / "new").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_taken_once(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    system.take_name(tmp_path / "first", tmp_path / "a")
    with pytest.raises(FileExistsError):
        system.take_name(tmp_path / "second", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "first"
    system.keep_under(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "first"


def test_full_disks_of_every_system():
    full, device = OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")
    windows = OSError(errno.EINVAL, "Datenträger voll")
    windows.winerror = 112
    assert [system.is_full(error) for error in (full, windows, device)] == [True, True, False]


def test_programs_of_an_environment():
    folder = Path("environment")
    assert system.environment_python(folder, "win32") == folder / "Scripts" / "python.exe"
    assert system.environment_python(folder, "darwin") == folder / "bin" / "python"
    assert [system.program("uv", name) for name in ("win32", "linux")] == ["uv.exe", "uv"]
