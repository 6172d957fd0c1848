"""The batch with many items: lists, several workers, retries, limits, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import bpy
import pytest
from PIL import Image
from processes import is_running

from lgm_blender.blender import batch, pool
from lgm_blender.blender.engine import Engine
from lgm_blender.blender.scene.thumbnails import write_thumbnail
from lgm_blender.core.batch.journal import read_journal
from lgm_blender.core.messages import Initialized

FAKE = Path(__file__).with_name("fake_worker.py")
QUICK = ("--no-blend", "--no-render")


@pytest.fixture
def engines(monkeypatch, tmp_path, golden):
    """The engines that a batch has made, and how the stand-ins for their workers were started."""
    monkeypatch.setenv("LGM_BLENDER_PYTHON", sys.executable)
    monkeypatch.setenv("LGM_BLENDER_LOG_DIR", str(tmp_path / "logs"))
    made = []

    class Noted(Engine):
        def __init__(self, command, **more):
            super().__init__([*FAKE_COMMAND, noted.behaviour, str(golden / "lgm.ply")], **more)
            self.asked, self.pids = command, []
            made.append(self)

        def start(self):
            super().start()
            if self._process and self._process.pid not in self.pids:
                self.pids.append(self._process.pid)

    class noted:
        behaviour = "well"
        engines = made

    monkeypatch.setattr(batch, "Engine", Noted)
    monkeypatch.setattr(batch, "worker_command", lambda python, *arguments: list(arguments))
    return noted


FAKE_COMMAND = [sys.executable, "-u", str(FAKE)]


@pytest.fixture
def pictures(tmp_path):
    """Six pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "a.jpg", "b.gif", "c.jfif", "d.tga", "猫の像.png"):
        kind = {"jfif": "JPEG", "tga": "TGA"}.get(name[-4:].strip("."))
        Image.new("RGB", (24, 16), (200, 100, 50)).save(folder / name, kind)
    return folder


def run(*arguments) -> tuple[int, list[dict]]:
    lines = []
    code = batch.run([str(argument) for argument in arguments], lines.append)
    return code, [json.loads(line) for line in lines]


