"""The installer, with a uv that fetches nothing. Run: pytest tests/blender/test_install.py"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from lgm_blender.blender import install
from lgm_blender.core import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for uv is a shell script")

# `uv venv … FOLDER` makes a folder with a python; everything is written down; $FAIL names a word that makes it fail.
UV = """#!/bin/sh
echo "$@" >> "$0.calls"
for word in $FAIL; do case "$*" in *"$word"*) echo "error: $word did not work"; exit 2;; esac; done
if [ "$1" = venv ]; then
  for folder in "$@"; do case "$folder" in */environment) break;; esac; done
  mkdir -p "$folder/bin"; echo '#!/bin/sh' > "$folder/bin/python"
  echo '[ -z "$BROKEN" ] || { echo "ImportError: libGL"; exit 1; }; echo torch 9' >> "$folder/bin/python"
  chmod +x "$folder/bin/python"
fi
[ -z "$SLOW" ] || sleep 60
mkdir -p "$UV_CACHE_DIR"; echo wheel > "$UV_CACHE_DIR/wheel"
echo "Downloading torch (182.9MiB)"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with the stand-in for uv, and a machine where nothing is chosen or found by accident."""
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", environment.PYTHON_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "worker_environment", lambda root: None)  # what build.py made in this clone
    monkeypatch.setattr(install, "DISK_NEEDED", {False: 0, True: 0})  # however full the disk is that tests run on
    folder = environment.data_folder()
    uv = folder / "tools" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(UV)
    uv.chmod(0o755)
    return folder


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
    assert labels[0] == "Making a Python environment"
    assert labels[-1] == "Installed"
    assert installation.index == installation.count == 4
    assert install.read_marker()["torch"] == "torch 9"
    assert not (folder / "cache").exists()
    assert install.worker_python() == (folder / "environment" / "bin" / "python", "installed")
    assert not install.is_outdated()
    assert "Downloading torch (182.9MiB)\n" in installation.log.read_text()
    venv, torch, rest = calls(folder)
    assert "--managed-python" in venv
    assert "--torch-backend cpu" in torch
    assert all(name in rest for name in install.requirements())


def test_gpu_gets_another_torch(folder):
    finish(install.Installation(gpu=True))
    assert "--torch-backend auto" in calls(folder)[1]


def test_the_next_best_way_is_taken(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "--managed-python --torch-backend --no-index")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    installation = install.Installation(base_python="/blender/python", gpu=False)
    finish(installation)
    assert installation.state == "done"
    own, borrowed, local, cpu, default, rest = calls(folder)
    assert own.endswith("--managed-python --python 3.12")
    assert borrowed.endswith("--python /blender/python")
    assert "--no-index --no-deps --find-links /wheels --find-links /more torch" in local
    assert "--torch-backend cpu" in cpu
    assert "--torch-backend" not in default
    assert "diffusers" in rest


def test_failure_is_a_sentence_and_a_second_try_goes_on(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "diffusers")
    installation = install.Installation(gpu=False)
    finish(installation)
    assert installation.state == "failed"
    assert "diffusers did not work" in installation.error
    assert str(installation.log) in installation.error
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
    assert install.read_marker() is None


def test_offline_is_said(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "torch")
    uv = folder / "tools" / "bin" / "uv"
    uv.write_text(UV.replace("did not work", "failed to lookup address"))
    installation = install.Installation(gpu=False)
    finish(installation)
    assert "Is this computer online" in installation.error


def test_full_disk_is_said_before_anything_is_fetched(folder, monkeypatch):
    monkeypatch.setitem(install.DISK_NEEDED, False, 1 << 60)
    installation = install.Installation(gpu=False)
    finish(installation)
    assert "GB are free" in installation.error
    assert not (folder / "tools" / "bin" / "uv.calls").exists()


def test_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    installation = install.Installation(tmp_path / "file" / "data", gpu=False)
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


def test_other_requirements_make_it_outdated(folder, monkeypatch):
    finish(install.Installation(gpu=False))
    monkeypatch.setattr(environment, "TORCH", "torch>=99")
    assert install.is_outdated()


def test_uv_is_fetched_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    steps = install.install_steps(tmp_path, sys.executable, gpu=False)
    assert steps[0].alternatives[0][:4] == (sys.executable, "-I", "-m", "pip")
    assert steps[1].alternatives[0][0] == str(tmp_path / "tools" / "bin" / "uv")


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
    others = install.Task([install.Step("Other", (tuple(command),))], tmp_path / "other.log")
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
