"""The background's colours at every pixel, as far as the picture's border tells them: polynomials in CIELAB.

One polynomial for a plain background, a gradient, a spotlight or a vignette; two where a floor meets a wall. They are
fitted to the border first, and then to what was found to be like it, further and further in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from scipy import ndimage

MAX_NOISE = 2.5  # standard deviation in CIELAB of a background that still counts as plain
MIN_PLAIN_BORDER = 0.65  # share of the border that is background; the object may be cut off at one side
BORDER_DEGREE, INNER_DEGREE = 2, 6  # of the polynomials; a border alone does not pin down more
REACH = {False: 0.04, True: 0.02}  # share of the longer side: how far the colours of a pixel's neighbourhood go
BLURRED = 1.2  # in CIELAB: noise about them of a border that is out of focus
ROUNDS = {False: 8, True: 24}  # of growing inwards, of a background that is out of focus
NARROW = 0.015  # share of the picture's longer side: growing inwards does not go through narrower gaps
ONE_SURFACE = 2.0  # in CIELAB: mean distance from it of what belongs together
LEAST_HOLE = 1e-3  # share of the picture
LEAST_STEP = 8.0  # in CIELAB, of a floor's colour from its wall's
SEAM = 0.03  # share of the height, above and below the line where floor and wall meet, that may have either's colour


@dataclass
class Backdrop:
    """Colours of a background, for pictures of any size.

    Attributes:
        parts: The polynomials' coefficients [T, 3]: of one, or of a wall and its floor.
        horizon: Where the floor begins at the left and at the right edge, as shares of the height, or None.
        correction: [h, w, 3] of any size, what the polynomials miss.
        noise: Standard deviation of the border's colours about them.
        blurred: Whether it is of no one colour, but out of focus: what the neighbourhood tells is all there is.
    """

    parts: list[np.ndarray]
    horizon: tuple[float, float] | None = None
    correction: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 3), np.float32))
    noise: float = 0.0
    blurred: bool = False

    def colors(self, height: int, width: int) -> np.ndarray:
        """CIELAB, float32 [height, width, 3]."""
        maps = [_evaluate(part, height, width) for part in self.parts]
        colors = maps[0]
        if self.horizon:
            colors = np.where(self.is_wall(height, width)[..., None], *maps)
        channels = [Image.fromarray(self.correction[..., i]) for i in range(3)]
        size, bilinear = (width, height), Image.Resampling.BILINEAR
        return colors + np.stack([np.asarray(channel.resize(size, bilinear)) for channel in channels], -1)

    def is_wall(self, height: int, width: int, lower: float = 0.0) -> np.ndarray:
        """What lies above the line where the floor begins, `lower` of the height lower."""
        left, right = self.horizon
        line = left + (right - left) * (np.arange(width) + 0.5) / width + lower
        return (np.arange(height)[:, None] + 0.5) / height < line

    def seam(self, height: int, width: int) -> np.ndarray:
        """The pixels [height, width] that may have the wall's colour, the floor's, or one in between."""
        if not self.horizon:
            return np.zeros((height, width), bool)
        return self.is_wall(height, width, SEAM) & ~self.is_wall(height, width, -SEAM)

    def distance(self, lab: np.ndarray) -> np.ndarray:
        """How far each colour [H, W, 3] is from the background's there, in CIELAB [H, W].

        Darker by a little is forgiven: a soft shadow lies on the background, not on the object.
        """
        height, width = lab.shape[:2]
        distance = _distance(lab, self.colors(height, width))
        if self.horizon:
            wall, floor = (_evaluate(part, height, width) for part in self.parts)
            across = wall - floor
            t = ((lab - floor) * across).sum(-1) / np.maximum((across**2).sum(-1), 1e-6)
            between = _distance(lab, floor + np.clip(t, 0, 1)[..., None] * across)
            distance = np.where(self.seam(height, width), np.minimum(distance, between), distance)
        return distance


def find_backdrop(lab: np.ndarray, edges: np.ndarray, tolerance: float | None = None) -> Backdrop | None:
    """The background that a picture's border shows.

    Args:
        lab: [H, W, 3] CIELAB.
        edges: [H, W] where the colour changes abruptly: growing inwards stops there.
        tolerance: How far a colour may be from the background's; by default what its noise asks for.

    Returns:
        None if the border is not plain.
    """
    border = border_of(lab.shape[:2])
    backdrop = _fit_border(lab, border)
    if backdrop is None:
        return None
    known = border & (backdrop.distance(lab) < 8)
    limit = tolerance or tolerance_of(backdrop.noise)
    free = ~edges | backdrop.seam(*edges.shape)
    for _ in range(ROUNDS[backdrop.blurred]):
        distance = backdrop.distance(lab)
        inner = flooded((distance < limit) & free, NARROW) | _holes(distance, free, limit)
        if (inner & ~known).mean() < 0.001:
            inner = _continuations(lab, known, free & ~inner)
            if not inner.any():
                break
        known |= inner
        backdrop = _refit(lab, known, backdrop)
    return backdrop


def flooded(free: np.ndarray, narrow: float = 0.0) -> np.ndarray:
    """What a flood from the picture's border fills of a mask [H, W], not going through gaps that are narrower.

    Args:
        narrow: Their width, as a share of the picture's longer side.
    """
    reach = round(0.5 * narrow * max(free.shape))
    if not reach:
        return connected_to_border(free)
    padded = np.pad(free, reach + 1, constant_values=True)
    wide = connected_to_border(ndimage.distance_transform_edt(padded) > reach)
    back = ndimage.distance_transform_edt(~wide) <= reach + 1
    return (back & padded)[reach + 1 : -reach - 1, reach + 1 : -reach - 1]


def _continuations(lab: np.ndarray, known: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Regions [H, W] that go on as the background does around them: what a handle encloses of a spotlight's middle."""
    labels, _ = ndimage.label(free & ~known)
    found = np.zeros_like(known)
    around = round(0.15 * max(known.shape))
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        region = labels[place] == number
        if region.sum() < LEAST_HOLE * known.size or region.mean() < 0.2:
            continue
        y, x = (slice(max(0, side.start - around), side.stop + around) for side in place)
        region = labels[y, x] == number
        if (known[y, x].sum() > 2 * region.sum()) and _is_one_surface(lab[y, x], known[y, x], region):
            found[y, x] |= region
    return found


