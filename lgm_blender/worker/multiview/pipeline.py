"""ImageDream and MVDream: an image, a text or both become four views of one object.

One file from prompt to pictures: encoders, classifier-free guidance, denoising loop, decoder. The U-Net is this
project's, scheduler and VAE are diffusers', the encoders transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from ...core.cameras import VIEW_AZIMUTHS, multiview_cameras
from ...core.errors import LGMError
from . import loading
from .unet import MultiViewUNet

VIEWS = len(VIEW_AZIMUTHS)
IMAGE_VIEW = 1  # which of them the image shows
PREVIEW_SIZE = 128
REDRAWN_FROM = 0.4  # of the steps, from there on the mean of several samples is drawn once more
SMALL_GPU = 8 * 2**30  # bytes; below, the encoders wait in the computer's memory

Decode = Callable[[], np.ndarray]
OnStep = Callable[[int, int, Decode], None]


def signal_and_noise(scheduler: SchedulerMixin, t: Tensor) -> tuple[float, float]:
    """How much of each latents hold at timestep t."""
    alpha = scheduler.alphas_cumprod[int(t)].item()
    return alpha**0.5, (1 - alpha) ** 0.5


def cleaned(scheduler: SchedulerMixin, latents: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
    """The latents without the predicted noise (DDIM, arXiv 2010.02502, eq. 12; velocity: arXiv 2202.00512)."""
    signal, noise = signal_and_noise(scheduler, t)
    match scheduler.config.prediction_type:
        case "epsilon":
            return (latents - noise * prediction) / signal
        case "v_prediction":
            return signal * latents - noise * prediction
        case _:
            return prediction


def predicted(scheduler: SchedulerMixin, latents: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The prediction of which `cleaned` makes `clean`."""
    signal, noise = signal_and_noise(scheduler, t)
    match scheduler.config.prediction_type:
        case "epsilon":
            return (latents - signal * clean) / noise
        case "v_prediction":
            return (signal * latents - clean) / noise
        case _:
            return clean


def redrawn_from(steps: int) -> int:
    """How many of the steps are left out where a mean is drawn once more; 0 of one, which would forget the mean."""
    return round(REDRAWN_FROM * steps)


def started(scheduler: SchedulerMixin, noise: Tensor, clean: Tensor | None = None) -> tuple[Tensor, int]:
    """What to denoise, and from which step: noise from the first, or clean latents under it from a later one."""
    if clean is None:
        return noise.float() * scheduler.init_noise_sigma, 0
    first = redrawn_from(len(scheduler.timesteps))
    signal, share = signal_and_noise(scheduler, scheduler.timesteps[first])
    return signal * clean.float() + share * noise.float(), first


