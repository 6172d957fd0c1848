"""A fixture for tests of what lies in the user's folders."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from lgm_blender.worker.weights import WEIGHTS_VARIABLE


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    """No weights and no memory of them but the test's own; in the processes that it starts, too. To be imported."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "XDG_CACHE_HOME", WEIGHTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))  # which was read from them at import
