"""Background removal and recentring: from any picture to one object on white, as the multi-view model knows it.

Three ways, the surest first: the picture's own alpha; a plain background, cut by the colours of the picture's border;
a matting network, if rembg is installed and its network is on the disk. Nothing is ever downloaded here.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from ..core.color import lab_to_srgb, srgb_to_lab
from ..core.errors import LGMError
from ..core.paths import expanded
from .images import read_image, to_rgba

Method = Literal["alpha", "border", "rembg"]

BORDER = 0.2  # share of the recentred picture that stays empty along the object's longer side

# rembg's networks for any object, the best first; its others are for people, clothes or drawings, or need a licence.
REMBG_NETWORKS = ("birefnet-general", "isnet-general-use", "birefnet-general-lite", "u2net", "silueta", "u2netp")


def matte(image: Image.Image | str | os.PathLike) -> tuple[np.ndarray, Method]:
    """Cut the object out of a picture.

    Args:
        image: A picture or its file.

    Returns:
        The picture as uint8 [H, W, 4] with straight alpha, at most 1024 pixels a side, the background's colour taken
        out of half-transparent edges; and how it was done.

    Raises:
        LGMError: If it isn't a usable picture or is empty (kind 'bad_input'), or its background is not plain and
            there is no network to remove it (kind 'matting').
    """
    rgba = np.array(to_rgba(image) if isinstance(image, Image.Image) else read_image(image))
    alpha = rgba[..., 3]
    if alpha.max() < 8:
        raise LGMError("The image is fully transparent: there is no object in it. Choose another image.")
    # A screenshot's rounded corners are not yet a cut-out object.
    if (alpha < 128).mean() > 0.005:
        return rgba, "alpha"

    rgb = over_white(rgba)
    if (rgb.max(axis=(0, 1)) - rgb.min(axis=(0, 1))).max() < 0.02:
        raise LGMError("The image is empty: it is of one colour. Choose another image.")
    plain = cut_plain_background(rgb)
    if plain is not None and plain[..., 3].any():
        return plain, "border"
    cut = _cut_with_rembg(rgba)
    if cut is not None:
        return cut, "rembg"
    problem = (
        "The background is not plain, so the object could not be cut out of it."
        if plain is None
        else "The object could not be told from the background: their colours are too much alike."
    )
    raise LGMError(
        f"{problem} Use an image with a transparent background or a plain one of another colour, or install rembg and "
        "its network into the worker's Python: pip install 'rembg[cpu]', then rembg d isnet-general-use.",
        "matting",
    )


def recenter(rgba: np.ndarray, size: int = 256) -> np.ndarray:
    """Put the object in the middle of a white square, its longer side filling 1 - `BORDER` of it.

    What the published code does (`kiui.op.recenter`, then compositing on white), but the object's last row and column
    are not lost, and colours are resized together with their alpha.

    Args:
        rgba: uint8 [H, W, 4], straight alpha.
        size: Width and height of the result in pixels.

    Returns:
        float32 [size, size, 3] in 0..1.

    Raises:
        LGMError: If nothing in the picture is visible.
    """
    # Networks leave a faint haze, which must not count as the object; a faint object still must.
    visible = rgba[..., 3] > min(12, int(rgba[..., 3].max()) // 2)
    if not visible.any():
        raise LGMError("The image shows no object: it is fully transparent. Choose another image.")
    top, bottom = np.flatnonzero(visible.any(axis=1))[[0, -1]]
    left, right = np.flatnonzero(visible.any(axis=0))[[0, -1]]
    on_white = over_white(rgba[top : bottom + 1, left : right + 1])

    height, width = on_white.shape[:2]
    scale = size * (1 - BORDER) / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    filter = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    channels = [Image.fromarray(on_white[..., i]).resize((new_width, new_height), filter) for i in range(3)]
    resized = np.clip(np.stack([np.asarray(channel) for channel in channels], axis=-1), 0, 1)

    result = np.ones((size, size, 3), np.float32)
    y, x = (size - new_height) // 2, (size - new_width) // 2
    result[y : y + new_height, x : x + new_width] = resized
    return result


def over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with straight alpha composited on white: float32 [H, W, 3] in 0..1."""
    values = rgba.astype(np.float32) / 255
    return values[..., :3] * values[..., 3:] + 1 - values[..., 3:]


# A plain background
# ------------------

MAX_NOISE = 2.5  # standard deviation in CIELAB of a background that still counts as plain
MIN_PLAIN_BORDER = 0.65  # share of the border that is background; the object may be cut off at one side


