"""Which triangle is where: a rasteriser in plain torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import device_of

PAIRS = {"cpu": 2**19, "cuda": 2**25}  # of pixel and triangle, looked at together


def rasterize(corners: Tensor, depths: Tensor | None, size: int) -> Tensor:
    """[size, size] int64: the triangle that covers each pixel's centre, the nearest one; -1 where there is none.

    Args:
        corners: [F, 3, 2], x and y in pixels, pixel centres at + 0.5, y down.
        depths: [F, 3], z > 0 at the corners, in perspective; None for a flat picture such as a UV map.
        size: Width and height.
    """
    device = corners.device
    low = (corners.amin(1) - 0.5).ceil().clamp(0, size).long()
    high = (corners.amax(1) - 0.5).floor().clamp(-1, size - 1).long()
    spans = (high - low + 1).clamp(min=0)
    counts = spans.prod(1)
    ends = counts.cumsum(0)
    nothing = torch.iinfo(torch.int64).max
    winner = torch.full((size * size,), nothing, device=device)
    begin, done, limit = 0, 0, PAIRS[device_of(device).sizes]
    while begin < len(corners):
        end = max(begin + 1, int(torch.searchsorted(ends, done + limit, right=True)))
        face = torch.arange(begin, end, device=device).repeat_interleave(counts[begin:end])
        place = torch.arange(done, done + len(face), device=device) - (ends - counts)[face]
        row = place // spans[face, 0]
        x, y = low[face, 0] + place - row * spans[face, 0], low[face, 1] + row
        weights = barycentric(corners[face], torch.stack([x, y], 1) + 0.5)
        inside = (weights >= 0).all(1)
        face, pixel = face[inside], (y * size + x)[inside]
        if depths is None:
            key = face
        else:
            nearness = (weights[inside] / depths[face]).sum(1)  # 1 / z is linear in the picture
            # A positive float's bits grow with it.
            key = (torch.iinfo(torch.int32).max - nearness.view(torch.int32).long()) << 32 | face
        winner.scatter_reduce_(0, pixel, key, "amin")
        begin, done = end, int(ends[end - 1])
    return torch.where(winner == nothing, -1, winner & 0xFFFFFFFF if depths is not None else winner).view(size, size)


def barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """[N, 3] weights of the corners [N, 3, 2] at points [N, 2]; not a number where a triangle has no area."""
    a, b, c = corners.unbind(1)
    return torch.stack([_cross(b, c, points), _cross(c, a, points), _cross(a, b, points)], 1) / _cross(a, b, c)[:, None]


def _cross(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
