"""Seconds to put Gaussians into a Blender scene, to evaluate them and to render them.

    python benchmarks/splats.py                        # 16,384 and 65,536 Gaussians; Cycles, 256², 3 samples
    python benchmarks/splats.py --counts 65536 --size 512
    python benchmarks/splats.py --bounces 0 32 64 128  # Cycles' Min Transparent Bounces: time against noise

Needs bpy. Prints a table and, last, the same as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.blender import compat
from lgm_blender.blender.scene import render, splats
from lgm_blender.core.gaussians import Gaussians


def surface(count: int) -> Gaussians:
    """Flat Gaussians over a bumpy ball, as dense as a trained object's."""
    random = np.random.default_rng(0)
    normals = random.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    radius = 0.5 + 0.05 * np.sin(9 * normals).sum(1, keepdims=True)
    spacing = 0.6 * np.sqrt(4 * np.pi * 0.5**2 / count)
    scales = spacing * np.exp(random.normal(0, 0.3, (count, 3))) * (1, 1, 0.2)
    # The rotation from z to the normal; nothing else about it matters.
    rotations = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(count)], 1)
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    return Gaussians(normals * radius, random.uniform(0.5, 0.99, count), scales, rotations, 0.5 + 0.5 * normals)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def evaluation_seconds(made: bpy.types.Object, display: str, repeats: int) -> float:
    """Seconds until the object's geometry is there again after a change, as it is displayed in the viewport."""
    modifier = made.modifiers[0]
    compat.set_modifier_input(modifier, "Viewport", display)

    def change() -> None:
        made.data.update_tag()
        bpy.context.view_layer.update()

    return median_seconds(change, repeats)


def picture(made: bpy.types.Object, folder: str, **settings) -> tuple[np.ndarray, float, float]:
    """[H, W, 3] and the seconds of wall clock and of CPU it took."""
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    path = render.render_objects(made, Path(folder, "picture.png"), **settings)
    wall, cpu = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu
    image = bpy.data.images.load(str(path))
    pixels = np.array(image.pixels[:], np.float32).reshape(*tuple(image.size)[::-1], 4)[..., :3]
    bpy.data.images.remove(image)
    return pixels, wall, cpu


def measure(count: int, size: int, samples: int, repeats: int, folder: str) -> dict[str, float]:
    gaussians = surface(count)

    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    start = time.perf_counter()
    made = splats.add_splats(gaussians, "splats")  # with the node group and the material
    first = time.perf_counter() - start
    add = median_seconds(lambda: splats.add_splats(gaussians, "more"), repeats)
    bpy.data.batch_remove([other for other in bpy.data.objects if other != made])
    camera = render.camera_from_pose(render.orbit_camera(15, 30))
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    _, wall, cpu = picture(made, folder, size=(size, size), samples=samples)
    return {
        "gaussians": count,
        "first_add": first,
        "add": add,
        "splats": evaluation_seconds(made, "Splats", repeats),
        "points": evaluation_seconds(made, "Points", repeats),
        "rendered": evaluation_seconds(made, "As Rendered", repeats),
        "cycles": wall,
        "cycles_cpu": cpu,
    }


def measure_bounces(bounces: list[int], count: int, size: int, folder: str) -> list[dict[str, float]]:
    """Time and noise of 8 samples for each setting, against 64 samples without any ray given up."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    made = splats.add_splats(surface(count), "splats")

    def shot(bounce: int, samples: int) -> tuple[np.ndarray, float, float]:
        splats.MIN_TRANSPARENT_BOUNCES = bounce
        return picture(made, folder, size=(size, size), samples=samples)

    reference = shot(splats.MAX_TRANSPARENT_BOUNCES, 64)[0]
    rows = []
    for bounce in bounces:
        pixels, wall, cpu = shot(bounce, 8)
        noise = float(-10 * np.log10(((pixels - reference) ** 2).mean()))
        rows.append({"min_transparent_bounces": bounce, "psnr": noise, "cycles": wall, "cycles_cpu": cpu})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--size", type=int, default=256, help="of the picture, in pixels (default: 256)")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bounces", type=int, nargs="+", help="compare these instead")
    options = parser.parse_args()

    facts = {"blender": bpy.app.version_string, "cores": os.cpu_count(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory() as folder, _quiet() as out:
        if options.bounces:
            rows = measure_bounces(options.bounces, options.counts[-1], options.size, folder)
        else:
            rows = [measure(n, options.size, options.samples, options.repeats, folder) for n in options.counts]
        units = {"gaussians": "", "min_transparent_bounces": "", "psnr": " dB"}
        names = list(rows[0])
        print(f"| {' | '.join(names)} |\n|{' ---: |' * len(names)}", file=out)
        for row in rows:
            cells = []
            for name, value in row.items():
                unit = units.get(name)
                if unit is not None:
                    cells.append(f"{value:,.1f}{unit}" if isinstance(value, float) else f"{value:,}")
                else:
                    cells.append(f"{value:.2f} s" if value > 1 else f"{1e3 * value:.1f} ms")
            print(f"| {' | '.join(cells)} |", file=out)
        print(json.dumps({**facts, "size": options.size, "samples": options.samples, "rows": rows}), file=out)
        out.flush()
    os._exit(0)  # Blender may not end by itself


class _quiet:
    """Blender's own words go nowhere; yields the real standard output."""

    def __enter__(self):
        sys.stdout.flush()
        self.real = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self.nowhere, 1)
        return self.real

    def __exit__(self, *_):
        os.dup2(self.real.fileno(), 1)


if __name__ == "__main__":
    main()
