"""Splats from and to files of any format: the one list of formats, and the way in and out.

What the panel, the batch, the command line and docs/formats.md say about formats is said by FORMATS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import LGMError
from ..files import replacing
from ..gaussians import Gaussians
from ..harmonics import COUNTS
from . import compressed_ply, gltf_splats, ply, sog, splat, spz
from .checks import AGAIN, DAMAGED, OnWarning, usable
from .sog import WebP

_ANY = (-np.inf, np.inf)


@dataclass(frozen=True)
class Format:
    """A file format of splats.

    Attributes:
        name: As the command line and the operators call it.
        label: As the panel calls it.
        suffixes: Of its files; the first one is written.
        writes: Whether it is written here; all are read.
        degree: The highest degree of spherical harmonics that it holds.
        colors: The lowest and highest colour that it holds.
        harmonics: The lowest and highest coefficient that it holds.
        about: A sentence for those who choose.
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    writes: bool = True
    degree: int = 3
    colors: tuple[float, float] = _ANY
    harmonics: tuple[float, float] = _ANY
    about: str = ""

    @property
    def suffix(self) -> str:
        return self.suffixes[0]


FORMATS = {
    each.name: each
    for each in (
        Format("ply", "PLY", (".ply",), about="What every program reads; nothing is lost"),
        Format(
            "compressed",
            "Compressed PLY",
            (".compressed.ply",),
            harmonics=(-4.0, 4.0),
            about="SuperSplat's, a quarter of a PLY's size",
        ),
        Format("spz", "SPZ", (".spz",), colors=spz.COLORS, harmonics=(-1.0, 127 / 128), about="Niantic's, small"),
        Format("sog", "SOG", (".sog",), about="PlayCanvas', the smallest of a large scene"),
        Format("glb", "glTF", (".glb", ".gltf"), about="KHR_gaussian_splatting; nothing is lost"),
        Format(
            "splat", "Splat", (".splat",), degree=0, colors=(0.0, 1.0), about="Old viewers in browsers; no harmonics"
        ),
        Format("ksplat", "KSplat", (".ksplat",), writes=False, colors=(0.0, 1.0), about="GaussianSplats3D's"),
    )
}
WRITTEN = tuple(each.name for each in FORMATS.values() if each.writes)
SUFFIXES = tuple(
    dict.fromkeys(f".{suffix.rpartition('.')[2]}" for each in FORMATS.values() for suffix in each.suffixes)
)
META = "meta.json"  # of SOG in a folder


def read_splat_file(
    path: str | os.PathLike, on_warning: OnWarning | None = None, *, webp: WebP | None = None
) -> Gaussians:
    """The Gaussians of a file of any format that FORMATS names, in the file's own axes.

    What it is, is told by its first bytes, and only for .splat and .ksplat, which have none of their own, by its name.

    Args:
        path: The file; for SOG also a folder, or the meta.json in it.
        on_warning: Called with a sentence for the user if something was left out or looks wrong.
        webp: Reads the pictures of SOG.

    Raises:
        LGMError: If there is no such file, it is of no such format, damaged, or would fill the memory.
    """
    path = Path(path)
    if path.is_dir() and (path / META).is_file():
        path = path / META
    if path.is_dir():
        raise LGMError(f"{path} is a folder. Choose a file of splats: {', '.join(SUFFIXES)}.")
    if path.exists() and not path.is_file():  # a pipe that never begins, a device that never ends
        raise LGMError(f"{path} is no file. Choose a file of splats: {', '.join(SUFFIXES)}.")
    try:
        with path.open("rb") as file:
            head = file.read(1 << 10)
        decode = _decoder(head, path, webp)
        data = decode and path.read_bytes()
    except FileNotFoundError:
        raise LGMError(f"There is no file {path}. Choose another.") from None
    except OSError as error:
        raise LGMError(
            f"{path} could not be read ({error.strerror or error}). Choose another file, or copy it to another disk."
        ) from error
    try:
        gaussians = decode(data, path, on_warning) if decode else ply.read_ply(path, on_warning)
    except DAMAGED as error:
        raise LGMError(
            f"{path} is damaged: it can't be read ({type(error).__name__}: {str(error)[:200]}). {AGAIN}"
        ) from None
    if not len(gaussians):
        raise LGMError(f"{path} holds no Gaussians. Choose another file.")
    return usable(gaussians, path, on_warning) if decode else gaussians


def stem_of(path: str | os.PathLike) -> str:
    """What a file of splats is called: its name without a suffix, or of SOG in a folder the folder's."""
    path = Path(path)
    if path.name == META:
        return path.parent.name
    compressed = FORMATS["compressed"].suffix
    return path.name[: -len(compressed)] if path.name.lower().endswith(compressed) else path.stem


