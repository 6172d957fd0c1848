"""Image datablocks as files. Run: pytest tests/blender/test_images.py"""

from __future__ import annotations

import bpy
import numpy as np
import pytest
from PIL import Image

from lgm_blender.blender.scene import images
from lgm_blender.core.errors import LGMError


@pytest.fixture
def new_image():
    """Images of this Blender, removed at the end."""
    made = []

    def new(name, pixels, **options):
        height, width, _ = pixels.shape
        image = bpy.data.images.new(name, width, height, alpha=True, **options)
        image.pixels.foreach_set(np.ascontiguousarray(pixels[::-1], np.float32).ravel())
        made.append(image)
        return image

    yield new
    for image in made:
        bpy.data.images.remove(image)


@pytest.fixture
def pixels():
    """[5, 7, 4] in 0..1, with an alpha of every kind."""
    return (np.random.default_rng(0).integers(0, 256, (5, 7, 4)) / 255).astype(np.float32)


def read(path):
    with Image.open(path) as picture:
        assert picture.mode == "RGBA"
        return np.asarray(picture)


def test_painted_image_is_written_with_its_alpha(new_image, pixels, tmp_path):
    path = images.image_file(new_image("Grüner Apfel 1.png", pixels), tmp_path / "folder")
    assert path == tmp_path / "folder" / "Grüner Apfel 1.png"
    np.testing.assert_array_equal(read(path), np.round(pixels * 255))


def test_float_image_is_written_in_display_space(new_image, tmp_path):
    linear = np.zeros((2, 2, 4), np.float32)
    linear[..., :3] = 0.5 * 0.2140411  # premultiplied half transparent mid grey
    linear[..., 3] = 0.5
    path = images.image_file(new_image("float", linear, float_buffer=True), tmp_path)
    assert (np.abs(read(path).astype(int) - [128, 128, 128, 128]) <= 1).all()


def test_file_is_taken_as_it_is(pixels, tmp_path):
    path = tmp_path / "a file.png"
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    image = bpy.data.images.load(str(path))
    assert images.image_file(image, tmp_path / "unused") == path
    assert not (tmp_path / "unused").exists()
    bpy.data.images.remove(image)


def test_packed_image_outlives_its_file(pixels, tmp_path):
    path = tmp_path / "packed.png"
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    image = bpy.data.images.load(str(path))
    image.pack()
    path.unlink()
    found = images.image_file(image, tmp_path / "written")
    opaque = pixels[..., 3] > 0  # nothing is said about a colour that can't be seen
    np.testing.assert_array_equal(read(found)[opaque], (pixels * 255).astype(np.uint8)[opaque])
    bpy.data.images.remove(image)


def test_image_whose_file_is_gone(tmp_path):
    path = tmp_path / "gone.png"
    Image.new("RGBA", (2, 2)).save(path)
    image = bpy.data.images.load(str(path))
    path.unlink()
    with pytest.raises(LGMError, match="has no pixels"):
        images.image_file(image, tmp_path)
    bpy.data.images.remove(image)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("apple.png", "apple"), ("a/b:c*.JPG", "a_b_c_"), ("  ", "image"), ("Äpfel v1.2", "Äpfel v1.2"), ("..", "image")],
)
def test_file_stem(name, stem):
    assert images.file_stem(name) == stem
