"""The panel in a real Blender window, on a screen that nobody sees.

    python tests/window/check.py [--suite sid] [--root FOLDER] [--out FOLDER] [--worker PYTHON] [--story drive]

Needs root and: apt-get install -y --no-install-recommends mmdebstrap xvfb xdotool imagemagick
Makes a root folder with Debian's Blender where there is none (2 minutes, 1.1 GB), opens its window, lets a story use
the panel with a stand-in for the worker, checks what it wrote down, and leaves pictures to look at in --out. With
--worker the first job is done by the real worker, on that Python of this system. The stories are `drive.py`, the panel
from the first look to the end, `sources.py`, where the image comes from and what a new file shows of the first result,
`views.py`, candidates, painting and cameras with Live on, `manners.py`, two windows and a Blender that is quitted in
the middle of a job, `languages.py`, the tab in German, Chinese and Japanese, and `guide.py`, which makes the pictures
of docs/guide.md with the real worker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden import unpack_golden  # beside conftest.py

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZES = {"guide": (1600, 1000)}  # of a story's window in pixels; the others' are smaller


def prepare(share: Path, worker: Path | None) -> None:
    """What Blender needs, in a folder that it sees as /share."""
    extension = share / "user" / "extensions" / "user_default" / "lgm_blender"
    shutil.copytree(ROOT / "lgm_blender", extension, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "blender_manifest.toml", extension)
    tests = ROOT / "tests"
    with tempfile.TemporaryDirectory() as golden:
        unpack_golden(Path(golden))
        shutil.copy(Path(golden, "lgm.ply"), share)
    wanted = [*HERE.glob("*.py"), tests / "blender" / "fake_worker.py"]
    for path in (*wanted, ROOT / "docs" / "samples" / "cactus.png"):
        shutil.copy(path, share)
    for name in ("home", "tmp"):
        (share / name).mkdir()
    if worker:
        program = share / "worker_python"
        program.write_text(f'#!/bin/sh\nexec chroot /host env TMPDIR=/share/tmp {worker.absolute()} "$@"\n')
        program.chmod(0o755)


def watch(share: Path, out: Path, blender: subprocess.Popen, seconds: float, display: str) -> dict:
    """Does what the story asks for until it has written its report: pictures and keys."""
    variables = {**os.environ, "DISPLAY": display}
    end = time.monotonic() + seconds
    while not (share / "report.json").exists():
        if blender.poll() is not None:
            raise SystemExit(f"Blender ended with code {blender.returncode} before it had a report.")
        if time.monotonic() > end:
            raise SystemExit("Blender wrote no report in time.")
        for want in share.glob("*.want"):
            picture = out / f"{want.stem}.png"
            command = ["import", "-window", "root", str(picture)]
            subprocess.run(command, env=variables, check=True)
            want.rename(want.with_suffix(".done"))
            print(picture, flush=True)
        for key in share.glob("*.key"):
            command = ["xdotool", "mousemove", "500", "400", "key", key.stem]
            subprocess.run(command, env=variables, check=True)
            key.unlink()
        time.sleep(0.1)
    return json.loads((share / "report.json").read_text())


@contextlib.contextmanager
def window(root: Path, share: Path, out: Path, story: Path, worker: Path | None, display: str):
    """A Blender window in which a story runs; its process."""
    prepare(share, worker)
    width, height = SIZES.get(story.stem, (1280, 800))
    with contextlib.ExitStack() as stack:
        screen = ["Xvfb", display, "-screen", "0", f"{width}x{height}x24", "+extension", "GLX", "+render", "-noreset"]
        xvfb = subprocess.Popen(screen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(xvfb.wait)
        stack.callback(xvfb.kill)
        time.sleep(1)
        variables = [
            f"DISPLAY={display}",
            "LIBGL_ALWAYS_SOFTWARE=1",
            "HOME=/share/home",
            "TMPDIR=/share/tmp",  # where the worker of this system sees what Blender has for it
            "BLENDER_USER_RESOURCES=/share/user",
        ]
        blender = [
            "blender",
            "--window-geometry",
            "0",
            "0",
            str(width),
            str(height),
            "--python",
            f"/share/{story.name}",
        ]
        log = stack.enter_context((out / "blender.log").open("w"))
        command = [HERE / "in_chroot.sh", root, share, "env", *variables, *blender]
        outer = {**os.environ, "HOST": "1" if worker else ""}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=outer)
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield process


def judge_sources(report: dict) -> dict[str, bool]:
    """Rules of the story sources.py, and whether a report keeps them."""
    return {
        "the story ended": "error" not in report,
        **{f"{name}: became the image": bool(report.get(f"image_{name}")) for name in ("view", "camera", "clipboard")},
        "the view's picture has alpha and the object in its middle": report.get("alpha_view") == [0.0, 1.0, 0.0],
        "also in Material Preview, in colour": report.get("material_alpha") == [0.0, 1.0, 0.0]
        and report.get("material_color", [0, 0, 1])[0] > 1.5 * report.get("material_color", [0, 0, 1])[2],
        "its elevation is the view's": abs(report.get("elevation_view", 99) - report.get("expected_view", 0)) < 1.5,
        "only the selected object is in it": report.get("others_in_view") is False,
        "what the user had set stayed": report.get("kept") is True,
        "nothing is left of the capture": report.get("scenes") == 1,
        "an empty clipboard is a sentence": "no picture on the clipboard" in str(report.get("no_clipboard")),
        "the editors are what they were": report.get("editors_kept") is True,
        "a dropped picture became the image": report.get("dropped") == "cactus.png",
        "the first result is framed": 0.3 < report.get("framed", 0) < 0.8,
        "beside the cube": report.get("first_location", [0])[0] > 1,
        "in colour, which without a GPU is only offered": report.get("shading") == "MATERIAL"
        and report.get("without_gpu") is True,
        "and one undo takes it away": report.get("objects_after_undo") == report.get("objects_before"),
        "a view that somebody turned stays": report.get("view_stayed") is True,
    }


def judge_views(report: dict) -> dict[str, bool]:
    """Rules of the story views.py, and whether a report keeps them."""
    seconds = report.get("seconds_stroke", [99]) + report.get("seconds_moved", [99])
    return {
        "the story ended": "error" not in report and not report.get("problem"),
        "three candidates came": len(report.get("candidates", [])) == 3,
        "an Image Editor was opened for a view": report.get("editors") == 1,
        "every change became splats, within five seconds": len(seconds) == 7 and max(seconds) < 5,
        "without any new object": report.get("objects_of_live") == 0,
        "what the cameras saw came back in its place": report.get("place") == [0.0, 0.0, 0.0],
        "nothing is left of their looking": report.get("scenes") == 1,
    }


GUIDE = {  # of each picture: what of the window, and how wide in the guide
    "guide_ready": ("262x650+1028+82", 262),
    "guide_candidates": ("262x830+1028+82", 262),
    "guide_live": ("1314x760+0+28", 720),
}


def judge_guide(report: dict) -> dict[str, bool]:
    """Rules of the story guide.py."""
    return {"the story ended": "error" not in report, "Live followed": len(report.get("seconds_live", [])) == 4}


def save_guide(out: Path) -> None:
    """Puts the guide's pictures into docs/."""
    for name, (part, width) in GUIDE.items():
        target = ROOT / "docs" / f"{name}.webp"
        options = ["-crop", part, "+repage", "-resize", f"{width}x", "-define", "webp:method=6", "-quality", "55"]
        subprocess.run(["convert", str(out / f"{name}.png"), *options, str(target)], check=True)
        print(target, target.stat().st_size)


