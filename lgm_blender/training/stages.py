"""The stages that make the bundled models, in the order in which benchmarks/train_mini.sh runs them.

Each takes its command line's options and reads what the ones before it left in the folder --work. A set
of objects is named SPLIT or SPLIT-VARIANT, with -placed for objects as large as in use: train, val, train-1,
procedural, train-3-placed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPTokenizer

from ..core.cameras import evaluation_poses, view_poses
from ..core.errors import LGMError
from ..worker import reconstruct
from ..worker.lgm.model import LGM_CONFIGS
from ..worker.multiview.loading import load_vae
from ..worker.presets import file_table, find_preset
from ..worker.quantization import load_file, save_file
from .data.captions import make_tokenizer
from .data.generated import Generated
from .data.generated import generate as generate_views
from .data.latents import EncodedOrbits
from .data.objects import join_objects, read_index, read_object
from .data.orbits import orbit_starts, placed_poses, render_orbits, render_placed
from .data.procedural import procedural
from .data.variants import read_varied
from .data.view_files import Cameras, photos_path, render_objects
from .data.views import TrainingViews
from .loops.lgm import train_lgm
from .loops.lpips import LPIPS
from .loops.multiview import MultiViewModel, save_multiview, train_multiview, unpack_multiview
from .loops.trainer import Log, fast_arithmetic, process_device, processes
from .loops.vae import train_vae
from .settings import LGMSettings, MultiViewSettings, RunSettings, VAESettings

# The bundled preset's preset.json, but for its files.
PRESET = {
    "name": "mini",
    "label": "Mini (bundled)",
    "version": "10",
    "modes": ["image", "text"],
    "steps": {"image": 10, "text": 20},
    "guidance": {"image": 2.5, "text": 4.0},
    "scheduler": "DPMSolverMultistepScheduler",
    "negative_prompt": "",
    "match_colors": True,
    "keep_image": True,
    "samples": {"image": 1},
    "refine": True,
    "tell_generated": True,
    "remove_floaters": True,
}


class Sets:
    """The sets of a work folder: their objects, cameras and files. Makes the folder, and this process ready to run."""

    def __init__(self, options: argparse.Namespace):
        self.work, self.options = options.work, options
        self.work.mkdir(parents=True, exist_ok=True)
        self.device = process_device()
        fast_arithmetic()
        index = read_index(options.objects)
        self.objects = {s: [each for each in index if each["split"] == s][: options.limit] for s in ("train", "val")}

    @staticmethod
    def split(name: str) -> str:
        """'train-1' is the first variant of the objects of 'train'."""
        return name.split("-")[0]

    def ids(self, name: str) -> list[str]:
        """The objects of a set."""
        if self.split(name) != "procedural":
            return [entry["id"] for entry in self.objects[self.split(name)]]
        count, rendered = getattr(self.options, "procedural", 0), next(self.work.glob("procedural*.npy"), None)
        if not count and rendered:
            count = len(np.load(rendered, mmap_mode="r"))
        return [f"procedural-{i:05}" for i in range(count)]

    def cameras(self, name: str) -> Cameras:
        """Those of a set of views, or of placed objects."""
        if self.split(name) == "val":
            return evaluation_poses
        return placed_poses if name.endswith("-placed") else partial(view_poses, count=self.options.views)

    def file(self, name: str, kind: str = "npy") -> Path:
        """Of a set: its views (or placed objects), its 'orbits.npy', or its 'generated.npz' views."""
        return self.work / f"{name}.{kind}"

    def views(self, *names: str) -> TrainingViews:
        """The views of sets with the same cameras, on the device."""
        start, files = time.monotonic(), [(self.file(name), self.ids(name)) for name in names]
        result = TrainingViews.from_files(files, self.device, self.cameras(names[0]))
        print(f"{', '.join(names)}: {len(result)} objects loaded in {time.monotonic() - start:.0f} s", flush=True)
        return result

    def generated(self, *names: str) -> Generated | None:
        """What the multi-view model made of sets of placed objects; None of no sets."""
        files = [self.file(name, "generated.npz") for name in names]
        return Generated.load(files, self.views(*names)) if names else None

    def lpips(self) -> LPIPS | None:
        """The network of --lpips."""
        return LPIPS.from_file(self.options.lpips).to(self.device) if self.options.lpips else None

    def settings(self, kind: type[RunSettings], **changed: Any) -> Any:
        """A training's settings: what the options give of them."""
        names = {each.name for each in fields(kind)}
        return kind(**{name: value for name, value in vars(self.options).items() if name in names} | changed)

    def tell_memory(self) -> None:
        """How much of the GPU's memory it took."""
        if self.device.type == "cuda":
            print(json.dumps({"peak_gb": torch.cuda.max_memory_allocated() / 1e9}))


