"""Seconds and memory to render Gaussians: `python benchmarks/rendering.py [--gaussians N] [--size S] [--views V]`.

Prints a table, and the same as one line of JSON. Each line of it is measured in a process of its own, so 'peak' on a
CPU is all that such a process takes, Python and torch included; on CUDA it is what torch allocates.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.core import cameras
from lgm_blender.worker.rendering import backend_for, render

# name: (smallest scale, largest scale, opacity or None for 0..1, on a sphere's surface or throughout a cube)
SCENES = {
    "surface, 0.002-0.006": (0.002, 0.006, None, True),
    "surface, 0.005-0.01": (0.005, 0.01, None, True),
    "cube, 0.003-0.02": (0.003, 0.02, None, False),
    "cube, 0.02-0.05": (0.02, 0.05, None, False),
    "cube, 0.1-0.2": (0.1, 0.2, None, False),
    "untrained LGM: cube, 0.07": (0.07, 0.07, 0.12, False),
}


def scene(name: str, count: int) -> torch.Tensor:
    """[count, 14], the same at each call."""
    low, high, opacity, surface = SCENES[name]
    random = torch.Generator().manual_seed(0)
    positions = torch.rand(count, 3, generator=random) - 0.5
    if surface:
        positions = 0.5 * torch.nn.functional.normalize(positions, dim=1)
    scales = low + (high - low) * torch.rand(count, 3, generator=random)
    opacities = torch.rand(count, 1, generator=random)
    if opacity is not None:
        opacities = torch.full_like(opacities, opacity)
    rotations = torch.nn.functional.normalize(torch.randn(count, 4, generator=random), dim=1)
    return torch.cat([positions, opacities, scales, rotations, torch.rand(count, 3, generator=random)], dim=1)


def measure(name: str, device: str, backend: str, count: int, size: int, views: int, repeats: int) -> dict:
    """One line of the table: medians over `repeats`, after one that doesn't count."""
    gaussians = scene(name, count).to(device).requires_grad_()
    poses = cameras.orbit_cameras(azimuths=[360 * i / views for i in range(views)])
    view_matrices = torch.from_numpy(cameras.view_matrices(poses)).to(device)
    intrinsics = torch.from_numpy(cameras.intrinsics(size)).to(device)
    cuda = device == "cuda"

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    forward, backward, peaks = [], [], []
    for _ in range(repeats + 1):
        start = now()
        with torch.no_grad():
            render(gaussians, view_matrices, intrinsics, size, backend=backend)
        forward.append(now() - start)
        peaks.append(
            torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        start = now()
        render(gaussians, view_matrices, intrinsics, size, backend=backend).rgb.mean().backward()
        backward.append(now() - start)
    total = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "scene": name,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "backend": backend,
        "forward_s": round(statistics.median(forward[1:]), 5),
        "forward_backward_s": round(statistics.median(backward[1:]), 5),
        "forward_peak_mib": peaks[0] // 2**20,
        "forward_backward_peak_mib": total // 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gaussians", type=int, default=65536)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    ways = [("cpu", "torch")]
    if torch.cuda.is_available():
        name, reason = backend_for("cuda")
        print(f"on CUDA 'auto' is {name}: {reason}")
        ways += [("cuda", "torch")] + ([("cuda", "gsplat")] if name == "gsplat" else [])
    print(f"{options.gaussians} Gaussians, {options.views} x {options.size}², {torch.get_num_threads()} CPU threads")
    print(f"{'scene':28}{'device':8}{'backend':10}{'forward':>11}{'peak':>12}{'+ backward':>12}{'peak':>12}")
    lines = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for device, backend in ways:
            for name in SCENES:
                arguments = (options.gaussians, options.size, options.views, options.repeats)
                line = pool.submit(measure, name, device, backend, *arguments).result()
                lines.append(line)
                times = [f"{1000 * line[key]:.1f} ms" for key in ("forward_s", "forward_backward_s")]
                peaks = [f"{line[key]} MiB" for key in ("forward_peak_mib", "forward_backward_peak_mib")]
                print(f"{name:28}{device:8}{backend:10}{times[0]:>11}{peaks[0]:>12}{times[1]:>12}{peaks[1]:>12}")
    settings = {**vars(options), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": "rendering", **settings, "results": lines}))


if __name__ == "__main__":
    main()
