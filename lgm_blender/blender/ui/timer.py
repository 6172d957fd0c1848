"""The timer that steps the session while there is something to do, and what it shows in Blender's windows."""

from __future__ import annotations

import time
import traceback

import bpy
from bpy.app.translations import pgettext_iface as iface

from .. import session
from . import icons, translations

BUSY, IDLE = 0.1, 1.0  # seconds between two looks at the worker, with and without something going on
SOON = 0.01  # while a result comes into the scene
CLOCK = 0.5  # seconds after which the panel is drawn again if nothing has changed but the time
_drawn = 0.0  # when it was last


_rests = False  # whether the next look is far away


def start() -> None:
    """Sees to it that the session is stepped soon, and while there is something to step."""
    if bpy.app.background:
        return
    if _rests:
        stop()
    if not bpy.app.timers.is_registered(_tick):
        bpy.app.timers.register(_tick, first_interval=BUSY, persistent=True)


def stop() -> None:
    """Steps no more."""
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)


def _tick() -> float | None:
    """Steps the session; seconds until the next time, or None to end the timer."""
    global _rests
    _rests = False
    now = session.current()
    had_problem = now.problem
    try:
        changed = now.step()
        icons.show(now.views)
        icons.cutout.show(now.cutout.result.preview if now.cutout.result else "")
    except Exception:  # a timer that raises is never called again, and nobody would know
        traceback.print_exc()
        now.problem = session.Problem("Something went wrong in the add-on; the system console says more.", "internal")
        changed = True
    if changed or (now.working and time.monotonic() - _drawn > CLOCK):
        redraw()
    if now.problem and now.problem != had_problem:
        _announce(now.problem.sentence)
    if now.working or now.cutout.is_asked:
        return SOON if now.arriving else BUSY
    if now.live.on:
        return BUSY
    _rests = bool(now.engine and now.engine.state != "off")
    return IDLE if _rests else None


def _panels():
    """The windows' regions that show the session, each with its area."""
    manager = bpy.context.window_manager
    for window in manager.windows if manager else ():
        for area in window.screen.areas:
            for region in area.regions:
                if area.type == "PREFERENCES" or (area.type == "VIEW_3D" and region.type == "UI"):
                    yield area, region


def redraw() -> None:
    """Has the panels drawn again that show the session."""
    global _drawn
    _drawn = time.monotonic()
    for _, region in _panels():
        region.tag_redraw()


def _announce(sentence: str) -> None:
    """Shows a failure at the mouse, unless a panel that tells of it can be seen."""
    manager = bpy.context.window_manager
    for area, region in _panels():
        if area.type == "VIEW_3D" and area.spaces.active.show_region_ui and region.active_panel_category == "LGM":
            return
    if not manager or not manager.windows:
        return

    def draw(menu, context):
        for line in translations.wrapped(iface(sentence), 70):
            menu.layout.label(text=line, translate=False)

    with bpy.context.temp_override(window=manager.windows[0]):
        manager.popup_menu(draw, title="LGM", icon="ERROR")
