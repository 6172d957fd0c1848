"""Faults, injected: how often each was tried, how often all came out right, and the longest that it took.

    python benchmarks/faults.py                      # all, 20 times each where chance decides
    python benchmarks/faults.py --times 3 --only killed weights

Runs in the worker's Python on Linux as root, which mounts small disks. The worker is the real one with the bundled
preset or a tiny one; where the worker misbehaves, a stand-in. Right is: one sentence, an end, nothing left over in the
output folder and the temporary one, and the next job works. Prints a table and, last, the same as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from setup import ROOT, Setup, table

sys.path.extend(str(ROOT / "tests" / name) for name in ("", "core", "worker"))
import test_download
import torch
from processes import is_running
from safetensors.torch import load_file, save_file
from shapes import sphere
from tiny_preset import write_preset

from lgm_blender.blender import process as process_module
from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.ply import write_ply
from lgm_blender.core.formats.splat_files import WRITTEN
from lgm_blender.core.messages import MESH_STAGES, STAGES, ConvertRequest
from lgm_blender.worker import download, meshing
from lgm_blender.worker.pipeline import Pipeline
from lgm_blender.worker.presets import file_table
from lgm_blender.worker.server import serve

torch.set_num_threads(1)  # a fork of a process whose torch has threads would wait for them for ever
FAKE = ROOT / "tests" / "blender" / "fake_worker.py"
FAULTS: dict[str, Callable] = {}
Outcome = tuple[str, float]  # what was wrong, or '', and seconds


def fault(function: Callable) -> Callable:
    """Adds one to the list; its name is that of the function."""
    FAULTS[function.__name__] = function
    return function


class Bench:
    """What the faults share.

    Attributes:
        times: How often each is tried where chance decides.
        tiny: A preset of half a megabyte: a job takes a second.
        splats: A file of splats.
    """

    def __init__(self, folder: Path, times: int, seed: int):
        self.folder, self.times = folder, times
        self.chance = random.Random(seed)
        self.tiny = write_preset(folder / "tiny")
        self.splats = folder / "ball.ply"
        write_ply(self.splats, sphere(2000))
        self.number = 0

    def setup(self, *, forked: bool = False, **options) -> Setup:
        """A new one in an empty folder; `forked`: its worker has its imports behind it when it starts."""
        self.number += 1
        process_module.start_tied = start_forked if forked else START_TIED
        return Setup(self.folder / f"setup{self.number}", **options)

    def small(self, setup: Setup, **fields):
        """A request that takes a second."""
        return setup.generate(preset=str(self.tiny), **fields)

    def judge(self, setup: Setup, job, kinds: tuple[str, ...], before: set[str] = frozenset()) -> str:
        """What is wrong with the end of a job that had to fail, or ''."""
        if job.state != "failed":
            return f"{job.state}: {job.error}"
        if job.kind not in kinds or not job.error or len(job.error) > 2000 or "Traceback" in job.error:
            return f"{job.kind}: {job.error}"
        return self.rest(setup, before)

    def rest(self, setup: Setup, before: set[str] = frozenset()) -> str:
        """What is wrong with what is left, and with the next job, or ''."""
        setup.until(lambda: not [path for path in setup.scraps() if "previews" not in path], 2.0)
        left = [path for path in setup.scraps() if "previews" not in path]
        if left or setup.files() - before:
            return f"left over: {left or setup.files() - before}"
        engine = setup.engine
        if str(FAKE) in engine.command:
            engine.command[-1], engine.start_timeout = "well", 60
        job = engine.submit(self.small(setup, name="next"))
        if not setup.until(lambda: job.ended, 120) or job.state != "done":
            return f"the next job: {job.state}: {job.error}"
        for path in setup.output.glob("next*"):
            path.unlink()
        if len([path for path in setup.scraps() if "previews" in path]) > 1:
            return "previews of a worker that is gone"
        return ""


# ---- A worker whose imports are done when it starts: a fork of this process

START_TIED = process_module.start_tied


class Forked:
    """As much of a Popen as a Process needs, of a fork that serves."""

    def __init__(self, environment: dict[str, str]):
        pairs = [os.pipe() for _ in range(3)]
        self._lock = threading.Lock()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for wanted, got in zip((0, 1, 2), (pairs[0][0], pairs[1][1], pairs[2][1]), strict=True):
                os.dup2(got, wanted)
            os.closerange(3, 256)
            os.environ.clear()
            os.environ.update(environment)
            tempfile.tempdir = None
            meshing.EFFORT["cpu"] = (8, 128, 64)
            try:
                serve()
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        for end in (pairs[0][0], pairs[1][1], pairs[2][1]):
            os.close(end)
        self.stdin = open(pairs[0][1], "wb", buffering=0)  # noqa: SIM115, PTH123
        self.stdout, self.stderr = (open(pair[0], "rb") for pair in pairs[1:])  # noqa: SIM115, PTH123

    def poll(self) -> int | None:
        with self._lock:
            if self._code is None:
                number, status = os.waitpid(self.pid, os.WNOHANG)
                self._code = os.waitstatus_to_exitcode(status) if number else None
            return self._code

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("serve", timeout)
            time.sleep(0.01)
        return self._code


def start_forked(command: list[str], options: dict) -> tuple[Forked, Callable[[], None]]:
    forked = Forked(options["env"])
    return forked, lambda: forked.poll() is None and os.kill(forked.pid, signal.SIGKILL)


# ---- The worker is killed


def killed_in(stage: str) -> Callable:
    def run(bench: Bench) -> Iterator[Outcome]:
        setup = bench.setup(forked=True)
        if stage in MESH_STAGES:
            request = setup.mesh(bench.splats, faces=1000, texture_size=512, name="killed")
        else:
            request = bench.small(setup, steps=3, splat_formats=["ply", "spz", "sog", "compressed"], name="killed")
        result = setup.engine.wait(setup.engine.submit(request))
        lasts = result.timings
        for path in setup.output.iterdir():
            path.unlink()
        done = 0
        while done < bench.times:
            if stage == "load":
                setup.engine.close()
            job = setup.reach(request, stage, bench.chance.uniform(0, 0.95) * lasts[stage])
            if job.ended or job.progress.stage != stage:
                setup.until(lambda job=job: job.ended)
                for path in setup.output.glob("killed*"):
                    path.unlink()
                continue
            began = time.monotonic()
            os.kill(setup.engine._process.pid, signal.SIGKILL)
            setup.until(lambda job=job: job.ended)
            seconds = time.monotonic() - began
            done += 1
            if job.state == "done":  # it had answered already
                yield "", seconds
                continue
            yield bench.judge(setup, job, ("out_of_memory",)), seconds
            for path in setup.output.glob("killed*"):
                path.unlink()
        setup.engine.close()

    run.__name__ = f"killed_in_{stage}"
    return run


for _stage in (*STAGES[:-1], *MESH_STAGES, STAGES[-1]):
    fault(killed_in(_stage))


# ---- The worker misbehaves


def misbehaving(name: str, behaviour: str, kinds: tuple[str, ...] = ("worker",), **options) -> None:
    def run(bench: Bench) -> Iterator[Outcome]:
        for _ in range(bench.times):
            command = [sys.executable, "-u", str(FAKE), behaviour]
            setup = bench.setup(command=command, **options)
            began = time.monotonic()
            job = setup.engine.submit(setup.generate(previews=False))
            if not kinds:  # it has to be cancelled
                setup.until(lambda job=job: job.progress or job.ended, 1.0)
                setup.engine.cancel(job)
            setup.until(lambda job=job: job.ended, 60)
            seconds = time.monotonic() - began
            made = setup.files()  # by a worker that took the job for another, say, and finished it
            yield (bench.judge(setup, job, kinds, made) if kinds else bench.rest(setup, made)), seconds
            setup.engine.close(patience=0.1)

    FAULTS[f"worker_{name}"] = run


misbehaving("never_starts", "silent", start_timeout=1.0)
misbehaving("ends_at_once", "dies_at_start")
misbehaving("prints_garbage", "prints_garbage", start_timeout=1.0)
misbehaving("hangs", "deaf", kinds=(), cancel_timeout=1.0)
misbehaving("floods", "floods", kinds=(), cancel_timeout=1.0)
misbehaving("closes_its_stdout", "mute_at_once")
misbehaving("closes_its_stdout_later", "mute")
misbehaving("answers_another_number", "other_number")
misbehaving("answers_about_another_job", "other_job")
misbehaving("could_not_read", "no_number")
misbehaving("answers_nonsense", "bad_result")
misbehaving("dies_in_a_job", "dies_in_job")
misbehaving("dies_and_leaves_a_child", "haunted")


# ---- Disks and folders


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A disk of its own at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(("size=64m", *options)), "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    path = folder / "filler"
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))
    return path


@fault
def disk_full_for_each_file(bench: Bench) -> Iterator[Outcome]:
    """In the middle of each kind of file: of splats in every format, pictures, JSON, and a mesh."""
    setup = bench.setup(forked=True)
    with mounted(setup.output):
        formats = list(WRITTEN)
        fields = {"steps": 1, "output_kind": "splats", "splat_formats": formats}
        fields["preset"] = str(bench.tiny)
        setup.engine.wait(setup.engine.submit(setup.generate(**fields, name="sizes")))
        made = sorted(setup.output.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        sizes = {path.name.removeprefix("sizes"): -(-path.stat().st_size // 4096) * 4096 for path in made}
        for path in made:
            path.unlink()
        room = 0
        for size in sizes.values():
            filler = fill(setup.output, room + size // 2)
            room += size
            began = time.monotonic()
            job = setup.engine.submit(setup.generate(**fields, name="full"))
            setup.until(lambda job=job: job.ended)
            seconds = time.monotonic() - began
            left = setup.files() - {"filler"}
            filler.unlink()
            yield (f"left: {left}" if left else "") or bench.judge(setup, job, ("output",)), seconds
        for name in WRITTEN:
            request = ConvertRequest("", str(bench.splats), str(setup.output), name="full", formats=[name])
            filler = fill(setup.output, 4096)
            job = setup.engine.submit(request)
            setup.until(lambda job=job: job.ended)
            left = setup.files() - {"filler"}
            filler.unlink()
            yield (f"left: {left}" if left else "") or bench.judge(setup, job, ("output",)), 0.0
        filler = fill(setup.output, 4096)
        job = setup.engine.submit(setup.mesh(bench.splats, faces=1000, texture_size=512, name="full"))
        setup.until(lambda: job.ended)
        filler.unlink()
        yield bench.judge(setup, job, ("output",)), 0.0
        setup.engine.close()


@fault
def disk_full_for_previews_logs_and_memory(bench: Bench) -> Iterator[Outcome]:
    """What is no part of a result: the job works without."""
    for full in ("temporary", "logs", "data"):
        setup = bench.setup()
        folder = bench.folder / f"setup{bench.number}" / full
        with mounted(folder):
            fill(folder, 0)
            began = time.monotonic()
            job = setup.engine.submit(bench.small(setup, steps=3))
            setup.until(lambda job=job: job.ended)
            yield ("" if job.state == "done" else job.error), time.monotonic() - began
            setup.engine.close()


@fault
def folders_that_cannot_be_written_to(bench: Bench) -> Iterator[Outcome]:
    """Output: a sentence. Temporary files, logs, memory of weights: the job works without."""
    for locked in ("output", "temporary", "logs", "data"):
        setup = bench.setup()
        with mounted(bench.folder / f"setup{bench.number}" / locked, "ro"):
            began = time.monotonic()
            job = setup.engine.submit(bench.small(setup))
            setup.until(lambda job=job: job.ended)
            seconds = time.monotonic() - began
            if locked != "output":
                yield ("" if job.state == "done" else job.error), seconds
            elif job.state != "failed" or job.kind != "output":
                yield f"{job.state}: {job.error}", seconds
        if locked == "output":
            yield bench.rest(setup), seconds
        setup.engine.close()
    setup = bench.setup(forked=True)
    for wrong in ("/proc/none", str(setup.image), "/dev/null/a", ""):
        began = time.monotonic()
        job = setup.engine.submit(bench.small(setup, output=wrong))
        setup.until(lambda job=job: job.ended)
        yield bench.judge(setup, job, ("output",)), time.monotonic() - began
    setup.engine.close()


# ---- Weights


def spoil(folder: Path, way: str, chance: random.Random) -> None:
    """Damages a preset."""
    path = chance.choice(sorted(folder.rglob("*.safetensors")))
    data = path.read_bytes()
    match way:
        case "cut":
            path.write_bytes(data[: chance.randrange(len(data))])
        case "flipped":
            at = chance.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
            return
        case "header":
            path.write_bytes((1 << chance.randrange(30, 63)).to_bytes(8, "little") + data[8:])
        case "swapped":
            other = chance.choice([other for other in sorted(folder.rglob("*.safetensors")) if other != path])
            path.write_bytes(other.read_bytes())
        case _:
            state = load_file(path)
            name = chance.choice(sorted(state))
            if way == "lacking":
                del state[name]
            elif way == "shape":
                state[name] = state[name].flatten()[:-1].clone()
            elif way == "wrong type":
                state = {key: tensor.to(torch.uint8) for key, tensor in state.items()}
            else:
                state = {key: torch.full_like(tensor, torch.nan) for key, tensor in state.items()}
            save_file(state, path)
    # The table of hashes says that this is how it should be: what is in the file must be looked at.
    preset = json.loads((folder / "preset.json").read_text())
    (folder / "preset.json").write_text(json.dumps(preset | {"files": file_table(folder)}))


def spoiled(way: str) -> Callable:
    def run(bench: Bench) -> Iterator[Outcome]:
        setup = bench.setup(forked=True)
        for number in range(bench.times):
            folder = bench.folder / f"{way}{number}"
            shutil.copytree(bench.tiny, folder)
            spoil(folder, way, bench.chance)
            began = time.monotonic()
            job = setup.engine.submit(setup.generate(preset=str(folder), name="spoiled"))
            setup.until(lambda job=job: job.ended)
            kinds = ("weights", "internal", "bad_input") if way == "poisoned" else ("weights",)
            yield bench.judge(setup, job, kinds), time.monotonic() - began
            shutil.rmtree(folder)
        setup.engine.close()

    return run


for _way in ("cut", "flipped", "header", "swapped", "lacking", "shape", "wrong type", "poisoned"):
    FAULTS[f"weights_{_way.replace(' ', '_')}"] = spoiled(_way)


# ---- The network


def network(name: str, prepare: Callable, works: bool = False) -> None:
    def run(bench: Bench) -> Iterator[Outcome]:
        download.RETRIES, download.TIMEOUT = 1, 0.5  # in place of 4 and 30 s
        for _ in range(bench.times):
            bench.number += 1
            cache = bench.folder / f"hub{bench.number}"
            hub = test_download.Hub()
            threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
            with ExitStack() as stack:
                stack.callback(hub.server_close)
                stack.callback(hub.shutdown)
                for place in (download.constants, test_download.constants):
                    place.HF_HUB_CACHE = str(cache)
                prepare(hub, bench.chance)
                began = time.monotonic()
                problem = ""
                try:
                    download.download(test_download.PRESET, endpoint=hub.url)
                    problem = "" if works else "it was taken"
                except LGMError as error:
                    problem = error.message if works or error.kind not in ("weights", "output") else ""
                seconds = time.monotonic() - began
                honest = test_download.Hub()  # the next try, when all is well again
                hub.__dict__ |= {name: honest.__dict__[name] for name in ("files", "claims", "break_after", "rate")}
                hub.damage, hub.status, hub.talk, hub.page, hub.detour, hub.silence = False, 200, b"", b"", "", 0.0
                honest.server_close()
                if not problem:
                    download.download(test_download.PRESET, endpoint=hub.url)
                    whole = next(cache.rglob("m.safetensors")).read_bytes() == test_download.MODEL
                    left = [path.name for path in cache.rglob("*") if path.suffix in (".incomplete", ".lock", ".part")]
                    problem = f"whole: {whole}, left: {left}" if left or not whole else ""
                yield problem, seconds
                shutil.rmtree(cache)

    FAULTS[f"network_{name}"] = run


def _cut(hub, chance) -> None:
    hub.break_after = chance.randrange(len(test_download.MODEL))


def _damage(hub, chance) -> None:
    hub.damage = True


def _claim(hub, chance) -> None:
    size = max(1, len(test_download.MODEL) + chance.choice((-1000, 1000, 10**6)))
    hub.claims["m.safetensors"] = size, "0" * 64


def _refuse(hub, chance) -> None:
    hub.status = chance.choice((401, 403, 404, 418, 500, 503))


def _talk(hub, chance) -> None:
    hub.talk = chance.choice((b"<html>Log in", b"[]", b"{", b'{"sha": 3}'))


def _page(hub, chance) -> None:
    hub.page = b"<html>Log in to the hotel's network</html>"


def _endless(hub, chance) -> None:
    hub.page = b"x" * 4 * len(test_download.MODEL)


def _loop(hub, chance) -> None:
    hub.detour = "/store/some/lgm/again"


def _silent(hub, chance) -> None:
    hub.silence = 1.5  # longer than TIMEOUT


network("cut", _cut, works=True)
network("damaged", _damage)
network("wrong_size_or_hash", _claim)
network("refused", _refuse)
network("another_server", _talk)
network("page_for_a_file", _page)
network("more_than_the_file", _endless)
network("redirects_for_ever", _loop)
network("stalled", _silent)


# ---- The GPU's memory


@fault
def gpu_memory_taken(bench: Bench) -> Iterator[Outcome]:
    """In every stage; there need be no GPU, what it would raise is raised."""
    pipeline = Pipeline()
    setup = bench.setup()
    errors = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    )
    for stage in ("load", "views", "gaussians", "floaters", "save"):
        for error in errors:

            def tell(progress, stage=stage, error=error) -> None:
                if progress.stage == stage:
                    raise error

            request = replace(bench.small(setup), job="full")
            began = time.monotonic()
            try:
                pipeline.generate(request, tell)
                problem = "it went through"
            except LGMError as caught:
                problem = "" if caught.kind == "out_of_memory" else caught.message
            seconds = time.monotonic() - began
            problem = problem or ("models are held" if pipeline.loaded else "")
            if not problem and not Path(pipeline.generate(request).ply).exists():
                problem = "the next job failed"
            shutil.rmtree(setup.output)
            yield problem, seconds


# ---- Blender is killed, paused, or not alone

DRIVER = """
import sys
sys.path.insert(0, {bench!r})
from setup import *
setup = Setup(Path(sys.argv[1]){options})
"""


def driver(folder: Path, code: str, python: str = sys.executable, options: str = "") -> subprocess.Popen:
    """A process with an engine of its own, as Blender is one; it says a line, then goes on."""
    code = DRIVER.format(bench=str(Path(__file__).parent), options=options) + code
    return subprocess.Popen([python, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def descendants(pid: int) -> set[int]:
    """The processes that one has started, and these."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(stat.parent.name)} | descendants(int(stat.parent.name))
    return found


