"""What benchmarks/fuzz.py feeds: for each kind of input valid files, how they are changed, and who reads them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in (".", "core", "worker"))]
from mutations import (  # noqa: E402
    Mutate,
    change_bytes,
    change_json,
    change_lines,
    either,
    in_glb,
    in_gzip,
    in_png,
    in_safetensors,
    in_streams,
    in_zip,
)

Seeds = list[tuple[str, bytes]]  # (suffix, content)


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        seeds: Makes the valid files.
        change: Makes another one of one of them, by suffix.
        read: Reads a file as the product does; an LGMError is an answer, any other exception a crash.
    """

    seeds: Callable[[], Seeds]
    change: Callable[[str], Mutate]
    read: Callable[[Path], object]


# ---- Splats


def read_splats(path: Path) -> None:
    """Reads a file of splats, and writes what it holds in every format, as `convert` does."""
    from lgm_blender.core.formats.splat_files import WRITTEN, encode_splats, losses, read_splat_file
    from lgm_blender.worker import webp
    from lgm_blender.worker.convert import FORMATS

    gaussians = read_splat_file(path, lambda sentence: None, webp=webp)
    assert len(gaussians), "no Gaussians and no error"
    assert gaussians.finite().all(), "values that are not finite"
    for name in WRITTEN:
        losses(gaussians, FORMATS[name])
        encode_splats(name, gaussians, webp=webp)


def ply_seeds() -> Seeds:
    from packed_files import gaussians_of
    from test_ply import build

    from lgm_blender.core.formats.ply import encode_ply

    plain = gaussians_of(0, 40)
    lists = build(plain, "binary_little_endian").replace(
        b"element vertex", b"element camera 1\nproperty list uchar float pose\nelement vertex"
    )
    head, mark, body = lists.partition(b"end_header\n")
    return [
        (".ply", encode_ply(plain)),
        (".ply", encode_ply(gaussians_of(15, 20), normals=True)),
        (".ply", build(plain, "ascii")),
        (".ply", build(plain, "binary_big_endian")),
        (".ply", head + mark + b"\x02" + bytes(8) + body),
    ]


def splat_seeds(*names: str) -> Seeds:
    from packed_files import gaussians_of

    from lgm_blender.core.formats.splat_files import FORMATS, encode_splats
    from lgm_blender.worker import webp

    found = []
    for name in names:
        for coefficients, count in ((0, 60), (15, 300 if name == "compressed" else 30)):
            data = encode_splats(name, gaussians_of(coefficients, count), webp=webp)
            found.append((FORMATS[name].suffix, data))
    return found


def spz_seeds() -> Seeds:
    from packed_files import gaussians_of, spz_file

    return [(f".{version}.spz", spz_file(gaussians_of(15, 40), version)) for version in (1, 2, 3, 4)]


def ksplat_seeds() -> Seeds:
    from packed_files import gaussians_of, ksplat_file

    return [(".ksplat", ksplat_file(gaussians_of(count, 150), level)) for level in (0, 1, 2) for count in (0, 15)]


def gltf_seeds() -> Seeds:
    import base64
    import struct

    found = splat_seeds("glb")
    data = found[0][1]
    size = struct.unpack_from("<I", data, 12)[0]
    document, binary = json.loads(data[20 : 20 + size]), data[28 + size :]
    document["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
    document["nodes"] = [{"children": [1], "translation": [1, 2, 3], "scale": [2, 2, 2]}, {"mesh": 0}]
    return [*found, (".gltf", json.dumps(document).encode())]


def mesh_seeds() -> Seeds:
    from lgm_blender.core.formats.gltf import GlbMesh, encode_glb

    vertices = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0.5, 0.3]])
    faces = np.int32([[0, 1, 2], [0, 2, 3], [1, 4, 2]])
    normals = np.zeros((3, 3, 3), np.float32)
    normals[..., 2] = 1
    mesh = GlbMesh(vertices, faces, np.random.default_rng(0).random((3, 3, 2), np.float32), b"PNG", normals, quads=1)
    return [(".glb", encode_glb(mesh, "thing"))]


def read_mesh(path: Path) -> None:
    from lgm_blender.core.formats.gltf import read_glb

    read_glb(path)


# ---- Images


