"""Seconds and memory to read and write splat files, what each format loses, and the import into Blender.

    python benchmarks/formats.py                              # 65,536, 1 and 3 million; degree 0 and 3
    python benchmarks/formats.py --counts 65536 --formats spz sog
    python benchmarks/formats.py --losses                     # the round-trip table of docs/formats.md

Where there is bpy, the import is measured too: a file read, turned and added to the scene. Each figure is of a process
of its own, memory is its peak less what Python and numpy take. Prints tables and, last, the same as a line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.core.formats.compressed_ply import morton_order
from lgm_blender.core.formats.splat_files import FORMATS, WRITTEN, read_splat_file, write_splat_file
from lgm_blender.core.gaussians import Gaussians, rotation_matrices

COUNTS = (65_536, 1_000_000, 3_000_000)
DEGREES = (0, 3)


def scan(count: int, degree: int) -> Gaussians:
    """Flat Gaussians over bumpy ground and a ball, with harmonics as smooth over the surface as a capture's."""
    random = np.random.default_rng(0)
    normals = random.standard_normal((count, 3), dtype=np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    positions = normals * (1 + 0.1 * np.sin(9 * normals).sum(1, keepdims=True))
    scales = np.exp(random.normal(-5, 0.7, (count, 3)).astype(np.float32))
    rotations = random.standard_normal((count, 4), dtype=np.float32)
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    colors = 0.5 + 0.45 * np.sin(5 * positions) + 0.1 * random.standard_normal((count, 3), dtype=np.float32)
    opacities = 1 / (1 + np.exp(-random.normal(1, 2, count).astype(np.float32)))
    coefficients = (degree + 1) ** 2 - 1
    harmonics = np.empty((count, coefficients, 3), np.float32)
    for i in range(coefficients):
        harmonics[:, i] = 0.15 * np.sin((i + 1) * positions + i) + random.normal(0, 0.03, (count, 3))
    return Gaussians(positions, opacities, scales, rotations, colors.astype(np.float32), harmonics)


def codec():
    """Who reads and writes WebP here: Blender in Blender, else Pillow."""
    if importlib.util.find_spec("bpy"):
        from lgm_blender.blender.scene import webp
    else:
        from lgm_blender.worker import webp
    return webp


def peak() -> int:
    """Most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def step(what: str, path: Path, count: int, degree: int) -> dict:
    """One measurement, in this process."""
    webp = codec() if path.suffix == ".sog" or what == "import" else None
    before = peak()
    if what == "write":
        gaussians = scan(count, degree)
        before = max(peak(), before)  # of making them; what the writer adds is measured
        start, used = time.perf_counter(), time.process_time()
        write_splat_file(path, gaussians, webp=webp)
    elif what == "read":
        start, used = time.perf_counter(), time.process_time()
        read_splat_file(path, webp=webp)
    else:
        import bpy

        import lgm_blender

        bpy.ops.wm.read_factory_settings(use_empty=True)
        lgm_blender.register()
        before = peak()
        start, used = time.perf_counter(), time.process_time()
        bpy.ops.lgm.import_splats(filepath=str(path), up="-Y")
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    return {"seconds": round(seconds, 2), "cpu": round(cpu, 2), "memory": max(0, peak() - before)}


def measure(what: str, path: Path, count: int, degree: int) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--step", what, str(path), str(count), str(degree)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.strip().splitlines()[-1])


def losses(folder: Path) -> list[dict]:
    """How far each format's Gaussians are from what was written: the largest difference, and the median."""
    rows, webp = [], codec()
    for degree in DEGREES:
        source = scan(65_536, degree)
        for name in WRITTEN:
            path = folder / f"a{FORMATS[name].suffix}"
            write_splat_file(path, source, webp=webp)
            read = read_splat_file(path, webp=webp)
            kept = source.select(morton_order(source.positions)) if name in ("compressed", "sog") else source
            axes = [rotation_matrices(g.rotations) * g.scales[:, None] for g in (read, kept)]
            covariances = [a @ a.transpose(0, 2, 1) for a in axes]
            shape = np.abs(covariances[0] - covariances[1]).max((1, 2)) / np.abs(covariances[1]).max((1, 2))
            row = {"format": FORMATS[name].label, "degree": degree, "bytes": path.stat().st_size / len(source)}
            if read.harmonics.shape == kept.harmonics.shape and degree:
                row["harmonics"] = np.abs(read.harmonics - kept.harmonics)
            row |= {"position": np.abs(read.positions - kept.positions), "covariance": shape}
            row |= {"color": np.abs(read.colors - kept.colors), "opacity": np.abs(read.opacities - kept.opacities)}
            for key, values in row.items():
                if isinstance(values, np.ndarray):
                    row[key] = [float(np.median(values)), float(values.max())]
            rows.append(row)
    return rows


def print_losses(rows: list[dict]) -> None:
    names = ("position", "covariance", "opacity", "color", "harmonics")
    print("\n| format | degree | bytes a Gaussian | " + " | ".join(names) + " |\n" + "|---" * 8 + "|")
    for row in rows:
        cells = [f"{row[n][0]:.1g} / {row[n][1]:.1g}" if n in row else "lost" if row["degree"] else "–" for n in names]
        print(f"| {row['format']} | {row['degree']} | {row['bytes']:.1f} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--degrees", type=int, nargs="+", default=DEGREES)
    parser.add_argument("--formats", nargs="+", choices=WRITTEN, default=WRITTEN)
    parser.add_argument("--losses", action="store_true", help="only what each format loses")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        what, path, count, degree = options.step
        print(json.dumps(step(what, Path(path), int(count), int(degree))), flush=True)
        os._exit(0)  # Blender may hang at its end
    with tempfile.TemporaryDirectory() as folder:
        if options.losses:
            rows = losses(Path(folder))
            print_losses(rows)
        else:
            rows = run(options, Path(folder))
    print(json.dumps({"machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": rows}), flush=True)
    os._exit(0)


def run(options: argparse.Namespace, folder: Path) -> list[dict]:
    steps = ("write", "read", *(["import"] if importlib.util.find_spec("bpy") else []))
    print("| format | degree | Gaussians | MB | " + " | ".join(f"{s}, s | {s}, GB" for s in steps) + " |")
    print("|---" * (4 + 2 * len(steps)) + "|", flush=True)
    rows = []
    for name in options.formats:
        for degree in options.degrees:
            for count in options.counts:
                path = folder / f"a{FORMATS[name].suffix}"
                row = {"format": name, "degree": degree, "gaussians": count}
                row |= {what: measure(what, path, count, degree) for what in steps}
                row["size"] = path.stat().st_size
                cells = " | ".join(f"{row[s]['seconds']:.1f} | {row[s]['memory'] / 1e9:.2f}" for s in steps)
                print(
                    f"| {FORMATS[name].label} | {degree} | {count:,} | {row['size'] / 1e6:.1f} | {cells} |", flush=True
                )
                rows.append(row)
                path.unlink()
    return rows


if __name__ == "__main__":
    main()
