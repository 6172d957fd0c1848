"""Files that are damaged, or made to do damage: thousands of each kind through the readers of users' files.

    .venv/bin/python benchmarks/fuzz.py                           # 10,000 of each kind
    .venv/bin/python benchmarks/fuzz.py --inputs 500 --kinds PLY SPZ
    .venv/bin/python benchmarks/fuzz.py --only PLY:1234           # one of them, here, with its traceback

Each input is made from a valid file by mutations.py and follows from its number. It is read in a process of its own
kind, which is ended if an input takes longer than 10 s of computing, and which may take 1 GB of
address space more than it has after a valid file. Wrong is: the process dies, an exception that is no LGMError, a
MemoryError even if somebody caught it, and an LGMError that doesn't say what to do. Such inputs are kept in build/fuzz.
Prints a table and, last, a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fuzz_kinds import KINDS, ROOT, Kind
from remedies import has_remedy

from lgm_blender.core.errors import LGMError

SECONDS, PATIENCE, MEMORY = 10.0, 60.0, 1 << 30  # of computing, of waiting, of memory
TICKS = os.sysconf("SC_CLK_TCK")
KEPT = ROOT / "build" / "fuzz"
OUTCOMES = ("read", "refused", "crashed", "hung", "over memory", "no remedy")


@dataclass
class Row:
    """What became of the inputs of a kind."""

    kind: str
    inputs: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    seconds: float = 0.0  # of the slowest
    megabytes: float = 0.0  # of the largest, beyond what the process had before
    notes: dict[str, list[int]] = field(default_factory=dict)  # what was wrong: numbers of inputs

    def add(self, number: int, outcome: str, seconds: float, megabytes: float, note: str) -> None:
        self.inputs += 1
        self.counts[outcome] += 1
        self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)
        if outcome not in ("read", "refused"):
            self.notes.setdefault(f"{outcome}: {note}", []).append(number)


def make(kind: Kind, seeds: list[tuple[str, bytes]], number: int, folder: Path) -> Path:
    """The file of a number."""
    rng = random.Random(number)
    suffix, data = seeds[number % len(seeds)]
    lead = number % len(seeds)
    path = folder / f"{lead}{suffix}"
    path.write_bytes(kind.change(suffix)(data, rng))
    return path


def read(kind: Kind, path: Path) -> tuple[str, str]:
    """What becomes of a file, and what is wrong with that."""
    try:
        kind.read(path)
    except LGMError as error:
        if memory := _memory_error(error):
            return "over memory", memory
        return ("refused", "") if has_remedy(error.message) else ("no remedy", error.message[:300])
    except MemoryError as error:
        return "over memory", _place(error)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {str(error)[:200]} {_place(error)}"
    return "read", ""


def _memory_error(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, MemoryError):
            return _place(error)
        error = error.__cause__ or error.__context__
    return ""


def _place(error: BaseException) -> str:
    """The last lines of ours that an exception went through."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "lgm_blender" in f.filename or "fuzz" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-3:]))


