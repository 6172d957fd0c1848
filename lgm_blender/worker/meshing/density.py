"""The paper's way to a surface: a small NeRF fitted to the renders of the Gaussians, its density the field.

LGM (Tang et al., 2024, section 3.4) with what Instant NGP (Müller et al., 2022) and nerf2mesh (Tang et al., 2023) say
of it: features from hash grids of several resolutions, a small network that makes density and colour of them, an
occupancy grid that skips what is empty, a few hundred steps on random rays. All in plain torch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import device_of
from ..jobs import OnStep, silent
from .fusion import DEEP, REACH, Field, bounds, distances, grid_points, outlines, smooth, tables
from .views import FRAME_RADIUS, RenderedViews, sample

FEATURES = 2  # of a corner of a grid
STEPS = 512
RAYS = {"cpu": 1024, "cuda": 8192}  # in one step
SAMPLES = 160  # on a ray
SIZE = 256  # of the pictures, at most
OCCUPANCY = 64  # cells a side
REFRESH = 32  # steps between looking which cells are empty
EMPTY = 1.0  # density, below which a cell is
SURFACE = 10.0  # density at the surface, nerf2mesh's: what is soft counts too, outlines are fitted later
HALF_EXTENT = 1.05 * FRAME_RADIUS
LEARNING_RATES = 1e-2, 1e-3  # Adam's, in the beginning and in the end
POINTS_AT_ONCE = {"cpu": 2**16, "cuda": 2**19}


class DensityField(nn.Module):
    """Density and colour of points in the cube of HALF_EXTENT."""

    def __init__(self, levels: int = 6, table: int = 2**17, coarsest: int = 16, finest: int = 128):
        super().__init__()
        growth = (finest / coarsest) ** (1 / (levels - 1))
        self.register_buffer("resolutions", torch.tensor([int(coarsest * growth**i) for i in range(levels)]))
        self.register_buffer("corners", torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]))
        self.register_buffer("primes", torch.tensor([1, 2654435761, 805459861]))
        self.size = table
        self.table = nn.Parameter(torch.empty(levels * table, FEATURES).uniform_(-1e-4, 1e-4))
        self.network = nn.Sequential(nn.Linear(levels * FEATURES, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the density [N] and the colour [N, 3] at points [N, 3]."""
        place = (points / (2 * HALF_EXTENT) + 0.5).clamp(0, 1)[:, None] * (self.resolutions[:, None] - 1)  # [N, L, 3]
        low = place.floor()
        share = (place - low)[:, :, None]
        weights = torch.where(self.corners == 1, share, 1 - share).prod(-1)  # [N, L, 8]
        x, y, z = (low.long()[:, :, None] + self.corners).unbind(-1)
        n = self.resolutions[:, None]
        dense = (x * n + y) * n + z
        hashed = x ^ y * self.primes[1] ^ z * self.primes[2]
        index = torch.where(n**3 <= self.size, dense, hashed) % self.size
        index += torch.arange(len(n), device=n.device)[:, None] * self.size
        values = self.table.index_select(0, index.flatten()).view(*index.shape, FEATURES)
        out = self.network((values * weights[..., None]).sum(2).flatten(1))
        return out[:, 0].clamp(max=10), out[:, 1:].sigmoid()


def fit_field(views: RenderedViews, resolution: int, on_step: OnStep = silent) -> Field:
    """The field whose surface is where the density of a NeRF fitted to the views is SURFACE.

    Args:
        views: At least a dozen. Their `depth`, that of the first surface, only says what lies too deep to be
            seen, where nothing teaches a NeRF anything.
        resolution: Samples of the field along the longest side.

    Raises:
        LGMError: If no view shows anything solid.
    """
    device = views.alpha.device
    origin, step, shape = bounds(views, resolution)
    generators = [torch.cuda.current_device()] if device_of(device).name == "cuda" else []
    with torch.random.fork_rng(generators), torch.enable_grad():
        torch.manual_seed(0)
        model = DensityField().to(device)
        occupied, buried = _fit(model, views, on_step)
    wanted, pixels = outlines(views)[:, :1], tables(views)
    points = grid_points(shape, device)
    values = torch.ones(len(points), device=device)
    with torch.no_grad():
        for part in torch.arange(len(points), device=device).split(POINTS_AT_ONCE[device_of(device).sizes]):
            on_step(STEPS, STEPS)
            where = origin + points[part] * step
            cell = _cell(where)
            values[part[buried[cell]]] = -1
            inside = occupied[cell].nonzero()[:, 0]
            where, part = where[inside], part[inside]
            values[part] = ((math.log(SURFACE) - model(where)[0]) / 4).clamp(-1, 1)
            for v in range(len(views)):  # what any view looks past is outside
                place, _ = views.project(v, where)
                values[part] = values[part].maximum(sample(wanted[v], place)[:, 0] / REACH)
            values[part[distances(views, pixels, where) <= DEEP]] = -1
    return Field(smooth(smooth(values.view(shape))), origin, step)  # the hash's noise is of a few samples' size