def picture():
    """A cut-out of 48 x 40 pixels, as Pillow's image."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (48, 40), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 6, 38, 34), fill=(200, 60, 30, 255))
    return image


def image_seeds(suffix: str, *modes: tuple[str, dict]) -> Seeds:
    from PIL import Image

    found = []
    for mode, options in modes:
        image = Image.new("RGBA", (48, 40), "white")
        image.alpha_composite(picture())
        image = picture() if mode in ("RGBA", "LA") else image.convert("RGB")
        buffer = io.BytesIO()
        image.convert(mode).save(
            buffer, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix), **options
        )
        found.append((f".{suffix}", buffer.getvalue()))
    return found


def rare_image_seeds() -> Seeds:
    found = [image_seeds(suffix, ("RGB", {}))[0] for suffix in ("bmp", "pcx", "ppm", "jp2", "avif", "dds")]
    return found + [image_seeds(suffix, ("RGBA", {}))[0] for suffix in ("tga", "ico", "avif", "dds", "jp2")]


def read_image(path: Path) -> None:
    from lgm_blender.worker.matting import matte, recenter

    recenter(matte(path)[0])


# ---- What the two processes say to each other


def line_seeds() -> Seeds:
    from lgm_blender.core import messages
    from lgm_blender.core.messages import ConvertRequest, GenerateRequest, MeshRequest, to_params

    params = [
        ("generate", to_params(GenerateRequest("a", "/tmp/out", image="/tmp/a.png", prompt="a cat", steps=3))),
        ("mesh", to_params(MeshRequest("b", "/tmp/a.ply", "/tmp/out"))),
        ("convert", to_params(ConvertRequest("c", "/tmp/a.ply", "/tmp/out"))),
        *(("cancel", {"job": "a"}), ("initialize", {}), ("shutdown", {})),
    ]
    return [(".json", messages.encode(messages.request(i, *each))) for i, each in enumerate(params, 1)]


def read_request(path: Path) -> None:
    """As the worker hears it, with a pipeline that does nothing: an answer for each line that is one."""
    import os

    from lgm_blender.core import messages
    from lgm_blender.worker.server import Server, _lines

    answers, tell = os.pipe()
    os.set_blocking(tell, False)
    server = Server(None, os.open(path, os.O_RDONLY), tell, None, 60.0)
    try:
        for line in _lines(server.stdin):
            if line.strip():
                server._receive(line)
        server._timer.cancel()
        while not server._work.empty():
            server._work.get()
        said = os.read(answers, 1 << 20) if _readable(answers) else b""
        for line in said.splitlines():
            messages.decode(line)
            assert b"could not handle a message" not in line, f"a defect of the worker's: {line[:300]!r}"
    finally:
        for each in (server.stdin, tell, answers):
            os.close(each)


def _readable(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0)[0])


def answer_seeds() -> Seeds:
    from lgm_blender.core import messages
    from lgm_blender.core.messages import (
        GenerateResult,
        Initialized,
        JobError,
        PresetInfo,
        Progress,
        to_params,
    )

    preset = PresetInfo("mini", "Mini", ["image"], True)
    started = Initialized(messages.PROTOCOL_VERSION, "1", "3.11", "2.6", "cpu", "CPU", [preset], "/tmp/worker.log")
    made = GenerateResult(
        "a", "/tmp/a.ply", "/tmp/v.png", None, "/tmp/a.json", 9, {"a": 1}, {"b": "2"}, {"c": 3.0}, "cpu"
    )
    found = [
        messages.response(1, to_params(started)),
        messages.response(2, to_params(made)),
        messages.notification("progress", to_params(Progress("a", "views", 2, 6, 3, 20, "/tmp/p.png"))),
        messages.error_response(
            2, messages.JOB_FAILED, "No. Do another.", to_params(JobError("a", "bad_input", "/tmp/l"))
        ),
    ]
    return [(f".{i}.json", messages.encode(each)) for i, each in enumerate(found)]


def read_answer(path: Path) -> None:
    """As Blender hears it, at the start or while a job runs."""
    import collections
    import time

    from lgm_blender.blender.engine import Engine, Job
    from lgm_blender.core.messages import GenerateRequest

    class Silent:
        """A worker that nobody started."""

        def __init__(self):
            self.tail = collections.deque(maxlen=40)

        def write(self, data: bytes) -> None:
            pass

        def leave(self, patience: float) -> None:
            pass

        def wait(self, timeout: float) -> bool:
            return True

    engine = Engine(["none"], logs=path.parent)
    engine._process, engine.state = Silent(), "starting"
    job = Job(GenerateRequest("a", "/tmp/out", prompt="cat"), started=time.monotonic())
    engine._jobs = {"a": job}
    engine._asked = {1: ""} if path.name.startswith("0") else {2: "a"}
    for line in path.read_bytes().split(b"\n"):
        engine._receive(line)
    assert job.label
    if job.progress:
        assert isinstance(job.progress.label, str)


# ---- Files of settings and weights


def transforms_seeds() -> Seeds:
    import tempfile

    from lgm_blender.core import cameras
    from lgm_blender.core.formats.transforms import write_transforms

    with tempfile.TemporaryDirectory() as folder:
        write_transforms(Path(folder), cameras.orbit_cameras()[:3], 64, "a red car", "val")
        return [(".json", (Path(folder) / "transforms.json").read_bytes())]


def read_transforms(path: Path) -> None:
    from lgm_blender.core.formats import transforms

    target = path.parent / "transforms.json"
    path.replace(target)
    for index in range(3):
        (path.parent / transforms.file_name(index)).touch()
    transforms.read_transforms(path.parent)


@cache
def tiny_preset() -> Path:
    """A whole preset with small models, in a folder that all inputs share."""
    import atexit
    import os
    import shutil
    import tempfile

    from tiny_preset import write_preset

    folder = Path(tempfile.mkdtemp(prefix="fuzz_preset_"))
    mine = os.getpid()
    atexit.register(lambda: os.getpid() == mine and shutil.rmtree(folder, ignore_errors=True))
    return write_preset(folder / "tiny")


def preset_seeds() -> Seeds:
    mini = ROOT / "lgm_blender" / "weights" / "mini" / "preset.json"
    return [(".json", (tiny_preset() / "preset.json").read_bytes()), (".json", mini.read_bytes())]


def read_preset(path: Path) -> None:
    """As `initialize` and a job do until models are loaded."""
    from lgm_blender.worker import reconstruct
    from lgm_blender.worker.presets import find_preset
    from lgm_blender.worker.weights import CheckedFiles

    for part in ("lgm", "multiview"):
        link = path.parent / part
        if not link.exists():
            link.symlink_to(tiny_preset() / part)
    path.replace(path.parent / "preset.json")
    preset = find_preset(str(path.parent))
    preset.info()
    preset.terms()
    for mode in preset.modes:
        settings = reconstruct.preset_settings(preset, mode)
        assert 0 < settings.steps <= 1000, "a number of steps that never ends"
        assert 0 < settings.samples <= 16, "a number of samples that no memory holds"
        preset.verify(mode, CheckedFiles(path.parent / "checked.json"))


def config_seeds() -> Seeds:
    paths = [tiny_preset() / "lgm" / "config.json", *sorted(tiny_preset().glob("multiview/*/*config.json"))]
    return [(f".{path.parent.name}.json", path.read_bytes()) for path in paths]


def read_config(path: Path) -> None:
    """One model's configuration, with the weights it belongs to."""
    import torch

    from lgm_blender.worker import lgm
    from lgm_blender.worker.multiview import loading

    part = path.name.split(".")[1]
    load = {
        "lgm": lambda folder: lgm.load_lgm(folder),
        "unet": lambda folder: loading.load_unet(folder, torch.device("cpu"), torch.float32),
        "vae": lambda folder: loading.load_vae(folder, torch.device("cpu"), torch.float32),
        "text_encoder": lambda folder: loading.load_text_encoder(folder, torch.device("cpu"), torch.float32),
        "image_encoder": lambda folder: loading.load_image_encoder(folder, torch.device("cpu"), torch.float32),
        "scheduler": lambda folder: loading.load_scheduler(folder),
        "tokenizer": loading.load_tokenizer,
        "feature_extractor": loading.load_image_processor,
    }[part]
    whole = tiny_preset() / ("lgm" if part == "lgm" else f"multiview/{part}")
    folder = path.parent / part
    folder.mkdir(exist_ok=True)
    for file in whole.iterdir():
        link = folder / file.name
        if not link.exists():
            link.symlink_to(file)
    name = next(file.name for file in whole.iterdir() if file.name.endswith("config.json"))
    path.replace(folder / name)
    load(folder)


