"""Loads the models when the panel is first seen, so that the first click finds them loaded. No bpy here."""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import LGMError
from ..core.messages import GenerateRequest, LoadRequest, Request
from .engine import Engine, Job


class Preload:
    """One per session: it loads once, whatever comes of it, and says nothing if nothing does.

    Attributes:
        asked: Whether the models are to be loaded and are not on their way yet.
        job: The loading, once it has begun.
    """

    def __init__(self) -> None:
        self.asked = False
        self.job: Job | None = None
        self._wanted = LoadRequest("")
        self._unready = ""  # the preset that had no weights when it was asked for
        self._over = False

    @property
    def loading(self) -> bool:
        """Whether it goes on."""
        return self.job is not None and not self.job.ended

    def ask(self, preset: str, mode: str) -> bool:
        """Has the models of a preset loaded, in the mode that the settings are for; whether that is yet to be done."""
        if self._over or preset in ("", self._unready):
            return False
        self._wanted = LoadRequest("", preset, mode)
        self.asked = True
        return True

    def start(self, ready_engine: Callable[[], Engine], device: str) -> None:
        """Does the next thing that can be done without waiting: starts the worker, or has it load.

        Args:
            ready_engine: Gives the engine of the session's worker, or raises an LGMError.
            device: See LoadRequest.
        """
        try:
            engine = ready_engine()
            if engine.state == "off" and not engine.problem:
                engine.start()
            elif engine.state == "ready":
                self._load(engine, device)
            elif engine.problem:  # the worker does not start: who presses Generate will hear why
                self.give_up()
        except LGMError:
            self.give_up()

    def _load(self, engine: Engine, device: str) -> None:
        wanted, known = self._wanted, {preset.name: preset for preset in engine.info.presets}
        mode = wanted.mode
        if preset := known.get(wanted.preset):
            if not preset.ready:
                self.asked, self._unready = False, preset.name
                return
            mode = mode if mode in preset.modes else preset.modes[0]
        self.give_up()
        self.job = engine.submit(LoadRequest("", wanted.preset, mode, device))

    def give_up(self) -> None:
        """Asks no more."""
        self.asked, self._over = False, True

    def make_way(self, engine: Engine, request: Request) -> None:
        """A job comes that the user waits for: it takes over, and what it has no use for is not loaded."""
        self.give_up()
        if not self.loading:
            return
        loads = self.job.request
        if not isinstance(request, GenerateRequest) or (request.preset, request.device) != (loads.preset, loads.device):
            engine.cancel(self.job)
