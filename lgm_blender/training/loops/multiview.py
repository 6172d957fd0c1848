"""Train the bundled multi-view model: ImageDream's U-Net with its text and image encoders, from nothing.

Four views a quarter turn apart at one elevation are denoised together, with the input image as a fifth, clean frame and
through an image encoder (ImageDream, arXiv 2312.02201, section 3.2), and a caption through a text encoder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler
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

from ...worker.configs import read_config
from ...worker.multiview.loading import load_vae
from ...worker.multiview.pipeline import IMAGE_VIEW
from ...worker.multiview.unet import MultiViewUNet
from ...worker.quantization import load_file
from ...worker.quantization import save_file as save_weights
from ..data.captions import BROWN, CAPTION_LENGTH, WOODEN, caption_tokens
from ..data.latents import IMAGE_SIZE, EncodedOrbits, cameras, clip_pixels
from ..settings import MultiViewSettings
from .trainer import Recorded, Trainer
from .vae import save_vae

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
MINI_ENCODER = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "projection_dim": 192,
}
MINI_VISION = {**MINI_ENCODER, "image_size": IMAGE_SIZE, "patch_size": 16}
MINI_TEXT = {**MINI_ENCODER, "max_position_embeddings": CAPTION_LENGTH}
NOISE_SCHEDULE = {
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


def train_multiview(
    samples: EncodedOrbits,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    output: Path,
    settings: MultiViewSettings,
    *,
    unet: dict = MINI_UNET,
    validation: EncodedOrbits | None = None,
) -> MultiViewModel:
    """Train, and save the averaged weights as output/multiview.safetensors (fp32).

    The loss is the velocity's MSE (v-prediction, arXiv 2202.00512) on a linear schedule that ends in pure noise (arXiv
    2305.08891): predicting noise learns next to nothing where the signal is weak, and there the object's shape is
    decided (Zero123++, arXiv 2310.15110, section 2.2, found the same). Noisy timesteps are sampled more often.

    Where there is an image, the view from its side is the image, as in use (Preset.keep_image), and is not supervised.

    The image is dropped from a quarter of the samples and the caption from about half, so that guidance and text alone
    work; captions.py says what the words are. The log has the mean loss, and apart that of noisy timesteps with an
    image, where the shape is decided; both also of `validation`, if given.
    """
    device = samples.latents.device
    torch.manual_seed(settings.seed)
    model = MultiViewModel(tokenizer, unet).to(device)
    if settings.init is not None:
        model.load_state_dict(load_file(settings.init, device=str(device)))
    if device.type == "cuda":
        model.unet.to(memory_format=torch.channels_last)
    warmup = 500 if settings.init is None else 100
    trainer = Trainer(model, output, settings, betas=(0.9, 0.99), weight_decay=0.01, warmup=warmup)
    if settings.compile:
        trainer.bare.unet.compile()
    alphas = DDIMScheduler(**NOISE_SCHEDULE).alphas_cumprod.to(device)
    ids = caption_tokens(captions, tokenizer, seed=settings.seed).to(device)
    empty = caption_tokens([""], tokenizer, ways=1)[0, 0, 0].to(device)

    def prepared(samples: EncodedOrbits) -> tuple[EncodedOrbits, Tensor, Tensor]:
        """Samples, their cameras, and which are fronts. Not in the loop, which must not ask the host."""
        return samples, cameras(samples.elevations), samples.fronts.nonzero()[:, 0]

    def batch(
        samples: EncodedOrbits, every_camera: Tensor, fronts: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """What `losses` takes, of random samples."""

        def random() -> Tensor:
            return torch.rand(settings.batch, generator=generator, device=device)

        rows = (random() * len(samples)).long()
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
        pixels = clip_pixels(samples.pixels[rows])
        return latents, noise, timesteps, tokens, every_camera[rows], pixels, image_latents, keep_image

    def losses(
        model: nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor, *conditions: Tensor
    ) -> dict[str, Tensor]:
        keep_image = conditions[-1]
        signal = alphas[timesteps].view(-1, 1, 1, 1, 1)
        noised = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        with trainer.autocast():
            predicted = model(noised, timesteps, *conditions)
        errors = ((predicted - velocity) ** 2).mean((2, 3, 4))
        supervised = torch.ones_like(errors)
        supervised[:, IMAGE_VIEW] = 1 - keep_image
        errors = (errors * supervised).sum(1) / supervised.sum(1)
        noisy = (timesteps >= 0.7 * len(alphas)) * keep_image
        return {"velocity_mse": errors.mean(), "shape_mse": (errors * noisy).sum() / noisy.sum().clamp_min(1)}

    def gradients(*given: Tensor) -> dict[str, Tensor]:
        values = losses(trainer.model, *given)
        trainer.backward(values["velocity_mse"])
        return {name: value.detach() for name, value in values.items()}

    # The batch is made beside it: the host has time for that while the GPU works.
    learn, source = Recorded(gradients, trainer.graphs), prepared(samples)
    for _ in trainer:
        values = learn(*batch(*source, trainer.generator))
        if trainer.step(values["velocity_mse"], **values) and validation is not None:
            with torch.no_grad():
                generator, judged_on = torch.Generator(device).manual_seed(settings.seed), prepared(validation)
                means = [losses(trainer.average.model, *batch(*judged_on, generator)) for _ in range(8)]
            judged = {f"val_{name}": torch.stack([m[name] for m in means]).mean().item() for name in means[0]}
            trainer.log.write(step=trainer.steps_done, **judged)
    trainer.finish()
    average = trainer.average.model
    if trainer.main:
        save_file({k: v.contiguous() for k, v in average.state_dict().items()}, output / "multiview.safetensors")
    return average


def unpack_multiview(folder: Path, work: Path) -> Path:
    """Take apart what `save_multiview` wrote, to train it further: the tokenizer and the VAE as the stages leave them.

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
        save_vae(vae, read_config(folder / "vae" / "config.json"), work / "vae")
    save_file(state, work / "start.safetensors")
    return work / "start.safetensors"


def save_multiview(model: MultiViewModel, vae: Path, tokenizer: Path, folder: Path) -> None:
    """Save in 8 bits, as a diffusers-like folder of unet, vae, text_encoder, tokenizer, scheduler, image_encoder and
    feature_extractor.

    Args:
        model: The trained model.
        vae: A folder that `train_vae` saved.
        tokenizer: A folder that `make_tokenizer` saved.
        folder: Where to.
    """
    parts = {
        "unet": (model.unet.state_dict(), MINI_UNET, "diffusion_pytorch_model"),
        "text_encoder": (model.text_encoder.state_dict(), model.text_encoder.config.to_dict(), "model"),
        "image_encoder": (model.image_encoder.state_dict(), model.image_encoder.config.to_dict(), "model"),
        "vae": (
            load_file(vae / "diffusion_pytorch_model.safetensors"),
            # Without the folder that it was read from.
            {
                k: v
                for k, v in json.loads((vae / "config.json").read_text(encoding="utf-8")).items()
                if k != "_name_or_path"
            },
            "diffusion_pytorch_model",
        ),
    }
    for name, (state, config, stem) in parts.items():
        part = folder / name
        part.mkdir(parents=True, exist_ok=True)
        (part / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        save_weights({k: v.float().cpu() for k, v in state.items()}, part / f"{stem}.safetensors", bits=8)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {"_class_name": "DDIMScheduler", **NOISE_SCHEDULE}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=1), encoding="utf-8")
    size = MINI_VISION["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(folder / "feature_extractor")
