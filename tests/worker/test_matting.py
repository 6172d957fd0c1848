"""worker/matting.py on pictures drawn here, whose true alpha is known."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from lgm_blender.core.errors import LGMError
from lgm_blender.worker.matting import matte, recenter

SIZE = 256
RED = (200, 60, 40)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No matting network, whatever this machine has."""
    for name in ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME", "HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def mug() -> Image.Image:
    """RGBA, anti-aliased: a mug whose handle encloses the background."""
    big = Image.new("RGBA", (4 * SIZE, 4 * SIZE), (*RED, 0))
    draw = ImageDraw.Draw(big)
    draw.ellipse((600, 340, 880, 680), outline=RED, width=56)
    draw.rectangle((260, 240, 680, 800), fill=RED)
    draw.ellipse((260, 180, 680, 300), fill=(140, 40, 30))
    return big.resize((SIZE, SIZE), Image.Resampling.BOX)


HANDLE = (128, 192)  # row and column inside of the handle


def on(background, foreground: Image.Image | None = None) -> Image.Image:
    values = np.broadcast_to(np.asarray(background, np.float32), (SIZE, SIZE, 3))
    image = Image.fromarray(np.uint8(np.clip(values, 0, 255))).convert("RGBA")
    image.alpha_composite(foreground or mug())
    return image.convert("RGB")


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def ramp(a, b) -> np.ndarray:
    t = np.linspace(0, 1, SIZE)[:, None, None]
    return np.array(a) * (1 - t) + np.array(b) * t


def vignette(color) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    return np.array(color) * (1 - 0.18 * (x * x + y * y))[..., None]


def clutter() -> np.ndarray:
    small = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def assert_cut(image: Image.Image, difference: float, foreground: Image.Image | None = None):
    """The mean alpha difference, relative to the object's area, is small, and the background's colour is gone."""
    expected = np.asarray(foreground or mug())[..., 3] / 255
    rgba, how = matte(image)
    assert how == "border"
    assert rgba.dtype == np.uint8
    assert np.abs(rgba[..., 3] / 255 - expected).sum() / expected.sum() < difference
    return rgba


BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "green": (60, 180, 75),
    "ramp": ramp((250, 240, 220), (180, 190, 205)),
    "vignette": vignette((120, 150, 120)),
}


@pytest.mark.parametrize("background", BACKGROUNDS.values(), ids=BACKGROUNDS)
def test_plain_backgrounds(background):
    rgba = assert_cut(on(background), 0.01)
    assert rgba[HANDLE][3] == 0
    assert rgba[128, 100, 3] == 255
    # No fringe: whatever is seen along the edge has the mug's colours, red well above green.
    seen = rgba[rgba[..., 3] > 25].astype(int)
    assert (seen[:, 0] - seen[:, 1]).min() > 60


@pytest.mark.parametrize("background", BACKGROUNDS.values(), ids=BACKGROUNDS)
def test_jpeg_noise(background):
    assert_cut(jpeg(on(background), 60), 0.06)


def test_grain():
    noise = np.random.default_rng(0).normal(0, 6, (SIZE, SIZE, 3))
    values = np.asarray(on(vignette((120, 150, 120)))) + noise
    assert_cut(Image.fromarray(np.uint8(np.clip(values, 0, 255))), 0.05)


def test_a_soft_edge_stays_soft():
    ball = Image.new("RGBA", (SIZE, SIZE), (*RED, 0))
    ImageDraw.Draw(ball).ellipse((60, 60, 196, 196), fill=RED)
    blurred = ball.filter(ImageFilter.GaussianBlur(4))
    rgba = assert_cut(on((20, 30, 60), blurred), 0.03, blurred)
    assert 0.05 < ((rgba[..., 3] > 20) & (rgba[..., 3] < 235)).mean() < 0.3


def test_a_soft_shadow_is_left_behind():
    shadow = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(shadow).ellipse((60, 185, 210, 225), fill=(40, 40, 40, 110))
    below = Image.new("RGBA", (SIZE, SIZE), (240, 240, 240, 255))
    below.alpha_composite(shadow.filter(ImageFilter.GaussianBlur(7)))
    below.alpha_composite(mug())
    assert_cut(below.convert("RGB"), 0.03)


def test_an_object_cut_off_by_the_picture():
    moved = Image.new("RGBA", (SIZE, SIZE))
    moved.paste(mug(), (0, 100))
    assert_cut(on((40, 60, 110), moved), 0.02, moved)


