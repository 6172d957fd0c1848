"""worker/download.py: fetched from a server in this process that answers as the Hugging Face Hub does."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants
from own_home import own_home  # noqa: F401
from processes import is_running

from lgm_blender.core.errors import LGMError
from lgm_blender.worker import download as module
from lgm_blender.worker import presets
from lgm_blender.worker.download import download, fetch_file
from lgm_blender.worker.presets import Preset
from lgm_blender.worker.weights import File, Weights

ROOT = Path(__file__).parents[2]
ONE, TWO = "1" * 40, "2" * 40  # commits
MODEL = bytes(range(256)) * 20_000  # 5 MB; no real safetensors, its size is known from the preset
CONFIG = b'{"a": 1}'
PRESET = Preset(
    name="lgm",
    label="Published",
    version="1",
    modes=("image",),
    weights={
        "lgm": Weights({"m.safetensors": File(len(MODEL))}, repository="some/lgm"),
        "image": Weights({"unet/config.json": File()}, repository="some/views"),
    },
    steps={"image": 1},
    guidance={"image": 1.0},
    scheduler="DDIMScheduler",
)


class Hub(http.server.ThreadingHTTPServer):
    """Facts from its API; small files from itself, large ones from a store under another host's name.

    Attributes:
        files: Repository -> commit -> name -> content; the last commit is the branch's.
        claims: Name -> size and SHA-256, where the API claims others than the content's.
        asked: What was asked: (path, Range, Authorization) of each request, files only.
        break_after: Bytes after which the next large file's answer breaks off.
        rate: Bytes a second of large files; 0 is as fast as it goes.
        damage: Whether large files come with a wrong last byte.
        status: Refuses everything with that, if it is not 200.
        talk: Answers everything with these words, if there are any.
        page: Comes in place of large files, if there is one.
        detour: Where to the store sends all who ask for a file, if anywhere.
        silence: Seconds before the store answers.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"some/lgm": {ONE: {"m.safetensors": MODEL}}, "some/views": {ONE: {"unet/config.json": CONFIG}}}
        self.claims: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.break_after: int | None = None
        self.rate = 0
        self.damage = False
        self.status = 200
        self.talk = b""
        self.page = b""
        self.detour = ""
        self.silence = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        """What was asked of the large file."""
        return [asked for path, asked, _ in self.asked if "/store/" in path]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        parts = urlsplit(self.path).path.strip("/").split("/")  # a proxy is asked for whole addresses
        if self.server.status != 200 or self.server.talk:
            self.send(self.server.talk, status=self.server.status)
        elif parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[5])
        elif parts[0] == "store" or parts[2:3] == ["resolve"]:
            if body:
                self.server.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            store = parts[0] == "store"
            owner, name, commit, *path = parts[1:] if store else (*parts[:2], *parts[3:])
            self.give(store, f"{owner}/{name}", commit, "/".join(path), body)
        else:
            self.send(b"", status=404)

    def commit(self, repository: str, revision: str) -> str | None:
        """The commit of a revision; what is not there is refused in the Hub's way."""
        commits = self.server.files.get(repository, {})
        commit = list(commits)[-1] if commits and revision == "main" else revision
        if commit not in commits:
            self.send(b"", status=404, **{"X-Error-Code": "RevisionNotFound" if commits else "RepoNotFound"})
            return None
        return commit

    def describe(self, repository: str, revision: str):
        if commit := self.commit(repository, revision):
            files = self.server.files[repository][commit]
            siblings = []
            for name, data in files.items():
                size, sha256 = self.server.claims.get(name, (len(data), hashlib.sha256(data).hexdigest()))
                siblings.append({"rfilename": name, "size": size, "blobId": git_name(data)})
                if name.endswith(".safetensors"):
                    siblings[-1]["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 134}
            self.send(json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode())

    def give(self, store: bool, repository: str, revision: str, name: str, body: bool):
        commit = self.commit(repository, revision)
        data = self.server.files[repository][commit].get(name) if commit else None
        if data is None:
            if commit:
                self.send(b"", status=404, **{"X-Error-Code": "EntryNotFound"})
        elif store and self.server.detour:
            self.send(b"", status=302, Location=self.server.detour)
        elif store and self.server.page:
            self.send(self.server.page, body=body)
        elif store:
            time.sleep(self.server.silence)
            asked = self.headers.get("Range")
            data = data[:-1] + b"\0" if self.server.damage else data
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            size, _ = self.server.claims.get(name, (len(data), ""))
            self.send(data[start:], status=206 if asked else 200, body=body, large=True, length=size - start)
        elif name.endswith(".safetensors"):
            facts = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            location = f"http://localhost:{self.server.server_port}/store/{repository}/{commit}/{name}"
            self.send(b"", status=302, Location=location, **facts, **{"X-Repo-Commit": commit})
        else:
            self.send(data, body=body, ETag=f'"{git_name(data)}"', **{"X-Repo-Commit": commit})

    def send(self, data: bytes, *, status: int = 200, body: bool = True, large: bool = False, length=None, **headers):
        self.send_response(status)
        length = len(data) if length is None else length
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if large:
            cut, self.server.break_after = self.server.break_after, None
            self.close_connection = cut is not None
            data = data[:cut]
        if body:
            for i in range(0, len(data), 1 << 16):
                self.wfile.write(data[i : i + (1 << 16)])
                time.sleep((1 << 16) / self.server.rate if large and self.server.rate else 0)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()

    def log_message(self, *_):
        pass


def git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub():
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


def start(code: str, hub: Hub, **variables: str) -> subprocess.Popen:
    """A Python process that runs `code` after importing what this file holds; it asks `hub`."""
    folders = [str(ROOT / name) for name in (".", "tests/core", "tests/worker")]
    code = f"import sys; sys.path[:0] = {folders}\nfrom test_download import *\n{code}"
    variables = {"HF_ENDPOINT": hub.url, "NO_PROXY": "", **variables}
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **variables})


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def torsos() -> list[Path]:
    """Everything in the cache that is no finished file."""
    return [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.suffix in (".incomplete", ".lock")]


