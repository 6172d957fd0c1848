"""Gaussians to a textured mesh: pictures from all round, a field, its surface, fewer faces, a UV map, a texture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from ...core.errors import Cancelled, LGMError
from ...core.gaussians import Gaussians, multiply_quaternions

Up = Literal["y", "-y", "z", "-z", "x", "-x"]
Method = Literal["fusion", "field"]

STAGES = ("draw", "fuse", "simplify", "refine", "unwrap", "bake")
STAGE_LABELS = {
    "draw": "Drawing the Gaussians from all round",
    "fuse": "Finding the surface",
    "simplify": "Simplifying the mesh",
    "refine": "Fitting its outlines",
    "unwrap": "Unwrapping it",
    "bake": "Painting the texture",
}

FACES = (100, 1_000_000)  # fewest and most
TEXTURE_SIZES = (512, 1024, 2048, 4096)
FEWEST_GAUSSIANS = 16
MIN_OPACITY = 0.005  # less is not seen
FAINT = 0.05  # less does not count for where the object is
OUTLIERS = 5e-4  # of the Gaussians' area on each side of each axis does not count either

# How many views, their size in pixels, and the field's resolution.
EFFORT = {"cpu": (32, 320, 192), "cuda": (64, 512, 256)}
# For depth, each Gaussian as so many on top of each other: what is seen then is the first surface, not the mean of it
# and what shines through.
LAYERS = 3
HIDDEN = 0.5  # more than this share of the Gaussians deep inside, and the scene is a room

# Rows: LGM's x, y and z (y up) in terms of the file's axes, and the same turn as a quaternion (w, x, y, z).
_HALF = 0.5**0.5
_TURNS: dict[str, tuple[float, float, float, float]] = {
    "y": (1, 0, 0, 0),
    "-y": (0, 1, 0, 0),
    "z": (_HALF, -_HALF, 0, 0),
    "-z": (_HALF, _HALF, 0, 0),
    "x": (_HALF, 0, 0, _HALF),
    "-x": (_HALF, 0, 0, -_HALF),
}


@dataclass(frozen=True)
class MeshSettings:
    """How a mesh is made.

    Attributes:
        faces: How many triangles it has at most, 100 to 1,000,000; a quad is two.
        texture_size: Width and height of the texture: 512, 1024, 2048 or 4096.
        up: Which of the Gaussians' axes points up. LGM's is y; most 3DGS files of other programs have -y.
        device: 'auto', 'cpu' or 'cuda'.
        method: How the surface is found: 'fusion' of depths into a distance field, or a 'field' of density (a NeRF)
            fitted to the views, as in LGM's paper, which takes minutes on a CPU.
        quads: Whether triangles are joined to quads where they can be.
    """

    faces: int = 20_000
    texture_size: int = 2048
    up: Up = "y"
    device: str = "auto"
    method: Method = "fusion"
    quads: bool = False

    def check(self) -> None:
        """That every value is one that can be used.

        Raises:
            LGMError: If one is not.
        """
        low, high = FACES
        if not low <= self.faces <= high:
            raise LGMError(f"The number of faces must be from {low} to {high:,}, not {self.faces:,}.")
        if self.texture_size not in TEXTURE_SIZES:
            sizes = ", ".join(map(str, TEXTURE_SIZES[:-1]))
            raise LGMError(f"The texture's size must be {sizes} or {TEXTURE_SIZES[-1]}, not {self.texture_size}.")
        if self.method not in get_args(Method):
            raise LGMError(f"There is no method '{self.method}'. Choose one of {', '.join(get_args(Method))}.")
        if self.up not in get_args(Up):
            raise LGMError(f"There is no axis '{self.up}'. Choose one of {', '.join(get_args(Up))}.")


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
        timings: Seconds of each stage.
        warnings: Sentences for the user.
        quads: The first 2 * quads faces are, two by two, the halves (a, b, c) and (a, c, d) of as many quads.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corner_uvs: np.ndarray
    corner_normals: np.ndarray
    vertex_colors: np.ndarray
    texture: np.ndarray
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    quads: int = 0

    @property
    def polygons(self) -> int:
        """How many quads and triangles there are."""
        return len(self.faces) - self.quads


def mesh_from_gaussians(
    gaussians: Gaussians,
    settings: MeshSettings | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, step, steps: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> TexturedMesh:
    """The mesh of an object that looks like its Gaussians.

    Args:
        gaussians: In any scale and place, of an object seen from outside.
        settings: By default MeshSettings().
        progress: Called with the stage (one of STAGES), a step of it, and how many steps it has or 0.
        cancelled: Asked as often.

    Raises:
        Cancelled: If `cancelled` says so.
        LGMError: With a sentence for the user, if the settings or the Gaussians are not ones to make a mesh of.
    """
    settings = settings or MeshSettings()
    settings.check()
    warnings: list[str] = []
    gaussians, center, scale = _normalized(_upright(_usable(gaussians, warnings), settings.up), warnings)

    import torch

    from ..devices import resolve_device
    from .atlas import unwrap
    from .density import fit_field
    from .fusion import fuse, surface
    from .quads import join_normals, make_quads, pair_triangles
    from .refine import fit_outlines
    from .texture import bake
    from .topology import corner_normals, decimate
    from .views import draw_views, sphere_poses

    device = resolve_device(settings.device)
    stages = _Stages(device, progress, cancelled)
    count, size, resolution = EFFORT[device]
    tensor = torch.from_numpy(gaussians.to_array()).to(device)

    with stages("draw") as on_step:
        poses = sphere_poses(count)
        views = draw_views(tensor, poses, size, lambda step, steps: on_step(step, 2 * steps))
        tensor[:, 3] = 1 - (1 - tensor[:, 3]) ** LAYERS
        firm = draw_views(tensor, poses, size, lambda step, steps: on_step(steps + step, 2 * steps))
        views.depth = firm.depth
        del firm
    with stages("fuse") as on_step:
        implicit = (fuse if settings.method == "fusion" else fit_field)(views, resolution, on_step)
        if implicit.buried(tensor[:, :3], tensor[:, 3]) > HIDDEN:
            warnings.append(
                "Most Gaussians lie where they can't be seen from outside, as in a room: the mesh is of what can be."
            )
        vertices, faces = surface(implicit)
        del implicit
    with stages("simplify") as on_step:
        if len(faces) < settings.faces:
            warnings.append(f"The mesh has {len(faces):,} faces: there is no detail for {settings.faces:,}.")
        vertices, faces = decimate(vertices, faces, settings.faces, on_step)
        if len(faces) > settings.faces:
            warnings.append(f"The mesh has {len(faces):,} faces: fewer would tear it.")
        quads = 0
        if settings.quads:
            vertices, faces = make_quads(vertices, faces, on_step)
    with stages("refine") as on_step:
        vertices = fit_outlines(vertices, faces, views, on_step)
        normals = corner_normals(vertices, faces)
    with stages("unwrap") as on_step:
        corner_uvs = unwrap(vertices, faces, settings.texture_size, on_step)
        if settings.quads:  # once more, as the seams are known by now
            order, quads = pair_triangles(vertices, faces, corner_uvs)
            faces, corner_uvs = faces.flatten()[order], corner_uvs.flatten(0, 1)[order]
            normals = join_normals(normals.flatten(0, 1)[order], quads)
    with stages("bake") as on_step:
        texture, colors = bake(vertices, faces, corner_uvs, views, settings.texture_size, on_step)

    return TexturedMesh(
        (vertices.cpu().numpy() / scale + center).astype(np.float32),
        faces.cpu().numpy().astype(np.int32),
        corner_uvs.cpu().numpy(),
        normals.cpu().numpy(),
        *((t.clamp(0, 1) * 255).round().byte().cpu().numpy() for t in (colors, texture)),
        stages.timings,
        warnings,
        quads,
    )


class _Stages:
    """Tells how far the work is, asks whether it goes on, and keeps the time each stage took."""

    def __init__(self, device: str, progress: Callable[[str, int, int], None], cancelled: Callable[[], bool]):
        self.device, self.progress, self.cancelled = device, progress, cancelled
        self.timings: dict[str, float] = {}

    def __call__(self, stage: str) -> _Stages:
        self.stage = stage
        return self

    def __enter__(self) -> Callable[[int, int], None]:
        self.began = time.perf_counter()
        self.told = None
        self.on_step(0, 0)
        return self.on_step

    def __exit__(self, kind, *_) -> None:
        if kind is None and self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.timings[self.stage] = round(time.perf_counter() - self.began, 3)

    def on_step(self, step: int, steps: int) -> None:
        if self.cancelled():
            raise Cancelled
        if self.told != (step, steps):
            self.told = (step, steps)
            self.progress(self.stage, step, steps)


def _usable(gaussians: Gaussians, warnings: list[str]) -> Gaussians:
    """The Gaussians that can be seen."""
    finite = gaussians.finite()
    if not finite.all():
        number = len(finite) - int(finite.sum())
        warnings.append(f"{number:,} Gaussians were left out: their values are not finite.")
        gaussians = gaussians.select(finite)
    gaussians = gaussians.prune(MIN_OPACITY)
    if not len(gaussians):
        raise LGMError("There is nothing to make a mesh of: no Gaussian is visible.")
    if len(gaussians) < FEWEST_GAUSSIANS:
        number = "only one Gaussian is" if len(gaussians) == 1 else f"only {len(gaussians)} Gaussians are"
        raise LGMError(f"There is too little to make a mesh of: {number} visible, and {FEWEST_GAUSSIANS} are needed.")
    return gaussians


def _upright(gaussians: Gaussians, up: Up) -> Gaussians:
    """Turned so that the axis `up` becomes y."""
    turn = np.array(_TURNS[up], np.float32)
    return Gaussians(
        rotate(gaussians.positions, turn),
        gaussians.opacities,
        gaussians.scales,
        multiply_quaternions(turn, gaussians.rotations),
        gaussians.colors,
    )


def rotate(points: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Points [N, 3] turned by a unit quaternion (w, x, y, z)."""
    w, v = quaternion[0], np.asarray(quaternion[1:], np.float32)
    cross = np.cross(v, points)
    return (points + 2 * w * cross + 2 * np.cross(v, cross)).astype(np.float32)


