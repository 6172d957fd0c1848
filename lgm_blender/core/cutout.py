"""How an object is cut out of its picture: the methods, and the network that one of them needs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["auto", "alpha", "border", "network"]


@dataclass(frozen=True)
class Network:
    """A file that can be fetched: its size in bytes, its SHA-256, and under which licence."""

    name: str
    url: str
    size: int
    sha256: str
    licence: str
    home: str

    def terms(self) -> list[str]:
        """What the user should know before it is fetched, a line each."""
        return [
            f"{self.name}: {self.size / 1e6:.0f} MB, licence {self.licence} ({self.home})",
            f"It comes from {self.url.rpartition('/')[0]}",
        ]


# The hash is given by nine public repositories that fetch this file, and agrees with the MD5 in rembg's own source
# (fc16ebd8b0c10d971d3513d564d01e29) in those that give both; the size by five.
NETWORK = Network(
    name="isnet-general-use",
    url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/isnet-general-use.onnx",
    size=178_648_008,
    sha256="60920e99c45464f2ba57bee2ad08c919a52bbf852739e96947fbb4358c0d964a",
    licence="Apache-2.0",
    home="https://github.com/xuebinqin/DIS",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that cuts objects out of images; see MatteRequest in messages.py."""
    about = "how the object is cut out: by the image's alpha, a plain background's colours, or the matting network"
    parser.add_argument("--matting", choices=get_args(Method), default="auto", help=f"{about} (default: auto)")
    about = "0 to 1, more cuts away more: least opacity or, of border, least distance from the background's colour"
    parser.add_argument("--matting-threshold", type=float, metavar="T", help=f"{about} (default: the method's)")
