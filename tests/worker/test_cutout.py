"""worker/matting on the kinds of pictures that were cut wrongly, and worker/cutout.py, which shows what was cut."""

from __future__ import annotations

import numpy as np
import pytest
from cutout_pictures import (
    backgrounds,
    bars,
    bird,
    eaten,
    gradients,
    grid,
    mixed,
    mug,
    overlap,
    picture,
    put,
    street,
)
from own_home import own_home  # noqa: F401
from PIL import Image

from lgm_blender.core.errors import LGMError
from lgm_blender.core.messages import MatteRequest
from lgm_blender.worker import cutout
from lgm_blender.worker.matting import border, matte, recenter
from lgm_blender.worker.matting.alpha import is_premultiplied

pytestmark = pytest.mark.usefixtures("own_home")


# Of the pictures of benchmarks/cutout.py, as many as take a few seconds.
GRADIENTS = [f"{kind}, {name}" for name in backgrounds() for kind in ("mug", "house")]
GRADIENTS += ["chair, spotlight", "chair, floor and wall", "plant, sweep", "fox, bokeh"]
GRADIENTS += ["mug, radial, JPEG 60", "mug, floor and wall, grain", "mug, vignette, shadow", "mug, sweep, 1024"]
GRADIENTS.remove("mug, bokeh")  # what its handle encloses is not seen to be behind it
EATEN = ["fox 246, white", "fox 240, off-white", "fox 240, white, JPEG 85", "bird 208, grey", "bird 214, grey, JPEG 85"]
EATEN += ["ghost 146, grey gradient", "ghost 158, gradient, JPEG 85", "ghost 134, radial"]
EATEN += ["chimney 150, off-white", "chimney 215, white", "chimney 185, white, soft", "chimney 185, white, shadow"]


def named(group, names=()) -> list:
    found = [pytest.param(image, true, id=name) for name, image, true in group() if not names or name in names]
    assert len(found) == len(names) or not names
    return found


@pytest.mark.parametrize(("image", "true"), [*named(gradients, GRADIENTS), *named(eaten, EATEN)])
def test_cut_as_it_should_be(image, true):
    doubts = []
    rgba, how = matte(image, warn=doubts.append)
    assert how == "border"
    assert overlap(rgba[..., 3] / 255, true) > 0.95
    assert doubts == []


@pytest.mark.parametrize(("image", "true"), named(bars))
def test_bars_are_no_background(image, true):
    doubts = []
    if true is None:  # a street is no object, and is not cut without a word
        matte(image, warn=doubts.append)
        assert doubts == [border.SCENE]
        return
    rgba, _ = matte(image)
    assert rgba.shape[:2] == true.shape  # in its own framing, whatever was taken off
    assert overlap(rgba[..., 3] / 255, true) > 0.95


def test_what_looks_like_bars():
    """A wide object on white, not cut off at its sides, has no bars above and below."""
    values = backgrounds()["white"].copy()
    values[150:230, 30:354] = (90, 60, 40)
    rgba, _ = matte(picture(values))
    assert (rgba[..., 3] > 128).sum() == pytest.approx(80 * 324, rel=0.01)


def test_an_object_that_has_no_edge_is_told():
    """Smoke: where it ends nobody can say."""
    x, y = grid()
    smoke = np.float32(np.clip(1.3 - 1.6 * np.hypot(x, y), 0, 1))
    doubts = []
    matte(picture(mixed(smoke, (198, 199, 200), (60, 70, 120))), warn=doubts.append)
    assert doubts == [border.EATEN]


@pytest.mark.parametrize("specks", ["pixel", "pixels", "smudge"])
def test_specks_in_an_alpha_channel_do_not_move_the_object(specks):
    rgba = np.uint8(mug() * 255 + 0.5)
    right = recenter(rgba)
    if specks == "smudge":
        rgba[350:380, 5:60] = (60, 60, 60, 20)
    else:
        for y, x in [(382, 1), (3, 380), (2, 2)][: 1 if specks == "pixel" else 3]:
            rgba[y, x] = (90, 90, 90, 255)
    np.testing.assert_array_equal(recenter(matte(Image.fromarray(rgba))[0]), right)


def test_separate_parts_stay():
    rgba = np.zeros((200, 200, 4), np.uint8)
    rgba[50:150, 50:100] = (200, 30, 30, 255)
    rgba[90:102, 180:192] = (30, 30, 200, 255)  # 3 % of the other
    blue = recenter(rgba)
    assert (blue[..., 2] - blue[..., 0]).max() > 0.5


