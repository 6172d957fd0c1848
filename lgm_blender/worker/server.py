"""The worker as a server: JSON-RPC 2.0 over stdin and stdout (core/messages.py), one job at a time.

A thread reads, so that a cancel is heard while a job runs; the main thread works. Nothing but messages can get onto
the real stdout: whatever a library prints goes to stderr. When stdin ends, the worker leaves.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import logging.handlers
import os
import platform
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core import environment, messages
from ..core.errors import Cancelled, LGMError
from ..core.files import make_temporary_folder, owner, remove_scraps, sweep
from ..core.messages import Initialized, JobError, Progress, Request
from ..core.system.folders import data_folder, private_folder
from ..core.version import VERSION
from .devices import device_name, gpu_count, resolve_device
from .memory import watch_memory
from .pipeline import Pipeline
from .presets import preset_infos

log = logging.getLogger(__name__)

LOG_VARIABLE = "LGM_BLENDER_LOG_DIR"
LOG_SIZE, LOG_FILES = 1_000_000, 3
IDLE_MINUTES = 5.0  # without a job, after which the models' memory is given back
LINE_LIMIT = 1 << 24  # bytes of a message
GRACE = 0.8  # seconds for a job to notice that the worker should leave: not everything listens


def serve(idle_minutes: float = IDLE_MINUTES, memory: float | None = None) -> None:
    """Serve on this process's stdin and stdout until stdin ends or `shutdown` comes.

    Args:
        idle_minutes: Without a job, after which the models' memory is given back.
        memory: GB that this process may hold during a job; with more the job fails and the process ends.
    """
    log_file = start_log()
    stdin, stdout = _take_standard_streams()
    sweep()
    try:
        previews = make_temporary_folder()
    except OSError as error:  # a full disk, say: no reason to do nothing
        log.warning("no previews: %s", error)
        previews = None
    server = Server(Pipeline(previews), stdin, stdout, log_file, idle_minutes * 60)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.leave())
    if memory is not None:
        watch_memory(memory, server.end_out_of_memory)
    log.info("worker %s started, process %d, Python %s", VERSION, os.getpid(), platform.python_version())
    try:
        server.run()
    finally:
        if previews:
            shutil.rmtree(previews, ignore_errors=True)
        log.info("worker left")


@dataclass
class _Pending:
    """A request that has no answer yet."""

    id: int | str
    method: str
    request: Request
    cancelled: threading.Event = field(default_factory=threading.Event)
    answered: bool = False


class Server:
    """Reads requests from one file descriptor, answers on another.

    Args:
        pipeline: Does the jobs.
        stdin, stdout: File descriptors.
        log_file: Where the log is, for error messages, or None.
        idle_seconds: Without a job, after which the pipeline's models are freed.
    """

    def __init__(self, pipeline: Pipeline, stdin: int, stdout: int, log_file: Path | None, idle_seconds: float):
        self.pipeline = pipeline
        self.stdin = stdin
        self.stdout = stdout
        self.log_file = str(log_file or "")
        self.idle_seconds = idle_seconds
        self.leaving = threading.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[str, _Pending] = {}
        self._running: _Pending | None = None
        self._jobs_lock = threading.RLock()
        self._write_lock = threading.Lock()
        self._timer = threading.Timer(GRACE, self._leave_by_force)
        self._timer.daemon = True

    def run(self) -> None:
        """Works until the worker is told to leave."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        idle_since = time.monotonic()
        while not self.leaving.is_set():
            try:
                work = self._work.get(timeout=1.0)
            except queue.Empty:
                if self.pipeline.loaded and time.monotonic() - idle_since > self.idle_seconds:
                    self.pipeline.free()
                continue
            if work is not None:
                work()
                idle_since = time.monotonic()
        while not self._work.empty():  # what was asked before stdin ended is answered; jobs, that they are cancelled
            if work := self._work.get():
                work()
        self._timer.cancel()

    def leave(self) -> None:
        """Ends `run` soon: the running job within one step, the others at once. By force if that takes too long."""
        if self.leaving.is_set():
            return
        self.leaving.set()
        with self._jobs_lock:
            for job in self._jobs.values():
                job.cancelled.set()
        self._work.put(None)
        self._timer.start()

    def end_out_of_memory(self, sentence: str) -> None:
        """Fails the job that runs, if any, and ends this process at once, whatever it is in. Any thread may."""
        if job := self._running:
            log.warning("out of memory: %s", sentence)
            self._end(job, LGMError(sentence, "out_of_memory"))
            self._leave_by_force()

    def _leave_by_force(self) -> None:
        log.warning("the worker is ended by force")
        if self.pipeline.previews:
            shutil.rmtree(self.pipeline.previews, ignore_errors=True)
        if job := self._running:
            remove_scraps(owner(), _outputs(job))
        logging.shutdown()
        os._exit(0)

    # Reading

    def _read(self) -> None:
        try:
            for line in _lines(self.stdin):
                if line.strip():
                    self._receive(line)
        except OSError as error:
            log.warning("stdin can't be read: %s", error)
        log.info("stdin ended")
        self.leave()

    def _receive(self, line: bytes) -> None:
        id = None
        try:
            try:
                message = messages.decode(line)
            except (ValueError, RecursionError) as error:
                self._send(messages.error_response(None, messages.PARSE_ERROR, f"This line is no message: {error}."))
                return
            id, method, params = message.get("id"), message.get("method"), message.get("params", {})
            if not isinstance(method, str) or not isinstance(id, int | str | None) or isinstance(id, bool):
                raise _ProtocolError(messages.INVALID_REQUEST, "A request needs a method and an id.")
            handler = {
                "initialize": self._on_initialize,
                **{name: partial(self._on_job, name) for name in messages.JOBS},
                "cancel": self._on_cancel,
                "shutdown": self._on_shutdown,
            }.get(method)
            if handler is None:
                raise _ProtocolError(messages.METHOD_NOT_FOUND, f"There is no method {method!r}.")
            if id is None:
                raise _ProtocolError(messages.INVALID_REQUEST, f"{method} needs an id.")
            handler(id, params)
        except _ProtocolError as error:
            log.warning("refused: %s", error)
            self._send(messages.error_response(id if isinstance(id, int | str) else None, error.code, str(error)))
        except Exception as error:  # whatever came, the next line is read
            log.exception("a message could not be handled")
            self._answer(id, LGMError(f"The worker could not handle a message ({error}). Try again.", "internal"))

    def _on_initialize(self, id: int | str, params: Any) -> None:
        self._work.put(lambda: self._answer(id, _outcome("initialize", lambda: describe(self.log_file))))

    def _on_job(self, method: str, id: int | str, params: Any) -> None:
        name = params.get("job", "") if isinstance(params, dict) else ""
        try:
            request = messages.from_params(messages.JOBS[method][0], params)
            with self._jobs_lock:
                if request.job in self._jobs:
                    raise LGMError(f"There already is a job {request.job!r}. Wait for it.")
                job = self._jobs[request.job] = _Pending(id, method, request)
        except LGMError as error:
            self._answer(id, error, str(name), messages.INVALID_PARAMS)
            return
        self._work.put(lambda: self._run(job))

    def _on_cancel(self, id: int | str, params: Any) -> None:
        name = params.get("job") if isinstance(params, dict) else None
        name = name if isinstance(name, str) else ""
        with self._jobs_lock:
            job = self._jobs.get(name)
            if job:
                job.cancelled.set()
        self._send(messages.response(id, {"job": name, "cancelled": job is not None}))
        if job and self._running is not job:
            self._end(job, Cancelled())

    def _on_shutdown(self, id: int | str, params: Any) -> None:
        self._send(messages.response(id, {}))
        self.leave()

    # Working

    def _run(self, job: _Pending) -> None:
        with self._jobs_lock:
            if job.answered:
                return
            self._running = job
        request = job.request
        log.info("job %s: %s", request.job, {k: v for k, v in asdict(request).items() if v and "prompt" not in k})
        work = getattr(self.pipeline, job.method)
        outcome = _outcome(f"job {request.job}", lambda: work(request, self._progress, job.cancelled.is_set))
        self._end(job, outcome)
        self._running = None
        if isinstance(outcome, LGMError) and outcome.kind == "device":
            self._end_sick()

    def _end_sick(self) -> None:
        """Ends a worker whose GPU has failed: nothing that it asks of it would succeed any more."""
        log.warning("the GPU has failed, and the worker ends")
        with self._jobs_lock:
            waiting = list(self._jobs.values())
        for job in waiting:
            self._end(job, LGMError("The GPU failed in an earlier job. Try again, with a new worker.", "device"))
        self.leave()

    def _end(self, job: _Pending, outcome: Any) -> None:
        """Answers a job, once."""
        with self._jobs_lock:
            if job.answered:
                return
            job.answered = True
            self._jobs.pop(job.request.job, None)
        self._answer(job.id, outcome, job.request.job)

    def _progress(self, progress: Progress) -> None:
        self._send(messages.notification("progress", messages.to_params(progress)))

    # Writing

    def _answer(self, id: int | str | None, outcome: Any, job: str = "", code: int = messages.JOB_FAILED) -> None:
        """Sends a message's dataclass as the result, or an LGMError as the error."""
        if isinstance(outcome, LGMError):
            data = messages.to_params(JobError(job, outcome.kind, self.log_file))
            self._send(messages.error_response(id, code, outcome.message, data))
        else:
            self._send(messages.response(id, messages.to_params(outcome)))

    def _send(self, message: dict[str, Any]) -> None:
        data = memoryview(messages.encode(message))
        try:
            with self._write_lock:
                while data:
                    data = data[os.write(self.stdout, data) :]
        except OSError as error:  # nobody listens any more
            log.warning("stdout can't be written to: %s", error)
            self.leave()


