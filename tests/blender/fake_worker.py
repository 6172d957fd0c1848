"""A worker without a model, well or ill behaved. usage: fake_worker.py BEHAVIOUR [PLY]

It speaks the protocol with nothing but the standard library. `generate` takes a few steps of 0.02 s and copies PLY;
meshes are balls with as many faces as are asked for and a texture of the size that is asked for.
"""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

BEHAVIOUR = sys.argv[1] if len(sys.argv) > 1 else "well"
PLY = sys.argv[2] if len(sys.argv) > 2 else ""
STEPS = {"slow": 30, "steady": 200, "deaf": 100000, "long": 100000}.get(BEHAVIOUR, 4)
LOADED = os.environ.get("FAKE_LOADED", "")  # a file that tells what was loaded
cancelled = set()


def send(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def fail(id, job, sentence, kind):
    send({"id": id, "error": {"code": -32000, "message": sentence, "data": {"job": job, "kind": kind, "log": "L"}}})


def picture(path, shade):
    """Four grey views in a row, a PNG of 256 x 64."""

    rows = (b"\0" + b"".join(bytes([(shade + 50 * view) % 256]) * 64 for view in range(4))) * 64
    Path(path).write_bytes(png(256, 64, 0, rows))


def png(width, height, kind, rows):
    """A PNG of 8 bits: kind 0 is grey, 2 RGB, 6 RGBA."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    data = zlib.compress(rows, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ball(path, faces=20000, size=2048, radius=0.5, center=(0.0, 0.0, 0.0)):
    """A GLB as the worker writes it: a ball, red to its left (u < 0.5) and green to its right, its front at u = 0.5."""
    rows = max(3, round(math.sqrt(faces / 4)))
    columns = 2 * rows
    points, uvs, corners = [], [], []
    for i in range(rows + 1):
        for j in range(columns + 1):
            down, around = math.pi * i / rows, 2 * math.pi * (j % columns) / columns
            out = math.sin(down) if 0 < i < rows else 0.0
            normal = (-out * math.sin(around), math.cos(down), -out * math.cos(around))
            points.append([radius * n + c for n, c in zip(normal, center)])  # noqa: B905
            uvs.append((j / columns, i / rows))
    for i in range(rows):
        for j in range(columns):
            a = i * (columns + 1) + j
            b = a + columns + 1
            corners += [] if i == 0 else [a, b + 1, a + 1]
            corners += [] if i == rows - 1 else [a, b, b + 1]
    dots = bytes(range(64)) * (size // 64)
    line = b"".join(bytes((255, d, d) if x < size // 2 else (d, 255, d)) for x, d in enumerate(dots))
    texture = png(size, size, 2, (b"\0" + line) * size)
    parts = [
        struct.pack(f"<{len(corners)}I", *corners),
        struct.pack(f"<{3 * len(points)}f", *(x for point in points for x in point)),
        struct.pack(f"<{2 * len(uvs)}f", *(x for uv in uvs for x in uv)),
        texture,
    ]
    binary, views = b"", []
    for part in parts:
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(part)})
        binary += part + bytes(-len(part) % 4)
    document = {
        "asset": {"version": "2.0"},
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1, "TEXCOORD_0": 2}, "indices": 0, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "roughnessFactor": 0.8}}],
        "textures": [{"source": 0}],
        "images": [{"bufferView": 3, "mimeType": "image/png"}],
        "accessors": [
            {"bufferView": 0, "componentType": 5125, "count": len(corners), "type": "SCALAR"},
            {"bufferView": 1, "componentType": 5126, "count": len(points), "type": "VEC3"},
            {"bufferView": 2, "componentType": 5126, "count": len(uvs), "type": "VEC2"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(binary), len(text), b"JSON")
    Path(path).write_bytes(head + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary)
    return len(corners) // 3


def mesh(id, p):
    job = p["job"]
    if BEHAVIOUR == "refuses":
        return fail(id, job, "There is nothing to make a mesh of: no Gaussian is visible.", "bad_input")
    folder = Path(p["output"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{p['name']}.glb"
    shutil.copyfile(p["ply"], folder / f"{p['name']}_input.ply")
    for step in range(STEPS):
        if job in cancelled:
            return fail(id, job, "Cancelled.", "cancelled")
        progress = {"job": job, "stage": "render", "stage_index": 0, "stages": 6, "step": step, "steps": STEPS}
        send({"method": "progress", "params": {**progress, "preview": None}})
        time.sleep(0.02)
    faces = ball(path, p["faces"], p["texture_size"], center=(1.0, 2.0, 3.0))
    settings = {k: v for k, v in p.items() if k != "job"}
    result = {"job": job, "glb": str(path), "gaussians": 4000, "faces": faces, "settings": settings}
    send({"id": id, "result": {**result, "timings": {"total": 0.1}, "device": "cpu", "warnings": []}})
    return None


def load(id, p):
    job = p["job"]
    for step in range(STEPS):
        if job in cancelled:
            return fail(id, job, "Cancelled.", "cancelled")
        progress = {"job": job, "stage": "load", "stage_index": 0, "stages": 1, "step": step, "steps": 0}
        send({"method": "progress", "params": {**progress, "preview": None}})
        time.sleep(0.02)
    Path(LOADED).write_text(json.dumps(p)) if LOADED else None
    return send({"id": id, "result": {"job": job, "loaded": True, "timings": {"load": 0.1}, "device": "cpu"}})


def convert(id, p):
    job, folder = p["job"], Path(p["output"])
    if "bad" in Path(p["file"]).name:
        return fail(id, job, "The file is damaged.", "bad_input")
    folder.mkdir(parents=True, exist_ok=True)
    endings = {"glb": "_splats.glb", "compressed": ".compressed.ply"}
    files = [folder / (p["name"] + endings.get(name, f".{name}")) for name in p["formats"]]
    for file in files:
        if file != Path(p["file"]):
            shutil.copyfile(PLY, file)
    settings = {k: v for k, v in p.items() if k != "job"}
    result = {"job": job, "files": [str(file) for file in files], "gaussians": 4000, "settings": settings}
    send({"id": id, "result": {**result, "timings": {"read": 0.1, "save": 0.1}, "device": "cpu", "warnings": ["odd"]}})
    return None


def matte(id, p):
    job, folder = p["job"], Path(p["output"])
    if "busy" in Path(p["image"]).name and p["matting"] != "network":
        return fail(id, job, "The background is not plain. Paint a mask.", "matting")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: str(folder / f"{p['name']}_{kind}.png") for kind in ("cutout", "input", "preview")}
    for _ in range(STEPS):
        if job in cancelled:
            return fail(id, job, "Cancelled.", "cancelled")
        time.sleep(0.02)
    line = b"\0" + b"\xff\x40\x20\x00" * 16 + b"\xff\x40\x20\xff" * 16  # its right half is the object
    Path(paths["cutout"]).write_bytes(png(32, 32, 6, line * 32))
    Path(paths["input"]).write_bytes(png(64, 64, 0, (b"\0" + bytes(64)) * 64))
    Path(paths["preview"]).write_bytes(png(128, 64, 0, (b"\0" + bytes(64) + b"\xff" * 64) * 64))
    settings = {k: v for k, v in p.items() if k != "job"}
    used = "mask" if p["mask"] else {"auto": "border"}.get(p["matting"], p["matting"])
    warnings = ["Part of it may be missing."] if "odd" in Path(p["image"]).name else []
    result = {"job": job, **paths, "matting": used, "settings": settings, "timings": {"total": 0.1}}
    send({"id": id, "result": {**result, "device": "cpu", "warnings": warnings}})
    return None


def generate(id, p):
    job = p["job"]
    if BEHAVIOUR == "dies_in_job":
        sys.stderr.write("RuntimeError: the roof is on fire\n")
        os._exit(7)
    if BEHAVIOUR == "killed_in_job":
        os.kill(os.getpid(), 9)
    if BEHAVIOUR == "refuses" or (p["image"] and "bad" in Path(p["image"]).name):
        return fail(id, job, "The image is empty. Choose another one.", "bad_input")
    if BEHAVIOUR == "sick_once" and not Path(p["output"], "sick").exists():
        Path(p["output"]).mkdir(parents=True, exist_ok=True)
        Path(p["output"], "sick").touch()
        return fail(id, job, "The GPU failed (CUDA error: unspecified launch failure). Try again.", "device")
    if BEHAVIOUR == "bad_result":
        return send({"id": id, "result": {"job": job}})
    if BEHAVIOUR == "other_number":
        return send({"id": id + 1000, "result": {"job": job}})
    if BEHAVIOUR == "list_for_a_number":
        return send({"id": [id], "result": {"job": job}})
    if BEHAVIOUR == "no_number":
        return send({"id": None, "error": {"code": -32700, "message": "This line is no message."}})
    while BEHAVIOUR == "floods":
        sys.stdout.write("no message at all\n" * 1000)
        sys.stdout.write('{"jsonrpc": "2.0", "id": 1}\n{"method": ["progress"]}\n')
    folder = Path(p["output"])
    folder.mkdir(parents=True, exist_ok=True)
    if p["image"] and Path(p["image"]).parent.name.startswith("lgm_"):  # what Blender made of an image of its own
        shutil.copyfile(p["image"], folder / f"{Path(p['image']).stem}_seen.bin")
    stem = p["name"] or (Path(p["image"]).stem if p["image"] else "_".join(p["prompt"].split()[:4]))
    name, n = stem, 1
    while any((folder / f"{name}{end}").exists() for end in (".ply", ".glb")) and not p["overwrite"]:
        n += 1
        name = f"{stem}_{n}"
    if BEHAVIOUR == "dies_once" and not (folder / "died").exists():
        (folder / "died").touch()
        os._exit(7)
    if BEHAVIOUR == "killed_while_saving":
        name = os.environ["LGM_BLENDER_OWNER"]
        (folder / f".lgm-{name}-0000.part").write_bytes(b"half")
        Path(tempfile.gettempdir(), f"lgm_blender_previews_{name}_0").mkdir()
        os.kill(os.getpid(), 9)
    for step in range(STEPS):
        if job in cancelled:
            return fail(id, job, "Cancelled.", "cancelled")
        preview = None
        if p["previews"]:
            preview = str(folder / f"preview_{job}_{step}.png")
            picture(preview, 40 * step % 255)
        progress = {"job": job, "stage": "views", "stage_index": 2, "stages": 5, "step": step + 1, "steps": STEPS}
        send({"method": "progress", "params": {**progress, "preview": preview}})
        if BEHAVIOUR == "chatty":
            print("a library says something on stdout")
            sys.stdout.write("x" * (2 << 20) + "\n")
            sys.stdout.write("[1, 2]\n{\n\xff\n")
        time.sleep(0.02)
    paths = {kind: str(folder / (name + end)) for kind, end in (("ply", ".ply"), ("views", "_views.png"))}
    if p["output_kind"] == "mesh":
        paths["ply"] = None
    else:
        shutil.copyfile(PLY, paths["ply"]) if PLY else Path(paths["ply"]).write_bytes(b"ply\n")
    faces = 0
    if p["output_kind"] != "splats":
        paths["glb"] = str(folder / f"{name}.glb")
        faces = ball(paths["glb"], p["faces"], p["texture_size"])
    picture(paths["views"], 200)
    settings = {**{k: v for k, v in p.items() if k != "job"}, "steps": STEPS, "guidance": 5.0, "name": name}
    result = {
        "job": "another" if BEHAVIOUR == "other_job" else job,
        **paths,
        "input": None,
        "json": str(folder / f"{name}.json"),
        "gaussians": 4000,
        "faces": faces,
        "settings": settings,
        "versions": {"python": sys.version.split()[0]},
        "timings": {"views": 0.1, "total": 0.1},
        "device": "cpu",
        "warnings": [],
    }
    Path(result["json"]).write_text(json.dumps(result, indent=2))
    send({"id": id, "result": result})
    if BEHAVIOUR == "answers_twice":
        send({"id": id, "result": result})
    return None


def sample(id, p):
    """Four grey views of each seed, as dark as the seed; the last seed agrees best."""
    job, folder = p["job"], Path(p["output"])
    if BEHAVIOUR == "refuses":
        return fail(id, job, "The image is empty. Choose another one.", "bad_input")
    folder.mkdir(parents=True, exist_ok=True)
    candidates = []
    for seed in p["seeds"]:
        files = [str(folder / f"{job}_{seed}_{view}.png") for view in ("front", "right", "back", "left")]
        for i, file in enumerate(files):
            shade = bytes([(seed + 10 * i) % 256])
            Path(file).write_bytes(png(64, 64, 0, (b"\0" + shade * 64) * 64))
        candidates.insert(0, {"seed": seed, "views": files, "agreement": 0.5})
    settings = {k: v for k, v in p.items() if k != "job"} | {"steps": STEPS, "guidance": 5.0, "name": p["name"] or "it"}
    settings |= {"generated": [not kept for kept in p["kept"]] or [True] * 4, "scheduler": "ddim", "matting": "none"}
    result = {"job": job, "candidates": candidates, "input": None, "settings": settings, "versions": {}}
    send({"id": id, "result": {**result, "timings": {"total": 0.1}, "device": "cpu", "warnings": []}})
    return None


def reconstruct(id, p):
    """PLY, whatever the views are; notes what it got in a file beside it."""
    job, folder = p["job"], Path(p["output"])
    if BEHAVIOUR == "refuses":
        return fail(id, job, "The view from the back is empty. Choose another one.", "bad_input")
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(STEPS):
        if job in cancelled:
            return fail(id, job, "Cancelled.", "cancelled")
        time.sleep(0.02)
    name = p["name"] or "views"
    path = folder / f"{name}.ply"
    shutil.copyfile(PLY, path)
    with (folder / f"{name}_seen.txt").open("a") as seen:
        seen.write(json.dumps([zlib.crc32(Path(file).read_bytes()) for file in p["views"]]) + "\n")
    settings = {k: v for k, v in p.items() if k not in ("job", "facts")} | p["facts"] | {"name": name, "mode": "views"}
    result = {"job": job, "ply": str(path), "views": "", "input": None, "json": "", "gaussians": 4000}
    if not p["quick"]:
        result |= {"views": str(folder / f"{name}_views.png"), "json": str(folder / f"{name}.json")}
        picture(result["views"], 100)
    result |= {"settings": settings, "versions": {}, "timings": {"total": 0.1}, "device": "cpu", "warnings": []}
    if not p["quick"]:
        Path(result["json"]).write_text(json.dumps(result))
    send({"id": id, "result": result})
    return None


JOBS = {
    "generate": generate,
    "sample": sample,
    "reconstruct": reconstruct,
    "mesh": mesh,
    "convert": convert,
    "load": load,
    "matte": matte,
}


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
            presets[1]["terms"] = "a/b: 1 GB, licence MIT\nThey go into the cache"
            info = {"protocol": 99 if BEHAVIOUR == "old" else 5, "version": "0", "python": "3", "torch": "0"}
            if BEHAVIOUR == "parent":
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
                info["python"] = str(child.pid)
            info |= {"device": "cpu", "device_name": "a CPU", "presets": presets, "log": os.environ.get("FAKE_LOG", "")}
            send({"id": m["id"], "result": info})
            if BEHAVIOUR == "mute":
                os.close(1)
        elif method in JOBS:
            queue.append((JOBS[method], m["id"], p))
        elif method == "cancel":
            if BEHAVIOUR != "deaf":
                cancelled.add(p["job"])
                send({"id": m["id"], "result": {"job": p["job"], "cancelled": True}})
        elif method == "shutdown" and BEHAVIOUR not in ("deaf", "parent"):
            break
    if BEHAVIOUR in ("deaf", "parent"):
        time.sleep(1000)


queue = []


def jobs():
    while True:
        if queue:
            job, id, p = queue.pop(0)
            job(id, p)
        else:
            time.sleep(0.005)


if __name__ == "__main__":
    if BEHAVIOUR == "dies_at_start":
        sys.stderr.write("Traceback\nModuleNotFoundError: No module named 'torch'\n")
        sys.exit(1)
    if BEHAVIOUR == "prints_garbage":
        while True:
            sys.stdout.buffer.write(bytes(range(256)) + b"\n{}\n[1]\n" + b"[" * 5000 + b"\n")
            sys.stdout.flush()
            time.sleep(0.001)
    if BEHAVIOUR == "mute_at_once":
        os.close(1)
        time.sleep(1000)
    if BEHAVIOUR == "haunted":  # dies, and leaves a child that holds its pipes
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
        sys.exit(3)
    run()
