"""Objects out of nothing: a few curved and angular solids put together, as many as one wants.

Reconstruction learned from such shapes alone comes near to what it learns from scanned and modelled ones (LRM-Zero,
arXiv 2406.09371). These are made as things are: most stand upright and are the same on the left and the right, legs
come in fours, wheels in rows; so the unseen back follows from the front more often than by chance.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from .objects import ObjectMesh, Submesh, about_up, centred, to_linear

AROUND, ALONG = 48, 24  # points of a surface
TEXTURE = 64  # pixels
# What things are made of, sRGB: wood, metal, stone, leaves, paint. The rest are any colours.
COMMON = ((120, 80, 50), (170, 125, 80), (70, 45, 30), (128, 128, 130), (60, 62, 66), (225, 225, 220), (80, 120, 55))

Points = np.ndarray  # [ALONG, AROUND, 3] float64: a surface as a grid, its last column the first one again
Random = np.random.Generator


def procedural(name: str) -> ObjectMesh:
    """An object that follows from its name, centred, its bounding-box diagonal 2 · OBJECT_RADIUS."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    plan = (_heap, _stack, _table, _ring)[rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))]
    pieces = plan(rng)
    if rng.random() < 0.15:  # not everything faces its viewer
        rotation = about_up(-rng.uniform(0, 2 * np.pi))
        pieces = [(look, points @ rotation.T) for look, points in pieces]
    looks = _looks(rng, 1 + max(look for look, _ in pieces))
    corners, parts, first = [], [], 0
    for look, (color, texture) in enumerate(looks):
        mine = [_triangles(points, color) for number, points in pieces if number == look]
        if mine:
            corners += mine
            count = sum(map(len, mine))
            parts.append(Submesh(first, count, texture))
            first += count
    together = np.concatenate(corners)
    together[:, :3] = centred(together[:, :3])
    return ObjectMesh(together.astype(np.float32), parts)


# ------------------------------------------------------------------------------------------------------------- solids


def _superquadric(rng: Random) -> Points:
    """A box, a cylinder, a ball or what lies between (Barr 1981), in [-1, 1]³."""
    # Under 1 it is angular, 1 is round, above it is pinched.
    up, around = rng.choice((0.05, 0.05, 0.3, 1.0, 1.0, 1.6), 2)
    v, u = np.meshgrid(np.linspace(-np.pi / 2, np.pi / 2, ALONG), np.linspace(0, 2 * np.pi, AROUND), indexing="ij")

    def power(x: np.ndarray, exponent: float) -> np.ndarray:
        x = np.round(x, 9)  # sin(2 pi) is not 0, and a root of next to nothing is a slit
        return np.sign(x) * np.abs(x) ** exponent

    ring = power(np.cos(v), up)
    return np.stack([ring * power(np.sin(u), around), power(np.sin(v), up), ring * power(np.cos(u), around)], -1)


def _lathed(rng: Random) -> Points:
    """A vase, a bottle, a cone, a bowl: a random outline turned about the up axis, round or with a few sides."""
    knots = rng.integers(3, 7)
    radius = rng.uniform(0.15, 1, knots)
    if rng.random() < 0.3:
        radius[-1] = 0  # a tip
    height = np.linspace(-1, 1, knots)
    at = np.linspace(-1, 1, ALONG - 2)
    if rng.random() < 0.5:  # steps rather than slopes
        radius = radius[np.clip(((at + 1) / 2 * knots).astype(int), 0, knots - 1)]
    else:
        radius = np.interp(at, height, radius)
    radius, at = np.concatenate([[0], radius, [0]]), np.concatenate([[-1], at, [1]])
    if rng.random() < 0.3:  # hollow from above
        inner = ALONG // 3
        radius[-inner:] = radius[-inner - 1] * np.linspace(0.85, 0, inner)
        at[-inner:] = np.linspace(1, rng.uniform(-0.5, 0.6), inner)
    u = np.linspace(0, 2 * np.pi, AROUND)
    sides = int(rng.choice((0, 0, 3, 4, 6, 8)))
    if sides:  # the distance of a polygon's edge
        step = 2 * np.pi / sides
        edge = np.cos(step / 2) / np.cos((u + step / 2) % step - step / 2)
    else:
        edge = np.ones_like(u)
    across = radius[:, None] * edge
    return np.stack([across * np.sin(u), np.broadcast_to(at[:, None], across.shape), across * np.cos(u)], -1)


