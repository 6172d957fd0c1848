"""worker/models.py: presets found, checked and fetched, from a server in this process."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_preset import write_preset

from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.worker import models
from lgm_blender.worker.models import CheckedFiles, File, Preset, Weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_preset(tmp_path_factory.mktemp("presets") / "tiny")


@pytest.fixture
def tiny(whole, tmp_path) -> Path:
    """A preset's folder that may be damaged."""
    return shutil.copytree(whole, tmp_path / "tiny ż")


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    """No weights but this test's own."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "XDG_CACHE_HOME", models.WEIGHTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def checked(tmp_path: Path) -> CheckedFiles:
    return CheckedFiles(tmp_path / "checked.json")


def verify(preset: Preset, tmp_path: Path) -> None:
    for part in preset.weights:
        preset.verify(part, checked(tmp_path))


def test_a_folder_is_a_preset(tiny, tmp_path):
    preset = models.find_preset(str(tiny))
    assert preset.modes == ("image", "text")
    assert preset.scheduler == "DDIMScheduler"
    assert preset.steps == {"image": 3, "text": 3}
    assert preset.locate("lgm") == tiny / "lgm"
    assert preset.locate("text") == tiny / "multiview"
    verify(preset, tmp_path)
    info = preset.info()
    assert (info.ready, info.problem, info.modes) == (True, "", ["image", "text"])


def test_scheduler_by_its_class(tmp_path):
    folder = write_preset(tmp_path / "a", text=False, scheduler="UniPCMultistepScheduler")
    assert models.read_preset(folder).scheduler == "UniPCMultistepScheduler"


def test_unknown_preset(tmp_path):
    with pytest.raises(LGMError, match="no preset 'maxi'") as caught:
        models.find_preset("maxi")
    assert "'mini'" in caught.value.message
    assert "'lgm'" in caught.value.message
    assert caught.value.kind == "bad_input"
    for name in ("", ".", "../weights"):
        with pytest.raises(LGMError):
            models.find_preset(name)
    with pytest.raises(LGMError, match=r"is no preset: .*preset\.json"):
        models.find_preset(str(tmp_path))


def test_the_bundled_preset_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "BUNDLED", tmp_path)
    with pytest.raises(LGMError, match="Install the extension's release zip") as caught:
        models.find_preset("mini")
    assert caught.value.kind == "weights"
    infos = {info.name: info for info in models.preset_infos()}
    assert not infos["mini"].ready
    assert "Install" in infos["mini"].problem
    assert not infos["lgm"].ready
    assert "models --download lgm" in infos["lgm"].problem


@pytest.mark.parametrize(
    "change",
    [
        {"modes": []},
        {"modes": ["video"]},
        {"scheduler": "euler"},
        {"scheduler": 3},
        {"files": {}},
        {"files": []},
        {"steps": {}},
        {"guidance": None},
        {"samples": 4},
        {"samples": {"image": 0}},
        {"redraw": "false"},
        {"keep_image": 1},
    ],
)
def test_a_damaged_preset_json(tiny, change):
    path = tiny / "preset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LGMError, match=r"preset\.json is damaged") as caught:
        models.read_preset(tiny)
    assert caught.value.kind == "weights"
    path.write_text("{")
    with pytest.raises(LGMError, match=r"preset\.json is damaged"):
        models.read_preset(tiny)


def test_weights_missing_cut_short_or_damaged(tiny, tmp_path):
    preset = models.find_preset(str(tiny))
    path = tiny / "lgm" / "model.safetensors"
    data = path.read_bytes()

    path.write_bytes(data[:-1])
    with pytest.raises(LGMError, match="cut short") as caught:
        preset.locate("lgm")
    assert str(path) in caught.value.message
    assert caught.value.kind == "weights"
    assert not preset.info().ready

    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    preset.locate("lgm")  # of the right size
    with pytest.raises(LGMError, match="is damaged"):
        verify(preset, tmp_path)

    path.unlink()
    with pytest.raises(LGMError, match="is missing"):
        preset.locate("lgm")


def test_one_mode_may_be_ready_without_the_other(tiny):
    preset = models.find_preset(str(tiny))
    other = Weights({"unet/config.json": File()}, tiny / "nowhere")
    info = replace(preset, weights=preset.weights | {"text": other}).info()
    assert info.ready
    assert info.modes == ["image"]


def test_the_file_with_the_rotation_bug_is_refused(tiny, tmp_path, monkeypatch):
    path = tiny / "lgm" / "model.safetensors"
    monkeypatch.setattr(models, "ROTATION_BUG", models.file_sha256(path))
    with pytest.raises(LGMError, match="rotations are wrong"):
        verify(models.find_preset(str(tiny)), tmp_path)


def test_large_files_are_read_through_once(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(bytes(2_000_000))
    reads = []
    whole = models.file_sha256
    monkeypatch.setattr(models, "file_sha256", lambda *args: reads.append(args) or whole(*args))
    expected = hashlib.sha256(bytes(2_000_000)).hexdigest()
    for _ in range(3):
        assert checked(tmp_path).sha256(path) == expected  # each time as a new process would
    assert len(reads) == 1
    path.write_bytes(bytes(1_999_999) + b"1")
    os.utime(path, ns=(1, 1))
    assert checked(tmp_path).sha256(path) != expected
    (tmp_path / "checked.json").write_text('{"a": 3')
    assert len(checked(tmp_path).sha256(path)) == 64


def test_safetensors_tell_their_size(tiny, tmp_path):
    path = tiny / "lgm" / "model.safetensors"
    size = path.stat().st_size
    assert models.safetensors_size(path) == size
    data = path.read_bytes()
    for cut in (size - 1, size // 2, 20):
        path.write_bytes(data[:cut])
        assert models.safetensors_size(path) != cut
    for junk in (b"", b"12345678", b"\xff" * 100, (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(junk)
        assert models.safetensors_size(path) is None


def test_published_weights_in_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv(models.WEIGHTS_VARIABLE, str(tmp_path / "own"))
    weights = Weights({"model.bin": File(3)}, repository="ashawkey/LGM")
    for folder in ("own/ashawkey/LGM", "own/LGM", "own"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "model.bin").write_bytes(b"abc")
        assert weights.locate() == (tmp_path / folder, [])
        (tmp_path / folder / "model.bin").unlink()


def test_a_mode_that_is_not_there(tmp_path):
    preset = models.read_preset(write_preset(tmp_path / "a", text=False))
    assert preset.mode(image=True) == "image"
    with pytest.raises(LGMError, match="can't start from text alone"):
        preset.mode(image=False)


class Hub(http.server.ThreadingHTTPServer):
    """Answers as the Hugging Face Hub does: facts in the first answer, large files on a store it redirects to."""

    daemon_threads = True
    commit = "0123456789abcdef" * 2 + "01234567"

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.ranges: list[tuple[str, str | None]] = []
        self.break_after: int | None = None  # bytes of an answer, once
        self.damage = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        store = self.path.startswith("/store/")
        name = self.path.removeprefix("/store/") if store else self.path.split("/resolve/main/")[-1]
        data = self.server.files.get(name)
        if data is None:
            self.send_error(404)
            return
        if not store:
            large = name.endswith(".safetensors")
            self.send_response(302 if large else 200)
            self.send_header("X-Repo-Commit", Hub.commit)
            if large:
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(data)))
                self.send_header("Location", f"{self.server.url}/store/{name}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_header("ETag", f'W/"{hashlib.sha1(b"blob %d" % len(data) + bytes(1) + data).hexdigest()}"')
        else:
            asked = self.headers.get("Range")
            self.server.ranges.append((name, asked))
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if self.server.damage:
                data = data[:-1] + b"\0"
            data = data[start:]
            self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            cut, self.server.break_after = self.server.break_after, None
            self.wfile.write(data[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    def log_message(self, *_):
        pass


WEIGHTS = bytes(range(256)) * 20_000  # 5 MB
PUBLISHED = Preset(
    name="lgm",
    label="Published",
    version="1",
    modes=("image",),
    weights={
        "lgm": Weights({"m.safetensors": File(len(WEIGHTS))}, repository="some/lgm"),
        "image": Weights({"unet/config.json": File()}, repository="some/views"),
    },
    steps={"image": 1},
    guidance={"image": 1.0},
    scheduler="DDIMScheduler",
)


@pytest.fixture
def hub():
    # Not a real safetensors file: the size is known from the preset.
    hub = Hub({"m.safetensors": WEIGHTS, "unet/config.json": b'{"a": 1}'})
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()


def test_fetches_into_the_hugging_face_cache(hub, tmp_path):
    seen = []
    models.download(PUBLISHED, progress=seen.append, endpoint=hub.url)
    folder = PUBLISHED.locate("lgm")
    assert folder == tmp_path / "hf" / "hub" / "models--some--lgm" / "snapshots" / Hub.commit
    assert (folder / "m.safetensors").read_bytes() == WEIGHTS
    assert (PUBLISHED.locate("image") / "unet" / "config.json").read_bytes() == b'{"a": 1}'
    assert [s.done for s in seen if s.index == 1] == sorted(s.done for s in seen if s.index == 1)
    assert (seen[-1].index, seen[-1].count) == (2, 2)
    assert PUBLISHED.info().ready
    leftovers = [path for path in (tmp_path / "hf").rglob("*") if "incomplete" in path.name or ".part" in path.name]
    assert not leftovers

    hub.ranges.clear()
    models.download(PUBLISHED, endpoint=hub.url)
    assert not hub.ranges  # what is there is not fetched again


def test_huggingface_hub_finds_what_was_fetched(hub, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    models.download(PUBLISHED, endpoint=hub.url)
    cache = tmp_path / "hf" / "hub"
    found = huggingface_hub.try_to_load_from_cache("some/lgm", "m.safetensors", cache_dir=cache)
    assert Path(found).read_bytes() == WEIGHTS


def test_a_broken_connection_is_taken_up_again(hub):
    hub.break_after = 3_000_000
    models.download(PUBLISHED, endpoint=hub.url)
    assert (PUBLISHED.locate("lgm") / "m.safetensors").read_bytes() == WEIGHTS
    (_, first), (_, second) = hub.ranges
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 3_000_000


def test_cancelling_keeps_what_has_come(hub):
    done = []
    with pytest.raises(Cancelled):
        models.download(
            PUBLISHED,
            progress=lambda fetched: done.append(fetched.done),
            cancelled=lambda: bool(done) and done[-1] > 2_000_000,
            endpoint=hub.url,
        )
    assert not PUBLISHED.info().ready
    hub.ranges.clear()
    models.download(PUBLISHED, endpoint=hub.url)
    assert hub.ranges[0][1] == f"bytes={done[-1]}-"
    assert (PUBLISHED.locate("lgm") / "m.safetensors").read_bytes() == WEIGHTS


def test_what_arrives_damaged_is_not_kept(hub, tmp_path):
    hub.damage = True
    with pytest.raises(LGMError, match="arrived damaged") as caught:
        models.download(PUBLISHED, endpoint=hub.url)
    assert caught.value.kind == "weights"
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    hub.damage = False
    models.download(PUBLISHED, endpoint=hub.url)
    assert PUBLISHED.info().ready


def test_another_file_than_expected(hub):
    other = replace(PUBLISHED.weights["lgm"], files={"m.safetensors": File(7)})
    with pytest.raises(LGMError, match="now holds another"):
        models.download(replace(PUBLISHED, weights=PUBLISHED.weights | {"lgm": other}), endpoint=hub.url)


def test_what_the_server_lacks_and_no_server(hub):
    del hub.files["unet/config.json"]
    with pytest.raises(LGMError, match=r"unet/config\.json could not be fetched: the server says there is no such"):
        models.download(PUBLISHED, endpoint=hub.url)
    elsewhere = replace(PUBLISHED, weights={"lgm": Weights({"x": File()}, repository="a/b")}, modes=())
    with pytest.raises(LGMError, match="can't be reached") as caught:
        models.download(elsewhere, endpoint="http://127.0.0.1:9")
    assert caught.value.kind == "weights"


def test_offline_is_respected(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LGMError, match="HF_HUB_OFFLINE"):
        models.download(PUBLISHED, endpoint=hub.url)
    assert not hub.ranges


def test_the_endpoint_is_a_variable(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    models.download(PUBLISHED)
    assert PUBLISHED.info().ready


def test_what_is_not_on_the_internet(tiny):
    with pytest.raises(LGMError, match="not on the internet"):
        models.download(models.find_preset(str(tiny)))


def test_a_full_disk_is_told_before(hub, monkeypatch):
    monkeypatch.setattr(models.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(LGMError, match="disk is too full"):
        models.download(PUBLISHED, endpoint=hub.url)
