"""The multi-view pipeline against what the published code computes, and what a caller may rely on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import golden_normal
from safetensors.torch import load_file
from tiny_multiview import golden_state, write_folder

from lgm_blender.core.cameras import multiview_cameras
from lgm_blender.core.errors import Cancelled, LGMError
from lgm_blender.worker.multiview.autoencoder import Autoencoder
from lgm_blender.worker.multiview.clip import ImageEncoder, ImageProcessor
from lgm_blender.worker.multiview.pipeline import IMAGE_VIEW, MultiViewPipeline
from lgm_blender.worker.multiview.schedulers import DDIMScheduler
from lgm_blender.worker.multiview.unet import MultiViewUNet
from lgm_blender.worker.presets import SCHEDULERS


def test_the_pipeline_agrees_with_the_published_code(golden):
    meta = json.loads((golden / "meta.json").read_text())
    salt, settings = meta["salt"], meta["imagedream_pipeline"]
    tensors = load_file(golden / "imagedream_pipeline.safetensors")

    def normal(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(golden_normal(salt, f"pipeline.{name}", shape))

    unet = MultiViewUNet(**settings["unet"])
    vae = Autoencoder(**settings["vae"])
    encoder = ImageEncoder(**settings["clip_vision"])
    for model in (unet, vae, encoder):
        model.load_state_dict(golden_state(model, salt))
        model.eval()
    pipeline = MultiViewPipeline(
        unet,
        vae,
        DDIMScheduler(**meta["imagedream_unet"]["scheduler"]),
        image_processor=ImageProcessor(**settings["clip_image_processor"]),
        image_encoder=encoder,
    )
    width = settings["unet"]["context_dim"]
    text = torch.stack([normal("negative", 1, 77, width), normal("positive", 1, 77, width)])
    embeds, image_latents = pipeline.encode_images([tensors["image"].numpy()])
    latents = pipeline.denoise(
        normal("latents", 5, 4, 32, 32)[None, :4],  # the fifth is the image's frame, which needs no noise here
        text,
        embeds,
        image_latents,
        steps=settings["num_inference_steps"],
        guidance=settings["guidance_scale"],
        elevations=[settings["elevation_above"]],
    )
    expected = tensors["views"][:4].numpy()
    views = pipeline.decode(latents[0])
    stride = views.shape[1] // expected.shape[1]  # the packed copy holds every fourth pixel, the original every second
    views = views[:, ::stride, ::stride]
    assert np.abs(views - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "with image und Käse")


@pytest.fixture(scope="module")
def pipeline(folder) -> MultiViewPipeline:
    return MultiViewPipeline.from_folder(folder)


@pytest.fixture(scope="module")
def text_pipeline(tmp_path_factory) -> MultiViewPipeline:
    """MVDream's kind: no image."""
    return MultiViewPipeline.from_folder(write_folder(tmp_path_factory.mktemp("models") / "text", image=False))


@pytest.fixture(scope="module")
def image_pipeline(tmp_path_factory) -> MultiViewPipeline:
    """No text encoder."""
    return MultiViewPipeline.from_folder(write_folder(tmp_path_factory.mktemp("models") / "image", text=False))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).random((20, 24, 3), dtype=np.float32)


def views_of(pipeline: MultiViewPipeline, prompt: str = "", image: np.ndarray | None = None, seed: int = 0, **settings):
    """The four views of one seed, [4, S, S, 3]."""
    return pipeline(prompt, image, seeds=[seed], **settings)[0]


def test_the_same_seed_gives_the_same_views_and_another_one_others(pipeline, picture):
    views = views_of(pipeline, image=picture, steps=2, seed=3)
    assert views.shape == (4, 16, 16, 3)
    assert views.dtype == np.float32
    assert 0 <= views.min() < views.max() <= 1
    torch.manual_seed(99)
    assert np.array_equal(views_of(pipeline, image=picture, steps=2, seed=3), views)
    assert np.abs(views_of(pipeline, image=picture, steps=2, seed=4) - views).max() > 0.01


def test_image_text_and_both_are_three_things(pipeline, picture):
    assert pipeline.modes == ("image", "text")
    image = views_of(pipeline, image=picture, steps=2)
    text = views_of(pipeline, "a cat", steps=2)
    both = views_of(pipeline, "a cat", image=picture, steps=2)
    assert min(np.abs(a - b).max() for a, b in ((image, text), (text, both), (both, image))) > 1e-3