def _normalized(gaussians: Gaussians, warnings: list[str]) -> tuple[Gaussians, np.ndarray, float]:
    """Moved and scaled into the sphere that the cameras see; and what was their centre, and the factor.

    Specks far away from everything else would leave the rest too small to be seen, so they don't count.
    """
    from .views import FRAME_RADIUS

    solid = gaussians.opacities >= min(FAINT, float(gaussians.opacities.max()))
    positions = gaussians.positions[solid].astype(np.float64)
    reach = gaussians.scales[solid].astype(np.float64)
    weights = gaussians.opacities[solid] * np.sort(reach, 1)[:, 1:].prod(1) + 1e-30
    reach = 2 * reach.max(1)
    low, high = np.empty(3), np.empty(3)
    for axis in range(3):
        for ends, side, best in ((positions[:, axis] - reach, low, 1), (positions[:, axis] + reach, high, -1)):
            order = np.argsort(best * ends)
            share = np.cumsum(weights[order]) / weights.sum()
            side[axis] = ends[order[np.searchsorted(share, OUTLIERS)]]
    center = (low + high) / 2
    inside = (np.abs(positions - center) <= (high - low) / 2 + 1e-9).all(1)
    radius = float((np.linalg.norm(positions - center, axis=1) + reach)[inside].max(initial=0))
    radius = min(radius, float(np.linalg.norm(high - low)) / 2) or 1.0
    if not np.isfinite(radius) or radius > 1e12 or radius < 1e-12:
        raise LGMError(f"The Gaussians can't be made a mesh of: their size is {2 * radius:.3g} units.")
    scale = FRAME_RADIUS / radius
    moved = (gaussians.positions - center) * scale
    near = np.linalg.norm(moved, axis=1) < 1.3 * FRAME_RADIUS
    if not near.all():
        number = len(near) - int(near.sum())
        warnings.append(f"{number:,} Gaussians were left out: they lie far away from the object.")
    moved = Gaussians(moved, gaussians.opacities, gaussians.scales * scale, gaussians.rotations, gaussians.colors)
    return moved.select(near), center, scale
