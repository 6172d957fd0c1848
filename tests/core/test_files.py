"""core/files.py: a file is whole or not there."""

from __future__ import annotations

import errno
import os

import pytest

from lgm_blender.core.errors import LGMError
from lgm_blender.core.files import replacing, write_together


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
