"""How the project installs, tests and packages itself (python build.py test tests/test_build.py)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import tools
from lgm_blender.core import environment, lock
from lgm_blender.core.lock import marker_values
from lgm_blender.core.version import VERSION
from tools import demo, environments, packaging, terminal
from tools import lock as write_lock
from tools import tests as runs
from tools.environments import BLENDERS, Environment
from tools.terminal import Failure

ROOT = Path(__file__).parents[1]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """build/ and dist/ in another folder; returns it."""
    monkeypatch.setattr(tools, "BUILD", tmp_path / "build")
    monkeypatch.setattr(tools, "DIST", tmp_path / "dist")
    return tmp_path


@pytest.fixture
def build(monkeypatch):
    """build.py as a module."""
    spec = importlib.util.spec_from_file_location("build_under_test", ROOT / "build.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    spec.loader.exec_module(module)
    return module


HERE = Environment(Path(sys.prefix))  # what runs this test


def fake_environment(folder: Path, *requirements: str, locked: str = "") -> Path:
    """A folder that looks like a finished environment."""
    python = environment.environment_python(folder)
    python.parent.mkdir(parents=True, exist_ok=True)
    python.touch()
    marker = {"requirements": requirements, "gpu": False, "trial": "torch 9 on Python 3.11.7", "lock": locked}
    (folder / environment.MARKER).write_text(json.dumps(marker))
    return folder


# ------------------------------------------------------------------------------------------------------ the package


def test_package(elsewhere):
    """The zip is valid, has what Blender and the worker need at its root, and nothing else."""
    result = packaging.package(HERE)
    assert result.name == f"lgm_blender-{VERSION}.zip"
    with zipfile.ZipFile(result) as archive:
        names = set(archive.namelist())
        manifest = tomllib.loads(archive.read("blender_manifest.toml").decode())
        archive.extractall(tools.BUILD / "lgm_blender")
    assert {"__init__.py", "blender_manifest.toml", "LICENSE", "blender/__init__.py", "core/__init__.py"} <= names
    assert "blender/ui/translations/table.tsv" in names
    assert manifest["id"] == "lgm_blender"
    assert not [name for name in names if re.search(r"tests|^tools|__pycache__|\.pyc$|^build", name)]
    sources = [path for path in (ROOT / "lgm_blender").rglob("*.py") if path.name[0] != "."]
    assert {path.relative_to(ROOT / "lgm_blender").as_posix() for path in sources} <= names
    # The worker runs from what was installed, and its list of packages came along.
    code = (
        "import lgm_blender.worker, lgm_blender.core.messages, lgm_blender.core.environment as e\n"
        "print(lgm_blender.__file__, *e.requirements(), *e.requirements('training'), sep='\\n')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tools.BUILD, capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]
    assert Path(answer[0]) == tools.BUILD / "lgm_blender" / "__init__.py"
    assert answer[1:] == [*environment.requirements(), *environment.requirements("training")]


def test_package_refuses_an_invalid_manifest(elsewhere, monkeypatch):
    """Blender's own tool is asked, and what it says is passed on."""
    root = elsewhere / "root"
    (root / "lgm_blender").mkdir(parents=True)
    (root / "lgm_blender" / "__init__.py").touch()
    (root / "LICENSE").touch()
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    manifest = (ROOT / "blender_manifest.toml").read_text()
    (root / "blender_manifest.toml").write_text(manifest.replace('type = "add-on"', 'type = "nonsense"'))
    monkeypatch.setattr(tools, "ROOT", root)
    with pytest.raises(Failure, match="nonsense"):
        packaging.package(HERE)
    assert not tools.DIST.exists() or not list(tools.DIST.iterdir())


def test_wheels_are_chosen_by_their_names():
    """For the lock: of all files of a release those for its systems and Pythons."""
    linux, arm = (marker_values("linux", machine, (3, 11, 9)) for machine in ("x86_64", "aarch64"))
    windows, mac = marker_values("win32", "AMD64", (3, 13, 1)), marker_values("darwin", "arm64", (3, 13, 1))
    for name, fitting in {
        "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl": [linux],
        "numpy-2.4.6-cp311-cp311-musllinux_1_2_x86_64.whl": [],
        "numpy-2.4.6-cp313-cp313t-win_amd64.whl": [],
        "numpy-2.4.6-cp313-cp313-win32.whl": [],
        "numpy-2.4.6-cp313-cp313-macosx_14_0_x86_64.whl": [],
        "hf_xet-1.8.0-cp37-abi3-win_amd64.whl": [windows],
        "a-1-cp312-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64.whl": [],
        "tqdm-4.70.1-py3-none-any.whl": [linux, arm, windows, mac],
        "six-1-py2.py3-none-any.whl": [linux, arm, windows, mac],
        "old-1-py2-none-any.whl": [],
        "fat-1-cp313-cp313-macosx_11_0_universal2.whl": [mac],
        "uv-0.13.9-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl": [arm],
    }.items():
        assert [target for target in (linux, arm, windows, mac) if write_lock.is_for(name, target)] == fitting, name