# ---- What huggingface_hub's own downloader does not, the reason for the one here

HUBS = """
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
huggingface_hub.hf_hub_download("some/lgm", "m.safetensors")
"""
OLD = pytest.mark.xfail(strict=True, raises=AssertionError, reason="huggingface_hub 2.4; if it passes, use it")
downloaders = pytest.mark.parametrize(
    "code", [pytest.param("download(PRESET)", id="ours"), pytest.param(HUBS, id="hub", marks=OLD)]
)


def kill_halfway(code: str, hub: Hub) -> None:
    hub.rate = 5_000_000
    process = start(code, hub)
    wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in torsos()))
    process.kill()
    process.wait()
    hub.rate = 0


@downloaders
def test_a_killed_download_goes_on_where_it_stopped(hub, code):
    kill_halfway(code, hub)
    assert start(code, hub).wait() == 0
    first, second = hub.ranges
    assert first is None
    assert int((second or "bytes=0-").removeprefix("bytes=").removesuffix("-")) > 1_000_000
    assert next(Path(constants.HF_HUB_CACHE).rglob("m.safetensors")).read_bytes() == MODEL


@downloaders
def test_a_killed_download_leaves_nothing_for_ever(hub, code):
    kill_halfway(code, hub)
    assert start(code, hub).wait() == 0
    assert [path for path in torsos() if path.suffix == ".incomplete"] == []


@downloaders
def test_what_arrives_damaged_is_not_kept(hub, code):
    hub.damage = True
    start(code, hub).wait()
    assert list(Path(constants.HF_HUB_CACHE).rglob("m.safetensors")) == []
    hub.damage = False
    assert start(code, hub).wait() == 0


# ---- What is fetched, and where it is


def test_fetches_into_the_hugging_face_cache(hub):
    seen = []
    download(PRESET, progress=seen.append, endpoint=hub.url)
    folder = PRESET.locate("lgm")
    assert folder == Path(constants.HF_HUB_CACHE) / "models--some--lgm" / "snapshots" / ONE
    assert (folder / "m.safetensors").read_bytes() == MODEL
    assert (PRESET.locate("image") / "unet" / "config.json").read_bytes() == CONFIG
    done = [told.done for told in seen if told.index == 1]
    assert done == sorted(done)
    assert (seen[-1].name, seen[-1].index, seen[-1].count, seen[-1].done) == ("some/views/unet/config.json", 2, 2, 8)
    assert PRESET.info().ready
    assert torsos() == []
    hub.asked.clear()
    download(PRESET, endpoint=hub.url)
    assert hub.asked == []  # what is there is not fetched again


