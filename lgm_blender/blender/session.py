"""What lives as long as the add-on is enabled: the engine, the job on its way, the last result, the last error.

`Session.step` does what can be done without waiting. In the window a timer calls it; in the background, where timers
never fire, `Session.wait` does.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import textwrap
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bpy
import bpy.utils.previews
import imbuf

from ..core.errors import ErrorKind, LGMError
from ..core.messages import MeshResult, Request, Result
from . import install
from .engine import Engine, Job, log_folder, worker_command
from .scene import results

BUSY, IDLE = 0.1, 1.0  # seconds between two looks at the worker, with and without a job
NEVER = 525600  # minutes
LOOK_AGAIN = 5.0  # seconds after which the file system is asked again where the worker is

# What every worker has; it tells more once it runs.
BUNDLED = "mini"
PRESETS = ((BUNDLED, "Mini", "Small models that come with the add-on"), ("lgm", "LGM", "The published models"))


@dataclass
class Problem:
    """Why the last job failed: a sentence, what it is about, and the log file that says more or ''."""

    sentence: str
    kind: ErrorKind = "internal"
    log: str = ""


@dataclass
class Outcome:
    """What the last job made: its files, and the names of the objects in the scene."""

    result: Result
    objects: list[str]
    seconds: float
    warnings: list[str] = field(default_factory=list)


class Session:
    """One per Blender; see `current`.

    Args:
        preference: Gives a preference's value by its name.
        logs: Folder for the worker's logs, unless the environment names another.

    Attributes:
        engine: The worker, once there was something to do for it.
        job: The job on its way, or None.
        problem, outcome: How the last job ended, or None.
        task: The last run of the installer, or of the download of weights, or None.
        pictures: Icons of the views so far, or of the last result's; none if there are none.
    """

    def __init__(self, preference: Callable[[str], Any], logs: Path | None = None):
        self.engine: Engine | None = None
        self.job: Job | None = None
        self.problem: Problem | None = None
        self.outcome: Outcome | None = None
        self.task: install.Task | None = None
        self.pictures: list[int] = []
        self._preference = preference
        self._logs = log_folder(logs)
        self._scene_uid = self._source_uid = 0
        self._size = 0.0
        self._temporary: Path | None = None
        self._worker: tuple[float, install.WorkerPython] | None = None
        self._items: list[tuple] = []
        self._previews = bpy.utils.previews.new()
        self._shown = ""

    # ---- What there is

    def worker(self) -> install.WorkerPython:
        """Which Python the worker runs on. Cheap enough for drawing."""
        now = time.monotonic()
        if self._worker is None or now - self._worker[0] > LOOK_AGAIN:
            self._worker = now, install.worker_python(bpy.path.abspath(self._preference("worker_python")))
        return self._worker[1]

    def forget_worker(self) -> None:
        """Looks for the worker's Python again: it may have changed."""
        self._worker = None

    @property
    def fetching(self) -> bool:
        """Whether the installer or a download runs."""
        return self.task is not None and self.task.state == "running"

    @property
    def working(self) -> bool:
        """Whether anything goes on that the window should show."""
        return self.job is not None or self.fetching or bool(self.engine and self.engine.state == "starting")

    def preset_items(self) -> list[tuple[str, str, str, str, int]]:
        """Presets as items of an enum property."""
        known = self.engine.info.presets if self.engine and self.engine.info else []
        presets = [(p.name, p.label, p.problem or "Ready") for p in known] or PRESETS
        # Blender keeps no reference to these strings: they must live on.
        self._items = [(name, label, tip, "NONE", preset_number(name)) for name, label, tip in presets]
        return self._items

    # ---- The worker

    def ready_engine(self) -> Engine:
        """The engine for the worker of today's preferences.

        Raises:
            LGMError: (kind 'worker') If there is no Python for it.
        """
        self.forget_worker()
        python, where = self.worker()
        if python is None:
            raise LGMError(where, "worker")
        minutes = self._preference("idle_minutes")
        command = worker_command(python, "serve", "--idle-minutes", str(minutes or NEVER))
        variables = worker_variables()
        if self.engine and (self.engine.command, self.engine.variables) != (command, variables):
            self.engine.stop()
            self.engine = None
        if self.engine is None:
            self.engine = Engine(command, variables=variables, logs=self._logs)
        self.engine.idle_timeout = 60.0 * minutes if minutes else None
        return self.engine

    def start_worker(self) -> None:
        """Starts the worker, to hear what it says about itself.

        Raises:
            LGMError: (kind 'worker') If there is no Python for it.
        """
        self.ready_engine().start()
        _watch()

    def install(self) -> None:
        """Starts the installer. Whether Blender may go online is for the caller to ask."""
        self._begin_task(install.Installation())

    def download(self, preset: str) -> None:
        """Starts fetching a preset's weights. Whether Blender may go online is for the caller to ask.

        Raises:
            LGMError: (kind 'worker') If there is no Python for it.
        """
        self.forget_worker()
        python, where = self.worker()
        if python is None:
            raise LGMError(where, "worker")
        command = worker_command(python, "models", "--download", preset)
        self._begin_task(install.Download(command, preset, self._logs / "download.log"))

    def _begin_task(self, task: install.Task) -> None:
        if self.engine:
            self.engine.stop()  # Windows can't replace files that are in use
            self.engine = None  # what it told of its presets will not be so any more
        self.problem = None
        self.task = task
        _watch()

    def log(self) -> Path:
        """The log file that says most about what happened last."""
        if self.problem and self.problem.log:
            return Path(self.problem.log)
        if self.task and (not self.engine or self.task.state == "failed"):
            return self.task.log
        return self.engine.log if self.engine else self._logs / "worker_stderr.log"

    # ---- Jobs

    def temporary_folder(self) -> Path:
        """A folder for the current job's input, gone when the job has ended."""
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="lgm_", dir=bpy.app.tempdir))
        return self._temporary

    def begin(
        self, request: Request, scene: bpy.types.Scene, *, size: float = 0.0, source: bpy.types.Object | None = None
    ) -> Job:
        """Sends a request; what comes of it will go into `scene`.

        Args:
            size: Longest side in metres of what `generate` makes; 0 leaves LGM's own.
            source: The splats that `mesh` makes a mesh of.

        Raises:
            LGMError: If there is no worker, or another job is on its way.
        """
        if self.job is not None:
            raise LGMError("Another job is running. Wait for it, or cancel it first.")
        engine = self.ready_engine()
        self.problem = self.outcome = None
        self._clear_picture()
        self._scene_uid, self._size = scene.session_uid, size
        self._source_uid = source.session_uid if source else 0
        self.job = engine.submit(request)
        _watch()
        return self.job

    def cancel(self) -> None:
        """Gives up whatever is going on."""
        if self.fetching:
            self.task.cancel()
        if self.job and self.engine:
            self.engine.cancel(self.job)
        _redraw()

    def abandon(self) -> None:
        """Gives up the job because the file it was for is closed, and forgets results that lie in it."""
        self.cancel()
        self._scene_uid = 0
        self.problem = self.outcome = None
        self._clear_picture()

    def step(self) -> bool:
        """Does what can be done without waiting; whether there is anything new to show."""
        changed = False
        if self.task and self.task.step():
            changed = True
            if self.task.state == "failed":
                self.problem = Problem(self.task.error, "worker", str(self.task.log))
            if self.task.state != "running":
                self.forget_worker()
        if self.engine:
            before = self.engine.state
            changed |= bool(self.engine.step()) or self.engine.state != before
        if self.job:
            if self.job.ended:
                self._finish()
                changed = True
            elif self.job.progress and self.job.progress.preview:
                self._show(self.job.progress.preview)
        return changed

    def wait(self) -> None:
        """Blocks until nothing goes on any more. For the background and for scripts."""
        try:
            while self.working:
                self.step()
                time.sleep(0.02)
        except BaseException:
            self.cancel()
            raise

    def close(self) -> None:
        """Ends everything and gives everything back."""
        if self.task:
            self.task.cancel()
        if self.engine:
            self.engine.stop()
        self.job = None
        self._remove_temporary()
        bpy.utils.previews.remove(self._previews)

    def _finish(self) -> None:
        job, self.job = self.job, None
        self._remove_temporary()
        if job.state == "cancelled":
            self._clear_picture()
        elif job.state == "failed":
            sentence = job.error.removesuffix(f" The log is {job.log}")  # there is a button for it
            self.problem = Problem(sentence, job.kind or "internal", job.log)
            self._clear_picture()
        else:
            try:
                self._add(job)
            except LGMError as error:
                self.problem = Problem(error.message, error.kind)
            except Exception as error:
                traceback.print_exc()
                self.problem = Problem(f"The result could not be added to the scene: {error}", "internal")

    def _add(self, job: Job) -> None:
        scene = next((s for s in bpy.data.scenes if s.session_uid == self._scene_uid), None)
        result = job.result
        if scene is None:
            raise LGMError(f"The scene is gone that the result was for. It is in {result.file}", "bad_input")
        warnings = list(result.warnings)
        if isinstance(result, MeshResult):
            source = next((o for o in bpy.data.objects if o.session_uid == self._source_uid), None)
            name = f"{source.name if source else Path(result.glb).stem} Mesh"
            made = [results.add_converted(result, name, scene, source)]
        else:
            made = results.add_result(result, scene, self._size or None, warnings.append)
            self._show(result.views)
        select(made, scene)
        push_undo(f"LGM: {made[0].name}")
        self.outcome = Outcome(result, [thing.name for thing in made], job.seconds, warnings)

    def _remove_temporary(self) -> None:
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    # ---- The picture in the panel

    def _show(self, path: str) -> None:
        """Cuts a row of views apart into icons, so that a narrow panel can show them large."""
        if bpy.app.background or path == self._shown:
            return
        self._shown = path
        self._previews.clear()
        self.pictures = []
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=bpy.app.tempdir) as folder:
            row = imbuf.load(path)
            width, height = row.size
            for left in range(0, width - height + 1, height):
                view = row.copy()
                view.crop((left, 0), (left + height - 1, height - 1))
                file = str(Path(folder, f"{left}.png"))
                imbuf.write(view, filepath=file)
                preview = self._previews.load(f"{path} {left}", file, "IMAGE")
                tuple(preview.image_size)  # asking reads the file, which is gone when it is drawn
                self.pictures.append(preview.icon_id)

    def _clear_picture(self) -> None:
        self._previews.clear()
        self.pictures, self._shown = [], ""