def cut_plain_background(rgb: np.ndarray) -> np.ndarray | None:
    """Cut an object off a background of one colour, of a gentle gradient, or with a vignette.

    The background's colour at every pixel is a quadratic polynomial fitted to the border. What is near that colour
    and connected to the border is background. So are regions of that colour enclosed by the object (the inside of a
    mug's handle): where the background is white that makes no difference to what the models see, and on any other
    colour such a region is more often a hole than a part. Along the edge alpha is how far the pixel's colour lies
    from the background's towards the object's.

    Args:
        rgb: float32 [H, W, 3] in 0..1.

    Returns:
        uint8 [H, W, 4], transparent all over if nothing stands out; or None if the background is not plain.
    """
    height, width = rgb.shape[:2]
    border = np.ones((height, width), bool)
    margin = max(2, min(height, width) // 64)
    border[margin:-margin, margin:-margin] = False

    # Grain, of film or of a strong JPEG compression, is smoothed away for the search; the edge is solved without.
    for smoothing in (0, 1, 2):
        lab = srgb_to_lab(ndimage.gaussian_filter(rgb, (smoothing, smoothing, 0)) if smoothing else rgb)
        fit = _fit_background(lab, border)
        if fit is not None and fit[1] < MAX_NOISE:
            break
    else:
        return None
    background_lab, noise = fit
    tolerance = np.clip(5 + 3 * noise, 6, 14)
    distance = _color_distance(lab, background_lab)

    background = _connected_to_border(distance < tolerance)
    if background.mean() < 0.02:
        return None
    # The found background says more about a gradient than the border alone.
    refined = _fit_background(lab, background)
    if refined is not None:
        background_lab = refined[0]
        distance = _color_distance(lab, background_lab)
        background = _connected_to_border(distance < tolerance)

    objects = _without_specks(~background, 0.005)
    objects &= ~_shadow(lab, background_lab, objects)
    objects = _without_specks(objects & ~_holes(objects, distance, tolerance), 0.0005)
    return _soft_edges(rgb, objects, lab_to_srgb(background_lab))


def _fit_background(lab: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, float] | None:
    """A quadratic polynomial [H, W, 3] through the colours at `where`, and the noise about it (a standard deviation).

    Outliers, an object that touches the border, are dropped round by round. None if too many are.
    """
    height, width = where.shape
    y, x = np.nonzero(where)
    step = max(1, len(y) // 20_000)
    y, x = y[::step], x[::step]
    colors = lab[y, x].astype(np.float64)

    def terms(y, x):
        v, u = 2 * y / height - 1, 2 * x / width - 1
        return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)

    matrix = terms(y.astype(np.float64), x.astype(np.float64))
    # The first guess is flat, so that an object across one side can't bend the polynomial towards itself.
    residual = np.linalg.norm(colors - np.median(colors, axis=0), axis=1)
    for limit in (25.0, 15.0, 10.0, 8.0):
        inliers = residual < limit
        if inliers.mean() < MIN_PLAIN_BORDER:
            return None
        # A trace of ridge keeps the polynomial tame where the inliers do not pin it down.
        kept = matrix[inliers]
        ridge = np.diag([0, 1, 1, 1, 1, 1]) * 1e-3 * len(kept)
        coefficients = np.linalg.solve(kept.T @ kept + ridge, kept.T @ colors[inliers])
        residual = np.linalg.norm(colors - matrix @ coefficients, axis=1)
    inliers = residual < limit
    if inliers.mean() < MIN_PLAIN_BORDER:
        return None
    noise = float(np.sqrt((residual[inliers] ** 2).mean()))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    return (terms(rows, columns) @ coefficients).astype(np.float32), noise


def _color_distance(lab: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance in CIELAB, darker by a little forgiven: a soft shadow lies on the background, not on the object."""
    delta = lab - other
    lightness = np.where(delta[..., 0] < 0, 0.8, 1.0) * delta[..., 0]
    return np.sqrt(lightness**2 + delta[..., 1] ** 2 + delta[..., 2] ** 2)


def _connected_to_border(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.unique(edge[edge > 0]))


def _without_specks(mask: np.ndarray, share: float) -> np.ndarray:
    """Without parts smaller than `share` of the largest one: dust, noise, a watermark's dots."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    if areas.max() < 1e-3 * mask.size:
        return np.zeros_like(mask)
    return (areas >= share * areas.max())[labels]


def _shadow(lab: np.ndarray, background: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The object's soft shadow on the background: darker, of the same hue, without an edge, touching the background.

    A grey object that fades into a white background looks the same. So if it is much that would go, nothing does.
    """
    delta = ndimage.gaussian_filter(lab - background, (1, 1, 0))
    shade = -delta[..., 0] / np.maximum(background[..., 0], 1)
    # A darker grey has less chroma too: it shrinks with the lightness.
    expected_chroma = -shade[..., None] * background[..., 1:]
    hue = np.linalg.norm(delta[..., 1:] - expected_chroma, axis=-1)
    slope = ndimage.gaussian_gradient_magnitude(lab[..., 0], 1)
    alike = (hue < 8) & (shade > -0.02) & (shade < 0.5)
    shadow = _connected_to_border((alike & (slope < 2)) | ~objects) & objects
    # Its last pixels lie on the slope of the object's own edge.
    shadow = ndimage.binary_dilation(shadow, iterations=4, mask=shadow | (alike & objects))
    return shadow if shadow.sum() < 0.3 * objects.sum() else np.zeros_like(shadow)


def _holes(objects: np.ndarray, distance: np.ndarray, tolerance: float) -> np.ndarray:
    """Regions inside the object that have the background's colour all over."""
    labels, count = ndimage.label(objects & (distance < tolerance))
    if not count:
        return np.zeros_like(objects)
    index = np.arange(count + 1)
    areas = np.bincount(labels.ravel())
    mean = ndimage.mean(distance, labels, index)
    holes = (areas > max(16, 5e-4 * objects.sum())) & (mean < 0.5 * tolerance)
    holes[0] = False
    return holes[labels]


def _soft_edges(rgb: np.ndarray, objects: np.ndarray, background: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with alpha solved for in a band along the edge, and the background's colour taken out there.

    A pixel on the edge is C = a F + (1 - a) B: B is the background there, F the colour of the object nearby. The band
    is as wide as the edge is soft: until the pixels just inside of it are all object.
    """
    depth = ndimage.distance_transform_edt(np.pad(objects, 1, mode="edge"))[1:-1, 1:-1]
    for width in (2, 4, 8, 16, 32, 2):  # the last where there is nothing like an edge: the object has B's colour there
        inside = depth > width
        alpha, foreground = _solve_alpha(rgb, inside, background, reach=width + 1)
        innermost = inside & (depth <= width + 1)
        if not innermost.any() or np.nanquantile(alpha[innermost], 0.05) > 0.9:
            break
    band = ndimage.binary_dilation(objects, iterations=min(width, 4)) & ~inside

    # Where it could not be solved, in thin parts and where the pixel is of a third colour, the pixel is its own object.
    alpha = np.where(band & np.isfinite(alpha), alpha, objects)
    alpha[alpha < 0.04] = 0
    a = np.maximum(alpha, 0.04)[..., None]
    unmixed = np.clip((rgb - (1 - a) * background) / a, 0, 1)
    trust = np.clip((a - 0.3) / 0.4, 0, 1)  # a faint pixel says little about the object's colour
    unmixed = trust * unmixed + (1 - trust) * np.clip(foreground, 0, 1)
    colors = np.where((band & (alpha < 1))[..., None], unmixed, rgb)
    return np.uint8(np.concatenate([colors, alpha[..., None]], axis=-1) * 255 + 0.5)


def _solve_alpha(
    rgb: np.ndarray, inside: np.ndarray, background: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha [H, W], NaN where it has no solution, and the object's colour nearby [H, W, 3]."""
    size = 2 * reach + 1
    weight = ndimage.uniform_filter(inside.astype(np.float32), size)
    nearby = [ndimage.uniform_filter(rgb[..., i] * inside, size) for i in range(3)]
    known = weight > 1e-3
    foreground = np.where(known[..., None], np.stack(nearby, -1) / np.maximum(weight, 1e-3)[..., None], rgb)
    direction = foreground - background
    length = (direction**2).sum(-1)
    alpha = ((rgb - background) * direction).sum(-1) / np.maximum(length, 1e-6)
    alpha = np.clip(alpha, 0, 1)
    off_the_line = np.linalg.norm(rgb - background - alpha[..., None] * direction, axis=-1)
    solved = known & (length > 0.01) & ((off_the_line < 0.15) | (alpha == 1))
    return np.where(solved, alpha, np.nan), foreground


# rembg
# -----


def rembg_network() -> tuple[str, Path] | None:
    """Name and file of the best network that rembg has on this disk, or None."""
    homes = [
        os.environ.get("U2NET_HOME"),
        os.environ.get("REMBG_HOME"),
        str(Path(os.environ.get("XDG_DATA_HOME", "~")) / ".u2net"),
        "~/.rembg",
    ]
    for name in REMBG_NETWORKS:
        for home in filter(None, homes):
            folder = expanded(home)
            for file in (folder / f"{name}.onnx", folder / "models" / name / f"{name}.onnx"):
                if file.is_file():
                    return name, file
    return None


def _cut_with_rembg(rgba: np.ndarray) -> np.ndarray | None:
    """uint8 [H, W, 4] as rembg cuts it, or None if it is not installed or has no network here.

    Raises:
        LGMError: (kind 'matting') if rembg fails, or finds nothing.
    """
    found = rembg_network()
    if found is None or importlib.util.find_spec("rembg") is None:
        return None
    name, file = found
    try:
        import rembg

        with _no_download(file):
            session = rembg.new_session(name)
        cut = rembg.remove(Image.fromarray(rgba).convert("RGB"), session=session)
    except Exception as error:
        raise LGMError(
            f"rembg could not remove the background ({error}). Use an image with a transparent background, or "
            f"delete {file} and fetch it again with: rembg d {name}.",
            "matting",
        ) from error
    result = np.array(cut.convert("RGBA"))
    if (result[..., 3] > 12).mean() < 1e-3:
        raise LGMError(
            "rembg found no object in the image. Use an image of one object, or one with a transparent background.",
            "matting",
        )
    return result


@contextmanager
def _no_download(file: Path):
    """Makes rembg take the network from `file` as it is; by itself it fetches one whose checksum it doesn't like."""
    changes = {"U2NET_HOME": str(file.parent), "MODEL_CHECKSUM_DISABLED": "1"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
