"""How the project installs, tests and packages itself (python build.py test tests/test_build.py)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build(tmp_path, monkeypatch):
    """build.py as a module, with its build/ and dist/ elsewhere."""
    spec = importlib.util.spec_from_file_location("build_under_test", ROOT / "build.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    monkeypatch.setattr(module, "DIST", tmp_path / "dist")
    return module


@pytest.fixture
def here(build):
    """The environment that runs this test."""
    return build.Environment(Path(sys.prefix), build.this_python())


def fake_environment(folder: Path, version: str, *packages: str) -> Path:
    """A folder that looks like a virtual environment."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")
    for package in packages:
        (folder / "lib" / f"python{version[:4]}" / "site-packages" / package).mkdir(parents=True)
    return folder


# ------------------------------------------------------------------------------------------------------ the package


def test_package(build, here):
    """The zip is valid, has what Blender and the worker need at its root, and nothing else."""
    result = build.package(here)
    assert result.name == f"lgm_blender-{build.VERSION}.zip"
    with zipfile.ZipFile(result) as archive:
        names = set(archive.namelist())
        manifest = tomllib.loads(archive.read("blender_manifest.toml").decode())
        archive.extractall(build.BUILD / "lgm_blender")
    assert {"__init__.py", "blender_manifest.toml", "LICENSE", "blender/__init__.py", "core/__init__.py"} <= names
    assert manifest["id"] == "lgm_blender"
    assert not [name for name in names if "tests" in name or "__pycache__" in name or name.endswith(".pyc")]
    sources = [path for path in (ROOT / "lgm_blender").rglob("*.py") if path.name[0] != "."]
    assert {path.relative_to(ROOT / "lgm_blender").as_posix() for path in sources} <= names
    # The worker runs from what was installed.
    code = "import lgm_blender.worker, lgm_blender.core.messages; print(lgm_blender.__file__)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=build.BUILD, capture_output=True, text=True, check=True)
    assert Path(answer.stdout.strip()) == build.BUILD / "lgm_blender" / "__init__.py"


def test_package_refuses_an_invalid_manifest(build, here, monkeypatch, tmp_path):
    """Blender's own tool is asked, and what it says is passed on."""
    root = tmp_path / "root"
    (root / "lgm_blender").mkdir(parents=True)
    (root / "lgm_blender" / "__init__.py").touch()
    (root / "LICENSE").touch()
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    manifest = (ROOT / "blender_manifest.toml").read_text()
    (root / "blender_manifest.toml").write_text(manifest.replace('type = "add-on"', 'type = "nonsense"'))
    monkeypatch.setattr(build, "ROOT", root)
    with pytest.raises(build.Failure, match="nonsense"):
        build.package(here)
    assert not build.DIST.exists() or not list(build.DIST.iterdir())


def test_version_stands_in_three_files(build, monkeypatch):
    build.check_versions()
    monkeypatch.setattr(build, "VERSION", "9.9.9")
    with pytest.raises(build.Failure, match=r"9\.9\.9"):
        build.check_versions()


def test_requirements_are_the_same_everywhere(build):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    worker = {build.environment.TORCH, *build.environment.WORKER_REQUIREMENTS}
    assert worker == {*project["dependencies"], *project["optional-dependencies"]["worker"]}
    tests = {*build.TEST_REQUIREMENTS, *build.TRAINING_REQUIREMENTS}
    assert tests - {*worker} == {*project["optional-dependencies"]["test"]}


def test_only_the_worker_brings_torch(build):
    """PyPI's torch is 4 GB with CUDA's libraries: nothing that goes into a Blender's environment may ask for it."""
    seen, waiting = set(), [re.split(r"[<>=~]", text)[0] for text in build.TEST_REQUIREMENTS]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system, say
            continue
        waiting += [re.split(r"[^\w.-]", text)[0].lower() for text in needs if "extra ==" not in text]
    assert {"pluggy", "numpy"} <= seen
    assert "torch" not in seen


# ---------------------------------------------------------------------------------------------------- environments


def test_environments_are_kept_apart(build, monkeypatch, tmp_path):
    """An environment of another Python is neither used nor overwritten; a broken one is made anew."""
    monkeypatch.setattr(build, "ROOT", tmp_path)
    old, new = (build.Interpreter(Path("python"), version) for version in build.BLENDERS)
    assert build.environment_for(old).folder == tmp_path / ".venv"
    fake_environment(tmp_path / ".venv", "3.11.7")
    assert build.environment_for(old).folder == tmp_path / ".venv"
    assert build.environment_for(new).folder == tmp_path / ".venv-3.13"
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert build.environment_for(new).folder == tmp_path / ".venv"


