"""Presets: which weights each one needs, where they are looked for, whether they are whole, and how they are fetched.

`mini` comes with the extension. `lgm` is the published models, 3.0 to 7.4 GB, looked for in the folder that the
environment variable LGM_BLENDER_WEIGHTS names and in the Hugging Face cache, and fetched into that cache only when
asked. Any folder of the form of `weights/mini` is a preset too, named by its path:

    preset.json                 see `read_preset`
    lgm/                        config.json, model.safetensors
    multiview/                  unet, vae, scheduler, and the encoders it has, in diffusers' layout
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, Literal

from ..core.environment import data_folder
from ..core.errors import Cancelled, LGMError
from ..core.files import output_error, replacing
from ..core.messages import PresetInfo
from ..core.version import VERSION

Part = Literal["lgm", "image", "text"]
Mode = Literal["image", "text"]

BUNDLED = Path(__file__).resolve().parent.parent / "weights"
WEIGHTS_VARIABLE = "LGM_BLENDER_WEIGHTS"
RETRIES = 4  # of a download whose connection breaks without a byte in between
DOWNLOAD_COMMAND = "python -m lgm_blender.worker models --download"

# Files that load without a complaint and give wrong results: their quaternions are normalised over the wrong axis.
ROTATION_BUG = "5a7ab3128a73dce6d2927d5c7c7ec79a7f7ca885fec960db86d991f272fe2e9d"

NEGATIVE_PROMPT = (
    "ugly, blurry, pixelated obscure, unnatural colors, poor lighting, dull, unclear, cropped, lowres, low quality, "
    "artifacts, duplicate"
)

# Short names of diffusers' classes; a preset.json may use either.
FLAGS = ("match_colors", "keep_image", "redraw", "clear_haze")  # of preset.json, false where they are missing
SCHEDULERS = {"ddim": "DDIMScheduler", "unipc": "UniPCMultistepScheduler", "dpm": "DPMSolverMultistepScheduler"}


@dataclass(frozen=True)
class File:
    """What a file must be: its size in bytes and its SHA-256, where they are known."""

    size: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """The files of one model.

    Attributes:
        files: Path below the model's folder -> what the file must be.
        folder: Where they are, for a preset that is a folder.
        repository: OWNER/NAME on Hugging Face, for a published model.
    """

    files: dict[str, File]
    folder: Path | None = None
    repository: str = ""

    def candidates(self) -> Iterator[Path]:
        """Folders that may hold the files, the first choice first."""
        if self.folder is not None:
            yield self.folder
            return
        if chosen := os.environ.get(WEIGHTS_VARIABLE):
            root = Path(chosen).expanduser()
            yield from (root / self.repository, root / self.repository.split("/")[1], root)
        cached = _cache_folder(self.repository)
        with suppress(OSError):
            yield cached / "snapshots" / (cached / "refs" / "main").read_text().strip()
        yield from sorted(cached.glob("snapshots/*"))

    def locate(self) -> tuple[Path | None, list[str]]:
        """The first folder whose files are all there and of their size, or None and what is wrong with the best one."""
        best: list[str] | None = None
        for folder in self.candidates():
            faults = [fault for name, file in self.files.items() if (fault := _fault(folder / name, file))]
            if not faults:
                return folder, []
            if best is None or len(faults) < len(best):
                best = faults
        return None, best or [f"{name} is missing" for name in self.files]


@dataclass(frozen=True)
class Preset:
    """A set of weights and the settings that suit them.

    Attributes:
        name: As requests name it.
        label: As users see it.
        version: Of the weights.
        modes: What it can start from.
        weights: The models of its parts; 'image' and 'text' are the multi-view models of the two modes.
        steps, guidance: Defaults of each mode.
        scheduler: A class of diffusers, one of SCHEDULERS' values.
        negative_prompt: Default.
        match_colors: Whether views of an image get its colours (multiview.colors); for models whose own drift.
        keep_image: Whether the view from the image's side is the image itself, and the others are drawn to go with it;
            for models that were trained with the image as that view, recentred as here.
        samples: In each mode, how many samples of the views are averaged (MultiViewPipeline); 1 where none is given.
        redraw: Whether such a mean is made sharp again (MultiViewPipeline).
        clear_haze: Whether what is faint around the object is left out (haze.without_haze); for models that are unsure.
    """

    name: str
    label: str
    version: str
    modes: tuple[Mode, ...]
    weights: dict[Part, Weights] = field(repr=False)
    steps: dict[Mode, int]
    guidance: dict[Mode, float]
    scheduler: str
    negative_prompt: str = ""
    match_colors: bool = False
    keep_image: bool = False
    samples: dict[Mode, int] = field(default_factory=dict)
    redraw: bool = False
    clear_haze: bool = False

    def mode(self, image: bool) -> Mode:
        """Which multi-view model serves a request.

        Raises:
            LGMError: If the preset has none for it.
        """
        mode: Mode = "image" if image else "text"
        if mode not in self.modes:
            needed = "an image" if mode == "text" else "a text"
            raise LGMError(f"The preset '{self.name}' can't start from {mode} alone. Give {needed}.")
        return mode

    def locate(self, part: Part) -> Path:
        """The folder of one of its models, all files there and of their size.

        Raises:
            LGMError: (kind 'weights') if a file is missing or cut short.
        """
        folder, faults = self.weights[part].locate()
        if folder is None:
            what = ", ".join(faults[:2]) + (f" and {len(faults) - 2} more" if len(faults) > 2 else "")
            raise LGMError(f"The weights of the preset '{self.name}' are not whole: {what}. {self.remedy()}", "weights")
        return folder

    def verify(self, part: Part, checked: CheckedFiles, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Compare a model's files with their SHA-256, where it is known.

        Raises:
            LGMError: (kind 'weights') if one differs, or is the published file with the rotation bug.
        """
        folder = self.locate(part)
        for name, file in self.weights[part].files.items():
            path = folder / name
            if not (file.sha256 or (part == "lgm" and path.suffix == ".safetensors")):
                continue
            found = checked.sha256(path, cancelled)
            if found == ROTATION_BUG:
                raise LGMError(
                    f"{path} is the LGM file whose rotations are wrong (model_fp16.safetensors). Use "
                    "model_fp16_fixrot.safetensors in its place.",
                    "weights",
                )
            if file.sha256 and found != file.sha256:
                raise LGMError(
                    f"{path} is damaged: it is not the file it should be. Delete it. {self.remedy()}", "weights"
                )

    def remedy(self) -> str:
        """What to do about weights that are missing or damaged."""
        if any(weights.repository for weights in self.weights.values()):
            return f"Fetch them with: {DOWNLOAD_COMMAND} {self.name}"
        if self.name == "mini":
            return "They come with the extension: install its release zip again."
        return "Copy the preset's folder again."

    def info(self) -> PresetInfo:
        """What `initialize` tells of it: ready if at least one mode is, with the modes that are."""
        faults = {}
        for part, weights in self.weights.items():
            folder, found = weights.locate()
            if folder is None:
                faults[part] = found
        ready = [mode for mode in self.modes if not faults.keys() & {"lgm", mode}]
        if ready:
            return PresetInfo(self.name, self.label, list(ready), True)
        first = next(iter(faults.values()))[0]
        return PresetInfo(
            self.name, self.label, list(self.modes), False, f"Its weights are missing: {first}. {self.remedy()}"
        )


