"""LGM against what the published code computes, and its loading. Run: python build.py test tests/worker/test_lgm.py"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import golden_weight
from safetensors.torch import load_file

from lgm_blender.core.cameras import orbit_cameras
from lgm_blender.core.errors import LGMError
from lgm_blender.worker.lgm import LGM, LGM_CONFIGS, LGMConfig, gaussians_from_views, load_lgm
from lgm_blender.worker.lgm.rays import plucker_rays
from lgm_blender.worker.quantization import save_file

TOY = LGMConfig(
    down_channels=(32, 32),
    down_attention=(False, True),
    up_channels=(32,),
    up_attention=(True,),
    input_size=16,
    splat_size=8,
    num_heads=2,
)


@pytest.fixture(scope="module")
def meta(golden):
    return json.loads((golden / "meta.json").read_text())


@pytest.fixture(scope="module")
def data(golden):
    return load_file(golden / "lgm.safetensors")


@pytest.fixture(scope="module")
def poses(meta):
    return torch.from_numpy(orbit_cameras(meta["lgm"]["elevation_above"]))


def test_rays_are_the_published_plucker_embedding(data, poses):
    rays = plucker_rays(poses, 64)
    assert rays.shape == (4, 6, 64, 64)
    torch.testing.assert_close(rays[:, :, ::8, ::8], data["rays"], atol=1e-6, rtol=0)


def test_gaussians_are_the_published_ones(meta, data, poses):
    config = {name: value for name, value in meta["lgm"]["config"].items() if name != "lambda_lpips"}
    model = LGM(LGMConfig.from_dict(config)).eval()
    state = {n: torch.from_numpy(golden_weight(meta["salt"], n, t.shape)) for n, t in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        gaussians = model(data["images"][None], poses[None])
    assert (gaussians - data["gaussians"]).abs().max() <= 1e-4


@pytest.mark.parametrize("preset", ["big", "small", "tiny"])
def test_names_and_shapes_are_the_published_checkpoints(golden, preset):
    published = json.loads((golden / "checkpoint_keys.json").read_text())[f"lgm_{preset}"]
    with torch.device("meta"):
        model = LGM(LGM_CONFIGS[preset])
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published


def test_a_configuration_survives_json():
    for config in LGM_CONFIGS.values():
        assert LGMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("position", ["xyz", "ray"])
@pytest.mark.parametrize("scale", ["fixed", "pixel"])
def test_activated_values_are_in_range(position, scale):
    torch.manual_seed(0)
    model = LGM(replace(TOY, position=position, scale=scale))
    raw = 30 * torch.randn(1, 4, 8, 8, 14)
    x = model.activate(raw, torch.from_numpy(orbit_cameras())[None])
    assert torch.isfinite(x).all()
    assert x[..., :3].abs().max() <= (1 if position == "xyz" else 2.5)
    assert ((x[..., 3] >= 0) & (x[..., 3] <= 1)).all()
    assert (x[..., 4:7] >= 0).all()
    torch.testing.assert_close(x[..., 7:11].norm(dim=-1), torch.ones(1, 4, 8, 8), atol=1e-5, rtol=0)
    assert ((x[..., 11:] >= 0) & (x[..., 11:] <= 1)).all()


def test_ray_positions_lie_in_front_of_their_pixel():
    model = LGM(replace(TOY, position="ray"))
    poses = torch.from_numpy(orbit_cameras(20))[None]
    x = model.activate(torch.zeros(1, 4, 8, 8, 14), poses)[..., :3]
    # Raw zeros are 1.5 along the pixel's own ray: all on a sphere about each camera, its centre near the origin.
    torch.testing.assert_close((x - poses[:, :, None, None, :3, 3]).norm(dim=-1), torch.full((1, 4, 8, 8), 1.5))
    assert x[:, :, 3:5, 3:5].norm(dim=-1).max() < 0.2


def test_the_elevation_of_the_cameras_counts():
    torch.manual_seed(0)
    model = LGM(replace(TOY, position="ray")).eval()
    views = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    level, above = gaussians_from_views(model, views, 0), gaussians_from_views(model, views, 30)
    first = slice(0, 64)  # the front view's
    assert above.positions[first, 1].mean() != pytest.approx(level.positions[first, 1].mean(), abs=1e-3)


def test_views_of_another_size_are_resized():
    torch.manual_seed(0)
    model = LGM(TOY).eval()
    gaussians = gaussians_from_views(model, np.ones((4, 40, 40, 3), np.float32))
    assert len(gaussians) == 4 * 64
    with pytest.raises(ValueError, match="16x16"):
        model(torch.ones(1, 4, 3, 40, 40), torch.from_numpy(orbit_cameras())[None])


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = LGM(TOY)
    (tmp_path / "config.json").write_text(json.dumps(TOY.to_dict()))
    save_file(model.state_dict(), tmp_path / "model.safetensors", bits=8)
    return tmp_path


def test_a_saved_model_loads(folder):
    model = load_lgm(folder)
    assert model.config == TOY
    assert not model.training
    gaussians = gaussians_from_views(model, np.full((4, 16, 16, 3), 0.5, np.float32))
    assert gaussians.finite().all()


def test_weights_of_another_model_are_refused_by_name(folder):
    (folder / "config.json").write_text(json.dumps(replace(TOY, down_channels=(32, 64)).to_dict()))
    with pytest.raises(LGMError, match=r"another model .*unet\.down_blocks\.1") as error:
        load_lgm(folder)
    assert error.value.kind == "weights"


@pytest.mark.parametrize("content", ["", "{", '{"wings": 2}', "[]"])
def test_a_broken_configuration_is_a_sentence(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(LGMError, match=r"config\.json") as error:
        load_lgm(folder)
    assert error.value.kind == "weights"


def test_weights_cut_short_are_a_sentence(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LGMError, match=r"model\.safetensors"):
        load_lgm(folder)