def test_what_is_locked_is_torch_as_the_tests_have_it():
    """Builds that no index in reach has stand in the source; the others are of the same version."""
    assert lock.torch_version() == write_lock.TORCH
    found = {digest for path in lock.FOLDER.glob("torch_*.txt") for p in lock.read(path) for digest in p.hashes}
    assert {digest for digest, _ in write_lock.TORCH_FILES.values()} <= found


def test_version_stands_in_three_files(monkeypatch):
    packaging.check_versions()
    monkeypatch.setattr(packaging, "VERSION", "9.9.9")
    with pytest.raises(Failure, match=r"9\.9\.9"):
        packaging.check_versions()


# ----------------------------------------------------------------------------------------------- lists of packages


def test_pyproject_reads_the_same_lists():
    """Its extras are the files that the installer reads: there is no other list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["optional-dependencies"]
    extras = project["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    lists = {
        room: [line for name in extras[room]["file"] for line in environment.read_requirements(ROOT / name)]
        for room in extras
    }
    assert lists["worker"] == environment.requirements(libc=("glibc", "2.99"))
    assert lists["train"] == environment.requirements("training")
    assert lists["scale"] == environment.requirements("worker/scale")
    assert lists["test"] == environments.test_requirements()
    assert "uvunwrap==0.3.*" in lists["worker"]
    (numpy,) = [line for line in lists["worker"] if environment.package_name(line) == "numpy"]
    assert project["project"]["dependencies"] == [numpy]


def test_only_the_worker_brings_torch():
    """PyPI's torch is 4 GB with CUDA's libraries: nothing that goes into a Blender's environment may ask for it."""
    seen, waiting = set(), [environment.package_name(text) for text in environments.test_requirements()]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system, say
            continue
        waiting += [environment.package_name(text) for text in needs if "extra ==" not in text]
    assert {"pluggy", "numpy"} <= seen
    assert "torch" not in seen


# ---------------------------------------------------------------------------------------------------- environments


def test_every_environment_is_apart(elsewhere, monkeypatch):
    """One for the worker and one for each Blender, each on the Python that it needs."""
    monkeypatch.setattr(tools, "ROOT", elsewhere)
    made = {}
    monkeypatch.setattr(environments, "follow", lambda task, _: made.setdefault(task.plan.folder.name, task.plan))
    found = {(3, minor): Path(f"p{minor}") for minor in (13, 10, 11, 12, 14, 15)}
    monkeypatch.setattr(environments, "find_pythons", lambda: found)
    for version, blenders in BLENDERS.items():
        for blender in blenders:
            environments.blender_environment(blender, found[version], ["x"])
    environments.worker_environment(["y"])
    assert {name: plan.requirements for name, plan in made.items()} == {
        ".venv-blender-4.2": ("bpy==4.2.*", "x"),
        ".venv-blender-5.2": ("bpy==5.2.*", "x"),
        ".venv-blender-5.3": ("bpy==5.3.*", "x"),
        ".venv": (*environment.requirements(), "y"),
    }
    assert made[".venv-blender-4.2"].pythons == ("p11",)
    assert made[".venv"].pythons == ("p13", "p11")  # those that the lock has wheels for
    assert made[".venv"].locked
    assert made[".venv"].beside == ["y"]
    assert not made[".venv-blender-5.3"].locked