def join(options: argparse.Namespace) -> None:
    """Make one objects.zip of several."""
    print(f"{join_objects(options.archives, options.output)} objects")


def render(options: argparse.Namespace) -> None:
    """Render objects of an objects.zip, variants of them or procedural shapes into sets."""
    sets = Sets(options)
    for split in ["procedural"] if options.procedural else options.split:
        start, name, read = time.monotonic(), split, partial(read_object, options.objects)
        if options.procedural:
            read = procedural
        elif options.variant:
            name, read = f"{split}-{options.variant}", partial(read_varied, options.objects, options.variant)
        ids = sets.ids(split)
        if options.kind == "orbits":
            path = sets.file(name, "orbits.npy")
            empty = render_orbits(read, ids, options.size, path, options.processes, name)
        elif options.kind == "placed":
            path, cameras = sets.file(f"{name}-placed"), sets.cameras(f"{name}-placed")
            empty = render_placed(read, ids, options.size, path, options.processes, cameras, split != "val", name)
        else:
            path = sets.file(name)
            empty = render_objects(read, ids, options.size, path, options.processes, sets.cameras(name))
        print(f"{path.stem}: {len(ids)} objects in {time.monotonic() - start:.0f} s, hardly visible: {empty}")


def vae(options: argparse.Namespace) -> None:
    """Train the VAE on sets of views."""
    sets, changed = Sets(options), {}
    if "init" in options:
        _unpack(options.init, sets.work)
        changed["init"] = sets.work / "vae"
    settings = sets.settings(VAESettings, **changed)
    train_vae(sets.views(*options.sets), sets.work / "vae", settings, lpips=sets.lpips())
    sets.tell_memory()


def _unpack(multiview: Path, work: Path) -> None:
    """A preset's multiview/ to what the stages leave, once for all processes."""
    if processes().is_main_process:
        unpack_multiview(multiview, work)
    processes().wait_for_everyone()


class Orbits:
    """Sets of orbits as the VAE encodes them, with their captions and the tokenizer of these."""

    def __init__(self, sets: Sets):
        self.sets = sets
        folder = sets.work / "vae"
        if not (folder / "config.json").exists():
            raise LGMError(f"{sets.work} has no VAE. Train one (stage vae), or give a preset's multiview/ as --init.")
        self.vae_file = folder / "diffusion_pytorch_model.safetensors"
        self.vae = load_vae(folder, torch.device(sets.device), torch.float32).to(memory_format=torch.channels_last)
        train, val = ([entry["caption"] for entry in sets.objects[split]] for split in ("train", "val"))
        self.captions = [*train, *val, "shape"]
        folder = sets.work / "tokenizer"
        # Ties between byte pairs fall differently each time, so a resumed run must keep its tokenizer.
        with processes().main_process_first():
            exists = (folder / "vocab.json").exists()
            self.tokenizer = CLIPTokenizer.from_pretrained(folder) if exists else make_tokenizer(train, folder)

    def encoded(self, name: str) -> EncodedOrbits:
        """A set, from its file if there is one of this VAE."""
        start, split, varied = time.monotonic(), self.sets.split(name), "-" in name
        path = self.sets.work / f"samples-{name}.safetensors"
        if path.exists() and path.stat().st_mtime > self.vae_file.stat().st_mtime:
            result = EncodedOrbits.load(path, self.sets.device)
        else:
            # Varied objects have other colours than their captions say.
            first = len(self.sets.objects["train"]) * (split == "val") + len(self.captions) * varied
            starts = np.stack([orbit_starts(f"{name}/{object_id}") for object_id in self.sets.ids(name)])
            pictures = np.load(self.sets.file(name, "orbits.npy"), mmap_mode="r")[: len(starts)]
            both = name in ("train", "val")
            result = EncodedOrbits.encode(pictures, starts, self.vae, self.sets.device, first, both)
            if split == "procedural":  # no words are about them, so they are nothing to learn words from
                result.fronts[:] = False
                result.captions[:] = len(self.captions) - 1
            elif varied:  # nor from random colours that no word stands for
                result.fronts &= result.colors > 0
            result.save(path)
        print(f"{name}: {len(result)} samples in {time.monotonic() - start:.0f} s", flush=True)
        return result


