"""A batch's items over the makers of a Ray cluster: each has one under way, and only this process writes results.

A maker that dies is replaced wherever there is room, and its item is made again by whoever is free; since a result
travels back as bytes and is written here, at once and once, no item is there twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RaySystemError

from ...core.batch.run import Run, Task
from ...core.errors import LGMError
from ...core.messages import GenerateRequest
from ..weights import WEIGHTS_VARIABLE
from .maker import Answer, Maker
from .parcels import Parcel, pieces

PACKAGE = Path(__file__).resolve().parents[2]
PASSED_ON = (WEIGHTS_VARIABLE, "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE")  # environment variables
PAUSE = 0.2  # seconds
PATIENCE = 30.0  # seconds without any maker after which it is said that there is none
MAX_BROKEN = 3  # makers that can't start, one after the other
DOUBT = 15.0  # seconds in which a maker's death may turn out to be its machine's, of which Ray hears later


def connect(address: str | None, processes: int | None) -> None:
    """Joins a cluster, or starts one on this machine, whose parts end with this process.

    Raises:
        LGMError: (kind 'worker') If that fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    code = {"py_modules": [str(PACKAGE)], "env_vars": variables, "excludes": ["**/__pycache__"]}
    options: dict[str, Any] = {"runtime_env": code, "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options |= {"num_cpus": max(cores, processes or 1), "include_dashboard": False, "address": "local"}
        options |= {"_node_ip_address": "127.0.0.1"}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"the cluster at {address}" if address else "Ray on this machine"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LGMError(f"There is no way to {where} ({reason}). Check that it runs ('ray status').", "worker") from None


class RemoteMaker(Maker):
    """A maker that knows which machine it is on."""

    def hello(self, preset: str, device: str) -> tuple[bool, str]:
        """Whether the preset's weights are on this machine, and its name in the cluster."""
        ready, _ = super().hello(preset, device)
        return ready, ray.get_runtime_context().get_node_id()


@dataclass(frozen=True)
class Share:
    """How many makers there are to be, and what of the cluster each takes."""

    makers: int
    cpus: int
    gpus: int


def choose_share(asked: int | None, device: str, nodes: list[dict[str, Any]]) -> Share:
    """A maker for each GPU, else one for each machine; or as many as asked for, which divide the cores.

    Args:
        asked: None for what suits the cluster.
        device: One of messages.DEVICES.
        nodes: What ray.nodes() says of those that live.
    """
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes]
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    if device != "cpu" and gpus:
        makers = asked or gpus
        return Share(makers, 1, 1) if makers <= gpus else Share(makers, 1, 0)
    makers = asked or max(1, sum(count > 0 for count in cores))
    fitting = (cpus for cpus in range(max([1, *cores]), 0, -1) if sum(count // cpus for count in cores) >= makers)
    return Share(makers, next(fitting, 1), 0)


@dataclass
class _Station:
    """A maker's place: whoever is there now, what it is asked, and since when."""

    number: int
    actor: Any = None
    node: str = ""
    ready: bool = False
    task: Task | None = None
    since: float = 0.0
    deadline: float | None = None
    death: str = ""  # why the maker is gone, until it is known whether its machine is gone as well
    doubt_until: float = 0.0


class Cluster:
    """Makes a run's items. Used as a context; in the end the makers are ended.

    Args:
        run: Says what to make, and hears what came of it.
        request: Gives an item's request; its paths are this machine's.
        save: Writes an answer's files; gives what `run` is told.
        find: What `run` is told of a task whose files are there already, or None.
        preset, device: The command line's.
        parcel: The preset's weights for machines that have none, once they are needed.
        share: See `choose_share`.
        timeout, memory: Limits of an item, in seconds and GB, or None.
    """

    def __init__(
        self,
        run: Run,
        request: Callable[[Task], GenerateRequest],
        save: Callable[[Task, GenerateRequest, Answer], dict[str, Any]],
        find: Callable[[Task], dict[str, Any] | None],
        *,
        preset: str,
        device: str,
        parcel: Callable[[], Parcel | None],
        share: Share,
        timeout: float | None = None,
        memory: float | None = None,
    ):
        self.run, self.request, self.save, self.find = run, request, save, find
        self.preset, self.device, self.timeout, self.memory = preset, device, timeout, memory
        self._parcel = parcel
        self._sent: dict[tuple[str, int], tuple[bool, Any]] = {}  # pieces of weights in Ray's store
        self._actor = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0)(RemoteMaker)
        self._stations = [_Station(number) for number in range(share.makers)]
        self._asked: dict[Any, _Station] = {}  # what is awaited
        self._broken = 0
        self._alone_since = time.monotonic()

    def __enter__(self) -> Cluster:
        for station in self._stations:
            self._man(station)
        return self

    def __exit__(self, *_: object) -> None:
        for station in self._stations:
            self._end(station)

    def make_all(self) -> None:
        """Works until nothing is left.

        Raises:
            LGMError: (kind 'worker') If the cluster is gone, or no maker can start.
        """
        try:
            while self.run.unfinished:
                self._step()
        except RaySystemError as error:
            raise LGMError(
                f"The cluster is gone ({error}). Start it again; the same command goes on from here.", "worker"
            ) from None

    def _step(self) -> None:
        for station in self._stations:
            if station.ready and station.task is None and (task := self.run.take()):
                self._give(station, task)
        ended, _ = ray.wait(list(self._asked), num_returns=1, timeout=PAUSE)
        for reference in ended:
            station = self._asked.pop(reference)
            self._hear(station, reference)
        now = time.monotonic()
        for station in self._stations:
            if station.death:
                self._judge(station)
            elif station.deadline is not None and now > station.deadline:
                self._fail(
                    station,
                    LGMError(
                        f"The job took longer than {self.timeout:g} seconds. Raise --timeout, or leave it out.",
                        "worker",
                    ),
                )
        if any(station.ready for station in self._stations):
            self._alone_since = now
        elif now - self._alone_since > PATIENCE:
            self.run.progress.say("No machine of the cluster has room: waiting for one. Ctrl-C stops.")
            self._alone_since = now + 10 * PATIENCE

    def _man(self, station: _Station) -> None:
        """Puts a new maker to a station, wherever in the cluster there is room."""
        station.actor, station.ready, station.node = self._actor.remote(self.memory), False, ""
        self._asked[station.actor.hello.remote(self.preset, self.device)] = station

    def _give(self, station: _Station, task: Task) -> None:
        if made := self.find(task):
            self.run.done(task, made)
            return
        request = self.request(task)
        image = None
        try:
            image = Path(request.image).read_bytes() if request.image else None
        except OSError as error:
            sentence = f"{request.image} could not be read ({error.strerror or error}). Choose another image."
            self.run.failed(task, LGMError(sentence))
            return
        station.task, station.since = task, time.monotonic()
        station.deadline = None if self.timeout is None else station.since + self.timeout
        self._asked[station.actor.make.remote(request, image, request.image or "")] = station
        self.run.progress.show(task.name, f"in work with {sum(s.task is not None for s in self._stations) - 1} others")

    def _hear(self, station: _Station, reference: Any) -> None:
        """What a maker has answered, or that it is gone."""
        try:
            answer = ray.get(reference)
            if not station.ready:
                self._welcome(station, *answer)
                return
        except RayActorError as error:
            self._lose(station, error)
            return
        except (RayError, LGMError) as error:  # it lives, and can't do what it should
            cause = getattr(error, "cause", error)
            if isinstance(cause, LGMError) and not station.ready:  # no other could, either
                raise LGMError(cause.message, "worker") from None
            self._fail(
                station,
                LGMError(
                    f"A worker failed ({_first_line(error)}). Try it alone, to see whether it is the input.", "worker"
                ),
            )
            return
        if answer.result is None:
            error = LGMError(answer.error, answer.kind)
            if answer.kind in ("out_of_memory", "device"):
                self._fail(station, error)
            else:
                self.run.failed(self._take_back(station), error)
            return
        task = self._take_back(station)
        try:
            made = self.save(task, self.request(task), answer)
        except LGMError as error:
            self.run.failed(task, error)
        else:
            self.run.done(task, made)

    def _welcome(self, station: _Station, has_weights: bool, node: str) -> None:
        if not has_weights and (parcel := self._parcel()):
            self._send(station.actor, parcel)
        station.node, station.ready = node, True
        self._broken = 0

    def _send(self, actor: Any, parcel: Parcel) -> None:
        """Sends the weights that a maker's machine lacks, through Ray's object store: each piece is put there once."""
        missing = ray.get(actor.has_files.remote(parcel.name, parcel.sizes))
        if missing:
            self.run.progress.say(f"Sending the weights of '{self.preset}' to a machine that has none.")
        for name in missing:
            for number, last, data in pieces(parcel.files[name]):
                if (name, number) not in self._sent:
                    self._sent[name, number] = last, ray.put(data)
                ray.get(actor.receive.remote(parcel.name, name, number, last, self._sent[name, number][1]))
        ray.get(actor.use.remote(parcel.name, self.preset, parcel.folder))

    def _lose(self, station: _Station, error: RayActorError) -> None:
        """A maker is gone: with its machine, or by itself."""
        if station.task is None:
            self._count_broken(error)
            self._man(station)
            return
        station.actor, station.ready = None, False
        station.death, station.doubt_until = _first_line(error), time.monotonic() + DOUBT
        self._judge(station, lost="node" in str(error).lower())

    def _judge(self, station: _Station, lost: bool = False) -> None:
        """Gives a dead maker's item back once it is known whether its machine is gone too: then it isn't its fault."""
        lost = lost or not _lives(station.node)
        if not lost and time.monotonic() < station.doubt_until:
            return
        sentence = f"The worker stopped unexpectedly ({station.death}). Try it alone, or on fewer at once."
        station.death = ""
        self.run.failed(self._take_back(station), LGMError(sentence, "worker"), lost=lost)
        self._man(station)

    def _fail(self, station: _Station, error: LGMError) -> None:
        """A maker can't go on: its item fails, and another one takes its place."""
        if station.task is not None:
            self.run.failed(self._take_back(station), error)
        else:
            self._count_broken(error)
        self._end(station)
        self._man(station)

    def _count_broken(self, error: Exception) -> None:
        self._broken += 1
        if self._broken > MAX_BROKEN * len(self._stations):
            raise LGMError(
                f"No worker could start on the cluster: {_first_line(error)}. Its machines need the worker's packages "
                "and this Python. Install them there: docs/batch.md says how.",
                "worker",
            )

    def _take_back(self, station: _Station) -> Task:
        task, station.task, station.deadline = station.task, None, None
        task.spent["worker"] = time.monotonic() - station.since
        return task

    def _end(self, station: _Station) -> None:
        self._asked = {reference: other for reference, other in self._asked.items() if other is not station}
        if station.actor is not None and ray.is_initialized():
            ray.kill(station.actor, no_restart=True)
        station.actor, station.ready = None, False


def _lives(node: str) -> bool:
    return any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(getattr(cause, "message", None) or cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__).rstrip(".")
