"""The installer, with a uv that fetches nothing. Run: pytest tests/blender/test_install.py"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
from pathlib import Path

import pytest

from lgm_blender.blender import install, recipe, tasks
from lgm_blender.core import environment, installed, lock
from lgm_blender.core.system import folders

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for uv is a shell script")

# `uv venv … FOLDER` makes a folder with a python; `uv pip install …` puts torch there; all is written down; $FAIL
# names words that make it fail.
UV = """#!/bin/sh
echo "$@" >> "$0.calls"
for word in $FAIL; do case "$*" in *"$word"*) echo "error: $word did not work"; exit 2;; esac; done
folder="HERE/environment"
if [ "$1" = venv ]; then
  mkdir -p "$folder/bin"; echo '#!/bin/sh' > "$folder/bin/python"; echo "home = /bin" > "$folder/pyvenv.cfg"
  echo '[ -z "$BROKEN" ] || { echo "ImportError: libGL"; exit 1; }; echo torch 9' >> "$folder/bin/python"
  chmod +x "$folder/bin/python"
else
  mkdir -p "$folder/lib/python3.13/site-packages/torch"
fi
[ -z "$SLOW" ] || sleep 60
[ -z "$UV_CACHE_DIR" ] || { mkdir -p "$UV_CACHE_DIR"; echo wheel > "$UV_CACHE_DIR/wheel"; }
echo "Downloading torch (182.9MiB)"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with the stand-in for uv, and a machine where nothing is chosen or found by accident."""
    monkeypatch.delenv(environment.PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "PACKAGE", install_package(tmp_path))  # not below what build.py made in this clone
    monkeypatch.setattr(install, "pip_settings", lambda python: {})
    monkeypatch.setattr(lock, "size", lambda *_: None)  # however full the disk is that tests run on
    folder = folders.data_folder()
    uv = folder / "tools" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    (folder / "tools" / f"uv-{recipe.UV_VERSION}.dist-info").mkdir()
    uv.write_text(UV.replace("HERE", str(folder)))
    uv.chmod(0o755)
    return folder


def install_package(folder: Path) -> Path:
    """Something like an installed extension: it has the list of packages."""
    package = folder / "installed" / "lgm_blender"
    (package / "worker").mkdir(parents=True)
    (package / "worker" / "requirements.txt").write_bytes(
        (environment.PACKAGE / "worker" / "requirements.txt").read_bytes()
    )
    return package


def finish(installation, seconds=20.0):
    seen = []
    end = time.monotonic() + seconds
    while installation.state == "running":
        if installation.step():
            seen.append(installation.label)
        assert time.monotonic() < end
        time.sleep(0.005)
    return seen


def calls(folder):
    return (folder / "tools" / "bin" / "uv.calls").read_text().splitlines()


def test_installs(folder):
    installation = install.Installation(build="cpu")
    labels = finish(installation)
    assert installation.state == "done", installation.error
    assert labels[0] == "Making a Python environment with torch"
    assert labels[-1] == "Installed"
    assert installation.count == 3
    marker = environment.read_marker(folder / "environment")
    assert (marker["trial"], marker["build"], marker["gpu"], marker["lock"]) == ("torch 9", "cpu", False, lock.digest())
    assert not (folder / "cache").exists()
    assert install.worker_python() == (folder / "environment" / "bin" / "python", "installed")
    assert not install.is_outdated()
    assert "Downloading torch (182.9MiB)\n" in installation.log.read_text()
    venv, torch, rest = calls(folder)
    assert "--managed-python --python 3.13" in venv
    assert f"--require-hashes --no-deps --torch-backend cpu -r {lock.torch_file('cpu')}" in torch
    assert f"--require-hashes --no-deps -r {lock.FOLDER / 'packages.txt'}" in rest


@pytest.mark.parametrize(
    ("system", "build", "links", "ways"),
    [
        ("darwin", "cpu", "", ["torch_cpu.txt"]),
        ("win32", "cpu", "", ["torch_cpu.txt"]),
        ("win32", "cu130", "", ["cu130 torch_cu130.txt", "torch_cpu.txt NO_CUDA"]),
        ("win32", "cu126", "", ["cu126 torch==2.13.0+cu126 OLD_CUDA", "torch_cpu.txt NO_CUDA"]),
        ("linux", "cpu", "", ["cpu torch_cpu.txt", "torch_cu130.txt ALL_OF_CUDA"]),
        ("linux", "cpu", "/wheels", ["no-index torch_cpu.txt", "cpu torch_cpu.txt", "torch_cu130.txt ALL_OF_CUDA"]),
        ("linux", "cu130", "", ["torch_cu130.txt", "cpu torch_cpu.txt NO_CUDA"]),
        ("linux", "cu126", "", ["cu126 torch==2.13.0+cu126 OLD_CUDA", "cpu torch_cpu.txt NO_CUDA"]),
    ],
)
def test_where_torch_comes_from(system, build, links, ways):
    """What PyPI has is taken from there; all but what the lock can't know is compared with its hash."""
    machine = recipe.Machine(build, {"UV_FIND_LINKS": links} if links else {})
    said = []
    for way in recipe.torch_ways(machine, system):
        words = [word for word in ("NO_CUDA", "OLD_CUDA", "ALL_OF_CUDA") if getattr(recipe, word) == way.note]
        names = [Path(o).name if o.endswith(".txt") else o for o in way.options if not o.startswith("-")]
        said.append(" ".join(["no-index"] * ("--no-index" in way.options) + names + words))
        assert ("--require-hashes" in way.options) is (way.note != recipe.OLD_CUDA)
    assert said == ways