def test_models_with_one_mode_say_so(text_pipeline, image_pipeline, picture):
    assert text_pipeline.modes == ("text",)
    assert views_of(text_pipeline, "a cat", steps=1).shape == (4, 16, 16, 3)
    with pytest.raises(LGMError, match="can't start from an image"):
        views_of(text_pipeline, "a cat", image=picture)
    assert image_pipeline.modes == ("image",)
    assert views_of(image_pipeline, image=picture, steps=1).shape == (4, 16, 16, 3)
    with pytest.raises(LGMError, match="takes no text"):
        views_of(image_pipeline, "a cat", image=picture)


def test_the_negative_prompt_counts_and_only_with_guidance(pipeline, picture):
    def views(negative_prompt, guidance):
        return views_of(pipeline, image=picture, steps=2, negative_prompt=negative_prompt, guidance=guidance)

    assert np.abs(views("ugly", 5.0) - views("", 5.0)).max() > 1e-4
    assert np.array_equal(views("ugly", 1.0), views("", 1.0))


def test_guidance_1_computes_one_half_and_equals_the_limit_of_both(pipeline, picture, monkeypatch):
    rows = []
    denoise = pipeline.unet.denoise

    def spy(x, timesteps, condition):
        rows.append(len(x))
        return denoise(x, timesteps, condition)

    monkeypatch.setattr(pipeline.unet, "denoise", spy)
    alone = views_of(pipeline, image=picture, steps=2, guidance=1.0)
    both = views_of(pipeline, image=picture, steps=2, guidance=1.0 + 1e-6)
    assert rows == [1, 1, 2, 2]
    np.testing.assert_allclose(alone, both, atol=1e-4)


def test_elevation_is_positive_above_the_object(pipeline, picture, monkeypatch):
    cameras = []
    prepare = pipeline.unet.prepare

    def spy(context, camera, image_embeds):
        cameras.append(camera)
        return prepare(context, camera, image_embeds)

    monkeypatch.setattr(pipeline.unet, "prepare", spy)
    views_of(pipeline, image=picture, steps=1, elevations=30.0)
    camera = cameras[0][0].numpy()
    assert np.allclose(camera, multiview_cameras(30.0, image_frame=True))
    heights = camera[:4].reshape(4, 4, 4)[:, 2, 3]  # the U-Net's cameras are z up
    assert np.allclose(heights, 0.5, atol=1e-6)
    assert not camera[4].any()


def test_each_step_is_told_and_can_be_seen(pipeline, picture):
    told = []
    views = views_of(
        pipeline, image=picture, steps=3, on_step=lambda step, steps, decode: told.append((step, steps, decode()[0]))
    )
    assert [(step, steps) for step, steps, _ in told] == [(1, 3), (2, 3), (3, 3)]
    preview = told[-1][2]
    assert preview.shape == views.shape
    # The last step of DDIM ends at the least noise, not at none, so the last expectation is near the result.
    assert np.abs(preview - views).mean() < 0.02
    assert np.abs(told[0][2] - views).mean() > np.abs(preview - views).mean()


def test_raising_from_on_step_ends_the_job_and_the_next_one_works(pipeline, picture):
    expected = views_of(pipeline, image=picture, steps=3)
    steps_done = []

    def cancel(step, steps, decode):
        steps_done.append(step)
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        views_of(pipeline, image=picture, steps=3, on_step=cancel)
    assert steps_done == [1, 2]
    assert np.array_equal(views_of(pipeline, image=picture, steps=3), expected)


@pytest.fixture(scope="module")
def converged(pipeline, picture) -> np.ndarray:
    return views_of(pipeline, image=picture, steps=40, guidance=1.0)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values())
def test_every_scheduler_ends_near_the_same_views(folder, picture, converged, scheduler):
    views = views_of(MultiViewPipeline.from_folder(folder, scheduler=scheduler), image=picture, steps=12, guidance=1.0)
    assert np.abs(views - converged).mean() < 0.02  # another seed: 0.25


