"""How many objects a second LGM trains on, with one GPU and with several.

    python benchmarks/training.py --data objects.zip --processes 1 2 [--compile]

Each count runs as `accelerate launch --num_processes N` would, on the same 64 objects from the bundled weights,
without the LPIPS loss. The figure is the median over blocks of steps after the first. It prints a table and a JSON
line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 20  # steps
SIZE = 256  # of the views, as mini takes them


def run(options: argparse.Namespace) -> None:
    """One process of a training."""
    from lgm_blender.training.loops import trainer as schedule
    from lgm_blender.training.loops.finetune import find_start, load_data
    from lgm_blender.training.loops.lgm import train_lgm
    from lgm_blender.training.settings import LGMSettings

    schedule.LOG_EVERY = BLOCK
    schedule.fast_arithmetic()
    start = find_start("mini", "mini")
    views, _ = load_data(options.data, options.work, SIZE, schedule.processes().device, print, limit=options.objects)
    train_lgm(
        views,
        options.work / f"run-{schedule.processes().num_processes}",
        start.config,
        LGMSettings(steps=options.blocks * BLOCK, batch=options.batch, init=start.weights, compile=options.compile),
    )


def main() -> None:
    """Run each count of processes and print what they reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an objects.zip or a folder of training views")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=8, help="objects a step and process")
    parser.add_argument("--blocks", type=int, default=12, help=f"of {BLOCK} steps")
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        sys.path.insert(0, str(ROOT))
        run(options)
        return
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in options.processes:
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count)]
            launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            launch += ["--multi_gpu"] if count > 1 else []
            command = [*launch, str(Path(__file__).resolve()), *sys.argv[1:], "--work", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            lines = (Path(folder) / f"run-{count}" / "log.jsonl").read_text().splitlines()
            seconds = [json.loads(line)["seconds"] for line in lines]
            blocks = [b - a for a, b in pairwise(seconds)]
            rates[count] = BLOCK * options.batch * count / statistics.median(blocks)
    first = rates[options.processes[0]]
    print(f"{'GPUs':>5} {'objects/s':>10} {'ratio':>6}")
    for count, rate in rates.items():
        print(f"{count:>5} {rate:>10.1f} {rate / first:>6.2f}")
    print(json.dumps({"benchmark": "training", "batch": options.batch, "objects_per_second": rates}))


if __name__ == "__main__":
    main()