def worker_variables() -> dict[str, str]:
    """Environment variables that tell the worker what Blender allows."""
    # The hub's client asks the network even for what it has; Blender's switch is meant for everyone in it.
    return {} if bpy.app.online_access else {"HF_HUB_OFFLINE": "1"}


def preset_number(name: str) -> int:
    """The number a preset is saved under in a .blend. It follows from the name, so presets may come and go."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def select(made: Sequence[bpy.types.Object], scene: bpy.types.Scene) -> None:
    """Makes objects the selected ones and the first active, unless the user is in the middle of editing another."""
    for layer in scene.view_layers:
        layer.update()  # else it does not know the objects yet
        here = [thing for thing in made if thing.name in layer.objects]
        active = layer.objects.active
        if not here or (active and active.mode != "OBJECT"):
            continue
        for other in layer.objects.selected:
            other.select_set(False, view_layer=layer)
        for thing in here:
            thing.select_set(True, view_layer=layer)
        layer.objects.active = here[0]


def push_undo(message: str) -> None:
    """Makes what was done since the last step one step of Blender's undo history."""
    manager = bpy.context.window_manager
    window = bpy.context.window or (manager.windows[0] if manager and manager.windows else None)
    if window is None or bpy.app.background:
        return
    with bpy.context.temp_override(window=window):
        bpy.ops.ed.undo_push(message=message)