def work(name: str, seeds: list[tuple[str, bytes]], numbers: range, current, pipe) -> None:
    """In a process of its own: reads the inputs of these numbers, telling which is under way and what became of it."""
    kind = KINDS[name]
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    faulthandler.disable()
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    for suffix, data in seeds:  # valid ones first: what is imported and kept is no input's
        path = folder / f"{seeds.index((suffix, data))}{suffix}"
        path.write_bytes(data)
        read(kind, path)
    size = int(_status("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    results = []
    for number in numbers:
        path = make(kind, seeds, number, folder)
        current[0], current[1], current[2] = number, time.monotonic(), time.process_time()
        _reset_peak()
        before, began = _status("VmRSS"), time.process_time()
        outcome, note = read(kind, path)
        seconds, megabytes = time.process_time() - began, (_status("VmHWM") - before) / 1e6
        if outcome == "read" and megabytes > MEMORY / 1e6:
            outcome, note = "over memory", f"{megabytes:.0f} MB"
        results.append((number, outcome, seconds, megabytes, note))
        current[1] = 0.0
        if len(results) >= 50 or outcome not in ("read", "refused"):
            pipe.send(results)
            results = []
    pipe.send(results)
    pipe.close()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _is_late(pid: int, began: float, computed: float) -> bool:
    """Whether an input has been computed for too long, on a busy machine too, or waits for something."""
    if time.monotonic() - began > PATIENCE:
        return True
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS - computed > SECONDS
    return False


def _status(name: str) -> float:
    """A number of bytes from /proc/self/status."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 - thousands of times
        for line in file:
            if line.startswith(name.encode()):
                return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")


def fuzz(name: str, first: int, count: int) -> Row:
    """All inputs of a kind, in as many processes after each other as it takes."""
    row, seeds = Row(name), KINDS[name].seeds()
    number, end = first, first + count
    context = multiprocessing.get_context("fork")
    while number < end:
        current = context.Array(ctypes.c_double, [number, 0.0, 0.0], lock=False)
        ours, theirs = context.Pipe(False)
        process = context.Process(target=work, args=(name, seeds, range(number, end), current, theirs))
        process.start()
        theirs.close()
        outcome = ""
        while not outcome:
            with contextlib.suppress(EOFError):
                while ours.poll(0.1):
                    for result in ours.recv():
                        row.add(*result)
                        number = result[0] + 1
            _, began, computed = current[:]  # at once: the process changes it
            if began and _is_late(process.pid, began, computed):
                outcome = "hung"
                process.kill()
            elif not process.is_alive():
                outcome = "ended" if number >= end else "crashed"
        with contextlib.suppress(EOFError):
            while ours.poll(0):
                for result in ours.recv():
                    row.add(*result)
                    number = result[0] + 1
        process.join()
        if number < end:  # those whose results were not yet told are read again, but for the last one
            last = int(current[0])
            lost = range(number, last)
            if lost:
                again = fuzz_quietly(name, seeds, lost)
                for result in again:
                    row.add(*result)
            row.add(last, outcome, SECONDS if outcome == "hung" else 0.0, 0.0, f"exit code {process.exitcode}")
            number = last + 1
    return row


def fuzz_quietly(name: str, seeds, numbers: range) -> list:
    """Inputs that were read once without harm, for their results."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(False)
    current = context.Array(ctypes.c_double, [numbers[0], 0.0, 0.0], lock=False)
    process = context.Process(target=work, args=(name, seeds, numbers, current, theirs))
    process.start()
    theirs.close()
    results = []
    with contextlib.suppress(EOFError):
        while True:
            results += ours.recv()
    process.join()
    return results


def keep(row: Row) -> None:
    """The first inputs of each thing that was wrong, in build/fuzz."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kind, seeds = KINDS[row.kind], KINDS[row.kind].seeds()
    for numbers in row.notes.values():
        with tempfile.TemporaryDirectory() as folder:
            path = make(kind, seeds, numbers[0], Path(folder))
            shutil.copy(path, KEPT / f"{row.kind.replace(' ', '_')}-{numbers[0]}{path.suffix}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="read one input in this process")
    options = parser.parse_args()
    if options.only:
        name, _, number = options.only.rpartition(":")
        with tempfile.TemporaryDirectory() as folder:
            path = make(KINDS[name], KINDS[name].seeds(), int(number), Path(folder))
            print(path.read_bytes()[:2000])
            KINDS[name].read(path)
        return 0
    rows = []
    print("| kind | inputs | " + " | ".join(OUTCOMES) + " | worst s | worst MB |")
    print("|---|" + "---:|" * (len(OUTCOMES) + 3))
    for name in options.kinds:
        row = fuzz(name, options.first, options.inputs)
        rows.append(row)
        counts = " | ".join(f"{row.counts[outcome]:,}" for outcome in OUTCOMES)
        print(f"| {name} | {row.inputs:,} | {counts} | {row.seconds:.2f} | {row.megabytes:.0f} |", flush=True)
        for note, numbers in sorted(row.notes.items(), key=lambda item: -len(item[1]))[:40]:
            print(f"    {len(numbers)} x {note} ({name}:{numbers[0]})", file=sys.stderr, flush=True)
        keep(row)
    print(json.dumps([asdict(row) for row in rows]))
    return 0 if all(row.counts["read"] + row.counts["refused"] == row.inputs for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
