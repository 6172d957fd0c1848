"""What a story in a real Blender window needs: the add-on, the stand-in for the worker, pictures, and a stop watch.

Runs inside Blender. `check.py` starts it and takes the pictures: this side asks for one by writing NAME.want and waits
for NAME.done.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path

import bpy

SHARE = Path(__file__).resolve().parent
ADDON = "bl_ext.user_default.lgm_blender"
os.environ["LGM_BLENDER_PYTHON"] = sys.executable
bpy.context.preferences.view.show_splash = False
bpy.ops.preferences.addon_enable(module=ADDON)
session = sys.modules[f"{ADDON}.blender.session"]
real_command = session.worker_command

ticks = []  # when this side's timer ran: how long the window stood still is the longest gap
report = {"blender": bpy.app.version_string, "python": sys.version.split()[0]}


def behave(behaviour: str, ply: str = "lgm.ply") -> None:
    """Sets how the stand-in for the worker behaves, from the next start on."""
    command = [sys.executable, "-u", str(SHARE / "fake_worker.py"), behaviour, str(SHARE / ply)]
    session.worker_command = lambda python, *arguments: command


def use_real_worker() -> bool:
    """Whether there is one: then the next jobs are its."""
    if not (SHARE / "worker_python").exists():
        return False
    os.environ["LGM_BLENDER_PYTHON"] = str(SHARE / "worker_python")
    session.worker_command = real_command
    session.current().forget_worker()
    return True


def tick():
    ticks.append(time.monotonic())
    return 0.005


def side_panel():
    """The 3D view's area and its side panel."""
    area = next(area for area in bpy.context.window_manager.windows[0].screen.areas if area.type == "VIEW_3D")
    return area, next(region for region in area.regions if region.type == "UI")


def open_tab():
    """Shows the tab LGM; its area and its region."""
    area, region = side_panel()
    area.spaces.active.show_region_ui = True
    yield 2.0
    region.active_panel_category = "LGM"
    region.tag_redraw()


def override(area) -> dict:
    """What `temp_override` takes for what is done in a 3D view."""
    region = next(region for region in area.regions if region.type == "WINDOW")
    return {"window": bpy.context.window_manager.windows[0], "area": area, "region": region}


def picture(name: str):
    """Waits until check.py has taken a picture of the screen."""
    side_panel()[1].tag_redraw()
    for _ in range(5):
        yield 0.1
    (SHARE / f"{name}.want").touch()
    while not (SHARE / f"{name}.done").exists():
        yield 0.05


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it never happened")
        yield 0.02


def gaps(start, end) -> list[float]:
    """The times between two ticks, shortest first: so long the window stood still."""
    inside = [start, *(t for t in ticks if start <= t <= end), end]
    return sorted(b - a for a, b in itertools.pairwise(inside))


def longest_gap(start, end) -> float:
    return gaps(start, end)[-1]


def run(story) -> None:
    """Runs a story from a timer, each yield of which gives Blender its window back for so many seconds.

    Then it ends Blender: as a user does if the report says that it `quits`.
    """
    steps = story()

    def go():
        try:
            return next(steps)
        except StopIteration:
            pass
        except Exception as error:
            traceback.print_exc()
            report["error"] = repr(error)
        (SHARE / "report.json").write_text(json.dumps(report, indent=2))
        if not report.get("quits"):
            os._exit(0)
        bpy.ops.wm.quit_blender()

    bpy.app.timers.register(tick, persistent=True)
    bpy.app.timers.register(go, first_interval=2.0, persistent=True)
