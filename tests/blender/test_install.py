"""The installer, with a uv that fetches nothing. Run: pytest tests/blender/test_install.py"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

from lgm_blender.blender import install, tasks
from lgm_blender.core import environment
from lgm_blender.core.system import folders

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for uv is a shell script")

# `uv venv … FOLDER` makes a folder with a python; `uv pip install … torch` puts torch there; everything is written
# down; $FAIL names words that make it fail.
UV = """#!/bin/sh
echo "$@" >> "$0.calls"
for word in $FAIL; do case "$*" in *"$word"*) echo "error: $word did not work"; exit 2;; esac; done
folder="HERE/environment"
if [ "$1" = venv ]; then
  mkdir -p "$folder/bin"; echo '#!/bin/sh' > "$folder/bin/python"
  echo '[ -z "$BROKEN" ] || { echo "ImportError: libGL"; exit 1; }; echo torch 9' >> "$folder/bin/python"
  chmod +x "$folder/bin/python"
else
  mkdir -p "$folder/lib/python3.12/site-packages/torch"
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
    monkeypatch.setattr(install, "DISK_NEEDED", {False: 0, True: 0})  # however full the disk is that tests run on
    folder = folders.data_folder()
    uv = folder / "tools" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    (folder / "tools" / f"uv-{install.UV_VERSION}.dist-info").mkdir()
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
    installation = install.Installation(gpu=False)
    labels = finish(installation)
    assert installation.state == "done", installation.error
    assert labels[0] == "Making a Python environment with torch"
    assert labels[-1] == "Installed"
    assert installation.count == 3
    assert environment.read_marker(folder / "environment")["trial"] == "torch 9"
    assert not (folder / "cache").exists()
    assert install.worker_python() == (folder / "environment" / "bin" / "python", "installed")
    assert not install.is_outdated()
    assert "Downloading torch (182.9MiB)\n" in installation.log.read_text()
    venv, torch, rest = calls(folder)
    assert "--managed-python" in venv
    assert "--torch-backend cpu" in torch
    assert all(name in rest for name in environment.requirements())


def test_gpu_gets_another_torch(folder):
    finish(install.Installation(gpu=True))
    assert "--torch-backend auto" in calls(folder)[1]
    assert "--reinstall-package" not in calls(folder)[1]


def test_a_gpu_that_has_come_since_brings_its_torch(folder):
    finish(install.Installation(gpu=False))
    finish(install.Installation(gpu=True))
    assert "--torch-backend auto --reinstall-package torch" in calls(folder)[3]


def test_every_python_is_tried_before_a_worse_torch(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "--managed-python --torch-backend --no-index")
    plan = dataclasses.replace(install.shared_plan(), pythons=("3.12", "/blender/python"))
    monkeypatch.setattr(install, "pip_settings", lambda python: {"UV_FIND_LINKS": "/wheels"})
    installation = install.Installation(plan, gpu=False)
    finish(installation)
    assert installation.state == "done"
    said = [" ".join(word for word in call.split() if word != str(folder / "environment")) for call in calls(folder)]
    own, borrowed = "venv --no-project --clear --managed-python", "venv --no-project --clear --no-python-downloads"
    python = folder / "environment" / "bin" / "python"
    assert said[:3] == [
        f"{own} --python 3.12",
        f"{borrowed} --python /blender/python",
        f"pip install --python {python} --no-index --no-deps torch>=2.6",
    ]
    assert "--torch-backend cpu" in said[5]
    assert said[6:9] == [f"{own} --python 3.12", f"{borrowed} --python /blender/python", said[8]]
    assert "--torch-backend" not in said[8]
    assert "tokenizers" in said[9]
    assert installation.notes == [install.ALL_OF_CUDA]


def test_failure_is_a_sentence_and_a_second_try_goes_on(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "tokenizers")
    installation = install.Installation(gpu=False)
    finish(installation)
    assert installation.state == "failed"
    assert "tokenizers did not work" in installation.error
    assert f"Press Install to try again. The log is {installation.log}" in installation.error
    assert install.worker_python().path is None  # a python is there, but not all of it
    monkeypatch.delenv("FAIL")
    installation = install.Installation(gpu=False)
    finish(installation)
    assert installation.state == "done"
    assert sum("venv" in call for call in calls(folder)) == 1


