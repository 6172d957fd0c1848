"""Image datablocks as files. Run: pytest tests/blender/test_images.py"""

from __future__ import annotations

import struct

import bpy
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from lgm_blender.blender.scene import images
from lgm_blender.core.errors import LGMError
from lgm_blender.core.pictures import BLENDER_PICTURES, OTHER_PICTURES, WORKER_PICTURES


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


GREY = 0.2140411  # in scene-linear light, what 128 shows


def float_tiff(path, pixels, order):
    """Pixels [H, W, 3 or 4] as a TIFF of floats, which neither Pillow nor Blender can write."""
    height, width, channels = pixels.shape
    data, behind = pixels.astype(f"{order}f4").tobytes(), b""
    start = 8 + 2 + 12 * 10 + 4  # of what is behind the list of tags
    tags = b""
    for tag, kind, values in (
        (256, "I", [width]), (257, "I", [height]), (258, "H", [32] * channels), (259, "H", [1]), (262, "H", [2]),
        (273, "I", [start + 4 * channels]), (277, "H", [channels]), (278, "I", [height]), (279, "I", [len(data)]),
        (339, "H", [3] * channels),
    ):  # fmt: skip
        value = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(value) > 4:
            behind += value
            value = struct.pack(f"{order}I", start + len(behind) - len(value))
        tags += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + value.ljust(4, b"\0")
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    path.write_bytes(magic + struct.pack(f"{order}IH", 8, 10) + tags + bytes(4) + behind + data)


@pytest.mark.parametrize(("kind", "alpha"), [("OPEN_EXR", 128), ("DPX", 128), ("HDR", 255)])
def test_what_only_blender_reads_is_converted(new_image, tmp_path, kind, alpha):
    linear = np.zeros((2, 3, 4), np.float32)
    linear[:] = [0.5 * GREY, 0.5 * GREY, 0.5 * GREY, 0.5]  # premultiplied
    linear[0, 0] = [7.0, 0.0, 0.0, 1.0]
    path = tmp_path / f"a thing.{kind.lower().removeprefix('open_')}"
    settings = bpy.context.scene.render.image_settings
    settings.file_format = kind
    settings.color_mode = "RGB" if kind == "HDR" else "RGBA"
    bpy.context.scene.view_settings.view_transform = "Standard"
    new_image("linear", linear, float_buffer=True).save_render(str(path), scene=bpy.context.scene)
    found = images.readable_file(path, tmp_path / "written")
    assert found == tmp_path / "written" / "a thing.png"
    shown = 128 if alpha == 128 else 92  # without alpha it is over black
    assert (np.abs(read(found)[1, 1].astype(int) - [shown, shown, shown, alpha]) <= 1).all()
    assert (read(found)[0, 0] == [255, 0, 0, 255]).all()
    assert not [scene for scene in bpy.data.scenes if scene.name.startswith("LGM")]
    # The same of a datablock, whose own file the worker could not read.
    found.unlink()
    image = bpy.data.images.load(str(path))
    assert images.image_file(image, tmp_path / "written") == found
    assert found.exists()
    bpy.data.images.remove(image)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [3, 4])
def test_tiff_of_floats_is_converted(tmp_path, order, channels):
    path = tmp_path / "floats.tif"
    float_tiff(path, np.ones((3, 5, channels)) * [1.0, 0.0, 1.0, 1.0][:channels], order)
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)
    found = read(images.readable_file(path, tmp_path / "written"))
    assert found.shape == (3, 5, 4)
    assert (found == [255, 0, 255, 255]).all()


def test_what_the_worker_reads_is_left_to_it(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif", "a.gif", "a.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    Image.new("F", (4, 4)).save(tmp_path / "grey.tif")
    (tmp_path / "cut.tif").write_bytes(b"II*\0\xff")
    (tmp_path / "notes.txt").write_text("")
    for path in (*tmp_path.iterdir(), tmp_path / "none.exr"):
        assert images.readable_file(path, tmp_path / "written") == path
    assert not (tmp_path / "written").exists()


def test_broken_exr_is_a_sentence(tmp_path):
    (tmp_path / "broken.exr").write_bytes(b"nonsense")
    with pytest.raises(LGMError, match=r"broken\.exr can't be read"):
        images.readable_file(tmp_path / "broken.exr", tmp_path)
    assert not bpy.data.images


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


def test_every_suffix_of_blenders_pictures_is_known():
    known = {*WORKER_PICTURES, *BLENDER_PICTURES, *OTHER_PICTURES}
    assert bpy.path.extensions_image - known - {".bw", ".iff"} == set()
    assert len(known) == len(WORKER_PICTURES) + len(BLENDER_PICTURES) + len(OTHER_PICTURES)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("apple.png", "apple"),
        ("a/b:c*.JPG", "a_b_c_"),
        ("  ", "untitled"),
        ("Äpfel v1.2", "Äpfel v1.2"),
        ("..", "untitled"),
    ],
)
def test_file_stem(name, stem):
    assert images.file_stem(name) == stem
