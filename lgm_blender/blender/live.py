"""Live: whenever one of a scene's four views changes, LGM makes the splats again, in place.

The worker has one such job at a time. What changes meanwhile is taken up when it has ended, all of it at once: the last
change wins, and nothing waits for the ones before it. When the changes pause, they become one undo step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import bpy

from ..core.errors import LGMError
from ..core.formats.ply import read_ply
from . import views
from .engine import Engine, Job
from .scene import results, splats, view_images, view_rig

PAUSE = 1.0  # seconds without a change after which the changes so far are one undo step
SETTLED = 0.15  # seconds without a change after which what the cameras see is rendered
SAMPLES = 4  # per pixel of such a render, where there is no 3D view that could draw it
SHARE = 0.1  # of the main thread's time, at most, goes into looking for changes
NAME = "Live"


class Host(Protocol):
    """What Live needs of the session."""

    engine: Engine | None
    job: Job | None

    def ready_engine(self) -> Engine:
        """The engine for the worker of today's preferences."""

    def live_folder(self) -> Path:
        """A folder for files that nobody else needs."""

    def fail(self, error: LGMError) -> None:
        """Tells the user."""


class Live:
    """One per session; stepped with it.

    Args:
        session: Whose engine does the work.
        on_work: Called when there is something to step.

    Attributes:
        done: How often it has made splats.
        seconds: From a change's being seen to its splats, of the last one; 0 before.
    """

    def __init__(
        self,
        session: Host,
        on_work: Callable[[], None],
    ):
        self._session, self._on_work = session, on_work
        self.done = 0
        self.seconds = 0.0
        self._scene_uid = 0
        self._sums: list[int] = []
        self._job: Job | None = None
        self._pending = self._updated = self._moved = False
        self._changed_at = self._seen_at = self._look_at = 0.0

    @property
    def on(self) -> bool:
        """Whether it looks for changes."""
        return self._scene_uid != 0

    @property
    def working(self) -> bool:
        """Whether splats are being made."""
        return self._job is not None

    def switched(self, scene: bpy.types.Scene, on: bool) -> None:
        """Begins to look at a scene's views, or stops; at most one scene is live."""
        self.stop()
        if on:
            self._scene_uid = scene.session_uid
            self._sums, self._pending = [], False
            bpy.app.handlers.depsgraph_update_post.append(self._after_update)
            self._on_work()

    def stop(self) -> None:
        """Looks no more. What is being made is dropped."""
        scene, self._scene_uid = self._scene(), 0
        if self._job is not None and self._session.engine:
            self._session.engine.cancel(self._job)
        self._job = None
        self._pending = self._updated = self._moved = False
        if self._after_update in bpy.app.handlers.depsgraph_update_post:
            bpy.app.handlers.depsgraph_update_post.remove(self._after_update)
        if scene and scene.lgm.views.live:
            scene.lgm.views.live = False

    def _after_update(self, scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
        """Notes whether anything changed that the cameras see, or they themselves."""
        if scene.session_uid != self._scene_uid or (rig := scene.lgm.views.rig) is None:
            return
        seen = view_rig.seen_objects(rig, scene)
        watched = {rig, *rig.children, *seen, *(thing.data for thing in seen)}
        watched |= {slot.material for thing in seen for slot in thing.material_slots if slot.material}
        if any(update.id.original in watched for update in depsgraph.updates):
            self._moved, self._changed_at = True, time.monotonic()

    def step(self) -> bool:
        """Does what can be done without waiting; whether there is anything new to show."""
        scene = self._scene()
        if scene is None:
            self.stop()
            return False
        self._shoot(scene)
        self._look(scene)
        changed = self._hear(scene)
        if self._pending and self._job is None and self._session.job is None and all(scene.lgm.views.images()):
            self._ask(scene)
            changed = True
        still = time.monotonic() - self._changed_at > PAUSE
        if self._updated and still and not self._pending and self._job is None:
            self._updated = False
            results.push_undo("LGM: Live")
        return changed

    def _scene(self) -> bpy.types.Scene | None:
        if not self._scene_uid:
            return None
        return next((scene for scene in bpy.data.scenes if scene.session_uid == self._scene_uid), None)

    def _shoot(self, scene: bpy.types.Scene) -> None:
        """Renders the views again if what the cameras see has changed, and no longer does."""
        if not self._moved or self._job is not None or time.monotonic() - self._changed_at < SETTLED:
            return
        self._moved = False
        if scene.lgm.views.rig is None:
            return
        try:
            if not views.fill_from_viewport(scene):
                views.fill_from_cameras(scene, self._session.live_folder(), samples=SAMPLES)
        except LGMError as error:
            self._fail(error)

    def _look(self, scene: bpy.types.Scene) -> None:
        """Notes whether a view differs from what it was; large images are looked at less often."""
        began = time.monotonic()
        if began < self._look_at:
            return
        sums = [view_images.checksum(image) for image in scene.lgm.views.images()]
        now = time.monotonic()
        self._look_at = now + (now - began) / SHARE
        if sums != self._sums:
            self._sums, self._pending = sums, True
            self._changed_at = self._seen_at = began

    def _ask(self, scene: bpy.types.Scene) -> None:
        self._pending = False
        try:
            request = views.live_request(scene, self._session.live_folder())
            self._job = self._session.ready_engine().submit(request)
        except LGMError as error:
            self._fail(error)

    def _hear(self, scene: bpy.types.Scene) -> bool:
        job = self._job
        if job is None or not job.ended:
            return False
        self._job = None
        try:
            if job.state == "failed":
                raise LGMError(job.error, job.kind or "internal")
            if job.state == "done":
                self._show(scene, job)
        except LGMError as error:
            self._fail(error)
        return True

    def _show(self, scene: bpy.types.Scene, job: Job) -> None:
        found = scene.lgm.views
        gaussians = read_ply(job.result.ply)
        if found.target is not None and scene.objects.get(found.target.name) == found.target:
            splats.replace_splats(found.target, gaussians)
        else:
            rig = found.rig
            made = splats.add_splats(gaussians, NAME, scene=scene, size=None if rig else results.SIZE, stand=not rig)
            if rig:
                view_rig.place(made, rig)
            found.target = made
        self._updated = True
        self.seconds = time.monotonic() - self._seen_at
        self.done += 1

    def _fail(self, error: LGMError) -> None:
        self.stop()
        self._session.fail(error)