def test_every_blender_has_an_environment_of_its_own(build, monkeypatch, tmp_path):
    """Two Blenders of one Python don't share one; the newest has the one that is used when none is named."""
    monkeypatch.setattr(build, "ROOT", tmp_path)
    fake_environment(tmp_path / ".venv", "3.11.7")
    bases = {version: build.Interpreter(Path("python"), version) for version in build.BLENDERS}
    made = [build.environment_for(bases[v], blender) for v, names in build.BLENDERS.items() for blender in names]
    assert {target.blender: target.folder.name for target in made} == {
        "4.2": ".venv",
        "5.2": ".venv-blender-5.2",
        "5.3": ".venv-3.13",
    }
    for base in bases.values():
        assert build.environment_for(base) == build.environment_for(base, build.BLENDERS[base.version][-1])
    assert [build.requirements("blender", target.blender) for target in made] == [
        ("bpy==4.2.*",),
        ("bpy==5.2.*",),
        ("bpy==5.3.*",),
    ]


def test_worker_environment_is_the_one_with_torch(build, tmp_path):
    fake_environment(tmp_path / ".venv", "3.13.0", "bpy")
    assert build.environment.worker_environment(tmp_path) is None
    found = fake_environment(tmp_path / ".venv-3.11", "3.11.7", "torch", "diffusers")
    assert build.environment.worker_environment(tmp_path) == found


def test_nothing_is_installed_twice(build, here, monkeypatch, tmp_path):
    """A second run finds the stamp; other requirements, or a machine with a GPU, make it void."""
    folder = fake_environment(tmp_path / ".venv", "3.11.7", "pip")
    target = build.Environment(folder, build.Interpreter(Path(sys.executable), (3, 11)))
    commands = []
    torch = build.environment.TorchBuild("torch==2.13.0+cpu", ("--extra-index-url", "somewhere"))
    monkeypatch.setattr(build, "run", lambda command, *_: commands.append(command))
    monkeypatch.setattr(build.environment, "choose_torch", lambda python, gpu: torch)
    monkeypatch.setattr(build, "has_gpu", lambda: False)
    build.install(target, "worker", "test")
    assert {"torch==2.13.0+cpu", "--extra-index-url", "somewhere", *build.TEST_REQUIREMENTS} <= {*commands[0]}
    build.install(target, "worker", "test")
    assert len(commands) == 1
    (folder / "lib" / "python3.11" / "site-packages" / "torch-2.13.0+cpu.dist-info").mkdir(parents=True)
    monkeypatch.setattr(build, "has_gpu", lambda: True)
    monkeypatch.setattr(build.environment, "torch_tag", lambda gpu: "")
    build.install(target, "worker", "test")
    assert "uninstall" in commands[1]
    assert len(commands) == 3


def test_torch_for_this_machine(build):
    tag = build.environment.torch_tag
    assert tag(False, "linux") == "cpu"
    assert tag(True, "linux") == tag(False, "win32", "AMD64") == tag(False, "darwin") == ""
    assert tag(True, "win32", "AMD64") == build.environment.WINDOWS_CUDA
    newest = build.environment.newest_build
    versions = ["2.15.0", "2.9.0+cpu", "2.13.0+cpu", "2.14.0+cu128", "1.13.1+cpu"]
    assert newest(versions, "cpu") == "2.13.0+cpu"
    assert newest(["2.15.0", "1.13.1+cpu"], "cpu") == ""


def test_a_cpu_torch_is_taken_from_wherever_pip_looks(build, monkeypatch, tmp_path):
    """A folder of wheels in pip's settings is enough, and without one the user is told of the size."""
    python = Path(sys.executable)
    tags = "py3-none-any"
    links = tmp_path / "wheels"
    links.mkdir()
    monkeypatch.setattr(build.environment, "is_reachable", lambda url: False)
    monkeypatch.setattr(build.environment, "torch_tag", lambda gpu: "cpu")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    choice = build.environment.choose_torch(python, gpu=False)
    assert choice.requirement == build.environment.TORCH
    assert "several GB" in choice.note
    (links / f"torch-2.99.0+cpu-{tags}.whl").touch()
    choice = build.environment.choose_torch(python, gpu=False)
    assert (choice.requirement, choice.note) == ("torch==2.99.0+cpu", "")


