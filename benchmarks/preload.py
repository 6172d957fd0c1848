"""Seconds from a click to splats, without and with the models loaded ahead: python benchmarks/preload.py

Run it in any Python; the worker runs in --python. The cactus of docs/samples, the preset mini.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lgm_blender.blender.engine import Engine, worker_command  # noqa: E402
from lgm_blender.core.messages import GenerateRequest, LoadRequest  # noqa: E402


def click(python: Path, ahead: bool, device: str) -> dict[str, float]:
    """Seconds of one first click: to the first sampled step and to the splats; and those of loading ahead."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(worker_command(python, "serve"), logs=Path(folder) / "logs")
        try:
            began = time.monotonic()
            if ahead:
                engine.wait(engine.submit(LoadRequest("", device=device)))
            loaded = time.monotonic()
            request = GenerateRequest(
                *("", str(Path(folder) / "out"), str(ROOT / "docs" / "samples" / "cactus.png")),
                elevation=10.0,
                device=device,
            )
            first: list[float] = []

            def hear(job) -> None:
                if not first and job.progress and job.progress.stage == "views":
                    first.append(time.monotonic() - loaded)

            engine.wait(engine.submit(request), hear)
            return {"ahead": loaded - began, "first step": first[0], "splats": time.monotonic() - loaded}
        finally:
            engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, default=ROOT / ".venv" / "bin" / "python")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(options.repeat):
        for ahead, done in runs.items():  # in turn, as the machine may be busy
            done.append(click(options.python, ahead, options.device))
            print("ahead" if ahead else "cold", json.dumps(done[-1]), flush=True)
    medians = {
        ("loaded ahead" if ahead else "cold"): {k: round(statistics.median(r[k] for r in done), 2) for k in done[0]}
        for ahead, done in runs.items()
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
