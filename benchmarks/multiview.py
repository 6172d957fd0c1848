"""Seconds per denoising step of the multi-view model, and of what runs once a job.

    python benchmarks/multiview.py --config small                        # any CPU, in seconds
    python benchmarks/multiview.py --config published --device cuda      # ImageDream's sizes, random weights
    python benchmarks/multiview.py --folder lgm_blender/weights/mini/multiview

Prints a table and, last, the same as a line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lgm_blender.worker.multiview.autoencoder import Autoencoder
from lgm_blender.worker.multiview.pipeline import MultiViewPipeline
from lgm_blender.worker.multiview.schedulers import DDIMScheduler
from lgm_blender.worker.multiview.unet import MultiViewUNet

CONFIGS = {
    "published": {"unet": {"ip_dim": 16}, "vae_channels": (128, 256, 512, 512)},
    "mvdream": {"unet": {"ip_dim": 0}, "vae_channels": (128, 256, 512, 512)},
    "small": {
        "unet": {"model_channels": 64, "num_res_blocks": 1, "context_dim": 128, "ip_dim": 16, "num_head_channels": 32},
        "vae_channels": (32, 32, 64, 64),
    },
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def random_pipeline(config: str, device: torch.device, dtype: torch.dtype) -> MultiViewPipeline:
    """A pipeline of the configuration's sizes with random weights, without encoders."""
    settings = CONFIGS[config]
    channels = settings["vae_channels"]
    with torch.device(device):
        unet = MultiViewUNet(**settings["unet"]).to(dtype)
        vae = Autoencoder(block_out_channels=channels, layers_per_block=2)
    if device.type == "cuda":
        unet = unet.to(memory_format=torch.channels_last)
    for model in (unet, vae):
        model.requires_grad_(False).eval()
        for parameter in model.parameters():  # some begin at zero
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return MultiViewPipeline(unet, vae, DDIMScheduler(**SCHEDULER))


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = clock(device)
        function()
        times.append(clock(device) - start)
    return statistics.median(times)


@torch.inference_mode()
def measure(pipeline: MultiViewPipeline, steps: int, guidance: float, repeats: int) -> dict[str, float]:
    """Medians in seconds: conditioning once a job, a denoising step, decoding the four views."""
    unet, device = pipeline.unet, pipeline.device
    side = unet.image_size
    text = torch.randn(2, 1, 77, unet.context_dim, device=device)
    embeds = torch.randn(1, 257, unet.image_embed_dim, device=device) if unet.ip_dim else None
    image_latents = torch.randn(1, unet.in_channels, side, side, device=device)
    noise = torch.randn(1, 4, unet.in_channels, side, side, device=device)
    camera = torch.randn(2, 5 if unet.ip_dim else 4, 16, device=device)
    both = None if embeds is None else embeds.expand(2, -1, -1)

    moments: list[float] = []

    def denoise(steps: int) -> None:
        on_step = lambda *_: moments.append(clock(device))  # noqa: E731
        pipeline.denoise(noise, text, embeds, image_latents, steps=steps, guidance=guidance, on_step=on_step)

    denoise(2)
    moments.clear()
    denoise(steps + 1)
    return {
        "condition": median_seconds(lambda: unet.prepare(text[:, 0], camera, both), device, repeats),
        "step": statistics.median(after - before for before, after in itertools.pairwise(moments)),
        "decode": median_seconds(lambda: pipeline.decode(noise[0]), device, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", choices=CONFIGS, help="sizes, with random weights (default: small)")
    source.add_argument("--folder", type=Path, help="a model folder in diffusers' layout")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: fp16 on CUDA, else fp32")
    parser.add_argument("--steps", type=int, default=10, help="how many steps the median is taken of")
    parser.add_argument("--repeats", type=int, default=3, help="the same for what runs once a job")
    parser.add_argument("--guidance", type=float, default=5.0, help="1 computes no unconditional half")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("float16" if device.type == "cuda" else "float32"))
    if arguments.folder:
        pipeline = MultiViewPipeline.from_folder(arguments.folder, device, dtype)
    else:
        pipeline = random_pipeline(arguments.config or "small", device, dtype)
    times = measure(pipeline, arguments.steps, arguments.guidance, arguments.repeats)

    result = {
        "benchmark": "multiview",
        "model": str(arguments.folder or arguments.config or "small"),
        "parameters_millions": round(sum(p.numel() for p in pipeline.unet.parameters()) / 1e6, 2),
        "size": pipeline.size,
        "guidance": arguments.guidance,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "seconds": {name: round(value, 5) for name, value in times.items()},
    }
    if device.type == "cuda":
        result["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    print(
        f"{result['model']}: {result['parameters_millions']} M parameters, {pipeline.size} pixels, {result['device']}"
    )
    print("| part | seconds |\n|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.4f} |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