def test_a_stand_in_is_no_python(build, tmp_path):
    """pyenv puts a python3.13 on PATH that only says it isn't there."""
    stand_in = tmp_path / "python3.13"
    stand_in.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    stand_in.chmod(0o755)
    assert not build.works(stand_in, (3, 13))
    assert build.works(build.this_python().path, sys.version_info[:2])
    assert not build.works(build.this_python().path, (3, 1))


# ------------------------------------------------------------------------------------------------------ the command


def test_a_failing_command_is_shown(build, capsys):
    code = "import sys; print('what went wrong'); sys.exit(3)"
    with pytest.raises(build.Failure, match=r"code 3[\s\S]*what went wrong"):
        build.run([sys.executable, "-c", code], "Trying", "trying")
    assert "what went wrong" in (build.BUILD / "logs" / "trying.txt").read_text()
    build.run([sys.executable, "-c", "pass"], "Trying again", "trying")
    assert "Trying again" in capsys.readouterr().out


def test_missing_libraries_are_named(build, here, monkeypatch):
    """`import bpy` on a machine without a screen's libraries ends in the command that brings them."""
    said = "Traceback\nImportError: libXrender.so.1: cannot open shared object file: No such file or directory"
    answer = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(build.Failure, match=r"libXrender.so.1[\s\S]*apt-get install -y .*libxrender1"):
        build.check_bpy(here)


def test_a_python_without_blender_is_told(build, monkeypatch):
    monkeypatch.setattr(build, "this_python", lambda: build.Interpreter(Path("python"), (3, 12)))
    monkeypatch.setattr(build, "find_pythons", lambda versions: iter(()))
    with pytest.raises(build.Failure, match=r"3\.11 or 3\.13; this is Python 3\.12"):
        build.blender_python()


def test_arguments_go_on_to_pytest(build, here, monkeypatch, capsys):
    """Paths choose tests, each in the sessions of its room; other arguments go on as they are, path or not."""
    commands = []
    monkeypatch.setattr(build, "start_child", lambda command, variables: commands.append(command))
    monkeypatch.setattr(build, "wait", lambda child: 0)
    (build.BUILD / "logs").mkdir(parents=True)
    blender = build.Session("bpy", here, ("core", "blender", "build"))
    worker = build.Session("torch", here, ("worker",))
    arguments = ["-k", "name", "--golden", "tests/window", "tests/core/test_ply.py::test_x", "tests/worker"]
    build.run_pytest(blender, here, arguments)
    build.run_pytest(worker, here, arguments)
    for command, path in zip(commands, ["tests/core/test_ply.py::test_x", "tests/worker"], strict=True):
        assert [word for word in command if word.startswith("tests/")] == [path, "tests/window"]
        assert command[-4:] == ["-k", "name", "--golden", "tests/window"]
    assert build.run_pytest(blender, here, ["tests/worker"]) == (build.NO_TESTS, {})
    assert len(commands) == 2
    for all_of_them in ([], ["tests"]):
        build.run_pytest(worker, here, all_of_them)
        assert "tests/worker" in commands[-1]
        build.run_pytest(blender, here, all_of_them)
        assert {"tests/core", "tests/blender", "tests/test_build.py"} <= {*commands[-1]}


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0, 0), 0), ((0, 5, 0), 0), ((5, 5, 5), 5), ((0, 1, 0), 1), ((0, -11, 0), 1)]
)
def test_exit_code_of_all_sessions(build, here, monkeypatch, tmp_path, capsys, codes, expected):
    """A crash in one of them is a failure, and the last line counts them together."""
    left = list(codes)
    monkeypatch.setattr(build, "BLENDERS", {here.base.version: ("1.0", "2.0")})
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "install", lambda target, *groups: target)
    monkeypatch.setattr(build, "blender_python", lambda: here.base)
    monkeypatch.setattr(build, "worker_environment", lambda main: main)
    monkeypatch.setattr(build, "run_pytest", lambda *_: (left.pop(0), {"passed": 2, "error": 1}))
    assert build.test([]) == expected
    assert capsys.readouterr().out.endswith("\n6 passed, 3 failed, 0 skipped\n")


def test_clean_gives_back_everything_but_results(build, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    for name in (".venv", ".venv-3.13", "out", "lgm_blender/__pycache__", "docs"):
        (tmp_path / name).mkdir(parents=True)
    build.BUILD.mkdir()
    build.DIST.mkdir()
    build.clean(out=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "lgm_blender", "out"]
    assert not list((tmp_path / "lgm_blender").iterdir())
    build.clean(out=True)
    assert not (tmp_path / "out").exists()


def test_demo_of_no_file(build, tmp_path):
    with pytest.raises(build.Failure, match="no file"):
        build.demo(tmp_path / "missing.png", None, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()
