"""Four pictures of one object as LGM's cameras would have taken them: cut out, and framed by one box and one scale.

The published code frames each view by itself, after which they disagree about the object's height and its axis.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..core.errors import LGMError
from ..core.messages import VIEW_NAMES
from .images import read_image

SIZE = 256  # pixels of a framed picture's side, what the published LGM sees
SQUARE = 0.01  # how much longer than wide a framed picture may be
SEEN = 12  # alpha from which a pixel counts as the object: networks leave a faint haze


def read_framed(file: str | os.PathLike, size: int = SIZE) -> np.ndarray:
    """A picture that shows the object as LGM's camera does, [size, size, 3] float32 in 0..1, on white.

    Raises:
        LGMError: If it can't be read, is not square, or shows nothing.
    """
    from .matting.framing import over_white  # scipy takes a while to import, and what is sampled may need none of it

    image = read_image(file)
    width, height = image.size
    if abs(width - height) > SQUARE * max(width, height):
        raise LGMError(
            f"{os.fspath(file)} is {width} × {height} pixels, where a view is square. Render it square, or have it "
            "cut out and framed."
        )
    if image.getchannel("A").getextrema()[1] < SEEN:
        raise LGMError(f"{os.fspath(file)} shows nothing: it is fully transparent. Choose another picture.")
    # Colours weigh by their alpha: those of what can't be seen must not come in.
    pixels = image.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
    return over_white(np.asarray(pixels)).astype(np.float32)


def read_views(files: Sequence[str | os.PathLike], size: int = SIZE) -> np.ndarray:
    """Four pictures, cut out and framed together, [4, size, size, 3] float32 in 0..1, on white.

    Raises:
        LGMError: If one can't be read or cut out; says which.
    """
    from .matting import matte

    cuts = []
    for name, file in zip(VIEW_NAMES, files, strict=True):
        try:
            cuts.append(matte(file)[0])
        except LGMError as error:
            raise LGMError(f"{error.message} Change the view from the {name}.", error.kind) from error
    return framed_together(cuts, size)


def framed_again(views: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Sampled views [4, S, S, 3] in 0..1 on any plain background, cut out and framed together.

    Args:
        warnings: Gets a sentence if they can't be; they stay as they are then.
    """
    from .matting import matte

    try:
        cuts = [matte(Image.fromarray(np.uint8(view * 255 + 0.5)))[0] for view in views]
        return framed_together(cuts, views.shape[1])
    except LGMError:
        warnings.append(
            "The sampled views' background could not be cut off, so it may be part of the object. Try another seed."
        )
        return views


def framed_together(cuts: Sequence[np.ndarray], size: int = SIZE) -> np.ndarray:
    """Cut-outs as four cameras on an orbit see the object, [4, size, size, 3] float32 in 0..1, on white.

    Pictures of one size are taken to come from such cameras already: one square box, around what all of them show, is
    cut out of each. Of others, which were taken by hand, each is put in the middle, all of them equally high.

    Args:
        cuts: uint8 [H, W, 4] with straight alpha.

    Raises:
        LGMError: If one shows nothing.
    """
    from .matting.framing import BORDER

    boxes = np.array([_box(cut) for cut in cuts])  # left, top, right, bottom
    if len({cut.shape for cut in cuts}) == 1:
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        centers = np.repeat([(low + high) / 2], len(cuts), 0)
        sides = np.full(len(cuts), (high - low).max(), float)
    else:
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        heights = boxes[:, 3] - boxes[:, 1]
        sides = heights * ((boxes[:, 2:] - boxes[:, :2]) / heights[:, None]).max()
    sides = sides / (1 - BORDER)
    return np.stack([_cropped(*each, size) for each in zip(cuts, centers, sides, strict=True)])


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture [S, S, 3] float32 in 0..1 at another size."""
    if len(picture) == size:
        return picture
    channels = [Image.fromarray(picture[..., i]).resize((size, size), Image.Resampling.LANCZOS) for i in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 1).astype(np.float32)


def _box(cut: np.ndarray) -> tuple[int, int, int, int]:
    visible = cut[..., 3] > min(SEEN, int(cut[..., 3].max()) // 2)
    if not visible.any():
        raise LGMError("A view shows no object: it is fully transparent. Choose another picture.")
    top, bottom = np.flatnonzero(visible.any(axis=1))[[0, -1]]
    left, right = np.flatnonzero(visible.any(axis=0))[[0, -1]]
    return left, top, right + 1, bottom + 1


def _cropped(cut: np.ndarray, center: np.ndarray, side: float, size: int) -> np.ndarray:
    """The square of `side` pixels about `center` of a cut-out, on white, [size, size, 3]."""
    from .matting.framing import over_white

    corner = np.floor(center - side / 2).astype(int)
    end = np.ceil(center + side / 2).astype(int)
    part = Image.fromarray(cut).convert("RGBa").crop((*corner.tolist(), *end.tolist()))  # beyond it there is nothing
    box = (*(center - side / 2 - corner).tolist(), *(center + side / 2 - corner).tolist())
    pixels = part.resize((size, size), Image.Resampling.LANCZOS, box=box).convert("RGBA")
    return over_white(np.asarray(pixels)).astype(np.float32)
