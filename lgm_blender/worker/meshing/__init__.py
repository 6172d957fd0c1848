"""Gaussians to a textured mesh: pictures from all round, a field, its surface, fewer faces, a UV map, a texture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.gaussians import Gaussians
from ...core.messages import MESH_STAGES
from ..jobs import Job
from .settings import MeshSettings

__all__ = ["EFFORT", "MeshSettings", "TexturedMesh", "mesh_from_gaussians"]

# How many views, their size in pixels, and the field's resolution.
EFFORT = {"cpu": (32, 320, 192), "cuda": (64, 512, 256)}
PARTS, MAIN = 5, 0.6  # so many parts, none of them with that share of the surface, are no object
HIDDEN = 0.5  # more than this share of the Gaussians deep inside, and the scene is a room


@dataclass(frozen=True)
class TexturedMesh:
    """A closed mesh of triangles, y up, its front towards +z, in the Gaussians' own scale.

    Attributes:
        vertices: [V, 3] float32.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        corner_uvs: [F, 3, 2] float32, 0 to 1, v up.
        corner_normals: [F, 3, 3] float32, unit length: smooth, but not across sharp edges.
        vertex_colors: [V, 3] uint8, sRGB.
        texture: [S, S, 3] uint8, sRGB, the first row at v = 1.
        quads: The first 2 * quads faces are, two by two, the halves (a, b, c) and (a, c, d) of as many quads.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corner_uvs: np.ndarray
    corner_normals: np.ndarray
    vertex_colors: np.ndarray
    texture: np.ndarray
    quads: int = 0

    @property
    def polygons(self) -> int:
        """How many quads and triangles there are."""
        return len(self.faces) - self.quads


def mesh_from_gaussians(
    gaussians: Gaussians, settings: MeshSettings | None = None, job: Job | None = None
) -> TexturedMesh:
    """The mesh of an object that looks like its Gaussians.

    Args:
        gaussians: In any scale and place, of an object seen from outside.
        settings: By default MeshSettings().
        job: Gets the stages MESH_STAGES, and the warnings; by default one that nobody hears of.

    Raises:
        Cancelled: If the job should not go on.
        LGMError: With a sentence for the user, if the settings or the Gaussians are not ones to make a mesh of.
    """
    # Here and not above, so that the package can be imported without torch, and quickly.
    import torch

    from ..devices import device_of, resolve_device
    from .atlas import unwrap
    from .density import fit_field
    from .framing import framed
    from .fusion import buried, fuse, surface
    from .meshlab import remesh, require
    from .poisson import poisson_surface
    from .quads import join_normals, make_quads, pair_triangles
    from .refine import fit_outlines
    from .texture import bake
    from .topology import corner_normals, decimate, part_areas
    from .views import render_all_round

    settings = settings or MeshSettings()
    settings.check()
    job = job or Job("mesh", MESH_STAGES)
    warnings, on_step = job.warnings, job.step
    if settings.method == "poisson" or settings.remesh:
        require()
    device = resolve_device(settings.device)
    count, size, resolution = EFFORT[device_of(device).sizes]
    gaussians, center, scale = framed(gaussians, settings.up, warnings)
    tensor = torch.from_numpy(gaussians.to_array()).to(device)

    with job.stage("render"):
        views = render_all_round(tensor, count, size, on_step)
    with job.stage("fuse"):
        if settings.method == "poisson":
            vertices, faces = poisson_surface(views, on_step)
        else:
            find = fuse if settings.method == "fusion" else fit_field
            vertices, faces = surface(find(views, resolution, on_step))
        if buried(views, tensor) > HIDDEN:
            warnings.append(
                "Most Gaussians lie where they can't be seen from outside, as in a room: the mesh is of what can be."
            )
        areas, _ = part_areas(vertices, faces)
        if len(areas) >= PARTS and areas.max() < MAIN * areas.sum():
            warnings.append(
                f"The mesh came out in {len(areas)} separate parts, the largest with "
                f"{areas.max() / areas.sum():.0%} of the surface: this looks like a scene, not an object. Crop the "
                "splats to one object first."
            )
    with job.stage("simplify"):
        if len(faces) < settings.faces:
            warnings.append(f"The mesh has {len(faces):,} faces: there is no detail for {settings.faces:,}.")
        if settings.remesh:  # from four times as many: from afar it would not get there in its few rounds
            vertices, faces = decimate(vertices, faces, 4 * settings.faces, on_step)
            vertices, faces = remesh(vertices, faces, settings.faces, on_step)
        vertices, faces = decimate(vertices, faces, settings.faces, on_step)
        if len(faces) > settings.faces:
            warnings.append(f"The mesh has {len(faces):,} faces: fewer would tear it.")
        if settings.quads:
            vertices, faces = make_quads(vertices, faces, on_step)
    with job.stage("refine"):
        vertices = fit_outlines(vertices, faces, views, on_step)
        normals = corner_normals(vertices, faces)
    with job.stage("unwrap"):
        corner_uvs, quads = unwrap(vertices, faces, settings.texture_size, on_step), 0
        if settings.quads:  # once more, as the seams are known by now
            order, quads = pair_triangles(vertices, faces, corner_uvs)
            faces, corner_uvs = faces.flatten()[order], corner_uvs.flatten(0, 1)[order]
            normals = join_normals(normals.flatten(0, 1)[order], quads)
    with job.stage("bake"):
        texture, colors = bake(vertices, faces, corner_uvs, views, settings.texture_size, on_step)

    return TexturedMesh(
        (vertices.cpu().numpy() / scale + center).astype(np.float32),
        faces.cpu().numpy().astype(np.int32),
        corner_uvs.cpu().numpy(),
        normals.cpu().numpy(),
        *((t.clamp(0, 1) * 255).round().byte().cpu().numpy() for t in (colors, texture)),
        quads,
    )
