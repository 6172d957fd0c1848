"""Options and fixtures of all tests. Run them with `python build.py test [pytest arguments]`."""

from __future__ import annotations

import shutil
import signal
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from golden import unpack_golden

# A run in a shell's background ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--golden", help="folder of golden data in place of tests/golden.tar.xz, e.g. with another salt")


@pytest.fixture(scope="session")
def golden(request, tmp_path_factory) -> Path:
    """The folder of what the published code computes (its README.md says how)."""
    folder = tmp_path_factory.mktemp("golden")
    if chosen := request.config.getoption("--golden"):
        shutil.copytree(chosen, folder, dirs_exist_ok=True)
        header, rows = (folder / "lgm.ply").read_bytes().split(b"end_header\n", 1)
        width = 4 * header.count(b"property")
        some = b"".join(rows[i : i + width] for i in range(0, len(rows), 8 * width))
        (folder / "lgm_rows.ply").write_bytes(header + b"end_header\n" + some)
    else:
        unpack_golden(folder)
    return folder


def golden_normal(salt: str, name: str, shape) -> np.ndarray:
    """The standard normal float32 array that follows from `name` (golden.tar.xz, README.md)."""
    state = np.random.RandomState(zlib.crc32((salt + name).encode()))
    return state.standard_normal(tuple(shape)).astype(np.float32)


def golden_weight(salt: str, name: str, shape) -> np.ndarray:
    """The weight of the golden models that follows from its name and shape (golden.tar.xz, README.md)."""
    n = golden_normal(salt, name, shape)
    if len(shape) > 1:
        return n / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * n if name.endswith("weight") else np.float32(0.1) * n
