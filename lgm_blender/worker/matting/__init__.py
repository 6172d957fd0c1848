"""Background removal and recentring: from any picture to one object on white, as the multi-view model knows it.

What is surest comes first: a mask that the user painted; the picture's own alpha (alpha.py); a plain background, cut
by the colours of the picture's border (border.py); a network, if it is on the disk (network.py). Nothing is ever
downloaded here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from PIL import Image

from ...core.cutout import NETWORK, Method
from ...core.errors import LGMError
from ..images import read_image, to_rgba
from .alpha import cut_by_alpha, is_premultiplied, unpremultiplied
from .bars import find_bars
from .border import cut_plain_background
from .edges import own_colors
from .framing import over_white, recenter
from .network import cut_with_network, find_network, has_runtime

__all__ = ["Used", "cut_plain_background", "matte", "over_white", "recenter"]

Used = Literal["mask", "alpha", "border", "network"]

EMPTY = 8  # of 255: with no pixel more opaque than that there is nothing to be seen
LEAST_CUT = 0.005  # share of a picture that is transparent: a screenshot's rounded corners are not yet a cut-out object
ONE_COLOR = 0.02


def matte(
    image: Image.Image | str | os.PathLike,
    method: Method = "auto",
    threshold: float | None = None,
    mask: Image.Image | str | os.PathLike | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, Used]:
    """Cut the object out of a picture.

    Args:
        image: A picture or its file.
        method: How; 'auto' takes the first that can.
        threshold: 0..1, or None for each method's own. More cuts away more. Of 'alpha' and 'network' it is the opacity
            below which a pixel is cut away, of 'border' how far a colour of the object is from the background's: 1 is
            50 in CIELAB.
        mask: A picture or its file whose white is the object, of any size; method and threshold are not asked then.
        warn: Hears a sentence for the user where the cut may be wrong.
        cancelled: Asked while the network works.

    Returns:
        The picture as uint8 [H, W, 4] with straight alpha, at most 1024 pixels a side, the background's colour taken
        out of half-transparent edges; and how it was done.

    Raises:
        LGMError: If it isn't a usable picture or is empty, or the mask is (kind 'bad_input'), or the object can't be
            cut out in that way (kind 'matting').
        Cancelled: If `cancelled` says so.
    """
    if method not in get_args(Method):
        raise LGMError(f"There is no matting method '{method}'. Choose one of {', '.join(get_args(Method))}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise LGMError(f"The matting threshold must be from 0 to 1, not {threshold:g}.")
    rgba = _pixels(image)
    if mask is not None:
        return _cut_by_mask(rgba, mask), "mask"
    alpha = rgba[..., 3]
    if alpha.max() < EMPTY:
        raise LGMError("The image is fully transparent: there is no object in it. Choose another image.")
    if method == "alpha" or (method == "auto" and (alpha < 128).mean() > LEAST_CUT):
        return _cut_by_alpha(rgba, threshold), "alpha"

    rgb = over_white(rgba)
    if np.ptp(rgb, axis=(0, 1)).max() < ONE_COLOR:
        raise LGMError("The image is empty: it is of one colour. Choose another image.")
    top, bottom, left, right = find_bars(rgb)
    result = np.zeros_like(rgba)
    cut, used = _cut_opaque(rgb[top:bottom, left:right], method, threshold, warn, cancelled)
    result[top:bottom, left:right] = cut
    return result, used


def _cut_opaque(
    rgb: np.ndarray,
    method: Method,
    threshold: float | None,
    warn: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> tuple[np.ndarray, Used]:
    """`matte` for a picture without alpha and bars."""
    network = method == "network" or (method == "auto" and find_network() is not None)
    plain, doubts = None, []
    if method != "network":
        plain = cut_plain_background(rgb, threshold, doubts.append)
        if plain is not None and plain[..., 3].any() and not (doubts and network and has_runtime()):
            for doubt in doubts:
                warn(doubt)
            return plain, "border"
    if network:
        # A threshold for the border's colours means nothing to the network.
        return cut_with_network(rgb, threshold if method == "network" else None, cancelled), "network"
    problem = (
        "The background is not plain, so the object could not be cut out of it."
        if plain is None
        else "The object could not be told from the background: their colours are too much alike."
    )
    raise LGMError(
        f"{problem} Fetch the matting network ({NETWORK.name}), paint a mask, or use an image with a transparent "
        "background or a plain one of another colour.",
        "matting",
    )


def _pixels(image: Image.Image | str | os.PathLike) -> np.ndarray:
    return np.array(to_rgba(image) if isinstance(image, Image.Image) else read_image(image))


def _cut_by_alpha(rgba: np.ndarray, threshold: float | None) -> np.ndarray:
    cut = cut_by_alpha(rgba, threshold)
    if cut[..., 3].max() < EMPTY:
        raise LGMError("Nothing in the image is as opaque as the threshold asks. Lower the threshold.")
    return cut


def _cut_by_mask(rgba: np.ndarray, mask: Image.Image | str | os.PathLike) -> np.ndarray:
    """The picture cut by a painted mask, whatever its own alpha says; colours that this hides may come back."""
    painted = _pixels(mask)
    white = Image.fromarray(np.uint8(painted[..., :3] * (painted[..., 3:] / 255))).convert("L")
    alpha = np.asarray(white.resize((rgba.shape[1], rgba.shape[0]), Image.Resampling.BILINEAR))
    if alpha.max() < EMPTY:
        raise LGMError("The mask is black: nothing of the image is left. Paint the object white, or clear the mask.")
    if (rgba[..., 3] < 255).any():
        straight = unpremultiplied(rgba) if is_premultiplied(rgba) else rgba
        return np.concatenate([straight[..., :3], alpha[..., None]], axis=-1)
    colors = own_colors(over_white(rgba), alpha.astype(np.float32) / 255)
    return np.concatenate([np.uint8(np.clip(colors, 0, 1) * 255 + 0.5), alpha[..., None]], axis=-1)
