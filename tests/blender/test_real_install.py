"""The installer with the real uv: small wheels made here, from a folder and from an index on this machine.

Run: pytest tests/blender/test_real_install.py
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

import tools
from lgm_blender.blender import install, recipe
from lgm_blender.core import environment, installed, lock

TOOLS = tools.BUILD / "tools"  # where build.py has put uv
pytestmark = pytest.mark.skipif(bool(recipe.uv_steps(TOOLS, "")), reason="build.py has fetched no uv")


def write_wheel(folder: Path, name: str, version: str, content: str) -> str:
    """A wheel of one module; gives its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": content,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{metadata}/RECORD": f"{record}{metadata}/RECORD,,\n"}.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A worker of two small packages, whose wheels lie in tmp_path / 'wheels'."""
    for name in ("UV_INDEX", "UV_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "package"
    locked = package / "worker" / "locked"
    locked.mkdir(parents=True)
    wheels = tmp_path / "wheels"
    for file, name, version in (("torch_cpu", "torch", "9.0+cpu"), ("packages", "tiny", "1.0")):
        digest = write_wheel(wheels, name, version, f"__version__ = '{version}'\n")
        (locked / f"{file}.txt").write_text(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    for name in ("optional", "torch_cu130", "uv"):
        (locked / f"{name}.txt").write_text("# nothing\n")
    (locked / "sizes.json").write_text("{}")
    (package / "worker" / "requirements.txt").write_text("torch>=2.6\ntiny>=1\n")
    monkeypatch.setattr(environment, "PACKAGE", package)
    monkeypatch.setattr(lock, "FOLDER", locked)
    monkeypatch.setattr(environment, "unsupported", lambda: "")
    cache = {"UV_CACHE_DIR": str(tmp_path / "cache")}
    return recipe.Plan(
        tmp_path / "environment",
        ("torch>=2.6", "tiny>=1"),
        (sys.executable,),
        "import tiny, torch; print('torch', torch.__version__, 'tiny', tiny.__version__)",
        TOOLS,
        tmp_path / "logs" / "install.log",
        "Press Install to try again.",
        cache,
    )


@pytest.fixture
def index(tmp_path):
    """An index of packages on this machine that has what is in tmp_path / 'wheels' but torch; gives its address."""
    root = tmp_path / "index"
    (root / "simple" / "tiny").mkdir(parents=True)
    name = "tiny-1.0-py3-none-any.whl"
    (root / "simple" / "tiny" / "index.html").write_text(f'<a href="{name}">{name}</a>')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}/simple"
    server.shutdown()


def run(plan, **options) -> install.Installation:
    installation = install.Installation(plan, build="cpu", **options)
    end = time.monotonic() + 120
    while installation.state == "running":
        installation.step()
        assert time.monotonic() < end
        time.sleep(0.01)
    return installation


def test_from_a_folder_and_mended_from_it(plan, tmp_path):
    installation = run(plan, wheels=tmp_path / "wheels")
    assert installation.state == "done", installation.error
    assert installation.message == "torch 9.0+cpu tiny 1.0"
    assert environment.read_marker(plan.folder)["build"] == "cpu"
    assert installed.python_problem(plan.folder) == ""
    assert installed.damaged_packages(plan.folder) == []
    (libraries,) = environment.site_packages(plan.folder)
    for half_made in (False, True):
        (libraries / "tiny" / "__init__.py").unlink()
        assert installed.damaged_packages(plan.folder) == ["tiny"]
        if half_made:
            (plan.folder / environment.MARKER).unlink()
        installation = run(plan, wheels=tmp_path / "wheels")
        assert installation.message == "torch 9.0+cpu tiny 1.0"
        assert installed.damaged_packages(plan.folder) == []


def test_another_file_of_that_name_is_not_installed(plan, tmp_path):
    write_wheel(tmp_path / "wheels", "tiny", "1.0", "raise SystemExit('somebody else wrote this')\n")
    installation = run(plan, wheels=tmp_path / "wheels")
    assert installation.state == "failed"
    assert "its SHA-256 is another" in installation.error, installation.error
    assert environment.read_marker(plan.folder) is None
    (libraries,) = environment.site_packages(plan.folder)
    assert not (libraries / "tiny").exists()


def test_from_an_index(plan, index, tmp_path, monkeypatch):
    """As pip is set up for it; torch from a folder that pip knows."""
    root, url = index
    wheel = tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl"
    (root / "simple" / "tiny" / wheel.name).write_bytes(wheel.read_bytes())
    wheel.unlink()
    settings = {"UV_DEFAULT_INDEX": url, "UV_FIND_LINKS": str(tmp_path / "wheels")}
    monkeypatch.setattr(install, "pip_settings", lambda python: settings)
    installation = run(plan)
    assert installation.state == "done", installation.error
    assert installation.message == "torch 9.0+cpu tiny 1.0"
    assert not (tmp_path / "cache").exists()
    marker = json.loads((plan.folder / environment.MARKER).read_text())
    assert marker["lock"] == lock.digest()
