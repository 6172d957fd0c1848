"""The panel in a real Blender window, on a screen that nobody sees.

    python tests/window/check.py [--suite sid] [--root FOLDER] [--out FOLDER] [--worker PYTHON]

Needs root and: apt-get install -y --no-install-recommends mmdebstrap xvfb xdotool imagemagick
Makes a root folder with Debian's Blender where there is none (2 minutes, 1.1 GB), opens its window, lets `drive.py` use
the panel with a stand-in for the worker, checks what it wrote down, and leaves pictures to look at in --out. With
--worker the first job is done by the real worker, on that Python of this system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DISPLAY = ":77"


def prepare(share: Path, worker: Path | None) -> None:
    """What Blender needs, in a folder that it sees as /share."""
    extension = share / "user" / "extensions" / "user_default" / "lgm_blender"
    shutil.copytree(ROOT / "lgm_blender", extension, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "blender_manifest.toml", extension)
    tests = ROOT / "tests"
    with tarfile.open(tests / "golden.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python 3.11.2 has none
        archive.extract("lgm.ply", share)
    wanted = [HERE / "drive.py", tests / "blender" / "fake_worker.py"]
    for path in (*wanted, ROOT / "docs" / "samples" / "cactus.png"):
        shutil.copy(path, share)
    for name in ("home", "tmp"):
        (share / name).mkdir()
    if worker:
        program = share / "worker_python"
        program.write_text(f'#!/bin/sh\nexec chroot /host env TMPDIR=/share/tmp {worker.absolute()} "$@"\n')
        program.chmod(0o755)


def watch(share: Path, out: Path, blender: subprocess.Popen, seconds: float) -> dict:
    """Takes the pictures that drive.py asks for until it has written its report."""
    end = time.monotonic() + seconds
    while not (share / "report.json").exists():
        if blender.poll() is not None:
            raise SystemExit(f"Blender ended with code {blender.returncode} before it had a report.")
        if time.monotonic() > end:
            raise SystemExit("Blender wrote no report in time.")
        for want in share.glob("*.want"):
            picture = out / f"{want.stem}.png"
            command = ["import", "-window", "root", str(picture)]
            subprocess.run(command, env={**os.environ, "DISPLAY": DISPLAY}, check=True)
            want.rename(want.with_suffix(".done"))
            print(picture, flush=True)
        for key in share.glob("*.key"):
            command = ["xdotool", "mousemove", "500", "400", "key", key.stem]
            subprocess.run(command, env={**os.environ, "DISPLAY": DISPLAY}, check=True)
            key.unlink()
        time.sleep(0.1)
    return json.loads((share / "report.json").read_text())


def judge(report: dict) -> dict[str, bool]:
    """Rules, and whether a report keeps them."""
    return {
        "the story ended": "error" not in report,
        "models were loaded when the panel was seen": report.get("loaded_ahead", True) is True,
        "the click returned at once": report.get("seconds_of_the_click", 9) < 0.5,
        "the window never stood still for half a second while the worker worked": report.get("standstill", 9) < 0.5,
        "and not for three seconds when the splats came, drawn without a GPU": report.get("standstill_at_end", 9) < 3,
        "the job gave one object": report.get("objects_added") == 1 and not report.get("problem"),
        "one undo took it away": report.get("objects_after_undo") == 0,
        **{
            rule: kept
            for name, what in (("mesh", "a mesh"), ("converted", "a mesh of splats in the scene"))
            for rule, kept in (
                (f"{what}: the click returned at once", report.get(f"seconds_of_the_click_{name}", 9) < 0.5),
                (f"{what}: one object came", report.get(f"objects_added_{name}") == 1),
                (f"{what}: of 20,000 faces", 15_000 < report.get(f"faces_{name}", 0) <= 20_100),
                (f"{what}: its texture has 2048 pixels a side", report.get(f"texture_{name}") == [2048, 2048]),
                (f"{what}: the window lived while it was made", report.get(f"standstill_{name}", 9) < 0.5),
                (f"{what}: and when it came", report.get(f"standstill_at_end_{name}", 9) < 1),
                (f"{what}: one undo took it away", report.get(f"objects_after_undo_{name}") == 0),
            )
        },
        "and showed the splats again": report.get("splats_are_seen_again") is True,
        "a job was cancelled within a second": report.get("seconds_to_cancel", 9) < 1,
        "a death was told": "the roof is on fire" in str(report.get("death")),
        "training views were rendered": report.get("training_views") == 8,
        "one at a time": report.get("standstill_training_views", 9) < 2,
        "Escape stopped them and left the whole ones": report.get("training_views_after_escape") == 8,
        "and nothing of them in the file": report.get("file_unchanged") is True,
        "unregistering took no time": report.get("seconds_to_unregister", 9) < 1,
        "and ended the worker": report.get("worker_left") is False,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="sid", help="Debian's: sid has Blender 5.2, trixie 4.3")
    parser.add_argument("--root", type=Path, help="root folder of that suite; kept for the next time")
    parser.add_argument("--worker", type=Path, metavar="PYTHON", help="a Python with the worker's packages")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "window", help="where the pictures go")
    options = parser.parse_args()
    root = options.root or Path(tempfile.gettempdir()) / f"lgm_blender_{options.suite}"
    if not (root / "usr" / "bin" / "blender").exists():
        subprocess.run([HERE / "make_chroot.sh", options.suite, root], check=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        share = Path(folder)
        prepare(share, options.worker)
        screen = ["Xvfb", DISPLAY, "-screen", "0", "1280x800x24", "+extension", "GLX", "+render", "-noreset"]
        xvfb = subprocess.Popen(screen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(xvfb.wait)
        stack.callback(xvfb.kill)
        time.sleep(1)
        variables = [
            f"DISPLAY={DISPLAY}",
            "LIBGL_ALWAYS_SOFTWARE=1",
            "HOME=/share/home",
            "TMPDIR=/share/tmp",  # where the worker of this system sees what Blender has for it
            "BLENDER_USER_RESOURCES=/share/user",
        ]
        blender = ["blender", "--window-geometry", "0", "0", "1280", "800", "--python", "/share/drive.py"]
        log = stack.enter_context((options.out / "blender.log").open("w"))
        command = [HERE / "in_chroot.sh", root, share, "env", *variables, *blender]
        outer = {**os.environ, "HOST": "1" if options.worker else ""}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=outer)
        stack.callback(process.wait)
        stack.callback(process.kill)
        report = watch(share, options.out, process, 900.0 if options.worker else 300.0)
    print(json.dumps(report, indent=2))
    rules = judge(report)
    broken = [rule for rule, kept in rules.items() if not kept]
    for rule in broken:
        print(f"not so: {rule}")
    print(f"{len(rules) - len(broken)} passed, {len(broken)} failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
