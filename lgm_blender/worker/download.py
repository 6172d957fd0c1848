"""Fetching: published weights into the Hugging Face cache, and single files.

huggingface_hub knows repositories, tokens, proxies, the offline mode, locks and the cache. Only the bytes are received
here: its own downloader (2.4) starts a file anew after every interruption, leaves what a killed process had received in
the cache for ever, and compares no hash. tests/worker/test_download.py shows all three.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of httpx or httpx2, whichever this version uses; HfHubHTTPError is one of them
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status

from ..core.cutout import NETWORK, Network
from ..core.errors import LGMError
from ..core.files import output_error, replacing
from ..core.version import VERSION
from .presets import Mode, Preset
from .weights import MAIN, OURS, Weights, cache_folder, file_sha256

RETRIES = 4  # of a download whose connection breaks without a byte in between
TIMEOUT = 30  # seconds without an answer or a byte after which a connection counts as broken


@dataclass(frozen=True)
class Fetched:
    """How far a download is: `done` of `total` bytes of file number `index` of `count`."""

    name: str
    index: int
    count: int
    done: int
    total: int


@dataclass(frozen=True)
class _RemoteFile:
    """What the server tells of a file, and where it will be; `digest` as in `fetch_file`."""

    name: str
    url: str
    path: Path
    size: int
    digest: str


def download(
    preset: Preset,
    modes: Sequence[Mode] = ("image", "text"),
    progress: Callable[[Fetched], None] = lambda fetched: None,
    endpoint: str | None = None,
) -> None:
    """Fetch what is missing of a preset's published models into the Hugging Face cache.

    See `fetch_file` for what happens when a download is broken off, or two want the same file.

    Args:
        preset: The preset.
        modes: For which modes.
        progress: Called many times a second.
        endpoint: The server; HF_ENDPOINT or https://huggingface.co if None.

    Raises:
        LGMError: If the preset can't be fetched, the server can't be reached, the disk is full, or a file is wrong.
    """
    published = preset.published(modes)
    if not published:
        raise LGMError(f"The preset '{preset.name}' is not on the internet. {preset.remedy()}", "weights")
    missing = [weights for weights in published if weights.locate()[0] is None]
    files = [file for weights in missing for file in _remote_files(weights, endpoint)]
    needed = sum(file.size - _length(_partial(file.path)) for file in files)
    if files and needed > (free := shutil.disk_usage(constants.HF_HUB_CACHE).free):
        raise LGMError(
            f"The disk is too full: {needed / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free. "
            f"Free some space in {constants.HF_HUB_CACHE} or set HF_HOME to another disk.",
            "weights",
        )
    headers = build_hf_headers(library_name="lgm_blender", library_version=VERSION)
    for index, file in enumerate(files, 1):

        def tell(done: int, total: int, index=index, file=file) -> None:
            progress(Fetched(file.name, index, len(files), done, total))

        fetch_file(file.url, file.path, file.size, file.digest, tell, headers)


def fetch_network(progress: Callable[[Fetched], None] = lambda fetched: None, network: Network = NETWORK) -> Path:
    """Fetch the matting network into the user's data folder, unless it is on this machine, and tell where it is.

    Args:
        progress: Called many times a second.
        network: Which.

    Raises:
        LGMError: See `fetch_file`.
    """
    from .matting.network import find_network, network_path

    if found := find_network(network):
        return found
    path = network_path(network)
    fetch_file(
        network.url,
        path,
        network.size,
        network.sha256,
        lambda done, total: progress(Fetched(network.name, 1, 1, done, total)),
    )
    return path


def _remote_files(weights: Weights, endpoint: str | None) -> list[_RemoteFile]:
    """The files of a model that are not in the cache, as the first of its revisions that the server has knows them."""
    repository, cache = weights.repository, cache_folder(weights.repository)
    api = HfApi(endpoint=endpoint, library_name="lgm_blender", library_version=VERSION)
    address = f"{api.endpoint}/{repository}"
    _check_private(address)
    with _explained(address, cache):
        try:
            info = _model_info(api, weights)
            if not re.fullmatch("[0-9a-f]{40}", info.sha):
                raise ValueError(info.sha)
            server = {
                f.rfilename: (int(f.size), str.lower(f.lfs.sha256 if f.lfs else f.blob_id)) for f in info.siblings
            }
        except HTTPError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            sentence = f"{address} is not answered by a Hugging Face server. Check HF_ENDPOINT and your proxy."
            raise LGMError(sentence, "weights") from error
        folder = cache / "snapshots" / info.sha
        files = []
        for name, known in weights.files.items():
            if name not in server:
                raise LGMError(f"{repository} has no {name} any more. Update the extension.", "weights")
            size, digest = server[name]
            if known.size not in (None, size) or known.sha256 not in ("", digest):
                sentence = f"{repository} now holds another {name} than the one this version knows. Update it."
                raise LGMError(sentence, "weights")
            if _length(folder / name) != size:
                url = hf_hub_url(repository, name, revision=info.sha, endpoint=endpoint)
                files.append(_RemoteFile(f"{repository}/{name}", url, folder / name, size, digest))
        folder.mkdir(parents=True, exist_ok=True)
        (cache / "refs").mkdir(exist_ok=True)
        for name in (OURS, MAIN):  # later runs stay on ours; the other serves programs that are offline
            if name == OURS or not (cache / "refs" / name).exists():
                with replacing(cache / "refs" / name) as reference:
                    reference.write(info.sha.encode())
    return files


def _model_info(api: HfApi, weights: Weights) -> ModelInfo:
    for revision in weights.revisions():
        try:
            return api.model_info(weights.repository, revision=revision, files_metadata=True, timeout=TIMEOUT)
        except RevisionNotFoundError:
            # The author rewrote the history; files whose hashes are known must still be there.
            if revision == MAIN:
                raise


def fetch_file(
    url: str,
    path: Path,
    size: int,
    digest: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fetch one file, unless it is there.

    It appears under its name when it is whole and its hash is right. A download that was broken off, by whatever, goes
    on where it stopped. Of several that want the same file, the others wait for the first.

    Args:
        url: What to fetch.
        path: Where to.
        size: In bytes.
        digest: Its SHA-256, or the SHA-1 by which git names it; in hexadecimal.
        progress: Called with how many bytes of how many have come.
        headers: Of the request.

    Raises:
        LGMError: If the server can't be reached or refuses, is not asked by https, another file came, or the disk is
            full.
    """
    _check_private(url)
    partial = _partial(path)
    lock = partial.with_name(f"{partial.name}.lock")
    with _explained(url, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if _length(path) != size:  # another process may have fetched it while this one waited
                _receive(url, partial, size, headers or {}, progress)
                if _digest(partial, len(digest)) != digest:
                    partial.unlink()
                    raise LGMError(f"{url} arrived damaged. Try again.", "weights")
                partial.replace(path)
        progress(size, size)
        with suppress(OSError):  # whoever waits for it finds the file
            lock.unlink()


def _receive(
    url: str, partial: Path, size: int, headers: Mapping[str, str], progress: Callable[[int, int], None]
) -> None:
    """Appends to `partial` until it has `size` bytes, starting again a few times when the connection breaks."""
    failures = 0
    while (done := _length(partial)) < size:
        problem: Exception = ConnectionError(f"it ended after {done:,} of {size:,} bytes")
        try:
            asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
            with get_session().stream("GET", url, headers=asked, timeout=TIMEOUT) as answer:
                hf_raise_for_status(answer)
                comes = answer.headers.get("Content-Length")
                if comes and int(comes) != size - (done if answer.status_code == 206 else 0):
                    raise LGMError(
                        f"{url} is not the file that was asked for: {int(comes):,} bytes came in place of {size:,}. Is "
                        "there a proxy in between, or a network to log in to? Then try again.",
                        "weights",
                    )
                with partial.open("ab" if answer.status_code == 206 else "wb") as file:
                    for block in answer.iter_bytes():
                        file.write(block)
                        if file.tell() > size:  # it may have no end; what came is not the file, as its hash will tell
                            return
                        progress(file.tell(), size)
                        if file.tell() > size:  # a server that never ends must not fill the disk
                            break
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in (429, *range(500, 600)):
                raise
            problem = error
        failures = 0 if _length(partial) > done else failures + 1
        if failures > RETRIES:
            raise _unreachable(url, problem) from problem
        time.sleep(0.2 * 2**failures if failures else 0)


def _check_private(url: str) -> None:
    """That nobody on the way can change what comes: not every file's hash is known beforehand.

    Raises:
        LGMError: (kind 'weights') If it is not https, and not on this machine.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise LGMError(f"{url} is not https, so anybody on the way could change it. Correct HF_ENDPOINT.", "weights")


@contextmanager
def _explained(url: str, path: Path) -> Iterator[None]:
    """Makes a sentence of what may go wrong between `url` and `path`."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        sentence = "Nothing can be fetched while HF_HUB_OFFLINE is set. Unset it and try again."
        raise LGMError(sentence, "weights") from error
    except HfHubHTTPError as error:
        code, reason = error.response.status_code, error.response.reason_phrase
        said = "there is no such file" if code == 404 else f"{code} {reason}"
        raise LGMError(
            f"{url} could not be fetched: the server says {said}. Try again later, or update the extension.", "weights"
        ) from error
    except HTTPError as error:
        raise _unreachable(url, error) from error
    except OSError as error:
        raise output_error(path, error) from error


def _unreachable(url: str, error: Exception) -> LGMError:
    return LGMError(f"{url} can't be reached ({error}). Check the internet connection and try again.", "weights")


def _partial(path: Path) -> Path:
    """What has come so far of a file."""
    return path.with_name(f"{path.name}.incomplete")


def _length(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, length: int) -> str:
    """SHA-256 if it has 64 digits; else git's object name, the SHA-1 of a header and the content."""
    if length == 64:
        return file_sha256(path)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
