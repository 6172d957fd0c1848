"""The packed golden data. Needs numpy; no library of the worker's, since Blender's tests use it too."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("", "tests/core"))
from tensors import read_safetensors  # beside test_ply.py

from lgm_blender.core.formats.ply import write_ply
from lgm_blender.core.gaussians import Gaussians

GOLDEN = Path(__file__).parent / "golden.tar.xz"


def unpack_golden(folder: Path) -> None:
    """Unpacks them into a folder, and writes the Gaussians among them as lgm.ply, of which they hold some rows."""
    with tarfile.open(GOLDEN) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python 3.11.2 has none
        archive.extractall(folder)
    array = read_safetensors(folder / "lgm.safetensors")["gaussians"][0]
    write_ply(folder / "lgm.ply", Gaussians.from_array(array).prune())