def _torus(rng: Random) -> Points:
    """A ring that lies, from a wire to a tyre."""
    thick = rng.uniform(0.12, 0.45)
    v, u = np.meshgrid(np.linspace(0, 2 * np.pi, ALONG), np.linspace(0, 2 * np.pi, AROUND), indexing="ij")
    across = 1 - thick + thick * np.cos(v)
    return np.stack([across * np.sin(u), thick * np.sin(v), across * np.cos(u)], -1)


def _solid(rng: Random) -> Points:
    """Some solid in [-1, 1]³, smooth or with hills and dents."""
    make: Callable[[Random], Points] = (_superquadric, _lathed, _torus)[rng.choice(3, p=(0.5, 0.4, 0.1))]
    points = make(rng)
    if rng.random() < 0.25:  # a sum of waves over space, so that seams and poles stay closed
        waves, phases = rng.normal(0, 3, (4, 3)), rng.uniform(0, 2 * np.pi, 4)
        hills = np.sin(points @ waves.T + phases).mean(-1, keepdims=True)
        points = points * (1 + rng.uniform(0.05, 0.3) * hills)
    if rng.random() < 0.25:  # narrower above or below
        points = points * np.stack([t := 1 + rng.uniform(-0.6, 0.6) * points[..., 1], np.ones_like(t), t], -1)
    return points


def _sized(points: Points, size: np.ndarray, centre: np.ndarray) -> Points:
    """Points of [-1, 1]³ in a box of half sizes `size` about `centre`."""
    low, high = points.min((0, 1)), points.max((0, 1))
    return (points - (low + high) / 2) * (2 * size / np.maximum(high - low, 1e-6)) + centre


def _mirrored(points: Points) -> Points:
    return points * (-1, 1, 1)


# -------------------------------------------------------------------------------------------------------------- plans
# Each gives pieces: the number of a look, and a surface.


def _heap(rng: Random) -> list[tuple[int, Points]]:
    """A body with things on it, as a rule the same on the left and the right."""
    body = np.exp(rng.uniform(-0.8, 0.2, 3))
    pieces = [(0, _sized(_solid(rng), body, np.zeros(3)))]
    symmetric = rng.random() < 0.75
    for look in range(1, rng.integers(1, 7)):
        size = body * np.exp(rng.uniform(-1.6, -0.2, 3))
        centre = rng.uniform(-1, 1, 3) * body
        axis = rng.integers(3)
        centre[axis] = rng.choice((-1, 1)) * body[axis]  # on one of its sides, sunk in by half
        if symmetric and (axis == 0 or rng.random() < 0.6):
            points = _sized(_solid(rng), size, centre)
            pieces += [(look, points), (look, _mirrored(points))]
        else:
            centre[0] *= not symmetric
            pieces.append((look, _sized(_solid(rng), size, centre)))
    return pieces


def _stack(rng: Random) -> list[tuple[int, Points]]:
    """One on another: lamps, towers, cakes, trees."""
    pieces, height = [], 0.0
    square = rng.random() < 0.7
    for look in range(rng.integers(1, 6)):
        half = np.exp(rng.uniform(-1.6, 0, 3))
        if square:
            half[2] = half[0]
        pieces.append((look, _sized(_solid(rng), half, np.array([0, height + half[1], 0]))))
        height += 2 * half[1] * rng.uniform(0.7, 1)
    return pieces


def _table(rng: Random) -> list[tuple[int, Points]]:
    """A top on legs, perhaps with a back and arms: tables, chairs, carts, four-legged animals."""
    half = np.array([rng.uniform(0.4, 1), rng.uniform(0.04, 0.4), rng.uniform(0.3, 1)])
    length, thick = rng.uniform(0.2, 1.4), rng.uniform(0.04, 0.2)
    pieces = [(0, _sized(_solid(rng), half, np.array([0, length + half[1], 0])))]
    leg = _solid(rng)
    inset = 1 - thick / half[[0, 2]].clip(thick)
    for x in (-1, 1):
        for z in (-1, 1):
            centre = np.array([x * half[0] * inset[0], length / 2, z * half[2] * inset[1]])
            pieces.append((1, _sized(leg, np.array([thick, length / 2, thick]), centre)))
    top = length + 2 * half[1]
    if rng.random() < 0.5:
        back = np.array([half[0], rng.uniform(0.2, 0.9), rng.uniform(0.03, 0.15)])
        pieces.append((2, _sized(_solid(rng), back, np.array([0, top + back[1] * 0.95, back[2] - half[2]]))))
    if rng.random() < 0.3:
        arm = np.array([rng.uniform(0.04, 0.15), rng.uniform(0.1, 0.3), half[2] * 0.9])
        points = _sized(_solid(rng), arm, np.array([half[0] - arm[0], top + arm[1], 0]))
        pieces += [(3, points), (3, _mirrored(points))]
    return pieces