class _ProtocolError(Exception):
    def __init__(self, code: int, sentence: str):
        super().__init__(sentence)
        self.code = code


def _outcome(name: str, work: Callable[[], Any]) -> Any:
    """What `work` returns or, whatever it raises, an LGMError."""
    try:
        return work()
    except LGMError as error:
        log.info("%s: %s: %s", name, error.kind, error.message)
        return error
    except Exception as error:
        log.exception("%s failed", name)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return LGMError(
            f"Something went wrong in the worker ({what}). Try again, or report it with the log.", "internal"
        )


def _outputs(job: _Pending) -> list[str]:
    """Folders that a job writes to."""
    return [job.request.output] if hasattr(job.request, "output") else []


def describe(log_file: str = "") -> Initialized:
    """What this worker is and can do.

    Raises:
        LGMError: (kind 'worker') if its Python lacks a package.
    """
    if missing := [name for name in environment.modules() if importlib.util.find_spec(name) is None]:
        raise LGMError(f"The worker's Python lacks {', '.join(missing)}. Install the worker again.", "worker")
    device = resolve_device("auto")
    return Initialized(
        protocol=messages.PROTOCOL_VERSION,
        version=VERSION,
        python=platform.python_version(),
        torch=version("torch"),
        device=device,
        device_name=device_name(device),
        presets=preset_infos(),
        log=log_file,
        gpus=gpu_count(device),
    )