@pytest.mark.parametrize("blur", [0, 3])
def test_premultiplied_cut_outs_lose_their_dark_rim(blur):
    straight = mug()
    if blur:
        from scipy import ndimage

        straight[..., :3] = (200 / 255, 60 / 255, 40 / 255)
        straight[..., 3] = ndimage.gaussian_filter(straight[..., 3], blur)
    dark = straight.copy()
    dark[..., :3] *= dark[..., 3:]
    expected = recenter(np.uint8(straight * 255 + 0.5))
    cut, how = matte(Image.fromarray(np.uint8(dark * 255 + 0.5)))
    assert how == "alpha"
    assert np.abs(recenter(cut) - expected).max() < 0.03
    assert np.abs(recenter(np.uint8(dark * 255 + 0.5)) - expected).max() > 0.15  # as it was


def test_dark_objects_are_not_taken_for_premultiplied():
    straight = mug()
    straight[..., :3] *= 0.15
    assert not is_premultiplied(np.uint8(straight * 255 + 0.5))
    straight[..., :3] = 0
    assert not is_premultiplied(np.uint8(straight * 255 + 0.5))


def test_a_threshold_cuts_more_away():
    image = picture(put(bird((170, 171, 172)), backgrounds()["grey"]))  # 11 in CIELAB from the background
    kept = [(matte(image, "border", threshold)[0][..., 3] > 128).mean() for threshold in (None, 0.05, 0.4)]
    assert kept[0] == pytest.approx(kept[1], rel=0.02)
    assert kept[2] < 0.8 * kept[0]
    haze = np.full((64, 64, 4), 60, np.uint8)
    haze[20:40, 20:40] = (200, 0, 0, 255)
    assert (matte(Image.fromarray(haze), "alpha", 0.5)[0][..., 3] > 0).sum() == 400


def test_a_small_picture_is_cut_by_a_mask_too():
    small = picture(street()).resize((40, 40))
    rgba, _ = matte(small, mask=Image.new("L", (20, 20), 255))
    np.testing.assert_array_equal(rgba[..., :3], np.asarray(small))


def test_a_mask_decides_alone(tmp_path):
    mask = Image.new("L", (50, 50))
    mask.paste(255, (10, 20, 30, 40))
    mask.save(tmp_path / "mask.png")
    rgba, how = matte(picture(street()), "network", mask=tmp_path / "mask.png")
    assert how == "mask"
    rows, columns = np.flatnonzero((rgba[..., 3] > 128).any(1)), np.flatnonzero((rgba[..., 3] > 128).any(0))
    assert (rows[0], columns[0]) == pytest.approx((384 * 0.4, 384 * 0.2), abs=2)
    assert (rows[-1], columns[-1]) == pytest.approx((384 * 0.8, 384 * 0.6), abs=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "magic"}, "no matting method"),
        ({"threshold": 3.0}, "from 0 to 1"),
        ({"mask": Image.new("L", (64, 64))}, "mask is black"),
        ({"method": "network"}, "not on this machine"),
        ({"method": "alpha", "threshold": 1.0}, "Lower the threshold"),
    ],
)
def test_what_cannot_be_done_is_told(arguments, sentence, monkeypatch):
    image = mug() if arguments.get("method") == "alpha" else None
    image = picture(street()) if image is None else Image.fromarray(np.uint8(image * [255, 255, 255, 200]))
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(LGMError, match=sentence):
        matte(image, **arguments)


def test_the_job_writes_what_is_to_be_looked_at(tmp_path):
    x, y = grid()
    picture(put(mug(), mixed((x + y + 2) / 4, (250,) * 3, (90,) * 3))).save(tmp_path / "mug.png")
    told = []
    result = cutout.matte(MatteRequest("7", str(tmp_path / "mug.png"), str(tmp_path / "out")), told.append)
    assert [progress.stage for progress in told] == ["matting", "save"]
    assert (result.matting, result.warnings) == ("border", [])
    assert overlap(np.asarray(Image.open(result.cutout))[..., 3] / 255, mug()[..., 3]) > 0.97
    assert Image.open(result.input).size == (256, 256)
    assert Image.open(result.preview).size == (512, 256)
    again = cutout.matte(MatteRequest("8", str(tmp_path / "mug.png"), str(tmp_path / "out")))
    assert again.cutout != result.cutout  # nothing is replaced without being asked


def test_no_torch_is_needed():
    import subprocess
    import sys

    code = (
        "import sys\nfrom lgm_blender.worker import server, cutout\nimport lgm_blender.worker.matting\n"
        "print({'torch', 'skimage', 'onnxruntime'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
