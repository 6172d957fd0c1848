"""core/files.py: a file is whole or not there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lgm_blender.core.errors import LGMError
from lgm_blender.core.files import (
    OWNER_VARIABLE,
    make_temporary_folder,
    remove_scraps,
    replacing,
    sweep,
    temporary_file,
    write_together,
)


def test_replaces_when_whole(tmp_path):
    path = tmp_path / ("ü" * 120 + ".txt")  # 244 bytes: no room for a suffix
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_leaves_nothing_when_the_block_fails(tmp_path):
    def fail():
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "could not be written"),
    ],
)
def test_a_disk_that_refuses(tmp_path, monkeypatch, number, sentence):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(LGMError, match=sentence) as caught, replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert caught.value.kind == "output"
    assert str(tmp_path / "a") in caught.value.message
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(LGMError, match="is not a folder") as caught, replacing(tmp_path / "folder" / "a"):
        pass
    assert caught.value.kind == "output"


def test_a_folder_in_the_files_place(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(LGMError) as caught, replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert caught.value.kind == "output"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's folder that nobody can write to")
def test_a_folder_nobody_can_write_to():
    with pytest.raises(LGMError) as caught, replacing("/proc/lgm_blender.ply") as file:
        file.write(b"new")
    assert caught.value.kind == "output"


def test_files_that_belong_together_appear_together(tmp_path, monkeypatch):
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}

    calls = []

    def full_at_last(_):
        calls.append(_)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full_at_last)
    with pytest.raises(LGMError, match="disk is full"):
        write_together({tmp_path / name: b"3" for name in "abc"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("locked", ["a", "b", "c"])
def test_one_that_is_locked_leaves_all_as_they_were(tmp_path, monkeypatch, locked, links):
    """On Windows a file that another program has open can't be replaced."""
    for name in "ac":  # b is new
        (tmp_path / name).write_bytes(b"old " + name.encode())
    real = Path.replace

    def replace(self, target):
        if Path(target).name == locked and self.name.endswith(".part") and self.read_bytes() == b"new":
            raise PermissionError(errno.EACCES, "locked")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(LGMError, match="no permission") as caught:
        write_together({tmp_path / name: b"new" for name in "abc"})
    assert str(tmp_path / locked) in caught.value.message
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old a", "c": b"old c"}


def no_links(*_):
    raise OSError(errno.EPERM, "no links on this disk")


def test_a_folder_in_the_place_of_one_leaves_the_others_as_they_were(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"old")
    (tmp_path / "a.json").mkdir()
    with pytest.raises(LGMError):
        write_together({tmp_path / "a.ply": b"new", tmp_path / "a.json": b"new"})
    assert (tmp_path / "a.ply").read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"a.ply", "a.json"}


@pytest.mark.parametrize("links", [True, False])
def test_what_may_not_be_replaced_stays_and_so_do_the_others(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_together({tmp_path / name: b"new" for name in "abc"}, overwrite=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"b": b"old"}
    write_together({tmp_path / name: b"new" for name in "ac"}, overwrite=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new", "b": b"old", "c": b"new"}


SAVER = """
import sys
from pathlib import Path
from lgm_blender.core.files import write_together
who, folder = sys.argv[1].encode(), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
number = saved = 0
while saved < 20:
    try:
        write_together({folder / f"{number}.{kind}": who for kind in ("ply", "png", "json")}, overwrite=False)
        saved += 1
    except FileExistsError:
        pass
    number += 1
"""


def test_two_processes_never_share_a_name(tmp_path):
    """Both save twenty results under the first names that are free; each result is whole and of one process."""
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, who, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for who in "AB"
    ]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    for process in processes:
        process.stdin.close()
        process.stdout.close()
    results = [{(tmp_path / f"{i}.{kind}").read_bytes() for kind in ("ply", "png", "json")} for i in range(40)]
    assert sorted(results, key=min) == [{b"A"}] * 20 + [{b"B"}] * 20
    assert len(list(tmp_path.iterdir())) == 120


def test_what_a_process_has_left_is_known_by_its_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = {}
    for owner in ("one", "one.more", "*"):
        monkeypatch.setenv(OWNER_VARIABLE, owner)
        left[owner] = [temporary_file(tmp_path), make_temporary_folder()]
        left[owner][0].touch()
    (tmp_path / "one.ply").touch()
    remove_scraps("one", [tmp_path, tmp_path / "none"])
    assert [path for path in left["one"] if path.exists()] == []
    assert len(list(tmp_path.iterdir())) == 5


def test_what_nobody_will_finish_any_more_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, age in (("lgm_blender_previews_old", 2e5), ("lgm_blender_previews_new", 10), ("lgm_blender", 2e5)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    for name, age in ((".lgm-old.part", 2e5), (".lgm-new.part", 10), ("other.part", 2e5)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    sweep()
    sweep(tmp_path)
    sweep(tmp_path / "none")
    kept = [".lgm-new.part", "lgm_blender", "lgm_blender_previews_new", "other.part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def dies(folder, moment: int, overwrite: bool) -> None:
    """A process that writes a, b and c together, and dies when it has named so many files."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from lgm_blender.core.files import write_together\n"
        "folder, left = Path(sys.argv[1]), [int(sys.argv[2])]\n"
        "def dying(real):\n"
        "    def call(*arguments, **options):\n"
        "        if not left[0]:\n"
        "            os._exit(9)\n"
        "        left[0] -= 1\n"
        "        return real(*arguments, **options)\n"
        "    return call\n"
        "os.link, Path.unlink = dying(os.link), dying(Path.unlink)\n"
        "write_together({folder / name: b'new' for name in 'abc'}, overwrite=sys.argv[3] == 'True')\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(moment), str(overwrite)]
    environment = {**os.environ, OWNER_VARIABLE: "one", "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(command, env=environment).returncode == 9


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
@pytest.mark.parametrize(("moment", "kept"), [(0, ""), (1, ""), (2, ""), (3, "abc"), (4, "abc"), (5, "abc")])
def test_killed_while_files_get_their_names_leaves_all_or_none(tmp_path, moment, kept):
    (tmp_path / "other").write_bytes(b"old")
    dies(tmp_path, moment, overwrite=False)
    remove_scraps("one", [tmp_path])
    assert sorted(path.name for path in tmp_path.iterdir()) == [*kept, "other"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
@pytest.mark.parametrize("moment", range(4))
def test_killed_while_files_are_replaced_leaves_each_whole(tmp_path, moment):
    for name in "abc":
        (tmp_path / name).write_bytes(b"old")
    dies(tmp_path, moment, overwrite=True)
    remove_scraps("one", [tmp_path])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} <= {b"old", b"new"}
