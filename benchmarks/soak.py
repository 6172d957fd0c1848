"""Many small jobs through one worker: whether memory, handles, threads, temporary files or times grow.

    python benchmarks/soak.py --jobs 1000            # two hours on 2 cores
    python benchmarks/soak.py --tiny --mesh 100      # twenty minutes

Runs in the worker's Python on Linux, with the bundled preset or a tiny one. Of 19 jobs 7 are of an image, 4 of a text,
5 are cancelled at random moments and 3 fail; in between are meshes. Prints a table of slopes and, last, the same as a
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from setup import ROOT, Setup, table

sys.path.extend(str(ROOT / "tests" / name) for name in ("", "core", "worker"))
from shapes import sphere
from tiny_preset import write_preset

from lgm_blender.core.formats.ply import write_ply

KINDS = ("image", "text", "image", "cancelled", "failing", "image", "cancelled", "text", "image", "cancelled")
KINDS += ("image", "failing", "cancelled", "text", "image", "cancelled", "text", "image", "failing")
UNITS = {"memory": "MB", "handles": "", "threads": "", "files": ""}


def process_state(pid: int | str) -> dict[str, float]:
    """Resident memory in MB, open handles, threads, and seconds of CPU so far."""
    folder = Path("/proc") / str(pid)
    pages = int((folder / "statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    handles, threads = (sum(1 for _ in (folder / name).iterdir()) for name in ("fd", "task"))
    ticks = sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
    cpu = ticks / os.sysconf("SC_CLK_TCK")
    return {"memory": memory, "handles": handles, "threads": threads, "cpu": cpu}


def run(setup: Setup, kind: str, fields: dict, splats: Path, chance: random.Random) -> None:
    """One job from its request to its end, and its files removed."""
    few = {"seed": chance.randrange(1000), "steps": 1, "name": "job"} | fields
    match kind:
        case "text":
            request = setup.generate(image=None, prompt="a red apple", **few)
        case "mesh":
            request = setup.mesh(splats, faces=1000, texture_size=512, name="job")
        case "failing":
            wrong = chance.choice(({"image": "/none.png"}, {"output": "/proc/none"}, {"elevation": 99.0}))
            request = setup.generate(**few | wrong)
        case _:
            request = setup.generate(**few)
    if kind == "cancelled" and chance.random() < 0.2:
        request = setup.mesh(splats, faces=1000, texture_size=512, name="job")
    job = setup.engine.submit(request)
    if kind == "cancelled":
        end = time.monotonic() + chance.uniform(0, 1.5)
        setup.until(lambda: job.ended or time.monotonic() > end)
        setup.engine.cancel(job)
    setup.until(lambda: job.ended)
    expected = {"failing": ("failed",), "cancelled": ("cancelled", "done")}.get(kind, ("done",))
    if job.state not in expected:
        raise SystemExit(f"{kind}: {job.state}: {job.error}")
    for path in setup.output.glob("job*"):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop earlier, after so many")
    parser.add_argument("--mesh", type=int, default=20, help="every so many jobs a mesh (default: 20)")
    parser.add_argument("--tiny", action="store_true", help="a preset of half a megabyte in place of the bundled one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        # One thread for torch: with more, what else the machine does makes each job many times slower, not a bit.
        setup = Setup(Path(folder), variables={"OMP_NUM_THREADS": "1"})
        fields = {"preset": str(write_preset(Path(folder) / "tiny"))} if options.tiny else {}
        splats = Path(folder) / "ball.ply"
        write_ply(splats, sphere(2000))
        setup.engine.wait_ready()
        pid = setup.engine._process.pid
        for kind in dict.fromkeys((*KINDS, "mesh")):  # what a first one imports stays
            run(setup, kind, fields, splats, chance)
        began = time.monotonic()
        while len(rows) < options.jobs and time.monotonic() - began < 60 * options.minutes:
            kind = "mesh" if len(rows) % options.mesh == options.mesh - 1 else KINDS[len(rows) % len(KINDS)]
            start, before = time.monotonic(), process_state(pid)["cpu"]
            run(setup, kind, fields, splats, chance)
            row = {"kind": kind, "seconds": time.monotonic() - start, "files": float(len(setup.scraps()))}
            row |= process_state(pid) | {f"own {name}": value for name, value in process_state("self").items()}
            row["cpu"] -= before  # what else the machine does makes a job longer, and no more work
            rows.append(row)
            if len(rows) % 20 == 0:
                print(len(rows), {k: round(v, 2) for k, v in row.items() if k != "kind"}, file=sys.stderr, flush=True)
        if setup.engine._process.pid != pid:
            raise SystemExit("the worker was started anew in between")
        setup.engine.close()
        scraps = setup.scraps()
    print(f"{len(rows)} jobs in {(time.monotonic() - began) / 60:.0f} minutes, by one worker")
    found = summary(rows)
    print(table(["", "start", "end", "per 100 jobs", "standard error"], found))
    print(f"Left over once the worker has left: {len(scraps)}")
    keys = ("what", "start", "end", "slope", "error")
    rounded = [dict(zip(keys, [row[0], *(round(x, 4) for x in row[1:])], strict=True)) for row in found]
    print(json.dumps({"cores": os.cpu_count(), "jobs": len(rows), "left": len(scraps), "rows": rounded}))


def summary(rows: list[dict]) -> list[list]:
    """What each thing was at first and in the end (means of a tenth), its slope per 100 jobs, and how sure that is.

    The first tenth of the jobs, in which libraries warm up, is left out.
    """
    rows = [row | {"number": number} for number, row in enumerate(rows)][len(rows) // 10 :]
    names = {f"{who}{name}": f"{title} {name}" for who, title in (("", "worker"), ("own ", "engine")) for name in UNITS}
    table = []
    for name, title in names.items():
        if name in rows[0]:
            unit = UNITS[name.removeprefix("own ")]
            table.append([f"{title}, {unit}" if unit else title, *line(rows, name)])
    for kind in dict.fromkeys((*KINDS, "mesh")):
        for name, title in (("cpu", "seconds of CPU"), ("seconds", "seconds")):
            of_kind = [row for row in rows if row["kind"] == kind]
            if of_kind:
                table.append([f"{kind}, {title}", *line(of_kind, name)])
    return table


def line(rows: list[dict], name: str) -> list[float]:
    """Mean of the first and of the last tenth, slope per 100 jobs by least squares, its standard error."""
    x, y = (np.array([row[key] for row in rows], float) for key in ("number", name))
    tenth = max(1, len(y) // 10)
    x = (x - x.mean()) / 100
    spread = float((x * x).sum()) or 1.0
    slope = float((x * y).sum()) / spread
    rest = y - y.mean() - slope * x
    error = float(np.sqrt((rest * rest).sum() / max(1, len(y) - 2) / spread))
    return [float(y[:tenth].mean()), float(y[-tenth:].mean()), slope, error]


if __name__ == "__main__":
    main()
