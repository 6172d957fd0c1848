"""The visual hull's channels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lgm_blender.core.cameras import orbit_cameras
from lgm_blender.training.loops.finetune import find_start
from lgm_blender.training.loops.lgm import start_state
from lgm_blender.worker.lgm.hull import hull_channels, outline
from lgm_blender.worker.lgm.model import LGM, LGMConfig
from lgm_blender.worker.lgm.rays import pixel_rays

TOY = LGMConfig(
    down_channels=(32, 32),
    down_attention=(False, True),
    up_channels=(32,),
    up_attention=(False,),
    input_size=16,
    splat_size=8,
    num_heads=2,
    position="ray",
    scale="pixel",
)


def box_views(half: float, size: int, color: float = 0.2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures [1, 4, 3, S, S] of a cube of the origin, their poses, and depths [4, S/2, S/2] where rays meet it."""
    poses = torch.from_numpy(orbit_cameras())[None]

    def enter(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        origins, directions = pixel_rays(poses[0], size)
        low, high = (-half - origins) / directions, (half - origins) / directions
        first, last = torch.minimum(low, high).amax(-1), torch.maximum(low, high).amin(-1)
        return first, first < last

    _, hit = enter(size)
    images = torch.where(hit[:, None], color, 1.0).expand(-1, 3, -1, -1)[None]
    depth, covered = enter(size // 2)
    return images, poses, torch.where(covered, depth, math.nan)


def test_the_outline_is_what_is_not_white():
    image = torch.ones(3, 1, 4)
    image[:, 0, 1] = 0.95
    image[2, 0, 2] = 0.5  # yellow
    image[:, 0, 3] = 0
    torch.testing.assert_close(outline(image)[0, 0], torch.tensor([0.0, 0.5, 1.0, 1.0]))


def test_the_hull_of_a_cube_is_the_cube_and_a_little_more():
    images, poses, depth = box_views(0.15, 128)
    channels = hull_channels(images, poses, 16)[0]
    assert channels.shape == (4, 18, 64, 64)
    near, far = (1.5 + 0.8 * channels[:, i] for i in (16, 17))
    seen = ~depth.isnan()
    inner = seen & (torch.nn.functional.avg_pool2d(seen.float()[:, None], 3, 1, 1)[:, 0] > 0.99)
    # Outlines are those of each view's nearest side, so the hull begins a little before the cube, never behind it.
    assert (near - depth)[inner].max() < 0.01
    assert (near - depth)[inner].abs().median() < 0.03
    assert (far > near)[inner].all()
    # The bins say the same.
    length = channels[:, :16].sum(1) * 0.1
    torch.testing.assert_close(length[inner], (far - near)[inner], atol=0.06, rtol=0)


def test_rays_that_miss_have_nothing():
    images, poses, _ = box_views(0.1, 64)
    channels = hull_channels(images, poses, 8)[0]
    assert channels[:, :, :4].abs().max() == 0
    blank = hull_channels(torch.ones(1, 4, 3, 16, 16), poses, 8)
    assert blank.abs().max() == 0
    full = hull_channels(torch.zeros(1, 4, 3, 16, 16), poses, 8)
    assert full[:, :, :8].min() == 1  # beyond its picture's edge a view goes on as at the edge


def test_what_one_view_does_not_see_is_not_there():
    images, poses, _ = box_views(0.3, 32)
    images = images.clone()
    images[0, 1] = 1
    assert hull_channels(images, poses, 8)[0].abs().max() == 0


def test_objects_of_a_batch_do_not_mix():
    a, poses, _ = box_views(0.3, 32)
    b = box_views(0.15, 32)[0]
    both = hull_channels(torch.cat([a, b]), poses.expand(2, -1, -1, -1), 8)
    torch.testing.assert_close(both[:1], hull_channels(a, poses, 8))
    torch.testing.assert_close(both[1:], hull_channels(b, poses, 8))


def test_the_model_looks_at_the_hull():
    torch.manual_seed(0)
    model = LGM(replace(TOY, hull_bins=4)).eval()
    images = torch.rand(1, 4, 3, 16, 16)
    poses = torch.from_numpy(orbit_cameras())[None]
    with torch.no_grad():
        before = model(images, poses)
        model.unet.conv_in.weight[:, 9:] = 0
        after = model(images, poses)
    assert torch.isfinite(before).all()
    assert (before - after).abs().max() > 1e-3


def test_training_starts_from_weights_without_a_hull(tmp_path):
    torch.manual_seed(0)
    old, config = LGM(TOY).eval(), replace(TOY, hull_bins=4)
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    new = LGM(config).eval()
    new.load_state_dict(start_state(tmp_path / "old.safetensors", config))
    images, poses = torch.rand(1, 4, 3, 16, 16), torch.from_numpy(orbit_cameras())[None]
    with torch.no_grad():
        torch.testing.assert_close(new(images, poses), old(images, poses), atol=1e-5, rtol=1e-5)
    save_file(new.state_dict(), tmp_path / "new.safetensors")
    assert start_state(tmp_path / "new.safetensors", config)["unet.conv_in.weight"].shape == (32, 15, 3, 3)


@pytest.mark.parametrize(("bins", "averaged"), [(0, False), (0, True), (16, False), (16, True), (8, False)])
def test_a_file_says_whether_its_model_has_a_hull_and_is_told_of_averages(tmp_path, bins, averaged):
    from lgm_blender.worker.lgm.model import LGM_CONFIGS

    config = replace(LGM_CONFIGS["mini"], hull_bins=bins, averaged_channel=averaged)
    shapes = {"unet.conv_in.weight": (32, config.in_channels, 3, 3), "unet.conv_out.weight": (14, 64, 3, 3)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.safetensors")
    found = find_start(str(tmp_path / "x.safetensors"), "mini")
    assert (found.config, found.preset) == (config, "mini")


def test_half_precision_pictures_give_the_same_hull():
    images, poses, _ = box_views(0.3, 32)
    np.testing.assert_allclose(
        hull_channels(images.half(), poses, 8).numpy(), hull_channels(images, poses, 8).numpy(), atol=2e-2
    )
