"""How good meshes of Gaussians are, and how long they take: `python benchmarks/mesh.py --data objects.zip`.

Three parts, each with a table, and everything as one line of JSON at the end:

- Objects of the split `val` (--objects N, evenly chosen), turned into 65,536 flat Gaussians on their surface with the
  texture's colours, meshed, and compared with the object and with the Gaussians.
- What the preset makes of four ground-truth views of such objects (--reconstructed N), compared with the Gaussians.
- Any Gaussians (--splats FILE ...), compared with themselves.

The columns:
  F, F vis, F.01  F-score: harmonic mean of precision (the share of 100,000 points on the mesh that are within 0.02 of
                  the object) and recall (of 100,000 on the object, within 0.02 of the mesh), in LGM's frame, where the
                  object's bounding box has a diagonal of 1.24. 'F': all of the object. 'F vis': recall of what can be
                  seen from outside only, for no splats tell what is inside a cupboard. 'F.01': that, within 0.01.
  Chamfer         The mean of both mean distances, of what can be seen, in thousandths.
  flipped         Of the mesh's pixels in 64 views, how many show the back of a face, in percent.
  closed, defects Whether no edge is open; and everything else topology.defects counts.
  quads, angle    With --quads: their share of the faces in percent, and how far their corners are from 90 degrees.
  PSNR            Of 12 views (256², on white) that no texture was made from, against the Gaussians' own; their mean.
  seconds         All of it, without writing files.

--methods fusion field poisson puts the ways to a surface side by side, --simplify ours meshlab two programs' edge
collapses. --timing N measures seconds only, and needs neither moderngl nor, with --splats alone, any data.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.core import cameras
from lgm_blender.core.color import linear_to_srgb
from lgm_blender.core.formats.gltf import decode_glb
from lgm_blender.core.formats.ply import read_ply
from lgm_blender.core.gaussians import Gaussians
from lgm_blender.core.messages import MESH_STAGES
from lgm_blender.training.data import mesh_renderer, objects
from lgm_blender.worker.devices import device_name, resolve_device
from lgm_blender.worker.jobs import Job
from lgm_blender.worker.lgm import load_lgm
from lgm_blender.worker.meshing import MeshSettings, TexturedMesh, mesh_from_gaussians, topology
from lgm_blender.worker.meshing.files import encode_files
from lgm_blender.worker.meshing.quads import corner_angles, quad_corners
from lgm_blender.worker.meshing.settings import Method
from lgm_blender.worker.meshing.topology import defects
from lgm_blender.worker.meshing.views import sphere_poses
from lgm_blender.worker.rendering import backend_for, render

ROOT = Path(__file__).parents[1]
GAUSSIANS = 65_536
POINTS = 100_000
SPREAD = 0.8  # a Gaussian's standard deviation, of the mean distance between them
SUPERSAMPLES = 4  # along each side of a pixel
SEEN = 0.006  # a point this near to the front surface in a view is seen
AROUND = sphere_poses(64)  # views that decide what can be seen, at 512²
# The 12 views that judge: all round, from below to above, none of them among those the texture comes from.
JUDGES = np.stack(
    [
        cameras.orbit_camera(elevation, 30 * i + 11)
        for i, elevation in enumerate((0, 20, -20, 40, 10, -30, 60, 0, 30, -10, 50, 20))
    ]
)


# Objects
# -------


def sample_surface(corners: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Points spread over triangles [3F, C] (xyz first) by area: values [N, C], triangles [N], the whole area."""
    triangles = corners.reshape(-1, 3, corners.shape[1]).astype(np.float64)
    edges = triangles[:, 1:, :3] - triangles[:, :1, :3]
    areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2
    face = rng.choice(len(triangles), count, p=areas / areas.sum())
    weights = rng.dirichlet((1, 1, 1), count)
    return (triangles[face] * weights[:, :, None]).sum(1), face, areas.sum()


