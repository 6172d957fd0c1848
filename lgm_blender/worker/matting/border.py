"""An object on a plain background, cut by the colours that the picture's border shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from ...core.color import lab_to_srgb, srgb_to_lab
from .backdrop import MAX_NOISE, Backdrop, border_of, connected_to_border, find_backdrop, tolerance_of
from .edges import soft_edges

WORK = 384  # pixels of the longer side at which the background is looked for; edges are solved at full size
FARTHEST = 50.0  # in CIELAB: what a threshold of 1 means
FAINT_EDGE = 1.2  # in CIELAB per pixel of such a picture: a slope at which the background ends
LEAST_POCKET = 1e-3  # share of the picture

EATEN = (
    "Part of the object may be missing: it has the background's colour and no edge towards it. Look at the cut-out; "
    "paint a mask, or set another threshold."
)


def cut_plain_background(
    rgb: np.ndarray, threshold: float | None = None, warn: Callable[[str], None] = lambda sentence: None
) -> np.ndarray | None:
    """Cut an object off a background of one colour, of a gradient, with a vignette, or of a wall and a floor.

    What is near the background's colour and connected to the border is background, up to an edge, however faint: a
    white throat on white ends where its outline is. So are regions of that colour enclosed by the object (the inside
    of a mug's handle): where the background is white that makes no difference to what the models see, and on any other
    colour such a region is more often a hole than a part. Along the edge alpha is how far the pixel's colour lies from
    the background's towards the object's.

    Args:
        rgb: float32 [H, W, 3] in 0..1.
        threshold: How far from the background's a colour of the object is at least, 0..1 for 0 to 50 in CIELAB; by
            default what the background's noise asks for.
        warn: Hears a sentence if the cut may be wrong.

    Returns:
        uint8 [H, W, 4], transparent all over if nothing stands out; or None if the background is not plain.
    """
    height, width = rgb.shape[:2]
    tolerance = None if threshold is None else threshold * FARTHEST
    small = _shrunk(rgb)
    # Grain, of film or of a strong JPEG compression, is smoothed away for the search; the edge is solved without.
    for smoothing in (0, 1, 2):
        lab = srgb_to_lab(_smoothed(small, smoothing))
        edges = _edges(lab)
        if backdrop := find_backdrop(lab, edges, tolerance):
            break
    else:
        return None
    kept = _pockets(lab, edges, backdrop, tolerance or tolerance_of(backdrop.noise))
    kept = np.asarray(Image.fromarray(kept).resize((width, height), Image.Resampling.NEAREST))

    background_lab = backdrop.colors(height, width)
    lab, noise = _quiet_lab(rgb, background_lab)
    tolerance = tolerance or tolerance_of(noise)
    distance = backdrop.distance(lab)
    background = connected_to_border((distance < tolerance) & ~kept)
    if background.mean() < 0.02:
        return None

    objects = _without_specks(~background, 0.005)
    objects &= kept | ~_shadow(lab, background_lab, objects)
    objects = _without_specks(objects & (kept | ~_holes(objects, distance, tolerance)), 0.0005)
    if _is_eaten(objects, background_lab):
        warn(EATEN)
    return soft_edges(rgb, objects, lab_to_srgb(background_lab))


def _shrunk(rgb: np.ndarray) -> np.ndarray:
    """The picture with its longer side at most WORK pixels."""
    height, width = rgb.shape[:2]
    scale = WORK / max(height, width)
    if scale >= 1:
        return rgb
    size = max(16, round(width * scale)), max(16, round(height * scale))
    channels = [Image.fromarray(rgb[..., i]).resize(size, Image.Resampling.BOX) for i in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _smoothed(rgb: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(rgb, (sigma, sigma, 0)) if sigma else rgb


def _quiet_lab(rgb: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture in CIELAB, smoothed until the background is plain, and the noise that is left of it."""
    border = border_of(rgb.shape[:2])
    for smoothing in (0, 1, 2):
        lab = srgb_to_lab(_smoothed(rgb, smoothing))
        residual = np.linalg.norm(lab[border] - background[border], axis=-1)
        residual = residual[residual < 8]  # an object may touch the border
        noise = float(np.sqrt((residual**2).mean())) if len(residual) else 0.0
        if noise < MAX_NOISE:
            break
    return lab, noise


def _edges(lab: np.ndarray) -> np.ndarray:
    """Where [H, W] the colour changes faster than gradients do, and faster than the noise of the picture's border."""
    slope = np.sqrt(sum(ndimage.gaussian_gradient_magnitude(lab[..., i], 1) ** 2 for i in range(3)))
    usual = np.quantile(slope[border_of(lab.shape[:2])], 0.5)
    return slope > FAINT_EDGE + 2.5 * usual


def _pockets(lab: np.ndarray, edges: np.ndarray, backdrop: Backdrop, tolerance: float) -> np.ndarray:
    """Parts of the object [H, W] that have about the background's colour, and an edge towards it.

    They are what a flood from the border takes only if it is not stopped by edges. Islands of the background between
    two edges are there, too: they have its colour exactly, and not much of the object around them.
    """
    distance = backdrop.distance(lab)
    alike = distance < tolerance
    taken = connected_to_border(alike)
    stopped = connected_to_border(alike & (~edges | backdrop.seam(*alike.shape)))
    stopped = ndimage.binary_dilation(stopped, iterations=2, mask=taken)
    pockets = ndimage.binary_opening(taken & ~stopped, iterations=2)
    labels, count = ndimage.label(pockets)
    kept = np.zeros_like(pockets)
    delta = lab - backdrop.colors(*alike.shape)
    for number in range(1, count + 1):
        pocket = labels == number
        around = ndimage.binary_dilation(pocket, iterations=5) & ~ndimage.binary_dilation(pocket, iterations=2)
        differs = np.linalg.norm(delta[pocket].mean(axis=0)) > max(1.5, backdrop.noise)
        enclosed = (around & ~taken).sum() > 0.5 * around.sum()
        if pocket.mean() > LEAST_POCKET and (differs or enclosed):
            kept |= pocket
    return ndimage.binary_dilation(kept, iterations=3, mask=taken & ~stopped)


def _is_eaten(objects: np.ndarray, background_lab: np.ndarray) -> bool:
    """Whether the background reaches deep into the object through a narrow mouth.

    Not on white: there a part that is lost looks to the models as it does in the picture.
    """
    step = max(1, max(objects.shape) // 128)
    small, colors = objects[::step, ::step], background_lab[::step, ::step]
    rows, columns = np.flatnonzero(small.any(1)), np.flatnonzero(small.any(0))
    if not len(rows) or (colors[small][:, 0].mean() > 96 and np.abs(colors[small][:, 1:]).mean() < 3):
        return False
    reach = max(2, round(0.08 * max(rows[-1] - rows[0], columns[-1] - columns[0])))
    padded = np.pad(small, reach + 1)
    near = ndimage.distance_transform_edt(~padded) <= reach
    closed = ndimage.distance_transform_edt(near) > reach
    bays, _ = ndimage.label(ndimage.binary_opening(closed & ~padded & ~_enclosed(padded), iterations=2))
    return np.bincount(bays.ravel())[1:].max(initial=0) > 0.05 * small.sum()


def _enclosed(objects: np.ndarray) -> np.ndarray:
    """The object's holes: what they are is decided by their colour."""
    return ndimage.binary_fill_holes(objects) & ~objects


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
    shadow = connected_to_border((alike & (slope < 2)) | ~objects) & objects
    # Its last pixels lie on the slope of the object's own edge. Slivers along such edges are no shadows, and a thin
    # grey chimney must not go with them.
    broad = ndimage.binary_opening(shadow, iterations=3)
    last = alike & objects & (slope >= 2)
    shadow = ndimage.binary_dilation(broad, iterations=4, mask=shadow | last)
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