def encode(options: argparse.Namespace) -> None:
    """Do ahead what multiview does first with each set of orbits."""
    sets = Sets(options)
    if "init" in options:
        _unpack(options.init, sets.work)
    orbits = Orbits(sets)
    with processes().main_process_first():
        for name in options.sets:
            orbits.encoded(name)


def multiview(options: argparse.Namespace) -> None:
    """Train the multi-view model on sets of orbits, from a preset's multiview/ or the weights of an earlier run."""
    sets, changed = Sets(options), {}
    if "init" in options and options.init.is_dir():
        _unpack(options.init, sets.work)
        changed["init"] = sets.work / "start.safetensors"
    orbits, settings = Orbits(sets), sets.settings(MultiViewSettings, **changed)
    with processes().main_process_first():  # the others find its files
        samples, validation = EncodedOrbits.join([orbits.encoded(name) for name in options.sets]), orbits.encoded("val")
    output = sets.work / "multiview"
    train_multiview(samples, orbits.captions, orbits.tokenizer, output, settings, validation=validation)
    sets.tell_memory()


def generate(options: argparse.Namespace) -> None:
    """Let a preset's multi-view model make the views of sets of placed objects, for lgm --generated."""
    sets, preset = Sets(options), find_preset(options.preset)
    settings = reconstruct.preset_settings(
        preset, "image", steps=options.steps, guidance=options.guidance, samples=options.samples
    )
    model = reconstruct.load_multiview(preset, "image", str(sets.device))
    for name in options.sets:
        start, photos = time.monotonic(), photos_path(sets.file(name))
        if not photos.exists():
            raise LGMError(f"{sets.work} has no images of the set {name}. Render it with --kind placed.")
        elevations = np.array([sets.cameras(name)(object_id)[1][0, 0] for object_id in sets.ids(name)])
        number = generate_views(
            np.load(photos, mmap_mode="r")[: len(elevations)],
            elevations,
            model,
            settings,
            sets.file(name, "generated.npz"),
            batch=options.batch,
            seed=options.seed,
            threads=options.processes,
        )
        print(f"{name}: {number} objects' views generated in {time.monotonic() - start:.0f} s", flush=True)
    sets.tell_memory()


def lgm(options: argparse.Namespace) -> None:
    """Train LGM on sets of views, and on generated ones."""
    sets = Sets(options)
    judged = ["val-placed"] if sets.file("val-placed", "generated.npz").exists() else []
    train_lgm(
        sets.views(*options.sets),
        sets.work / "lgm",
        LGM_CONFIGS["mini"],
        sets.settings(LGMSettings),
        lpips=sets.lpips(),
        generated=sets.generated(*options.generated),
        validation=sets.views("val"),
        generated_validation=sets.generated(*judged),
    )
    sets.tell_memory()


def bundle(options: argparse.Namespace) -> None:
    """Write the preset's folder of what was trained, in 8 bits; of stages that have not run it stays as it is."""
    work, output = options.work, options.output
    output.mkdir(parents=True, exist_ok=True)
    if (work / "lgm" / "model.safetensors").exists():
        (output / "lgm").mkdir(exist_ok=True)
        save_file(load_file(work / "lgm" / "model.safetensors"), output / "lgm" / "model.safetensors", bits=8)
        (output / "lgm" / "config.json").write_text(
            json.dumps(LGM_CONFIGS["mini"].to_dict(), indent=1) + "\n", encoding="utf-8"
        )
    if (work / "multiview" / "multiview.safetensors").exists():
        model = MultiViewModel(CLIPTokenizer.from_pretrained(work / "tokenizer"))
        model.load_state_dict(load_file(work / "multiview" / "multiview.safetensors"))
        save_multiview(model, work / "vae", work / "tokenizer", output / "multiview")
    files = file_table(output)
    preset = PRESET | {"files": files}
    (output / "preset.json").write_text(json.dumps(preset, indent=1) + "\n", encoding="utf-8")
    mib = sum(file["size"] for file in files.values()) / 2**20
    Log(work / "bundle.jsonl").write(files=len(files), mib=mib)
