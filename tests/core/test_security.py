"""What files, neighbours and servers could try, as far as one process tells (docs/security.md names each test)."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webp
from packed_files import gaussians_of

from lgm_blender.core import environment
from lgm_blender.core.errors import LGMError
from lgm_blender.core.files import replacing, write_together
from lgm_blender.core.formats import gltf_splats
from lgm_blender.core.formats.splat_files import encode_splats, read_splat_file
from lgm_blender.core.formats.transforms import read_transforms
from lgm_blender.core.system import folders

PACKAGE = Path(__file__).parents[2] / "lgm_blender"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")

# Calls that run what they are given, or guess a name that a neighbour could have taken.
FORBIDDEN = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "os.startfile",
        "os.tempnam",
        "tempfile.mktemp",
    ),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "yaml.load"),
    *("bpy.utils.execfile", "bpy.ops.script.python_file_run", "bpy.ops.text.run_script", "subprocess.getoutput"),
    *("socket.socket", "socket.create_server", "http.server.HTTPServer", "shutil.unpack_archive"),
}
METHODS = {"extractall", "as_module", "listen"}  # of archives, of Blender's texts, of sockets


def dangers(source: str) -> list[str]:
    """What a module calls that would run code that it was given, open a door or unpack whatever it likes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN or name.rpartition(".")[2] in METHODS:
            found.append(name)
        if name.endswith("torch.load") and given.get("weights_only") != "True":
            found.append(name)
        if name.rpartition(".")[2] == "open_mainfile" and given.get("use_scripts") != "False":
            found.append(name)
        found += [
            f"{name}: {key}"
            for key in ("shell", "trust_remote_code", "allow_pickle")
            if given.get(key) not in (None, "False")
        ]
    return found