def test_packages_that_do_not_import(folder, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    installation = install.Installation(gpu=False)
    finish(installation)
    assert "ImportError: libGL" in installation.error
    assert environment.read_marker(folder / "environment") is None


def test_offline_is_said(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "torch")
    uv = folder / "tools" / "bin" / "uv"
    uv.write_text(uv.read_text().replace("did not work", "failed to lookup address"))
    installation = install.Installation(gpu=False)
    finish(installation)
    assert "Is this computer online" in installation.error


def test_full_disk_is_said_before_anything_is_fetched(folder, monkeypatch):
    monkeypatch.setitem(install.DISK_NEEDED, False, 1 << 60)
    installation = install.Installation(gpu=False)
    finish(installation)
    assert "GB are free" in installation.error
    assert not (folder / "tools" / "bin" / "uv.calls").exists()


def test_a_machine_without_packages_is_told_before_anything_is_fetched(folder, monkeypatch):
    monkeypatch.setattr(environment, "unsupported", lambda: "PyTorch has no packages for typewriters.")
    assert install.worker_python() == (None, "PyTorch has no packages for typewriters.")
    installation = install.Installation(gpu=False)
    finish(installation)
    assert installation.error == "PyTorch has no packages for typewriters."
    assert not (folder / "tools" / "bin" / "uv.calls").exists()


def test_folder_that_can_not_be_written(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    installation = install.Installation(gpu=False)
    finish(installation)
    assert installation.state == "failed"
    assert "not usable" in installation.error


def test_cancel_takes_effect_at_once(folder, monkeypatch):
    monkeypatch.setenv("SLOW", "1")
    installation = install.Installation(gpu=False)
    while not installation._process:
        assert installation.state == "running", installation.error
        installation.step()
    installation.cancel()
    assert installation.state == "cancelled"
    assert installation._process.wait(2)
    assert not installation.step()


def test_remove_gives_everything_back(folder, tmp_path):
    finish(install.Installation(gpu=False))
    (folder / "environment" / "big").write_bytes(b"x" * 5000)
    os.link(folder / "environment" / "big", folder / "environment" / "the same")
    (folder / "checked_files.json").write_text("{}")
    assert 5000 < install.size() < 9000
    install.remove()
    assert not folder.exists()
    assert install.size() == 0
    install.remove()  # twice is no mistake


def test_a_longer_list_makes_it_outdated(folder):
    finish(install.Installation(gpu=False))
    with (environment.PACKAGE / "worker" / "requirements.txt").open("a") as file:
        file.write("another>=1  # of which there was no need\n")
    assert install.is_outdated()
    finish(install.Installation(gpu=False))
    assert not install.is_outdated()
    assert "another>=1" in calls(folder)[-1].split()


def test_what_was_asked_for_is_remembered(folder):
    """More of it, twice the same package too; and what an earlier run brought, unless it is asked for otherwise."""
    plan = install.shared_plan()
    finish(install.Installation(dataclasses.replace(plan, requirements=("torch", "numpy", "old>=1")), gpu=False))
    finish(install.Installation(dataclasses.replace(plan, requirements=("torch", "numpy<3", "numpy>1")), gpu=False))
    assert environment.read_marker(folder / "environment")["requirements"] == ["old>=1", "torch", "numpy<3", "numpy>1"]


def test_uv_is_fetched_in_one_version(folder, monkeypatch):
    """An older one is no reason not to; pip fetches it, the pip in ensurepip, or the user's own uv."""
    (folder / "tools" / f"uv-{install.UV_VERSION}.dist-info").rename(folder / "tools" / "uv-0.1.0.dist-info")
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/usr/bin/{name}")
    steps = install.install_steps(install.shared_plan(), False, {})
    (pip,), (bundled,), (own,) = (way.commands for way in steps[0].ways)
    assert pip[:4] == (sys.executable, "-I", "-m", "pip")
    assert "ensurepip" in bundled[3]
    assert own[0] == "/usr/bin/uv"
    assert all(command[-1] == f"uv=={install.UV_VERSION}" for command in (pip, bundled, own))
    assert steps[1].ways[0].commands[0][0] == str(folder / "tools" / "bin" / "uv")


def test_a_python_without_pip_is_told(folder, monkeypatch, tmp_path):
    """Debian's, without python3-venv."""
    (folder / "tools" / "bin" / "uv").unlink()
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'ensurepip'\"; exit 1\n")
    bare.chmod(0o755)
    real = install.shutil.which
    monkeypatch.setattr(
        install.shutil, "which", lambda name, **options: None if name == "uv" else real(name, **options)
    )
    plan = dataclasses.replace(install.shared_plan(), pythons=("3.12", str(bare)))
    installation = install.Installation(plan, gpu=False)
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
    monkeypatch.setattr(install, "_PIPS", install._PIPS[1:])
    found = install.pip_settings(sys.executable)
    assert found["UV_DEFAULT_INDEX"] == "https://mine/simple"
    assert found["UV_INDEX"] == "https://a https://b"
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert found["UV_FIND_LINKS"] == "/wheels,/more"
    assert found["SSL_CERT_FILE"] == "/c.pem"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv's own")
    assert "UV_DEFAULT_INDEX" not in install.pip_settings(sys.executable)


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
    finish(install.Installation(gpu=False))
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
