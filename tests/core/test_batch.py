"""core/batch: lists, names, the journal, what is tried again, the summary. Run: pytest tests/core/test_batch.py"""

from __future__ import annotations

import html.parser
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lgm_blender.core.batch import journal as journal_file
from lgm_blender.core.batch import summary as summary_file
from lgm_blender.core.batch.items import find_items
from lgm_blender.core.batch.journal import Journal, read_journal
from lgm_blender.core.batch.progress import Progress, in_words
from lgm_blender.core.batch.rows import read_rows
from lgm_blender.core.batch.run import MAX_LOST, Run
from lgm_blender.core.batch.under_way import SCRAP_AGE
from lgm_blender.core.errors import LGMError


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("cup.png", "pot.jpg"):
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


# ---- What there is to make


def names(inputs, out, remembered=None) -> list[str]:
    return [item.name for item in find_items([str(path) for path in inputs], "", out, remembered).items]


def test_every_readable_format_is_taken_and_others_are_named(tmp_path, out):
    taken = ("a.avif", "b.GIF", "c.jfif", "d.tga", "e.jp2", "f.png", "g.exr", "h.ply")
    for name in (*taken, "photo.HEIC", "raw.cr2", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    found = find_items([str(tmp_path)], "", out)
    assert tuple(item.source.name for item in found.items) == taken
    assert found.remarks == [
        f"photo.HEIC and raw.cr2 can't be read here, and {tmp_path} is made without. Save them as PNG or JPEG."
    ]
    found = find_items([str(tmp_path)], "", out, blender=False)
    assert tuple(item.source.name for item in found.items) == taken[:-2]
    assert "g.exr" in found.remarks[0]


def test_names_stay_when_there_are_more_files(tmp_path, out):
    (tmp_path / "x.png").write_bytes(b"")
    journal = {item.key: item.name for item in find_items([str(tmp_path)], "", out).items}
    assert list(journal.values()) == ["x"]
    (tmp_path / "x.jpg").write_bytes(b"")
    assert names([tmp_path], out, journal) == ["x_jpg", "x"]
    assert names([tmp_path], out) == ["x_jpg", "x_png"]
    # Without a journal, the result itself tells.
    (out / "x.json").write_text(json.dumps({"settings": {"image": str(tmp_path / "x.png")}}))
    assert names([tmp_path], out) == ["x_jpg", "x"]


def test_a_new_file_does_not_get_the_name_of_one_that_is_gone(tmp_path, out, pictures):
    journal = {item.key: item.name for item in find_items([str(pictures)], "", out).items}
    (tmp_path / "cup.png").write_bytes(b"")
    assert names([tmp_path / "cup.png"], out, journal) == ["cup_png"]


def test_an_input_twice_is_made_once(pictures, out):
    found = find_items([str(pictures), str(pictures / "cup.png")], "", out)
    assert len(found.items) == 2
    assert "made once" in found.remarks[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_names_that_are_no_text(tmp_path, out):
    source = os.fsdecode(bytes(tmp_path) + b"/K\xe4fer.png")
    Path(source).write_bytes(b"")
    (item,) = find_items([str(tmp_path)], "", out).items
    assert (item.name, str(item.source)) == ("K_fer", source)
    with Run_(out, [item]) as run:
        run.done(run.take(), made(out, "K_fer"))
    record = read_journal(out)[0]
    assert record["input"] == source
    assert "K%E4fer.png" in (out / "summary.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("stem", "name"), [("con", "_con"), ("aux.x", "_aux.x"), ("猫の像", "猫の像")])
def test_reserved_names(tmp_path, out, stem, name):
    (tmp_path / f"{stem}.png").write_bytes(b"")
    assert names([tmp_path / f"{stem}.png"], out) == [name]


# ---- Lists


def write_list(folder: Path, text: str, encoding="utf-8") -> str:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_list(pictures, out, encoding, separator):
    rows = [["seed", "Image", "name", "prompt"], ["7", "cup.png", "Käfer", ""], [], ["", "", "", "a red pot"]]
    text = "\r\n".join(separator.join(row) for row in rows)
    found = find_items([write_list(pictures, text, encoding)], "", out).items
    assert [(item.source, item.name, dict(item.values)) for item in found] == [
        (pictures / "cup.png", "Käfer", {"seed": 7}),
        (None, "a_red_pot", {"prompt": "a red pot"}),
    ]


def test_rows_of_one_image_have_names_of_their_own(pictures, out):
    path = write_list(pictures, "image,seed,name\ncup.png,1,\ncup.png,2,\npot.jpg,,cup\n")
    first = find_items([path], "", out).items
    assert [item.name for item in first] == ["cup_png", "cup_png_2", "cup"]
    journal = {item.key: item.name for item in first}
    write_list(pictures, "image,seed,name\npot.jpg,,cup\ncup.png,2,\ncup.png,0,\n")
    assert [item.name for item in find_items([path], "", out, journal).items] == ["cup", "cup_png_2", "cup_png_3"]


def test_wildcards(pictures, out):
    write_list(pictures, "image,name\npot.jpg,vase\n")
    assert names([pictures / "c*.png", pictures / "*.csv", pictures / "no*.png"], out) == ["cup", "vase", "no_"]


def test_a_row_says_how_its_object_is_cut_out(pictures):
    (row,) = read_rows(Path(write_list(pictures, "image,matting\ncup.png,border\n")))
    assert row.values == {"matting": "border"}


def test_decimal_commas(pictures):
    (row,) = read_rows(Path(write_list(pictures, 'image;elevation;prompt\ncup.png;-12,5;"a; b"\n')))
    assert row.values == {"elevation": -12.5, "prompt": "a; b"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,sed\ncup.png,1\n", "row 1: there is no column 'sed'"),
        ("image,image\ncup.png,1\n", "two columns 'image'"),
        ("image,seed\ncup.png,1\n\ncup.png,-1\n", "row 4, column seed: '-1' is not a whole number"),
        ("image,seed\ncup.png,1.5\n", "row 2, column seed"),
        ("image,elevation\ncup.png,nan\n", "row 2, column elevation"),
        ("image,elevation\ncup.png,91\n", "row 2, column elevation"),
        ("image,matting\ncup.png,magic\n", "row 2, column matting: 'magic' is none of auto, alpha"),
        ("image\nmug.png\n", "row 2, column image: there is no file"),
        ("image\n.\n", "row 2, column image"),
        ("image,prompt\n,\n", "no rows"),
        ("image,seed\n,3\n", "row 2: it has neither an image nor a prompt"),
        ("image,seed\ncup.png,3,a cup, red\n", "row 2: it has more cells"),
        ('image\n"cup.png\n', "no list that can be read"),
        ("", "has no rows"),
        ("image\n" + "x" * 200_000 + "\n", "no list that can be read"),
    ],
)
def test_a_bad_list_is_refused_in_a_sentence(pictures, out, text, sentence):
    with pytest.raises(LGMError, match=sentence) as caught:
        find_items([write_list(pictures, text)], "", out)
    assert "list.csv" in caught.value.message
    assert caught.value.message.endswith(".")


def test_a_list_in_another_encoding(pictures):
    with pytest.raises(LGMError, match="UTF-8"):
        read_rows(Path(write_list(pictures, "image,name\ncup.png,Käfer\n", "cp1252")))


# ---- The run and its journal


class Run_(Run):
    """A run whose settings are a dict, without pictures; its lines and what it said are kept."""

    def __init__(self, out, items, settings=None, **more):
        self.lines: list[dict] = []
        progress = Progress(len(items))
        write = lambda line: self.lines.append(json.loads(line))  # noqa: E731
        chosen = settings or {"seed": 0}
        super().__init__(items, lambda item: chosen | dict(item.values), Journal(out), progress, write, copy, **more)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def made(out: Path, name: str, **more) -> dict:
    for ending in (".ply", ".json", "_views.png"):
        (out / f"{name}{ending}").write_bytes(b"x")
    files = {
        "ply": str(out / f"{name}.ply"),
        "json": str(out / f"{name}.json"),
        "views": str(out / f"{name}_views.png"),
    }
    facts = {"skipped": False, "gaussians": 3, "faces": 0, "seed": 0, "warnings": [], "timings": {"views": 1.0}}
    return {"name": name, **files, **facts, **more}


def items_of(pictures, out):
    return find_items([str(pictures)], "", out).items


def test_goes_on_where_it_stopped(pictures, out, capsys):
    items = items_of(pictures, out)
    with Run_(out, items) as run:
        run.done(run.take(), made(out, "cup"))
        run.take()  # and then the power went
    with Run_(out, items) as run:
        assert [line["skipped"] for line in run.lines] == [True]
        assert run.lines[0]["ply"] == str(out / "cup.ply")
        task = run.take()
        assert task.name == "pot"
        assert not task.saved  # its files are not there
        run.failed(task, LGMError("It is no image. Choose another."))
        assert not run.unfinished
    assert "is finished, skipped" in capsys.readouterr().err
    with Run_(out, items) as run:  # what failed is tried again by the next run
        assert run.take().name == "pot"
    with Run_(out, items, {"seed": 1}) as run:  # other settings
        assert run.take().name == "cup"
    with Run_(out, items, overwrite=True) as run:
        assert run.take().name == "cup"
    (pictures / "cup.png").write_bytes(b"another")
    with Run_(out, items) as run:
        assert run.take().name == "cup"


def test_missing_and_replaced_files_are_made_again(pictures, out):
    items = items_of(pictures, out)[:1]
    with Run_(out, items) as run:
        run.done(run.take(), made(out, "cup"))
    with Run_(out, items, {"seed": 1}, overwrite=True) as run:
        run.done(run.take(), made(out, "cup"))
    with Run_(out, items) as run:  # the files of that name are seed 1's now
        assert run.unfinished
    (out / "cup.ply").unlink()
    with Run_(out, items, {"seed": 1}) as run:
        assert run.unfinished


def test_the_moved_folder_goes_on(pictures, out):
    items = items_of(pictures, out)[:1]
    with Run_(out, items) as run:
        run.done(run.take(), made(out, "cup"))
    out = out.rename(out.with_name("moved"))
    with Run_(out, items) as run:
        assert run.lines[0]["ply"] == str(out / "cup.ply")


def test_killed_between_the_files_and_the_line(pictures, out):
    items = items_of(pictures, out)[:1]
    run = Run_(out, items)
    run.take()
    made(out, "cup")
    run.journal.close()  # nothing else of what `close` does
    with Run_(out, items, {"seed": 1}) as run:
        assert not run.take().saved  # those are not these settings'
    run = Run_(out, items)
    run.take()
    run.journal.close()
    with Run_(out, items) as run:
        assert not run.take().saved  # the files were there before
    (out / "cup.json").unlink()
    run = Run_(out, items)
    run.take()
    made(out, "cup")
    run.journal.close()
    with Run_(out, items) as run:
        task = run.take()
        assert task.saved
        run.done(task, made(out, "cup"))
    assert not (out / ".lgm-under-way.json").exists()


@pytest.mark.parametrize(
    ("kind", "attempts"), [("bad_input", 1), ("internal", 1), ("worker", 3), ("out_of_memory", 3), ("output", 3)]
)
def test_what_is_tried_again(pictures, out, monkeypatch, kind, attempts):
    monkeypatch.setattr("lgm_blender.core.batch.run.RETRIED", dict.fromkeys(("worker", "out_of_memory", "output"), 0))
    order = []
    with Run_(out, items_of(pictures, out), retries=2) as run:
        while run.unfinished:
            task = run.take()
            order.append(task.name)
            if task.name == "cup":
                run.failed(task, LGMError("No.", kind))
            else:
                run.done(task, made(out, "pot"))
    assert order == ["cup", "pot", *["cup"] * (attempts - 1)]  # the others first
    failed = next(line for line in run.lines if not line["ok"])
    assert (failed["attempts"], failed["kind"], failed["error"]) == (attempts, kind, "No.")


def test_waiting_is_no_part_of_an_items_time(pictures, out):
    with Run_(out, items_of(pictures, out)) as run:
        task = run.take()
        with task.spending("worker"):
            time.sleep(0.02)
        spent = dict(task.spent)
        time.sleep(0.02)
        run.done(task, made(out, "cup"))
    assert run.lines[0]["seconds"] == round(spent["worker"], 3) >= 0.02
    assert run.progress.seconds_left == spent["worker"]


def test_a_pause_before_the_next_attempt(pictures, out):
    with Run_(out, items_of(pictures, out)[:1]) as run:
        run.failed(run.take(), LGMError("Full.", "out_of_memory"))
        assert run.take() is None
        assert run.unfinished


def test_a_lost_machine_is_no_attempt(pictures, out):
    with Run_(out, items_of(pictures, out)[:1], retries=0) as run:
        for _ in range(MAX_LOST):
            run.failed(run.take(), LGMError("Gone.", "worker"), lost=True)
        task = run.take()
        assert task.attempts == 1
        run.failed(task, LGMError("Gone.", "worker"), lost=True)
        assert not run.unfinished  # what takes every machine along is given up


def test_a_torn_line_is_cut_off(pictures, out):
    with Run_(out, items_of(pictures, out)) as run:
        run.done(run.take(), made(out, "cup"))
    path = out / "results.jsonl"
    whole = path.read_bytes()
    for torn in (whole[:20], whole[:-1], whole + whole[:40], whole + b"\0" * 100):
        path.write_bytes(torn)
        journal = Journal(out)
        names = [record["name"] for record in journal.records]
        journal.close()
        assert names == (["cup"] if len(torn) > 20 else [])
        assert path.read_bytes() == (whole if names else b"")
        assert [record["name"] for record in read_journal(out)] == names


@pytest.mark.parametrize("text", ["my own notes\n", "[1, 2]\n", '{"key": 3, "ok": true}\n', "notes without an end"])
def test_somebody_elses_file_is_left_alone(out, text):
    (out / "results.jsonl").write_text(text)
    with pytest.raises(LGMError, match="Move it away"):
        Journal(out)
    assert (out / "results.jsonl").read_text() == text


def test_it_can_be_read_while_it_is_written(pictures, out):
    """Every line is whole, but for a last one without its end; there are never fewer than before."""
    counts, broken, ended = [], [], threading.Event()

    def read():
        while not ended.is_set():
            *lines, _ = (out / "results.jsonl").read_bytes().split(b"\n")
            broken.extend(line for line in lines if not isinstance(json.loads(line), dict))
            counts.append(len(read_journal(out)))

    with Run_(out, items_of(pictures, out)[:1]) as run:
        run.done(run.take(), made(out, "cup", warnings=["x" * 20_000]))
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(30):
            run.journal.add(run.journal.records[0])
        ended.set()
        reader.join()
    assert counts == sorted(counts)
    assert not broken
    assert len(read_journal(out)) == 31


HOLD = """
import sys, time
from pathlib import Path
from lgm_blender.core.batch.journal import Journal
journal = Journal(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_lock_dies_with_its_process(out):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as other:
        assert other.stdout.readline().strip() == b"locked"
        with pytest.raises(LGMError, match="Another batch") as caught:
            Journal(out)
        assert caught.value.kind == "output"
        other.kill()
        other.wait()
    Journal(out).close()


def test_scraps_of_killed_processes_go(pictures, out):
    old, new = out / ".lgm-1-aa.part", out / ".lgm-2-bb.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - SCRAP_AGE - 10))
    run = Run_(out, items_of(pictures, out))
    assert not old.exists()
    assert new.exists()
    run.take()
    run.journal.close()  # it was killed, and its own scraps are nobody's any more
    own = [out / f".lgm-{os.getpid()}{end}" for end in ("-cc.part", ".blend")]
    for path in own:
        path.write_bytes(b"half")
    Run_(out, items_of(pictures, out)).close()
    assert [path.exists() for path in (*own, new)] == [False, False, True]


def test_a_full_disk_leaves_the_journal_as_it_was(pictures, out, monkeypatch):
    with Run_(out, items_of(pictures, out)) as run:
        run.done(run.take(), made(out, "cup"))
        before = (out / "results.jsonl").read_bytes()

        def full(self, line):
            self._file.write(line[:10])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "_append", full)
            with pytest.raises(LGMError, match="The disk is full"):
                run.done(run.take(), made(out, "pot"))
        assert (out / "results.jsonl").read_bytes() == before


# ---- Progress


def test_expected_end(capsys):
    progress = Progress(10, workers=2)
    progress.end("a", "failed")
    assert progress.seconds_left is None
    for seconds in (10, 1000, 12):
        progress.end("b", "made", {"worker": seconds})
    assert progress.seconds_left == 12 / 2 * 6
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "[1/10] a: failed"
    assert said[-1].startswith("[4/10] b: made (about 36 s left, until ")
    progress = Progress(10, workers=4)  # four wait for one Blender
    progress.end("c", "made", {"worker": 8, "blender": 5})
    assert progress.seconds_left == 5 * 9


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59, "59 s"), (100, "2 min"), (3600, "1 h"), (12_000, "3 h 20 min"), (1e5, "1 d 3 h")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


# ---- The summary

HOSTILE = '<script>alert(1)</script>"onload="x\'&'


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_summary_escapes_whatever_it_is_told(tmp_path, out):
    (tmp_path / "in").mkdir()
    stem = HOSTILE.replace("/", "") if sys.platform != "win32" else "&amp;'"
    source = tmp_path / "in" / f"{stem}.png"
    source.write_bytes(b"x")
    items = items_of(tmp_path / "in", out)
    with Run_(out, items, {"prompt": HOSTILE, "seed": 0}) as run:
        run.done(run.take(), made(out, "x", warnings=[HOSTILE], timings={HOSTILE: 1.0}))
    with Run_(out, items, {"prompt": HOSTILE, "seed": 1}) as run:
        run.failed(run.take(), LGMError(HOSTILE))
    page = (out / "summary.html").read_text(encoding="utf-8")
    assert "<script" not in page
    tags = Tags(page).found
    written = {"html", "meta", "title", "style", "header", "h1", "p", "input", "label", "main", "article", "div"}
    assert {tag for tag, _ in tags} <= written | {"a", "img", "h2", "span"}
    links = [attributes["href"] for tag, attributes in tags if tag == "a" and "href" in attributes]
    assert links
    assert all(link.startswith("./") for link in links)
    assert not [key for _, attributes in tags for key in attributes if key.startswith("on")]


def test_summary_says_what_there_is(pictures, out):
    with Run_(out, items_of(pictures, out)) as run:
        run.done(run.take(), made(out, "cup", warnings=["Odd."]))
        run.failed(run.take(), LGMError("It is no image. Choose another."))
    page = (out / "summary.html").read_text(encoding="utf-8")
    assert "1 made, 1 failed" in page
    for part in ("It is no image. Choose another.", "Odd.", "3 Gaussians", 'href="./cup.ply"', "Failed only: 1"):
        assert part in page
    pictured = [attributes["src"] for tag, attributes in Tags(page).found if tag == "img"]
    assert pictured == ["./thumbnails/pot_input.webp", "./thumbnails/cup_input.webp", "./thumbnails/cup_result.webp"]
    assert all((out / path).is_file() for path in pictured)
    # Made good, it is no failure any more.
    with Run_(out, items_of(pictures, out)) as run:
        run.done(run.take(), made(out, "pot"))
    assert "2 made, 0 failed" in (out / "summary.html").read_text(encoding="utf-8")


def test_summary_of_somebody_else_is_kept(out):
    (out / "summary.html").write_text("<p>mine</p>")
    journal = Journal(out)
    with pytest.raises(LGMError, match="Move it away"):
        summary_file.Summary(journal)
    journal.close()
    assert (out / "summary.html").read_text() == "<p>mine</p>"


def test_summary_is_written_meanwhile_and_costs_little(pictures, out, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(summary_file.time, "monotonic", lambda: now[0])
    written = []
    monkeypatch.setattr(summary_file.Summary, "write", lambda self, write=summary_file.Summary.write: (
        written.append(now[0]), write(self)))  # fmt: skip
    render = summary_file.render_page

    def slowly(*arguments):
        now[0] += 0.5
        return render(*arguments)

    monkeypatch.setattr(summary_file, "render_page", slowly)
    journal = Journal(out)
    page = summary_file.Summary(journal)
    while now[0] < 1100:
        page.write_sometimes()
        now[0] += 1
    journal.close()
    assert 10 <= len(written) <= 21  # of 1000 s, 0.5 s each


def test_a_hostile_journal_makes_no_page_fail(pictures, out):
    with Run_(out, items_of(pictures, out)) as run:
        run.done(run.take(), made(out, "cup"))
    record = read_journal(out)[0]
    for field in (*record, "error", "kind", "splat_files"):
        for value in (None, 1, "x", [1], {"a": []}, [[]], True, -1e308):
            bad = record | {field: value}
            parsed = journal_file._parse(json.dumps(bad).encode())
            if parsed is not None:
                summary_file.render_page(out, [parsed])
