"""The extension zip."""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from pathlib import Path

import tools
from lgm_blender.core.environment import site_packages
from lgm_blender.core.version import VERSION

from .environments import Environment
from .terminal import Failure, run

BLENDER_EXT = "bpy/*/scripts/addons_core/bl_pkg/cli/blender_ext.py"  # Blender's own builder and validator of extensions


def check_versions() -> None:
    """The version stands in three files, each of which something outside reads.

    Raises:
        Failure: If they differ.
    """
    manifest = tomllib.loads((tools.ROOT / "blender_manifest.toml").read_text(encoding="utf-8"))["version"]
    project = tomllib.loads((tools.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if len({manifest, project, VERSION}) > 1:
        raise Failure(
            f"The version is {manifest} in blender_manifest.toml, {project} in pyproject.toml and {VERSION} in "
            "lgm_blender/core/version.py: make them the same."
        )


def package(target: Environment) -> Path:
    """The extension zip, built and validated by the tool that comes with Blender.

    In the zip the package's content lies at the root, with the manifest, the licence and the wheels beside it.
    """
    check_versions()
    stage = tools.BUILD / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(tools.ROOT / "lgm_blender", stage, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    for name in ("blender_manifest.toml", "LICENSE"):
        shutil.copy2(tools.ROOT / name, stage / name)
    for wheel in (tools.ROOT / "wheels").glob("*.whl"):
        (stage / "wheels").mkdir(exist_ok=True)
        shutil.copy2(wheel, stage / "wheels")
    tool = blender_ext(target)
    made, result = tools.BUILD / "new.zip", tools.DIST / f"lgm_blender-{VERSION}.zip"
    tools.DIST.mkdir(exist_ok=True)
    build = [target.python, tool, "build", "--source-dir", stage, "--output-filepath", made]
    run(build, "Building the extension", "package")
    run([target.python, tool, "validate", made], "Validating it with Blender's own tool", "validate")
    made.replace(result)
    return result


def blender_ext(target: Environment) -> Path:
    """The tool that comes with a Blender."""
    return next(path for libraries in site_packages(target.folder) for path in libraries.glob(BLENDER_EXT))


def repository(target: Environment) -> Path:
    """A folder that Blender takes as a repository of extensions, once it is put on any web server: the zip, a listing
    (index.json) that names it with its SHA-256, and a page (index.html) from which it can be dragged into Blender."""
    archive = package(target)
    folder, made = tools.DIST / "repository", tools.BUILD / "repository"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    shutil.copy2(archive, made)
    command = [target.python, blender_ext(target), "server-generate", "--repo-dir", made, "--html"]
    run(command, "Listing it as a repository", "repository")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    return folder


def state() -> str:
    """Changes when a file of the package is newer or other than it was."""
    root = tools.ROOT
    sources = [*(root / "lgm_blender").rglob("*"), *(root / "wheels").glob("*.whl"), root / "blender_manifest.toml"]
    lines = [
        f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(sources)
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
