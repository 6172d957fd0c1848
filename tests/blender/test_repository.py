"""A repository of one's own: Blender installs from it and updates from it, and loses nothing meanwhile.

Run: pytest tests/blender/test_repository.py
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import bpy
import pytest

import tools
from lgm_blender.core import environment
from tools import packaging
from tools.environments import Environment

ROOT = Path(__file__).parents[2]

# Blender leaves at once: as a module it may hang at its end.
BLENDER = """
import json, os, sys, traceback
import bpy

MODULE = "bl_ext.lgm.lgm_blender"

def fail(kind, error, trace):
    traceback.print_exception(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)

def tell():
    from importlib import import_module
    install, session = (import_module(f"{MODULE}.blender.{name}") for name in ("install", "session"))
    preferences, worker = bpy.context.preferences.addons[MODULE].preferences, session.current().worker()
    facts = {"version": import_module(f"{MODULE}.core.version").VERSION, "worker": str(worker.path)}
    facts |= {"where": worker.where, "outdated": install.is_outdated()}
    facts |= {"device": preferences.device, "idle_minutes": preferences.idle_minutes}
    print("FACTS " + json.dumps(facts), flush=True)

sys.excepthook = fail
if sys.argv[1] == "again":
    bpy.ops.wm.read_userpref()
    tell()
    os._exit(0)
bpy.context.preferences.system.use_online_access = True
repositories = bpy.context.preferences.extensions.repos
repositories.new(name="LGM", module="lgm", remote_url=sys.argv[1])
number = list(repositories.keys()).index("LGM")
bpy.ops.extensions.repo_sync(repo_index=number)
bpy.ops.extensions.package_install(repo_index=number, pkg_id="lgm_blender", enable_on_install=True)
preferences = bpy.context.preferences.addons[MODULE].preferences
preferences.device, preferences.idle_minutes = "cpu", 3
tell()
input()  # until another version is published
bpy.ops.extensions.repo_sync_all()
bpy.ops.extensions.package_upgrade_all()
tell()
bpy.ops.wm.save_userpref()
os._exit(0)
"""


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publishes a version of the extension, without its models, which take seconds to pack; gives the folder."""
    monkeypatch.setattr(tools, "BUILD", tmp_path / "build")
    monkeypatch.setattr(tools, "DIST", tmp_path / "dist")

    def publish(version: str) -> Path:
        root = tmp_path / version
        leave_out = shutil.ignore_patterns("__pycache__", "*.safetensors", "samples")
        shutil.copytree(ROOT / "lgm_blender", root / "lgm_blender", ignore=leave_out)
        old = packaging.VERSION
        for name in ("blender_manifest.toml", "pyproject.toml", "lgm_blender/core/version.py"):
            text = (ROOT / name).read_text(encoding="utf-8")
            (root / name).write_text(text.replace(f'"{old}"', f'"{version}"'), encoding="utf-8")
        shutil.copy2(ROOT / "LICENSE", root / "LICENSE")
        with monkeypatch.context() as patch:
            patch.setattr(tools, "ROOT", root)
            patch.setattr(packaging, "VERSION", version)
            return packaging.repository(Environment(Path(sys.prefix)))

    return publish


class Blender:
    """A Blender of its own, whose settings and data stay between two of them."""

    def __init__(self, folder: Path, argument: str):
        variables = os.environ | {"BLENDER_USER_RESOURCES": str(folder / "user"), "XDG_DATA_HOME": str(folder / "data")}
        variables.pop(environment.PYTHON_VARIABLE, None)
        (folder / "user").mkdir(exist_ok=True)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [sys.executable, "-c", BLENDER, argument]
        self.process = subprocess.Popen(command, env=variables, cwd=folder, text=True, **pipes)

    def facts(self) -> dict:
        """What it tells next."""
        said = []
        for line in self.process.stdout:
            if line.startswith("FACTS "):
                return json.loads(line.removeprefix("FACTS "))
            said.append(line)
        raise AssertionError("".join(said))

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture
def serve():
    """Serves a folder on this machine; gives its address."""
    servers = []

    def serve(folder: Path) -> str:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()


def test_the_listing_names_the_zip_by_its_hash(publish):
    folder = publish("0.2.0")
    assert {path.name for path in folder.iterdir()} == {"index.json", "index.html", "lgm_blender-0.2.0.zip"}
    (listed,) = json.loads((folder / "index.json").read_text())["data"]
    assert (listed["id"], listed["version"]) == ("lgm_blender", "0.2.0")
    assert listed["archive_url"] == "./lgm_blender-0.2.0.zip"
    assert listed["archive_hash"].startswith("sha256:")
    assert {*listed["permissions"]} == {"files", "network"}
    with zipfile.ZipFile(folder / "lgm_blender-0.2.0.zip") as archive:
        assert {"worker/locked/packages.txt", "worker/locked/sizes.json"} <= {*archive.namelist()}


def test_blender_installs_and_updates_and_keeps_worker_and_preferences(publish, serve, tmp_path):
    installed = tmp_path / "data" / "lgm_blender" / "environment"
    python = environment.environment_python(installed)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (installed / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n")
    (installed / environment.MARKER).write_text('{"requirements": [], "lock": "of another version"}')
    kept = {"worker": str(python), "where": "installed", "outdated": True, "device": "cpu", "idle_minutes": 3}

    blender = Blender(tmp_path, f"{serve(publish('0.2.0'))}/index.json")
    assert blender.facts() == {"version": "0.2.0", **kept}
    publish("0.3.0")
    blender.go_on()
    assert blender.facts() == {"version": "0.3.0", **kept}
    blender.end()
    assert len(list((tmp_path / "user").rglob("lgm_blender/blender_manifest.toml"))) == 1
    if bpy.app.version >= (5, 0):  # as a module, 4.2 can't read its preferences: it crashes
        again = Blender(tmp_path, "again")
        assert again.facts() == {"version": "0.3.0", **kept}
        again.end()