# Presets
# -------

_PIPELINE_FILES = {
    **{f"unet/{name}": File() for name in ("config.json", "diffusion_pytorch_model.safetensors")},
    **{f"vae/{name}": File() for name in ("config.json", "diffusion_pytorch_model.safetensors")},
    "scheduler/scheduler_config.json": File(),
    **{f"text_encoder/{name}": File() for name in ("config.json", "model.safetensors")},
    **{
        f"tokenizer/{name}": File()
        for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
    },
}

# What Tang et al. published (arXiv 2402.05054), and the multi-view models their code uses.
PUBLISHED = Preset(
    name="lgm",
    label="LGM (published)",
    version="ashawkey/LGM fixrot",
    modes=("image", "text"),
    weights={
        "lgm": Weights(
            {
                "model_fp16_fixrot.safetensors": File(
                    830_126_160, "744d6324656342c64f871308e73db97f0eb51858d94329b30090e986a6d050ab"
                )
            },
            repository="ashawkey/LGM",
        ),
        "image": Weights(
            {
                **_PIPELINE_FILES,
                "unet/diffusion_pytorch_model.safetensors": File(
                    sha256="28d8b241a54125fa0a041c1818a5dcdb717e6f5270eea1268172acd3ab0238e0"
                ),
                "image_encoder/config.json": File(),
                "image_encoder/model.safetensors": File(),
                "feature_extractor/preprocessor_config.json": File(),
            },
            repository="ashawkey/imagedream-ipmv-diffusers",
        ),
        "text": Weights(_PIPELINE_FILES, repository="ashawkey/mvdream-sd2.1-diffusers"),
    },
    steps={"image": 30, "text": 30},
    guidance={"image": 5.0, "text": 7.5},
    scheduler=SCHEDULERS["ddim"],
    negative_prompt=NEGATIVE_PROMPT,
)