def _decoder(head: bytes, path: Path, webp: WebP | None) -> Callable[..., Gaussians] | None:
    """What reads a file that begins so; None for PLY, which is read part by part."""
    suffix = path.suffix.lower()
    if not head:
        raise LGMError(f"{path} is an empty file. {AGAIN}")
    if head[:3] == b"ply" or suffix == ".ply":
        return None
    if head[:2] == b"\x1f\x8b" or head[:4] == spz.MAGIC:
        return spz.decode
    if head[:4] == b"PK\x03\x04":
        return partial(sog.decode, webp=webp)
    if head[:4] == b"glTF":
        return gltf_splats.decode
    if head.lstrip()[:1] == b"{":
        return partial(sog.decode, webp=webp, folder=path.parent) if path.name == META else gltf_splats.decode
    if suffix == ".ksplat":
        return splat.decode_ksplat
    if suffix == ".splat":
        return splat.decode_splat
    raise LGMError(f"{path} is no file of splats that is known here. Choose one of {', '.join(SUFFIXES)}.")


def format_of(path: str | os.PathLike) -> Format:
    """The format that a file's name asks for.

    Raises:
        LGMError: If none of those that are written here has this suffix.
    """
    name = Path(path).name.lower()
    for each in sorted(FORMATS.values(), key=lambda each: -len(each.suffix)):
        if each.writes and name.endswith(each.suffix):
            return each
    suffixes = ", ".join(FORMATS[each].suffix for each in WRITTEN)
    raise LGMError(f"{path} has no suffix of a format that can be written. Choose one of {suffixes}.", "output")


def encode_splats(name: str, gaussians: Gaussians, *, pad: bool = False, webp: WebP | None = None) -> bytes:
    """Gaussians as a file of a format.

    Args:
        name: One of WRITTEN.
        gaussians: In the axes that the file is to have; SPZ and glTF say theirs are LGM's. All values finite.
        pad: Whether a PLY gets normals and 45 harmonics, of zeros where there are none, which some programs insist on.
        webp: Writes the pictures of SOG.

    Raises:
        LGMError: If there is no Gaussian, or SOG is asked for without `webp`.
    """
    if not len(gaussians):
        raise LGMError("There is no Gaussian to write. Choose splats that can be seen.", "output")
    if name == "ply":
        return ply.encode_ply(gaussians, sh_degree=3 if pad else 0, normals=pad)
    gaussians = _fitting(gaussians, FORMATS[name])
    if name == "sog":
        return sog.encode(gaussians, webp=webp)
    encoders = {"compressed": compressed_ply.encode, "spz": spz.encode, "glb": gltf_splats.encode}
    return (encoders | {"splat": splat.encode_splat})[name](gaussians)


def write_splat_file(
    path: str | os.PathLike,
    gaussians: Gaussians,
    on_warning: OnWarning | None = None,
    *,
    pad: bool = False,
    webp: WebP | None = None,
) -> None:
    """Writes Gaussians in the format of the file's suffix, whole or not at all; a file that is there is replaced.

    Args:
        path: The file.
        on_warning: Told, in sentences, what the format can't hold.
        gaussians, pad, webp: See `encode_splats`.

    Raises:
        LGMError: (kind 'output') If the suffix is none that can be written, or the file can't be.
    """
    chosen = format_of(path)
    gaussians = gaussians.select(finite) if not (finite := gaussians.finite()).all() else gaussians
    if on_warning:
        for sentence in losses(gaussians, chosen):
            on_warning(sentence)
    if chosen.name == "ply" and len(gaussians):  # part by part: it is the largest
        ply.write_ply(path, gaussians, sh_degree=3 if pad else 0, normals=pad)
        return
    data = encode_splats(chosen.name, gaussians, pad=pad, webp=webp)
    with replacing(path) as file:
        file.write(data)


def _fitting(gaussians: Gaussians, chosen: Format) -> Gaussians:
    """The Gaussians without the harmonics that a format has no place for."""
    most = COUNTS[chosen.degree]
    if gaussians.harmonics.shape[1] <= most:
        return gaussians
    values = {name: getattr(gaussians, name) for name in ("positions", "opacities", "scales", "rotations", "colors")}
    return Gaussians(**values, harmonics=gaussians.harmonics[:, :most])


def losses(gaussians: Gaussians, chosen: Format) -> list[str]:
    """Sentences about what a format can't hold of these Gaussians, beside the digits that a packed one rounds away."""
    sentences = []
    if gaussians.harmonics.shape[1] > COUNTS[chosen.degree]:
        sentences.append(f"{chosen.label} holds no spherical harmonics: colours are the same from all sides there.")
    clipped = int(_beyond(gaussians.colors, chosen.colors))
    if clipped:
        low, high = chosen.colors
        sentences.append(
            f"{chosen.label} holds colours from {low:.2f} to {high:.2f}: {clipped:,} Gaussians were clipped."
        )
    if chosen.degree and (clipped := int(_beyond(gaussians.harmonics, chosen.harmonics))):
        low, high = chosen.harmonics
        sentences.append(
            f"{chosen.label} holds spherical harmonics from {low:.0f} to {high:.0f}: "
            f"those of {clipped:,} Gaussians were clipped."
        )
    return sentences


def _beyond(values: np.ndarray, bounds: tuple[float, float], slack: float = 1e-3) -> int:
    """How many Gaussians have a value beyond bounds, by more than rounding would."""
    if bounds == _ANY or not values.size:
        return 0
    outside = [
        ((part < bounds[0] - slack) | (part > bounds[1] + slack)).reshape(len(part), -1).any(axis=1).sum()
        for part in np.array_split(values, -(-len(values) // (1 << 17)))
    ]
    return int(sum(outside))
