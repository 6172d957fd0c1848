"""worker/memory.py: a job that needs too much fails with a sentence, and its worker is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from lgm_blender.core.messages import GenerateRequest, encode, request, to_params
from lgm_blender.worker.memory import GB, resident_memory, watch_memory


def test_it_is_seen_what_this_process_holds():
    before = resident_memory()
    held = bytearray(200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert resident_memory() - before > 150 << 20
    told = []
    watch = watch_memory(resident_memory() / GB - 0.05, told.append, interval=0.01)
    while not told:
        time.sleep(0.01)
    watch.set()
    assert "--memory" in told[0]
    assert not watch_memory(1000, told.append).is_set()


def test_a_worker_with_too_much_ends_and_says_so(tmp_path):
    """At rest it holds more than 10 MB too, which is no reason to leave: there is nobody to tell."""
    command = [sys.executable, "-m", "lgm_blender.worker", "serve", "--memory", "0.01"]
    ask = encode(request(1, "generate", to_params(GenerateRequest("j", str(tmp_path), prompt="a cup"))))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    ) as worker:
        worker.stdin.write(encode(request(0, "initialize")))
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline())["result"]["gpus"] >= 0
        worker.stdin.write(ask)
        worker.stdin.flush()
        answers = [json.loads(line) for line in worker.stdout]  # until it leaves
        worker.wait(10)
    error = next(answer["error"] for answer in answers if answer.get("id") == 1)
    assert error["data"]["kind"] == "out_of_memory"
    assert "of 0.01 GB" in error["message"]
    assert not list(tmp_path.iterdir())