def after_killing(process: subprocess.Popen, setup: Setup) -> Outcome:
    """Kills what stands for Blender: whether any process of its is left 2 s later, or any file."""
    family = descendants(process.pid)
    began = time.monotonic()
    process.kill()
    process.wait()
    process.stdout.close()
    while any(map(is_running, family)) and time.monotonic() - began < 5:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    if seconds > 2:
        return f"{[pid for pid in family if is_running(pid)]} went on", seconds
    left = setup.scraps()
    return ("" if family and not left else f"{len(family)} processes; left: {left}"), seconds


IN_A_JOB = """
job = setup.reach(setup.generate(output_kind="both"), sys.argv[2], float(sys.argv[3]))
"""


@fault
def blender_killed_in_a_job(bench: Bench) -> Iterator[Outcome]:
    """In every stage; a process with an engine and a real worker."""
    stages = (*STAGES[:-1], *MESH_STAGES)
    for i in range(bench.times):
        setup = bench.setup()
        code = IN_A_JOB.replace("sys.argv[2]", repr(stages[i % len(stages)]))
        code = code.replace("float(sys.argv[3])", str(bench.chance.uniform(0, 1)))
        process = driver(bench.folder / f"setup{bench.number}", code + "print(1, flush=True); time.sleep(1000)")
        process.stdout.readline()
        yield after_killing(process, setup)