def test_nothing_is_installed_twice(monkeypatch, tmp_path):
    """A second run finds the marker; other packages, another lock, or a machine that got a GPU, make it void."""
    made = []
    monkeypatch.setattr(environments, "follow", lambda task, _: made.append(task.plan.requirements))
    monkeypatch.setattr(environments, "has_gpu", lambda: False)

    def make(*requirements):
        made.clear()
        target = environments.make(tmp_path / ".venv", requirements, lambda: [environments.this_python()[1]], "")
        assert target.python == environment.environment_python(tmp_path / ".venv")
        return bool(made)

    assert make("torch>=2.6", "ruff>=1")
    fake_environment(tmp_path / ".venv", "torch>=2.6", "ruff>=1", "numpy", locked="another")
    assert make("torch>=2.6", "ruff>=1")
    assert not make("ruff>=1")
    fake_environment(tmp_path / ".venv", "torch>=2.6", "ruff>=1", "numpy", locked=lock.digest())
    assert not make("torch>=2.6", "ruff>=1")
    assert make("torch>=2.7", "ruff>=1")
    monkeypatch.setattr(environments, "has_gpu", lambda: True)
    assert make("torch>=2.6", "ruff>=1")
    assert not make("ruff>=1")


def test_a_machine_without_torch_is_told_at_once(elsewhere, monkeypatch):
    monkeypatch.setattr(tools, "ROOT", elsewhere)
    monkeypatch.setattr(environment, "unsupported", lambda: "PyTorch has no packages for typewriters.")
    with pytest.raises(Failure, match="typewriters"):
        environments.worker_environment()
    assert not list(elsewhere.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script, and pyenv another one there")
def test_pythons_are_found_and_stand_ins_are_none(monkeypatch, tmp_path):
    """pyenv puts a python3.10 on PATH that only says it isn't there; where pyenv has a Python, it is found."""
    real = environments.this_python()[1]
    stand_in = tmp_path / "python3.10"
    stand_in.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    stand_in.chmod(0o755)
    pyenv = tmp_path / "pyenv" / "versions" / "3.0.0" / "bin"
    pyenv.mkdir(parents=True)
    (pyenv / "python3").symlink_to(real)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(environments, "this_python", lambda: ((2, 9), real))
    found = environments.find_pythons.__wrapped__()
    assert next(iter(found.items())) == ((2, 9), real)
    assert found[sys.version_info[:2]] == pyenv / "python3"
    assert tmp_path not in [path.parent for path in found.values()]


def test_missing_libraries_are_named(elsewhere, monkeypatch):
    """`import bpy` on a machine without a screen's libraries ends in the command that brings them."""
    said = "ImportError: libXrender.so.1: cannot open shared object file: No such file or directory"

    def follow(task, what):
        raise Failure(said)

    monkeypatch.setattr(tools, "ROOT", elsewhere)
    monkeypatch.setattr(environments, "follow", follow)
    with pytest.raises(Failure, match=r"libXrender.so.1[\s\S]*apt-get install -y .*libxrender1"):
        environments.blender_environment("4.2", Path(sys.executable))


def test_the_newest_blender_is_taken_whose_python_is_here(monkeypatch):
    monkeypatch.setattr(environments, "this_python", lambda: ((3, 11), Path("python")))
    monkeypatch.setattr(environments, "find_pythons", lambda: {(3, 11): Path("python"), (3, 13): Path("new")})
    assert environments.blender_python() == ((3, 13), Path("new"))
    monkeypatch.setattr(environments, "find_pythons", lambda: {(3, 11): Path("python"), (3, 14): Path("newer")})
    assert environments.blender_python() == ((3, 11), Path("python"))


def test_a_python_without_blender_is_told(monkeypatch):
    monkeypatch.setattr(environments, "this_python", lambda: ((3, 12), Path("python")))
    monkeypatch.setattr(environments, "find_pythons", lambda: {(3, 12): Path("python"), (3, 10): Path("old")})
    with pytest.raises(Failure, match=r"3\.11 or 3\.13; this is Python 3\.12"):
        environments.blender_python()
    monkeypatch.setattr(environments, "find_pythons", lambda: {(3, 12): Path("python"), (3, 13): Path("new")})
    assert environments.blender_python() == ((3, 13), Path("new"))


# ------------------------------------------------------------------------------------------------------ the command


def test_a_failing_command_is_shown(elsewhere, capsys):
    code = "import sys; print('what went wrong'); sys.exit(3)"
    with pytest.raises(Failure, match=r"Trying failed: what went wrong[\s\S]*trying\.txt"):
        terminal.run([sys.executable, "-c", code], "Trying", "trying")
    log = (tools.BUILD / "logs" / "trying.txt").read_text()
    assert sys.executable in log
    assert "exit code 3" in log
    terminal.run([sys.executable, "-c", "pass"], "Trying again", "trying")
    assert re.fullmatch(r"  Trying again: \d+\.\d s\n", capsys.readouterr().out)


def test_arguments_go_on_to_pytest(elsewhere, monkeypatch, capsys):
    """Paths choose tests, each in the runs of its room; other arguments go on as they are, path or not."""
    commands = []
    monkeypatch.setattr(runs, "call", lambda command, variables: commands.append(command) or 0)
    (tools.BUILD / "logs").mkdir(parents=True)
    here = Environment(fake_environment(elsewhere / ".venv"))
    blender, worker = runs.TestRun(here, ("core", "blender", "build")), runs.TestRun(here, ("worker",))
    arguments = ["-k", "name", "--golden", "tests/window", "tests/core/test_ply.py::test_x", "tests/worker"]
    runs.run_pytest(blender, here, arguments)
    runs.run_pytest(worker, here, arguments)
    for command, path in zip(commands, ["tests/core/test_ply.py::test_x", "tests/worker"], strict=True):
        assert [word for word in command if str(word).startswith("tests/")] == [path, "tests/window"]
        assert command[-4:] == ["-k", "name", "--golden", "tests/window"]
    assert runs.run_pytest(blender, here, ["tests/worker"]) == (runs.NO_TESTS, {})
    assert len(commands) == 2
    for all_of_them in ([], ["tests"]):
        runs.run_pytest(worker, here, all_of_them)
        assert "tests/worker" in commands[-1]
        runs.run_pytest(blender, here, all_of_them)
        assert {"tests/core", "tests/blender", "tests/test_build.py"} <= {*commands[-1]}


def test_the_workflow_runs_what_ci_runs():
    commands = re.findall(
        r'^"\$python" (build\.py \w+)$', (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE
    )
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert commands == ["build.py lint", "build.py test"]
    assert [f"python {command}" for command in commands] == re.findall(
        r"run: (python build\.py (?:lint|test))$", workflow, re.MULTILINE
    )
    assert [name for name in ("ubuntu", "windows", "macos") if f"{name}-" in workflow] == ["ubuntu", "windows", "macos"]
    for version in BLENDERS:
        assert "{}.{}\n".format(*version) in workflow


def test_every_test_belongs_to_a_run():
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(files) > 50
    assert [name for name in files if runs.room_of(name) not in runs.ROOMS] == []


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0, 0), 0), ((0, 5, 0), 0), ((5, 5, 5), 5), ((0, 1, 0), 1), ((0, -11, 0), 1)]
)
def test_exit_code_of_all_runs(elsewhere, monkeypatch, capsys, codes, expected):
    """A crash in one of them is a failure, and the last line counts them together."""
    left, rooms = list(codes), []
    here = Environment(fake_environment(elsewhere / ".venv"))
    this = environments.this_python()
    monkeypatch.setattr(runs, "BLENDERS", {this[0]: ("1.0", "2.0")})
    monkeypatch.setattr(environments, "blender_python", lambda: this)
    monkeypatch.setattr(environments, "find_pythons", lambda: {(3, 10): Path("old"), this[0]: this[1]})
    monkeypatch.setattr(environments, "worker_environment", lambda more: here)
    monkeypatch.setattr(environments, "blender_environment", lambda *_: here)

    def run_pytest(run, worker, arguments):
        rooms.append(run.rooms)
        return left.pop(0), {"passed": 2, "error": 1}

    monkeypatch.setattr(runs, "run_pytest", run_pytest)
    assert runs.test([]) == expected
    assert rooms == [("worker", "training"), ("core", "blender", "build"), ("core", "blender")]
    assert capsys.readouterr().out.endswith("\n6 passed, 3 failed, 0 skipped\n")


def test_clean_gives_back_everything_but_results(build, monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    monkeypatch.setattr(tools, "BUILD", tmp_path / "build")
    monkeypatch.setattr(tools, "DIST", tmp_path / "dist")
    for name in (".venv", ".venv-blender-5.3", "build", "dist", "out", "lgm_blender/__pycache__", "docs"):
        (tmp_path / name).mkdir(parents=True)
    build.clean(out=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "lgm_blender", "out"]
    assert not list((tmp_path / "lgm_blender").iterdir())
    build.clean(out=True)
    assert not (tmp_path / "out").exists()


def test_demo_of_no_file(elsewhere):
    with pytest.raises(Failure, match="no file"):
        demo.demo(elsewhere / "missing.png", None, elsewhere / "out", 0)
    assert not (elsewhere / "out").exists()
