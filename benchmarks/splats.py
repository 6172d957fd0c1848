"""How Gaussians look in a Blender scene, and the seconds that it takes to put them there and to render them.

    python benchmarks/splats.py                        # 65,536 and 1,000,000 Gaussians: seconds to add and to evaluate
    python benchmarks/splats.py --golden               # dB against gsplat, each display
    python benchmarks/splats.py --golden --eevee       # EEVEE too: minutes on a CPU
    python benchmarks/splats.py --picture FILE.ply --save PNG [--against PNG]  # render_objects at 512²: CPU seconds, dB
    python benchmarks/splats.py --bounces 0 32 64 128  # Cycles' Min Transparent Bounces: time against noise

Needs bpy: run it with each Blender's Python, .venv-blender-5.3/bin/python. Prints a table and, last, a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.blender import compat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "core"))
from tensors import read_safetensors

from lgm_blender.blender.scene import render, splats, stage
from lgm_blender.core.formats.ply import read_ply
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


def evaluation_seconds(made: bpy.types.Object, repeats: int, **display: str) -> float:
    """Seconds until the object's geometry is there again after a change, as it is displayed in the viewport."""
    splats.set_display(made, **display)

    def change() -> None:
        made.data.update_tag()
        bpy.context.view_layer.update()

    return median_seconds(change, repeats)


