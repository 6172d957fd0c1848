"""What cancel.py, faults.py and soak.py share: an engine with folders of its own, inputs, what is left over."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lgm_blender.blender.engine import Engine, Job, worker_command
from lgm_blender.core.messages import GenerateRequest, MeshRequest, Request

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds for anything to happen


class Setup:
    """An engine whose output, temporary files, logs and memory of weights lie below one folder.

    Args:
        folder: Made if missing.
        command: What starts the worker; the real one if None.
        options: The engine's.
    """

    def __init__(self, folder: Path, command: list[str] | None = None, **options):
        self.output, self.temporary = folder / "output", folder / "temporary"
        self.temporary.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(self.temporary)  # the engine's own
        self.image = folder / "apple.png"
        if not self.image.exists():
            draw_picture(self.image)
        variables = {
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.temporary)),
            "XDG_DATA_HOME": str(folder / "data"),
            **options.pop("variables", {}),
        }
        command = command or worker_command(sys.executable, "serve")
        self.engine = Engine(command, variables=variables, logs=folder / "logs", **options)

    def generate(self, **fields) -> GenerateRequest:
        """A request with the picture, few steps and no previews."""
        defaults = {"output": str(self.output), "image": str(self.image), "steps": 2, "device": "cpu"}
        return GenerateRequest(job="", **defaults | fields)

    def mesh(self, splats: str | Path, **fields) -> MeshRequest:
        """A request for a mesh of a file of splats."""
        return MeshRequest(job="", ply=str(splats), output=str(self.output), **{"device": "cpu"} | fields)

    def files(self) -> set[str]:
        """The names of all files in the output folder."""
        return {path.name for path in self.output.rglob("*")} if self.output.exists() else set()

    def scraps(self) -> list[str]:
        """What is left over: temporary files in the output folder, and everything in the temporary one."""
        left = [path for path in self.output.rglob("*") if path.name.startswith(".lgm-")]
        return [str(path) for path in (*left, *self.temporary.iterdir())]

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.002) -> bool:
        """Steps the engine until something is so; whether it came to that."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            self.engine.step()
            time.sleep(pause)
        return True

    def reach(self, request: Request, stage: str, delay: float) -> Job:
        """A job that is so many seconds into a stage, or has ended before."""
        job = self.engine.submit(request)
        self.until(lambda: job.ended or (job.progress and job.progress.stage == stage))
        end = time.monotonic() + delay
        self.until(lambda: job.ended or time.monotonic() >= end)
        return job


def draw_picture(path: Path) -> None:
    """A red apple on white."""
    picture = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((60, 60, 240, 240), fill=(200, 60, 30))
    draw.rectangle((140, 20, 160, 80), fill=(30, 120, 40))
    picture.save(path)


def table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown; numbers to the right."""
    names, rows = list(names), [list(row) for row in rows]
    marks = ["---:" if all(isinstance(row[i], int | float) for row in rows) else "---" for i in range(len(names))]
    return "\n".join(f"| {' | '.join(map(told, row))} |" for row in (names, marks, *rows))


def told(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