def weights_seeds() -> Seeds:
    return [(".safetensors", (tiny_preset() / "lgm" / "model.safetensors").read_bytes())]


def read_weights(path: Path) -> None:
    from lgm_blender.worker import lgm
    from lgm_blender.worker.weights import File, _fault

    _fault(path, File())
    lgm.lgm_from_file(lgm.load_lgm_config(tiny_preset() / "lgm"), path)


def small_json_seeds() -> Seeds:
    checked = {"/a/b": [1 << 21, 1, "ab" * 32]}
    return [(".checked.json", json.dumps(checked).encode()), (".marker.json", b'{"requirements": ["torch"], "a": 1}')]


def read_small_json(path: Path) -> None:
    """Files that the product wrote itself, and somebody else changed."""
    from lgm_blender.core import environment
    from lgm_blender.worker.weights import CheckedFiles

    if ".checked" in path.name:
        large = path.parent / "large"
        if not large.exists():
            large.write_bytes(bytes(1 << 20))
        data = path.read_bytes().replace(b"/a/b", str(large).encode())
        path.write_bytes(data)
        assert len(CheckedFiles(path).sha256(large)) == 64
    else:
        path.replace(path.parent / environment.MARKER)
        environment.read_marker(path.parent)


def _always(change: Mutate) -> Callable[[str], Mutate]:
    return lambda suffix: change


