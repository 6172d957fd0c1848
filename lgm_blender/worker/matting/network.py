"""The matting network: IS-Net for any object (Qin et al., Dichotomous Image Segmentation, 2022), run by onnxruntime.

The file is rembg's, and is found where rembg keeps it. rembg itself would bring 22 packages more along, LLVM among
them (64 MB to fetch beside onnxruntime's 27), and of all that these few lines would be used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.cutout import NETWORK, Network
from ...core.errors import Cancelled, LGMError
from ...core.paths import expanded
from ...core.system.folders import data_folder
from .alpha import above_threshold
from .edges import own_colors

SIZE = 1024  # pixels a side of what it looks at
MIDDLE = 0.5  # of 0..1: its input is centred on it, and not scaled
KEPT = 2  # pictures
LEAST_SURE = 0.5  # of 0..1: with no pixel surer than that there is no object

IsCancelled = Callable[[], bool]


def network_path(network: Network = NETWORK) -> Path:
    """Where the network is put when it is fetched."""
    return data_folder() / "networks" / f"{network.name}.onnx"


def find_network(network: Network = NETWORK) -> Path | None:
    """The network's file where it is on this machine and of its size, or None."""
    for path in _places(network):
        with suppress(OSError):
            if path.stat().st_size == network.size:
                return path
    return None


def _places(network: Network) -> Iterator[Path]:
    """Its own place, and rembg's."""
    yield network_path(network)
    file = f"{network.name}.onnx"
    chosen = (os.environ.get(name) for name in ("U2NET_HOME", "REMBG_HOME"))
    home = os.environ.get("XDG_DATA_HOME", "~")
    for folder in (*chosen, f"{home}/.u2net", "~/.u2net", "~/.rembg"):
        if folder:
            yield expanded(folder) / file
            yield expanded(folder) / "models" / network.name / file


def has_runtime() -> bool:
    """Whether onnxruntime is in this Python."""
    return importlib.util.find_spec("onnxruntime") is not None


def cut_with_network(
    rgb: np.ndarray, threshold: float | None = None, cancelled: IsCancelled = lambda: False, file: Path | None = None
) -> np.ndarray:
    """Cut the object out that stands out, whatever is behind it.

    Args:
        rgb: float32 [H, W, 3] in 0..1.
        threshold: Opacity, 0..1, below which a pixel is cut away; by default none is.
        cancelled: Asked ten times a second while the network works.
        file: The network, by default where it is found.

    Returns:
        uint8 [H, W, 4], straight alpha, the background's colour taken out of soft edges.

    Raises:
        Cancelled: If `cancelled` says so.
        LGMError: (kind 'matting') if there is no network, it can't be run, or it finds nothing.
    """
    file = file or find_network()
    if file is None:
        raise LGMError(
            f"The matting network is not on this machine. Fetch {NETWORK.name} ({NETWORK.size / 1e6:.0f} MB), or "
            "choose another method.",
            "matting",
        )
    pixels = np.uint8(np.clip(rgb, 0, 1) * 255 + 0.5)
    found = _opacity(file, pixels, cancelled)
    if found.max() < LEAST_SURE * 255:
        raise LGMError(
            "The network found no object in the image. Use an image of one object, or paint a mask.", "matting"
        )
    alpha = found.astype(np.float32) / 255
    cut = np.concatenate([own_colors(rgb, alpha), alpha[..., None]], axis=-1)
    return above_threshold(np.uint8(np.clip(cut, 0, 1) * 255 + 0.5), threshold)


_seen: dict[tuple[Path, bytes], np.ndarray] = {}  # another threshold, or the job after its preview, looks only once


def _opacity(file: Path, pixels: np.ndarray, cancelled: IsCancelled) -> np.ndarray:
    """uint8 [H, W], 255 where the network is surest that the object is."""
    key = file, hashlib.sha256(pixels.tobytes() + bytes(str(pixels.shape), "ascii")).digest()
    if key not in _seen:
        opacity = _look(file, pixels, cancelled)
        while len(_seen) >= KEPT:
            del _seen[next(iter(_seen))]
        _seen[key] = opacity
    return _seen[key]


def _look(file: Path, pixels: np.ndarray, cancelled: IsCancelled) -> np.ndarray:
    image = Image.fromarray(pixels)
    square = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32) / 255 - MIDDLE
    try:
        score = _run(file, square.transpose(2, 0, 1)[None], cancelled)
    except LGMError:
        raise
    except Exception as error:  # onnxruntime raises classes of its own for whatever a damaged file makes of it
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LGMError(
            f"The network could not be run ({said[:200]}). Delete {file} and fetch it again.", "matting"
        ) from error
    score = np.clip(score, 0, 1)
    low, high = float(score.min()), float(score.max())
    if high >= LEAST_SURE:
        score = (score - low) / max(high - low, 1e-6)
    mask = Image.fromarray(np.uint8(score * 255 + 0.5))
    return np.asarray(mask.resize(image.size, Image.Resampling.BICUBIC))


def _run(file: Path, values: np.ndarray, cancelled: IsCancelled) -> np.ndarray:
    """The network's first output [SIZE, SIZE] for its input [1, 3, SIZE, SIZE]."""
    try:
        import onnxruntime
    except ImportError as error:
        raise LGMError(
            f"The network needs a package that the worker's Python lacks ({error}). Install the worker again.",
            "worker",
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    how, done = onnxruntime.RunOptions(), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if cancelled():
                how.terminate = True
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        first = session.get_outputs()[0].name
        return session.run([first], {session.get_inputs()[0].name: values}, how)[0].reshape(values.shape[2:])
    except Exception:
        if how.terminate:
            raise Cancelled from None
        raise
    finally:
        done.set()
