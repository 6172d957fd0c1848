"""Seconds from a cancel to the job's end and to the worker's next answer, at random moments of every stage.

    python benchmarks/cancel.py                      # 108 cancels
    python benchmarks/cancel.py --each 2
    python benchmarks/cancel.py --gaps               # the longest that a job goes without asking, in seconds of CPU

Runs in the worker's Python, with the bundled preset. Prints a table and, last, the same as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from setup import ROOT, Setup, table

sys.path.extend(str(ROOT / "tests" / name) for name in ("", "worker"))
from shapes import sphere

from lgm_blender.core.formats.ply import write_ply
from lgm_blender.core.messages import MESH_STAGES
from lgm_blender.worker.pipeline import Pipeline

GENERATING = ("matting", "load", "views", "gaussians", "floaters", "save")


def measure(setup: Setup, stage: str, delay: float, splats: Path) -> tuple[float, float] | None:
    """Cancels one job; seconds to its end and to the answer to another one, or None if it had ended before."""
    request = setup.mesh(splats) if stage in MESH_STAGES else setup.generate()
    job = setup.reach(request, stage, delay)
    if job.ended or job.progress.stage != stage:
        setup.engine.cancel(job)
        setup.until(lambda: job.ended)
        return None
    began = time.monotonic()
    setup.engine.cancel(job)
    setup.until(lambda: job.ended)
    ended = time.monotonic() - began
    probe = setup.engine.submit(setup.generate(image=None))  # refused as soon as the worker has time for it
    setup.until(lambda: probe.ended)
    if job.state != "cancelled" or probe.kind != "bad_input":
        raise SystemExit(f"{stage}: {job.state}, {probe.state}: {probe.error}")
    return ended, time.monotonic() - began


def gaps() -> None:
    """Prints, for each stage of a warm job, the most CPU time between two questions whether it goes on.

    Of all threads together, so that what else the machine does makes no difference; with two that are busy the clock
    shows half of it.
    """
    longest: dict[str, float] = {}
    now = {"stage": "", "asked": 0.0}

    def cancelled() -> bool:
        used = time.process_time()
        stage = now["stage"]
        longest[stage] = max(longest.get(stage, 0.0), used - now["asked"])
        now["asked"] = used
        return False

    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder))
        pipeline = Pipeline()
        for _ in range(2):  # the first one warms up
            longest.clear()
            now["asked"] = time.process_time()
            request = replace(setup.generate(output_kind="both"), job="gaps")
            pipeline.generate(request, lambda progress: now.update(stage=progress.stage), cancelled)
    rows = [[stage, seconds] for stage, seconds in longest.items() if stage]
    print(table(["stage", "longest, seconds of CPU"], rows))
    print(json.dumps({"cores": os.cpu_count(), "rows": {stage: round(seconds, 3) for stage, seconds in rows}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=9, help="cancels of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=[*GENERATING, *MESH_STAGES])
    parser.add_argument("--gaps", action="store_true", help="in place of cancelling")
    options = parser.parse_args()
    if options.gaps:
        gaps()
        return
    chance = random.Random(options.seed)
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in options.stages}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder))
        first = setup.engine.wait(setup.engine.submit(setup.generate()))
        ball = Path(folder) / "ball.ply"  # of few splats: what comes after rendering takes as long, and comes sooner
        write_ply(ball, sphere(2000))
        sources = {stage: Path(first.ply) if stage == "render" else ball for stage in MESH_STAGES}
        lasts = {}
        for splats in {sources[stage] for stage in options.stages if stage in sources}:
            timings = setup.engine.wait(setup.engine.submit(setup.mesh(splats))).timings
            lasts |= {stage: timings[stage] for stage, source in sources.items() if source == splats}
        lasts |= setup.engine.wait(setup.engine.submit(setup.generate())).timings | {"load": first.timings["load"]}
        for stage in options.stages:
            while len(found[stage]) < options.each:
                if stage == "load":  # only the first job of a worker spends time there
                    setup.engine.close()
                pair = measure(setup, stage, chance.uniform(0, 0.9) * lasts[stage], sources.get(stage, ball))
                found[stage] += [pair] if pair else []
                print(stage, pair, file=sys.stderr, flush=True)
            print(stage, [f"{a:.2f} {b:.2f}" for a, b in found[stage]], file=sys.stderr, flush=True)
        setup.engine.close()  # whose previews have a folder while it lives
        scraps = setup.scraps()
    rows = [[stage, len(pairs), lasts[stage], *spread(pairs)] for stage, pairs in found.items()]
    everything = [pair for pairs in found.values() for pair in pairs]
    rows.append(["all", len(everything), sum(lasts[stage] for stage in found), *spread(everything)])
    names = ["stage", "cancels", "its seconds", "median", "95th percentile", "worst", "next: 95th percentile", "worst"]
    print(table(names, rows))
    print(f"Left over: {len(scraps) - 1}")  # the worker's own folder of previews is there as long as it is
    keys = ["stage", "cancels", "seconds", "median", "p95", "worst", "next_p95", "next_worst"]
    print(json.dumps({"cores": os.cpu_count(), "rows": [dict(zip(keys, row, strict=True)) for row in rows]}))


def spread(pairs: list[tuple[float, float]]) -> list[float]:
    """Median, 95th percentile and worst until the end; 95th percentile and worst until the next."""
    ended, ready = (sorted(times) for times in zip(*pairs, strict=True))
    return [statistics.median(ended), percentile(ended), ended[-1], percentile(ready), ready[-1]]


def percentile(times: list[float]) -> float:
    """The 95th percentile of sorted values: so many are at most that."""
    return times[math.ceil(0.95 * len(times)) - 1]


if __name__ == "__main__":
    main()