def is_small(device: torch.device) -> bool:
    """Whether `device` is a GPU whose memory should not hold what is not in use."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < SMALL_GPU


class MultiViewPipeline:
    """Four views of one object, of an image, a text or both.

    Args:
        unet: ImageDream's kind (`ip_dim` above 0) for images, MVDream's for text.
        vae: Pictures to latents and back.
        scheduler: A diffusers scheduler (loading.SCHEDULERS).
        tokenizer, text_encoder: For text. A model without them was trained with one text token of zeros.
        image_processor, image_encoder: For images.
        offload: Whether the encoders stay in the computer's memory between uses; None does so on GPUs under 8 GiB.

    Raises:
        LGMError: If the parts do not fit together.
    """

    def __init__(
        self,
        unet: MultiViewUNet,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        tokenizer: CLIPTokenizer | None = None,
        text_encoder: CLIPTextModel | None = None,
        image_processor: loading.CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModel | None = None,
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

        if vae.config.latent_channels != unet.in_channels:
            raise LGMError("The model's VAE and U-Net have different latents; fetch its weights again.", "weights")
        if text_encoder is not None and text_encoder.config.hidden_size != unet.context_dim:
            raise LGMError("The model's text encoder does not fit its U-Net; fetch its weights again.", "weights")
        if unet.ip_dim and image_encoder is not None and image_encoder.config.hidden_size != unet.image_embed_dim:
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
            dtype: Of the U-Net and the encoders; None takes fp16 on CUDA, fp32 elsewhere. The VAE, the latents and
                the guidance are always fp32: that costs little, and fp16 loses detail or overflows there.
            scheduler: One of loading.SCHEDULERS in place of the folder's.
            offload: See the class.

        Raises:
            LGMError: If a file is missing, damaged or of another model.
        """
        folder, device = Path(folder), torch.device(device)
        dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        offload = is_small(device) if offload is None else offload
        home = torch.device("cpu") if offload else device
        unet = loading.load_unet(folder / "unet", device, dtype)
        if device.type == "cuda":
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
        return self.unet.image_size * self._vae_factor

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str = "",
        image: np.ndarray | None = None,
        *,
        negative_prompt: str = "",
        steps: int = 30,
        guidance: float = 5.0,
        elevation: float = 0.0,
        seed: int = 0,
        size: int | None = None,
        keep_image: bool = False,
        samples: int = 1,
        redraw: bool = False,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """Four views, [4, size, size, 3] float32 in 0..1, on white, at azimuth 0, 90, 180, 270 of the model's frame.

        The model's azimuth 90 is the input image's side: LGM takes the views in the order 1, 2, 3, 0. The same seed
        gives the same views; the noise is drawn on the CPU, so it does not depend on the device. Without an image,
        an ImageDream U-Net sees one of zeros, as in the unconditional half.

        Args:
            prompt: Text of at most 75 tokens; what is longer is cut. '' for an image alone.
            image: [H, W, 3] float in 0..1, the object cut out, recentred, on white.
            negative_prompt: What to move away from.
            steps: Denoising steps, 1 to 1000.
            guidance: Classifier-free guidance scale (arXiv 2207.12598); 1 is none and takes half the time.
            elevation: Degrees of the input view above the object.
            seed: 0 to 2**64 - 1.
            size: Side of the views, or None for the one it was trained for.
            keep_image: The view from the image's side is the image, as the VAE restores it, and the others are drawn
                to go with it (Preset.keep_image).
            samples: How many samples are drawn, each from noise of its own, and averaged: the mean is nearer to the
                truth than one sample is, and less sharp where they differ (Preset.samples).
            redraw: The mean of several is noised again, and the later ones of two or more steps make a sharp sample of
                it (SDEdit, arXiv 2108.01073).
            on_step: Called after each step with its number from 1, the number of steps, and a function that draws the
                views as they are expected to become, [4, h, w, 3] of about 128 pixels. What it raises ends the job.

        Raises:
            LGMError: If the model can't start from what is given, a setting is out of range, or the numbers overflow.
        """
        size = self.size if size is None else size
        self._check(prompt, image, steps, guidance, size, samples)
        text = self.encode_text(prompt, negative_prompt)
        embeds, image_latent = None, None
        if image is not None:
            embeds, image_latent = self.encode_image(image, size)
        side = size // self._vae_factor
        generator = torch.Generator().manual_seed(seed)

        def drawn(number: int, clean: Tensor | None = None) -> Tensor:
            shape = number, VIEWS, self.unet.in_channels, side, side
            noise = torch.randn(shape, generator=generator).to(self.device)
            keep = keep_image and image is not None
            given = text, embeds, image_latent, steps, guidance, elevation, on_step
            return self.denoise(noise, *given, keep_image=keep, clean=clean).mean(0, keepdim=True)

        latents = drawn(samples)
        if redraw and samples > 1 and redrawn_from(steps):
            latents = drawn(1, latents)
        if not torch.isfinite(latents).all():  # fp16 ends at 65504
            raise LGMError(
                "The views' numbers went out of range. Choose the CPU, or weights made for this precision.", "internal"
            )
        return self.decode(latents[0])

    @torch.inference_mode()
    def encode_text(self, prompt: str, negative_prompt: str = "") -> Tensor:
        """[2, L, C] float32: the text encoder's tokens of the negative prompt and of the prompt."""
        if self.text_encoder is None:
            return torch.zeros(2, 1, self.unet.context_dim, device=self.device)
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            [negative_prompt, prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with self._awake(self.text_encoder) as encoder:
            return encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()

    @torch.inference_mode()
    def encode_image(self, image: np.ndarray, size: int | None = None) -> tuple[Tensor, Tensor]:
        """The image encoder's penultimate tokens [1, T, D], and the VAE's latent [1, 4, h, w], both float32.

        The latent is the mean of the VAE's distribution: the published code draws a sample, past any seed.

        Args:
            image: [H, W, 3] float in 0..1.
            size: Side in pixels at which the VAE sees it.
        """
        size = self.size if size is None else size
        # Cut off, not rounded, as the published code feeds its encoder.
        pixels = self.image_processor((image * 255).astype(np.uint8), return_tensors="pt").pixel_values
        with self._awake(self.image_encoder) as encoder:
            weight = next(encoder.parameters())
            embeds = encoder(pixels.to(weight), output_hidden_states=True).hidden_states[-2].float()
        picture = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None].to(self.device)
        picture = F.interpolate(2 * picture - 1, (size, size), mode="bilinear", align_corners=False)
        return embeds, self.vae.encode(picture).latent_dist.mean * self.vae.config.scaling_factor

    @torch.inference_mode()
    def denoise(
        self,
        latents: Tensor,  # [N, 4, C, h, w] noise of N samples
        text: Tensor,  # [2, L, context_dim], negative and positive
        embeds: Tensor | None,  # [1, T, image_embed_dim]
        image_latent: Tensor | None,  # [1, C, h, w]
        steps: int = 30,
        guidance: float = 5.0,
        elevation: float = 0.0,
        on_step: OnStep | None = None,
        keep_image: bool = False,
        clean: Tensor | None = None,  # [N, 4, C, h, w]
    ) -> Tensor:  # [N, 4, C, h, w]
        """Noise to the latents of samples of four views, under what `encode_text` and `encode_image` give.

        The image is a fifth frame that the U-Net sees at every step. It is neither stepped nor decoded: the published
        code does both and puts the clean latent back before the next step.

        With `keep_image` what is predicted of the image's side is always that it becomes the image, so at each step the
        U-Net sees it there under just the noise of that step, as in training.

        With `clean` latents the noise is added to them, and the first `REDRAWN_FROM` of the steps are left out; to
        `on_step` all others are the last one.
        """
        kept = image_latent[0] if keep_image else None
        samples = len(latents)
        guided = guidance != 1
        halves = 2 if guided else 1  # the unconditional half, and the conditional one
        rows = halves * samples
        with_image = self.unet.ip_dim > 0
        if with_image:
            if embeds is None:
                embeds = torch.zeros(1, self._image_tokens, self.unet.image_embed_dim, device=self.device)
                image_latent = torch.zeros_like(latents[0, :1])
            if guided:
                embeds = torch.cat([torch.zeros_like(embeds), embeds])
                image_latent = torch.cat([torch.zeros_like(image_latent), image_latent])
            embeds, image_latent = (tensor.repeat_interleave(samples, 0) for tensor in (embeds, image_latent))
        camera = torch.from_numpy(multiview_cameras(elevation, image_frame=with_image)).to(self.device)
        text = text[-halves:].repeat_interleave(samples, 0)
        condition = self.unet.prepare(text, camera.expand(rows, -1, -1), embeds)

        self.scheduler.set_timesteps(steps)
        latents, first = started(self.scheduler, latents, clean)
        on_device = self.scheduler.timesteps.to(self.device)  # the scheduler's own stay where reading them is free
        for i, t in enumerate(self.scheduler.timesteps[first:], first):
            x = self.scheduler.scale_model_input(latents, t).repeat(halves, 1, 1, 1, 1)
            if with_image:
                x = torch.cat([x, image_latent[:, None]], dim=1)
            noise = self.unet.denoise(x, on_device[i].expand(rows), condition)[:, :VIEWS].float()
            if guided:
                without, with_condition = noise.chunk(2)
                noise = without + guidance * (with_condition - without)
            if keep_image:
                noise[:, IMAGE_VIEW] = predicted(self.scheduler, latents[:, IMAGE_VIEW], kept, t)
            before, latents = latents, self.scheduler.step(noise, t, latents).prev_sample
            if on_step is not None:
                expected = partial(cleaned, self.scheduler, before, noise, t)
                number = i + 1 if clean is None else steps
                on_step(number, steps, lambda expected=expected: self._preview(expected().mean(0)))
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents [N, C, h, w] to pictures [N, size, size, 3] float32 in 0..1."""
        pictures = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    @torch.inference_mode()
    def _preview(self, latents: Tensor) -> np.ndarray:
        # A smaller latent decodes to a smaller picture, at a cost that falls with its area.
        factor = max(1, latents.shape[-1] * self._vae_factor // PREVIEW_SIZE)
        return self.decode(F.avg_pool2d(latents, factor))

    def _check(
        self, prompt: str, image: np.ndarray | None, steps: int, guidance: float, size: int, samples: int
    ) -> None:
        if image is None and not prompt.strip():
            raise LGMError("Give an image, a text, or both.")
        if image is not None and "image" not in self.modes:
            raise LGMError("This preset can't start from an image; give a text alone, or choose another preset.")
        if prompt.strip() and "text" not in self.modes:
            raise LGMError("This preset takes no text; give an image alone, or choose another preset.")
        if image is not None and (image.ndim != 3 or image.shape[2] != 3 or not image.size):
            raise LGMError(f"The image must have height, width and 3 colours, not the shape {list(image.shape)}.")
        if not 1 <= steps <= self.scheduler.config.num_train_timesteps:
            raise LGMError(f"Steps must be 1 to {self.scheduler.config.num_train_timesteps}, not {steps}.")
        if not 0 <= guidance < float("inf"):
            raise LGMError(f"Guidance must be 0 or more, not {guidance}.")
        if samples < 1:
            raise LGMError(f"Samples must be 1 or more, not {samples}.")
        multiple = self._vae_factor * self.unet.downsampling
        if size < multiple or size % multiple:
            raise LGMError(f"The views' size must be a multiple of {multiple} pixels, not {size}.")

    @property
    def _vae_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _image_tokens(self) -> int:
        config = self.image_encoder.config
        return (config.image_size // config.patch_size) ** 2 + 1

    @contextmanager
    def _awake(self, encoder: nn.Module) -> Iterator[nn.Module]:
        """`encoder` on the device; afterwards back in the computer's memory if this GPU is small."""
        encoder.to(self.device)
        try:
            yield encoder
        finally:
            if self.offload:
                encoder.to("cpu")