def read_picture(path: str | Path) -> np.ndarray:
    """[H, W, 3] display values, the top row first."""
    image = bpy.data.images.load(str(path))
    image.colorspace_settings.name = "Non-Color"
    pixels = np.array(image.pixels[:], np.float32).reshape(*tuple(image.size)[::-1], 4)[::-1, :, :3]
    bpy.data.images.remove(image)
    return pixels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(((a - b) ** 2).mean(), 1e-10)))


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall clock and of CPU that a function takes."""
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    function()
    return time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu


def measure(count: int, repeats: int) -> dict[str, float]:
    """What a user waits for when Gaussians come into a scene and change there."""
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
    splats.set_display(made, viewport_amount=1.0)
    row = {"gaussians": count, "first_add": first, "add": add}
    if compat.has_native_splats():
        row["native"] = evaluation_seconds(made, repeats, display="Native", viewport="Splats")
    for name in ("Splats", "Ellipsoids", "As Rendered"):
        row[name.lower()] = evaluation_seconds(made, repeats, display="Exact", viewport=name)
    splats.set_display(made, viewport="Splats", number=count // 2)
    row["half_of_them"] = evaluation_seconds(made, repeats)
    return row


def golden_rows(folder: str, eevee: bool) -> list[dict]:
    """Each display against gsplat's pictures of 3,000 Gaussians at 128²."""
    with tarfile.open(Path(__file__).parents[1] / "tests" / "golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    tensors = read_safetensors(next(Path(folder).rglob("gsplat_render.safetensors")))
    gaussians = Gaussians.from_array(tensors["gaussians"])
    rows = []

    def shot(name: str, take: Callable[[str, np.ndarray, float], None]) -> None:
        row = {"display": name}
        for view in (0, 2):
            pose = np.linalg.inv(tensors["viewmats"][view].astype(np.float64))
            pose[:3, 1:3] *= -1  # OpenCV's axes to OpenGL's
            fov_y = 2 * np.degrees(np.arctan(64 / tensors["Ks"][view][1, 1]))
            path = str(Path(folder, "golden.png"))
            wall, cpu = timed(lambda: take(path, pose, fov_y))  # noqa: B023 - called at once
            row[f"view_{view}"] = psnr(read_picture(path), tensors["rgb"][view // 2].astype(np.float32))
        rows.append(row | {"wall": wall, "cpu": cpu})

    def exact(engine: str, samples: int | None) -> Callable:
        return lambda path, pose, fov_y: render.render_objects(
            made, path, size=(128, 128), pose=pose, fov_y=fov_y, near=0.5, far=2.5, engine=engine, samples=samples
        )

    def native(samples: int, colors: str) -> Callable:
        def take(path: str, pose: np.ndarray, fov_y: float) -> None:
            splats.set_display(made, display="Native", colors=colors)
            scene = bpy.context.scene
            camera = render.camera_from_pose(pose, fov_y, near=0.5, far=2.5)
            scene.collection.objects.link(camera)
            scene.camera = camera
            scene.world = scene.world or bpy.data.worlds.new("World")
            background = next(n for n in compat.node_tree(scene.world).nodes if n.type == "BACKGROUND")
            background.inputs["Color"].default_value = (1, 1, 1, 1)
            stage.set_up_render(scene, (128, 128), samples, transparent=False)
            scene.cycles.use_denoising = samples < 64
            scene.view_settings.view_transform = "Raw" if colors == "Exact" else "Standard"
            scene.render.filepath = path
            bpy.ops.render.render(write_still=True)

        return take

    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    made = splats.add_splats(gaussians, "golden", stand=False)
    shot("exact, Cycles, 1 sample", exact("CYCLES", None))
    shot("exact, Cycles, 3 samples", exact("CYCLES", 3))
    if eevee:
        shot("exact, EEVEE, 64 samples", exact("EEVEE", None))
    if compat.has_native_splats():
        for samples in (16, 64):
            noise = ", denoised" if samples < 64 else ""
            shot(f"native, {samples} samples{noise}", native(samples, "Linear"))
            shot(f"native, exact colours, {samples} samples{noise}", native(samples, "Exact"))
    return rows


def picture_row(ply: Path, save: Path, against: Path | None) -> dict[str, float]:
    """What `render_objects` takes for the picture that a batch puts beside its results."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    gaussians = read_ply(ply)
    made = splats.add_splats(gaussians, "splats")
    wall, cpu = timed(lambda: render.render_objects(made, save))
    row = {"gaussians": len(gaussians), "wall": wall, "cpu": cpu}
    return row | ({"psnr": psnr(read_picture(save), read_picture(against))} if against else {})


def measure_bounces(bounces: list[int], count: int, size: int, folder: str) -> list[dict[str, float]]:
    """Time and noise of 8 samples for each setting, against 64 samples without any ray given up."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    made = splats.add_splats(surface(count), "splats")

    def shot(bounce: int, samples: int) -> tuple[np.ndarray, float, float]:
        splats.MIN_TRANSPARENT_BOUNCES = bounce
        path = Path(folder, "picture.png")
        seconds = timed(lambda: render.render_objects(made, path, size=(size, size), samples=samples))
        return read_picture(path), *seconds

    reference = shot(splats.MAX_TRANSPARENT_BOUNCES, 64)[0]
    rows = []
    for bounce in bounces:
        pixels, wall, cpu = shot(bounce, 8)
        row = {"min_transparent_bounces": bounce, "psnr": psnr(pixels, reference), "wall": wall, "cpu": cpu}
        rows.append(row)
    return rows


UNITS = {"gaussians": "", "min_transparent_bounces": "", "psnr": " dB", "view_0": " dB", "view_2": " dB"}


def cell(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if name in UNITS:
        return f"{value:,.1f}{UNITS[name]}" if isinstance(value, float) else f"{value:,}"
    return f"{value:.2f} s" if value > 1 else f"{1e3 * value:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[65536, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--golden", action="store_true", help="dB against gsplat's pictures")
    parser.add_argument("--eevee", action="store_true", help="with --golden, EEVEE's too")
    parser.add_argument("--picture", type=Path, metavar="PLY", help="time the picture of these Gaussians")
    parser.add_argument("--save", type=Path, default=Path("picture.png"), metavar="PNG")
    parser.add_argument("--against", type=Path, metavar="PNG", help="another Blender's picture of the same")
    parser.add_argument("--bounces", type=int, nargs="+", help="compare these")
    parser.add_argument("--size", type=int, default=256, help="with --bounces, of the picture (default: 256)")
    options = parser.parse_args()

    facts = {"blender": bpy.app.version_string, "cores": os.cpu_count(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory() as folder, _quiet() as out:
        if options.bounces:
            rows = measure_bounces(options.bounces, options.counts[0], options.size, folder)
        elif options.golden:
            rows = golden_rows(folder, options.eevee)
        elif options.picture:
            rows = [picture_row(options.picture, options.save.absolute(), options.against)]
        else:
            rows = [measure(count, options.repeats) for count in options.counts]
        print(f"Blender {facts['blender']}, {facts['cores']} cores", file=out)
        print(f"| {' | '.join(rows[0])} |\n|{' ---: |' * len(rows[0])}", file=out)
        for row in rows:
            print(f"| {' | '.join(cell(name, value) for name, value in row.items())} |", file=out)
        print(json.dumps({**facts, "rows": rows}), file=out)
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
