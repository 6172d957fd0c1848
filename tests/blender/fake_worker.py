"""A worker without a model, well or ill behaved. usage: fake_worker.py BEHAVIOUR [PLY]

It speaks the protocol with nothing but the standard library. `generate` takes a few steps of 0.02 s and copies PLY.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

BEHAVIOUR = sys.argv[1] if len(sys.argv) > 1 else "well"
PLY = sys.argv[2] if len(sys.argv) > 2 else ""
STEPS = {"slow": 30, "steady": 200, "deaf": 100000, "long": 100000}.get(BEHAVIOUR, 4)
cancelled = set()


def send(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def fail(id, job, sentence, kind):
    send({"id": id, "error": {"code": -32000, "message": sentence, "data": {"job": job, "kind": kind, "log": "L"}}})


def picture(path, shade):
    """Four grey views in a row, a PNG of 256 x 64."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"".join(bytes([(shade + 50 * view) % 256]) * 64 for view in range(4))) * 64
    header = struct.pack(">IIBBBBB", 256, 64, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    Path(path).write_bytes(png)


def generate(id, p):
    job = p["job"]
    if BEHAVIOUR == "dies_in_job":
        sys.stderr.write("RuntimeError: the roof is on fire\n")
        os._exit(7)
    if BEHAVIOUR == "killed_in_job":
        os.kill(os.getpid(), 9)
    if BEHAVIOUR == "refuses" or (p["image"] and "bad" in Path(p["image"]).name):
        return fail(id, job, "The image is empty. Choose another one.", "bad_input")
    if BEHAVIOUR == "bad_result":
        return send({"id": id, "result": {"job": job}})
    folder = Path(p["output"])
    folder.mkdir(parents=True, exist_ok=True)
    stem = p["name"] or (Path(p["image"]).stem if p["image"] else "_".join(p["prompt"].split()[:4]))
    name, n = stem, 1
    while (folder / f"{name}.ply").exists() and not p["overwrite"]:
        n += 1
        name = f"{stem}_{n}"
    if BEHAVIOUR == "dies_once" and not (folder / "died").exists():
        (folder / "died").touch()
        os._exit(7)
    for step in range(STEPS):
        if job in cancelled:
            return fail(id, job, "Cancelled.", "cancelled")
        preview = None
        if p["previews"]:
            preview = str(folder / f"preview_{job}_{step}.png")
            picture(preview, 40 * step % 255)
        progress = {"job": job, "stage": "views", "stage_index": 2, "stages": 5, "step": step + 1, "steps": STEPS}
        send({"method": "progress", "params": {**progress, "message": "", "preview": preview}})
        if BEHAVIOUR == "chatty":
            print("a library says something on stdout")
            sys.stdout.write("x" * (2 << 20) + "\n")
            sys.stdout.write("[1, 2]\n{\n\xff\n")
        time.sleep(0.02)
    paths = {kind: str(folder / (name + end)) for kind, end in (("ply", ".ply"), ("views", "_views.png"))}
    shutil.copyfile(PLY, paths["ply"]) if PLY else Path(paths["ply"]).write_bytes(b"ply\n")
    picture(paths["views"], 200)
    settings = {**{k: v for k, v in p.items() if k != "job"}, "steps": STEPS, "guidance": 5.0, "name": name}
    result = {
        "job": job,
        **paths,
        "input": None,
        "json": str(folder / f"{name}.json"),
        "gaussians": 4000,
        "settings": settings,
        "versions": {"python": sys.version.split()[0]},
        "timings": {"views": 0.1, "total": 0.1},
        "device": "cpu",
        "warnings": [],
    }
    Path(result["json"]).write_text(json.dumps(result, indent=2))
    send({"id": id, "result": result})


def run():
    threading.Thread(target=jobs, daemon=True).start()
    for line in sys.stdin:
        m = json.loads(line)
        method, p = m["method"], m["params"]
        if method == "initialize":
            if BEHAVIOUR == "silent":
                continue
            presets = [
                {"name": "mini", "label": "Mini", "modes": ["image"], "ready": True, "problem": ""},
                {"name": "lgm", "label": "LGM", "modes": ["image", "text"], "ready": False, "problem": "Not fetched."},
            ]
            info = {"protocol": 99 if BEHAVIOUR == "old" else 1, "version": "0", "python": "3", "torch": "0"}
            info |= {"device": "cpu", "device_name": "a CPU", "presets": presets, "log": os.environ.get("FAKE_LOG", "")}
            send({"id": m["id"], "result": info})
            if BEHAVIOUR == "mute":
                os.close(1)
        elif method == "generate":
            queue.append((m["id"], p))
        elif method == "cancel":
            if BEHAVIOUR != "deaf":
                cancelled.add(p["job"])
                send({"id": m["id"], "result": {"job": p["job"], "cancelled": True}})
        elif method == "shutdown" and BEHAVIOUR != "deaf":
            break
    if BEHAVIOUR == "deaf":
        time.sleep(1000)


queue = []


def jobs():
    while True:
        if queue:
            generate(*queue.pop(0))
        else:
            time.sleep(0.005)


if BEHAVIOUR == "dies_at_start":
    sys.stderr.write("Traceback\nModuleNotFoundError: No module named 'torch'\n")
    sys.exit(1)
if BEHAVIOUR == "haunted":  # dies, and leaves a child that holds its pipes
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    sys.exit(3)
run()