def judge_manners(report: dict) -> dict[str, bool]:
    """Rules of the story manners.py, and whether a report keeps them."""
    return {
        "the story ended": "error" not in report and not report.get("problem"),
        "one job at a time, whatever window asks": report.get("one_job_at_a_time") is True,
        "a job of the second window comes into its scene": report.get("objects_in_its_scene") == 1,
        "and not into the other": report.get("objects_in_the_other") == 0,
        "one undo takes it away": report.get("objects_after_undo") == 0,
        "it comes too if that window was closed": report.get("objects_after_its_window_was_closed") == 1,
        "Blender quits in the middle of a job": report.get("seconds_to_quit", 99) < 5,
        "and leaves no process": report.get("processes_left") == [],
    }


def judge_languages(report: dict) -> dict[str, bool]:
    """Rules of the story languages.py, and whether a report keeps them."""
    return {
        "the story ended": "error" not in report and not report.get("problem"),
        **{f"{name}: every string": report.get(f"wrong_{name}") == [] for name in ("de_DE", "zh_HANS", "ja_JP")},
        **{f"{name}: operators": report.get(f"operator_{name}") is True for name in ("de_DE", "zh_HANS", "ja_JP")},
        "nothing is left of them": report.get("after") == "Output Folder",
    }


def wait_for_the_end(blender: subprocess.Popen, report: dict) -> None:
    """Notes how long Blender took to quit, and what is left of the worker two seconds later."""
    start = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        blender.wait(20)
    report["seconds_to_quit"] = time.monotonic() - start
    time.sleep(2)
    worker = Path("/proc", str(report["worker"]), "cmdline")  # it has the same number seen from here
    report["processes_left"] = [report["worker"]] if worker.exists() and worker.read_bytes() else []


def judge(report: dict) -> dict[str, bool]:
    """Rules of the story drive.py, and whether a report keeps them."""
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


STORIES = {
    "drive": judge,
    "sources": judge_sources,
    "views": judge_views,
    "manners": judge_manners,
    "languages": judge_languages,
    "guide": judge_guide,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="sid", help="Debian's: sid has Blender 5.2, trixie 4.3")
    parser.add_argument("--root", type=Path, help="root folder of that suite; kept for the next time")
    parser.add_argument("--worker", type=Path, metavar="PYTHON", help="a Python with the worker's packages")
    parser.add_argument("--story", choices=tuple(STORIES), default="drive", help="what is done in the window")
    parser.add_argument("--display", default=":77", help="number of the screen, which must be free")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "window", help="where the pictures go")
    options = parser.parse_args()
    root = options.root or Path(tempfile.gettempdir()) / f"lgm_blender_{options.suite}"
    if not (root / "usr" / "bin" / "blender").exists():
        subprocess.run([HERE / "make_chroot.sh", options.suite, root], check=True)
    options.out.mkdir(parents=True, exist_ok=True)
    story = HERE / f"{options.story}.py"
    judged = STORIES[options.story]
    with tempfile.TemporaryDirectory() as folder:
        share = Path(folder)
        with window(root, share, options.out, story, options.worker, options.display) as blender:
            seconds = 900.0 if options.worker else 300.0
            report = watch(share, options.out, blender, seconds, options.display)
            for path in share.glob("*.out.png"):
                shutil.copy(path, options.out)
            if report.get("quits"):
                wait_for_the_end(blender, report)
    print(json.dumps(report, indent=2))
    rules = judged(report)
    broken = [rule for rule, kept in rules.items() if not kept]
    for rule in broken:
        print(f"not so: {rule}")
    if options.story == "guide" and not broken:
        save_guide(options.out)
    print(f"{len(rules) - len(broken)} passed, {len(broken)} failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