def _ring(rng: Random) -> list[tuple[int, Points]]:
    """The same thing several times about a middle: flowers, wheels, fountains, fences."""
    count, out = rng.integers(3, 9), rng.uniform(0.4, 1)
    points = _sized(_solid(rng), np.exp(rng.uniform(-2, -0.7, 3)), np.array([0, 0, out]))
    pieces = [(0, points @ about_up(-angle).T) for angle in 2 * np.pi * np.arange(count) / count]
    middle = np.exp(rng.uniform(-2, 0, 3))
    pieces.append((1, _sized(_solid(rng), middle * (out, 1, out), np.array([0, rng.uniform(-0.5, 0.5), 0]))))
    if rng.random() < 0.3:  # upright, as a wheel
        pieces = [(look, made[..., [0, 2, 1]] * (1, 1, -1)) for look, made in pieces]
    return pieces


# -------------------------------------------------------------------------------------------------------------- looks


def _looks(rng: Random, number: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Colours [4] in linear light and textures; things have few colours, so those of a palette come again."""
    palette = [
        np.array(COMMON[rng.integers(len(COMMON))]) if rng.random() < 0.5 else rng.uniform(10, 250, 3)
        for _ in range(rng.integers(1, 4))
    ]
    looks = []
    for _ in range(number):
        color = palette[rng.integers(len(palette))]
        if rng.random() < 0.35:
            other = np.clip(color * rng.uniform(0.4, 1.6), 0, 255) if rng.random() < 0.6 else rng.uniform(10, 250, 3)
            looks.append((np.ones(4), _pattern(rng, color, other)))
        else:
            looks.append((to_linear(np.append(color / 255, 1)), None))
    return looks


def _pattern(rng: Random, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A texture [TEXTURE, TEXTURE, 4] of two colours: stripes, squares, spots, clouds or a slow change."""
    y, x = np.meshgrid(np.arange(TEXTURE) / TEXTURE, np.arange(TEXTURE) / TEXTURE, indexing="ij")
    n, m = rng.integers(1, 9, 2)  # whole numbers: the seam must not show
    kind = rng.integers(5)
    if kind == 0:
        share = np.sin(2 * np.pi * n * (x if rng.random() < 0.5 else y)) > rng.uniform(-0.7, 0.7)
    elif kind == 1:
        share = (np.sin(2 * np.pi * n * x) > 0) ^ (np.sin(2 * np.pi * m * y) > 0)
    elif kind == 2:
        share = np.hypot((n * x) % 1 - 0.5, (m * y) % 1 - 0.5) < rng.uniform(0.15, 0.45)
    elif kind == 3:
        waves, phases = rng.integers(-6, 7, (8, 2)), rng.uniform(0, 2 * np.pi, 8)
        cloud = np.sin(2 * np.pi * (waves[:, :1, None] * x + waves[:, 1:, None] * y) + phases[:, None, None]).sum(0)
        share = 1 / (1 + np.exp(-cloud))
    else:
        share = y
    rgb = one + np.asarray(share, np.float64)[..., None] * (other - one)
    return np.concatenate([rgb, np.full((TEXTURE, TEXTURE, 1), 255)], -1).round().astype(np.uint8)


def _triangles(points: Points, color: np.ndarray) -> np.ndarray:
    """The corners [3F, 9] of a grid's triangles (see ObjectMesh)."""
    rows, columns = points.shape[:2]
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    values = np.concatenate([points, u[..., None], v[..., None], np.broadcast_to(color, (*points.shape[:2], 4))], -1)
    a, b, c, d = values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]
    return np.stack([a, b, c, a, c, d], axis=2).reshape(-1, 9)
