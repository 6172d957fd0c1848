"""The demo: one image becomes splats in a Blender scene, the way a user's would, through the installed extension."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import tools
from lgm_blender.core.environment import PYTHON_VARIABLE

from . import packaging
from .environments import Environment, main_blender, worker_environment
from .terminal import Failure, Progress, relative, run, start

SAMPLE = tools.ROOT / "docs" / "samples" / "cactus.png"
SAMPLE_ELEVATION = 10.0  # degrees that its camera was above the cactus

# In bpy nothing is enabled at the start and a left-over handler can hang the exit: so enable, and leave at once.
INSTALL_EXTENSION = """
import os, sys, traceback
import bpy
try:
    bpy.ops.extensions.package_install_files(filepath=sys.argv[1], repo="user_default", enable_on_install=True)
except RuntimeError:
    traceback.print_exc()
enabled = "bl_ext.user_default.lgm_blender" in bpy.context.preferences.addons
print("enabled" if enabled else "The extension could not be enabled.", flush=True)
os._exit(0 if enabled else 1)
"""
RUN_BATCH = """
import runpy, sys
import bpy
bpy.ops.preferences.addon_enable(module="bl_ext.user_default.lgm_blender")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

RESULTS = {  # what the batch's line calls the files of one image
    "ply": "the splats, a 3DGS PLY",
    "blend": "the scene",
    "png": "the splats, rendered by Blender",
    "views": "the four views they were made from",
    "json": "every setting, the seed, the versions, the times",
}


def demo(image: Path, elevation: float | None, out: Path, seed: int) -> None:
    """Makes splats of an image, and says where they are.

    Args:
        image: The picture.
        elevation: Degrees that its camera is above the object; 0 if None, the sample's own for the sample.
        out: Folder for the results.
        seed: 0 to 2^32 - 1.

    Raises:
        Failure: If anything fails.
    """
    begin = time.monotonic()
    if not image.is_file():
        raise Failure(f"There is no file {image}.")
    worker = worker_environment()
    blender = main_blender()
    user = install_extension(blender)
    ready = time.monotonic()
    print(f"Blender: {blender} in {blender.folder.name}. Worker: {worker} in {worker.folder.name}.", flush=True)
    batch = user / "extensions" / "user_default" / "lgm_blender" / "blender" / "batch.py"
    if elevation is None:
        elevation = SAMPLE_ELEVATION if image == SAMPLE else 0.0
    options = ["--input", image.absolute(), "--output", out.absolute(), "--seed", seed, "--overwrite"]
    options.append(f"--elevation={elevation}")  # a negative one would be taken for an option
    logs = tools.BUILD / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    variables = {
        "BLENDER_USER_RESOURCES": str(user),
        PYTHON_VARIABLE: str(worker.python),
        "LGM_BLENDER_LOG_DIR": str(logs),
    }
    command = [blender.python, "-c", RUN_BATCH, batch, "--", *options]
    child = start(command, variables, stdout=subprocess.PIPE, encoding="utf-8", errors="replace")
    progress = Progress()
    try:
        while child.poll() is None:
            time.sleep(0.1)
            if not sys.stderr.isatty():  # in a terminal the batch shows how far it is
                progress.tick("Making the splats")
    except BaseException:
        child.kill()
        raise
    said = [line for line in child.stdout if line.startswith("{")]  # a line for each image
    if child.returncode or not said:
        raise Failure(f"The demo ended with code {child.returncode}. Its logs are in {relative(logs)}.")
    show_result(json.loads(said[-1]))
    print(f"Installing took {ready - begin:.1f} s, the image {time.monotonic() - ready:.1f} s.")


def install_extension(blender: Environment) -> Path:
    """Installs and enables the extension in a Blender user folder of its own, under build/; returns that folder."""
    name = blender.folder.name.removeprefix(".venv-")
    user, state = tools.BUILD / name, packaging.state()
    stamp = user / "installed.txt"
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == state):
        archive = packaging.package(blender)
        shutil.rmtree(user, ignore_errors=True)
        user.mkdir(parents=True)
        command = [blender.python, "-c", INSTALL_EXTENSION, archive]
        run(command, f"Installing the extension in {name}", "extension", {"BLENDER_USER_RESOURCES": str(user)})
        stamp.write_text(state, encoding="utf-8")
    return user


def show_result(record: dict) -> None:
    """Says where the files are, and how long each stage took. `record` is what the batch says of an image."""
    timings = json.loads(Path(record["json"]).read_text(encoding="utf-8"))["timings"]
    timings["total"] = timings.pop("total")  # last
    print("\n" + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in timings.items()))
    files = {relative(Path(record[kind])): what for kind, what in RESULTS.items()}
    for name, what in files.items():
        print(f"  {name:<{max(map(len, files))}}  {what}")
