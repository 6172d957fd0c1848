"""All tests, in every Blender whose Python is here and in the worker's environment; and lint."""

from __future__ import annotations

import json
import shutil
from typing import NamedTuple

import tools
from lgm_blender.core.environment import PYTHON_VARIABLE, package_name, requirements

from . import environments
from .environments import BLENDERS, Environment, test_requirements
from .terminal import call

TEST_TIMEOUT = 300  # seconds that one test may take on a busy machine
ROOMS = {room: room for room in ("core", "blender", "worker", "training")} | {"build": "test_build.py"}  # their tests
NO_TESTS = 5  # pytest's exit code when no test was chosen

# pytest, counting, in a process that can't hang at its end as Blender may (it does if a timer or handler is left).
RUN_PYTEST = """
import json, os, pathlib, sys
import pytest

class Counter:
    def pytest_terminal_summary(self, terminalreporter):
        counts = {kind: len(terminalreporter.getreports(kind)) for kind in ("passed", "failed", "error", "skipped")}
        pathlib.Path(sys.argv[1]).write_text(json.dumps(counts), encoding="utf-8")

code = pytest.main(sys.argv[2:], plugins=[Counter()])
sys.stdout.flush()
sys.stderr.flush()
os._exit(int(code))
"""


class TestRun(NamedTuple):
    """One run of pytest: in an environment, for some of the rooms."""

    target: Environment
    rooms: tuple[str, ...]


def test(arguments: list[str]) -> int:
    """All tests: core's and blender's in every Blender whose Python is here, and the worker's where torch is.

    Args:
        arguments: pytest's; files and folders go to the runs that they belong to.

    Returns:
        0 if all passed.
    """
    (tools.BUILD / "logs").mkdir(parents=True, exist_ok=True)
    more = test_requirements()
    # Blender and torch never share a process when they are used, so they don't here.
    worker = environments.worker_environment([*requirements("training"), *requirements("worker/scale"), *more])
    runs = [TestRun(worker, ("worker", "training"))]
    for version, python in dict([environments.blender_python(), *environments.find_pythons().items()]).items():
        for blender in reversed(BLENDERS.get(version, ())):
            rooms = ("core", "blender", *(["build"] if len(runs) == 1 else []))
            runs.append(TestRun(environments.blender_environment(blender, python, more), rooms))
    free = shutil.disk_usage(tools.ROOT).free / 1e9
    print("Testing in " + "; ".join(str(run.target) for run in runs) + f"; {free:.0f} GB of disk are free", flush=True)
    results = [(run, run_pytest(run, worker, arguments)) for run in runs]
    print()
    for run, (code, counts) in results:
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or f"no tests (pytest's code {code})"
        print(f"{run.target}: {said}")
    passed, failed, errors, skipped = (
        sum(counts.get(kind, 0) for _, (_, counts) in results) for kind in ("passed", "failed", "error", "skipped")
    )
    print(f"{passed} passed, {failed + errors} failed, {skipped} skipped", flush=True)
    codes = {code for _, (code, _) in results}
    if codes <= {0, NO_TESTS}:
        return min(codes)  # a filter may leave one run without tests, but not all
    return 1


def run_pytest(run: TestRun, worker: Environment, arguments: list[str]) -> tuple[int, dict[str, int]]:
    """Runs the tests of a run, or those of them that the arguments name; pytest's exit code, and how many did what."""
    chosen = [argument for argument in arguments if room_of(argument)]
    paths = [path for path in chosen or ["tests"] if room_of(path) in (*run.rooms, "all")]
    if not paths:
        return NO_TESTS, {}
    if any(room_of(path) == "all" for path in paths):
        paths = [f"tests/{ROOMS[room]}" for room in run.rooms]
    report = tools.BUILD / "logs" / f"pytest-{run.target.folder.name.lstrip('.')}.json"
    report.unlink(missing_ok=True)
    rest = [argument for argument in arguments if argument not in chosen]
    settings = ["-o", f"cache_dir={tools.BUILD / 'pytest'}", f"--timeout={TEST_TIMEOUT}"]
    # Where even that can't end a test (compiled code that waits), the run ends.
    settings += ["-o", f"faulthandler_timeout={2 * TEST_TIMEOUT}", "-o", "faulthandler_exit_on_timeout=true"]
    print(f"\n{run.target}: {', '.join(paths)}", flush=True)
    command = [run.target.python, "-c", RUN_PYTEST, report, *paths, *settings, *rest]
    code = call(command, {PYTHON_VARIABLE: str(worker.python)})
    counts = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return code, {kind: count for kind, count in counts.items() if count}


def room_of(argument: str) -> str:
    """The room whose tests a pytest argument names, 'all' for tests/ itself, '' if it names none.

    For example 'core' for tests/core, or for tests/core/test_ply.py::test_round_trip.
    """
    path = (tools.ROOT / argument.split("::")[0]).resolve()
    if path == tools.ROOT / "tests":
        return "all"
    for room, pattern in ROOMS.items():
        top = tools.ROOT / "tests" / pattern
        if path == top or (path.suffix == ".py" and top in path.parents):
            return room
    return ""


def lint() -> int:
    """Ruff's rules and its format; 0 if both are kept."""
    wanted = [line for line in test_requirements() if package_name(line) == "ruff"]
    folder = tools.BUILD / "lint"
    target = environments.make(folder, wanted, lambda: [environments.this_python()[1]], "import ruff; print('ruff')")
    ruff, cache = [target.python, "-m", "ruff"], {"RUFF_CACHE_DIR": str(tools.BUILD / "ruff")}
    return max(call([*ruff, *words, "."], cache) for words in (["check"], ["format", "--check"]))