def test_thin_parts_stay():
    image = Image.new("RGBA", (SIZE, SIZE), (20, 30, 60, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((100, 100, 156, 156), fill=(20, 30, 60))
    draw.line((128, 128, 128, 20), fill=(20, 30, 60), width=2)
    rgba = assert_cut(on((220, 220, 225), image), 0.02, image)
    assert rgba[40, 128, 3] > 200


def test_details_inside_stay():
    face = Image.new("RGBA", (SIZE, SIZE), (250, 210, 40, 0))
    draw = ImageDraw.Draw(face)
    draw.ellipse((40, 40, 216, 216), fill=(250, 210, 40))
    draw.ellipse((80, 90, 110, 130), fill="white")
    draw.ellipse((90, 100, 100, 115), fill="black")
    on_white = recenter(matte(on((255, 255, 255), face))[0])
    assert (on_white.max(axis=2) < 0.1).sum() > 80  # the pupil is still there
    assert np.abs(on_white - recenter(np.asarray(face))).mean() < 0.01


def test_white_on_white_with_a_shadow_does_not_crash():
    image = Image.new("RGB", (SIZE, SIZE), "white")
    shadow = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(shadow).ellipse((60, 180, 200, 220), fill=90)
    image.paste((60, 60, 60), mask=shadow.filter(ImageFilter.GaussianBlur(9)))
    draw = ImageDraw.Draw(image)
    for i in range(30):
        draw.ellipse((80 + i, 60 + i, 190, 210), fill=(255 - i,) * 3)
    rgba, how = matte(image)
    assert how == "border"
    assert rgba[..., 3].any()
    recenter(rgba)


def test_its_own_alpha_is_used_as_it_is():
    image = mug()
    rgba, how = matte(image)
    assert how == "alpha"
    np.testing.assert_array_equal(rgba, np.asarray(image))


def test_an_opaque_alpha_says_nothing():
    image = on((60, 180, 75)).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))  # a rounded corner
    assert matte(image)[1] == "border"


@pytest.mark.parametrize(
    ("image", "kind", "sentence"),
    [
        (Image.new("RGBA", (64, 64), (255, 0, 0, 0)), "bad_input", "fully transparent"),
        (Image.new("RGBA", (64, 64), (255, 0, 0, 4)), "bad_input", "fully transparent"),
        (Image.new("RGB", (64, 64), (255, 255, 255)), "bad_input", "of one colour"),
        (Image.new("L", (64, 64), 7), "bad_input", "of one colour"),
        (Image.new("RGB", (2000, 10)), "bad_input", "too narrow"),
        (on(clutter()), "matting", "not plain"),
        (
            on((198, 60, 40), Image.new("RGBA", (9, 9), (200, 66, 46, 255)).resize((90, 90))),
            "matting",
            "too much alike",
        ),
    ],
)
def test_what_cannot_be_cut(image, kind, sentence):
    with pytest.raises(LGMError) as caught:
        matte(image)
    assert caught.value.kind == kind
    assert sentence in caught.value.message


def test_a_table_is_not_part_of_the_object():
    background = np.broadcast_to(np.float32([200, 215, 230]), (SIZE, SIZE, 3)).copy()
    background[165:] = [120, 90, 60]
    assert_cut(on(background), 0.03)


@pytest.mark.parametrize("box", [(10, 20, 90, 40), (150, 3, 170, 250), (0, 0, 256, 256), (100, 100, 101, 101)])
@pytest.mark.parametrize("size", [256, 128])
def test_recentring_fills_80_percent(box, size):
    rgba = np.zeros((SIZE, SIZE, 4), np.uint8)
    left, top, right, bottom = box
    rgba[top:bottom, left:right] = (10, 200, 30, 255)
    image = recenter(rgba, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.float32
    inside = image[..., 0] < 0.9
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert abs(max(len(rows), len(columns)) - 0.8 * size) <= 1
    for found in (rows, columns):
        assert abs(found[0] + found[-1] - (size - 1)) <= 1
    longer = max(right - left, bottom - top)
    assert len(columns) == pytest.approx(0.8 * size * (right - left) / longer, abs=1.01)
    np.testing.assert_allclose(image[~inside], 1, atol=1e-6)
    np.testing.assert_allclose(image[size // 2, size // 2], np.array([10, 200, 30]) / 255, atol=1e-3)


def test_recentring_mixes_with_white_by_alpha_only():
    rgba = np.zeros((100, 100, 4), np.uint8)  # black where transparent: it must not darken the edge
    rgba[20:80, 20:80] = (255, 0, 0, 128)
    image = recenter(rgba)
    np.testing.assert_allclose(image[128, 128], [1, 127 / 255, 127 / 255], atol=1e-3)
    assert image[..., 0].min() > 0.999


def test_recentring_ignores_haze_but_not_a_faint_object():
    haze = np.full((100, 100, 4), 9, np.uint8)
    haze[40:60, 40:60] = (0, 0, 0, 255)
    assert recenter(haze)[128, 60].max() < 0.1
    faint = np.zeros((100, 100, 4), np.uint8)
    faint[40:60, 40:60] = (0, 0, 0, 10)
    assert recenter(faint)[128, 128].max() < 0.97


def test_recentring_nothing_is_answered():
    with pytest.raises(LGMError, match="shows no object"):
        recenter(np.zeros((50, 50, 4), np.uint8))


def test_is_fast():
    image = on(BACKGROUNDS["vignette"]).resize((1024, 1024), Image.Resampling.BICUBIC)
    began = time.perf_counter()
    matte(image)
    assert time.perf_counter() - began < 15
