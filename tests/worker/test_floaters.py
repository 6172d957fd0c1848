"""Removing floaters from what came out of averaged views."""

import json

import numpy as np
import pytest

from lgm_blender.core.gaussians import Gaussians
from lgm_blender.worker.floaters import without_floaters
from lgm_blender.worker.presets import find_preset, read_preset, write_preset


def gaussians(positions, opacity, scale=0.03):
    count = len(positions)
    return Gaussians(
        np.float32(positions),
        np.full(count, opacity, np.float32),
        np.full((count, 3), scale, np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (count, 1)),
        np.full((count, 3), 0.5, np.float32),
    )


def joined(*parts):
    return Gaussians.from_array(np.concatenate([part.to_array() for part in parts]))


def ball(radius, count=2000, hollow=0.0):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * np.cbrt(rng.uniform(hollow**3, 1, (count, 1))) * radius


def test_a_cloud_around_a_ball_goes():
    solid, cloud = gaussians(ball(0.2), 0.5), gaussians(ball(0.45, 300, hollow=0.7), 0.03)
    cleared = without_floaters(joined(solid, cloud))
    inside = np.linalg.norm(cleared.positions, axis=1) < 0.25
    assert inside.sum() == len(solid)
    assert (~inside).sum() < 0.15 * len(cloud)  # what is above or below is not beside the ball from most sides


def test_many_faint_ones_that_cover_each_other_stay():
    thick = gaussians(ball(0.2, 6000), 0.05)
    assert len(without_floaters(thick)) > 0.98 * len(thick)


def test_a_faint_one_goes_even_inside():
    solid, faint = gaussians(ball(0.2), 0.5), gaussians(ball(0.1, 50), 0.01)
    np.testing.assert_array_equal(without_floaters(joined(solid, faint)).opacities, solid.opacities)


@pytest.mark.parametrize("turn", [0, 45, 90, 20])
def test_a_thin_sheet_stays(turn):
    """From its edges it is a line."""
    y, x = np.mgrid[-0.3:0.3:60j, -0.3:0.3:60j].reshape(2, -1)
    angle = np.radians(turn)
    sheet = gaussians(np.stack([x * np.cos(angle), y, x * np.sin(angle)], 1), 0.9, scale=0.004)
    assert len(without_floaters(sheet)) > 0.95 * len(sheet)


def test_what_is_faint_altogether_stays_for_the_most_part():
    """A net has no place that is covered well."""
    net = gaussians(ball(0.3, 400), 0.1, scale=0.005)
    cleared = without_floaters(net)
    assert cleared.opacities.sum() >= 0.5 * net.opacities.sum()


def test_order_and_values_are_kept():
    both = joined(gaussians(ball(0.2), 0.5), gaussians(ball(0.45, 300, hollow=0.8), 0.01))
    cleared = without_floaters(both).to_array()
    rows = {row.tobytes(): number for number, row in enumerate(both.to_array())}
    numbers = [rows[row.tobytes()] for row in cleared]
    assert numbers == sorted(numbers)


def test_of_none_there_are_none():
    assert len(without_floaters(gaussians(np.zeros((0, 3)), 0.5))) == 0


def test_a_single_one_stays():
    assert len(without_floaters(gaussians(np.zeros((1, 3)), 0.006))) == 1


def test_what_is_behind_the_cameras_does_no_harm():
    far = joined(gaussians(ball(0.2), 0.5), gaussians([[0, 0, 5], [9, 0, 0]], 0.9))
    assert len(without_floaters(far)) == len(far) - 2


def test_a_preset_says_whether_floaters_are_removed(tmp_path):
    assert find_preset("mini").remove_floaters
    assert not find_preset("lgm").remove_floaters  # it is sure of what it makes, and known by its raw results
    (tmp_path / "lgm").mkdir()
    (tmp_path / "lgm" / "config.json").write_text("{}")
    write_preset(tmp_path, name="mine", label="mine", base="mini")
    assert json.loads((tmp_path / "preset.json").read_text())["remove_floaters"] is True
    assert read_preset(tmp_path).remove_floaters