@pytest.mark.parametrize(
    ("told", "build"),
    [
        ("580.65.06, 8.9\n", "cu130"),
        ("591.44, 12.0\n591.44, 6.1\n", "cu130"),
        ("580.65.06, 6.1\n", "cu126"),  # Pascal, which CUDA 13 knows no more
        ("535.161.07, 8.0\n", "cu126"),
        ("470.10, 8.0\n", "cpu"),
        ("", "cpu"),
    ],
)
def test_the_driver_decides_which_torch(monkeypatch, told, build):
    monkeypatch.setattr(environment, "_ask_nvidia", lambda *arguments: told if len(arguments) > 1 else "")
    assert install.suitable_build() == build


def test_a_driver_that_is_too_old_to_tell_gets_the_older_torch(monkeypatch):
    monkeypatch.setattr(environment, "_ask_nvidia", lambda *arguments: "" if len(arguments) > 1 else "GPU 0: K80")
    assert install.suitable_build() == "cu126"


def test_a_gpu_that_has_come_since_brings_its_torch(folder):
    finish(install.Installation(build="cpu"))
    finish(install.Installation(build="cu130"))
    assert "torch_cu130.txt --reinstall-package torch" in calls(folder)[3]
    assert sum("venv" in call for call in calls(folder)) == 1


def test_every_python_is_tried_before_a_worse_torch(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "--managed-python --torch-backend --no-index")
    plan = dataclasses.replace(install.shared_plan(), pythons=("3.13", "/blender/python"))
    monkeypatch.setattr(install, "pip_settings", lambda python: {"UV_FIND_LINKS": "/wheels"})
    installation = install.Installation(plan, build="cpu")
    finish(installation)
    assert installation.state == "done"
    said = [" ".join(word for word in call.split() if word != str(folder / "environment")) for call in calls(folder)]
    own, borrowed = "venv --no-project --clear --managed-python", "venv --no-project --clear --no-python-downloads"
    assert said[:2] == [f"{own} --python 3.13", f"{borrowed} --python /blender/python"]
    assert said[2].endswith(f"--require-hashes --no-deps --no-index -r {lock.torch_file('cpu')}")
    assert "--torch-backend cpu" in said[5]
    assert said[6:8] == [f"{own} --python 3.13", f"{borrowed} --python /blender/python"]
    assert said[8].endswith(f"--require-hashes --no-deps -r {lock.torch_file('cu130')}")
    assert "packages.txt" in said[9]
    assert installation.notes == [recipe.ALL_OF_CUDA]