@pytest.mark.parametrize("scheduler", SCHEDULERS.values())
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_image_can_be_kept(folder, picture, scheduler, guidance, prediction):
    """Its view is then what the VAE makes of it, with any scheduler, and the others follow."""
    pipeline = MultiViewPipeline.from_folder(folder, scheduler=scheduler)
    pipeline.scheduler.prediction_type = prediction
    kept = views_of(pipeline, image=picture, steps=5, guidance=guidance, keep_image=True)
    restored = pipeline.decode(pipeline.encode_images([picture])[1])[0]
    free = views_of(pipeline, image=picture, steps=5, guidance=guidance)
    off = np.abs(kept[IMAGE_VIEW] - restored)
    if scheduler == "DDIMScheduler":  # ends with 3% of the noise left, of which this VAE makes much
        assert off.mean() < 0.5 * np.abs(free[IMAGE_VIEW] - restored).mean()
    else:
        assert off.max() < 0.01
    for frame in range(4):
        assert np.abs(kept[frame] - free[frame]).max() > 1e-3


def test_without_an_image_there_is_none_to_keep(pipeline):
    expected = views_of(pipeline, "a red ball", steps=2)
    assert np.array_equal(views_of(pipeline, "a red ball", steps=2, keep_image=True), expected)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("keep", [False, True])
def test_samples_are_averaged(pipeline, picture, guidance, keep, monkeypatch):
    """The mean is that of what each of them alone comes to, the first of them is the only one of one sample."""
    made = []
    denoise = pipeline.denoise

    def spy(*args, **settings):
        made.append((args, settings, denoise(*args, **settings)))
        return made[-1][-1]

    monkeypatch.setattr(pipeline, "denoise", spy)
    settings = {"image": picture, "prompt": "a red ball", "steps": 3, "guidance": guidance, "keep_image": keep}
    told = []
    mean = views_of(pipeline, **settings, samples=3, on_step=lambda step, steps, decode: told.append(decode()[0]))
    (noise, text, embeds, latents), options, together = made[0]
    assert len(noise) == len(together) == 3
    assert (noise[0] - noise[1]).abs().max() > 1
    options |= {"on_step": None, "elevations": [0.0]}
    kept = options.pop("kept")
    assert list(kept) == [IMAGE_VIEW] * keep
    for i, sample in enumerate(together):
        options["kept"] = {view: fixed[i, None] for view, fixed in kept.items()}
        expected = denoise(noise[i, None], text[:, i, None], embeds[i, None], latents[i, None], **options)
        np.testing.assert_allclose(sample, expected[0], atol=1e-4)
    np.testing.assert_allclose(mean, pipeline.decode(together.mean(0)), atol=1e-6)
    assert len(told) == 3
    assert told[0].shape == mean.shape
    views_of(pipeline, **settings)
    np.testing.assert_allclose(made[1][2][0], together[0], atol=1e-4)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_mean_is_refined_from_where_it_still_shows(pipeline, picture, steps, monkeypatch):
    """Under the noise of the step from which on it is denoised, by the steps that are left."""
    seen, told = [], []
    denoise = pipeline.unet.denoise

    def spy(x, t, *others):
        seen.append((t[0].item(), x[:, :4].clone()))
        return denoise(x, t, *others)

    settings = {"image": picture, "steps": steps, "guidance": 1.0, "samples": 3, "keep_image": True}
    mean = pipeline.denoise
    kept = []
    monkeypatch.setattr(
        pipeline, "denoise", lambda *args, **options: (kept.append(mean(*args, **options)), kept[-1])[1]
    )
    monkeypatch.setattr(pipeline.unet, "denoise", spy)
    views = views_of(pipeline, **settings, refine=True, on_step=lambda step, steps, decode: told.append(step))
    again = [(t, x) for t, x in seen if len(x) == 1]
    assert len(seen) - len(again) == steps
    first = round(0.4 * steps)
    assert [t for t, _ in again] == [t for t, x in seen if len(x) == 3][first:]
    assert told == [*range(1, steps + 1), *[steps] * len(again)]
    signal, noise = pipeline.scheduler.signal_and_noise(again[0][0])
    rest = (again[0][1] - signal * kept[0].mean(0)) / noise
    assert 0.8 < rest.std() < 1.2  # what is not the mean is noise
    np.testing.assert_array_equal(views, pipeline.decode(kept[1][0]))
    assert np.abs(views - views_of(pipeline, **settings)).max() > 0.01