def _fit(model: DensityField, views: RenderedViews, on_step: OnStep) -> tuple[Tensor, Tensor]:
    """Trains it, and says which cells [OCCUPANCY³] may hold something, and which lie too deep for any ray to end in."""
    device = views.alpha.device
    origins, directions, pixels = _rays(views)
    cells = grid_points((OCCUPANCY,) * 3, device)
    centers = ((cells + 0.5) / OCCUPANCY * 2 - 1) * HALF_EXTENT
    deep = distances(views, tables(views), centers) <= DEEP
    buried = ~(F.max_pool3d((~deep).view(1, OCCUPANCY, OCCUPANCY, OCCUPANCY).float(), 3, 1, 1).flatten() > 0)
    hull = _hull(views, centers) & ~buried
    occupied = hull
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATES[0], betas=(0.9, 0.99), eps=1e-15)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (LEARNING_RATES[1] / LEARNING_RATES[0]) ** (1 / STEPS))
    # Rays that pass the hull by are empty as it is.
    nearest, span = 1.5 - HALF_EXTENT, 2 * HALF_EXTENT
    middle = (torch.arange(SAMPLES, device=device) + 0.5) / SAMPLES * span + nearest
    hits = [
        occupied[_cell(o[:, None] + d[:, None] * middle[::2, None])].any(1)
        for o, d in zip(origins.split(2**16), directions.split(2**16), strict=True)
    ]
    origins, directions, pixels = (t[torch.cat(hits)] for t in (origins, directions, pixels))
    for step in range(STEPS):
        on_step(step, STEPS)
        if step >= 2 * REFRESH and step % REFRESH == 0:
            with torch.no_grad():
                jitter = (torch.rand_like(centers) - 0.5) * (2 * HALF_EXTENT / OCCUPANCY)
                filled = hull.clone()
                inside = hull.nonzero()[:, 0]
                density = [model(part)[0] for part in (centers + jitter)[inside].split(2**18)]
                filled[inside] = torch.cat(density).exp() > EMPTY
                grown = F.max_pool3d(filled.view(1, OCCUPANCY, OCCUPANCY, OCCUPANCY).float(), 3, 1, 1)
                occupied = hull & (grown.flatten() > 0)
        chosen = torch.randint(len(pixels), (RAYS[device_of(device).sizes],), device=device)
        depths = middle + (torch.rand(len(chosen), 1, device=device) - 0.5) * (span / SAMPLES)
        points = origins[chosen, None] + directions[chosen, None] * depths[..., None]
        ray, place = occupied[_cell(points)].nonzero(as_tuple=True)
        log_density, color = model(points[ray, place])
        length = directions[chosen].norm(dim=1) * (span / SAMPLES)
        optical = torch.zeros_like(depths).index_put((ray, place), log_density.exp() * length[ray])
        light = torch.exp(-optical.cumsum(1) + optical)  # that comes so far
        weights = (light * (1 - torch.exp(-optical)))[ray, place]
        found = torch.zeros(len(chosen), 4, device=device)
        found = found.index_add(0, ray, torch.cat([color, torch.ones_like(color[:, :1])], 1) * weights[:, None])
        wanted, background = pixels[chosen], torch.rand(len(chosen), 3, device=device)
        error = found - wanted
        over = error[:, :3] - error[:, 3:] * background
        loss = over.square().mean() + error[:, 3].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return occupied, buried


def _rays(views: RenderedViews) -> tuple[Tensor, Tensor, Tensor]:
    """Of all pixels: origins [N, 3], directions [N, 3] with a z of 1, and colour with alpha [N, 4]."""
    device = views.alpha.device
    factor = -(-views.size // SIZE)
    pictures = F.avg_pool2d(torch.cat([views.rgb, views.alpha], 1), factor)
    size = pictures.shape[-1]
    across = ((torch.arange(size, device=device) + 0.5) * factor - views.size / 2) / views.intrinsics[0, 0]
    y, x = torch.meshgrid(across, across, indexing="ij")
    camera = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    rotation, shift = views.matrices[:, :3, :3], views.matrices[:, :3, 3:]
    eyes = -(rotation.mT @ shift)[:, :, 0]
    directions = camera @ rotation
    return (
        eyes[:, None].expand_as(directions).flatten(0, 1),
        directions.flatten(0, 1),
        pictures.flatten(2).mT.flatten(0, 1),
    )


def _hull(views: RenderedViews, centers: Tensor) -> Tensor:
    """[N], whether every view shows something where cells with these centres are."""
    radius = math.ceil(1.3 * 3**0.5 * HALF_EXTENT / OCCUPANCY * float(views.intrinsics[0, 0]))
    near = F.max_pool2d(views.alpha, 2 * radius + 1, 1, radius)
    hull = torch.ones(len(centers), dtype=torch.bool, device=centers.device)
    for v in range(len(views)):
        hull &= sample(near[v], views.project(v, centers)[0], "nearest")[:, 0] > 0.02
    return hull


def _cell(points: Tensor) -> Tensor:
    """Which cell of the occupancy grid points [..., 3] are in."""
    x, y, z = ((points / (2 * HALF_EXTENT) + 0.5) * OCCUPANCY).long().clamp(0, OCCUPANCY - 1).unbind(-1)
    return (x * OCCUPANCY + y) * OCCUPANCY + z
