"""How long Blender's window stands still while a job runs, and when its result arrives.

    python benchmarks/stalls.py --worker .venv/bin/python [--root FOLDER]

In a real Blender window without a screen (tests/window/check.py says what that needs), a timer writes down every 5 ms
that it was called: what lies between two calls, nobody could click or draw in. `mini` is the bundled preset on the
real worker, `65,536` a file as large as the published LGM makes it, from the stand-in for the worker; `nothing` is the
window on its own. Results come to where the view looks or to where it doesn't: then Blender has nothing to draw of
them. "Our code" is what the add-on's own timer took of it at most: the rest is Blender drawing, here without a GPU, and
two cores that the worker wants too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests" / "window")]

import check  # noqa: E402

from lgm_blender.core.formats.ply import write_ply  # noqa: E402
from lgm_blender.core.gaussians import Gaussians  # noqa: E402

COUNT = 65_536


def ball(count: int) -> Gaussians:
    """Gaussians on a ball, as many as asked for and as small as they then are."""
    draw = np.random.default_rng(0)
    points = draw.normal(size=(count, 3))
    points *= 0.45 / np.linalg.norm(points, axis=1, keepdims=True)
    turns = draw.normal(size=(count, 4))
    turns /= np.linalg.norm(turns, axis=1, keepdims=True)
    scales = draw.uniform(0.5, 2.0, (count, 3)) / np.sqrt(count)
    return Gaussians(points, draw.uniform(0.3, 1.0, count), scales, turns, points + 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=Path, required=True, metavar="PYTHON", help="a Python with the packages")
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "lgm_blender_sid")
    parser.add_argument("--display", default=":78", help="number of the screen, which must be free")
    parser.add_argument("--out", type=Path, default=HERE.parent / "out" / "stalls", help="where pictures and log go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        share = Path(folder)
        write_ply(share / "large.ply", ball(COUNT))
        story = HERE / "stalls_story.py"
        with check.window(options.root, share, options.out, story, options.worker, options.display) as blender:
            report = check.watch(share, options.out, blender, 900.0, options.display)
    print(f"Blender {report['blender']}; milliseconds between two calls of a timer that wants to be called every 5 ms")
    print("| what | median | 99th percentile | longest | our code at most |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, row in report.get("rows", {}).items():
        print(f"| {name} | {row['median']:.0f} | {row['p99']:.0f} | {row['longest']:.0f} | {row['ours']:.0f} |")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
