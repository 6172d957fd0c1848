"""worker/images.py: whatever a user has is a picture, or is answered with a sentence."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lgm_blender.core.errors import LGMError
from lgm_blender.worker.images import read_image


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Red above blue, so that up is known."""
    values = np.zeros((height, width, 3), np.uint8)
    values[: height // 2] = [200, 30, 20]
    values[height // 2 :] = [20, 40, 220]
    return Image.fromarray(values)


def assert_red_above_blue(image: Image.Image, tolerance: int = 40):
    values = np.asarray(image).astype(int)
    height, width = values.shape[:2]
    assert values.shape[2] == 4
    assert abs(values[height // 5, width // 2, :3] - [200, 30, 20]).max() < tolerance
    assert abs(values[-height // 5, width // 2, :3] - [20, 40, 220]).max() < tolerance


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif", "żółw 亀 'n' co.png"])
def test_common_formats(tmp_path, name):
    picture().save(tmp_path / name)
    assert_red_above_blue(read_image(tmp_path / name))


def test_the_suffix_may_lie(tmp_path):
    picture().save(tmp_path / "a", "PNG")
    (tmp_path / "a").rename(tmp_path / "a.jpg")
    assert_red_above_blue(read_image(tmp_path / "a.jpg"))


def test_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (60, 40)
    assert_red_above_blue(image)


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "YCbCr", "LAB"])
def test_modes(tmp_path, mode):
    image = picture()
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(image, to_lab)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.tif")
    assert_red_above_blue(read_image(tmp_path / "a.tif"), tolerance=45)


def test_greys_of_any_depth(tmp_path):
    ramp = np.linspace(0, 1, 40)[:, None] * np.ones((1, 60))
    Image.fromarray(np.uint8(ramp * 255)).save(tmp_path / "8.png")
    Image.fromarray(np.uint16(ramp * 65535)).save(tmp_path / "16.png")
    Image.fromarray(np.int32(ramp * 65535)).save(tmp_path / "32.tif")
    Image.fromarray(np.float32(ramp)).save(tmp_path / "float.tif")
    Image.fromarray(ramp > 0.5).save(tmp_path / "1.png")
    expected = np.asarray(read_image(tmp_path / "8.png")).astype(int)
    for name in ("16.png", "32.tif", "float.tif"):
        assert abs(np.asarray(read_image(tmp_path / name)).astype(int) - expected).max() <= 1, name
    assert set(np.unique(read_image(tmp_path / "1.png"))) == {0, 255}


def test_transparency_of_a_palette(tmp_path):
    image = picture().quantize(4)
    image.save(tmp_path / "a.png", transparency=image.getpixel((5, 5)))
    alpha = np.asarray(read_image(tmp_path / "a.png"))[..., 3]
    assert not alpha[5].any()
    assert (alpha[-5] == 255).all()


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        picture().save(tmp_path / name, save_all=True, append_images=frames, quality=95)
        assert_red_above_blue(read_image(tmp_path / name))


def test_a_colour_profile_is_followed(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture().save(tmp_path / "a.png", icc_profile=profile)
    assert_red_above_blue(read_image(tmp_path / "a.png"), tolerance=3)
    picture().save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert_red_above_blue(read_image(tmp_path / "a.png"), tolerance=1)


def test_large_pictures_are_reduced(tmp_path):
    picture(3000, 1500).save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (1024, 512)
    assert_red_above_blue(image)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb() -> bytes:
    """A PNG of 40,000 × 40,000 pixels in a few bytes."""
    size = (40_000).to_bytes(4, "big") * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", zlib.compress(b""))


def saved(tmp_path: Path, image: Image.Image) -> bytes:
    image.save(tmp_path / "saved.png")
    return (tmp_path / "saved.png").read_bytes()


def test_what_is_no_picture(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = saved(tmp_path, noise)
    cases = {
        b"": "empty file",
        b"this is a text": "not an image that can be read",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n": "not an image that can be read",
        whole[: len(whole) // 2]: "damaged or cut short",
        whole[:20]: "not an image that can be read",
        bomb(): "megapixels",
        b"P3\n2000 2000\n255\n1 2 3": "too many for PPM of this kind",
        saved(tmp_path, Image.new("RGB", (20_000, 10))): "20000 × 10 pixels: too narrow",
        saved(tmp_path, Image.new("RGB", (10, 20_000))): "10 × 20000 pixels: too narrow",
        saved(tmp_path, Image.new("RGB", (8, 8))): "8 × 8 pixels: too small",
        saved(tmp_path, Image.new("RGB", (1, 1))): "1 × 1 pixels: too small",
    }
    path = tmp_path / "ä b.png"
    for data, sentence in cases.items():
        path.write_bytes(data)
        with pytest.raises(LGMError) as caught:
            read_image(path)
        assert sentence in caught.value.message
        assert str(path) in caught.value.message
        assert caught.value.kind == "bad_input"


def test_what_is_no_file(tmp_path):
    with pytest.raises(LGMError, match="There is no file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(LGMError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(LGMError, match="There is no file"):
        read_image("a\0b.png")
    with pytest.raises(LGMError, match=r"There is no file|could not be read"):
        read_image(tmp_path / ("x" * 5000))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak of memory")
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_large_picture_is_in_memory_once(tmp_path, mode):
    Image.new(mode, (5000, 5000)).save(tmp_path / "a.png")

    def memory(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    assert read_image(tmp_path / "a.png").size == (1024, 1024)
    assert memory("VmHWM") - before < 1.8 * 4 * 5000**2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_picture_is_turned_and_reduced_as_a_small_one(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.zeros((2940, 4200, 4), np.uint8)
    values[..., 3], values[:980, :, 0], values[:, 1400:, 1], values[2100:, 2800:, 3] = 255, 200, 150, 0
    large = Image.fromarray(values)
    large.save(tmp_path / "large.png", exif=exif, compress_level=1)
    large.reduce(2).save(tmp_path / "small.png", exif=exif)
    read, wanted = (np.asarray(read_image(tmp_path / f"{name}.png")).astype(int) for name in ("large", "small"))
    assert read.shape == wanted.shape
    assert np.abs(read - wanted).max(axis=(2)).mean() < 1
