"""What every reader of splats does with values from outside: bounds before memory is taken, and sense afterwards."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import LGMError
from ..gaussians import Gaussians

OnWarning = Callable[[str], None]

LARGEST = 1 << 33  # bytes of a file that is read at once
AGAIN = "Copy or export it again."  # what to do about a file that is damaged

# What damaged data may raise in readers, and in zipfile, json, Pillow and Blender that they call.
DAMAGED = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError)
DAMAGED += (TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)

# What a packed file may unpack to: so many bytes, and so many times its size more. Real files stay below 10 times.
UNPACKED, RATIO = 64 << 20, 32

HUGE = 1000  # a Gaussian so many times as large as all the others together shows nothing but fog
FAR = 1e6  # one so many times as far away leaves the others no digits in float32
BRIGHT = 1e6  # a colour beyond it is none: white is 1
_SAMPLE = 1 << 17  # Gaussians are enough to find the extent of all


def unpack_limit(packed: int) -> int:
    """The most bytes that a packed file of this size may hold."""
    return UNPACKED + RATIO * packed


def too_large(path: Path) -> LGMError:
    """The sentence for a file that unpacks to more."""
    return LGMError(
        f"{path} is damaged, or made to fill the memory: it promises far more than a file of its size holds. {AGAIN}"
    )


def gunzip(data: bytes, path: Path) -> bytes:
    """What gzip packed, or an error if it is cut short, damaged or unpacks to more than `unpack_limit`."""
    unpacker = zlib.decompressobj(31)
    limit = unpack_limit(len(data))
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error:
        raise LGMError(f"{path} is damaged: it can't be unpacked. {AGAIN}") from None
    if not unpacker.eof:
        if len(unpacked) >= limit:
            raise too_large(path)
        raise LGMError(f"{path} is cut short: its packed data has no end. {AGAIN}")
    return unpacked


def unzstd(data: bytes, size: int, path: Path) -> bytes:
    """`size` bytes that zstd packed.

    Raises:
        LGMError: If it holds anything else, or there is no zstd in this Python.
    """
    damaged = LGMError(f"{path} is damaged: it can't be unpacked. {AGAIN}")
    try:
        import zstandard
    except ImportError:
        raise LGMError(
            f"{path} is packed with zstd, and this Python lacks it. Save the file as SPZ 3 or PLY."
        ) from None
    try:  # never more than a byte too many, whatever the packed data would become
        result = zstandard.ZstdDecompressor().stream_reader(data).read(size + 1)
    except zstandard.ZstdError:
        raise damaged from None
    if len(result) != size:
        raise damaged
    return result


def unit_quaternions(quaternions: np.ndarray) -> np.ndarray:
    """[N, 4] float32 of length one; those of length zero become the identity (1, 0, 0, 0). NaN and infinity stay."""
    with np.errstate(invalid="ignore"):
        lengths = np.linalg.norm(quaternions.astype(np.float64), axis=1, keepdims=True)
        result = np.divide(quaternions, lengths, where=lengths != 0, out=np.zeros(quaternions.shape))
    result[lengths[:, 0] == 0, 0] = 1
    return result.astype(np.float32)


def usable(gaussians: Gaussians, path: Path, on_warning: OnWarning | None) -> Gaussians:
    """The Gaussians of a file whose values make sense; sentences about the others go to `on_warning`.

    Left out is what is not finite, larger than HUGE times the extent of all, further away than FAR times it, or of a
    colour beyond BRIGHT.

    Raises:
        LGMError: If none is left.
    """
    count = len(gaussians)
    finite = gaussians.finite()
    if not finite.any():
        raise LGMError(f"{path} holds no Gaussian whose values are all finite numbers. {AGAIN}")
    if not finite.all():
        gaussians = gaussians.select(finite)
        if on_warning:
            on_warning(f"{count - len(gaussians):,} of {count:,} Gaussians in {path} were left out: not finite.")
    center, extent = robust_extent(gaussians)
    with np.errstate(over="ignore"):
        distances = np.abs(gaussians.positions - center).max(axis=1)
        sensible = (gaussians.scales.max(axis=1) <= HUGE * extent) & (distances <= FAR * extent)
    for colors in (gaussians.colors, gaussians.harmonics):
        if colors.size and max(-colors.min(), colors.max()) > BRIGHT:
            sensible &= (np.abs(colors) <= BRIGHT).reshape(len(gaussians), -1).all(axis=1)
    if not sensible.all():
        left_out = len(gaussians) - int(sensible.sum())
        gaussians = gaussians.select(sensible)
        if not len(gaussians):
            raise LGMError(f"{path} holds no Gaussian whose size, place and colour make sense. {AGAIN}")
        if on_warning:
            on_warning(
                f"{left_out:,} of {count:,} Gaussians in {path} were left out: they are more than a thousand times as "
                "large as everything else, a million times as far away, or of no colour that there is."
            )
    return gaussians


def robust_box(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner [3] of what is solid among the Gaussians, a few stray ones left out."""
    solid = gaussians.positions[gaussians.opacities > 0.2]
    return tuple(np.quantile(solid if len(solid) else gaussians.positions, (0.002, 0.998), axis=0))


def robust_extent(gaussians: Gaussians) -> tuple[np.ndarray, float]:
    """The median position [3], and how far the Gaussians reach about it, whatever a tenth of them does.

    It is at least the median Gaussian's own size, so that one alone has an extent.
    """
    step = max(1, len(gaussians) // _SAMPLE)
    positions = gaussians.positions[::step].astype(np.float64)
    low, center, high = np.quantile(positions, (0.05, 0.5, 0.95), axis=0)
    size = float(np.median(gaussians.scales[::step].max(axis=1)))
    return center.astype(np.float32), max(float(np.linalg.norm(high - low)), size, 1e-30)