def _is_one_surface(lab: np.ndarray, known: np.ndarray, region: np.ndarray) -> bool:
    """Whether one smooth surface goes through the colours of a region and of the background around it."""
    height, width = known.shape
    y, x = np.nonzero(known | region)
    step = max(1, len(y) // 4000)
    y, x = y[::step], x[::step]
    v, u = 2 * (y + 0.5) / height - 1, 2 * (x + 0.5) / width - 1
    matrix = np.stack([u**i * v**j for i, j in _exponents(4)], axis=-1)
    colors = lab[y, x].astype(np.float64)
    coefficients = np.linalg.solve(matrix.T @ matrix + 1e-3 * np.eye(matrix.shape[1]), matrix.T @ colors)
    missed = np.linalg.norm(colors - matrix @ coefficients, axis=1)
    inside = region[y, x]
    if max(missed[inside].mean(), missed[~inside].mean()) > ONE_SURFACE:
        return False
    # A window is flat, and of another hue. What continues a gradient has a gradient, of its colours.
    middle = colors[~inside].mean(axis=0)
    hue = np.linalg.svd(colors[~inside] - middle, full_matrices=False)[2][0]
    apart = colors[inside] - middle
    astray = np.linalg.norm(apart - (apart @ hue)[:, None] * hue, axis=1).mean()
    slope = np.ptp(np.quantile(apart @ hue, (0.1, 0.9)))
    return astray < ONE_SURFACE and slope > ONE_SURFACE


def _holes(distance: np.ndarray, free: np.ndarray, limit: float) -> np.ndarray:
    """Enclosed regions [H, W] that have the background's colour all over."""
    labels, count = ndimage.label(free & (distance < limit))
    index = np.arange(count + 1)
    large = np.bincount(labels.ravel()) > LEAST_HOLE * free.size
    like = ndimage.mean(distance, labels, index) < 0.5 * limit
    large[0] = False
    return (large & like)[labels]


def tolerance_of(noise: float) -> float:
    """How far a colour may be from that of a background with such noise, in CIELAB."""
    return float(np.clip(5 + 3 * noise, 6, 14))


def border_of(shape: tuple[int, int]) -> np.ndarray:
    """The pixels [H, W] along a picture's four sides."""
    margin = border_margin(shape)
    border = np.ones(shape, bool)
    border[margin:-margin, margin:-margin] = False
    return border


def border_margin(shape: tuple[int, int]) -> int:
    """Width of the border in pixels."""
    return max(2, min(shape) // 64)


def connected_to_border(mask: np.ndarray) -> np.ndarray:
    """Those parts of a mask [H, W] that reach the picture's border."""
    labels, _ = ndimage.label(mask)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.unique(edge[edge > 0]))


def _fit_border(lab: np.ndarray, border: np.ndarray) -> Backdrop | None:
    """The one of three kinds of backdrops that explains most of the border."""
    found = [_fit_plain(lab, border), _fit_floor_and_wall(lab, border)]
    if not any(found):
        found = [_fit_blurred(lab, border)]
    # One that needs more must explain more.
    return max(filter(None, found), key=lambda it: _explained(it, lab, border) - 0.1 * len(it.parts), default=None)


def _explained(backdrop: Backdrop, lab: np.ndarray, border: np.ndarray) -> float:
    return float((backdrop.distance(lab)[border] < 8).mean())


def _fit_plain(lab: np.ndarray, border: np.ndarray) -> Backdrop | None:
    fit = _fit(lab, border, BORDER_DEGREE)
    return Backdrop([fit[0]], noise=fit[1]) if fit else None


def _fit_floor_and_wall(lab: np.ndarray, border: np.ndarray) -> Backdrop | None:
    horizon = _find_horizon(lab)
    if horizon is None:
        return None
    backdrop = Backdrop([], horizon)
    wall, seam = backdrop.is_wall(*border.shape), backdrop.seam(*border.shape)
    fits = [_fit(lab, border & part & ~seam, 1) for part in (wall, ~wall)]
    if None in fits:
        return None
    backdrop.parts = [coefficients for coefficients, _ in fits]
    backdrop.noise = max(noise for _, noise in fits)
    return backdrop


def _fit_blurred(lab: np.ndarray, border: np.ndarray) -> Backdrop | None:
    """The backdrop of a border that is of no one colour, but out of focus: each pixel is what its neighbours are."""
    backdrop = Backdrop([np.median(lab[border], axis=0)[None]], blurred=True)
    backdrop.correction = _missed(lab, border, backdrop)
    residual = np.linalg.norm(lab - backdrop.colors(*border.shape), axis=-1)[border]
    inliers = residual < 4 * BLURRED
    backdrop.noise = float(np.sqrt((residual[inliers] ** 2).mean())) if inliers.any() else np.inf
    return backdrop if inliers.mean() > 0.75 and backdrop.noise < BLURRED else None


def _missed(lab: np.ndarray, known: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """What the polynomial misses, float32 [H / 3, W / 3, 3], as the known pixels nearby tell."""
    missed = np.where(known[..., None], lab - backdrop.colors(*known.shape), 0)[1::3, 1::3]
    known = known[1::3, 1::3]
    sigma = REACH[backdrop.blurred] * max(known.shape)
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma)[..., None]
    return np.float32(ndimage.gaussian_filter(missed, (sigma, sigma, 0)) / (weight + 1e-3))


def _refit(lab: np.ndarray, known: np.ndarray, old: Backdrop) -> Backdrop:
    """The backdrop of more pixels than before. What their polynomial misses, their neighbourhood tells."""
    if old.horizon:
        wall, seam = old.is_wall(*known.shape), old.seam(*known.shape)
        fits = [_fit(lab, known & part & ~seam, BORDER_DEGREE) for part in (wall, ~wall)]
        parts = [fit[0] if fit else part for fit, part in zip(fits, old.parts, strict=True)]
        return Backdrop(parts, old.horizon, noise=old.noise)
    fit = None if old.blurred else _fit(lab, known, INNER_DEGREE)
    backdrop = Backdrop([fit[0]] if fit else old.parts, noise=old.noise, blurred=old.blurred)
    backdrop.correction = _missed(lab, known, backdrop)
    return backdrop


def _fit(lab: np.ndarray, where: np.ndarray, degree: int) -> tuple[np.ndarray, float] | None:
    """A polynomial's coefficients [T, 3] through the colours at `where`, and the noise about it.

    Outliers, an object that touches the border, are dropped round by round. None if too many are, or the noise is too
    much for a plain background.
    """
    height, width = where.shape
    y, x = np.nonzero(where)
    if len(y) < 32:
        return None
    step = max(1, len(y) // 6000)
    y, x = y[::step], x[::step]
    colors = lab[y, x].astype(np.float64)
    v, u = 2 * (y + 0.5) / height - 1, 2 * (x + 0.5) / width - 1
    matrix = np.stack([u**i * v**j for i, j in _exponents(degree)], axis=-1)
    # The first guess is flat, so that an object across one side can't bend the polynomial towards itself; a gradient
    # whose ends are far apart needs a slope.
    for guess in (np.median(colors, axis=0), _steady_slope(u, v, colors)):
        fit = _drop_outliers(matrix, colors, np.linalg.norm(colors - guess, axis=1))
        if fit and fit[1] < MAX_NOISE:
            return fit
    return None


def _steady_slope(u: np.ndarray, v: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """The linear gradient [N, 3] from which half of the colours differ least (least median of squares)."""
    random = np.random.default_rng(0)
    matrix = np.stack([np.ones_like(u), u, v], axis=-1)
    few, draws = random.integers(0, len(u), 500), random.integers(0, len(u), (80, 6))
    slopes = np.linalg.pinv(matrix[draws]) @ colors[draws]
    errors = np.median(np.linalg.norm(colors[few] - matrix[few] @ slopes, axis=-1), axis=-1)
    return matrix @ slopes[errors.argmin()]


def _drop_outliers(matrix: np.ndarray, colors: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, float] | None:
    # A trace of ridge keeps the polynomial tame where the inliers do not pin it down.
    ridge = np.eye(matrix.shape[1])
    ridge[0, 0] = 0
    for limit in (25.0, 15.0, 10.0, 8.0):
        inliers = residual < limit
        if inliers.mean() < MIN_PLAIN_BORDER:
            return None
        kept = matrix[inliers]
        coefficients = np.linalg.solve(kept.T @ kept + 1e-3 * len(kept) * ridge, kept.T @ colors[inliers])
        residual = np.linalg.norm(colors - matrix @ coefficients, axis=1)
    inliers = residual < limit
    if inliers.mean() < MIN_PLAIN_BORDER:
        return None
    return coefficients, float(np.sqrt((residual[inliers] ** 2).mean()))


def _exponents(degree: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]


def _evaluate(coefficients: np.ndarray, height: int, width: int) -> np.ndarray:
    """The polynomial at every pixel, float32 [height, width, 3]."""
    degree = next(d for d in range(9) if len(_exponents(d)) == len(coefficients))
    grid = np.zeros((degree + 1, degree + 1, 3))
    for (i, j), value in zip(_exponents(degree), coefficients, strict=True):
        grid[i, j] = value
    across = np.vander(2 * (np.arange(width) + 0.5) / width - 1, degree + 1, increasing=True)
    down = np.vander(2 * (np.arange(height) + 0.5) / height - 1, degree + 1, increasing=True)
    return np.einsum("yj,xi,ijc->yxc", down, across, grid, optimize=True).astype(np.float32)


def _find_horizon(lab: np.ndarray) -> tuple[float, float] | None:
    """Where a floor begins at the left and at the right edge, as shares of the height; None if nowhere."""
    height = len(lab)
    margin, reach = border_margin(lab.shape[:2]), max(2, height // 40)
    found = []
    for strip in (lab[:, :margin], lab[:, -margin:]):
        profile = np.concatenate([np.zeros((1, 3)), np.median(strip, axis=1).cumsum(axis=0)])
        rows = np.arange(2 * reach, height - 2 * reach)
        step = (profile[rows + reach] - 2 * profile[rows] + profile[rows - reach]) / reach
        best = np.linalg.norm(step, axis=1).argmax()
        found.append((rows[best] / height, step[best]))
    (left, a), (right, b) = found
    size = np.linalg.norm(a) * np.linalg.norm(b)
    alike = size > LEAST_STEP**2 and a @ b > 0.8 * size
    return (left, right) if alike and abs(left - right) < 0.25 else None


def _distance(lab: np.ndarray, other: np.ndarray) -> np.ndarray:
    delta = lab - other
    lightness = np.where(delta[..., 0] < 0, 0.8, 1.0) * delta[..., 0]
    return np.sqrt(lightness**2 + delta[..., 1] ** 2 + delta[..., 2] ** 2)