def test_failure_is_a_sentence_and_a_second_try_goes_on(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "packages.txt")
    installation = install.Installation(build="cpu")
    finish(installation)
    assert installation.state == "failed"
    assert "packages.txt did not work" in installation.error
    assert f"Press Install to try again. The log is {installation.log}" in installation.error
    assert install.worker_python().path is None  # a python is there, but not all of it
    assert "was not finished" in install.worker_python().where
    assert install.label() == "Go On Installing"
    monkeypatch.delenv("FAIL")
    installation = install.Installation(build="cpu")
    finish(installation)
    assert installation.state == "done"
    assert sum("venv" in call for call in calls(folder)) == 1


def test_packages_that_do_not_import(folder, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    installation = install.Installation(build="cpu")
    finish(installation)
    assert "ImportError: libGL" in installation.error
    assert environment.read_marker(folder / "environment") is None


def test_offline_is_said(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "torch")
    uv = folder / "tools" / "bin" / "uv"
    uv.write_text(uv.read_text().replace("did not work", "failed to lookup address"))
    installation = install.Installation(build="cpu")
    finish(installation)
    assert "Is this computer online" in installation.error


def test_full_disk_is_said_before_anything_is_fetched(folder, monkeypatch):
    monkeypatch.setattr(lock, "size", lambda *_: lock.Size(1, 1 << 60))
    installation = install.Installation(build="cpu")
    finish(installation)
    assert "GB are free" in installation.error
    assert not (folder / "tools" / "bin" / "uv.calls").exists()


def test_a_machine_without_packages_is_told_before_anything_is_fetched(folder, monkeypatch):
    monkeypatch.setattr(environment, "unsupported", lambda: "PyTorch has no packages for typewriters.")
    assert install.worker_python() == (None, "PyTorch has no packages for typewriters.")
    installation = install.Installation(build="cpu")
    finish(installation)
    assert installation.error == "PyTorch has no packages for typewriters."
    assert not (folder / "tools" / "bin" / "uv.calls").exists()


def test_folder_that_can_not_be_written(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    installation = install.Installation(build="cpu")
    finish(installation)
    assert installation.state == "failed"
    assert "not usable" in installation.error


def test_cancel_takes_effect_at_once(folder, monkeypatch):
    monkeypatch.setenv("SLOW", "1")
    installation = install.Installation(build="cpu")
    while not installation._process:
        assert installation.state == "running", installation.error
        installation.step()
    installation.cancel()
    assert installation.state == "cancelled"
    assert installation._process.wait(2)
    assert not installation.step()


def test_remove_gives_everything_back(folder, tmp_path):
    finish(install.Installation(build="cpu"))
    (folder / "environment" / "big").write_bytes(b"x" * 5000)
    os.link(folder / "environment" / "big", folder / "environment" / "the same")
    (folder / "checked_files.json").write_text("{}")
    assert 5000 < install.size() < 9000
    install.remove()
    assert not folder.exists()
    assert install.size() == 0
    install.remove()  # twice is no mistake


def test_a_longer_list_makes_it_outdated(folder):
    finish(install.Installation(build="cpu"))
    assert install.label() == "Repair Worker"
    with (environment.PACKAGE / "worker" / "requirements.txt").open("a") as file:
        file.write("another>=1  # of which there was no need\n")
    assert install.is_outdated()
    assert install.label() == "Update Worker"
    finish(install.Installation(build="cpu"))
    assert not install.is_outdated()


def test_another_lock_makes_it_outdated(folder, monkeypatch):
    """As an update of the extension brings it. The worker goes on with what it has until then."""
    finish(install.Installation(build="cpu"))
    monkeypatch.setattr(lock, "digest", lambda: "another")
    assert install.is_outdated()
    assert install.worker_python().where == "installed"
    finish(install.Installation(build="cpu"))
    assert not install.is_outdated()


def test_what_was_asked_for_is_remembered(folder):
    """More of it, twice the same package too; and what an earlier run brought, unless it is asked for otherwise."""
    plan = install.shared_plan()
    finish(install.Installation(dataclasses.replace(plan, requirements=("torch", "numpy", "old>=1")), build="cpu"))
    finish(install.Installation(dataclasses.replace(plan, requirements=("torch", "numpy<3", "numpy>1")), build="cpu"))
    assert environment.read_marker(folder / "environment")["requirements"] == ["old>=1", "torch", "numpy<3", "numpy>1"]


def test_what_is_required_beside_keeps_the_versions_of_the_lock(folder):
    plan = install.shared_plan()
    finish(install.Installation(dataclasses.replace(plan, requirements=(*plan.requirements, "ray>=2")), build="cpu"))
    assert f"ray>=2 -c {lock.FOLDER / 'packages.txt'}" in calls(folder)[3]


# Damage


def record(folder, name, *files):
    """Installs a package of some files, each of 3 bytes."""
    libraries = folder / "environment" / "lib" / "python3.13" / "site-packages"
    metadata = libraries / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    for file in files:
        (libraries / file).parent.mkdir(parents=True, exist_ok=True)
        (libraries / file).write_bytes(b"abc")
    listed = [f"{file},sha256=x,3" for file in files]
    (metadata / "RECORD").write_text("\n".join([*listed, f"{name}/__pycache__/a.pyc,,", f"{metadata.name}/RECORD,,"]))
    return libraries


def test_damaged_packages_are_installed_again(folder):
    finish(install.Installation(build="cpu"))
    libraries = record(folder, "whole", "whole/a.py")
    record(folder, "cut_short", "cut_short/a.py", "../../../bin/tool")
    record(folder, "lost", "lost/a.py", "lost/b.py")
    record(folder, "nameless", "nameless/a.py")
    assert installed.damaged_packages(folder / "environment") == []
    (libraries / "cut_short" / "a.py").write_bytes(b"ab")
    (libraries / "lost" / "b.py").unlink()
    (libraries / "nameless-1.0.dist-info" / "RECORD").unlink()
    assert installed.damaged_packages(folder / "environment") == ["cut_short", "lost", "nameless"]
    installation = install.Installation(build="cpu")
    finish(installation)
    again = "--reinstall-package cut_short --reinstall-package lost --reinstall-package nameless"
    assert all(again in call for call in calls(folder)[-2:])
    assert installation.notes == ["Not whole, and installed again: cut_short, lost, nameless."]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "bin" / "python").unlink(), "its Python is gone"),
        (lambda folder: (folder / "pyvenv.cfg").unlink(), "pyvenv.cfg is gone"),
        (lambda folder: (folder / "pyvenv.cfg").write_text("home = /blender/that/is/gone\n"), "gone from /blender"),
        (
            lambda folder: (folder / "pyvenv.cfg").write_text("home = /bin\nversion_info = 3.11.9\n"),
            r"its packages are for Python 3\.13, and its Python is 3\.11",
        ),
        (lambda folder: (folder / environment.MARKER).write_text("{"), "list of contents can't be read"),
    ],
)
def test_a_damaged_environment_is_noticed_and_mended(folder, damage, said):
    finish(install.Installation(build="cpu"))
    assert install.worker_python().where == "installed"
    damage(folder / "environment")
    found = install.worker_python()
    assert found.path is None
    assert re.search(f"{said}.*Press Repair", found.where)
    installation = install.Installation(build="cpu")
    finish(installation)
    assert installation.state == "done", installation.error
    assert install.worker_python().where == "installed"