def read_preset(folder: Path, name: str = "") -> Preset:
    """A preset that is a folder. Its preset.json holds

        {"name": "mini", "label": "Mini (bundled)", "version": "1", "modes": ["image"],
         "steps": {"image": 20}, "guidance": {"image": 4.0}, "scheduler": "unipc", "negative_prompt": "",
         "match_colors": true, "keep_image": true, "samples": {"image": 4}, "redraw": true,
         "clear_haze": true,
         "files": {"lgm/model.safetensors": {"size": 123, "sha256": "..."}, ...}}

    and in place of a folder multiview may name the preset whose multi-view model it shares: "multiview": "lgm".

    Args:
        folder: Holds preset.json, lgm and mostly multiview.
        name: What requests call it; the file's own name if ''.

    Raises:
        LGMError: (kind 'weights') if there is no preset.json, or it is damaged.
    """
    path = folder / "preset.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        modes = tuple(values["modes"])
        if not modes or not set(modes) <= {"image", "text"}:
            raise ValueError("modes")
        files = {name: File(int(facts["size"]), str(facts["sha256"])) for name, facts in values["files"].items()}
        if shared := values.get("multiview"):
            multiview = find_preset(str(shared)).weights
        else:
            multiview = dict.fromkeys(modes, Weights(_below(files, "multiview/"), folder / "multiview"))
        preset = Preset(
            name=name or str(values["name"]),
            label=str(values["label"]),
            version=str(values["version"]),
            modes=modes,
            weights={
                "lgm": Weights(_below(files, "lgm/"), folder / "lgm"),
                **{mode: multiview[mode] for mode in modes},
            },
            steps={mode: int(values["steps"][mode]) for mode in modes},
            guidance={mode: float(values["guidance"][mode]) for mode in modes},
            scheduler=SCHEDULERS.get(values["scheduler"], values["scheduler"]),
            negative_prompt=str(values.get("negative_prompt", "")),
            samples={mode: int(count) for mode, count in values.get("samples", {}).items()},
            **{name: values.get(name, False) for name in FLAGS},
        )
        for name in FLAGS:
            if not isinstance(getattr(preset, name), bool):
                raise ValueError(f"{name} must be true or false")
        if min(preset.samples.values(), default=1) < 1:
            raise ValueError("samples")
        if preset.scheduler not in SCHEDULERS.values() or not all(w.files for w in preset.weights.values()):
            raise ValueError("scheduler or files")
    except OSError as error:
        raise LGMError(
            f"{folder} is no preset: {path} can't be read ({error.strerror or error}).", "weights"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LGMError(f"{path} is damaged: {error}. Copy the preset's folder again.", "weights") from error
    return preset


def _below(files: dict[str, File], prefix: str) -> dict[str, File]:
    return {name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)}


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """The "files" of a preset.json: size and SHA-256 of everything below `folder` / lgm and multiview."""
    paths = sorted(path for part in ("lgm", "multiview") for path in (folder / part).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }


def write_preset(folder: Path, name: str, label: str, base: str) -> None:
    """Make `folder`, which holds an LGM in lgm/, a preset that shares the multi-view model and settings of another.

    Args:
        folder: Without a folder multiview.
        name, label: The new preset's.
        base: Name or folder of the other preset. A folder that shares a model itself gives the name it shares.
    """
    preset = find_preset(base)
    if Path(base).is_dir():
        values = json.loads((Path(base) / "preset.json").read_text(encoding="utf-8"))
        base = values.get("multiview", str(Path(base).absolute()))
    values = {
        "name": name,
        "label": label,
        "version": "1",
        "modes": list(preset.modes),
        "steps": preset.steps,
        "guidance": preset.guidance,
        "scheduler": preset.scheduler,
        "negative_prompt": preset.negative_prompt,
        "samples": preset.samples,
        **{name: getattr(preset, name) for name in FLAGS},
        "multiview": base,
        "files": file_table(folder),
    }
    with replacing(folder / "preset.json") as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())


def find_preset(name: str) -> Preset:
    """The preset of a name, or in a folder.

    Raises:
        LGMError: If there is none (kind 'bad_input'), or its folder holds none (kind 'weights').
    """
    if name == PUBLISHED.name:
        return PUBLISHED
    if (BUNDLED / name / "preset.json").is_file() and name == Path(name).name:
        return read_preset(BUNDLED / name)
    if name == "mini":
        raise LGMError(
            f"The bundled models are missing: there is no {BUNDLED / name}. Install the extension's release zip again.",
            "weights",
        )
    if Path(name).is_dir():
        return read_preset(Path(name), name)
    known = ", ".join(f"'{preset}'" for preset in preset_names())
    raise LGMError(f"There is no preset '{name}'. Choose {known}, or the folder of one.")


def preset_names() -> list[str]:
    """The presets that need no path."""
    found = {path.parent.name for path in BUNDLED.glob("*/preset.json")} | {"mini"}
    return [*sorted(found), PUBLISHED.name]


def preset_infos() -> list[PresetInfo]:
    """What `initialize` tells of every preset. Sizes are checked, contents are not."""
    infos = []
    for name in preset_names():
        try:
            infos.append(find_preset(name).info())
        except LGMError as error:
            infos.append(PresetInfo(name, name.capitalize(), ["image"], False, error.message))
    return infos


# Whole or not
# ------------


def _fault(path: Path, file: File) -> str:
    """What is wrong with a file, as far as can be told without reading all of it, or ''."""
    try:
        size = path.stat().st_size
    except OSError:
        return f"{path} is missing"
    expected = file.size
    if expected is None and path.suffix == ".safetensors":
        expected = safetensors_size(path)
        if expected is None:
            return f"{path} is damaged"
    if expected is not None and size != expected:
        return f"{path} is {'cut short' if size < expected else 'too long'} ({size:,} of {expected:,} bytes)"
    if not size:
        return f"{path} is empty"
    return ""


