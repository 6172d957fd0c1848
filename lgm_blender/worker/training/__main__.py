"""Train the bundled models: python -m lgm_blender.worker.training STAGE --work DIR ...

`join` makes one objects.zip of several, `draw` draws training views of it, `vae`, `multiview` and `lgm` train one
model each, `encode` does ahead what `multiview` does first with each set, `generate` lets a preset's multi-view model
draw the views of a set, for `lgm --generated`, and `bundle` writes the preset's folder. Each reads what the ones before
it left in --work. benchmarks/train_mini.sh runs them all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...core.errors import LGMError
from .lpips import LPIPS
from .objects import (
    VIEWS,
    Cameras,
    draw_objects,
    evaluation_poses,
    join_objects,
    photos_path,
    read_index,
    read_object,
    view_poses,
)
from .orbits import draw_orbits, draw_placed, orbit_starts, placed_poses
from .procedural import procedural
from .schedule import Log, process_device, processes
from .varied import read_varied
from .views import Views

if TYPE_CHECKING:
    from .generated import Generated


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(prog="python -m lgm_blender.worker.training", description=__doc__)
    stages = ("join", "draw", "vae", "encode", "multiview", "generate", "lgm", "bundle")
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--objects", type=Path, help="objects.zip; for all but bundle; join writes it")
    parser.add_argument("--archives", type=Path, nargs="+", help="join: what --objects gets the objects of")
    parser.add_argument("--work", type=Path, required=True, help="folder for views, checkpoints and logs")
    parser.add_argument("--output", type=Path, help="bundle: the preset folder")
    parser.add_argument("--lpips", type=Path, help="LPIPS weights, see lpips.convert")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=600)
    length.add_argument("--until", type=float, help="lgm, multiview: seconds since 1970 when it ends; on lent machines")
    length.add_argument(
        "--steps", type=int, help="instead of seconds, with the same numbers each time; generate: of denoising"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--init", type=Path, help="weights to go on from; vae, multiview: a preset's multiview/")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    look = parser.add_mutually_exclusive_group()
    look.add_argument("--variant", type=int, default=0, help="draw: objects stretched and in other colours")
    look.add_argument("--procedural", type=int, help="draw: so many procedural shapes, as the set 'procedural'")
    parser.add_argument(
        "--kind",
        choices=("views", "orbits", "placed"),
        default="views",
        help="draw: views from all round, for vae and lgm; orbits of four views and their image, for encode and "
        "multiview; or objects as large as in use, as the set NAME-placed, for generate",
    )
    parser.add_argument("--views", type=int, default=VIEWS, help="how many an object has in sets of views")
    parser.add_argument("--sets", nargs="*", default=["train"], help="of train, train-1 (a variant), procedural")
    parser.add_argument("--later-sets", nargs="*", default=[], help="multiview: taken in once `encode` has made them")
    parser.add_argument("--inputs-judged", type=int, default=4, help="lgm: how many input views are judged")
    parser.add_argument("--others-judged", type=int, default=4, help="lgm: how many other views are")
    parser.add_argument("--surface-weight", type=float, default=0.3, help="lgm: of the distances' loss")
    parser.add_argument("--haze-weight", type=float, default=0.0, help="lgm: of what is half transparent")
    parser.add_argument("--lpips-from", type=float, default=0.4)
    parser.add_argument("--split", choices=("train", "val"), nargs="*", default=("val", "train"), help="draw: which")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--limit", type=int, help="only the first objects, to try things out")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--decoder-only", action="store_true", help="vae: go on with the latents as they are")
    parser.add_argument("--no-augmentation", action="store_true", help="lgm: true views only")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="lgm, multiview, vae")
    parser.add_argument(
        "--generated",
        nargs="+",
        help="lgm: sets that `generate` has drawn, train-3-placed for example, as further input",
    )
    parser.add_argument("--generated-share", type=float, default=0.5, help="lgm: of the steps")
    parser.add_argument("--preset", default="mini", help="generate: the preset whose multi-view model draws")
    parser.add_argument("--samples", type=int, help="generate: how many are averaged; the preset's by default")
    parser.add_argument("--guidance", type=float, help="generate: the preset's by default")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-graphs", action="store_true", help="lgm, multiview: no CUDA graphs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.stage == "bundle":
        if not args.output:
            parser.error("bundle needs --output, the preset's folder.")
        from .bundle import bundle

        Log(args.work / "bundle.jsonl").write(**bundle(args.work, args.output))
        return
    if not args.objects:
        parser.error(f"{args.stage} needs --objects, an objects.zip.")
    if args.stage == "join":
        if not args.archives:
            parser.error("join needs --archives.")
        print(f"{join_objects(args.archives, args.objects)} objects")
        return
    args.work.mkdir(parents=True, exist_ok=True)
    device = process_device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    index = {split: [o for o in read_index(args.objects) if o["split"] == split] for split in ("train", "val")}
    index = {split: objects[: args.limit] for split, objects in index.items()}

    drawn = next(args.work.glob("procedural*.npy"), None)
    shapes = args.procedural or (len(np.load(drawn, mmap_mode="r")) if drawn else 0)
    index["procedural"] = [{"id": f"procedural-{i:05}"} for i in range(shapes)]

    def ids(split: str) -> list[str]:
        return [o["id"] for o in index[split]]

    def split_of(name: str) -> str:  # "train-1" is the first variant of the training objects
        return name.split("-")[0]

    def cameras(name: str) -> Cameras:
        if split_of(name) == "val":
            return evaluation_poses
        return placed_poses if name.endswith("-placed") else partial(view_poses, count=args.views)

    def views(*names: str) -> Views:
        start, files = time.monotonic(), [(args.work / f"{name}.npy", ids(split_of(name))) for name in names]
        result = Views.from_files(files, device, cameras(names[0]))
        print(f"{', '.join(names)}: {len(result)} objects loaded in {time.monotonic() - start:.0f} s", flush=True)
        return result

    def orbits_file(name: str) -> Path:
        return args.work / f"{name}.orbits.npy"

    def generated(*names: str) -> Generated:
        from .generated import Generated

        return Generated.load([args.work / f"{name}.generated.npz" for name in names], views(*names))

    def unpack() -> None:
        from .multiview import unpack_multiview

        if processes().is_main_process:
            unpack_multiview(args.init, args.work)
        processes().wait_for_everyone()

    lpips = LPIPS.from_file(args.lpips).to(device) if args.lpips else None
    common = {
        "seconds": args.seconds,
        "steps": args.steps,
        "seed": args.seed,
        "compile": not args.no_compile,
        "resume": args.resume,
        "init": args.init,
    }
    common |= {name: getattr(args, name) for name in ("batch", "rate") if getattr(args, name)}
    if args.stage == "draw":
        for split in ["procedural"] if args.procedural else args.split:
            start, name, read = time.monotonic(), split, partial(read_object, args.objects)
            if args.procedural:
                read = procedural
            elif args.variant:
                name, read = f"{split}-{args.variant}", partial(read_varied, args.objects, args.variant)
            path, those = args.work / f"{name}{'-placed' * (args.kind == 'placed')}.npy", ids(split)
            if args.kind == "orbits":
                path = orbits_file(name)
                empty = draw_orbits(read, those, args.size, path, args.processes, name)
            elif args.kind == "placed":
                turn = split != "val"
                empty = draw_placed(read, those, args.size, path, args.processes, cameras(path.stem), turn, name)
            else:
                empty = draw_objects(read, those, args.size, path, args.processes, cameras(name))
            print(f"{path.stem}: {len(those)} objects in {time.monotonic() - start:.0f} s, hardly visible: {empty}")
    elif args.stage == "lgm":
        from ..lgm.model import PRESETS
        from .lgm import train_lgm

        train_lgm(
            views(*args.sets),
            args.work / "lgm",
            PRESETS["mini"],
            lpips=lpips,
            lpips_from=args.lpips_from,
            inputs_judged=args.inputs_judged,
            others_judged=args.others_judged,
            surface_weight=args.surface_weight,
            haze_weight=args.haze_weight,
            augmented=not args.no_augmentation,
            optimizer=args.optimizer,
            until=args.until,
            generated=generated(*args.generated) if args.generated else None,
            generated_share=args.generated_share,
            generated_validation=(
                generated("val-placed") if (args.work / "val-placed.generated.npz").exists() else None
            ),
            validation=views("val"),
            graphs=not args.no_graphs,
            **common,
        )
    elif args.stage == "generate":
        from ..models import find_preset
        from ..multiview.pipeline import MultiViewPipeline
        from .generated import generate

        preset = find_preset(args.preset)
        folder = preset.locate("image")
        pipeline = MultiViewPipeline.from_folder(folder, device, scheduler=preset.scheduler)
        for name in args.sets:
            start = time.monotonic()
            if not photos_path(args.work / f"{name}.npy").exists():
                raise LGMError(f"{args.work} has no images of the set {name}. Draw it with --kind placed.")
            elevations = np.array([cameras(name)(object_id)[1][0, 0] for object_id in ids(split_of(name))])
            number = generate(
                np.load(photos_path(args.work / f"{name}.npy"), mmap_mode="r")[: len(elevations)],
                elevations,
                pipeline,
                args.work / f"{name}.generated.npz",
                steps=args.steps or preset.steps["image"],
                guidance=args.guidance or preset.guidance["image"],
                match=preset.match_colors,
                keep=preset.keep_image,
                samples=args.samples or preset.samples.get("image", 1),
                redraw=preset.redraw,
                seed=args.seed,
                threads=args.processes,
                device=device,
                **({"batch": args.batch} if args.batch else {}),
            )
            print(f"{name}: {number} objects' views generated in {time.monotonic() - start:.0f} s", flush=True)
    elif args.stage == "vae":
        from .vae import train_vae

        if args.init:
            unpack()
            common["init"] = args.work / "vae"
        train_vae(
            views(*args.sets),
            args.work / "vae",
            lpips=lpips,
            optimizer=args.optimizer,
            decoder_only=args.decoder_only,
            **common,
        )
    elif args.stage in ("encode", "multiview"):
        from transformers import CLIPTokenizer

        from ..multiview.loading import load_vae
        from .multiview import Samples, make_tokenizer, train_multiview

        if args.init and args.init.is_dir():
            unpack()
            common["init"] = args.work / "start.safetensors"
        if not (args.work / "vae" / "config.json").exists():  # diffusers would look for it in the internet
            raise LGMError(f"{args.work} has no VAE. Train one (stage vae), or give a preset's multiview/ as --init.")
        captions = [*(o["caption"] for split in ("train", "val") for o in index[split]), "shape"]
        folder = args.work / "tokenizer"
        # Ties between byte pairs fall differently each time, so a run that goes on must keep its tokenizer.
        with processes().main_process_first():
            exists = (folder / "vocab.json").exists()
            tokenizer = (
                CLIPTokenizer.from_pretrained(folder)
                if exists
                else make_tokenizer(captions[: len(ids("train"))], folder)
            )
        vae = load_vae(args.work / "vae", torch.device(device), torch.float32).to(memory_format=torch.channels_last)
        weights = args.work / "vae" / "diffusion_pytorch_model.safetensors"

        def samples(name: str) -> Samples:
            # Varied objects have other colours than their captions say.
            first = len(ids("train")) * (split_of(name) == "val") + len(captions) * ("-" in name)
            start = time.monotonic()
            path = args.work / f"samples-{name}.safetensors"
            if path.exists() and path.stat().st_mtime > weights.stat().st_mtime:  # of this VAE, not an earlier one
                result = Samples.load(path, device)
            else:
                starts = np.stack([orbit_starts(f"{name}/{object_id}") for object_id in ids(split_of(name))])
                pictures = np.load(orbits_file(name), mmap_mode="r")[: len(starts)]
                result = Samples.encode(pictures, starts, vae, device, first, both=name in ("train", "val"))
                if split_of(name) == "procedural":  # no words are about them, so they are nothing to learn words from
                    result.fronts[:] = False
                    result.captions[:] = len(captions) - 1
                elif "-" in name:  # nor from colours of chance that no word stands for
                    result.fronts &= result.colors > 0
                result.save(path)
            print(f"{name}: {len(result)} samples in {time.monotonic() - start:.0f} s", flush=True)
            return result

        with processes().main_process_first():  # the others find its files
            parts = [samples(name) for name in args.sets]
            if args.stage == "encode":
                return
            validation = samples("val")
        later = list(args.later_sets)

        def more() -> Samples | None:
            ready = [name for name in later if (args.work / f"samples-{name}.safetensors").exists()]
            for name in ready:
                later.remove(name)
            return Samples.join([samples(name) for name in ready]) if ready else None

        train_multiview(
            Samples.join(parts),
            captions,
            tokenizer,
            args.work / "multiview",
            optimizer=args.optimizer,
            until=args.until,
            validation=validation,
            more=more,
            graphs=not args.no_graphs,
            **common,
        )
    if device.type == "cuda":
        print(json.dumps({"peak_gb": torch.cuda.max_memory_allocated() / 1e9}))


if __name__ == "__main__":
    try:
        main()
    except LGMError as error:
        sys.exit(str(error))