KINDS = {
    "PLY": Kind(ply_seeds, _always(either(partial(change_lines, end=b"end_header\n"))), read_splats),
    "compressed PLY": Kind(
        partial(splat_seeds, "compressed"), _always(either(partial(change_lines, end=b"end_header\n"))), read_splats
    ),
    "SPZ": Kind(
        spz_seeds, lambda suffix: either(in_streams if suffix == ".4.spz" else in_gzip(change_bytes)), read_splats
    ),
    "SOG": Kind(partial(splat_seeds, "sog"), _always(either(in_zip)), read_splats),
    "splat": Kind(partial(splat_seeds, "splat"), _always(change_bytes), read_splats),
    "ksplat": Kind(ksplat_seeds, _always(change_bytes), read_splats),
    "glTF": Kind(gltf_seeds, lambda suffix: either(in_glb if suffix == ".glb" else change_json), read_splats),
    "mesh GLB": Kind(mesh_seeds, _always(either(in_glb)), read_mesh),
    "PNG": Kind(
        partial(image_seeds, "png", ("RGB", {}), ("RGBA", {}), ("P", {}), ("LA", {}), ("1", {}), ("I;16", {})),
        _always(either(in_png)),
        read_image,
    ),
    "JPEG": Kind(
        partial(image_seeds, "jpg", ("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})),
        _always(change_bytes),
        read_image,
    ),
    "WebP": Kind(
        partial(image_seeds, "webp", ("RGB", {}), ("RGBA", {}), ("RGBA", {"lossless": True})),
        _always(change_bytes),
        read_image,
    ),
    "TIFF": Kind(
        partial(
            image_seeds,
            "tif",
            *(("RGB", {}), ("RGBA", {"compression": "tiff_lzw"}), ("L", {"compression": "tiff_deflate"}), ("P", {})),
            *(("RGB", {"compression": "jpeg"}), ("F", {}), ("CMYK", {"compression": "packbits"})),
        ),
        _always(change_bytes),
        read_image,
    ),
    "GIF": Kind(partial(image_seeds, "gif", ("P", {}), ("RGBA", {})), _always(change_bytes), read_image),
    "other images": Kind(rare_image_seeds, _always(change_bytes), read_image),
    "lines to worker": Kind(line_seeds, _always(either(change_json)), read_request),
    "lines to Blender": Kind(answer_seeds, _always(either(change_json)), read_answer),
    "transforms.json": Kind(transforms_seeds, _always(either(change_json)), read_transforms),
    "preset.json": Kind(preset_seeds, _always(either(change_json)), read_preset),
    "model config": Kind(config_seeds, _always(either(change_json)), read_config),
    "safetensors": Kind(weights_seeds, _always(either(in_safetensors)), read_weights),
    "own JSON": Kind(small_json_seeds, _always(either(change_json)), read_small_json),
}
