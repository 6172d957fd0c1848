"""Milliseconds that splats cost after each change in Blender, and seconds to mend, edit and choose them.

    python benchmarks/editing.py                     # 1,000,000 and 3,000,000 Gaussians
    python benchmarks/editing.py --counts 65536 --repeats 5

Needs bpy. Prints a table and, last, the same as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.blender import handlers
from lgm_blender.blender.scene import editing, repair, splat_data, splats
from lgm_blender.core.gaussians import Gaussians

CUBE = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def cloud(count: int, harmonics: int) -> Gaussians:
    random = np.random.default_rng(0)
    positions = random.normal(size=(count, 3)).astype(np.float32)
    positions *= 0.5 / np.linalg.norm(positions, axis=1, keepdims=True)
    rotations = random.normal(size=(count, 4)).astype(np.float32)
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    scales = np.full((count, 3), 0.6 / np.sqrt(count), np.float32)
    colors = random.random((count, 3), np.float32)
    return Gaussians(
        positions, np.full(count, 0.8), scales, rotations, colors, np.zeros((count, harmonics, 3), np.float32)
    )


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(count: int, harmonics: int, repeats: int) -> dict[str, float]:
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    made = splats.add_splats(cloud(count, harmonics), "splats", stand=False)
    made.modifiers.clear()  # what displaying costs is measured in splats.py
    bpy.context.view_layer.update()
    watch, data = handlers.Watch(), made.data
    row = {"gaussians": count, "harmonics": harmonics}

    spent: list[float] = []

    def timed(scene, depsgraph):
        start = time.perf_counter()
        watch.after_update(depsgraph)
        spent.append(time.perf_counter() - start)

    def update(change: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            spent.clear()
            change()
            bpy.context.view_layer.update()
            times.append(sum(spent))
        return statistics.median(times)

    def nudge() -> None:
        made.location.x += 0.1

    bpy.app.handlers.depsgraph_update_post.append(timed)
    row["object moved"] = update(nudge)
    row["data updated"] = update(data.update_tag)
    bpy.app.handlers.depsgraph_update_post.remove(timed)

    position = splat_data.get(data, "position")
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32)

    def move(points: np.ndarray, linear: np.ndarray) -> None:
        new = splat_data.get(data, "position")
        new[points] = new[points] @ linear.T
        splat_data.put(data, "position", "FLOAT_VECTOR", new)

    everything = np.ones(count, bool)
    move(everything, 1.5 * turn)
    row["mend Apply"] = seconds(lambda: repair.mend(data))
    move(everything, np.diag([1.0, 2.0, 0.5]).astype(np.float32))
    row["mend a stretch"] = seconds(lambda: repair.mend(data))
    splat_data.put(data, "position", "FLOAT_VECTOR", position)
    repair.adopt(data)
    for points, angle in ((position[:, 0] > 0.2, 1), (position[:, 0] < -0.3, -1), (abs(position[:, 0]) < 0.1, 2)):
        move(points, turn if angle == 1 else turn.T if angle == -1 else 2 * turn)
    row["mend 3 selections"] = seconds(lambda: repair.mend(data))
    move(everything, turn)
    new = splat_data.get(data, "position")
    splat_data.put(data, "position", "FLOAT_VECTOR", new + 0.1 * np.sin(3 * new))
    row["give up"] = seconds(lambda: repair.mend(data))
    splat_data.put(data, "position", "FLOAT_VECTOR", position)
    repair.adopt(data)

    row["floaters"] = seconds(lambda: editing.floaters(made))
    mesh = bpy.data.meshes.new("cube")
    mesh.from_pydata(CUBE, [], FACES)
    cutter = bpy.data.objects.new("cube", mesh)
    bpy.context.scene.collection.objects.link(cutter)
    cutter.scale, cutter.rotation_euler = (0.4, 0.4, 0.4), (1, 2, 3)
    bpy.context.view_layer.update()
    made.rotation_euler = (1, 0, 0)
    row["apply"] = seconds(lambda: editing.apply_transform(made))
    row["crop"] = seconds(lambda: editing.crop(made, [cutter]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000_000, 3_000_000])
    parser.add_argument("--harmonics", type=int, choices=(0, 3, 8, 15), default=0, help="of each (default: none)")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    rows = [measure(count, options.harmonics, options.repeats) for count in options.counts]
    names = list(rows[0])
    print(f"| {' | '.join(names)} |\n|{' ---: |' * len(names)}")
    for row in rows:
        cells = [f"{value:,}" if isinstance(value, int) else told(value) for value in row.values()]
        print(f"| {' | '.join(cells)} |")
    facts = {"blender": bpy.app.version_string, "cores": os.cpu_count(), "machine": platform.machine()}
    print(json.dumps({**facts, "rows": rows}))
    sys.stdout.flush()
    os._exit(0)  # Blender may not end by itself


def told(value: float) -> str:
    return f"{value:.2f} s" if value > 1 else f"{1e3 * value:.2f} ms" if value < 0.1 else f"{1e3 * value:.0f} ms"


if __name__ == "__main__":
    main()
