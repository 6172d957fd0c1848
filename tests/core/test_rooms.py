"""The import rule of each subpackage (python build.py test tests/core/test_rooms.py)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lgm_blender"

BLENDER = {"addon_utils", "bl_ui", "blf", "bmesh", "bpy", "bpy_extras", "gpu", "gpu_extras", "imbuf", "mathutils"}
TORCH = {"PIL", "huggingface_hub", "psutil", "safetensors", "scipy", "skimage", "tokenizers", "torch", "uvunwrap"}
OPTIONAL = {"gsplat", "onnxruntime", "pymeshlab", "ray"}  # used where they are installed
BESIDE_NUMPY = {"zstandard"}  # Blender brings it along, the worker installs it; only SPZ of version 4 asks for it
TRAINING = {"accelerate", "diffusers", "matplotlib", "moderngl", "tokenizers", "transformers", "trimesh"}

# room: which other packages it may import, and which rooms.
MAY_IMPORT = {
    "core": ({"numpy"} | BESIDE_NUMPY, {"core"}),
    "blender": ({"numpy"} | BLENDER, {"core", "blender"}),
    "worker": ({"numpy"} | TORCH | OPTIONAL, {"core", "worker"}),
    "training": ({"numpy"} | TORCH | OPTIONAL | TRAINING, {"core", "worker", "training"}),
}


def imports(source: str, module: str) -> set[str]:
    """Full names of everything that a module imports, at its top or anywhere else, relative names resolved.

    Args:
        source: The module's text.
        module: Its name, for example 'lgm_blender.core.cameras'; a package's ends in '.__init__'.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def trespasses(source: str, module: str) -> set[str]:
    """What a module of a room imports and may not."""
    packages, rooms = MAY_IMPORT[module.split(".")[1]]
    wrong = set()
    for name in imports(source, module):
        first, second = [*name.split("."), ""][:2]
        if first == "lgm_blender":
            # Beside the rooms there is only the package's own file.
            allowed = second in rooms or not (PACKAGE / second).is_dir()
        else:
            allowed = first in packages or first in sys.stdlib_module_names
        wrong |= set() if allowed else {name}
    return wrong


def modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_it_may(room):
    assert modules(room)
    wrong = {
        module_name(path): trespasses(path.read_text(encoding="utf-8"), module_name(path)) for path in modules(room)
    }
    assert {module: names for module, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("core.cameras", "import torch", {"torch"}),
        ("core.cameras", "def f():\n    from bpy.types import Object", {"bpy.types.Object"}),
        ("core.cameras", "from ..worker import pipeline", {"lgm_blender.worker.pipeline"}),
        ("core.formats.ply", "from ...blender import splats", {"lgm_blender.blender.splats"}),
        ("core.formats.ply", "from ..gaussians import Gaussians", set()),
        ("core.formats.__init__", "from ..gaussians import Gaussians", set()),
        ("blender.engine", "import torch.nn as nn", {"torch.nn"}),
        ("blender.engine", "from .. import worker", {"lgm_blender.worker"}),
        ("blender.engine", "import bpy, json\nfrom ..core import messages", set()),
        ("worker.server", "import bpy", {"bpy"}),
        ("worker.__main__", "from ..training import __main__", {"lgm_blender.training.__main__"}),
        ("training.loops.lgm", "from ...worker.lgm import model\nfrom ..data import views", set()),
        ("worker.lgm.model", "from lgm_blender.blender.engine import Engine", {"lgm_blender.blender.engine.Engine"}),
        ("worker.lgm.model", "import torch\nfrom ...core import cameras\nfrom .. import images", set()),
    ],
)
def test_a_trespass_is_seen(module, line, wrong):
    assert trespasses(line, f"lgm_blender.{module}") == wrong


def test_blender_never_imports_the_package_by_its_name():
    """Inside Blender it is called bl_ext.REPOSITORY.lgm_blender: an absolute import finds nothing, or another copy."""
    for room in ("core", "blender"):
        for path in modules(room):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            absolute = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
            absolute += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
            assert not [name for name in absolute if name.split(".")[0] == "lgm_blender"], path


def test_build_needs_nothing_installed():
    """What build.py imports works in a Python without site-packages, and so does the worker's package without bpy."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import build, tools, lgm_blender, lgm_blender.worker\n"
        "print(sorted({'bpy', 'numpy', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(PACKAGE.parent)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (answer.stdout.strip(), answer.stderr) == ("[]", "")


def test_no_files_import_each_other():
    """Neither directly nor in a circle, at their top or inside a function."""
    paths = {module_name(path).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")}
    graph = {}
    for name, path in paths.items():
        needed = set()
        for full in imports(path.read_text(encoding="utf-8"), module_name(path)):
            target = full if full in paths else full.rpartition(".")[0]
            needed |= {target} & paths.keys() - {name}
        graph[name] = needed
    assert len(graph) > 80
    assert any(graph.values())
    while leaves := {name for name, needed in graph.items() if not needed & graph.keys()}:
        graph = {name: needed for name, needed in graph.items() if name not in leaves}
    assert graph == {}, "these import each other, or need files that do"