def start_log() -> Path | None:
    """Sends this process's log into a file that is rotated, and returns it; None if no folder can be written to."""
    chosen = os.environ.get(LOG_VARIABLE)
    # Nobody else's business: logs name the user's files.
    for find in (
        lambda: Path(chosen) if chosen else data_folder() / "logs",
        lambda: private_folder("lgm_blender_logs"),
    ):
        with contextlib.suppress(OSError):  # there may be no temporary folder either
            folder = find()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / "worker.log"
            handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=LOG_SIZE, backupCount=LOG_FILES - 1, encoding="utf-8", errors="backslashreplace"
            )
            handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
            logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
            logging.captureWarnings(True)
            return path
    return None


def _take_standard_streams() -> tuple[int, int]:
    """Descriptors of the real stdin and stdout; then 0 reads nothing and 1 is stderr, for libraries and children."""
    stdin, stdout = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return stdin, stdout


def _lines(descriptor: int) -> Iterator[bytes]:
    """Lines as they come, the last one too if it has no end; of an endless line, pieces.

    Not a buffered file: a thread that waits in one would stop the interpreter from leaving.
    """
    pending = b""
    while block := os.read(descriptor, 1 << 16):
        *lines, pending = (pending + block).split(b"\n")
        yield from lines
        if len(pending) > LINE_LIMIT:
            yield pending
            pending = b""
    yield pending
