"""What users' files become: every file of a folder through `generate`, `mesh`, the batch and the importer, as a table.

    .venv/bin/python benchmarks/cases.py --inputs FOLDER --blender .venv-blender-5.3/bin/python
    .venv/bin/python benchmarks/cases.py --inputs FOLDER --console cp1252 --locale C     # where little can be printed

Each command runs as a user would start it, in a process whose console has that encoding. It is the inputs that are
tried, so models are those of the tests, tiny and untrained, and meshes small. A cell is 'made', with the warnings, or
the sentence that the user gets; what ends in a traceback is CRASH. Prints a table in Markdown and, last, how many of
each there are as a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / room) for room in (".", "core", "worker"))]
QUICK = {
    "generate": ["--steps", "2"],
    "mesh": ["--faces", "2000", "--texture-size", "512", "--formats", "obj", "glb"],
}
BATCH = ["--steps", "2", "--no-blend", "--no-render"]
BLENDER = str(ROOT / ".venv-blender-5.3" / "bin" / "python")
PARTS = ("generate", "mesh", "batch", "import")

Told = dict[str, list[str]]  # for each file what became of it: 'made', or what was said


class _Late(BaseException):
    """A file takes too long."""


def _give_up(*_) -> None:
    raise _Late


def shell(command: str, files: list[str], options: argparse.Namespace) -> Told:
    """Each file through a command of the worker's, with stdout and stderr of an encoding that may lack its letters."""
    from lgm_blender.worker import pipeline
    from lgm_blender.worker.__main__ import main

    shared = pipeline.Pipeline()
    pipeline.Pipeline = lambda: shared  # the models are loaded once
    signal.signal(signal.SIGALRM, _give_up)
    told = {}
    for file in files:
        signal.alarm(options.patience)
        pipes = [io.TextIOWrapper(io.BytesIO(), options.console) for _ in range(2)]
        arguments = [command, "--output", options.output, *QUICK[command]]
        # An option's value may begin with a dash only where it is joined to it.
        arguments += [f"--image={file}", "--preset", options.preset] if command == "generate" else ["--", file]
        try:
            with contextlib.redirect_stdout(pipes[0]), contextlib.redirect_stderr(pipes[1]):
                code = main(arguments)
            for pipe in pipes:
                pipe.flush()
            said = [line for line in pipes[1].buffer.getvalue().decode(options.console).splitlines() if ": " in line]
            said = [line for line in said if line.startswith(("Warning: ", "Error: "))]
            made = ["made"] if code == 0 else []
            told[file] = made + [line.partition(": ")[2] for line in said]
        except _Late:
            told[file] = [f"not ended after {options.patience} s"]
        except (Exception, SystemExit) as error:
            told[file] = [_crash(error)]
        signal.alarm(0)
    return told


def importer(files: list[str]) -> Told:
    """Each file by Import Splats, in this Blender."""
    import bpy

    import lgm_blender
    from lgm_blender.core.errors import LGMError

    lgm_blender.register()
    from lgm_blender.blender.ui import files as ui

    told = {}
    for file in files:
        said: list[str] = []

        class Importer:
            up, size, warn = "Y", 0.0, staticmethod(said.append)

        try:
            ui._Import.add(Importer(), Path(file), bpy.context.scene)
            told[file] = ["made", *said]
        except LGMError as error:
            told[file] = [error.message]
        except Exception as error:
            told[file] = [_crash(error)]
    return told


def batch(python: str, files: list[str], output: Path, variables: dict[str, str], preset: str) -> Told:
    """All files through the batch at once."""
    script = ROOT / "lgm_blender" / "blender" / "batch.py"
    command = [python, str(script), "--", "--input", *files, "--output", str(output), "--preset", preset, *BATCH]
    done = subprocess.run(command, env=variables, capture_output=True)
    told = {}
    for line in done.stdout.decode().splitlines():
        record = json.loads(line)
        if "input" in record:
            told[record["input"]] = ["made", *record["warnings"]] if record["ok"] else [record["error"]]
    if not told:
        sys.stderr.write(done.stderr.decode(errors="replace")[-3000:])
    return told


def _crash(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"CRASH {type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"


def child(options: argparse.Namespace) -> None:
    """One part, in this process: its answer goes into a file, since stdout may lack letters."""
    files = json.loads(Path(options.files).read_text())
    parts: dict[str, Callable[[], Told]] = {
        "generate": lambda: shell("generate", files, options),
        "mesh": lambda: shell("mesh", files, options),
        "import": lambda: importer(files),
    }
    Path(options.told).write_text(json.dumps(parts[options.part]()))
    sys.stdout.flush()
    os._exit(0)


def run_part(part: str, files: list[str], options: argparse.Namespace, folder: Path) -> Told:
    """One part, in a process with the locale and the console that were asked for."""
    variables = {**os.environ, "LGM_BLENDER_PYTHON": sys.executable, "PYTHONIOENCODING": options.console}
    if options.locale:
        variables |= {"LC_ALL": options.locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    output, preset = folder / part, str(folder / "tiny")
    if part == "batch":
        return batch(options.blender, files, output, variables, preset)
    listed, told = folder / "files.json", folder / f"{part}.json"
    listed.write_text(json.dumps(files))
    command = [options.blender if part == "import" else sys.executable, __file__, "--inputs", "-", "--part", part]
    command += [
        "--files",
        str(listed),
        "--told",
        str(told),
        "--output",
        str(output),
        "--console",
        options.console,
        "--preset",
        preset,
    ]
    command += ["--patience", str(options.patience)]
    done = subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if not told.exists():
        sys.exit(f"{part} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-3000:]}")
    return json.loads(told.read_text())


def cell(told: list[str] | None, file: str) -> str:
    """What was said, without the file's own name."""
    if told is None:
        return "not taken"
    text = "; ".join(told).replace(file, "FILE").replace(file.encode(errors="backslashreplace").decode(), "FILE")
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", required=True, help="a folder")
    parser.add_argument("--blender", default=BLENDER, help="a Python with bpy")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--console", default="utf-8", help="encoding of stdout and stderr")
    parser.add_argument("--locale", default="", help="LC_ALL, with Python's own remedies for C off")
    parser.add_argument("--patience", type=int, default=600, help="seconds for one file")
    for name in ("part", "files", "told", "output", "preset"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        child(options)
    from tiny_preset import write_preset

    top = Path(options.inputs).absolute()
    files = sorted(str(path) for path in top.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as folder:
        write_preset(Path(folder) / "tiny")
        parts = {part: run_part(part, files, options, Path(folder)) for part in options.parts}
    counts = {part: Counter() for part in parts}
    print("| file | " + " | ".join(parts) + " |\n|" + "---|" * (len(parts) + 1))
    for file in files:
        cells = [cell(told.get(file), file) for told in parts.values()]
        name = ascii(str(Path(file).relative_to(top)))[1:-1]
        print(f"| {name if len(name) < 60 else name[:57] + '...'} | " + " | ".join(cells) + " |")
        for part, told in zip(parts, cells, strict=True):
            kind = next((kind for kind in ("made", "CRASH", "not taken") if told.startswith(kind)), "a sentence")
            counts[part][kind] += 1
    print(json.dumps(counts))
    return 1 if any(each["CRASH"] for each in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
