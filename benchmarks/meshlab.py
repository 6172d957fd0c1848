"""Our edge collapses and quads against MeshLab's: `python benchmarks/meshlab.py --splats FILE ... [--faces N]`.

Of Gaussians in files the fused surface is made once. From it each program makes N triangles, and of our triangles each
makes quads. The columns:
  CPU s     Seconds of CPU time in one thread, the way into and out of pymeshlab counted in.
  defects   All that topology.defects counts.
  away      How far 100,000 points of the surface before and of the one after are from the other surface on average,
            in hundred-thousandths of a scene unit: an object's bounding box has a diagonal of some 1.2.
  evenness  Of the triangles, on average: 1 is equilateral.
  quads     Their share of the polygons in percent, and how far their corners are from 90 degrees.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymeshlab
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.core.formats.ply import read_ply
from lgm_blender.worker.meshing import EFFORT
from lgm_blender.worker.meshing.framing import framed
from lgm_blender.worker.meshing.fusion import fuse, surface
from lgm_blender.worker.meshing.quads import corner_angles, make_quads, pair_triangles, quad_corners
from lgm_blender.worker.meshing.topology import decimate, defects, evenness
from lgm_blender.worker.meshing.views import render_all_round

POINTS = 100_000
COLLAPSES = {  # name: what meshing_decimation_quadric_edge_collapse is told
    "preserving topology": {"preservetopology": True},
    "and normals": {"preservetopology": True, "preservenormal": True},
    "and flat parts": {"preservetopology": True, "preservenormal": True, "planarquadric": True},
    "nothing preserved": {},
}
PAIRINGS = {
    "smart pairing": ("meshing_tri_to_quad_by_smart_triangle_pairing", {}),
    "dominant, best shape": ("meshing_tri_to_quad_dominant", {"level": "Better quad shape"}),
}


def by_meshlab(vertices: Tensor, faces: Tensor, name: str, options: dict) -> tuple[Tensor, Tensor, list]:
    """Vertices, triangles, and polygons as lists."""
    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(vertices.double().numpy(), faces.int().numpy()))
    getattr(meshes, name)(**options)
    mesh = meshes.current_mesh()  # part of `meshes`, and gone with it
    vertices, faces = mesh.vertex_matrix().astype(np.float32), mesh.face_matrix().astype(np.int64)
    return torch.from_numpy(vertices), torch.from_numpy(faces), mesh.polygonal_face_list()


def timed(work: Callable) -> tuple:
    began = time.process_time()
    return work(), time.process_time() - began


def away(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> str:
    """How far points of each mesh are from the other on average, in hundred-thousandths."""
    meshes = pymeshlab.MeshSet()
    for vertices, faces in (one, other):
        meshes.add_mesh(pymeshlab.Mesh(vertices.double().numpy(), faces.int().numpy()))
    ways = [
        meshes.get_hausdorff_distance(sampledmesh=a, targetmesh=b, samplenum=POINTS, sampleface=True)["mean"]
        for a, b in ((0, 1), (1, 0))
    ]
    return f"{1e5 * sum(ways) / 2:.1f}"


def row(name: str, seconds: float, vertices: Tensor, faces: Tensor, *more: str) -> None:
    cells = [f"{seconds:.2f}", f"{len(faces):,}", str(sum(defects(vertices, faces).values())), *more]
    print(f"  {name:30}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splats", nargs="+", required=True, help="PLY files")
    parser.add_argument("--faces", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, size, resolution = EFFORT["cpu"]
    for file in options.splats:
        gaussians, _, _ = framed(read_ply(file), "y", [])
        views = render_all_round(torch.from_numpy(gaussians.to_array()), count, size)
        whole = surface(fuse(views, resolution))

        print(f"\n{Path(file).stem}: {len(whole[1]):,} faces to {options.faces:,}")
        print(f"  {'':30}" + "".join(f"{head:>10}" for head in ("CPU s", "faces", "defects", "away", "evenness")))
        ours, seconds = timed(lambda: decimate(*whole, options.faces))  # noqa: B023 - called at once
        row("ours", seconds, *ours, away(whole, ours), f"{evenness(*ours).mean():.3f}")
        for name, how in COLLAPSES.items():
            how = {"targetfacenum": options.faces, **how}
            (*mesh, _), seconds = timed(
                lambda: by_meshlab(*whole, "meshing_decimation_quadric_edge_collapse", how)  # noqa: B023
            )
            row(f"MeshLab, {name}", seconds, *mesh, away(whole, mesh), f"{evenness(*mesh).mean():.3f}")

        print(f"  {'':30}" + "".join(f"{head:>10}" for head in ("CPU s", "triangles", "defects", "quads", "angle")))

        def joined() -> tuple[Tensor, Tensor, int]:
            vertices, faces = make_quads(*ours)  # noqa: B023
            order, quads = pair_triangles(vertices, faces)
            return vertices, faces.flatten()[order], quads

        (vertices, faces, quads), seconds = timed(joined)
        angles = (corner_angles(vertices[quad_corners(faces, quads)]).rad2deg() - 90).abs().mean()
        row("ours", seconds, vertices, faces, f"{100 * quads / (len(faces) - quads):.1f}", f"{angles:.1f}")
        for name, (command, how) in PAIRINGS.items():
            (vertices, faces, polygons), seconds = timed(lambda: by_meshlab(*ours, command, how))  # noqa: B023
            corners = torch.from_numpy(np.array([polygon for polygon in polygons if len(polygon) == 4]))
            angles = (corner_angles(vertices[corners.long()]).rad2deg() - 90).abs().mean()
            share = f"{100 * len(corners) / len(polygons):.1f}"
            row(f"MeshLab, {name}", seconds, vertices, faces, share, f"{angles:.1f}")


if __name__ == "__main__":
    main()
