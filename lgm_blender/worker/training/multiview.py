"""Train the bundled multi-view model: ImageDream's U-Net with its text and image encoders, from nothing.

Four views a quarter turn apart at one elevation are denoised together, with the input image as a fifth, clean frame and
through an image encoder (ImageDream, arXiv 2312.02201, section 3.2), and a caption through a text encoder.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...core.cameras import multiview_cameras
from ..multiview.loading import load_vae
from ..multiview.pipeline import IMAGE_VIEW
from ..multiview.unet import MultiViewUNet
from ..quantization import load_file
from ..quantization import save_file as save_weights
from ..tensors import constant
from .captions import BROWN, WOODEN, caption_tokens, color_prefixes
from .schedule import Recorded, Trainer

MINI_UNET = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 8,
    "model_channels": 96,
    "num_res_blocks": 1,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 2, 2],
    "num_head_channels": 32,
    "transformer_depth": 1,
    "context_dim": 192,
    "camera_dim": 16,
    "ip_dim": 16,
    "ip_weight": 1.0,
    "image_embed_dim": 192,
    "resampler_depth": 1,
    "resampler_heads": 4,
}
MINI_VISION = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "image_size": 128,
    "patch_size": 16,
    "hidden_act": "gelu",
    "projection_dim": 192,
}
MINI_TEXT = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 24,
    "hidden_act": "gelu",
    "projection_dim": 192,
}
ENCODED = 96  # samples that are encoded at once
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def make_tokenizer(captions: list[str], folder: Path, vocabulary: int = 2048) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs come from the captions, saved as vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    vocab, merges = dict(model["vocab"]), model["merges"]
    for letter in alphabet:  # a lone last letter must have a token as well
        vocab.setdefault(letter, len(vocab))
        vocab.setdefault(letter + "</w>", len(vocab))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MINI_TEXT["max_position_embeddings"],
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return CLIPTokenizer.from_pretrained(folder)


class MultiViewModel(nn.Module):
    """What is trained together: the U-Net, the text encoder and the image encoder."""

    def __init__(self, tokenizer: CLIPTokenizer, unet: dict = MINI_UNET):
        super().__init__()
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        self.unet = MultiViewUNet(**unet)
        text = CLIPTextConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **special, **MINI_TEXT)
        self.text_encoder = CLIPTextModel(text)
        self.image_encoder = CLIPVisionModel(CLIPVisionConfig(**MINI_VISION))
        # What comes after the tokens that are used learns nothing; several processes would wait for its gradients.
        vision = getattr(self.image_encoder, "vision_model", self.image_encoder)
        for module in (vision.encoder.layers[-1], vision.post_layernorm):
            module.requires_grad_(False)

    def forward(self, latents, timesteps, tokens, camera, pixels, image_latents, keep_image):
        """Predicted velocity of the four views [B, 4, C, h, w]; `keep_image` [B] of 0 and 1 drops the image."""
        context = self.text_encoder(tokens).last_hidden_state
        embeds = self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        embeds = embeds * keep_image[:, None, None].to(embeds.dtype)
        image_latents = image_latents * keep_image[:, None, None, None]
        frames = torch.cat([latents, image_latents[:, None]], 1)
        predicted = self.unet(frames, timesteps, context, camera, image_embeds=embeds, image_latents=image_latents)
        return predicted[:, :4].float()


class Samples:
    """Latents of four views and of the input image, of objects from several sides, mirrored or not, ready to train.

    Attributes:
        latents: [N, 4, C, h, w] bf16, scaled, in the multi-view model's frame order; the image's side as large as the
            other views show it, which may be smaller than the image.
        image_latents: [N, C, h, w] bf16, scaled, of the recentred input image.
        pixels: [N, 3, P, P] uint8, the recentred input image for the image encoder.
        captions: [N] int64, the index of each sample's caption; with the number of all captions added, that caption
            without words for colours.
        colors: [N] int64, the index in captions.PREFIXES of the object's colour.
        elevations: [N], degrees.
        fronts: [N], whether the input view is the object's own front.
    """

    NAMES = ("latents", "image_latents", "pixels", "captions", "colors", "elevations", "fronts")

    def __init__(self, **values: Tensor):
        for name in self.NAMES:
            setattr(self, name, values[name])

    @classmethod
    def encode(
        cls,
        pictures: np.ndarray,
        starts: np.ndarray,
        vae: AutoencoderKL,
        device: torch.device,
        first_caption: int = 0,
        both: bool = True,
    ) -> Samples:
        """Every orbit of each object, as it is and mirrored. Object i has caption `first_caption` + i.

        Args:
            pictures: [O, K, 5, S, S, 4] uint8, premultiplied: what orbits.draw_orbits draws.
            starts: [O, K, 2], orbits.orbit_starts of each object.
            vae: Encodes them.
            device: Where they go.
            first_caption: The first object's.
            both: False: by turns as it is or mirrored.
        """
        size = MINI_VISION["image_size"]
        rows: dict[str, list[Tensor]] = {name: [] for name in cls.NAMES}
        orbits, first = pictures.shape[1], 0
        for read in _read_ahead(pictures, max(1, ENCODED // orbits)):
            whole = read.to(device).flatten(0, 1).float().div_(255).movedim(-1, 2)  # [B, 5, 4, S, S]
            angles = torch.from_numpy(starts[first : first + len(read)]).to(device).flatten(0, 1)
            objects = torch.arange(first, first + len(read), device=device)
            turn = ((objects[:, None] + torch.arange(orbits, device=device)) % 2).flatten()
            objects = objects.repeat_interleave(orbits)
            first += len(read)
            shown = whole[:, :, 3].amax((2, 3)).amin(1) > 0.5
            for flip in (False, True):
                chosen = shown if both else shown & (turn == int(flip))
                # The mirrored object is seen from the other side round.
                seen = whole[chosen][:, [0, 3, 2, 1, 4]].flip(-1) if flip else whole[chosen]
                if not len(seen):
                    continue
                elevation, azimuth = angles[chosen].unbind(1)
                white = seen[:, :, :3] + 1 - seen[:, :, 3:]
                # Frame 1 of the multi-view model is the input's side: LGM's order is frames 1, 2, 3, 0.
                latents = encode(vae, white[:, [3, 0, 1, 2, 4]].flatten(0, 1)).unflatten(0, (len(seen), 5))
                image = white[:, 4]
                small = F.interpolate(image, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
                off = torch.hypot(elevation, (azimuth + 180) % 360 - 180)
                for name, value in {
                    "latents": latents[:, :4],
                    "image_latents": latents[:, 4],
                    "pixels": (small * 255).round().to(torch.uint8),
                    "captions": objects[chosen] + first_caption,
                    "colors": color_prefixes(seen[:, 0, :3, ::2, ::2], seen[:, 0, 3:, ::2, ::2]),
                    "elevations": elevation,
                    "fronts": off < 2,
                }.items():
                    rows[name].append(value)
        return cls(**{name: torch.cat(parts) for name, parts in rows.items()})

    @classmethod
    def join(cls, parts: list[Samples]) -> Samples:
        """All samples of several sets that share their captions."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in cls.NAMES})

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        part = path.with_suffix(".part")
        save_file({name: getattr(self, name).contiguous() for name in self.NAMES}, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Samples:
        """What `save` wrote."""
        return cls(**load_file(path, device=str(device)))

    def __len__(self) -> int:
        return len(self.latents)


def _read_ahead(pictures: np.ndarray, at_once: int, readers: int = 4) -> Iterator[Tensor]:
    """`pictures` from a file, some at once; the next are read meanwhile."""

    def read(i: int) -> Tensor:
        return torch.from_numpy(np.array(pictures[i : i + at_once]))

    with ThreadPoolExecutor(readers) as pool:
        waiting: deque = deque()
        for i in range(0, len(pictures), at_once):
            waiting.append(pool.submit(read, i))
            if len(waiting) > readers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Scaled latents [N, C, h, w] bf16 of pictures [N, 3, H, W] in 0 to 1: the posterior's mean."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        mean = vae.encode(pictures * 2 - 1).latent_dist.mean
    return (mean.float() * vae.config.scaling_factor).bfloat16()


def clip_pixels(pixels: Tensor) -> Tensor:
    """The image encoder's input of uint8 pixels: CLIP's mean and standard deviation."""
    mean = constant(tuple(OPENAI_CLIP_MEAN), pixels.device).view(3, 1, 1)
    std = constant(tuple(OPENAI_CLIP_STD), pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def cameras(elevations: Tensor) -> Tensor:
    """The camera conditions [B, 5, 16] of elevations [B] in degrees, to a hundredth."""
    different, which = (elevations.double() * 100).round().unique(return_inverse=True)
    table = np.stack([multiview_cameras(e / 100, image_frame=True) for e in different.tolist()])
    return torch.from_numpy(table).to(elevations.device)[which]


def train_multiview(
    samples: Samples,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    output: Path,
    *,
    seconds: float = math.inf,
    steps: int | None = None,
    batch: int = 128,
    rate: float = 4e-4,
    init: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    compile: bool = True,
    unet: dict = MINI_UNET,
    optimizer: Literal["adamw", "muon"] = "adamw",
    until: float | None = None,
    validation: Samples | None = None,
    more: Callable[[], Samples | None] = lambda: None,
    graphs: bool = True,
) -> MultiViewModel:
    """Train for a number of seconds or steps, and save the averaged weights as output/multiview.safetensors (fp32).

    The loss is the velocity's MSE (v-prediction, arXiv 2202.00512) on a linear schedule that ends in pure noise (arXiv
    2305.08891): predicting noise learns next to nothing where the signal is weak, and there the object's shape is
    decided (Zero123++, arXiv 2310.15110, section 2.2, found the same). Noisy timesteps are drawn more often.

    Where there is an image, the view from its side is the image, as in use (Preset.keep_image), and is not judged.

    The image is dropped from a quarter of the samples and the caption from about half, so that guidance and text alone
    work; captions.py says what the words are. The log has the mean loss, and apart that of noisy timesteps with an
    image, where the shape is guessed; both also of `validation`'s samples, if given.

    `more` is asked after each checkpoint for samples that have been made meanwhile, to go on with those as well.
    `graphs` says whether steps are recorded as CUDA graphs.
    """
    device = samples.latents.device
    cuda = device.type == "cuda"
    torch.manual_seed(seed)
    model = MultiViewModel(tokenizer, unet).to(device)
    if init is not None:
        model.load_state_dict(load_file(init, device=str(device)))
    if cuda:
        model.unet.to(memory_format=torch.channels_last)
    trainer = Trainer(
        model,
        output,
        rate=rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        warmup=500 if init is None else 100,
        seconds=seconds,
        steps=steps,
        seed=seed,
        resume=resume,
        optimizer=optimizer,
        until=until,
        graphs=graphs,
    )
    if compile:
        trainer.bare.unet.compile()
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    ids = caption_tokens(captions, tokenizer, seed=seed).to(device)
    empty = caption_tokens([""], tokenizer, ways=1)[0, 0, 0].to(device)
    # Every sample's cameras and the fronts once; the loop must not ask the host.
    tables: dict[int, tuple[Tensor, Tensor]] = {}

    def table(part: Samples) -> tuple[Tensor, Tensor]:
        if id(part) not in tables:
            tables[id(part)] = cameras(part.elevations), part.fronts.nonzero()[:, 0]
        return tables[id(part)]

    def drawn(samples: Samples, generator: torch.Generator, number: int) -> tuple[Tensor, ...]:
        """What `losses` takes, of random samples."""

        def random() -> Tensor:
            return torch.rand(number, generator=generator, device=device)

        rows = (random() * len(samples)).long()
        every_camera, fronts = table(samples)
        text_only = random() < 0.2
        # Words are about the whole object, and a user's picture is more often of its front than of any other side.
        from_front = text_only | (random() < 0.25)
        rows = torch.where(from_front, fronts[(random() * len(fronts)).long()], rows)
        keep_image = (~(text_only | (random() < 0.08))).float()
        # Where the image is kept, half the captions go: at use, an image usually comes without words.
        keep_text = text_only | (random() < 0.4)
        # A varied object's colour is always named, so that without a name things learn the colours they mostly have.
        varied = samples.captions[rows] >= len(captions)
        color = torch.where((random() < 0.6) | varied, samples.colors[rows], 0)
        color = torch.where((color == BROWN) & (random() < 0.4), WOODEN, color)
        way = (random() * ids.shape[1]).long()
        tokens = torch.where(keep_text[:, None], ids[samples.captions[rows], way, color], empty)
        latents, image_latents = samples.latents[rows].float(), samples.image_latents[rows].float()
        # In use that view is held to be the image. Were it as small here as long objects are in the other views, it
        # would give away how long they are, and the held one would say that none is.
        kept = keep_image[:, None, None, None] > 0
        latents[:, IMAGE_VIEW] = torch.where(kept, image_latents, latents[:, IMAGE_VIEW])
        noise = torch.randn(latents.shape, generator=generator, device=device)
        timesteps = (random() ** 0.6 * len(alphas)).long().clamp_max(len(alphas) - 1)
        return (
            latents,
            noise,
            timesteps,
            tokens,
            every_camera[rows],
            clip_pixels(samples.pixels[rows]),
            image_latents,
            keep_image,
        )

    def losses(
        model: nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor, *given: Tensor
    ) -> dict[str, Tensor]:
        keep_image = given[-1]
        signal = alphas[timesteps].view(-1, 1, 1, 1, 1)
        noised = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        with trainer.autocast():
            predicted = model(noised, timesteps, *given)
        errors = ((predicted - velocity) ** 2).mean((2, 3, 4))
        judged = torch.ones_like(errors)
        judged[:, IMAGE_VIEW] = 1 - keep_image
        errors = (errors * judged).sum(1) / judged.sum(1)
        noisy = (timesteps >= 0.7 * len(alphas)) * keep_image
        return {"velocity_mse": errors.mean(), "shape_mse": (errors * noisy).sum() / noisy.sum().clamp_min(1)}

    def learnt(*given: Tensor) -> dict[str, Tensor]:
        values = losses(trainer.model, *given)
        trainer.backward(values["velocity_mse"])
        return {name: value.detach() for name, value in values.items()}

    # The samples are drawn beside it: the host has time for that while the GPU works.
    learn = Recorded(learnt, trainer.graphs)
    for _ in trainer:
        values = learn(*drawn(samples, trainer.generator, batch))
        if not trainer.step(values["velocity_mse"], **values):
            continue
        if validation is not None:
            with torch.no_grad():
                generator = torch.Generator(device).manual_seed(seed)
                means = [losses(trainer.average.model, *drawn(validation, generator, batch)) for _ in range(8)]
            judged = {f"val_{name}": torch.stack([m[name] for m in means]).mean().item() for name in means[0]}
            trainer.log.write(step=trainer.steps_done, **judged)
        if (further := more()) is not None:
            tables.pop(id(samples), None)
            samples = Samples.join([samples, further])
            trainer.log.write(step=trainer.steps_done, samples=len(samples))
    trainer.finish()
    average = trainer.average.model
    if trainer.main:
        save_file({k: v.contiguous() for k, v in average.state_dict().items()}, output / "multiview.safetensors")
    return average


def unpack_multiview(folder: Path, work: Path) -> Path:
    """Take apart what `save_multiview` wrote, to go on training: the tokenizer and the VAE as the stages leave them.

    Args:
        folder: A preset's multiview/.
        work: Gets tokenizer/, vae/ and start.safetensors; a tokenizer and a VAE that are there stay.

    Returns:
        The trained models' weights, start.safetensors.
    """
    stems = {"unet": "diffusion_pytorch_model", "text_encoder": "model", "image_encoder": "model"}
    state = {
        f"{part}.{name}": tensor.float()
        for part, stem in stems.items()
        for name, tensor in load_file(folder / part / f"{stem}.safetensors").items()
    }
    if not (work / "tokenizer").exists():
        shutil.copytree(folder / "tokenizer", work / "tokenizer")
    if not (work / "vae" / "config.json").exists():
        vae = load_vae(folder / "vae", torch.device("cpu"), torch.float32)
        vae.save_pretrained(work / "vae")
    save_file(state, work / "start.safetensors")
    return work / "start.safetensors"


def save_multiview(model: MultiViewModel, vae: Path, tokenizer: Path, folder: Path, bits: int = 8) -> None:
    """Save as a diffusers-like folder: unet, vae, text_encoder, tokenizer, scheduler, image_encoder, feature_extractor.

    Args:
        model: The trained model.
        vae: A folder that `train_vae` saved.
        tokenizer: A folder that `make_tokenizer` saved.
        folder: Where to.
        bits: 8 or 16, of each weight.
    """
    parts = {
        "unet": (model.unet.state_dict(), MINI_UNET, "diffusion_pytorch_model"),
        "text_encoder": (model.text_encoder.state_dict(), model.text_encoder.config.to_dict(), "model"),
        "image_encoder": (model.image_encoder.state_dict(), model.image_encoder.config.to_dict(), "model"),
        "vae": (
            load_file(vae / "diffusion_pytorch_model.safetensors"),
            # Without the folder that it was read from.
            {k: v for k, v in json.loads((vae / "config.json").read_text()).items() if k != "_name_or_path"},
            "diffusion_pytorch_model",
        ),
    }
    for name, (state, config, stem) in parts.items():
        part = folder / name
        part.mkdir(parents=True, exist_ok=True)
        (part / "config.json").write_text(json.dumps(config, indent=1))
        save_weights({k: v.float().cpu() for k, v in state.items()}, part / f"{stem}.safetensors", bits=bits)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {"_class_name": "DDIMScheduler", **SCHEDULER}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=1))
    size = MINI_VISION["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(folder / "feature_extractor")
