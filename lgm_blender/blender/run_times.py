"""How long jobs took on this machine, and so how long the one on its way may still take. No bpy here.

Of each kind of job (what is asked, preset, device, what comes out) the last runs are remembered, stage by stage. What
is expected of a stage is the median of its runs. The views' is scaled by how many samples and steps are asked for, and
where the steps that are done were slower, they count the more the more of them there are.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from ..core.messages import GenerateRequest, Progress, ReconstructRequest, Request, Result, SampleRequest

KEPT, KINDS = 7, 60  # runs of a kind, and kinds, that are remembered
START = "start"  # what Blender waits for before the first stage: the worker's start, and the way there and back
_WORK = ("steps", "view_samples", "guidance")  # settings that the views' time goes with
_FEW = 3  # steps after which their pace says something


class Forecast:
    """What is left of one job.

    Args:
        expected: Seconds of each stage, in their order; empty where nothing is known.
        now: time.monotonic() at its start.
    """

    def __init__(self, expected: Mapping[str, float], now: float):
        self._expected = dict(expected)
        self._stage, self._since = START, now
        self._done = 0.0  # part of the stage

    def hear(self, progress: Progress | None, now: float) -> None:
        """Takes note of how far the job is."""
        if progress is None:
            return
        if progress.stage != self._stage:
            self._stage, self._since = progress.stage, now
        self._done = progress.step / progress.steps if progress.steps and progress.step >= _FEW else 0.0

    def remaining(self, now: float) -> float | None:
        """Seconds until the end, or None where nobody can know."""
        if self._stage not in self._expected:
            return None
        order = list(self._expected)
        spent, stage, done = now - self._since, self._expected[self._stage], self._done
        left = stage - spent
        if done:  # the more steps are done, the more their own pace counts
            left = max(left, (1 - done) * ((1 - done) * stage + done * (spent / done)))
        later = sum(self._expected[name] for name in order[order.index(self._stage) + 1 :])
        return max(0.0, left) + later


class RunTimes:
    """The runs of this machine.

    Args:
        path: The JSON file that keeps them, or None to remember them only now. One that can't be read is begun anew,
            and one that can't be written is no reason to complain.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._kinds = self._read()

    def forecast(self, request: Request, warm: bool, now: float) -> Forecast:
        """What is expected of a job.

        Args:
            warm: Whether the worker has done a job before.
            now: time.monotonic().
        """
        runs = self._kinds.get(kind_of(request), [])
        if not runs:
            return Forecast({}, now)
        last = runs[-1]["work"]
        asked = {name: getattr(request, name, None) for name in _WORK}
        work = _work({name: last.get(name) if value is None else value for name, value in asked.items()})
        expected = {}
        for stage in runs[-1]["seconds"]:
            there = [run for run in runs if stage in run["seconds"]]
            if stage in (START, "load"):
                there = [run for run in there if run["warm"] == warm] or there
            scaled = [run["seconds"][stage] * (work / _work(run["work"]) if stage == "views" else 1.0) for run in there]
            expected[stage] = median(scaled)
        return Forecast(expected, now)

    def add(self, request: Request, result: Result, seconds: float, warm: bool) -> None:
        """Remembers a job that is done, and how long it took from the click to the result."""
        stages = {name: float(value) for name, value in result.timings.items() if name != "total"}
        start = max(0.0, seconds - result.timings.get("total", sum(stages.values())))
        run = {
            "seconds": {START: round(start, 3), **stages},
            "work": {name: result.settings.get(name) for name in _WORK},
            "warm": warm,
        }
        self._kinds = self._read() or self._kinds  # another Blender may have added to it
        kind = kind_of(request)
        runs = self._kinds.pop(kind, [])  # and back at the end: what was not done for long is forgotten first
        self._kinds[kind] = [*runs, run][-KEPT:]
        self._kinds = dict(list(self._kinds.items())[-KINDS:])
        self._write()

    def _read(self) -> dict[str, list[dict[str, Any]]]:
        try:
            kinds = json.loads(self.path.read_bytes()) if self.path else {}
            for run in (run for runs in kinds.values() for run in runs):
                if not isinstance(run["warm"], bool) or not all(value >= 0 for value in run["seconds"].values()):
                    return {}
                _work(run["work"])
            return {kind: runs for kind, runs in kinds.items() if runs}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _write(self) -> None:
        """Whole or not at all, but without waiting for the disk: nobody misses it."""
        if self.path is None:
            return
        temporary = self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._kinds), encoding="utf-8")
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def kind_of(request: Request) -> str:
    """What jobs that take about as long have in common."""
    parts = [type(request).__name__, getattr(request, "device", "")]
    if isinstance(request, GenerateRequest):
        parts += [request.preset, request.output_kind, "image" if request.image else "text", str(request.candidates)]
    elif isinstance(request, SampleRequest):
        parts += [request.preset, "image" if request.image else "text", str(len(request.seeds))]
    elif isinstance(request, ReconstructRequest):
        parts += [request.preset, request.output_kind]
    return " ".join(parts)


def _work(settings: Mapping[str, Any]) -> float:
    """How much there is to do for the views: steps times samples, twice with guidance."""
    guided = settings.get("guidance") != 1
    return float((settings.get("steps") or 1) * (settings.get("view_samples") or 1) * (1 + guided))