BLENDER = """
import json, os, sys, time
sys.path.insert(0, {root!r})
import bpy, lgm_blender
from lgm_blender.blender import session
from lgm_blender.core.messages import GenerateRequest
lgm_blender.register()
now = session.current()
job = now.begin(GenerateRequest(**json.loads(sys.argv[1])), bpy.context.scene)
while not (job.progress and job.progress.stage == sys.argv[2]) and not job.ended:
    now.step()
    time.sleep(0.01)
print(job.state, job.error, flush=True)
time.sleep(1000)
"""


@fault
def real_blender_killed_in_a_job(bench: Bench) -> Iterator[Outcome]:
    """bpy 5.3 with the add-on registered."""
    python = ROOT / ".venv-blender-5.3" / "bin" / "python"
    for i in range(max(2, bench.times // 4)):
        setup = bench.setup()
        folder = bench.folder / f"setup{bench.number}"
        variables = {"TMPDIR": str(setup.temporary), "XDG_DATA_HOME": str(folder / "data")}
        variables |= {"LGM_BLENDER_PYTHON": sys.executable, "LGM_BLENDER_LOG_DIR": str(folder / "logs")}
        request = {"job": "", "output": str(setup.output), "image": str(setup.image), "device": "cpu"}
        command = [str(python), "-c", BLENDER.format(root=str(ROOT)), json.dumps(request), STAGES[1 + i % 4]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
        line = process.stdout.readline()
        problem, seconds = after_killing(process, setup)
        own = [path for path in setup.scraps() if "blender_" not in path or "lgm_" in path]  # Blender has a folder too
        yield (f"{line}" if "running" not in line else problem if own or "went on" in problem else ""), seconds


INSTALL = """
from lgm_blender.blender.tasks import Step, Task
code = "import subprocess, sys, time; a = [subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])"
code += " for _ in range(3)]; print(1, flush=True); time.sleep(1000)"
task = Task([Step.of("Fetching packages", [sys.executable, "-c", code])], Path(sys.argv[1]) / "log")
while not task.message:
    task.step()
    time.sleep(0.01)
"""


@fault
def blender_killed_while_it_installs(bench: Bench) -> Iterator[Outcome]:
    """A command like uv's, with children of its own and without a stdin."""
    for _ in range(bench.times):
        setup = bench.setup()
        code = INSTALL + "print(1, flush=True); time.sleep(1000)"
        process = driver(bench.folder / f"setup{bench.number}", code)
        process.stdout.readline()
        yield after_killing(process, setup)


MANY = """
made = []
for number in range({count}):
    made.append(setup.engine.wait(setup.engine.submit(setup.generate(preset={preset!r}, name="same", steps=1))).json)
setup.engine.close()
print(json.dumps(made), flush=True)
"""


@fault
def two_blenders_on_one_folder(bench: Bench) -> Iterator[Outcome]:
    """The same output folder, temporary folder, logs and memory of weights, and the same name for all results."""
    setup = bench.setup()
    folder = bench.folder / f"setup{bench.number}"
    count = max(2, bench.times // 2)
    began = time.monotonic()
    code = "import json\n" + MANY.format(count=count, preset=str(bench.tiny))
    both = [driver(folder, code) for _ in range(2)]
    made = [path for process in both for path in json.loads(process.communicate()[0] or "[]")]
    seconds = (time.monotonic() - began) / count
    for path in made:
        result = json.loads(Path(path).read_text())
        files = [Path(result[key]) for key in ("ply", "views", "input")]
        whole = all(file.is_file() and file.stem.startswith(Path(path).stem) for file in files)
        yield ("" if whole and made.count(path) == 1 else f"{path} is not whole"), seconds
    if len(made) != 2 * count or setup.scraps():
        yield f"{len(made)} results, left: {setup.scraps()}", seconds


PAUSED = """
job = setup.reach(setup.generate(steps=2), "views", 0.0)
print(setup.engine._process.pid, flush=True)
setup.until(lambda: job.ended)
print(job.state, job.error, flush=True)
"""


@fault
def paused_for_a_minute(bench: Bench) -> Iterator[Outcome]:
    """Blender alone, the worker alone, and both as when a laptop sleeps; every timeout is shorter."""
    setups = [bench.setup() for _ in range(3)]
    folders = [bench.folder / f"setup{bench.number - 2 + i}" for i in range(3)]
    options = ", start_timeout=40, cancel_timeout=5, idle_timeout=5"
    processes = [driver(folder, PAUSED, options=options) for folder in folders]
    stopped = []
    for i, process in enumerate(processes):
        worker = int(process.stdout.readline())
        stopped.append([[process.pid], [worker], [process.pid, worker]][i])
        for pid in stopped[-1]:
            os.kill(pid, signal.SIGSTOP)
    time.sleep(60)
    for setup, process, pids in zip(setups, processes, stopped, strict=True):
        began = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        said = process.stdout.readline().strip()
        yield ("" if said == "done" else said or "nothing"), time.monotonic() - began
        process.stdout.close()
        process.wait()
        if setup.scraps():
            yield f"left: {setup.scraps()}", 0.0


# ---- All of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of names")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.lastResort = None  # what the worker's code logs in this process is no news
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.times, options.seed)
        for name, function in FAULTS.items():
            if not name.startswith(tuple(options.only)):
                continue
            outcomes = []
            try:
                for outcome in function(bench):
                    outcomes.append(outcome)
                    if outcome[0]:
                        print(f"{name}: {outcome[0]}", file=sys.stderr, flush=True)
            except Exception:
                traceback.print_exc()
                outcomes.append(("it could not be tried", 0.0))
            right = sum(not problem for problem, _ in outcomes)
            rows.append([name.replace("_", " "), len(outcomes), right, max(seconds for _, seconds in outcomes)])
            print(rows[-1], file=sys.stderr, flush=True)
    rows.append(["all", sum(row[1] for row in rows), sum(row[2] for row in rows), max(row[3] for row in rows)])
    print(table(["fault", "tried", "right", "longest, seconds"], rows))
    keys = ("fault", "tried", "right", "longest")
    facts = [dict(zip(keys, [*row[:3], round(row[3], 3)], strict=True)) for row in rows]
    print(json.dumps({"cores": os.cpu_count(), "rows": facts}))


if __name__ == "__main__":
    main()
