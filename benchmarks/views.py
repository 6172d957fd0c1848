"""Views a second of the `views` command, and of reading them back.

    python benchmarks/views.py                          # balls of 2,000 triangles with a 1024² texture, made for it
    python benchmarks/views.py --input objects.zip --objects 60
    python benchmarks/views.py --processes 4            # how far processes share one GPU or the cores

Rendering is one process's; the whole way, with reading meshes and writing PNGs, is the command's with --processes.
Prints a table and, last, the same as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "core")]
from glb import bumpy_ball, piece, write_glb  # noqa: E402

from lgm_blender.core.cameras import view_poses  # noqa: E402
from lgm_blender.training.data.dataset import find_objects, load_objects  # noqa: E402
from lgm_blender.training.data.mesh_renderer import ViewRenderer  # noqa: E402
from lgm_blender.training.data.render_views import Source, encode_png, find_sources, make_views  # noqa: E402


def make_meshes(folder: Path, count: int) -> Path:
    """GLBs of balls with bumps, each with a texture of its own."""
    positions, uv, faces = bumpy_ball(27, 37)
    for i in range(count):
        picture = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        write_glb(folder / f"{i}.glb", piece(positions, faces, uv=uv, picture=picture))
    return folder


def measure(sources: list[Source], size: int, processes: int, output: Path) -> dict[str, float]:
    """Views a second of each step; medians over the objects of the first three, all of them for the others."""
    renderer = ViewRenderer(size, distance_size=0)
    times: dict[str, list[float]] = {"read": [], "render": [], "encode": []}
    renderer.render(sources[0].read(), view_poses("warm-up")[0])
    for source in sources:
        poses = view_poses(source.name)[0]
        start = time.perf_counter()
        mesh = source.read()
        read = time.perf_counter()
        views, _ = renderer.render(mesh, poses)
        rendered = time.perf_counter()
        for view in views:
            encode_png(view)
        spans = (read - start, rendered - read, time.perf_counter() - rendered)
        for name, seconds in zip(times, spans, strict=True):
            times[name].append(seconds / len(poses))
    rates = {name: 1 / statistics.median(each) for name, each in times.items()}
    start = time.perf_counter()
    made = [made for made in make_views(sources, output, size, processes=processes) if not made.problem]
    rates["command"] = len(made) * len(poses) / (time.perf_counter() - start)
    start = time.perf_counter()
    rates["load"] = len(load_objects(find_objects(output), size).pixels) / (time.perf_counter() - start)
    return rates | {"renderer": renderer.gl.info["GL_RENDERER"]}


STEPS = {
    "read": "reading a mesh, shared by its views",
    "render": "rendering, one process",
    "encode": "encoding PNGs, one process",
    "command": "the whole command",
    "load": "loading the folders",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a mesh, a folder of them, an objects.zip")
    parser.add_argument("--objects", type=int, default=20, help="how many of them, spread over all (default: 20)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        sources = find_sources(options.input or make_meshes(Path(folder) / "in", options.objects))
        sources = sources[:: max(1, len(sources) // options.objects)][: options.objects]
        result = measure(sources, options.size, options.processes, Path(folder) / "out")
    print(f"{result['renderer']}, {len(sources)} objects, {options.size}²\n\n| step | views/s |\n| --- | ---: |")
    for name, what in STEPS.items():
        print(f"| {what} | {result[name]:,.0f} |")
    facts = {"cores": os.cpu_count(), "processes": options.processes, "objects": len(sources), "size": options.size}
    print(json.dumps({**facts, **{name: round(v, 1) if name in STEPS else v for name, v in result.items()}}))


if __name__ == "__main__":
    main()
