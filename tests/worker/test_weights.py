"""worker/weights.py: where a model's files are, and whether they are whole."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import torch
from own_home import own_home  # noqa: F401
from safetensors.torch import save_file

from lgm_blender.worker import weights
from lgm_blender.worker.weights import CheckedFiles, File, Weights


def checked(tmp_path: Path) -> CheckedFiles:
    return CheckedFiles(tmp_path / "checked.json")


def test_large_files_are_read_through_once(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(bytes(2_000_000))
    reads = []
    whole = weights.file_sha256
    monkeypatch.setattr(weights, "file_sha256", lambda *args: reads.append(args) or whole(*args))
    expected = hashlib.sha256(bytes(2_000_000)).hexdigest()
    for _ in range(3):
        assert checked(tmp_path).sha256(path) == expected  # each time as a new process would
    assert len(reads) == 1
    path.write_bytes(bytes(1_999_999) + b"1")
    os.utime(path, ns=(1, 1))
    assert checked(tmp_path).sha256(path) != expected
    (tmp_path / "checked.json").write_text('{"a": 3')
    assert len(checked(tmp_path).sha256(path)) == 64


def test_safetensors_of_unknown_size_tell_it_themselves(tmp_path):
    path = tmp_path / "model.safetensors"
    model = Weights({path.name: File()}, tmp_path)
    save_file({"a": torch.arange(100.0), "b": torch.ones(3, 5)}, path, {"format": "pt"})
    assert model.locate() == (tmp_path, [])
    data = path.read_bytes()
    for spoilt in (data[:-1], data[: len(data) // 2], data[:20], data + b"0", b"\xff" * 100, b"\2" + bytes(7) + b"[]"):
        path.write_bytes(spoilt)
        (fault,) = model.locate()[1]
        assert "is cut short or damaged" in fault
    path.write_bytes(b"")
    assert model.locate()[1] == [f"{path} is empty"]


def test_published_weights_in_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(tmp_path / "own"))
    model = Weights({"model.bin": File(3)}, repository="ashawkey/LGM")
    for folder in ("own/ashawkey/LGM", "own/LGM", "own"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "model.bin").write_bytes(b"abc")
        assert model.locate() == (tmp_path / folder, [])
        (tmp_path / folder / "model.bin").unlink()


def test_which_commit_is_used():
    """The pinned one, else the one that was fetched for us, else the branch's, else any."""
    cache = weights.cache_folder("a/b")
    (cache / "refs").mkdir(parents=True)
    for commit in ("any", "branch", "ours", "pinned"):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "model.bin").write_bytes(b"abc")
    model = Weights({"model.bin": File(3)}, repository="a/b")
    assert model.locate()[0].name == "any"
    (cache / "refs" / "main").write_text("branch\n")
    assert model.locate()[0].name == "branch"
    (cache / "refs" / "lgm_blender").write_text("ours")
    assert model.locate()[0].name == "ours"
    assert model.revisions() == ["ours", "main"]
    pinned = replace(model, revision="pinned")
    assert pinned.locate()[0].name == "pinned"
    assert pinned.revisions() == ["pinned", "ours", "main"]
