"""What lives as long as the add-on is enabled: the engine, the job on its way, the last result, the last error.

`Session.step` does what can be done without waiting. In the window a timer calls it (ui/timer.py); in the background,
where timers never fire, `Session.wait` does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import bpy

from ..core.errors import ErrorKind, LGMError
from ..core.lock import TorchBuild
from ..core.messages import (
    GenerateResult,
    MeshResult,
    ReconstructRequest,
    Request,
    Result,
    SampleRequest,
    SampleResult,
)
from . import history, install, run_times, settings, tasks
from .cutout import Cutout
from .engine import Engine, Job, log_folder, worker_command
from .live import Live
from .preload import Preload
from .scene import placement, results
from .scene.nodes import splat_geometry

NEVER = 525600  # minutes
PIECE = 0.05  # seconds that a piece of a result may take to come into the scene

Take = Callable[[Result, bpy.types.Scene, results.Files | None], list[bpy.types.Object]]
LOOK_AGAIN = 5.0  # seconds after which the file system is asked again where the worker is


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


@dataclass
class Choice:
    """Candidates to choose from.

    Attributes:
        request, result: How they were made, and what they are.
        made: The seeds that were made 3D already.
    """

    request: SampleRequest
    result: SampleResult
    made: set[int] = field(default_factory=set)


class Session:
    """One per Blender; see `current`.

    Args:
        logs: Folder for the worker's logs, unless the environment names another.
        on_work: Called when there is something to step.
        times: File that keeps how long jobs took, or None.

    Attributes:
        engine: The worker, once there was something to do for it.
        job: The job on its way, or None.
        problem, outcome: How the last job ended, or None.
        ended_well: Whether the last job did.
        choice: The candidates that were sampled last, or None.
        task: The last run of the installer, or of the download of weights, or None.
        preload: The models that are loaded before anybody asks for them.
        views: A picture of the views so far, or of the last result's, four in a row; '' if there is none.
        live: Keeps splats as the scene's views are.
        forecast: What is expected of the job on its way.
        cutout: What the image that is chosen looks like, cut out.
    """

    def __init__(self, logs: Path | None = None, on_work: Callable[[], None] = lambda: None, times: Path | None = None):
        self.engine: Engine | None = None
        self.job: Job | None = None
        self.problem: Problem | None = None
        self.outcome: Outcome | None = None
        self.ended_well = False
        self.choice: Choice | None = None
        self.task: tasks.Task | None = None
        self.preload = Preload()
        self.views = ""
        self.live = Live(self, on_work)
        self.forecast = run_times.Forecast({}, 0.0)
        self._times = run_times.RunTimes(times)
        self._served: Engine | None = None  # which has done a job
        self._warm = False  # whether the worker that has the job had done one before
        self._arrival: Iterator[None] | None = None  # of the result of a job that is done
        self.cutout = Cutout()
        self._logs = log_folder(logs)
        self._on_work = on_work
        self._old_engine: Engine | None = None  # its worker may still be leaving
        self._scene_uid = self._source_uid = 0
        self._size = 0.0
        self._take: Take | None = None
        self._waiting: deque[Callable[[], object]] = deque()  # what is begun when the job has ended well
        self._samples: Path | None = None
        self._temporary: Path | None = None
        self._lookup: install.BuildLookup | None = None
        self._worker: tuple[float, install.WorkerPython] | None = None

    # ---- What there is

    def worker(self) -> install.WorkerPython:
        """Which Python the worker runs on. Cheap enough for drawing."""
        now = time.monotonic()
        if self._worker is None or now - self._worker[0] > LOOK_AGAIN:
            self._worker = now, settings.find_worker()
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

    # ---- The worker

    def ready_engine(self) -> Engine:
        """The engine for the worker of today's preferences.

        Raises:
            LGMError: (kind 'worker') If there is no Python for it.
        """
        self.forget_worker()
        minutes = settings.preference("idle_minutes")
        command = worker_command(settings.worker_python(), "serve", "--idle-minutes", str(minutes or NEVER))
        variables = settings.worker_variables()
        if self.engine and (self.engine.command, self.engine.variables) != (command, variables):
            self._dismiss_engine()
        if self.engine is None:
            self.engine = Engine(command, variables=variables, logs=self._logs)
        self.engine.idle_timeout = 60.0 * minutes if minutes else None
        return self.engine

    def end_worker(self, patience: float) -> None:
        """Ends the worker, by force after so many seconds: nothing uses its files afterwards."""
        self._dismiss_engine()
        if self._old_engine:
            self._old_engine.close(patience)

    def _dismiss_engine(self) -> None:
        if self.engine:
            self.engine.stop()
            self.engine, self._old_engine = None, self.engine  # what it told of its presets may not be so any more

    def start_worker(self) -> None:
        """Starts the worker, to hear what it says about itself.

        Raises:
            LGMError: (kind 'worker') If there is no Python for it.
        """
        self.ready_engine().start()
        self._on_work()

    def suitable_build(self) -> TorchBuild | None:
        """The build of torch for this machine, once its driver has told; asks it the first time."""
        self._lookup = self._lookup or install.BuildLookup()
        return self._lookup.build

    def install(self, wheels: Path | None = None) -> None:
        """Starts the installer. Whether Blender may go online is for the caller to ask.

        Args:
            wheels: A folder to take everything from, in place of the network.
        """
        self._begin_task(install.Installation(wheels=wheels))

    def download(self, preset: str) -> None:
        """Starts fetching a preset's weights. Whether Blender may go online is for the caller to ask.

        Raises:
            LGMError: (kind 'worker') If there is no Python for it.
        """
        self.forget_worker()
        command = worker_command(settings.worker_python(), "models", "--download", preset, "--until-stdin-ends")
        self._begin_task(install.Download(command, preset, self._logs / "download.log"))

    def _begin_task(self, task: tasks.Task) -> None:
        self._dismiss_engine()
        self.problem = None
        self.task = task
        self._on_work()

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

    def samples_folder(self) -> Path:
        """A folder for candidates' views, gone when Blender ends."""
        if self._samples is None:
            self._samples = Path(tempfile.mkdtemp(prefix="lgm_views_", dir=bpy.app.tempdir))
        return self._samples

    def live_folder(self) -> Path:
        """A folder for what Live writes, gone when Blender ends."""
        return self.samples_folder() / "live"

    def fail(self, error: LGMError) -> None:
        """Tells of an error that no job of `begin`'s has."""
        self.problem = Problem(error.message, error.kind)

    def begin(
        self,
        request: Request,
        scene: bpy.types.Scene,
        *,
        size: float = 0.0,
        source: bpy.types.Object | None = None,
        take: Take | None = None,
    ) -> Job:
        """Sends a request; what comes of it will go into `scene`.

        Args:
            size: Longest side in metres of what `generate` makes; 0 leaves LGM's own.
            source: The splats that `mesh` makes a mesh of.
            take: Puts the result, whose files are read, into the scene, in place of the usual way; gives what it made.

        Raises:
            LGMError: If there is no worker, or another job is on its way.
        """
        if self.job is not None:
            raise LGMError("Another job is running. Wait for it, or cancel it first.")
        self.cutout.put_off(self.engine)
        engine = self.ready_engine()
        self.preload.make_way(engine, request)
        self.problem = self.outcome = None
        self.views, self.ended_well = "", False
        self._scene_uid, self._size = scene.session_uid, size
        self._source_uid = source.session_uid if source else 0
        self._take = take
        self._warm = engine is self._served and engine.state == "ready"
        self.job = engine.submit(request)
        self.forecast = self._times.forecast(request, self._warm, self.job.started)
        self._on_work()
        return self.job

    def queue(self, begin: Callable[[], object]) -> None:
        """Calls what begins a job, now or after the one on its way has ended well."""
        if self.job is None:
            begin()
        else:
            self._waiting.append(begin)

    @property
    def queued(self) -> int:
        """How many jobs wait for the one on its way."""
        return len(self._waiting)

    def show(self, preset: str, mode: str) -> None:
        """The panel is drawn with these settings: the first time, the models that they name are loaded."""
        if self.preload.ask(preset, mode):
            self._on_work()

    def cut_out(self, scene: bpy.types.Scene) -> None:
        """Has the image of a scene cut out, to be looked at, as soon as nothing else goes on and there is a worker."""
        self.cutout.want(scene, self.engine)
        self._on_work()

    def _ask_for_cutout(self) -> None:
        if self.cutout.busy and not self.job and not self.fetching and self.worker().path:
            try:
                self.cutout.ask(self.ready_engine())
            except LGMError:  # the worker has gone just now; the panel says so
                self.cutout.forget()

    def cancel(self) -> None:
        """Gives up whatever is going on."""
        self._waiting.clear()
        if self.fetching:
            self.task.cancel()
        self._cancel_job()

    def abandon(self) -> None:
        """Gives up the job because the file it was for is closed, and forgets results that lie in it.

        What is being installed or fetched is for all files, and goes on.
        """
        self._waiting.clear()
        self._cancel_job()
        if self._arrival:  # some of what it was about to use is gone with the file
            self.job = self._arrival = None
            self._remove_temporary()
        self.live.stop()
        for scene in bpy.data.scenes:
            scene.lgm.views.live = False  # it may have been saved as on
        self.cutout.forget(self.engine)
        self._scene_uid = 0
        self.problem = self.outcome = self.choice = None
        self.views = ""

    def _cancel_job(self) -> None:
        if self.job and self.engine:
            self.engine.cancel(self.job)

    def step(self) -> bool:
        """Does what can be done without waiting; whether there is anything new to show."""
        changed = False
        # Windows can't replace files that are in use: what is installed waits until the worker has left.
        if self.task and (self._old_engine is None or self._old_engine.gone) and self.task.step():
            changed = True
            if self.task.state == "failed":
                self.problem = Problem(self.task.error, "worker", str(self.task.log))
            if self.task.state != "running":
                self.forget_worker()
                self.cutout.ask_again()
        if self.preload.asked and not self.working and self.worker().path:
            self.preload.start(self.ready_engine, settings.preference("device"))
        if self.engine:
            before = self.engine.state
            changed |= bool(self.engine.step()) or self.engine.state != before
        if self.job:
            self.forecast.hear(self.job.progress, time.monotonic())
            if self.job.ended:
                changed |= self._finish()
            elif self.job.progress and self.job.progress.preview:
                self.views = self.job.progress.preview
        changed |= self.cutout.step()
        self._ask_for_cutout()
        if self.live.on:
            changed |= self.live.step()
        return changed

    @property
    def arriving(self) -> bool:
        """Whether a result is on its way into the scene: it comes in pieces, one a step."""
        return self._arrival is not None

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
        self.live.stop()
        if self.task:
            self.task.cancel()
        self.end_worker(patience=0.5)  # Blender may be about to replace the extension's files
        self.job = self._arrival = None
        self.cutout.forget()
        self._remove_temporary()
        if self._samples:
            shutil.rmtree(self._samples, ignore_errors=True)

    def _finish(self) -> bool:
        """Ends the job that has ended; of one that is done, the next piece of what it made comes into the scene.

        Returns:
            Whether that was all.
        """
        job = self.job
        if job.state == "done":
            self._arrival = self._arrival or self._arrive(job)
            try:
                next(self._arrival)
                return False
            except StopIteration:
                pass
            except LGMError as error:
                self.problem = Problem(error.message, error.kind)
            except Exception as error:
                traceback.print_exc()
                self.problem = Problem(
                    f"The result could not be added to the scene: {error}. It lies in {job.result.file}", "internal"
                )
        self.job = self._arrival = None
        self._remove_temporary()
        if job.state == "cancelled":
            self.views = ""
        elif job.state == "failed":
            sentence = job.error.removesuffix(f" The log is {job.log}")  # there is a button for it
            self.problem = Problem(sentence, job.kind or "internal", job.log)
            self.views = ""
        self.ended_well = job.state == "done" and self.problem is None
        if not self.ended_well:
            self._waiting.clear()
        elif self._waiting:
            try:
                self._waiting.popleft()()
            except LGMError as error:
                self.fail(error)
        return True

    def _arrive(self, job: Job) -> Iterator[None]:
        """Brings what a job made into the scene, piece by piece, so that the window stands still for none of them.

        What changes the file comes last and in one piece: nothing the user does may come in between.
        """
        result = job.result
        self._served = self.engine
        self._times.add(job.request, result, job.seconds, self._warm)
        if isinstance(result, GenerateResult) and result.json:
            history.add(result.json)
        warnings = list(result.warnings)
        files = None
        if not isinstance(result, SampleResult):
            pool = ThreadPoolExecutor(1)
            reading = pool.submit(results.read_files, result, warnings.append)
            pool.shutdown(wait=False)
            while not reading.done():
                yield
            files = reading.result()
            if files.gaussians is not None:
                began = time.perf_counter()
                for _ in splat_geometry.build_in_pieces():
                    if time.perf_counter() - began > PIECE:  # Blender draws its window again after each
                        yield
                        began = time.perf_counter()
                yield
        scene = next((s for s in bpy.data.scenes if s.session_uid == self._scene_uid), None)
        if scene is None:
            raise LGMError(f"The scene is gone that the result was for. Import it from {result.file}", "bad_input")
        if self._take is not None:
            made = self._take(result, scene, files)
        elif isinstance(result, SampleResult):
            self.choice, self.views = Choice(job.request, result), ""
            return
        elif isinstance(result, MeshResult):
            source = next((o for o in bpy.data.objects if o.session_uid == self._source_uid), None)
            name = f"{source.name if source else Path(result.glb).stem} Mesh"
            made = [results.add_converted(result, name, scene, source, files)]
        else:
            made = results.add_result(result, scene, self._size or None, warnings.append, files)
            placement.place(made, scene)
        if isinstance(result, GenerateResult):
            self.views = result.views
            if self.choice and isinstance(job.request, ReconstructRequest):
                self.choice.made.add(job.request.facts.get("seed"))
        if made:
            results.select(made, scene)
            placement.show_first(made, scene)
            self.outcome = Outcome(result, [thing.name for thing in made], job.seconds, warnings)
        results.push_undo(f"LGM: {made[0].name if made else 'Views'}")

    def _remove_temporary(self) -> None:
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


