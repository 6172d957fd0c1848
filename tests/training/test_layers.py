"""Training's subpackages lie in layers: data below loops below evaluation, which the command lines use."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_rooms import imports, module_name

TRAINING = Path(__file__).parents[2] / "lgm_blender" / "training"
ABOVE = {"data": ("loops", "evaluation"), "loops": ("evaluation",), "evaluation": ()}


@pytest.mark.parametrize("layer", ABOVE)
def test_a_layer_imports_none_above_it(layer):
    files = sorted((TRAINING / layer).glob("*.py"))
    assert files
    above = tuple(f"lgm_blender.training.{name}" for name in (*ABOVE[layer], "stages", "__main__"))
    for path in files:
        found = imports(path.read_text(encoding="utf-8"), module_name(path))
        assert not [name for name in found if name.startswith(above)], path
