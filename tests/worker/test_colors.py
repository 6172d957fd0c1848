"""Views in the colours of the input image."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lgm_blender.worker.multiview.colors import finish_views, match_colors
from lgm_blender.worker.presets import find_preset, write_preset


@pytest.fixture
def views():
    """Four views of a striped box on white."""
    rng = np.random.default_rng(0)
    pictures = np.ones((4, 64, 64, 3), np.float32)
    pictures[:, 12:52, 12:52] = rng.uniform(0.2, 0.7, (4, 10, 1, 3)).repeat(4, 1)
    return pictures


def drifted(pictures):
    """The same in other colours, as a small model makes them: redder and duller."""
    inside = pictures.min(-1, keepdims=True) < 0.99
    changed = pictures @ np.array([[0.8, 0.0, 0.05], [0.1, 0.7, 0.0], [0.05, 0.1, 0.8]]) + [0.08, 0.0, 0.02]
    return np.where(inside, changed, pictures).astype(np.float32)


def test_colours_come_back_on_all_sides(views):
    wrong = drifted(views)
    right = match_colors(wrong, views[0])
    assert right.dtype == np.float32
    for i in range(4):
        assert np.abs(right[i] - views[i]).mean() < 0.4 * np.abs(wrong[i] - views[i]).mean()
    assert 0 <= right.min() <= right.max() <= 1


def test_white_stays_white(views):
    right = match_colors(drifted(views), views[0])
    outside = views.min(-1) == 1
    assert (right[outside] == 1).all()


def test_right_colours_stay_as_they_are(views):
    np.testing.assert_allclose(match_colors(views, views[0]), views, atol=1e-6)


@pytest.mark.parametrize("image", ["blank", "elsewhere"])
def test_an_image_that_shows_nothing_of_it_changes_nothing(views, image):
    picture = np.ones((64, 64, 3), np.float32)
    if image == "elsewhere":
        picture[:6, :6] = 0.3
    assert match_colors(views, picture) is views


def test_one_plain_colour_does_not_run_wild(views):
    views = views.copy()
    views[0, 12:52, 12:52] = (0.5, 0.3, 0.2)
    image = views[0].copy()
    image[12:52, 12:52] = (0.6, 0.5, 0.1)
    right = match_colors(views, image)
    np.testing.assert_allclose(right[0, 30, 30], (0.6, 0.5, 0.1), atol=0.03)
    assert np.abs(right - views).max() < 0.4


def test_a_preset_says_whether_its_colours_are_matched(tmp_path):
    assert find_preset("mini").match_colors
    assert not find_preset("lgm").match_colors
    (tmp_path / "lgm").mkdir()
    write_preset(tmp_path, name="mine", label="mine", base="mini")
    assert json.loads((tmp_path / "preset.json").read_text())["match_colors"] is True


def test_a_preset_says_whether_the_image_is_kept(tmp_path):
    assert find_preset("mini").keep_image
    assert not find_preset("lgm").keep_image
    (tmp_path / "lgm").mkdir()
    (tmp_path / "lgm" / "config.json").write_text("{}")
    write_preset(tmp_path, name="mine", label="mine", base="mini")
    assert find_preset(str(tmp_path)).keep_image


def test_a_preset_says_how_many_samples_are_averaged(tmp_path):
    assert find_preset("mini").samples == {"image": 1}
    assert find_preset("lgm").samples == {}
    (tmp_path / "lgm").mkdir()
    (tmp_path / "lgm" / "config.json").write_text("{}")
    write_preset(tmp_path, name="mine", label="mine", base="mini")
    assert find_preset(str(tmp_path)).samples == {"image": 1}


@pytest.mark.parametrize("match", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_what_becomes_of_views(views, match, keep):
    wrong = drifted(views)
    finished = finish_views(wrong, views[0], match=match, keep=keep)
    assert finished.dtype == np.float32
    np.testing.assert_array_equal(
        finished[0], views[0] if keep else (match_colors(wrong, views[0]) if match else wrong)[0]
    )
    np.testing.assert_array_equal(finished[1:], (match_colors(wrong, views[0]) if match else wrong)[1:])


def test_without_an_image_views_stay_as_they_are(views):
    assert finish_views(views, None, match=True, keep=True) is views


def test_an_image_of_another_size_is_made_as_large_as_the_views(views):
    large = views[0].repeat(2, 0).repeat(2, 1)
    finished = finish_views(views, large, match=False, keep=True)
    assert finished.shape == views.shape
    assert np.abs(finished[0] - views[0]).mean() < 0.03


def long_thing(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Four views of a thing whose image shows it larger than its view from behind by 1 / `scale`, and the image."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]

    def shape(size: float, mirror: int) -> np.ndarray:
        inside = (np.abs(x) < 0.8 * size) & (np.abs(y) < 0.5 * size) & ~((mirror * x > 0.2 * size) & (y < 0))
        return np.where(inside[..., None], (0.3, 0.5, 0.2), 1.0).astype(np.float32)

    return np.stack([shape(1, 1), shape(scale, 1), shape(scale, -1), shape(scale, 1)]), shape(1, 1)


@pytest.mark.parametrize("scale", [0.5, 0.7, 0.86])
def test_an_image_is_as_large_among_the_views_as_the_one_from_behind(scale):
    views, image = long_thing(scale)
    finished = finish_views(views, image, match=False, keep=True)
    meant, _ = long_thing(scale)
    np.testing.assert_array_equal(finished[1:], views[1:])
    wanted = meant[1]  # the image's side, that much smaller
    assert np.abs(finished[0] - wanted).mean() < 0.02
    assert finished[0, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("scale", [1.0, 0.98])
def test_an_image_of_about_that_size_stays_as_it_is(scale):
    views, image = long_thing(scale)
    np.testing.assert_array_equal(finish_views(views, image, match=False, keep=True)[0], image)


def test_a_back_that_is_nothing_like_it_says_nothing_of_its_size():
    views, image = long_thing(1.0)
    for back in (np.ones_like(views[2]), np.zeros_like(views[2])):
        views[2] = back
        np.testing.assert_array_equal(finish_views(views, image, match=False, keep=True)[0], image)