def test_every_item_once_by_several_workers(engines, pictures, tmp_path):
    out = tmp_path / "out"
    code, records = run("--input", pictures, "--output", out, "--workers", 3, *QUICK)
    assert code == 0
    names = ["a_jpg", "a_png", "b", "c", "d", "猫の像"]
    assert sorted(record["name"] for record in records) == names
    assert sorted(path.stem for path in out.glob("*.ply")) == names
    assert [record["name"] for record in read_journal(out)] == [record["name"] for record in records]
    assert len(engines.engines) == 3
    assert all(engine.pids for engine in engines.engines)  # each had something to do
    assert all(engine.gone for engine in engines.engines)
    assert len({engine.log for engine in engines.engines}) == 3
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert {engine.variables["OMP_NUM_THREADS"] for engine in engines.engines} == {str(max(1, cores // 3))}
    small = Image.open(out / records[0]["thumbnails"]["result"])
    assert max(small.size) <= 480
    assert sum(file.stat().st_size for file in (out / "thumbnails").iterdir()) / len(names) < 10_000


def test_workers_go_on_while_blender_works(engines, pictures, tmp_path, monkeypatch):
    """And there are never more under way than there is room for."""
    under_way, most, beside = set(), [0], []
    engines.behaviour = "slow"
    give, finish = batch._give, batch.Maker.finish

    def counted(pool, task, *rest):
        under_way.add(task.name)
        most[0] = max(most[0], len(under_way))
        give(pool, task, *rest)

    def slowly(self, made):
        time.sleep(0.3)
        beside.append(any(engine.busy for engine in engines.engines))
        under_way.discard(self.item.name)
        return finish(self, made)

    monkeypatch.setattr(batch, "_give", counted)
    monkeypatch.setattr(batch.Maker, "finish", slowly)
    some = [pictures / name for name in ("a.png", "a.jpg", "b.gif", "c.jfif")]
    code, records = run("--input", *some, "--output", tmp_path / "out", "--workers", 1, *QUICK)
    assert code == 0
    assert most[0] == 1 + pool.SPARE
    assert all(record["seconds"] > 0.8 for record in records)
    assert beside.count(True) >= 2  # of four; nothing is left to do beside the last


def test_a_list(engines, pictures, tmp_path):
    text = "image;prompt;seed;elevation;name\na.png;a red box;7;-12,5;my box\na.png;;8;;\n;a blue cup;;;\n"
    (pictures / "list.csv").write_text(text, encoding="utf-8-sig")
    out = tmp_path / "out"
    arguments = ("--input", pictures / "list.csv", "--output", out, "--prompt", "a box", "--elevation", 5, *QUICK)
    code, records = run(*arguments)
    assert code == 0
    asked = [json.loads(Path(record["json"]).read_text(encoding="utf-8"))["settings"] for record in records]
    assert [(a["name"], a["prompt"], a["seed"], a["elevation"], bool(a["image"])) for a in asked] == [
        ("my box", "a red box", 7, -12.5, True),
        ("a", "a box", 8, 5.0, True),
        ("a_blue_cup", "a blue cup", 0, 5.0, False),
    ]
    assert [record["skipped"] for record in run(*arguments)[1]] == [True] * 3
    (pictures / "list.csv").write_text(text.replace("7", "seven"), encoding="utf-8")
    assert run(*arguments) == (1, [])


def test_a_worker_that_dies_is_replaced_and_its_item_tried_again(engines, pictures, tmp_path, capsys):
    engines.behaviour = "dies_once"
    out = tmp_path / "out"
    code, records = run("--input", pictures / "a.png", pictures / "b.gif", "--output", out, *QUICK)
    assert code == 0
    assert {record["name"]: record["attempts"] for record in records} == {"a": 2, "b": 1}
    assert len(engines.engines[0].pids) == 2
    assert "tried again later" in capsys.readouterr().err


def test_an_item_too_slow_is_given_up_and_harms_no_other(engines, pictures, tmp_path):
    engines.behaviour = "long"
    out = tmp_path / "out"
    limits = ("--timeout", 0.5, "--retries", 1, "--workers", 2, "--memory", 2.5)
    code, records = run("--input", pictures / "a.png", pictures / "b.gif", "--output", out, *limits, *QUICK)
    assert code == 1
    assert [(record["ok"], record["attempts"], record["kind"]) for record in records] == [(False, 2, "worker")] * 2
    assert {tuple(engine.asked) for engine in engines.engines} == {("serve", "--memory", "2.5")}
    assert not list(out.glob("*.ply"))


def test_only_blenders_part_is_tried_again(engines, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("lgm_blender.core.batch.run.RETRIED", {"output": 0.0})
    failing = Counter()

    def locked(path):
        failing[path] += 1
        if failing[path] == 1:
            raise batch.LGMError("The file is open elsewhere. Close it.", "output")
        save(path)

    save = batch.Maker.finish.__globals__["document"].save_document
    monkeypatch.setattr(batch.Maker.finish.__globals__["document"], "save_document", locked)
    out = tmp_path / "out"
    code, (record,) = run("--input", pictures / "a.png", "--output", out, "--no-render")
    assert (code, record["name"], record["attempts"]) == (0, "a", 2)
    assert [path.name for path in out.glob("*.ply")] == ["a.ply"]  # it was not made twice


def info(device, gpus):
    return Initialized(4, "", "", "", device, "", [], "", gpus)


def test_how_many_workers(monkeypatch):
    assert pool.choose_workers(None, "auto", info("cpu", 0)) == 1
    assert pool.choose_workers(None, "auto", info("cuda", 4)) == 4
    assert pool.choose_workers(None, "cpu", info("cuda", 4)) == 1
    assert pool.choose_workers(3, "auto", info("cuda", 1)) == 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pool.worker_share(0, 1, 1) == {}
    assert [pool.worker_share(n, 3, 2)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x,5")
    assert [pool.worker_share(n, 2, 2)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["GPU-x", "5"]
    assert "CUDA_VISIBLE_DEVICES" not in pool.worker_share(0, 2, 0)


def test_thumbnails_keep_colours(tmp_path):
    Image.new("RGB", (1000, 400), (200, 60, 30)).save(tmp_path / "x.png")
    write_thumbnail(tmp_path / "x.png", tmp_path / "x.webp")
    small = Image.open(tmp_path / "x.webp")
    assert small.size == (400, 160)
    assert all(abs(a - b) < 8 for a, b in zip(small.convert("RGB").getpixel((200, 80)), (200, 60, 30), strict=True))
    assert not [image for image in bpy.data.images if image.name.startswith("x")]


# ---- As a program


@pytest.fixture
def program(tmp_path, golden, monkeypatch):
    """Starts the batch as a program whose worker is the stand-in; gives the process."""
    if sys.platform == "win32":
        pytest.skip("the stand-in is a shell script")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -u "{FAKE}" "$BEHAVIOUR" "{golden / "lgm.ply"}"\n')
    python.chmod(0o755)

    def start(*arguments, behaviour="slow", **variables):
        variables |= {"LGM_BLENDER_PYTHON": str(python), "LGM_BLENDER_LOG_DIR": str(tmp_path / "logs")}
        variables |= {"BEHAVIOUR": behaviour}
        command = [sys.executable, batch.__file__, "--", *map(str, arguments), *QUICK]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, env={**os.environ, **variables})

    return start


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM] if sys.platform != "win32" else [])
def test_killed_in_the_middle_it_goes_on(program, pictures, tmp_path, number):
    out = tmp_path / "out"
    arguments = ("--input", pictures, "--output", out)
    with program(*arguments) as first:
        lines = [first.stdout.readline(), first.stdout.readline()]
        first.send_signal(number)
        said = first.stderr.read().decode()
        first.wait(20)
    assert first.returncode == (130 if number != signal.SIGKILL else -number)
    assert ("goes on from here" in said) == (number != signal.SIGKILL)
    done = [json.loads(line)["name"] for line in lines]
    assert [record["name"] for record in read_journal(out)][:2] == done
    for path in out.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    before = {name: (out / f"{name}.ply").stat().st_mtime_ns for name in done}
    with program(*arguments, behaviour="well") as second:
        records = [json.loads(line) for line in second.stdout]
        assert second.wait(60) == 0
    assert [record["name"] for record in records if record["skipped"]][:2] == done
    assert sorted(record["name"] for record in records) == ["a_jpg", "a_png", "b", "c", "d", "猫の像"]
    assert {name: (out / f"{name}.ply").stat().st_mtime_ns for name in done} == before
    assert len(list(out.glob("*.ply"))) == 6
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert not is_running(first.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_names_that_are_no_text_where_the_language_is_c(program, pictures, tmp_path):
    os.rename(os.fsencode(pictures / "d.tga"), os.fsencode(pictures) + b"/K\xe4fer.tga")  # noqa: PTH104
    with program(
        "--input", pictures, "--output", tmp_path / "aus 猫", behaviour="well", LC_ALL="C", PYTHONIOENCODING=""
    ) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    names = {json.loads(line)["name"] for line in said.splitlines()}
    assert names == {"a_jpg", "a_png", "b", "c", "K_fer", "猫の像"}
    assert {path.stem for path in (tmp_path / "aus 猫").glob("*.ply")} == names
    assert len(list((tmp_path / "aus 猫" / "thumbnails").glob("*_result.webp"))) == 6
