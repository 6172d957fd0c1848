"""Options and fixtures of all tests. Run them with `python build.py test [pytest arguments]`."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--golden", default=str(GOLDEN), help="folder of golden data; another one has another salt")


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """The folder of what the published code computes (tests/golden/README.md)."""
    return Path(request.config.getoption("--golden"))


def golden_normal(salt: str, name: str, shape) -> np.ndarray:
    """The standard normal float32 array that follows from `name` (tests/golden/README.md)."""
    state = np.random.RandomState(zlib.crc32((salt + name).encode()))
    return state.standard_normal(tuple(shape)).astype(np.float32)


def golden_weight(salt: str, name: str, shape) -> np.ndarray:
    """The weight of the golden models that follows from its name and shape (tests/golden/README.md)."""
    n = golden_normal(salt, name, shape)
    if len(shape) > 1:
        return n / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * n if name.endswith("weight") else np.float32(0.1) * n
