"""What presets, servers and neighbours could try against the worker (docs/security.md names each test)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tiny_preset import write_preset

from lgm_blender.blender.engine import worker_command
from lgm_blender.core.errors import LGMError
from lgm_blender.worker import lgm, reconstruct
from lgm_blender.worker.download import fetch_file
from lgm_blender.worker.presets import find_preset
from lgm_blender.worker.server import start_log

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny", text=False)


@pytest.fixture
def preset(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "preset")


def change(folder: Path, **values) -> None:
    path = folder / "preset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["../secret", "lgm/../../secret", "/etc/passwd", "C:\\secret", "lgm\\..\\..\\secret"])
def test_a_preset_names_no_file_elsewhere(preset, name):
    files = json.loads((preset / "preset.json").read_text())["files"]
    change(preset, files=files | {name: {"size": 1, "sha256": "0" * 64}})
    with pytest.raises(LGMError, match="lies elsewhere"):
        find_preset(str(preset))


@pytest.mark.parametrize("name", ["//host/share", "\\\\host\\share"])
def test_a_preset_names_no_other_machine(preset, name):
    change(preset, multiview=name)
    with pytest.raises(LGMError, match="on another machine"):
        find_preset(str(preset))


def test_a_preset_that_shares_itself_ends(preset):
    change(preset, multiview=str(preset))
    with pytest.raises(LGMError, match="is damaged"):
        find_preset(str(preset))


@pytest.mark.parametrize("values", [{"steps": {"image": 10**9}}, {"samples": {"image": 99}}, {"steps": {"image": 0}}])
def test_a_preset_asks_for_no_work_without_end(preset, values):
    change(preset, **values)
    with pytest.raises(LGMError, match="must be from 1 to"):
        find_preset(str(preset))


@POSIX
def test_what_a_link_in_a_preset_leads_to_is_not_told(preset, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the password is swordfish")
    for name in ("lgm/config.json", "lgm/model.safetensors"):
        path = preset / name
        data = path.read_bytes()
        path.unlink()
        path.symlink_to(secret)
        with pytest.raises(LGMError) as caught:
            reconstruct.load_lgm(find_preset(str(preset)), "cpu")
        assert "swordfish" not in caught.value.message
        with pytest.raises(LGMError) as caught:
            lgm.load_lgm(preset / "lgm")
        assert "swordfish" not in caught.value.message
        path.unlink()
        path.write_bytes(data)


@POSIX
def test_no_pipe_and_no_device_is_a_configuration(preset, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path("/dev/zero")):
        for name in ("lgm/config.json", "preset.json"):
            path = preset / name
            data = path.read_bytes()
            path.unlink()
            path.symlink_to(target)
            with pytest.raises(LGMError, match="no regular file"):
                lgm.load_lgm_config(preset / "lgm") if "lgm" in name else find_preset(str(preset))
            path.unlink()
            path.write_bytes(data)


@pytest.mark.parametrize(
    "values",
    [
        {"down_channels": [32, 10**12]},
        {"up_channels": [32] * 300},
        {"num_heads": 0},
        {"num_heads": "two"},
        {"input_size": float("nan")},
        {"mid_attention": 10**400},
    ],
)
def test_a_configuration_of_no_model_is_a_sentence(preset, values):
    path = preset / "lgm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(LGMError, match=r"Fetch|describes") as caught:
        lgm.load_lgm(preset / "lgm")
    assert caught.value.kind == "weights"


class Pickle:
    """Code that runs when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("pickled",)


def test_a_pickle_in_the_weights_place_is_refused(preset, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Pickle()}, preset / "lgm" / "model.safetensors")
    with pytest.raises(LGMError, match="damaged"):
        lgm.load_lgm(preset / "lgm")
    assert not Path("pickled").exists()


# ---- Servers


@pytest.mark.parametrize(
    "url", ["http://example.org/a", "ftp://example.org/a", "file:///etc/passwd", "http://localhost.example.org/a"]
)
def test_only_https_is_asked(tmp_path, url):
    with pytest.raises(LGMError, match="is not https"):
        fetch_file(url, tmp_path / "a", 1, "0" * 64)
    assert not any(tmp_path.iterdir())


def test_a_server_that_never_ends_fills_no_disk(tmp_path):
    class Endless(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            sent = 0
            try:
                while sent < 1 << 30:
                    sent += self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
            self.server.sent = sent

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with pytest.raises(LGMError, match="arrived damaged"):
            fetch_file(f"http://127.0.0.1:{server.server_port}/a", tmp_path / "a", 1000, "0" * 64)
    finally:
        server.shutdown()
        server.server_close()
    assert server.sent < 64 << 20
    assert not [path for path in tmp_path.iterdir() if path.stat().st_size]


# ---- Neighbours


def test_nothing_beside_the_opened_file_is_imported(tmp_path):
    """Blender's current folder is that of the .blend, and Python would look there first."""
    for name in ("json", "argparse", "torch", "numpy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    command = worker_command(sys.executable, "--help")
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"generate" in done.stdout
    assert not (tmp_path / "ran").exists()


@POSIX
def test_the_log_is_private_and_follows_no_planted_link(tmp_path, monkeypatch):
    """Where its own folder can't be made, it goes among the temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("LGM_BLENDER_LOG_DIR", str(tmp_path / "file" / "no"))
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "worker.log").symlink_to(precious)
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        path = start_log()
        logging.getLogger("test").info("a line about 猫 \udce4")
    finally:
        root.handlers[:] = handlers
    assert "a line about 猫" in path.read_text(encoding="utf-8")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert precious.read_text() == "precious"