# ---- The one session

_session: Session | None = None


def current() -> Session:
    """The session of the enabled add-on.

    Raises:
        RuntimeError: If the add-on is not registered.
    """
    if _session is None:
        raise RuntimeError("lgm_blender is not registered")
    return _session


def open_session(
    logs: Path | None = None, on_work: Callable[[], None] = lambda: None, times: Path | None = None
) -> None:
    """Makes the session; at registration. The arguments are `Session`'s."""
    global _session
    close_session()
    _session = Session(logs, on_work, times)
    bpy.app.handlers.depsgraph_update_post.append(_after_update)
    bpy.app.handlers.load_post.append(_after_load)  # and not before: a file that can't be read changes nothing


def close_session() -> None:
    """Ends the session and everything that it started. Does nothing if there is none."""
    global _session
    for handlers, handler in (
        (bpy.app.handlers.load_post, _after_load),
        (bpy.app.handlers.depsgraph_update_post, _after_update),
    ):
        if handler in handlers:
            handlers.remove(handler)
    if _session is not None:
        _session.close()
        _session = None


@bpy.app.handlers.persistent
def _after_update(scene, depsgraph) -> None:
    """Cuts out again after a stroke on the image or its mask: Blender tells of them nowhere else."""
    settings = getattr(scene, "lgm", None)
    if _session is None or settings is None or settings.image is None or bpy.app.background:
        return
    pictures = {image.name_full for image in (settings.image, settings.mask) if image}
    if any(isinstance(update.id, bpy.types.Image) and update.id.name_full in pictures for update in depsgraph.updates):
        _session.cut_out(scene)


@bpy.app.handlers.persistent
def _after_load(*_) -> None:
    if _session is not None:
        _session.abandon()