def sample_object(mesh: objects.ObjectMesh, count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Points of an object that are not cut out: [N, 3], their normals, sRGB colours, and the area they stand for."""
    values, face, area = sample_surface(mesh.corners, 2 * count, rng)
    light, solid = values[:, 5:8], np.ones(len(face), bool)
    for part in mesh.parts:
        inside = (face * 3 >= part.first) & (face * 3 < part.first + part.count)
        if part.texture is not None and inside.any():
            height, width = part.texture.shape[:2]
            u, v = values[inside, 3:5].T % 1
            texels = part.texture[((1 - v) * height).astype(int).clip(0, height - 1), (u * width).astype(int)] / 255
            light[inside] *= objects.to_linear(texels)[:, :3]
            solid[inside] = texels[:, 3] >= part.cutoff
    chosen = np.flatnonzero(solid)[:count]
    edges = mesh.corners.reshape(-1, 3, 9)[face[chosen], :, :3].astype(np.float64)
    normals = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = light[chosen].clip(0, 1)
    colors = linear_to_srgb(light)
    return values[chosen, :3], normals, colors, area * solid.mean()


def flat_gaussians(mesh: objects.ObjectMesh) -> Gaussians:
    """An object's surface as flat Gaussians, the same at each call."""
    points, normals, colors, area = sample_object(mesh, GAUSSIANS, np.random.default_rng(0))
    sigma = SPREAD * (area / len(points)) ** 0.5
    # The turn from z to the normal.
    rotations = np.concatenate([1 + normals[:, 2:], np.cross([0, 0, 1], normals)], 1)
    rotations[rotations[:, 0] < 1e-6] = [0, 1, 0, 0]
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    scales = np.broadcast_to([sigma, sigma, sigma / 10], (len(points), 3))
    return Gaussians(points, np.full(len(points), 0.98), scales, rotations, colors)


# Pictures
# --------

_VERTEX = """
#version 330
uniform mat4 view_projection;
in vec3 position; in vec2 uv;
out vec3 world; out vec2 v_uv;
void main() { world = position; v_uv = uv; gl_Position = view_projection * vec4(position, 1.0); }
"""
_FRAGMENT = """
#version 330
uniform sampler2D image; uniform vec3 eye; uniform int mode;
in vec3 world; in vec2 v_uv;
out vec4 result;
void main() {
    if (mode == 0) { result = vec4(texture(image, v_uv).rgb, 1.0); return; }
    if (mode == 1) { result = vec4(distance(world, eye), gl_FrontFacing ? 1.0 : -1.0, 0.0, 1.0); return; }
    vec3 normal = normalize(cross(dFdx(world), dFdy(world)));
    float light = 0.25 + 0.75 * max(0.0, dot(normal, normalize(normalize(eye - world) + vec3(0.2, 0.4, 0.0))));
    result = gl_FrontFacing ? vec4(vec3(light), 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}
"""
TEXTURED, DISTANCE, SHADED = range(3)


class Rasterizer:
    """Renders triangles with moderngl: their texture without light, what is nearest, or their shape."""

    def __init__(self):
        import moderngl

        self.gl = moderngl.create_standalone_context(backend="egl")
        self.gl.enable(moderngl.DEPTH_TEST)
        self.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        self.program = self.gl.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)

    def render(self, corners: np.ndarray, poses: np.ndarray, size: int, mode: int, image=None) -> np.ndarray:
        """Pictures [V, size, size, 4] float32 of corners [3F, 5] (xyz, uv with v down) from poses [V, 4, 4]."""
        # Not every driver averages a pixel's samples.
        factor = 1 if mode == DISTANCE else SUPERSAMPLES
        wide = size * factor
        target = self.gl.framebuffer(
            [self.gl.renderbuffer((wide, wide), 4, dtype="f4")], self.gl.depth_renderbuffer((wide, wide))
        )
        image = np.zeros((1, 1, 3), np.uint8) if image is None else image
        texture = self.gl.texture(image.shape[1::-1], 3, np.ascontiguousarray(image).tobytes(), alignment=1)
        texture.build_mipmaps()
        texture.filter = self.filter
        texture.repeat_x = texture.repeat_y = False
        texture.use(0)
        buffer = self.gl.buffer(np.ascontiguousarray(corners, np.float32).tobytes())
        array = self.gl.vertex_array(self.program, [(buffer, "3f 2f", "position", "uv")])
        self.program["mode"].value = mode
        views = np.empty((len(poses), size, size, 4), np.float32)
        for i, pose in enumerate(poses.astype(np.float64)):
            target.use()
            target.clear(*((1, 1, 1, 1) if mode != DISTANCE else (0, 0, 0, 0)))
            matrix = mesh_renderer.projection(0.05, 4) @ np.linalg.inv(pose)
            self.program["view_projection"].write(np.ascontiguousarray(matrix.T, np.float32).tobytes())
            self.program["eye"].value = tuple(pose[:3, 3])
            array.render()
            flat = np.frombuffer(target.read(components=4, dtype="f4", alignment=1), np.float32)
            views[i] = flat.reshape(size, factor, size, factor, 4).mean((1, 3))[::-1]
        for resource in (array, buffer, texture, target):
            resource.release()
        return views