def test_huggingface_hub_finds_what_was_fetched(hub):
    download(PRESET, endpoint=hub.url)
    assert Path(huggingface_hub.try_to_load_from_cache("some/lgm", "m.safetensors")).read_bytes() == MODEL
    hub.asked.clear()
    huggingface_hub.hf_hub_download("some/lgm", "m.safetensors", endpoint=hub.url)
    assert hub.asked == []
    cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert cache.warnings == []
    assert {repo.repo_id: repo.size_on_disk for repo in cache.repos} == {"some/lgm": len(MODEL), "some/views": 8}


def test_finished_files_are_not_fetched_again(hub, monkeypatch):
    """Nor where the system has no links, as mostly on Windows."""
    for function in ("os.symlink", "os.link"):
        monkeypatch.setattr(function, lambda *_, **__: pytest.fail("links are not everywhere"))
    config = hub.files["some/views"][ONE].pop("unet/config.json")
    hub.files["some/views"][ONE]["README.md"] = b"#"
    with pytest.raises(LGMError, match=r"some/views has no unet/config\.json"):
        download(PRESET, endpoint=hub.url)
    assert hub.asked == []  # told before anything is fetched
    hub.files["some/views"][ONE]["unet/config.json"] = config
    hub.break_after, hub.damage = None, True
    with pytest.raises(LGMError, match="arrived damaged"):
        download(PRESET, endpoint=hub.url)
    hub.damage = False
    download(replace(PRESET, modes=()), endpoint=hub.url)
    hub.asked.clear()
    download(PRESET, endpoint=hub.url)
    assert [path for path, *_ in hub.asked] == [f"/some/views/resolve/{ONE}/unet/config.json"]


def test_a_broken_connection_is_taken_up_again(hub):
    hub.break_after = 3_000_000
    download(PRESET, endpoint=hub.url)
    assert (PRESET.locate("lgm") / "m.safetensors").read_bytes() == MODEL
    assert hub.ranges == [None, "bytes=3000000-"]