def safetensors_size(path: Path) -> int | None:
    """How many bytes a safetensors file must have by its own header, or None if it has no proper one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= 100_000_000:
                return None
            start = file.read(length)
        if len(start) < length:
            return 8 + length
        tensors = json.loads(start)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def file_sha256(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        Cancelled: If `cancelled` says so meanwhile.
        LGMError: (kind 'weights') if it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                if cancelled():
                    raise Cancelled
                digest.update(block)
    except OSError as error:
        raise LGMError(f"{path} can't be read ({error.strerror or error}).", "weights") from error
    return digest.hexdigest()


class CheckedFiles:
    """Remembers the SHA-256 of large files by their size and time of change, so that each is read through once.

    Args:
        path: Where it is kept; it is no harm if it can't be.
    """

    def __init__(self, path: Path | None = None):
        self.path = path or data_folder() / "checked_files.json"
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = entries if isinstance(entries, dict) else {}
        except (OSError, ValueError):
            self.entries = {}

    def sha256(self, path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
        """The SHA-256 of a file, from memory if it has not changed."""
        stat = path.stat()
        if stat.st_size < 1 << 20:
            return file_sha256(path, cancelled)
        key, state = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = self.entries.get(key)
        if not (isinstance(entry, list) and len(entry) == 3 and entry[:2] == state):
            entry = self.entries[key] = [*state, file_sha256(path, cancelled)]
            with suppress(OSError, LGMError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path) as file:
                    file.write(json.dumps(self.entries).encode())
        return entry[2]


# Fetching
# --------


@dataclass(frozen=True)
class Fetched:
    """How far a download is: `done` of `total` bytes of file number `index` of `count`."""

    name: str
    index: int
    count: int
    done: int
    total: int


def download(
    preset: Preset,
    modes: tuple[Mode, ...] = ("image", "text"),
    progress: Callable[[Fetched], None] = lambda fetched: None,
    cancelled: Callable[[], bool] = lambda: False,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> None:
    """Fetch what is missing of a published preset into the Hugging Face cache, in that cache's own layout.

    A download that was broken off goes on where it stopped. A file appears under its name when it is whole and its
    size and hash are right. huggingface_hub's own downloader (2.4) starts anew each time.

    Args:
        preset: The preset.
        modes: For which modes.
        progress: Called several times a second.
        cancelled: Asked as often; what has come so far is kept.
        endpoint: The server; HF_ENDPOINT or https://huggingface.co if None.
        cache: The cache's folder; where huggingface_hub has it if None.

    Raises:
        Cancelled: If `cancelled` says so.
        LGMError: If the preset can't be fetched, the server can't be reached, the disk is full, or a file is wrong.
    """
    if not all(weights.repository for weights in preset.weights.values()):
        raise LGMError(f"The preset '{preset.name}' is not on the internet. {preset.remedy()}", "weights")
    parts: list[Part] = ["lgm", *(mode for mode in preset.modes if mode in modes)]
    wanted = [
        (weights.repository, name, file)
        for weights in (preset.weights[part] for part in parts)
        if weights.locate()[0] is None
        for name, file in weights.files.items()
    ]
    if wanted and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise LGMError("Nothing can be fetched while HF_HUB_OFFLINE is set. Unset it and try again.", "weights")
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    for index, (repository, name, file) in enumerate(wanted):
        _fetch(
            endpoint,
            _cache_folder(repository, cache),
            repository,
            name,
            file,
            lambda done, total, index=index, name=f"{repository}/{name}": progress(
                Fetched(name, index + 1, len(wanted), done, total)
            ),
            cancelled,
        )


def _cache_folder(repository: str, cache: Path | None = None) -> Path:
    """Where the Hugging Face cache keeps a repository (huggingface_hub's guides 'Understand caching', 'Environment
    variables')."""
    if cache is None:
        home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
        cache = Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")).expanduser()
    return cache / f"models--{repository.replace('/', '--')}"


def _fetch(
    endpoint: str,
    folder: Path,
    repository: str,
    name: str,
    file: File,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    url = f"{endpoint}/{repository}/resolve/main/{urllib.parse.quote(name)}"
    headers = _head(url)
    commit = headers.get("X-Repo-Commit", "")
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    size = int(headers.get("X-Linked-Size") or headers.get("Content-Length") or 0)
    if not (_is_hex(commit, 40) and (_is_hex(etag, 64) or _is_hex(etag, 40))):
        raise LGMError(f"{url} is not answered by a Hugging Face server. Check HF_ENDPOINT and your proxy.", "weights")
    if (file.sha256 and etag != file.sha256) or (file.size is not None and size not in (0, file.size)):
        raise LGMError(f"{repository} now holds another {name} than the one this version knows. Update it.", "weights")

    pointer = folder / "snapshots" / commit / name
    blob = folder / "blobs" / etag
    partial = blob.with_name(etag + ".lgm.incomplete")
    try:
        for path in (pointer.parent, blob.parent, folder / "refs"):
            path.mkdir(parents=True, exist_ok=True)
        if not blob.is_file() or (size and blob.stat().st_size != size):
            free = shutil.disk_usage(blob.parent).free
            have = partial.stat().st_size if partial.is_file() else 0
            if size - have > free:
                raise LGMError(
                    f"The disk is too full for {repository}/{name}: it needs {(size - have) / 1e9:.1f} GB and "
                    f"{free / 1e9:.1f} GB are free. Free some space in {folder.parent} or set HF_HOME to another disk.",
                    "weights",
                )
            receive(url, partial, size, progress, cancelled)
            if _blob_hash(partial, etag, cancelled) != etag:
                partial.unlink()
                raise LGMError(f"{url} arrived damaged. Try again.", "weights")
            partial.replace(blob)
        progress(blob.stat().st_size, blob.stat().st_size)
        _point(pointer, blob)
        with replacing(folder / "refs" / "main") as ref:
            ref.write(commit.encode())
    except OSError as error:
        raise output_error(blob, error) from error


def _point(pointer: Path, blob: Path) -> None:
    """Makes the file of a snapshot: a relative link, or the file itself where the system has no links."""
    with suppress(FileNotFoundError):
        pointer.unlink()
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)


def _blob_hash(path: Path, like: str, cancelled: Callable[[], bool]) -> str:
    """SHA-256 for large files; for small ones git's object name, the SHA-1 of a header and the content."""
    if len(like) == 64:
        return file_sha256(path, cancelled)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def receive(
    url: str,
    partial: Path,
    size: int,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Appends to `partial` until it has `size` bytes, starting again a few times when the connection breaks.

    Args:
        url: What to fetch.
        partial: What has come so far; it is gone on with.
        size: Of the whole in bytes; 0 if it is not known.
        progress: Called with how many bytes of how many have come.
        cancelled: Asked as often.

    Raises:
        Cancelled: If `cancelled` says so.
        LGMError: If the server can't be reached or refuses, or the disk is full.
    """
    if not size:  # then what is there can't be gone on with
        partial.unlink(missing_ok=True)
    failures = 0
    while True:
        done = partial.stat().st_size if partial.is_file() else 0
        if size and done > size:
            partial.unlink()
            done = 0
        if size and done == size:
            return
        try:
            request = urllib.request.Request(url, headers=_HEADERS | ({"Range": f"bytes={done}-"} if done else {}))
            with urllib.request.urlopen(request, timeout=30) as answer:
                resumed = answer.status == 206
                done = done if resumed else 0
                with partial.open("ab" if resumed else "wb", buffering=0) as file:
                    while block := answer.read(1 << 20):
                        if cancelled():
                            raise Cancelled
                        try:
                            file.write(block)
                        except OSError as error:
                            raise output_error(partial, error) from error
                        done += len(block)
                        failures = 0
                        progress(done, size)
            if not size or done == size:
                return
            problem: Exception = ConnectionError(f"it ended after {done:,} of {size:,} bytes")
        except urllib.error.HTTPError as error:
            if error.code != 429 and error.code < 500:
                raise _refused(url, error) from error
            problem = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        failures += 1
        if failures > RETRIES:
            raise _unreachable(url, problem) from problem
        time.sleep(0.2 * 2**failures)
        if cancelled():
            raise Cancelled


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The Hub's own answer carries the facts about a file; the store it redirects to knows none of them."""

    def redirect_request(self, *_):
        return None


_HEADERS = {"User-Agent": f"lgm_blender/{VERSION}"}


def _head(url: str) -> Message:
    """The headers about a file, redirects followed until they are there."""
    opener = urllib.request.build_opener(_NoRedirect)
    for _ in range(5):
        request = urllib.request.Request(url, method="HEAD", headers=_HEADERS | {"Accept-Encoding": "identity"})
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.headers
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308):
                raise _refused(url, error) from error
            if error.headers.get("X-Linked-Etag"):
                return error.headers
            url = urllib.parse.urljoin(url, error.headers.get("Location", ""))
        except OSError as error:
            raise _unreachable(url, error) from error
    raise LGMError(f"{url} could not be fetched: the server redirects in circles.", "weights")


def _refused(url: str, error: urllib.error.HTTPError) -> LGMError:
    reason = "there is no such file" if error.code == 404 else f"{error.code} {error.reason}"
    return LGMError(f"{url} could not be fetched: the server says {reason}.", "weights")


def _unreachable(url: str, error: Exception) -> LGMError:
    reason = getattr(error, "reason", error)
    return LGMError(f"{url} can't be reached ({reason}). Check the internet connection and try again.", "weights")


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(letter in "0123456789abcdef" for letter in text)
