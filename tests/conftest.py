"""Options and fixtures of all tests. Run them with `python build.py test [pytest arguments]`."""

from __future__ import annotations

import signal
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden.tar.xz"

# A run in a shell's background ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--golden", help="folder of golden data in place of tests/golden.tar.xz, e.g. with another salt")


@pytest.fixture(scope="session")
def golden(request, tmp_path_factory) -> Path:
    """The folder of what the published code computes (its README.md says how)."""
    if chosen := request.config.getoption("--golden"):
        return Path(chosen)
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python 3.11.2 has none
        archive.extractall(folder)
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
