"""Gaussian splatting in plain torch, on any device: the picture gsplat 1.5.3 renders, without its CUDA part.

The picture is cut into square tiles. The Gaussians are sorted by depth, listed for every tile they touch, and
composited front to back in chunks, K Gaussians of T tiles of P pixels at a time, until a tile lets no more light
through. So nothing of the size Gaussians x pixels exists at once; the backward pass composites again instead of
remembering.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..devices import device_of
from ..threads import parallel

ALPHA_MIN = 1 / 255  # a Gaussian is not rendered where its alpha is below this
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # the Gaussian that brings a pixel to this or below is not rendered, nor is any behind it
BLUR = 0.3  # pixels², added to the diagonal of the projected covariance
MAX_EXTENT = 3.33  # standard deviations; an opacity of 1 falls to 1/255 at 3.329

# What follows changes the speed and the memory, not the picture.
TILE = 8  # pixels
CHUNK = 32  # Gaussians of a tile composited at a time
LISTED = 2**20  # entries in the tiles' lists at a time
PROJECTED = 2**19  # Gaussians times images at a time, about 0.5 KB each


def rasterize(
    gaussians: Tensor,  # [B, N, 14]
    view_matrices: Tensor,  # [B, V, 4, 4]
    intrinsics: Tensor,  # [B, V, 3, 3]
    height: int,
    width: int,
    near: float,
    far: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Composites Gaussians over nothing: each result is the sum of weight times value.

    Returns:
        Colour [B, V, H, W, 3], camera z [B, V, H, W, 1] and alpha [B, V, H, W, 1].
    """
    views = view_matrices.shape[1]
    images = max(1, PROJECTED // gaussians.shape[1])
    view_step, batch_step = min(views, images), max(1, images // views)
    rows = []
    for scenes in zip(*(t.split(batch_step) for t in (gaussians, view_matrices, intrinsics)), strict=True):
        cameras = zip(*(t.split(view_step, dim=1) for t in scenes[1:]), strict=True)
        rows.append(torch.cat([_Rasterize.apply(scenes[0], *c, height, width, near, far) for c in cameras], dim=1))
    return torch.cat(rows).split((3, 1, 1), dim=-1)


@dataclass
class Projection:
    """N Gaussians as I cameras see them.

    Attributes:
        ellipses: [I, N, 6], what alpha follows from: centre u, v in pixels, inverse covariance xx, xy, yy, log opacity.
        features: [I, N, 5], what is composited: red, green, blue, z, one.
        extents: [I, N, 2], half the width and height in pixels of the box around all alpha >= 1/255; 0 if not visible.
    """

    ellipses: Tensor
    features: Tensor
    extents: Tensor

    def split(self, images: int) -> list[Projection]:
        """Parts of so many images, outside the autograd graph."""
        tensors = (self.ellipses.detach(), self.features.detach(), self.extents)
        return [Projection(*part) for part in zip(*(t.split(images) for t in tensors), strict=True)]


def project(
    gaussians: Tensor,  # [B, N, 14]
    view_matrices: Tensor,  # [B, V, 4, 4]
    intrinsics: Tensor,  # [B, V, 3, 3]
    height: int,
    width: int,
    near: float,
    far: float,
) -> Projection:
    """EWA projection (Zwicker et al., 2001), limited and culled as gsplat does; I = B * V."""
    positions, opacities, scales, rotations, colors = gaussians[:, None].split((3, 1, 3, 4, 3), dim=-1)
    world = view_matrices[:, :, None, :3, :]  # [B, V, 1, 3, 4]
    # Sums of products here, not matrix products, which may run in TF32 and then misplace Gaussians by a pixel.
    x, y, z = ((world[..., :3] * positions[..., None, :]).sum(-1) + world[..., 3]).unbind(-1)  # [B, V, N]
    visible = (z >= near) & (z <= far) & (opacities[..., 0] >= ALPHA_MIN)
    z = torch.where(visible, z, 1.0)
    fx, fy, cx, cy = (intrinsics[:, :, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    slope_x, slope_y = x / z, y / z
    u, v = fx * slope_x + cx, fy * slope_y + cy

    # Far outside the picture the Jacobian is that of a point 0.3 tan(fov / 2) outside it.
    limit_x, limit_y = 0.15 * width / fx, 0.15 * height / fy
    slope_x = slope_x.clamp(-cx / fx - limit_x, (width - cx) / fx + limit_x)
    slope_y = slope_y.clamp(-cy / fy - limit_y, (height - cy) / fy + limit_y)

    axes = _rotation_matrices(rotations) * scales[..., None, :]  # [B, 1, N, 3, 3], columns are the ellipsoid's axes
    right, down, ahead = (sum(world[..., i, j, None] * axes[..., j, :] for j in range(3)) for i in range(3))
    along_x = (fx / z)[..., None] * (right - slope_x[..., None] * ahead)  # [B, V, N, 3], the axes in pixels
    along_y = (fy / z)[..., None] * (down - slope_y[..., None] * ahead)
    xx = along_x.square().sum(-1) + BLUR
    xy = (along_x * along_y).sum(-1)
    yy = along_y.square().sum(-1) + BLUR
    det = xx * yy - xy * xy
    log_opacities = opacities.clamp(min=ALPHA_MIN).log()[..., 0].expand_as(z)
    ellipses = torch.stack([u, v, yy / det, -xy / det, xx / det, log_opacities], dim=-1)
    features = torch.cat([colors.expand(*z.shape, 3), z[..., None], torch.ones_like(z)[..., None]], dim=-1)
    with torch.no_grad():
        shown = visible & (det > 0) & ellipses.isfinite().all(-1)
        reach = (2 * (log_opacities - math.log(ALPHA_MIN))).sqrt().clamp(max=MAX_EXTENT)
        extents = torch.stack([xx, yy], dim=-1).sqrt() * reach[..., None]
        extents = torch.where(shown[..., None], extents, 0.0)
    return Projection(ellipses.flatten(0, 1), features.flatten(0, 1), extents.flatten(0, 1))


def _rotation_matrices(quaternions: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    return torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))


class _Rasterize(torch.autograd.Function):
    """[B, V, H, W, 5], the features' weighted sums. Remembers its inputs and its output only."""

    @staticmethod
    def forward(ctx, gaussians, view_matrices, intrinsics, *settings):
        def composite(part: Projection) -> Tensor:
            return _composite(_Canvas(part, *settings[:2]))

        with parallel(gaussians.device) as (each, threads):
            projection = project(gaussians, view_matrices, intrinsics, *settings)
            step = math.ceil(len(projection.extents) / threads)
            image = torch.cat(list(each(composite, projection.split(step)))).unflatten(0, view_matrices.shape[:2])
        ctx.save_for_backward(gaussians, view_matrices, intrinsics, image)
        ctx.settings = settings
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_image):
        def differentiate(part: Projection, image: Tensor, grad_image: Tensor) -> tuple[Tensor, Tensor]:
            return _composite_gradient(_Canvas(part, *ctx.settings[:2]), image, grad_image)

        *inputs, image = ctx.saved_tensors
        inputs = [t.detach().requires_grad_(n) for t, n in zip(inputs, ctx.needs_input_grad, strict=False)]
        wanted = [t for t in inputs if t.requires_grad]
        with torch.autocast(image.device.type, enabled=False), parallel(image.device) as (each, threads):
            with torch.enable_grad():
                projection = project(*inputs, *ctx.settings)
            step = math.ceil(len(projection.extents) / threads)
            pictures = [t.flatten(0, 1).split(step) for t in (image, grad_image)]
            parts = zip(*each(differentiate, projection.split(step), *pictures), strict=True)
            grads = [torch.cat(part) for part in parts]
            grads = iter(torch.autograd.grad([projection.ellipses, projection.features], wanted, grads))
        return *(next(grads) if t.requires_grad else None for t in inputs), None, None, None, None


def _composite(canvas: _Canvas) -> Tensor:
    """[I, H, W, 5], the features' weighted sums."""
    sums = canvas.through.new_zeros(canvas.tiles, 5, TILE * TILE)
    for chunk in canvas.chunks():
        alpha, before = _pass(canvas, chunk)
        sums.index_add_(0, chunk.tiles, chunk.features.mT @ alpha.mul_(before))
    return canvas.untile(sums)


def _composite_gradient(canvas: _Canvas, image: Tensor, grad_image: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ellipses and features, from those of the sums [I, H, W, 5].

    With O = sum w_k f_k, w_k = a_k prod_{j<k} (1 - a_j) and g = dL/dO,
    a_k dL/da_k = w_k f_k.g - a_k / (1 - a_k) sum_{j>k} w_j f_j.g. The last sum is O.g less what lies in front, so this
    too goes front to back.
    """
    grad_sums = canvas.tile(grad_image)
    behind = (canvas.tile(image) * grad_sums).sum(1)  # [tiles, P]
    grad_ellipses = torch.zeros_like(canvas.ellipses)
    grad_features = torch.zeros_like(canvas.features)
    for chunk in canvas.chunks():
        alpha, before = _pass(canvas, chunk)
        weights = before.mul_(alpha)
        grad_out = grad_sums[chunk.tiles]
        own = (chunk.features @ grad_out).mul_(weights)
        rest = behind[chunk.tiles][:, None] - own.cumsum(1)
        behind[chunk.tiles] = rest[:, -1]
        grad_exponents = own.sub_(rest.mul_(alpha / (1 - alpha))).mul_(alpha < ALPHA_MAX)
        ids = chunk.gaussians.flatten()
        grad_ellipses.index_add_(0, ids, _ellipse_gradient(canvas, chunk, grad_exponents).flatten(0, 1))
        grad_features.index_add_(0, ids, (weights @ grad_out.mT).flatten(0, 1))
    shape = (canvas.images, -1)
    return grad_ellipses.unflatten(0, shape), grad_features.unflatten(0, shape)


def _pass(canvas: _Canvas, chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """Alpha, and the transmittance in front of each Gaussian, both [T, K, P]; `canvas.through` moves behind them."""
    u, v, xx, xy, yy, log_opacity = (t[..., None] for t in chunk.ellipses.unbind(-1))  # [T, K, 1]
    # log opacity - (xx dx² + 2 xy dx dy + yy dy²) / 2, in place, as the time goes into moving memory.
    dx, dy = canvas.x - u, canvas.y - v
    alpha = (dx * (-0.5 * xx)).addcmul_(dy, xy, value=-1).mul_(dx)
    alpha.addcmul_(dy.square_(), yy, value=-0.5).add_(log_opacity).exp_().clamp_(max=ALPHA_MAX)
    torch.threshold_(alpha, ALPHA_MIN, 0.0)
    start = canvas.through[chunk.tiles][:, None]
    after = torch.cumprod(1 - alpha, dim=1).mul_(start)
    if (after[:, -1] <= TRANSMITTANCE_MIN).any():
        alpha.mul_(after > TRANSMITTANCE_MIN)
    canvas.through[chunk.tiles] = after[:, -1]
    return alpha, torch.cat([start, after[:, :-1]], dim=1)


def _ellipse_gradient(canvas: _Canvas, chunk: _Chunk, grad_exponents: Tensor) -> Tensor:
    """[T, K, 6], from the gradient [T, K, P] of the logarithm of each pixel's alpha."""
    x, y = canvas.x, canvas.y
    moments = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])
    m, mx, my, mxx, mxy, myy = (grad_exponents @ moments.T).unbind(-1)  # [T, K], about the tile's centre
    u, v, xx, xy, yy, _ = chunk.ellipses.unbind(-1)
    mdx, mdy = mx - u * m, my - v * m  # about the Gaussian's
    return torch.stack(
        [
            xx * mdx + xy * mdy,
            xy * mdx + yy * mdy,
            -0.5 * (mxx - u * (mx + mdx)),
            -(mxy - u * my - v * mdx),
            -0.5 * (myy - v * (my + mdy)),
            m,
        ],
        dim=-1,
    )


@dataclass
class _Chunk:
    """Up to K Gaussians, front to back, of each of T tiles.

    Attributes:
        tiles: [T].
        gaussians: [T, K], indices into the canvas's; where a tile has fewer, any other's.
        ellipses: [T, K, 6], with u and v from the tile's centre; where a tile has fewer, of no opacity.
        features: [T, K, 5].
    """

    tiles: Tensor
    gaussians: Tensor
    ellipses: Tensor
    features: Tensor


class _Canvas:
    """A projection's I pictures as tiles of P pixels, in the state of being composited front to back.

    Attributes:
        ellipses, features: [I * N, 6] and [I * N, 5], the projection's.
        tiles: How many, over all pictures.
        through: [tiles, P], the transmittance so far: a tile without a pixel above TRANSMITTANCE_MIN is done.
        x, y: [P], the pixels' centres, from the tile's.
        centers: [tiles, 2], the tiles' centres in their picture.
    """

    def __init__(self, projection: Projection, height: int, width: int):
        self.images, self.height, self.width = len(projection.extents), height, width
        self.ellipses, self.features = projection.ellipses.flatten(0, 1), projection.features.flatten(0, 1)
        self.extents = projection.extents.flatten(0, 1)
        self.rows, self.columns = math.ceil(height / TILE), math.ceil(width / TILE)
        self.tiles = self.images * self.rows * self.columns
        like = {"dtype": self.extents.dtype, "device": self.extents.device}
        self.through = self.tile(torch.ones(self.images, height, width, 1, **like))[:, 0].contiguous()
        pixel = torch.arange(TILE, **like) - (TILE - 1) / 2
        self.x, self.y = pixel.repeat(TILE), pixel.repeat_interleave(TILE)
        column, row = torch.arange(self.columns, **like), torch.arange(self.rows, **like)
        corners = torch.stack([column.repeat(self.rows), row.repeat_interleave(self.columns)], dim=-1) * TILE
        self.centers = corners.repeat(self.images, 1) + TILE / 2

    def tile(self, pictures: Tensor) -> Tensor:
        """[I, H, W, C] -> [tiles, C, P]; zeros beyond a picture's edge."""
        padding = (0, 0, 0, self.columns * TILE - self.width, 0, self.rows * TILE - self.height)
        cut = torch.nn.functional.pad(pictures, padding)
        cut = cut.unflatten(2, (self.columns, TILE)).unflatten(1, (self.rows, TILE))
        return cut.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(0, 2)

    def untile(self, tiles: Tensor) -> Tensor:
        """[tiles, C, P] -> [I, H, W, C]."""
        cut = tiles.unflatten(2, (TILE, TILE)).unflatten(0, (self.images, self.rows, self.columns))
        return cut.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)[:, : self.height, : self.width]

    def lit(self, tiles: Tensor | slice = slice(None)) -> Tensor:
        """[tiles], whether they are not done."""
        return self.through[tiles].amax(-1) > TRANSMITTANCE_MIN

    def chunks(self) -> Iterator[_Chunk]:
        """All there is to composite, each tile's chunks front to back, until `through` says that it is done."""
        rank = torch.arange(CHUNK, device=self.through.device)
        # Elements [T, K, P] at once: on a CPU what its cache holds, elsewhere enough to keep it busy.
        elements = 2**17 if device_of(self.through.device).sizes == "cpu" else 2**23
        for tiles, gaussians in self.lists():
            counts = torch.bincount(tiles, minlength=self.tiles)
            starts = counts.cumsum(0) - counts
            busy = counts.argsort(descending=True)[: int(counts.count_nonzero())]
            for group in busy.split(max(1, elements // (CHUNK * TILE * TILE))):
                for done in range(0, int(counts[group[0]]), CHUNK):
                    if done:
                        group = group[(counts[group] > done) & self.lit(group)]
                        if not len(group):
                            break
                    left = counts[group, None] - done
                    k = rank[: int(left[0])]
                    ids = gaussians[(starts[group, None] + done + k).clamp(max=len(gaussians) - 1)]
                    ellipses = self.ellipses.index_select(0, ids.flatten()).unflatten(0, ids.shape)
                    ellipses[..., :2] -= self.centers[group, None]
                    ellipses[..., 5].masked_fill_(k >= left, -math.inf)
                    features = self.features.index_select(0, ids.flatten()).unflatten(0, ids.shape)
                    yield _Chunk(group, ids, ellipses, features)

    def lists(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of tile and Gaussian, [M] each, sorted by tile, then depth; about LISTED at a time, the nearest first.

        Tiles that are done by then are left out, so Gaussians behind what is opaque cost little.
        """
        size = torch.tensor([self.width, self.height], device=self.through.device)
        # The pixels whose centres lie in the Gaussian's box; then the tiles of those.
        low = (self.ellipses[:, :2] - self.extents - 0.5).ceil().clamp(min=0).minimum(size).int()
        high = (self.ellipses[:, :2] + self.extents - 0.5).floor().clamp(min=-1).minimum(size - 1).int()
        shown = ((self.extents > 0) & (high >= low)).all(-1)
        order = shown.nonzero()[:, 0]
        order = order[self.features[order, 3].argsort(stable=True)]
        corner = low[order] // TILE
        spans = high[order] // TILE - corner + 1
        image = order // (len(shown) // self.images)
        first_tile = (image * self.rows + corner[:, 1]) * self.columns + corner[:, 0]
        counts = spans.prod(-1)
        ends = counts.cumsum(0)

        begin = listed = 0
        while begin < len(order) and (lit := self.lit()).any():
            end = max(begin + 1, int(torch.searchsorted(ends, listed + LISTED, right=True)))
            which = torch.arange(begin, end, device=order.device).repeat_interleave(counts[begin:end])
            place = torch.arange(listed, listed + len(which), device=order.device) - (ends - counts)[which]
            span = spans[which, 0]
            row = torch.div(place, span, rounding_mode="floor")
            tiles = first_tile[which] + row * self.columns + place - row * span
            keep = lit[tiles]
            tiles, by_tile = tiles[keep].sort(stable=True)
            if len(tiles):
                yield tiles, order[which[keep][by_tile]]
            begin, listed = end, listed + len(which)
