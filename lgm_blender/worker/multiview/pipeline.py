"""ImageDream and MVDream: an image, a text or both become four views of one object.

One file from prompt to pictures: encoders, classifier-free guidance, denoising loop, decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.cameras import VIEW_AZIMUTHS, multiview_cameras
from ...core.errors import LGMError
from ..devices import device_of
from . import loading
from .autoencoder import Autoencoder
from .clip import ImageEncoder, ImageProcessor, TextEncoder
from .schedulers import Scheduler
from .tokenizer import CLIPTokenizer
from .unet import MultiViewUNet

VIEWS = len(VIEW_AZIMUTHS)
IMAGE_VIEW = 1  # which of them the image shows
PREVIEW_SIZE = 128
REFINED_FROM = 0.4  # of the steps; from there on the mean of several samples is refined
PIXELS_AT_ONCE = 2**18  # that the VAE decodes: four views of 256²
SMALL_GPU = 8 * 2**30  # bytes; below, the encoders wait in the computer's memory

OnStep = Callable[[int, int, Callable[[], np.ndarray]], None]


def refinement_start(steps: int) -> int:
    """How many of the steps SDEdit refinement leaves out; 0 of one, which would forget what is refined."""
    return round(REFINED_FROM * steps)


def start_latents(scheduler: Scheduler, noise: Tensor, init_latents: Tensor | None = None) -> tuple[Tensor, int]:
    """What to denoise, and from which step: noise from the first, or noised init latents from a later one (SDEdit)."""
    if init_latents is None:
        return noise.float(), 0
    first = refinement_start(len(scheduler.timesteps))
    signal, share = scheduler.signal_and_noise(scheduler.timesteps[first])
    return signal * init_latents.float() + share * noise.float(), first


def one_of_each(value: Any, count: int, name: str) -> list[Any]:
    """`value` `count` times, or as it is if it is a list of that length.

    Raises:
        LGMError: If it is a list of another length.
    """
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise LGMError(f"There are {len(value)} {name} for {count} seeds: give one for all, or one of each.")
    return list(value)


def is_small(device: torch.device) -> bool:
    """Whether `device` is a GPU whose memory should not hold what is not in use."""
    return device_of(device).sizes == "cuda" and torch.cuda.get_device_properties(device).total_memory < SMALL_GPU


class MultiViewPipeline:
    """Four views of one object, of an image, a text or both.

    Args:
        unet: ImageDream's kind (`ip_dim` above 0) for images, MVDream's for text.
        vae: Pictures to latents and back.
        scheduler: Steps from noise to latents (schedulers.py).
        tokenizer, text_encoder: For text. A model without them was trained with one text token of zeros.
        image_processor, image_encoder: For images.
        offload: Whether the encoders stay in the computer's memory between uses; None does so on GPUs under 8 GiB.

    Raises:
        LGMError: If the parts do not fit together.
    """

    def __init__(
        self,
        unet: MultiViewUNet,
        vae: Autoencoder,
        scheduler: Scheduler,
        tokenizer: CLIPTokenizer | None = None,
        text_encoder: TextEncoder | None = None,
        image_processor: ImageProcessor | None = None,
        image_encoder: ImageEncoder | None = None,
        offload: bool | None = None,
    ):
        self.unet = unet
        self.vae = vae
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.image_processor = image_processor
        self.image_encoder = image_encoder
        self.device = next(unet.parameters()).device
        self.offload = is_small(self.device) if offload is None else offload

        if vae.latent_channels != unet.in_channels:
            raise LGMError("The model's VAE and U-Net have different latents; fetch its weights again.", "weights")
        if text_encoder is not None and text_encoder.hidden_size != unet.context_dim:
            raise LGMError("The model's text encoder does not fit its U-Net; fetch its weights again.", "weights")
        if unet.ip_dim and image_encoder is not None and image_encoder.hidden_size != unet.image_embed_dim:
            raise LGMError("The model's image encoder does not fit its U-Net; fetch its weights again.", "weights")

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        scheduler: str | None = None,
        offload: bool | None = None,
    ) -> MultiViewPipeline:
        """The pipeline whose parts lie in `folder`, in diffusers' layout (loading.py). Nothing is fetched.

        Args:
            folder: Holds unet, vae, scheduler; text_encoder and tokenizer; image_encoder and feature_extractor.
            device: Where the views are computed.
            dtype: Of the U-Net and the encoders; None takes the device's (devices.py). The VAE, the latents and the
                guidance are always fp32: that costs little, and fp16 loses detail or overflows there.
            scheduler: One of presets.SCHEDULERS in place of the folder's.
            offload: See the class.

        Raises:
            LGMError: If a file is missing, damaged or of another model.
        """
        folder, device = Path(folder), torch.device(device)
        dtype = dtype or device_of(device).dtype
        offload = is_small(device) if offload is None else offload
        home = torch.device("cpu") if offload else device
        unet = loading.load_unet(folder / "unet", device, dtype)
        if device_of(device).channels_last:
            unet = unet.to(memory_format=torch.channels_last)
        parts = {}
        if (folder / "text_encoder").is_dir():
            parts["text_encoder"] = loading.load_text_encoder(folder / "text_encoder", home, dtype)
            parts["tokenizer"] = loading.load_tokenizer(folder / "tokenizer")
        if unet.ip_dim and (folder / "image_encoder").is_dir():
            parts["image_encoder"] = loading.load_image_encoder(folder / "image_encoder", home, dtype)
            parts["image_processor"] = loading.load_image_processor(folder / "feature_extractor")
        return cls(
            unet,
            loading.load_vae(folder / "vae", device, torch.float32),
            loading.load_scheduler(folder / "scheduler", scheduler),
            offload=offload,
            **parts,
        )

    @property
    def modes(self) -> tuple[str, ...]:
        """What the model can start from: 'image', 'text' or both."""
        image = self.unet.ip_dim > 0 and self.image_encoder is not None
        text = self.text_encoder is not None and (self.unet.ip_dim == 0 or image)
        return ("image",) * image + ("text",) * text

    @property
    def size(self) -> int:
        """Side in pixels of the views it was trained for."""
        return self.unet.image_size * self.vae.factor

    @torch.inference_mode()
    def __call__(
        self,
        prompts: str | Sequence[str] = "",
        images: np.ndarray | Sequence[np.ndarray] | None = None,
        *,
        seeds: Sequence[int] = (0,),
        negative_prompt: str = "",
        steps: int = 30,
        guidance: float = 5.0,
        elevations: float | Sequence[float] = 0.0,
        keep_image: bool = False,
        kept: Mapping[int, np.ndarray] | None = None,
        samples: int = 1,
        refine: bool = False,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """Four views for each seed, [B, 4, S, S, 3] float32 in 0..1, on white.

        They are at azimuth 0, 90, 180, 270 of the model's frame, whose 90 is the input image's side: LGM takes them in
        the order 1, 2, 3, 0. The same seed gives the same views; the noise is sampled on the CPU, so it does not depend
        on the device. Without an image, an ImageDream U-Net sees one of zeros, as in the unconditional half.

        Args:
            prompts: Text of at most 75 tokens; what is longer is cut. '' for an image alone. Like `images` and
                `elevations`, one for all seeds or a list of one for each.
            images: [H, W, 3] float in 0..1, the object cut out, recentred, on white.
            seeds: [B], 0 to 2**64 - 1.
            negative_prompt: What to move away from.
            steps: Denoising steps, 1 to 1000.
            guidance: Classifier-free guidance scale (arXiv 2207.12598); 1 is none and takes half the time.
            elevations: Degrees of the input view above the object.
            keep_image: The view from the image's side is the image, as the VAE restores it, and the others are sampled
                to go with it (Preset.keep_image).
            kept: By their numbers, views [S, S, 3] float in 0..1 that stay as they are, as the VAE restores them; the
                others are sampled to go with them.
            samples: How many samples are averaged for each seed: the mean is nearer to the ground truth than one
                sample is, and less sharp where they differ (Preset.samples).
            refine: The mean of several is noised again, and the later ones of two or more steps make a sharp sample of
                it (SDEdit, arXiv 2108.01073).
            on_step: Called after each step with its number from 1, the number of steps, and a function that decodes
                the views as they are expected to become, [B, 4, h, w, 3] of about 128 pixels. What it raises ends the
                job.

        Raises:
            LGMError: If the model can't start from what is given, a setting is out of range, or the numbers overflow.
        """
        count = len(seeds)
        prompts = one_of_each(prompts, count, "prompts")
        images = [images] if images is None or isinstance(images, np.ndarray) else one_of_each(images, count, "images")
        elevations = one_of_each(elevations, count, "elevations")
        self._check(prompts, images, steps, guidance, samples)
        text = self.encode_text(prompts, negative_prompt)
        embeds, image_latents = None, None
        if images[0] is not None:
            embeds, image_latents = (x.expand(count, *x.shape[1:]) for x in self.encode_images(images))
        kept_latents = dict.fromkeys([IMAGE_VIEW], image_latents) if keep_image and images[0] is not None else {}
        for view, picture in (kept or {}).items():
            kept_latents[view] = self._encode([picture]).expand(count, -1, -1, -1)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def mean_of(number: int, init_latents: Tensor | None = None) -> Tensor:
            """The mean of `number` samples for each seed, [B, 4, C, h, w]."""
            shape = number, VIEWS, self.unet.in_channels, self.unet.image_size, self.unet.image_size
            noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)
            # For each seed its samples, one after the other.
            given = [x if x is None else x.repeat_interleave(number, 0) for x in (embeds, image_latents)]
            fixed = {view: latents.repeat_interleave(number, 0) for view, latents in kept_latents.items()}

            def mean(latents: Tensor) -> Tensor:
                return latents.unflatten(0, (count, number)).mean(1)

            def tell(step: int, steps: int, expected: Callable[[], Tensor]) -> None:
                on_step(step, steps, lambda: self._preview(mean(expected())))

            latents = self.denoise(
                noise,
                text.repeat_interleave(number, 1),
                *given,
                steps=steps,
                guidance=guidance,
                elevations=np.repeat(elevations, number),
                on_step=tell if on_step else None,
                kept=fixed,
                init_latents=init_latents,
            )
            return mean(latents)

        latents = mean_of(samples)
        if refine and samples > 1 and refinement_start(steps):
            latents = mean_of(1, latents)
        if not torch.isfinite(latents).all():  # fp16 ends at 65504
            raise LGMError(
                "The views' numbers went out of range. Choose the CPU, or weights made for this precision.", "internal"
            )
        return self.decode(latents)

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], negative_prompt: str = "") -> Tensor:
        """[2, B, L, C] float32: the text encoder's tokens of the negative prompt, and of the prompts."""
        if self.text_encoder is None:
            return torch.zeros(2, len(prompts), 1, self.unet.context_dim, device=self.device)
        length = min(self.tokenizer.length, self.text_encoder.length)
        different = list(dict.fromkeys(prompts))
        tokens = torch.tensor(self.tokenizer([negative_prompt, *different], length))
        with self._awake(self.text_encoder) as encoder:
            states = encoder(tokens.to(self.device)).float()
        positive = states[[1 + different.index(prompt) for prompt in prompts]]
        return torch.stack([states[:1].expand_as(positive), positive])

    @torch.inference_mode()
    def encode_images(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The image encoder's penultimate tokens [B, T, D], and the VAE's latents [B, C, h, w], both float32.

        A latent is the mean of the VAE's distribution: the published code takes a sample, past any seed.

        Args:
            images: [H, W, 3] float in 0..1.
        """
        # Cut off, not rounded, as the published code feeds its encoder.
        pixels = self.image_processor([(image * 255).astype(np.uint8) for image in images])
        with self._awake(self.image_encoder) as encoder:
            embeds = encoder(pixels.to(next(encoder.parameters()))).float()
        return embeds, self._encode(images)

    def _encode(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """The VAE's latents [B, C, h, w] float32 of pictures [H, W, 3] in 0..1."""
        size = self.size, self.size
        values = [torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)[None] for picture in pictures]
        values = [
            F.interpolate(2 * value.to(self.device) - 1, size, mode="bilinear", align_corners=False) for value in values
        ]
        return self.vae.encode(torch.cat(values))[0] * self.vae.scaling_factor

    @torch.inference_mode()
    def denoise(
        self,
        noise: Tensor,  # [N, 4, C, h, w]
        text: Tensor,  # [2, N, L, context_dim], negative and positive
        embeds: Tensor | None,  # [N, T, image_embed_dim]
        image_latents: Tensor | None,  # [N, C, h, w]
        *,
        steps: int = 30,
        guidance: float = 5.0,
        elevations: Sequence[float] = (0.0,),  # [N]
        on_step: Callable[[int, int, Callable[[], Tensor]], None] | None = None,
        kept: Mapping[int, Tensor] | None = None,  # view: [N, C, h, w]
        init_latents: Tensor | None = None,  # [N, 4, C, h, w]
    ) -> Tensor:  # [N, 4, C, h, w]
        """Noise to the latents of N samples of four views, each under its own conditions (`encode_text`,
        `encode_images`).

        The image is a fifth frame that the U-Net sees at every step. It is neither stepped nor decoded: the published
        code does both and puts the clean latent back before the next step.

        What is predicted of a view in `kept` is always that it becomes those latents, so at each step the U-Net sees
        them there under just the noise of that step, as in training.

        With `init_latents` (SDEdit) the noise is added to them, and the first `REFINED_FROM` of the steps are left out;
        to `on_step`, which gets a function for the latents as they are expected to become, all others are the last one.
        """
        count = len(noise)
        guided = guidance != 1
        halves = 2 if guided else 1  # the unconditional half, and the conditional one
        with_image = self.unet.ip_dim > 0
        if with_image:
            if embeds is None:
                embeds = torch.zeros(count, self.image_encoder.tokens, self.unet.image_embed_dim, device=self.device)
                image_latents = torch.zeros_like(noise[:, 0])
            if guided:
                embeds = torch.cat([torch.zeros_like(embeds), embeds])
                image_latents = torch.cat([torch.zeros_like(image_latents), image_latents])
        cameras = {angle: multiview_cameras(float(angle), image_frame=with_image) for angle in {*elevations}}
        camera = torch.from_numpy(np.stack([cameras[angle] for angle in elevations])).to(self.device)
        condition = self.unet.prepare(text[-halves:].flatten(0, 1), camera.repeat(halves, 1, 1), embeds)

        self.scheduler.set_timesteps(steps)
        latents, first = start_latents(self.scheduler, noise, init_latents)
        on_device = torch.tensor(self.scheduler.timesteps, device=self.device)
        for i, t in enumerate(self.scheduler.timesteps[first:], first):
            x = latents.repeat(halves, 1, 1, 1, 1)
            if with_image:
                x = torch.cat([x, image_latents[:, None]], dim=1)
            output = self.unet.denoise(x, on_device[i].expand(halves * count), condition)[:, :VIEWS].float()
            if guided:
                unconditional, conditional = output.chunk(2)
                output = unconditional + guidance * (conditional - unconditional)
            for view, clean in (kept or {}).items():
                output[:, view] = self.scheduler.output_for(latents[:, view], clean, t)
            before, latents = latents, self.scheduler.step(output, i, latents)
            if on_step is not None:
                expected = partial(self.scheduler.original_sample, before, output, t)
                number = i + 1 if init_latents is None else steps
                on_step(number, steps, expected)
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents [..., C, h, w] to pictures [..., size, size, 3] float32 in 0..1."""
        at_once = max(1, PIXELS_AT_ONCE // (latents.shape[-1] * self.vae.factor) ** 2)
        parts = (latents.flatten(0, -4) / self.vae.scaling_factor).split(at_once)
        pictures = torch.cat([self.vae.decode(part) for part in parts]).unflatten(0, latents.shape[:-3])
        return (pictures / 2 + 0.5).clamp(0, 1).movedim(-3, -1).cpu().numpy()

    def _preview(self, latents: Tensor) -> np.ndarray:
        # A smaller latent decodes to a smaller picture, at a cost that falls with its area.
        factor = max(1, latents.shape[-1] * self.vae.factor // PREVIEW_SIZE)
        return self.decode(F.avg_pool2d(latents.flatten(0, 1), factor).unflatten(0, latents.shape[:2]))

    def _check(
        self, prompts: Sequence[str], images: Sequence[np.ndarray | None], steps: int, guidance: float, samples: int
    ) -> None:
        for image in images:
            if image is not None and "image" not in self.modes:
                raise LGMError("This preset can't start from an image; give a text alone, or choose another preset.")
            if image is not None and (image.ndim != 3 or image.shape[2] != 3 or not image.size):
                raise LGMError(f"The image's shape must be height, width and 3 colours, not {list(image.shape)}.")
        for prompt in prompts:
            if images[0] is None and not prompt.strip():
                raise LGMError("Give an image, a text, or both.")
            if prompt.strip() and "text" not in self.modes:
                raise LGMError("This preset takes no text; give an image alone, or choose another preset.")
        if not 1 <= steps <= self.scheduler.num_train_timesteps:
            raise LGMError(f"Steps must be 1 to {self.scheduler.num_train_timesteps}, not {steps}.")
        if not 0 <= guidance < float("inf"):
            raise LGMError(f"Guidance must be 0 or more, not {guidance}.")
        if samples < 1:
            raise LGMError(f"Samples must be 1 or more, not {samples}.")

    @contextmanager
    def _awake(self, encoder: nn.Module) -> Iterator[nn.Module]:
        """`encoder` on the device; afterwards back in the computer's memory if this GPU is small."""
        encoder.to(self.device)
        try:
            yield encoder
        finally:
            if self.offload:
                encoder.to("cpu")