def test_a_python_that_does_not_run_is_made_anew(folder, monkeypatch):
    """Its own library is gone, say: no package would mend it."""
    finish(install.Installation(build="cpu"))
    python = folder / "environment" / "bin" / "python"
    for content in ("#!/bin/sh\nexit 127\n", "\0"):
        python.write_text(content)
        installation = install.Installation(build="cpu")
        finish(installation)
        assert installation.state == "done", installation.error
    assert sum("venv" in call for call in calls(folder)) == 3


# A folder of wheels


def wheels_of(folder, *files):
    """A folder that has, by their names, wheels of all that some of the lock's files name for this system."""
    folder.mkdir()
    for package in lock.wanted(files, lock.marker_values()):
        (folder / f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl").touch()
    return folder


@pytest.fixture
def known_python(monkeypatch):
    monkeypatch.setattr(lock, "PYTHONS", (sys.version_info[:2],))


def test_installs_from_a_folder_of_wheels(folder, tmp_path, known_python, monkeypatch):
    wheels = wheels_of(tmp_path / "my wheels", *lock.files(), lock.torch_file("cpu"))
    monkeypatch.setattr(install, "pip_settings", lambda python: pytest.fail("pip was asked, which may be online"))
    installation = install.Installation(build="cpu", wheels=wheels)
    finish(installation)
    assert installation.state == "done", installation.error
    venv, torch, rest = calls(folder)
    assert "--no-python-downloads" in venv
    assert f"--require-hashes --no-deps --no-index --find-links {wheels} -r" in torch
    assert f"--require-hashes --no-deps --no-index --find-links {wheels} -r" in rest
    assert installation._variables["UV_OFFLINE"] == "1"


def test_what_a_folder_of_wheels_lacks_is_named(folder, tmp_path, known_python):
    wheels = wheels_of(tmp_path / "wheels", *lock.files(), lock.torch_file("cpu"))
    next(wheels.glob("numpy-*")).unlink()
    next(wheels.glob("torch-*")).unlink()
    version = next(package.version for package in lock.read(lock.FOLDER / "packages.txt") if package.name == "numpy")
    installation = install.Installation(build="cpu", wheels=wheels)
    finish(installation)
    assert f"{wheels} lacks wheels of torch 2.13.0+cpu, numpy {version}. Add them" in installation.error
    assert not (folder / "tools" / "bin" / "uv.calls").exists()


def test_uv_may_come_from_the_folder(folder, tmp_path, known_python):
    (folder / "tools" / "bin" / "uv").unlink()
    wheels = wheels_of(tmp_path / "wheels", *lock.files(), lock.torch_file("cpu"))
    installation = install.Installation(build="cpu", wheels=wheels)
    finish(installation)
    assert f"lacks wheels of uv {recipe.UV_VERSION}." in installation.error
    first = recipe.install_steps(install.shared_plan(), recipe.Machine(wheels=wheels))[0]
    for way in first.ways[:2]:
        assert " ".join(way.commands[0]).count(f"--no-index --find-links {wheels}") == 1


def test_another_python_than_the_locks_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PYTHONS", ((3, 99), (3, 98)))
    installation = install.Installation(build="cpu", wheels=tmp_path)
    finish(installation)
    assert "serves Python 3.99 and 3.98, and this is" in installation.error


def test_another_file_than_the_locks_is_told(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "packages.txt")
    uv = folder / "tools" / "bin" / "uv"
    uv.write_text(uv.read_text().replace("did not work", "Hash mismatch for numpy==2.4.6"))
    installation = install.Installation(build="cpu")
    finish(installation)
    assert "not the file that this version of LGM was made with (its SHA-256 is another)" in installation.error


# Fetching uv


def test_uv_is_fetched_in_one_version(folder, monkeypatch):
    """An older one is no reason not to; pip fetches it, the pip in ensurepip, or the user's own uv."""
    (folder / "tools" / f"uv-{recipe.UV_VERSION}.dist-info").rename(folder / "tools" / "uv-0.1.0.dist-info")
    monkeypatch.setattr(recipe.shutil, "which", lambda name: f"/usr/bin/{name}")
    steps = recipe.install_steps(install.shared_plan(), recipe.Machine())
    (pip,), (bundled,), (own,) = (way.commands for way in steps[0].ways)
    assert pip[:4] == (sys.executable, "-I", "-m", "pip")
    assert "ensurepip" in bundled[3]
    assert own[0] == "/usr/bin/uv"
    listed = ("--require-hashes", "-r", str(lock.FOLDER / "uv.txt"))
    assert all(command[-3:] == listed for command in (pip, bundled, own))
    (uv,) = lock.read(lock.FOLDER / "uv.txt")
    assert uv.version == recipe.UV_VERSION
    assert steps[1].ways[0].commands[0][0] == str(folder / "tools" / "bin" / "uv")


def test_a_python_without_pip_is_told(folder, monkeypatch, tmp_path):
    """Debian's, without python3-venv."""
    (folder / "tools" / "bin" / "uv").unlink()
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'ensurepip'\"; exit 1\n")
    bare.chmod(0o755)
    real = recipe.shutil.which
    monkeypatch.setattr(recipe.shutil, "which", lambda name, **options: None if name == "uv" else real(name, **options))
    plan = dataclasses.replace(install.shared_plan(), pythons=("3.13", str(bare)))
    installation = install.Installation(plan, build="cpu")
    finish(installation)
    assert "apt-get install python3-venv" in installation.error


