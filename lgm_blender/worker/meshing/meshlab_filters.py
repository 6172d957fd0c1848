"""MeshLab's filters by pymeshlab: `python meshlab_filters.py NAME IN.npz OUT.npz`, as meshlab.py starts it."""

from __future__ import annotations

import sys

import numpy as np
import pymeshlab

SHARP = 45.0  # degrees: edges between faces that lean further apart stay, as they do in shading
ITERATIONS = 6  # of remeshing: splits, collapses, flips, smoothing
POINTS_PER_NODE = 3.0  # more than 1.5, the default: points of many views don't agree to the last digit


def remesh(vertices: np.ndarray, faces: np.ndarray, length: np.ndarray) -> pymeshlab.MeshSet:
    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(vertices, faces))
    meshes.meshing_isotropic_explicit_remeshing(
        iterations=ITERATIONS,
        featuredeg=SHARP,
        targetlen=pymeshlab.PureValue(float(length)),
        checksurfdist=False,
    )
    return meshes


def poisson(points: np.ndarray, normals: np.ndarray, depth: np.ndarray) -> pymeshlab.MeshSet:
    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(points, v_normals_matrix=normals))
    meshes.generate_surface_reconstruction_screened_poisson(depth=int(depth), samplespernode=POINTS_PER_NODE)
    return meshes


def repair(meshes: pymeshlab.MeshSet) -> None:
    """What makes a closed, oriented manifold of nearly every mesh."""
    meshes.meshing_remove_duplicate_vertices()
    meshes.meshing_remove_duplicate_faces()
    meshes.meshing_remove_null_faces()
    meshes.meshing_repair_non_manifold_edges(method="Remove Faces")
    meshes.meshing_repair_non_manifold_vertices(vertdispratio=0.0)
    meshes.meshing_close_holes(maxholesize=meshes.current_mesh().face_number(), selfintersection=False)
    meshes.meshing_re_orient_faces_coherently()
    meshes.meshing_remove_unreferenced_vertices()


if __name__ == "__main__":
    name, source, target = sys.argv[1:]
    with np.load(source) as arrays:
        meshes = {"remesh": remesh, "poisson": poisson}[name](**arrays)
    repair(meshes)
    mesh = meshes.current_mesh()  # part of `meshes`, and gone with it
    np.savez(target, vertices=mesh.vertex_matrix(), faces=mesh.face_matrix())
