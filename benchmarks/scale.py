"""How many items a batch makes in an hour, by how many processes there are: python -m lgm_blender.worker batch.

    python benchmarks/scale.py                                           # mini on this CPU: 1, 2 and 4 processes
    python benchmarks/scale.py --preset published --device cuda --processes 1 2     # a machine with two GPUs

'published' is of the published sizes, with random weights (random_preset.py), made anew in a temporary folder of 5 GB.
Prints a table and, last, the same as a line of JSON. Starting and loading are not in the throughput: it is that of the
time in which every process has its models and none has run out of work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_preset import write_random_preset  # beside this file

from lgm_blender.core.batch.journal import read_journal

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "docs" / "samples" / "cactus.png"


def measure(processes: int, items: int, folder: Path, options: list[str]) -> dict[str, float]:
    """Runs one batch of the sample under many seeds; seconds and items an hour.

    Raises:
        RuntimeError: If an item failed.
    """
    rows = "".join(f"{SAMPLE},{seed},item {seed}\n" for seed in range(items))
    (folder / "list.csv").write_text("image,seed,name\n" + rows, encoding="utf-8")
    output = folder / f"out {processes}"
    command = [sys.executable, "-m", "lgm_blender.worker", "batch", "--input", str(folder / "list.csv")]
    command += ["--output", str(output), "--processes", str(processes), *options]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    records = read_journal(output)
    moment = lambda record, end: datetime.datetime.fromisoformat(record[end]).timestamp()  # noqa: E731
    ends = sorted(moment(record, "ended") for record in records)
    last_begun = max(moment(record, "started") for record in records)  # after it a process has run out of work
    first = sorted(records, key=lambda record: moment(record, "started"))[:processes]
    warm = max(moment(record, "ended") for record in first)  # then each has made its first item, models loaded
    within = [end for end in ends if warm < end <= last_begun + 1e-3]
    hourly = 3600 * len(within) / (last_begun - warm) if len(within) > 1 else float("nan")
    shutil.rmtree(output)
    return {"items": items, "seconds": round(seconds, 1), "items_an_hour": round(hourly, 1), "counted": len(within)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mini", help="mini, published, small or the folder of one (default: mini)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--items", type=int, default=8, help="for each process (default: 8)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the preset's)")
    parser.add_argument("--view-samples", type=int, help="samples of the views (default: the preset's)")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="lgm_scale_") as name:
        folder = Path(name)
        preset = arguments.preset
        if preset in ("published", "small"):
            preset = str(write_random_preset(folder / "preset", preset == "small", arguments.device))
        options = ["--preset", preset, "--device", arguments.device]
        for option in ("steps", "view_samples"):
            if (value := getattr(arguments, option)) is not None:
                options += [f"--{option.replace('_', '-')}", str(value)]
        rows = {count: measure(count, count * arguments.items, folder, options) for count in arguments.processes}

    base = rows[arguments.processes[0]]["items_an_hour"]
    print(
        "| processes | items | seconds, start to end | items an hour, warm | times the first |\n|---|---|---|---|---|"
    )
    for count, row in rows.items():
        row["times"] = round(row["items_an_hour"] / base, 2)
        print(f"| {count} | {row['items']} | {row['seconds']:.0f} | {row['items_an_hour']:.0f} | {row['times']:.2f} |")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    result = {
        "benchmark": "scale",
        "preset": arguments.preset,
        "device": gpus if arguments.device == "cuda" else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "options": options[4:],
        "processes": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