def test_uv_is_set_up_as_pip_is(monkeypatch, tmp_path):
    """From its file and its variables, with the pip that lies in ensurepip too."""
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://index/simple\nextra-index-url =\n  https://a\n  https://b\ncert = /c.pem\n"
        "timeout = 7\n[install]\nfind-links = /wheels /more\n"
    )
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mine/simple")
    monkeypatch.setattr(recipe, "_PIPS", recipe._PIPS[1:])
    found = recipe.pip_settings(sys.executable)
    assert found["UV_DEFAULT_INDEX"] == "https://mine/simple"
    assert found["UV_INDEX"] == "https://a https://b"
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert found["UV_FIND_LINKS"] == "/wheels,/more"
    assert found["SSL_CERT_FILE"] == "/c.pem"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv's own")
    assert "UV_DEFAULT_INDEX" not in recipe.pip_settings(sys.executable)


def test_where_the_worker_is_found(folder, monkeypatch, tmp_path):
    """The clone's if the package lies in one, else the shared one; never half of one."""
    clone = tmp_path / "clone"
    (clone / "lgm_blender").mkdir(parents=True)
    monkeypatch.setattr(environment, "PACKAGE", clone / "build" / "extensions" / "lgm_blender")
    python = environment.environment_python(clone / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    (clone / "build.py").touch()
    assert install.worker_python().path is None
    (clone / ".venv" / environment.MARKER).write_text('{"requirements": []}')
    assert install.worker_python() == (python, "build.py")
    (clone / "build.py").unlink()
    assert "Press Install" in install.worker_python().where


def test_a_choice_that_leads_nowhere_is_not_passed_over(folder, monkeypatch, tmp_path):
    finish(install.Installation(build="cpu"))
    assert "preferences does not exist" in install.worker_python(str(tmp_path / "none")).where
    monkeypatch.setenv(environment.PYTHON_VARIABLE, str(tmp_path / "none"))
    assert environment.PYTHON_VARIABLE in install.worker_python().where
    monkeypatch.setenv(environment.PYTHON_VARIABLE, sys.executable)
    assert install.worker_python().path == Path(sys.executable)
    assert install.worker_python(str(folder / "environment")).path == folder / "environment" / "bin" / "python"


def test_a_download_keeps_its_stdin(tmp_path):
    """By whose end it would notice that Blender is gone; the installer's commands must not wait for any."""
    command = [sys.executable, "-c", "import os; os.read(0, 1); print('it ended')"]
    download = install.Download(command, "lgm", tmp_path / "download.log")
    others = tasks.Task([tasks.Step.of("Other", command)], tmp_path / "other.log")
    while others.state == "running":
        others.step()
        download.step()
        time.sleep(0.01)
    assert (others.state, others.message) == ("done", "it ended")
    assert download.state == "running"
    assert download.message == ""
    download.cancel()


def test_download_tells_how_far_it_is(tmp_path):
    code = "import time; print('[2/7] a/b: 1,200 of 4,800 MB', flush=True); time.sleep(0.3)"
    download = install.Download([sys.executable, "-c", code], "lgm", tmp_path / "logs" / "download.log")
    factors = set()
    while download.state == "running":
        download.step()
        factors.add(download.factor)
        time.sleep(0.01)
    assert download.state == "done"
    assert factors == {0.0, 0.25}
