"""An object on a plain background, cut by the colours that the picture's border shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from ...core.color import lab_to_srgb, srgb_to_lab
from .backdrop import (
    MAX_NOISE,
    NARROW,
    Backdrop,
    border_of,
    connected_to_border,
    find_backdrop,
    flooded,
    tolerance_of,
)
from .edges import soft_edges

WORK = 384  # pixels of the longer side at which the background is looked for; edges are solved at full size
FARTHEST = 50.0  # in CIELAB: what a threshold of 1 means
FAINT_EDGE = 0.45  # in CIELAB per pixel of such a picture: a slope, above a gradient's, at which the background ends
LEAST_OUTLINE = 0.8  # share of an object's outline that lies on edges
CUT_OFF = 0.2  # share of two opposite sides of the picture: what takes more of both is a scene rather than an object
MUCH = 0.1  # of the object's area
JPEG_RIM = 8  # pixels around a strong edge that a strong compression fills with faint ones
LEAST_POCKET = 1e-3  # share of the picture

SCENE = (
    "What was cut out is cut off at two sides of the image, as a scene is rather than an object. Look at the cut-out; "
    "crop the image to its object, or paint a mask."
)
EATEN = (
    "Part of the object may be missing: it has the background's colour and hardly an edge towards it. Look at the "
    "cut-out; paint a mask, or set another threshold."
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
    kept = np.zeros_like(edges)
    if tolerance is None:  # who sets a threshold wants what is below it to go
        kept = _pockets(lab, edges, backdrop, tolerance_of(backdrop.noise))
    small_lab, kept = lab, _resized(kept, (height, width))

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
    if doubt := _doubt(small_lab, edges, backdrop, _resized(objects, edges.shape)):
        if backdrop.blurred:  # what is out of focus is no plain background if it can't be told from the object
            return None
        warn(doubt)
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


def _resized(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST))


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
    thin = slope - ndimage.minimum_filter(slope, 9)  # edges are thin, gradients wide
    usual = np.median(thin[border_of(lab.shape[:2])])
    return thin > FAINT_EDGE + 3 * usual


def _pockets(lab: np.ndarray, edges: np.ndarray, backdrop: Backdrop, tolerance: float) -> np.ndarray:
    """Parts of the object [H, W] that have about the background's colour, and an edge towards it.

    They are what a flood from the border takes only if it is not stopped by edges. An edge may have gaps where both
    colours happen to be the same; what lies behind narrow ones must differ more. Islands of the background between two
    edges are among them, too: they have its colour exactly, and not much of the object around them.
    """
    distance = backdrop.distance(lab)
    alike = distance < tolerance
    taken = connected_to_border(alike)
    free = alike & (~edges | backdrop.seam(*alike.shape))
    delta = ndimage.gaussian_filter(lab - backdrop.colors(*alike.shape), (2, 2, 0))
    unlike = np.linalg.norm(delta, axis=-1)
    apart = ndimage.distance_transform_edt(taken)
    kept = np.zeros_like(taken)
    for narrow, least, enclosure in ((0.0, max(1.2, backdrop.noise), 0.5), (NARROW, max(2.0, 2 * backdrop.noise), 2.0)):
        stopped = ndimage.binary_dilation(flooded(free, narrow), iterations=2, mask=taken)
        labels, _ = ndimage.label(ndimage.binary_opening(taken & ~stopped & ~kept, iterations=2))
        for number, place in enumerate(ndimage.find_objects(labels), 1):
            place = tuple(slice(max(0, side.start - 6), side.stop + 6) for side in place)
            pocket = labels[place] == number
            if pocket.sum() < LEAST_POCKET * taken.size:
                continue
            around = ndimage.binary_dilation(pocket, iterations=5) & ~ndimage.binary_dilation(pocket, iterations=2)
            enclosed = (around & ~taken[place]).sum() > enclosure * around.sum()
            core = pocket & (apart[place] > JPEG_RIM)
            if core.any() and (enclosed or unlike[place][core].mean() > least):
                kept[place] |= ndimage.binary_dilation(core, iterations=JPEG_RIM + 2, mask=pocket)
        # What the rim of a strong edge took of them comes back.
        solid = ndimage.binary_closing(np.pad(kept | ~taken, 8), iterations=6)[8:-8, 8:-8]
        kept |= solid & taken & ndimage.binary_dilation(kept, iterations=JPEG_RIM + 2)
        kept = ndimage.binary_dilation(kept, iterations=3, mask=taken & ~stopped)
    return kept


def _doubt(lab: np.ndarray, edges: np.ndarray, backdrop: Backdrop, objects: np.ndarray) -> str:
    """A sentence if the objects [H, W] that were cut out of a small picture may be wrong, or ''."""
    if not objects.any():
        return ""
    sides = [side.mean() for side in (objects[0], objects[-1], objects[:, 0], objects[:, -1])]
    if max(min(sides[:2]), min(sides[2:])) > CUT_OFF:
        return SCENE
    # What was left out and is not quite of the background's colour. A faint shadow is darker, and of its hue.
    colors = backdrop.colors(*objects.shape)
    delta = ndimage.gaussian_filter(lab - colors, (2, 2, 0))
    unlike = np.linalg.norm(delta, axis=-1) > max(2.5, 2 * backdrop.noise)
    shade, hue = _shade(delta, colors)
    shade = (shade > 0) & (hue < 3)
    near = ndimage.distance_transform_edt(~objects) < JPEG_RIM
    odd = ndimage.binary_opening(~objects & unlike & ~shade & ~near & ~backdrop.seam(*objects.shape), iterations=3)
    if odd.sum() > MUCH * objects.sum():
        return EATEN
    outline = objects & ~ndimage.binary_erosion(objects, border_value=1)
    on_edges = ndimage.binary_dilation(edges, iterations=3)[outline].mean() if outline.any() else 1.0
    return EATEN if on_edges < LEAST_OUTLINE else ""


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
    shade, hue = _shade(delta, background)
    slope = ndimage.gaussian_gradient_magnitude(lab[..., 0], 1)
    alike = (hue < 8) & (shade > -0.02) & (shade < 0.5)
    steep = ndimage.binary_dilation(slope >= 2)  # whole, or a flood finds a gap between two of its pixels
    shadow = connected_to_border((alike & ~steep) | ~objects) & objects
    # Its last pixels lie on the slope of the object's own edge. Slivers along such edges are no shadows, and a thin
    # grey chimney must not go with them.
    broad = ndimage.binary_opening(shadow, iterations=3)
    shadow = ndimage.binary_dilation(broad, iterations=5, mask=shadow | (alike & objects & steep))
    return shadow if shadow.sum() < 0.3 * objects.sum() else np.zeros_like(shadow)


def _shade(delta: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By which share each pixel is darker than its background, and how far it is then from its hue, in CIELAB."""
    shade = -delta[..., 0] / np.maximum(background[..., 0], 1)
    # A darker grey has less chroma too: it shrinks with the lightness.
    expected_chroma = -shade[..., None] * background[..., 1:]
    return shade, np.linalg.norm(delta[..., 1:] - expected_chroma, axis=-1)


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