def test_two_downloads_at_once(hub):
    hub.rate = 5_000_000
    processes = [start("download(PRESET)", hub) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert hub.ranges == [None]  # one fetched, two waited
    assert (PRESET.locate("lgm") / "m.safetensors").read_bytes() == MODEL
    assert torsos() == []


def test_later_runs_stay_on_the_commit_of_the_first(hub):
    files = hub.files["some/lgm"]
    files[ONE]["more.json"] = b"{}"
    both = Weights({"m.safetensors": File(), "more.json": File()}, repository="some/lgm")
    preset = replace(PRESET, modes=(), weights={"lgm": both})
    hub.damage = True
    with pytest.raises(LGMError, match="arrived damaged"):
        download(preset, endpoint=hub.url)
    hub.damage = False
    files[TWO] = {name: data[::-1] for name, data in files[ONE].items()}
    download(preset, endpoint=hub.url)
    assert preset.weights["lgm"].candidates().__next__().name == ONE
    assert (Path(constants.HF_HUB_CACHE) / "models--some--lgm" / "snapshots" / ONE / "more.json").read_bytes() == b"{}"
    huggingface_hub.hf_hub_download("some/lgm", "more.json", endpoint=hub.url)  # another program follows the branch
    huggingface_hub.hf_hub_download("some/lgm", "m.safetensors", endpoint=hub.url)
    assert {path.name for path in (Path(constants.HF_HUB_CACHE) / "models--some--lgm" / "snapshots").iterdir()} == {
        ONE,
        TWO,
    }
    assert next(preset.weights["lgm"].candidates()).name == ONE


def test_a_pinned_commit_is_fetched_or_if_it_is_gone_the_branch(hub):
    hub.files["some/lgm"][TWO] = {"m.safetensors": MODEL[::-1]}
    pinned = replace(PRESET, modes=(), weights={"lgm": replace(PRESET.weights["lgm"], revision=ONE)})
    download(pinned, endpoint=hub.url)
    assert pinned.locate("lgm").name == ONE
    gone = replace(PRESET, modes=(), weights={"lgm": Weights({"n.json": File()}, repository="some/n", revision=ONE)})
    hub.files["some/n"] = {TWO: {"n.json": b"[]"}}
    download(gone, endpoint=hub.url)
    assert gone.locate("lgm").name == TWO


@pytest.mark.parametrize("file", [File(7), File(sha256="0" * 64)])
def test_another_file_than_expected(hub, file):
    other = replace(PRESET.weights["lgm"], files={"m.safetensors": file})
    with pytest.raises(LGMError, match="now holds another"):
        download(replace(PRESET, weights=PRESET.weights | {"lgm": other}), endpoint=hub.url)
    assert hub.asked == []
    assert not Path(constants.HF_HUB_CACHE).exists()  # so that nothing makes later runs stay on this commit


def test_of_a_folder_that_shares_published_models_those_are_fetched(hub, tmp_path):
    own = Weights({"model.bin": File()}, folder=tmp_path)
    download(replace(PRESET, weights=PRESET.weights | {"lgm": own}), endpoint=hub.url)
    assert [path for path, *_ in hub.asked] == [f"/some/views/resolve/{ONE}/unet/config.json"]
    with pytest.raises(LGMError, match="not on the internet"):
        download(replace(PRESET, weights={"lgm": own, "image": own}), endpoint=hub.url)


# ---- The sentences


def test_what_the_server_refuses(hub):
    hub.status = 403
    with pytest.raises(LGMError, match=r"some/lgm could not be fetched: the server says 403 Forbidden") as caught:
        download(PRESET, endpoint=hub.url)
    assert caught.value.kind == "weights"
    hub.status = 200
    del hub.files["some/lgm"]
    with pytest.raises(LGMError, match="some/lgm could not be fetched: the server says there is no such"):
        download(PRESET, endpoint=hub.url)
    with pytest.raises(LGMError, match="none could not be fetched: the server says there is no such file"):
        fetch_file(f"{hub.url}/store/some/views/{ONE}/none", Path(constants.HF_HUB_CACHE) / "none", 1, "0" * 64)


def test_no_server():
    with pytest.raises(LGMError, match=r"can't be reached.* Check the internet connection") as caught:
        download(PRESET, endpoint="http://127.0.0.1:9")
    assert caught.value.kind == "weights"


@pytest.mark.parametrize(
    "talk",
    [
        "<html>Log in to the hotel's network",
        "[]",
        "{}",
        '{"id": "a/b", "sha": "../.."}',
        f'{{"id": "a/b", "sha": "{ONE}", "siblings": [{{"rfilename": "m.safetensors"}}]}}',
    ],
)
def test_a_server_that_is_none(hub, talk):
    hub.talk = talk.encode()
    with pytest.raises(LGMError, match="not answered by a Hugging Face server"):
        download(PRESET, endpoint=hub.url)
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_server_that_breaks_off_every_time(hub, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Hub, "break_after", property(lambda self: 0, lambda self, value: None), False)
    fetch = functools.partial(fetch_file, path=Path(constants.HF_HUB_CACHE) / "m", size=len(MODEL), digest="0" * 64)
    with pytest.raises(LGMError, match=r"can't be reached .*"):
        fetch(f"{hub.url}/store/some/lgm/{ONE}/m.safetensors")
    assert len(hub.ranges) == 1 + module.RETRIES


def test_a_stream_without_an_end(hub, monkeypatch):
    """No more of it is taken than the file has."""
    send, end = Handler.send_header, Handler.end_headers
    monkeypatch.setattr(
        Handler, "send_header", lambda self, name, value: name == "Content-Length" or send(self, name, value)
    )
    monkeypatch.setattr(Handler, "end_headers", lambda self: (setattr(self, "close_connection", True), end(self)))
    hub.page = MODEL * 4
    seen = []
    with pytest.raises(LGMError, match="arrived damaged"):
        fetch_file(
            f"{hub.url}/store/some/lgm/{ONE}/m.safetensors",
            Path(constants.HF_HUB_CACHE) / "m",
            len(MODEL),
            "0" * 64,
            lambda done, total: seen.append(done),
        )
    assert max(seen) <= len(MODEL)
    assert not (Path(constants.HF_HUB_CACHE) / "m.incomplete").exists()


@pytest.mark.parametrize("page", [b"<html>Log in to the hotel's network</html>", MODEL * 3], ids=["page", "more"])
def test_something_else_in_place_of_a_file(hub, page):
    """It is not taken for a part of the file."""
    hub.page = page
    began = time.monotonic()
    with pytest.raises(LGMError, match="bytes came in place of") as caught:
        download(PRESET, endpoint=hub.url)
    assert caught.value.kind == "weights"
    assert time.monotonic() - began < 5
    hub.page = b""
    download(PRESET, endpoint=hub.url)
    assert (PRESET.locate("lgm") / "m.safetensors").read_bytes() == MODEL
    assert torsos() == []


def test_a_server_that_sends_one_on_for_ever(hub, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    hub.detour = f"/store/some/lgm/{ONE}/m.safetensors"
    with pytest.raises(LGMError, match=r"can't be reached .*redirect"):
        download(PRESET, endpoint=hub.url)


def test_a_server_that_says_nothing(hub, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    monkeypatch.setattr(module, "RETRIES", 1)
    hub.silence = 0.5
    with pytest.raises(LGMError, match="can't be reached"):
        download(PRESET, endpoint=hub.url)


def test_offline_is_respected(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LGMError, match="HF_HUB_OFFLINE"):
        download(PRESET, endpoint=hub.url)
    assert hub.asked == []


def test_a_full_disk_is_told_before(hub, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: module.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(LGMError, match=r"disk is too full: 0\.0 GB are to be fetched"):
        download(PRESET, endpoint=hub.url)
    assert hub.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_disk_that_gets_full(hub, tmp_path):
    (tmp_path / "m.incomplete").symlink_to("/dev/full")
    with pytest.raises(LGMError, match="The disk is full") as caught:
        fetch_file(f"{hub.url}/store/some/lgm/{ONE}/m.safetensors", tmp_path / "m", len(MODEL), "0" * 64)
    assert caught.value.kind == "output"


# ---- What huggingface_hub brings


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub):
    assert start("download(PRESET)", hub, HF_TOKEN="hf_secret").wait() == 0
    assert {path.split("/")[1]: token for path, _, token in hub.asked} == {"some": "Bearer hf_secret", "store": None}


def test_a_proxy_is_used(hub):
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9", "HTTP_PROXY": hub.url, "NO_PROXY": "localhost"}
    assert start("download(PRESET)", hub, **variables).wait() == 0
    assert hub.asked[0][0] == f"http://127.0.0.1:9/some/lgm/resolve/{ONE}/m.safetensors"


# ---- The command


@pytest.fixture
def slow_hub(hub, tmp_path, monkeypatch) -> Hub:
    """Claims to have LGM's published file, of which so little comes in a second that nobody sees its end."""
    lgm, views = presets.PUBLISHED.published(["image"])
    for name, file in views.files.items():
        path = tmp_path / "own" / views.repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as whole:
            whole.truncate(file.size or 1)  # takes no room
    monkeypatch.setenv("LGM_BLENDER_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ((name, file),) = lgm.files.items()
    hub.files[lgm.repository] = {lgm.revision: {name: MODEL}}
    hub.claims[name] = file.size, file.sha256
    hub.rate = 500_000
    return hub


COMMAND = [sys.executable, "-m", "lgm_blender.worker", "models", "--download", "lgm", "--mode", "image"]


def size_so_far() -> int:
    return sum(path.stat().st_size for path in torsos())


def test_it_ends_with_the_program_that_started_it(slow_hub, tmp_path):
    """As Blender starts it, and dies."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([*sys.argv[1:], '--until-stdin-ends'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *COMMAND], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    wait_for(size_so_far)
    assert is_running(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_running(child), 2.0)
    before = size_so_far()
    assert before > 0
    time.sleep(0.3)
    assert size_so_far() == before


def test_from_a_shell_it_needs_no_stdin_and_tells_what_it_does(slow_hub):
    process = subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(size_so_far)
    lines = [process.stderr.readline().rstrip("\n") for _ in range(4)]
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert lines[:3] == presets.PUBLISHED.terms(["image"])
    assert lines[3] == "[1/1] ashawkey/LGM/model_fp16_fixrot.safetensors: 0 of 830 MB"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to the whole console")
def test_ctrl_c_takes_effect_at_once(slow_hub):
    process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
    wait_for(size_so_far)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - began < 10
    assert process.stderr.read().splitlines()[-1] == "Cancelled."
    assert size_so_far() > 0  # and is gone on with