def corners_and_texture(glb: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Corners [3F, 5] (xyz, uv with v down) and the texture [S, S, 3] of a GLB: what others will see."""
    mesh = decode_glb(glb)
    uvs = mesh.corner_uvs * np.float32([1, -1]) + np.float32([0, 1])
    corners = np.concatenate([mesh.vertices[mesh.faces], uvs], 2).reshape(-1, 5)
    return corners, np.asarray(Image.open(io.BytesIO(mesh.texture)).convert("RGB"))


def splat_pictures(gaussians: Gaussians, poses: np.ndarray, size: int, device: str) -> np.ndarray:
    """Gaussians on white [V, size, size, 3]."""
    tensor = torch.from_numpy(gaussians.to_array()).to(device)
    matrices, pinhole = torch.from_numpy(cameras.view_matrices(poses)), torch.from_numpy(cameras.intrinsics(size))
    with torch.no_grad():
        parts = [render(tensor, part, pinhole, size).rgb for part in matrices.to(device).split(4)]
    return torch.cat(parts).clamp(0, 1).cpu().numpy()


# Scores
# ------


def geometry(mesh: TexturedMesh, ground_truth: objects.ObjectMesh, rasterizer: Rasterizer) -> dict[str, float]:
    """How near the mesh and the object are."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(1)
    target = sample_object(ground_truth, POINTS, rng)[0]
    points = sample_surface(mesh.vertices[mesh.faces].reshape(-1, 3), POINTS, rng)[0]

    flat = np.concatenate([ground_truth.corners[:, :3], np.zeros((len(ground_truth.corners), 2))], 1)
    nearest = rasterizer.render(flat, AROUND, 512, DISTANCE)[..., 0]
    seen = np.zeros(len(target), bool)
    pinhole = cameras.intrinsics(512)
    for matrix, picture in zip(cameras.view_matrices(AROUND), nearest, strict=True):
        camera = target @ matrix[:3, :3].T + matrix[:3, 3]
        pixel = (camera[:, :2] / camera[:, 2:] * pinhole[0, 0] + pinhole[0, 2]).astype(int).clip(0, 511)
        seen |= np.abs(picture[pixel[:, 1], pixel[:, 0]] - np.linalg.norm(camera, axis=1)) < SEEN

    there = cKDTree(target).query(points, workers=-1)[0]
    back = cKDTree(points).query(target, workers=-1)[0]

    def f_score(back: np.ndarray, limit: float) -> float:
        precision, recall = (there < limit).mean(), (back < limit).mean()
        return 2 * precision * recall / max(precision + recall, 1e-9)

    return {
        "f_score": f_score(back, 0.02),
        "f_score_visible": f_score(back[seen], 0.02),
        "f_score_visible_0.01": f_score(back[seen], 0.01),
        "visible": seen.mean(),
        "chamfer": (there.mean() + back[seen].mean()) / 2,
    }


def appearance(
    mesh: TexturedMesh, gaussians: Gaussians, rasterizer: Rasterizer, device: str
) -> tuple[dict, np.ndarray]:
    """How like its Gaussians the mesh looks; and a picture [H, W, 3] of both."""
    corners, texture = corners_and_texture(encode_files(mesh, "mesh", ("glb",))[".glb"])
    facing = rasterizer.render(corners, AROUND, 256, DISTANCE)[..., 1]
    rendered = splat_pictures(gaussians, JUDGES, 256, device)
    textured = rasterizer.render(corners, JUDGES, 256, TEXTURED, texture)[..., :3]
    errors = ((textured - rendered) ** 2).mean((1, 2, 3))
    psnr = -10 * np.log10(errors.clip(1e-6))  # 60 dB at most: some objects are white
    shaded = rasterizer.render(corners, JUDGES[[0, 3, 5, 6]], 256, SHADED)[..., :3]
    rows = [np.concatenate(list(row), 1) for row in (rendered[[0, 3, 5, 6]], shaded, textured[[0, 3, 5, 6]])]
    # Vertices at one place are one: what is pinched there would be so after a merge in Blender too.
    _, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    merged = torch.from_numpy(index.reshape(-1)[mesh.faces].astype(np.int64))
    first = np.zeros((index.max() + 1, 3), np.float32)
    first[index.reshape(-1)] = mesh.vertices
    found = defects(torch.from_numpy(first), merged)
    scores = {
        "psnr": float(psnr.mean()),
        "psnr_worst": float(psnr.min()),
        "flipped": (facing < 0).sum() / max((facing != 0).sum(), 1),
        "closed": found.pop("open_edges") == 0,
        "defects": sum(found.values()),
        "faces": mesh.polygons,
    }
    if mesh.quads:
        quads = torch.from_numpy(mesh.vertices)[quad_corners(torch.from_numpy(mesh.faces).long(), mesh.quads)]
        scores["quads"] = mesh.quads / mesh.polygons
        scores["angle"] = float((corner_angles(quads).rad2deg() - 90).abs().mean())
    return scores, (np.concatenate(rows, 0) * 255).round().astype(np.uint8)


def timing(gaussians: Gaussians, settings: MeshSettings, repeats: int) -> dict:
    """Medians of the seconds of each stage; what is compiled or loaded at first use is not counted."""
    mesh_from_gaussians(gaussians, settings)
    runs = [Job("mesh", MESH_STAGES) for _ in range(repeats)]
    meshes = [mesh_from_gaussians(gaussians, settings, run) for run in runs]
    began = time.perf_counter()
    encode_files(meshes[0], "mesh", ("glb",))
    stages = {stage: statistics.median(run.timings[stage] for run in runs) for stage in MESH_STAGES}
    return {
        "faces": meshes[0].polygons,
        "seconds": statistics.median(sum(run.timings.values()) for run in runs),
        "timings": stages | {"(glb)": time.perf_counter() - began},
    }


def meshlab_decimate(vertices, faces, target: int, on_step) -> tuple[torch.Tensor, torch.Tensor]:
    """`topology.decimate` by MeshLab."""
    from meshlab import by_meshlab

    how = {"targetfacenum": target, "preservetopology": True, "preservenormal": True}
    return by_meshlab(vertices, faces, "meshing_decimation_quadric_edge_collapse", how)[:2]


COLLAPSES = {"ours": topology.decimate, "meshlab": meshlab_decimate}

# Command line
# ------------

COLUMNS = {  # heading: key, factor, format
    "F": ("f_score", 1, "{:.3f}"),
    "F vis": ("f_score_visible", 1, "{:.3f}"),
    "F.01": ("f_score_visible_0.01", 1, "{:.3f}"),
    "Chamfer": ("chamfer", 1000, "{:.2f}"),
    "flipped": ("flipped", 100, "{:.3f}"),
    "closed": ("closed", 1, "{}"),
    "defects": ("defects", 1, "{:.0f}"),
    "faces": ("faces", 1, "{:.0f}"),
    "quads": ("quads", 100, "{:.1f}"),
    "angle": ("angle", 1, "{:.1f}"),
    "PSNR": ("psnr", 1, "{:.2f}"),
    "worst": ("psnr_worst", 1, "{:.2f}"),
    "seconds": ("seconds", 1, "{:.1f}"),
}


class Table:
    """Prints lines as they come, and their medians."""

    def __init__(self, title: str, settings: MeshSettings):
        self.lines: list[dict] = []
        self.title, self.settings = title, settings
        print(f"\n{title}\n{'':26}" + "".join(f"{heading:>9}" for heading in COLUMNS), flush=True)

    def add(self, name: str, line: dict) -> None:
        self.lines.append({"name": name, **{k: v.item() if hasattr(v, "item") else v for k, v in line.items()}})
        self._print(name, line)

    def finish(self) -> dict:
        keys = [key for key, _, _ in COLUMNS.values() if self.lines and key in self.lines[0]]
        median = {key: statistics.median(line[key] for line in self.lines) for key in keys if key != "closed"}
        if "closed" in self.lines[0]:
            median["closed"] = all(line["closed"] for line in self.lines)
        self._print("median", median)
        stages = {
            stage: statistics.median(line["timings"].get(stage, 0) for line in self.lines)
            for stage in dict.fromkeys(stage for line in self.lines for stage in line["timings"])
        }
        print("seconds, median: " + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages.items()))
        return {"title": self.title, "median": median, "stages": stages, "lines": self.lines}

    def _print(self, name: str, line: dict) -> None:
        cells = [
            form.format(line[key] * factor if factor != 1 else line[key]) if key in line else ""
            for key, factor, form in COLUMNS.values()
        ]
        print(f"{name[:25]:26}" + "".join(f"{cell:>9}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="objects.zip")
    parser.add_argument("--objects", type=int, default=30, help="how many of val become flat Gaussians (default: 30)")
    parser.add_argument(
        "--reconstructed", type=int, default=10, help="how many from four ground-truth views (default: 10)"
    )
    parser.add_argument("--preset", type=Path, default=ROOT / "lgm_blender/weights/mini", help="whose LGM does that")
    parser.add_argument("--splats", nargs="*", default=[], help="PLY files")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--faces", type=int, default=MeshSettings.faces)
    parser.add_argument("--texture-size", type=int, default=MeshSettings.texture_size)
    parser.add_argument("--sheets", type=Path, help="folder for pictures: splats, shape, textured mesh")
    parser.add_argument("--quads", action="store_true", help="meshes of quads")
    parser.add_argument("--remesh", action="store_true", help="even triangles, by pymeshlab")
    parser.add_argument("--methods", nargs="+", choices=get_args(Method), default=["fusion"])
    parser.add_argument("--simplify", nargs="+", choices=COLLAPSES, default=["ours"])
    parser.add_argument(
        "--timing", type=int, metavar="N", help="only measure seconds: medians of N runs after one more"
    )
    options = parser.parse_args()
    device = resolve_device(options.device)
    rasterizer, results = None if options.timing else Rasterizer(), []
    backend, reason = backend_for(device)
    print(
        f"{device_name(device)}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, {backend}: {reason}"
    )

    def judge(table: Table, name: str, gaussians: Gaussians, ground_truth: objects.ObjectMesh | None = None) -> None:
        if options.timing:
            table.add(name, timing(gaussians, table.settings, options.timing))
            return
        job = Job("mesh", MESH_STAGES)
        mesh = mesh_from_gaussians(gaussians, table.settings, job)
        shape = geometry(mesh, ground_truth, rasterizer) if ground_truth else {}
        scores, picture = appearance(mesh, gaussians, rasterizer, device)
        table.add(name, shape | scores | {"seconds": sum(job.timings.values()), "timings": job.timings})
        if options.sheets:
            options.sheets.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(options.sheets / f"{len(results)}_{name}.png")

    def chosen(count: int) -> list[str]:
        val = [entry["id"] for entry in objects.read_index(options.data) if entry["split"] == "val"]
        return [val[i] for i in np.linspace(0, len(val) - 1, min(count, len(val))).round().astype(int)]

    if options.data and options.reconstructed:
        names, poses = chosen(options.reconstructed), cameras.orbit_cameras()
        renderer = mesh_renderer.ViewRenderer(256, distance_size=0)
        with zipfile.ZipFile(options.data) as archive:
            pictures_of = {name: renderer.render(objects.read_mesh(archive, name), poses)[0] for name in names}
        rasterizer = rasterizer and Rasterizer()  # moderngl renders in the newest context
        model = load_lgm(options.preset / "lgm", torch.device(device))
    for method, simplify in itertools.product(options.methods, options.simplify):
        topology.decimate = COLLAPSES[simplify]
        how = method if simplify == "ours" else f"{method}, simplified by {simplify}"
        settings = replace(MeshSettings.of(options), device=device, method=method)
        if options.data and options.objects:
            table = Table(f"{options.objects} objects as {GAUSSIANS:,} flat Gaussians, {how}", settings)
            with zipfile.ZipFile(options.data) as archive:
                for name in chosen(options.objects):
                    ground_truth = objects.read_mesh(archive, name)
                    judge(table, name, flat_gaussians(ground_truth), ground_truth)
            results.append(table.finish())
        if options.data and options.reconstructed:
            title = f"{options.reconstructed} objects from four ground-truth views by {options.preset.name}, {how}"
            table = Table(title, settings)
            for name, pixels in pictures_of.items():
                pictures = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)[None].to(device)
                angles = torch.from_numpy(poses)[None].to(device)
                with torch.no_grad():
                    found = model(pictures[:, :, :3] + 1 - pictures[:, :, 3:], angles)[0]
                judge(table, name, Gaussians.from_array(found.cpu().numpy()).prune())
            results.append(table.finish())
        if options.splats:
            table = Table(f"files, {how}", settings)
            for file in options.splats:
                judge(table, Path(file).stem, read_ply(file))
            results.append(table.finish())
    settings = {
        "faces": options.faces,
        "quads": options.quads,
        "remesh": options.remesh,
        "texture_size": options.texture_size,
        "device": device_name(device),
    }
    print(json.dumps({"benchmark": "mesh", **settings, "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
