"""The worker as seen from Blender: start it, ask, hear its progress, cancel, and notice when it dies.

No bpy and no timers here: `Engine.step` does whatever can be done without waiting. Blender's window calls it from a
timer, a batch from a loop (`Engine.wait`), a test as it likes.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..core import messages
from ..core.errors import ErrorKind, LGMError
from ..core.files import OWNER_VARIABLE, remove_scraps
from ..core.messages import Initialized, JobError, Progress, Request, Result
from ..core.system.folders import data_folder
from ..core.system.processes import describe_exit, was_killed
from .process import Process, clean_variables

PACKAGE = Path(__file__).resolve().parent.parent
LOG_VARIABLE = "LGM_BLENDER_LOG_DIR"
PATIENCE = 5.0  # seconds that a worker is given to leave by itself; its files are whole or absent at any time
LONGEST_STEP = 2.0  # seconds that may count as having passed since the last look

# The package is loaded by its folder. As an extension it is not called lgm_blender, and with the extensions' folder on
# the path every other extension would be importable too, and could hide one of the worker's packages.
_BOOTSTRAP = """\
import importlib.util, runpy, sys
folder = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "lgm_blender", folder + "/__init__.py", submodule_search_locations=[folder])
module = sys.modules["lgm_blender"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
runpy.run_module("lgm_blender.worker", run_name="__main__", alter_sys=True)
"""


def worker_command(python: Path | str, *arguments: str) -> list[str]:
    """`python -m lgm_blender.worker ARGUMENTS`, wherever this package lies and whatever its folder is called."""
    return [str(python), "-I", "-u", "-X", "utf8", "-c", _BOOTSTRAP, str(PACKAGE), *arguments]


def log_folder(default: Path | None = None) -> Path:
    """Where the worker's logs go: LGM_BLENDER_LOG_DIR, else `default`, else the user's data folder."""
    chosen = os.environ.get(LOG_VARIABLE)
    return Path(chosen) if chosen else default or data_folder() / "logs"


JobState = Literal["waiting", "running", "cancelling", "done", "failed", "cancelled"]


@dataclass
class Job:
    """One request on its way.

    Attributes:
        state: 'waiting' until the worker takes it up; 'done', 'failed' and 'cancelled' are final.
        progress: The last progress message, or None.
        result: Once done.
        error, kind: Once failed or cancelled, a sentence for the user and what it is about.
        log: The log file that says more, or ''.
        started: time.monotonic() of the request.
        seconds: How long it took, once it ended.
        deadline: The engine's time after which a cancelled job is ended by force.
    """

    request: Request
    state: JobState = "waiting"
    progress: Progress | None = None
    result: Result | None = None
    error: str = ""
    kind: ErrorKind | None = None
    log: str = ""
    started: float = 0.0
    seconds: float = 0.0
    deadline: float = math.inf

    @property
    def id(self) -> str:
        """The name that every message about this job carries."""
        return self.request.job

    @property
    def method(self) -> str:
        """What is asked for: one of `messages.JOBS`."""
        return next(name for name, (request, _) in messages.JOBS.items() if isinstance(self.request, request))

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def label(self) -> str:
        """What is being done, in words, with the number of a step where steps are long."""
        if self.state == "cancelling":
            return "Stopping"
        if self.state == "done":
            return "Adding it to the scene"
        if self.progress is None:
            return "Waiting"
        steps = f" {self.progress.step}/{self.progress.steps}" if self.progress.stage == "views" else ""
        return self.progress.label + (steps if self.progress.steps else "")


class Engine:
    """A worker process that is started when there is something to do. All methods may be called from any thread.

    Args:
        command: What starts the worker: see `worker_command`.
        variables: Environment variables on top of the cleaned ones of this process.
        logs: Folder for the worker's logs; `log_folder()` if None.
        start_timeout: Seconds until the worker must have answered `initialize`. Importing torch from a slow disk, with
            a virus scanner in between, takes more than a minute.
        cancel_timeout: Seconds that a worker may go on with a cancelled job before it is ended by force.
        idle_timeout: Seconds without a job after which the worker is sent home, or None for never.

    Attributes:
        state: 'off', 'starting' or 'ready'.
        info: What the worker said about itself when it was last started, or None.
        problem: Why the worker did not start or ended, a sentence, or ''.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        variables: Mapping[str, str] | None = None,
        logs: Path | None = None,
        start_timeout: float = 300.0,
        cancel_timeout: float = 10.0,
        idle_timeout: float | None = None,
    ):
        self.command = list(command)
        self.variables = dict(variables or {})
        self.logs = Path(logs or log_folder())
        self.start_timeout = start_timeout
        self.cancel_timeout = cancel_timeout
        self.idle_timeout = idle_timeout
        self.state: Literal["off", "starting", "ready"] = "off"
        self.info: Initialized | None = None
        self.problem = ""
        self._process: Process | None = None
        self._leaving: list[Process] = []  # told to leave, or killed, and perhaps not gone yet
        self._owner = ""  # what the process's unfinished files are called by
        self._outputs: set[str] = set()  # folders that it may have begun to write to
        self._jobs: dict[str, Job] = {}  # those that have not ended
        self._changed: dict[str, Job] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, str | None] = {}  # request number -> job, '' for initialize, None for what ends one
        self._time, self._looked = 0.0, time.monotonic()
        self._deadline = 0.0  # of the start
        self._idle_since = 0.0
        self._lock = threading.RLock()

    @property
    def busy(self) -> bool:
        """Whether any job has not ended."""
        return bool(self._jobs)

    @property
    def gone(self) -> bool:
        """Whether no process of it is left."""
        return self._process is None and all(process.wait(0) for process in self._leaving)

    @property
    def log(self) -> Path:
        """The worker's log: its own once it has told which, else what it wrote to stderr."""
        return Path(self.info.log) if self.info and self.info.log else self.logs / "worker_stderr.log"

    def start(self) -> None:
        """Starts the worker if it is off. A worker that can't be started fails the jobs that wait for it."""
        with self._lock:
            if self._process:
                return
            with contextlib.suppress(OSError):
                self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._owner = uuid.uuid4().hex[:12]
            variables = {LOG_VARIABLE: str(self.logs), OWNER_VARIABLE: self._owner, **self.variables}
            self.info, self.problem = None, ""
            try:
                self._process = Process(self.command, clean_variables(variables), log=self.logs / "worker_stderr.log")
            except OSError as error:
                reason = error.strerror or str(error)
                self._fail_all(f"The worker could not be started: {self.command[0]}: {reason}.", "worker")
                return
            atexit.unregister(self.close)  # one that was stopped may be registered still
            atexit.register(self.close)
            self.state = "starting"
            self._deadline = self._now() + self.start_timeout
            self._ask("initialize", {}, "")

    def submit(self, request: Request) -> Job:
        """Asks for one job, starting the worker if need be. An empty `request.job` gets a name."""
        with self._lock:
            if not request.job:
                request = replace(request, job=uuid.uuid4().hex[:12])
            if self._process:
                self._check()  # one that died meanwhile is replaced
            job = Job(request, started=time.monotonic())
            self._jobs[job.id] = job
            self.start()
            if self.state == "ready":
                self._send(job)
            return job

    def cancel(self, job: Job) -> None:
        """Asks the worker to give up a job. If it does not react in `cancel_timeout`, it is ended and started anew."""
        with self._lock:
            if job.ended or job.state == "cancelling":
                return
            if job.id not in self._asked.values():
                self._end(job, "cancelled", "Cancelled.", "cancelled")
                return
            job.state = "cancelling"
            self._note(job)
            self._ask("cancel", {"job": job.id}, None)
            job.deadline = self._now() + self.cancel_timeout

    def step(self) -> list[Job]:
        """Does what can be done without waiting; returns the jobs that have changed since the last call."""
        with self._lock:
            if self._process:
                for line in self._process.lines(limit=1000):  # a flood must not stop Blender
                    self._receive(line)
            if self._process:
                self._check()
            changed = list(self._changed.values())
            self._changed.clear()
            return changed

    def wait(self, job: Job, on_progress: Callable[[Job], None] | None = None, timeout: float | None = None) -> Result:
        """Blocks until a job ends, and returns its result. For batches and scripts, not for Blender's window.

        Args:
            on_progress: Called whenever the job has changed.
            timeout: Seconds after which the job is given up.

        Raises:
            LGMError: If the job failed, was cancelled or took too long.
        """
        end = math.inf if timeout is None else self._now() + timeout
        try:
            while not job.ended:
                if job in self.step() and on_progress:
                    on_progress(job)
                if self._now() > end and not job.ended:
                    self._give_up(job, f"The job took longer than {timeout:g} seconds.")
                if not job.ended:
                    time.sleep(0.02)
        except BaseException:  # Ctrl-C above all
            self.cancel(job)
            raise
        if job.error:
            raise LGMError(job.error, job.kind or "internal")
        return job.result

    def wait_ready(self, timeout: float | None = None) -> Initialized:
        """Blocks until the worker is up, starting it if need be, and returns what it says about itself.

        Raises:
            LGMError: If it does not come up.
        """
        end = math.inf if timeout is None else self._now() + timeout
        self.start()
        while self.state == "starting" and self._now() <= end:
            self.step()
            time.sleep(0.02)
        if self.state != "ready":
            raise LGMError(self.problem or "The worker did not start in time.", "worker")
        return self.info

    def stop(self) -> None:
        """Ends the worker without waiting for it: asked first, then, after PATIENCE, by force. Its jobs are cancelled.

        A later job starts another one.
        """
        with self._lock:
            for job in list(self._jobs.values()):
                self._end(job, "cancelled", "Cancelled: the worker was stopped.", "cancelled")
            self._dismiss()

    def close(self, patience: float = 1.0) -> None:
        """`stop`, and waits for the end, by force after `patience` seconds. Happens by itself when this Python ends."""
        with self._lock:
            self.stop()
            end = time.monotonic() + patience
            for process in self._leaving:
                if not process.wait(max(0.0, end - time.monotonic())):
                    process.kill()
                    process.wait(2.0)
            atexit.unregister(self.close)

    # ---- Sending and receiving

    def _ask(self, method: str, params: Any, about: str | None) -> None:
        number = next(self._numbers)
        self._asked[number] = about
        self._process.write(messages.encode(messages.request(number, method, params)))

    def _send(self, job: Job) -> None:
        if output := getattr(job.request, "output", None):
            self._outputs.add(output)
        self._ask(job.method, messages.to_params(job.request), job.id)

    def _receive(self, line: bytes) -> None:
        if self._process is None:  # given up because of an earlier line
            return
        try:
            message = messages.decode(line)
        except (ValueError, RecursionError):
            message = {}
        if message.get("method") == "progress":
            self._progress(message.get("params"))
        elif "id" in message and ("result" in message or "error" in message):
            self._receive_answer(message["id"], message)
        else:  # some library printed to stdout: it belongs with the other things it has to say
            self._process.note(line)

    def _receive_answer(self, id: Any, message: dict[str, Any]) -> None:
        if not isinstance(id, int) or id not in self._asked:
            # Whoever waits for the right answer would wait for ever.
            said = f": {_read_error(message['error'])[1]}" if "error" in message else "."
            self._give_up_worker(f"The worker answered what nobody had asked{said}")
            return
        about = self._asked.pop(id)
        if about:
            self._answer(self._jobs.get(about), message)
        elif about == "":
            self._initialized(message)

    def _progress(self, params: Any) -> None:
        try:
            progress = messages.from_params(Progress, params)
        except LGMError as error:
            self._process.tail.append(error.message)
            return
        if job := self._jobs.get(progress.job):
            job.progress = progress
            job.state = "running" if job.state == "waiting" else job.state
            self._note(job)

    def _answer(self, job: Job | None, message: dict[str, Any]) -> None:
        if job is None:
            return
        if job.state == "cancelling":  # even if it was done a moment before: the user wants nothing of it
            self._end(job, "cancelled", "Cancelled.", "cancelled")
        elif "error" in message:
            self._end(job, *_read_error(message["error"]))
            if job.kind == "device":  # its worker is of no more use, and leaves: the next job gets a new one
                self._fail_all("The GPU failed in another job. Try again, with a new worker.", "device")
                self.problem = ""
                self._drop(PATIENCE)
        else:
            try:
                result = messages.from_params(messages.JOBS[job.method][1], message.get("result"))
            except LGMError as error:
                self._give_up_worker(f"The worker's answer can't be read: {error.message}")
                return
            if result.job != job.id:
                self._give_up_worker(f"The worker took the job {job.id!r} for another, {result.job!r}.")
                return
            job.result = result
            self._end(job, "done", "", None)

    def _initialized(self, message: dict[str, Any]) -> None:
        if "error" in message:
            self._give_up_worker(_read_error(message["error"])[1])
            return
        protocol = message.get("result", {}).get("protocol") if isinstance(message.get("result"), dict) else None
        if protocol != messages.PROTOCOL_VERSION:
            self._give_up_worker(
                f"The worker speaks version {protocol} of the protocol, this add-on version "
                f"{messages.PROTOCOL_VERSION}. Restart Blender so that both are of one version."
            )
            return
        try:
            self.info = messages.from_params(Initialized, message["result"])
        except LGMError as error:
            self._give_up_worker(f"The worker's first answer can't be read: {error.message}")
            return
        self.state = "ready"
        self._idle_since = self._now()
        for job in self._jobs.values():
            self._send(job)

    # ---- Ends, good and bad

    def _now(self) -> float:
        """Seconds in which this engine was looked after: not those in which a laptop slept or Blender was stopped.

        After these the worker is as much behind as its deadlines, and what it has said is not read yet.
        """
        with self._lock:
            now = time.monotonic()
            self._time += min(now - self._looked, LONGEST_STEP)
            self._looked = now
            return self._time

    def _check(self) -> None:
        now = self._now()
        code = self._process.exit_code()
        if code is not None:
            for line in self._process.lines():  # what it said between the last look and its end
                self._receive(line)
            if self._process:
                self._died(code)
        elif self.state == "starting" and now > self._deadline:
            self._give_up_worker(f"The worker did not answer within {self.start_timeout:g} seconds.")
        elif self._process.is_mute():
            self._give_up_worker("The worker closed its output and can't be heard any more.")
        elif late := next((job for job in self._jobs.values() if now > job.deadline), None):
            self._give_up(late, "")
        elif self._jobs:
            self._idle_since = now
        elif self.idle_timeout is not None and self.state == "ready" and now - self._idle_since > self.idle_timeout:
            self._dismiss()

    def _died(self, code: int) -> None:
        doing = "could not start" if self.state == "starting" else "stopped unexpectedly"
        last = self._process.tail[-1] if self._process.tail else ""
        killed = was_killed(code)
        sentence = f"The worker {doing} ({describe_exit(code)}){': ' + last if last and not killed else ''}."
        if killed:
            sentence += " Perhaps there was not enough memory."
        self._drop()
        self._fail_all(self._with_log(sentence), "out_of_memory" if killed else "worker")

    def _give_up_worker(self, sentence: str) -> None:
        last = f" Its last words: {self._process.tail[-1]}" if self._process.tail else ""
        self._drop()
        self._fail_all(self._with_log(sentence + last), "worker")

    def _give_up(self, job: Job, sentence: str) -> None:
        """Ends the worker because of one job that it does not let go of, and asks a new one for the others."""
        if job.id in self._asked.values():
            self._drop()
        if sentence:
            self._end(job, "failed", sentence, "worker")
        else:
            self._end(job, "cancelled", "Cancelled; the worker did not react and was ended.", "cancelled")
        for other in list(self._jobs.values()):
            if other.state == "cancelling":
                self._end(other, "cancelled", "Cancelled.", "cancelled")
                continue
            other.state, other.progress = "waiting", None
            self._note(other)
        if self._jobs:
            self.start()

    def _with_log(self, sentence: str) -> str:
        sentence = sentence if sentence.endswith((".", "!", "?")) else sentence + "."
        return f"{sentence.replace('..', '.')} The log is {self.log}"

    def _fail_all(self, sentence: str, kind: ErrorKind) -> None:
        self.problem = sentence
        for job in list(self._jobs.values()):
            if job.state == "cancelling":
                self._end(job, "cancelled", "Cancelled.", "cancelled")
            else:
                self._end(job, "failed", sentence, kind, str(self.log))

    def _end(self, job: Job, state: JobState, error: str, kind: ErrorKind | None, log: str = "") -> None:
        job.state, job.error, job.kind, job.log = state, error, kind, log
        job.seconds = time.monotonic() - job.started
        self._jobs.pop(job.id, None)
        self._idle_since = self._now()
        self._note(job)

    def _note(self, job: Job) -> None:
        self._changed[job.id] = job

    def _drop(self, patience: float = 0.0) -> None:
        """Forgets the process, which ends within `patience` seconds, whatever becomes of this engine."""
        if self._process:
            # One that was killed in the middle of its work can't clean up behind itself.
            self._process.leave(patience, partial(remove_scraps, self._owner, self._outputs))
            self._leaving = [process for process in self._leaving if not process.wait(0)] + [self._process]
        self._process, self._outputs = None, set()
        self.state = "off"
        self._asked.clear()

    def _dismiss(self) -> None:
        if self._process:
            self._ask("shutdown", {}, None)
            self._drop(PATIENCE)


def _read_error(error: Any) -> tuple[JobState, str, ErrorKind, str]:
    error = error if isinstance(error, dict) else {}
    sentence = error.get("message")
    sentence = sentence if isinstance(sentence, str) and sentence else "The worker failed and did not say why."
    try:
        data = messages.from_params(JobError, error.get("data"))
    except LGMError:
        return "failed", sentence, "internal", ""
    return "cancelled" if data.kind == "cancelled" else "failed", sentence, data.kind, data.log