# ---- The one session, and its timer

_session: Session | None = None


def current() -> Session:
    """The session of the enabled add-on.

    Raises:
        RuntimeError: If the add-on is not registered.
    """
    if _session is None:
        raise RuntimeError("lgm_blender is not registered")
    return _session


def open_session(preference: Callable[[str], Any], logs: Path | None = None) -> None:
    """Makes the session; at registration."""
    global _session
    close_session()
    _session = Session(preference, logs)
    bpy.app.handlers.load_pre.append(_before_load)


def close_session() -> None:
    """Ends the session and everything that it started. Does nothing if there is none."""
    global _session
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)
    if _before_load in bpy.app.handlers.load_pre:
        bpy.app.handlers.load_pre.remove(_before_load)
    if _session is not None:
        _session.close()
        _session = None


def _watch() -> None:
    """Sees to it that the session is stepped while there is something to step."""
    if not bpy.app.background and not bpy.app.timers.is_registered(_tick):
        bpy.app.timers.register(_tick, first_interval=BUSY, persistent=True)


def _tick() -> float | None:
    if _session is None:
        return None
    had_problem = _session.problem
    try:
        changed = _session.step()
    except Exception:  # a timer that raises is never called again, and nobody would know
        traceback.print_exc()
        _session.problem = Problem("Something went wrong in the add-on; the system console says more.", "internal")
        changed = True
    if changed or _session.working:
        _redraw()
    if _session.problem and _session.problem is not had_problem:
        _announce(_session.problem.sentence)
    if _session.working:
        return BUSY
    return IDLE if _session.engine and _session.engine.state != "off" else None


def _panels():
    """The windows' regions that show the session, each with its area."""
    manager = bpy.context.window_manager
    for window in manager.windows if manager else ():
        for area in window.screen.areas:
            for region in area.regions:
                if area.type == "PREFERENCES" or (area.type == "VIEW_3D" and region.type == "UI"):
                    yield area, region


def _redraw() -> None:
    """Has the panels drawn again that show the session."""
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
        for line in textwrap.wrap(sentence, 70, break_long_words=False):
            menu.layout.label(text=line)

    with bpy.context.temp_override(window=manager.windows[0]):
        manager.popup_menu(draw, title="LGM", icon="ERROR")


@bpy.app.handlers.persistent
def _before_load(*_) -> None:
    if _session is not None:
        _session.abandon()
