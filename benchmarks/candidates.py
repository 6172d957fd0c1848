"""Whether the candidate whose views agree best is the best one: four seeds of each object, judged in 3D.

    python benchmarks/candidates.py --data objects.zip [--objects 24] [--seeds 4] [--preset mini] [--device cpu]

Each seed's views become Gaussians, and these are compared with the object's ground truth from eight other sides. Prints
a table and, last, the same as a line of JSON: means over the objects of what the first seed gives, a seed by lot, the
one that worker/agreement.py chooses, those that its parts alone would choose, and the best one.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from setup import table  # beside this file

from lgm_blender.training.evaluation.evaluate import open_data
from lgm_blender.training.evaluation.ground_truth import LeftOut
from lgm_blender.training.evaluation.metrics import psnr
from lgm_blender.training.evaluation.modes import INPUTS, photo_input
from lgm_blender.training.evaluation.pictures import on_white, render_gaussians
from lgm_blender.training.loops.lpips import LPIPS
from lgm_blender.worker import agreement, reconstruct
from lgm_blender.worker.presets import find_preset

PARTS = ("heights", "mirrored", "colors")


def judged(gaussians, target, lpips: LPIPS | None, device: str) -> dict[str, float]:
    """PSNR and, with its network, LPIPS of Gaussians from an object's other sides."""
    truth = on_white(target.pixels[INPUTS:], device).rgb
    seen = render_gaussians(gaussians, target.poses[INPUTS:], device).rgb
    found = {"psnr": psnr(seen, truth).mean().item()}
    return found | ({"lpips": lpips(seen, truth).mean().item()} if lpips else {})


def measure(preset: str, data: Path, objects: int, seeds: int, device: str) -> list[dict[str, list[float]]]:
    """Of each object, what each of its seeds has: figures of the result, agreement and its parts."""
    known = find_preset(preset)
    settings = reconstruct.preset_settings(known, "image")
    multiview, lgm = reconstruct.load_multiview(known, "image", device), reconstruct.load_lgm(known, device)
    lpips = LPIPS.find(None, device)
    source = open_data(data, objects)
    found = []
    for number, (name, _) in enumerate(source.objects):
        try:
            target = source.ground_truth(number, placed=True)
        except LeftOut:
            continue
        image = photo_input(target)
        first = zlib.crc32(name.encode())
        asked = [(first + i) % 2**32 for i in range(seeds)]
        frames = reconstruct.sample_frames(multiview, settings, "", image, seeds=asked, elevations=target.elevation)
        row: dict[str, list[float]] = {}
        for each in frames:
            views = reconstruct.finish_frames(each, image, settings)
            gaussians = reconstruct.reconstruct(lgm, views, settings, elevation=target.elevation)
            gaussians = reconstruct.clean_up(gaussians, settings, device)
            facts = judged(gaussians, target, lpips, device) | agreement.parts(views)
            for key, value in (facts | {"agreement": agreement.agreement(views)}).items():
                row.setdefault(key, []).append(value)
        found.append(row)
        print(name, {key: [round(x, 3) for x in values] for key, values in row.items()}, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an objects.zip, or a folder of training views")
    parser.add_argument("--objects", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    found = measure(options.preset, options.data, options.objects, options.seeds, options.device)
    figures = [name for name in ("lpips", "psnr") if name in found[0]]
    better = {"lpips": np.min, "psnr": np.max}
    ways = {
        "the first": lambda row: 0,
        **{name: lambda row, name=name: int(np.argmax(row[name])) for name in ("agreement", *PARTS)},
    }
    rows = []
    for way, choose in ways.items():
        rows.append([way, *(float(np.mean([row[name][choose(row)] for row in found])) for name in figures)])
    rows.insert(1, ["by lot", *(float(np.mean([np.mean(row[name]) for row in found])) for name in figures)])
    rows.append(["the best", *(float(np.mean([better[name](row[name]) for row in found])) for name in figures)])
    print(table(["chosen by", *figures], rows))
    print(json.dumps({"benchmark": "candidates", "objects": len(found), "seeds": options.seeds, "rows": rows}))


if __name__ == "__main__":
    main()
