"""The shell's batch: over processes, over a cluster that loses a machine. Run: pytest tests/worker/test_scale.py"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageDraw
from tiny_preset import write_preset

from lgm_blender.core.batch.items import Item
from lgm_blender.core.batch.journal import Journal, read_journal
from lgm_blender.core.batch.run import Task
from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.ply import read_ply
from lgm_blender.core.messages import GenerateRequest
from lgm_blender.worker.__main__ import main
from lgm_blender.worker.pipeline import Pipeline
from lgm_blender.worker.scale import maker, parcels
from lgm_blender.worker.scale.batch import find_saved
from lgm_blender.worker.scale.maker import Maker

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny")


def picture(path: Path, shade: int = 0) -> Path:
    image = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=(200, 60 + shade, 30))
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "data_folder", lambda: tmp_path / "data")
    return tmp_path / "data"


# ---- Without Ray: what a process of a cluster does


def test_a_maker_makes_files_of_bytes(preset, tmp_path):
    image = picture(tmp_path / "in" / "Käfer.png")
    request = GenerateRequest(job="x", output="/home", image=str(image), name="Käfer", preset=str(preset), device="cpu")
    answer = Maker().make(request, image.read_bytes(), str(image))
    assert answer.error == ""
    assert set(answer.files) == {".ply", "_views.png", "_input.png"}
    bad = Maker().make(request, b"nothing", str(image))
    assert bad.kind == "bad_input"
    assert str(image) in bad.error  # and not where it lay there
    assert not Path("/home/Käfer.ply").exists()


def test_items_of_killed_makers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(maker.tempfile, "tempdir", str(tmp_path))
    old, new = (tmp_path / f"{maker.ITEM_PREFIX}{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, time.time() - 90_000))
    Maker()
    assert list(tmp_path.iterdir()) == [new]


def test_a_maker_gives_up_at_its_memory(preset, monkeypatch):
    go_on = threading.Event()

    def generate(self, request):
        go_on.wait(20)
        raise LGMError("Too late.")

    monkeypatch.setattr(Pipeline, "generate", generate)
    request = GenerateRequest(job="x", output="", prompt="a cup", preset=str(preset))
    answer = Maker(memory=0.01).make(request, None, "")
    monkeypatch.undo()
    go_on.set()
    assert answer.kind == "out_of_memory"
    assert "--memory" in answer.error


def test_weights_travel_in_pieces(preset, data_home, tmp_path, monkeypatch):
    parcel = parcels.parcel_of(str(preset))
    assert parcels.parcel_of("mini") is None  # comes with the code
    receiver = Maker()
    missing = receiver.has_files(parcel.name, parcel.sizes)
    assert sorted(missing) == sorted(parcel.files)
    for name in missing:
        for number, last, data in parcels.pieces(parcel.files[name], 100_000):
            receiver.receive(parcel.name, name, number, last, data)
    assert receiver.has_files(parcel.name, parcel.sizes) == []
    monkeypatch.setenv("LGM_BLENDER_WEIGHTS", "")
    receiver.use(parcel.name, str(preset), parcel.folder)
    # The preset's own folder is not there on that machine: the request goes to the parcel.
    here = receiver._here(GenerateRequest(job="", output="", prompt="a cup", preset=str(preset)), str(tmp_path), None)
    assert Path(here.preset).is_relative_to(data_home)
    assert Maker().make(here, None, "").result.settings["preset"] == here.preset
    with pytest.raises(LGMError, match="outside"):
        receiver.receive(parcel.name, "../../x", 0, True, b"")


# ---- With Ray


def command(*arguments) -> int:
    return main(["batch", *map(str, arguments), "--device", "cpu"])


def records(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("arguments", [["--output", "x"], ["--input", "x.splat", "--output", "out"]])
def test_what_makes_no_sense_is_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 1
    assert "Error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_ray
def test_shares():
    from lgm_blender.worker.scale.cluster import Share, choose_share

    def node(cpus, gpus=0):
        return {"Resources": {"CPU": cpus, "GPU": gpus}}

    assert choose_share(None, "auto", [node(8)]) == Share(1, 8, 0)
    assert choose_share(4, "auto", [node(8)]) == Share(4, 2, 0)
    assert choose_share(None, "auto", [node(8, 2), node(8, 4)]) == Share(6, 1, 1)
    assert choose_share(None, "cpu", [node(8, 2), node(0)]) == Share(1, 8, 0)
    assert choose_share(2, "cpu", [node(2), node(4)]) == Share(2, 2, 0)  # not 3 each, which would not fit
    assert choose_share(9, "cpu", [node(2)]) == Share(9, 1, 0)


class Told:
    """What a cluster tells its run."""

    def __init__(self):
        self.failures: list[tuple[str, bool]] = []

    def failed(self, task, error, lost=False):
        self.failures.append((error.message, lost))


@needs_ray
@pytest.mark.parametrize("machine_lives", [True, False])
def test_a_dead_maker_is_judged_once_its_machine_is_known_to_live(machine_lives, tmp_path, monkeypatch):
    """Ray hears of a maker's death before it hears of its machine's."""
    from ray.exceptions import RayActorError

    from lgm_blender.worker.scale import cluster as module

    told, manned, lives = Told(), [], [True]
    monkeypatch.setattr(module, "_lives", lambda node: lives[0])
    monkeypatch.setattr(module.Cluster, "_man", lambda self, station: manned.append(station))
    share = module.Share(1, 1, 0)
    makers = module.Cluster(told, None, None, None, preset="", device="cpu", parcel=None, share=share)
    station = makers._stations[0]
    station.task, station.since = Task(Item(tmp_path / "cup.png", "cup"), {}, "f"), time.monotonic()
    makers._lose(station, RayActorError(error_msg="The connection broke"))
    assert told.failures == [] == manned
    if machine_lives:
        station.doubt_until = 0.0
    else:
        lives[0] = False
    makers._judge(station)
    [(sentence, lost)] = told.failures
    assert "stopped unexpectedly" in sentence
    assert lost is not machine_lives
    assert (manned, station.task, station.death) == ([station], None, "")


@needs_ray
def test_a_machine_is_lost_in_the_middle(preset, tmp_path, monkeypatch, capsys):
    """Two machines, one of them killed with an item under way: every item is there, once. Then all is finished."""
    import ray
    from ray.cluster_utils import Cluster

    from lgm_blender.worker.scale import cluster as module

    for number in range(5):
        picture(tmp_path / "in" / f"thing {number}.png", 10 * number)
    out = tmp_path / "out"
    arguments = ["--input", tmp_path / "in", "--output", out, "--preset", preset, "--steps", 100]
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_timeout_ms": 4000}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick | {"health_check_failure_threshold": 2}}
    machines = Cluster(initialize_head=True, head_node_args=head)
    nodes = [machines.add_node(num_cpus=1) for _ in range(2)]
    killed = []

    def give(self, station, task, give=module.Cluster._give):
        give(self, station, task)
        if self.run.good and not killed:  # both work by now; this one's item has only just begun
            killed.extend(node for node in nodes if node.node_id == station.node)
            manager = psutil.Process(killed[0].all_processes["raylet"][0].process.pid)
            for process in (manager, *manager.children(recursive=True)):  # as if the power went
                process.kill()
            machines.remove_node(killed[0], allow_graceful=False)

    monkeypatch.setattr(module.Cluster, "_give", give)
    try:
        code = command(*arguments, "--ray-address", machines.address, "--processes", 2)
        said = capsys.readouterr()
        assert code == 0, said.err
        assert killed
        assert "its machine was lost" in said.err
        names = [f"thing {number}" for number in range(5)]
        assert sorted(record["name"] for record in read_journal(out)) == names
        assert sorted(path.stem for path in out.glob("*.ply")) == names
        assert all(len(read_ply(path)) for path in out.glob("*.ply"))
        assert not list(out.glob(".lgm-*"))
    finally:
        ray.shutdown()
        machines.shutdown()


@needs_ray
def test_processes_of_this_machine(preset, tmp_path, capsys):
    """A bad image, a list; paths in the results are this machine's; the same command goes on."""
    picture(tmp_path / "in" / "cup.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")
    (tmp_path / "list.csv").write_text("image,seed,name\nin/cup.png,5,my cup\nin/bad.png,,\n")
    out = tmp_path / "out"
    arguments = ["--input", tmp_path / "list.csv", "--output", out, "--preset", preset]
    assert command(*arguments) == 1
    bad, good = sorted(records(capsys), key=lambda record: record["ok"])
    assert (bad["kind"], bad["attempts"]) == ("bad_input", 1)
    assert str(tmp_path / "in" / "bad.png") in bad["error"]
    assert (good["name"], good["seed"]) == ("my cup", 5)
    told = json.loads((out / "my cup.json").read_text(encoding="utf-8"))
    assert told["ply"] == good["ply"] == str(out / "my cup.ply")
    assert told["settings"]["image"] == str(tmp_path / "in" / "cup.png")
    assert told["settings"]["preset"] == str(preset)
    assert (out / "thumbnails" / "my cup_result.webp").is_file()
    assert "my cup" in (out / "summary.html").read_text(encoding="utf-8")
    # A batch that was killed between the files and the journal's line finds them.
    task = Task(Item(tmp_path / "in" / "cup.png", "my cup"), {}, "f", saved=True)
    assert find_saved(out, task) == {name: good[name] for name in find_saved(out, task)}
    (out / "my cup_views.png").unlink()
    assert find_saved(out, task) is None
    # The same command starts nothing if all is there.
    (tmp_path / "list.csv").write_text("image,seed,name\nin/cup.png,5,my cup\n")
    (out / "my cup_views.png").write_bytes(b"")
    assert command(*arguments) == 0
    assert [record["skipped"] for record in records(capsys)] == [True]


def test_two_batches_in_one_folder(tmp_path, preset, capsys):
    picture(tmp_path / "in" / "cup.png")
    (tmp_path / "out").mkdir()
    journal = Journal(tmp_path / "out")
    assert command("--input", tmp_path / "in", "--output", tmp_path / "out", "--preset", preset) == 1
    journal.close()
    assert "Another batch is at work" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.jsonl"]
