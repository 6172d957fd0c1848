"""Reads safetensors without the library: the tests of core run in Blender's Python, which has numpy only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The floating-point tensors of a file by name."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        if name != "__metadata__" and entry["dtype"] in ("F32", "F16"):
            start, end = entry["data_offsets"]
            kind = {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]
            tensors[name] = np.frombuffer(data[begin + start : begin + end], kind).reshape(entry["shape"])
    return tensors