def test_nothing_runs_what_it_is_given():
    paths = sorted(PACKAGE.rglob("*.py"))
    found = {str(path.relative_to(PACKAGE)): dangers(path.read_text(encoding="utf-8")) for path in paths}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        *(
            "eval(text)",
            "pickle.loads(data)",
            "os.system('ls')",
            "subprocess.run('ls', shell=True)",
            "torch.load(path)",
        ),
        *("torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "tempfile.mktemp()"),
        *("bpy.ops.wm.open_mainfile(filepath=path)", "archive.extractall(folder)", "bpy.data.texts[0].as_module()"),
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_a_danger_is_seen(line):
    assert dangers(line)


@pytest.mark.parametrize("line", ["torch.load(path, weights_only=True)", "subprocess.run(['ls'])", "model.eval()"])
def test_what_is_none_is_let_through(line):
    assert not dangers(line)


# ---- Paths


def sog_folder(folder: Path) -> Path:
    import io
    import zipfile

    folder.mkdir()
    with zipfile.ZipFile(io.BytesIO(encode_splats("sog", gaussians_of(0, 40), webp=webp))) as archive:
        for name in archive.namelist():
            (folder / name).write_bytes(archive.read(name))
    return folder


def gltf_beside(folder: Path, uri: str) -> tuple[Path, bytes]:
    """A .gltf whose numbers lie in another file, and that file's content."""
    data = gltf_splats.encode(gaussians_of(0, 40))
    size = int.from_bytes(data[12:16], "little")
    document = json.loads(data[20 : 20 + size])
    document["buffers"][0]["uri"] = uri
    (folder / "a.gltf").write_text(json.dumps(document))
    return folder / "a.gltf", data[28 + size :]


@pytest.mark.parametrize("uri", ["../secret.bin", "a/../../secret.bin", "{outside}", "file://{outside}"])
def test_gltf_names_no_file_elsewhere(tmp_path, uri):
    inside = tmp_path / "inside"
    inside.mkdir()
    path, numbers = gltf_beside(inside, uri.format(outside=tmp_path / "secret.bin"))
    (tmp_path / "secret.bin").write_bytes(numbers)
    with pytest.raises(LGMError, match=r"secret\.bin"):
        read_splat_file(path)
    (inside / "secret.bin").write_bytes(numbers)  # what is read is the one beside it
    assert len(read_splat_file(path)) == 40


@POSIX
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_no_pipe_and_no_device_is_opened(tmp_path, target):
    """Through a link in a downloaded folder: one never begins, the other never ends."""
    os.mkfifo(tmp_path / "pipe")
    target = tmp_path / target
    folder = sog_folder(tmp_path / "sog")
    (folder / "quats.webp").unlink()
    (folder / "quats.webp").symlink_to(target)
    path, _ = gltf_beside(tmp_path, "numbers.bin")
    (tmp_path / "numbers.bin").symlink_to(target)
    (tmp_path / "a.ply").symlink_to(target)
    (tmp_path / "views").mkdir()
    (tmp_path / "views" / "transforms.json").symlink_to(target)
    for each in (folder, path, tmp_path / "a.ply", target):
        with pytest.raises(LGMError):
            read_splat_file(each, webp=webp)
    with pytest.raises(LGMError):
        read_transforms(tmp_path / "views")


@POSIX
def test_a_link_in_a_results_place_is_replaced_and_not_followed(tmp_path):
    """Planted in a folder that others may write to."""
    precious, planted = tmp_path / "precious", tmp_path / "a.ply"
    for write in (lambda: write_together({planted: b"result"}), lambda: _write(planted)):
        precious.write_bytes(b"precious")
        planted.unlink(missing_ok=True)
        planted.symlink_to(precious)
        write()
        assert (precious.read_bytes(), planted.read_bytes(), planted.is_symlink()) == (b"precious", b"result", False)
    planted.unlink()
    planted.symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_together({planted: b"result"}, overwrite=False)
    assert precious.read_bytes() == b"precious"


def _write(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"result")


# ---- Memory


def test_one_mesh_in_very_many_places_is_refused(tmp_path):
    """A hundred kilobytes that would become gigabytes."""
    data = gltf_splats.encode(gaussians_of(15, 1000))
    size = int.from_bytes(data[12:16], "little")
    document = json.loads(data[20 : 20 + size])
    document["buffers"][0]["uri"] = "data:;base64," + base64.b64encode(data[28 + size :]).decode()
    document["nodes"] = [{"mesh": 0}] * 20_000
    document["scenes"] = [{"nodes": list(range(20_000))}]
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    began = time.process_time()
    with pytest.raises(LGMError, match="made to fill the memory"):
        read_splat_file(tmp_path / "a.gltf")
    assert time.process_time() - began < 10
    document["nodes"], document["scenes"] = [{"mesh": 0}] * 20, [{"nodes": list(range(20))}]
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    assert len(read_splat_file(tmp_path / "a.gltf")) == 20_000


# ---- Neighbours


@POSIX
def test_temporary_folders_are_private_and_a_neighbours_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = folders.private_folder("ours")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folders.private_folder("ours") == folder
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    for plant in (lambda: folder.symlink_to(tmp_path / "elsewhere"), lambda: folder.mkdir(), folder.touch):
        folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()
        plant()
        if not folder.is_symlink():
            folder.chmod(0o777)
        other = folders.private_folder("ours")
        assert other != folder
        assert other.parent == tmp_path
        assert other.stat().st_mode & 0o777 == 0o700


@POSIX
def test_without_a_home_there_is_a_private_one(tmp_path, monkeypatch):
    """As in a container whose user nobody knows."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert tmp_path in folders.data_folder().parents
    folders.ensure_home()
    import getpass

    assert Path.home() == Path("~").expanduser() == folders.home_folder()
    assert Path.home().stat().st_mode & 0o777 == 0o700
    assert getpass.getuser()


def test_a_program_beside_the_opened_file_is_not_run(tmp_path, monkeypatch):
    """Windows looks for programs where Blender was started from: beside the .blend."""
    planted = tmp_path / "nvidia-smi"
    planted.write_text("#!/bin/sh\necho GPU 0: planted > ran\necho GPU 0: planted\n")
    planted.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: str(planted))
    assert not environment.has_nvidia_gpu()
    assert not (tmp_path / "ran").exists()


def test_absurd_colours_are_left_out(tmp_path):
    gaussians, warnings = gaussians_of(3, 60), []
    gaussians.colors[:5] = 1e30
    gaussians.harmonics[5:7] = -1e30
    (tmp_path / "a.glb").write_bytes(encode_splats("glb", gaussians))
    read = read_splat_file(tmp_path / "a.glb", warnings.append)
    assert len(read) == 53
    assert "7 of 60" in warnings[0]
    for name in ("sog", "spz", "compressed"):  # of one colour, and of a single Gaussian far from the middle
        far = gaussians.select(np.arange(20, 21))
        far.positions[:] = 1e30
        encode_splats(name, far, webp=webp)


def test_what_the_page_promises_is_tested():
    page = PACKAGE.parent / "docs" / "security.md"
    named, file = [], ""
    for path, test in re.findall(r"`([\w/]+\.py|…)::(\w+)`", page.read_text(encoding="utf-8")):
        file = file if path == "…" else path
        named.append((file, test))
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (PACKAGE.parent / "tests" / file).read_text(encoding="utf-8"), (file, test)