@pytest.mark.parametrize(("steps", "samples"), [(2, 1), (1, 3)])
def test_one_sample_is_not_refined_nor_pure_noise(pipeline, picture, steps, samples):
    settings = {"image": picture, "steps": steps, "samples": samples, "guidance": 1.0}
    np.testing.assert_array_equal(views_of(pipeline, **settings, refine=True), views_of(pipeline, **settings))


def test_a_batch_is_what_each_of_it_is_alone(pipeline, picture):
    """Images, prompts, elevations and seeds of their own, with everything that a sample goes through."""
    settings = {"steps": 5, "guidance": 3.0, "samples": 2, "refine": True, "keep_image": True}
    others = [picture, picture[::-1].copy()], ["a cat", "a dog"], [0.0, 30.0], [3, 4]
    images, prompts, elevations, seeds = others
    batch = pipeline(prompts, images, elevations=elevations, seeds=seeds, **settings)
    assert batch.shape == (2, 4, 16, 16, 3)
    for i in range(2):
        alone = views_of(pipeline, prompts[i], images[i], seeds[i], elevations=elevations[i], **settings)
        np.testing.assert_allclose(batch[i], alone, atol=1e-3)
    assert np.abs(batch[0] - batch[1]).max() > 0.05


def test_one_image_and_several_seeds(pipeline, picture):
    told = []
    batch = pipeline("", picture, seeds=[1, 2, 3], steps=2, on_step=lambda *step: told.append(step[2]().shape))
    for views, seed in zip(batch, (1, 2, 3), strict=True):
        np.testing.assert_allclose(views, views_of(pipeline, image=picture, seed=seed, steps=2), atol=1e-4)
    assert told == [batch.shape] * 2


def test_a_list_of_another_length_than_the_seeds(pipeline, picture):
    for wrong in ({"prompts": ["a", "b"]}, {"images": [picture] * 2}, {"images": picture, "elevations": [0.0]}):
        with pytest.raises(LGMError, match="for 3 seeds: give one for all, or one of each"):
            pipeline(**wrong, seeds=[1, 2, 3])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "an image, a text, or both"),
        ({"prompt": "  "}, "an image, a text, or both"),
        ({"prompt": "a", "steps": 0}, "Steps"),
        ({"prompt": "a", "steps": 1001}, "Steps"),
        ({"prompt": "a", "guidance": float("nan")}, "Guidance"),
        ({"prompt": "a", "guidance": -1}, "Guidance"),
        ({"prompt": "a", "samples": 0}, "Samples"),
        ({"image": np.ones((8, 8, 4), np.float32)}, "3 colours"),
    ],
)
def test_bad_settings_are_answered_with_a_sentence(pipeline, settings, sentence):
    with pytest.raises(LGMError, match=sentence) as caught:
        views_of(pipeline, **settings)
    assert caught.value.kind == "bad_input"


def test_long_texts_are_cut(pipeline):
    assert np.array_equal(views_of(pipeline, "a " * 40, steps=1), views_of(pipeline, "a " * 50, steps=1))


@pytest.mark.parametrize(("offload", "moves"), [(False, ["cpu"]), (True, ["cpu", "home"])])
def test_offloaded_encoders_go_home_after_use(folder, picture, offload, moves, monkeypatch):
    """On a small GPU an encoder's memory is given back; elsewhere it stays, ready for the next image."""
    pipeline = MultiViewPipeline.from_folder(folder, offload=offload)
    seen = []

    def to(device):
        seen.append("home" if device == "cpu" else str(device))  # "cpu" by name: home; the pipeline's own: torch.device

    for encoder in (pipeline.text_encoder, pipeline.image_encoder):
        monkeypatch.setattr(encoder, "to", to)
    pipeline.encode_images([picture])
    assert seen == moves
    pipeline.encode_text(["a cat"])
    assert seen == 2 * moves


def test_bfloat16_is_close(folder, pipeline, picture):
    coarse = MultiViewPipeline.from_folder(folder, dtype=torch.bfloat16)
    difference = views_of(coarse, image=picture, steps=4) - views_of(pipeline, image=picture, steps=4)
    assert np.abs(difference).mean() < 0.02


def test_numbers_out_of_range_are_an_error_not_a_black_picture(folder, picture):
    pipeline = MultiViewPipeline.from_folder(folder)
    pipeline.unet.out[2].bias.fill_(float("inf"))
    with pytest.raises(LGMError, match="out of range"):
        views_of(pipeline, image=picture, steps=1)
