"""Folders of training views to arrays, and from meshes. Run: python build.py test tests/training/test_dataset.py"""

from __future__ import annotations

import io
import json
import math
import zipfile

import numpy as np
import pytest
from glb import box, bumpy_ball, patchwork, piece, write_glb
from PIL import Image

from lgm_blender.core.cameras import FOV_Y, orbit_cameras, pose_to_blender, view_poses
from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.transforms import file_name, write_transforms
from lgm_blender.training.__main__ import main
from lgm_blender.training.data import dataset, mesh_files
from lgm_blender.training.data import render_views as make
from lgm_blender.training.data.dataset import find_objects, load_objects
from lgm_blender.training.data.mesh_renderer import ViewRenderer
from lgm_blender.training.data.objects import to_linear

SIZE = 32


@pytest.fixture(scope="module")
def renderer():
    return ViewRenderer(SIZE, distance_size=0)


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """A ball with bumps and squares of many colours, as a GLB."""
    positions, uv, faces = bumpy_ball()
    path = tmp_path_factory.mktemp("meshes") / "Bumpy Ball.glb"
    return write_glb(path, piece(positions, faces, uv=uv, picture=patchwork()))


@pytest.fixture(scope="module")
def rendered(ball, renderer):
    """Its views [8, SIZE, SIZE, 4], premultiplied, and their poses."""
    poses = view_poses("ball", 8)[0]
    return renderer.render(mesh_files.read_mesh_file(ball), poses)[0], poses


@pytest.fixture
def folder(tmp_path, rendered):
    """Makes an object's folder of those views; changes go into its transforms.json, and None takes a key out."""

    def make_folder(name="ball", views=rendered[0], poses=rendered[1], caption="a ball", **changes):
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        for i, view in enumerate(views):
            (folder / file_name(i)).write_bytes(make.encode_png(view))
        write_transforms(folder, poses, views.shape[1], caption)
        if changes:
            content = json.loads((folder / "transforms.json").read_bytes()) | changes
            content = {key: value for key, value in content.items() if value is not None}
            (folder / "transforms.json").write_text(json.dumps(content))
        return folder

    return make_folder


def load(*folders, **options):
    told = []
    result = load_objects(folders, SIZE, tell=told.append, **options)
    assert told == result.problems
    return result


def frames(poses) -> list[dict]:
    return [{"file_path": file_name(i), "transform_matrix": pose.tolist()} for i, pose in enumerate(poses)]


def psnr(a, b) -> float:
    a, b = (x.astype(np.float64) / 255 for x in (a, b))
    a, b = (x[..., :3] + 1 - x[..., 3:] for x in (a, b))
    return float(-10 * np.log10(max(((a - b) ** 2).mean(), 1e-9)))


def shrunk(view: np.ndarray, size: int, part) -> np.ndarray:
    """Part of a premultiplied view at another size; each channel for itself, as Pillow would weight them by alpha."""
    channels = [Image.fromarray(view[..., i]).crop(part).resize((size, size), Image.Resampling.BOX) for i in range(4)]
    return np.stack([np.asarray(channel) for channel in channels], -1)


# The format


def test_round_trip(folder, rendered):
    first, second = folder("a"), folder("b", rendered[0][:, ::-1], caption="")
    result = load(*find_objects(first.parent))
    assert result.pixels.dtype == np.uint8
    assert np.abs(result.pixels[:8].astype(int) - rendered[0]).max() <= 1
    assert np.abs(result.pixels[8:].astype(int) - rendered[0][:, ::-1]).max() <= 1
    assert result.poses.dtype == np.float32
    np.testing.assert_allclose(result.poses, np.tile(rendered[1], (2, 1, 1)), atol=1e-6)
    assert (result.counts.tolist(), result.captions, result.names) == ([8, 8], ["a ball", ""], ["a", "b"])
    assert result.problems == []
    assert find_objects(second) == [second]


def test_splits(folder):
    for name, split in (("a", None), ("b", "val"), ("c", "train"), ("d", "test")):
        folder(name, split=split)
    parent = folder("e").parent
    (parent / "f").mkdir()
    (parent / "e" / "transforms.json").write_text("{")
    assert [path.name for path in find_objects(parent, "val")] == ["b"]
    assert [path.name for path in find_objects(parent, "train")] == ["a", "c", "d", "e"]


# What other tools write


def test_z_up_at_another_distance_and_off_centre(folder, rendered):
    """As Blender's own tools write it: world coordinates of Blender, no word of which axis is up."""
    poses = np.stack([pose_to_blender(pose) for pose in rendered[1].astype(np.float64)])
    poses[:, :3, 3] = poses[:, :3, 3] * 4 + (10, -3, 2)
    result = load(folder(frames=frames(poses), up=None))
    np.testing.assert_allclose(result.poses, rendered[1], atol=1e-5)


def test_y_up_is_told_from_the_cameras(folder, rendered):
    result = load(folder(up=None))
    np.testing.assert_allclose(result.poses, rendered[1], atol=1e-6)


def test_cameras_of_which_some_are_farther_away(folder, rendered):
    poses = rendered[1].copy()
    poses[3, :3, 3] *= 1.1
    poses[5, :3, 3] *= 2
    result = load(folder(frames=frames(poses)), least=4)
    np.testing.assert_allclose(result.poses, poses[[0, 1, 2, 3, 4, 6, 7]], atol=1e-6)
    assert "1 of 8 views left out" in result.problems[0]
    assert "2.00 times as far" in result.problems[0]


@pytest.mark.parametrize("fov", [40.0, 49.1, 65.0])
@pytest.mark.parametrize("size", [32, 96])
def test_another_field_of_view_and_resolution(folder, rendered, ball, fov, size):
    """A picture from another lens, at another size, becomes the one that LGM's camera would have taken."""
    big = ViewRenderer(480, distance_size=0).render(mesh_files.read_mesh_file(ball, radius=0.45), rendered[1])[0]
    # LGM's frame of 480 pixels, cut or padded to the field of view that is wanted.
    wanted = round(480 * math.tan(math.radians(fov / 2)) / math.tan(math.radians(FOV_Y / 2)) / 2) * 2
    edge = (480 - wanted) // 2
    views = np.stack([shrunk(view, size, (edge, edge, 480 - edge, 480 - edge)) for view in big])
    fov = 2 * math.atan(wanted / 480 * math.tan(math.radians(FOV_Y / 2)))
    nothing = dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h"))
    result = load(folder(views=views, **nothing, camera_angle_x=fov))
    ground_truth = np.stack([shrunk(view, SIZE, (0, 0, 480, 480)) for view in big])
    assert psnr(result.pixels, ground_truth) > (40 if size == 96 else 30)
    assert (result.pixels[..., :3] <= result.pixels[..., 3:]).all()


def test_a_principal_point_off_the_middle(folder, rendered):
    views = np.zeros((8, SIZE, SIZE + 16, 4), np.uint8)
    views[:, :, 16:] = rendered[0]
    angle = 2 * math.atan((SIZE + 16) / SIZE * math.tan(math.radians(FOV_Y / 2)))
    changes = {"cx": SIZE / 2 + 16, "cy": SIZE / 2, "w": SIZE + 16, "h": SIZE, "fl_x": None, "fl_y": None}
    result = load(folder(views=views, **changes, camera_angle_x=angle))
    assert np.abs(result.pixels.astype(int) - rendered[0]).max() <= 2


def test_pictures_resized_since_the_file_was_written(folder, rendered):
    result = load(folder(w=4 * SIZE, h=4 * SIZE, fl_x=4 * 35.0, fl_y=None, cx=2 * SIZE, cy=2 * SIZE))
    assert psnr(result.pixels, rendered[0]) > 30


def test_a_white_background_is_cut_off(folder, rendered, renderer, ball):
    poses = rendered[1]
    views, _ = ViewRenderer(128, distance_size=0).render(mesh_files.read_mesh_file(ball), poses)
    path = folder(views=views)
    for i, view in enumerate(views):
        white = view[..., :3] + 255 - view[..., 3:]
        Image.fromarray(white).save(path / f"{i:03d}.jpg", quality=98)
        (path / file_name(i)).unlink()
    listed = [entry | {"file_path": f"{i:03d}"} for i, entry in enumerate(frames(poses))]
    content = json.loads((path / "transforms.json").read_bytes()) | {"frames": listed}
    (path / "transforms.json").write_text(json.dumps(content))
    result = load_objects([path], 128)
    alpha, ground_truth = result.pixels[..., 3] > 127, views[..., 3] > 127
    assert (alpha & ground_truth).sum() / (alpha | ground_truth).sum() > 0.97
    assert psnr(result.pixels, views) > 28


# What is broken


def test_broken_pictures_cost_their_views_only(folder, rendered):
    path = folder("a")
    (path / "001.png").write_bytes(b"no picture")
    (path / "002.png").unlink()
    (path / "004.png").write_bytes((path / "004.png").read_bytes()[:300])
    Image.new("RGBA", (SIZE, SIZE)).save(path / "005.png")
    Image.effect_noise((SIZE, SIZE), 90).convert("RGB").save(path / "006.png")
    Image.new("RGBA", (3, 3), "red").save(path / "007.png")
    result = load(path, folder("b"), least=2)
    assert result.counts.tolist() == [2, 8]
    assert np.abs(result.pixels[:2].astype(int) - rendered[0][[0, 3]]).max() <= 1
    assert np.abs(result.pixels[2:].astype(int) - rendered[0]).max() <= 1
    np.testing.assert_allclose(result.poses[:2], rendered[1][[0, 3]], atol=1e-6)
    assert len(result.problems) == 1
    assert result.problems[0].startswith("a: 6 of 8 views left out, first view 2: there is no file")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: Image.new("RGBA", (SIZE, SIZE)).save(path), "it shows nothing"),
        (lambda path: Image.new("RGB", (SIZE, SIZE), "white").save(path), "it shows nothing"),
        (lambda path: Image.effect_noise((SIZE, SIZE), 90).save(path), "background is not plain"),
        (lambda path: path.write_bytes(b""), "no picture, or damaged"),
        (lambda path: Image.new("RGBA", (3, 3), "red").save(path), "only 3 × 3 pixels"),
    ],
)
def test_objects_without_enough_views_are_left_out(folder, spoil, reason):
    path, good = folder("a"), folder("b")
    for i in range(5):
        spoil(path / file_name(i))
    result = load(path, good)
    assert result.names == ["b"]
    assert len(result.problems) == 1
    start = "a is left out: 3 usable views, 8 are needed, the first of 5 others: 000.png: "
    assert result.problems[0].startswith(start)
    assert reason in result.problems[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"camera_angle_x": 0.1, "fl_x": None, "fl_y": None}, "too narrow"),
        ({"cx": 900.0}, "looks elsewhere"),
        ({"frames": []}, "lists no frames"),
        ({"frames": frames(orbit_cameras() @ np.diag([1, -1, -1, 1]))}, ""),
        ({"frames": frames(orbit_cameras() * 0 + np.eye(4))}, "middle of the object"),
    ],
)
def test_objects_that_can_not_be_used(folder, rendered, changes, reason):
    path, good = folder("a", **changes), folder("b")
    result = load(path, good)
    assert result.names == ["b"]
    assert len(result.problems) == 1
    assert result.problems[0].startswith("a is left out: ")
    assert reason in result.problems[0]


def test_an_object_that_a_narrow_lens_cuts_off(folder, rendered):
    """What lies beyond the picture's edge is not known; where LGM's frame ends there it doesn't matter."""
    views = rendered[0][:, 8:24, 8:24]
    angle = 2 * math.atan(0.5 * math.tan(math.radians(FOV_Y / 2)))
    nothing = {"fl_x": None, "fl_y": None}
    result = load(folder("a", views=views, **nothing, camera_angle_x=angle), folder("b", views=views))
    assert result.names == ["b"]
    assert "its edge cuts the object off" in result.problems[0]


def test_cameras_on_their_heads(folder, rendered):
    poses = rendered[1].copy()
    poses[:, :3, :2] *= -1
    with pytest.raises(LGMError, match="stand upright"):
        load(folder(frames=frames(poses), up=None))


def test_nothing_usable_at_all_is_an_error(folder, tmp_path):
    path = folder("a", frames=[])
    with pytest.raises(LGMError, match="no usable object among 1"):
        load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LGMError, match="holds no objects"):
        find_objects(tmp_path / "empty")
    with pytest.raises(LGMError, match="There is no folder"):
        find_objects(tmp_path / "nowhere")


def test_looked_at_is_where_optical_axes_meet():
    poses = orbit_cameras(20).astype(np.float64)
    poses[:, :3, 3] += (1, 2, 3)
    np.testing.assert_allclose(dataset._looked_at(poses), (1, 2, 3), atol=1e-6)
    np.testing.assert_array_equal(dataset._looked_at(poses[:1]), 0)  # one camera alone can't tell


# Meshes


def center_color(renderer, path) -> np.ndarray:
    """The colour in the middle of the front view, without its light, and the alpha: [4] in 0 to 1."""
    view = renderer.render(mesh_files.read_mesh_file(path), orbit_cameras()[:1])[0][0, SIZE // 2, SIZE // 2] / 255
    light = 0.8 + 0.2 * 0.45 / np.linalg.norm((0.3, 0.85, 0.45))
    return np.array([*view[:3] / light, view[3]])


def srgb(*linear):
    return [1.055 * value ** (1 / 2.4) - 0.055 for value in linear]


BOX = box((-1, -1, -1), (1, 1, 1))
PICTURE = np.full((4, 4, 4), (200, 100, 50, 128), np.uint8)


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"material": None}, [*srgb(0.8, 0.8, 0.8), 1]),
        ({"material": {"pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.02, 0.2, 0.3]}}},
         [*srgb(0.5, 0.02, 0.2), 1]),
        ({"picture": PICTURE}, [200 / 255, 100 / 255, 50 / 255, 1]),
        ({"picture": PICTURE, "material": {"alphaMode": "MASK"}}, [200 / 255, 100 / 255, 50 / 255, 1]),
        ({"colors": np.tile([0.1, 0.6, 0.3], (8, 1))}, [*srgb(0.1, 0.6, 0.3), 1]),
        ({"colors": np.tile([0.1, 0.6, 0.3], (8, 1)), "material": None}, [*srgb(0.1, 0.6, 0.3), 1]),
        ({"material": {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]}, "emissiveFactor": [0.4, 0, 0]}},
         [*srgb(0.4), 0, 0, 1]),
    ],
)  # fmt: skip
def test_gltf_s_looks(renderer, tmp_path, look, expected):
    path = write_glb(tmp_path / "a.glb", piece(*BOX, uv=np.full((8, 2), 0.5), **look))
    np.testing.assert_allclose(center_color(renderer, path), expected, atol=4 / 255)


def test_half_transparent_faces_blend_and_cut_out_ones_vanish(renderer, tmp_path):
    half = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.5]}, "alphaMode": "BLEND"}
    path = write_glb(tmp_path / "a.glb", piece(*BOX, material=half))
    assert center_color(renderer, path)[3] == pytest.approx(0.75, abs=2 / 255)  # front and back
    core = box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5))
    solid = {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]}}
    path = write_glb(tmp_path / "b.glb", piece(*BOX, material=half), piece(*core, material=solid))
    assert center_color(renderer, path)[3] == 1
    mask = {"alphaMode": "MASK", "alphaCutoff": 0.6}
    path = write_glb(tmp_path / "c.glb", piece(*BOX, uv=np.zeros((8, 2)), picture=PICTURE, material=mask))
    assert center_color(renderer, path)[3] == 0


def test_a_scene_s_transforms_count(renderer, tmp_path, ball, rendered):
    """Turned by a node, then turned back by its parent, scaled and moved: the same object."""
    positions, uv, faces = bumpy_ball()
    nodes = [
        {"children": [1], "rotation": [-0.5, -0.5, -0.5, 0.5], "translation": [5, 6, 7]},
        {"mesh": 0, "rotation": [0.5, 0.5, 0.5, 0.5], "scale": [9, 9, 9]},
    ]
    path = write_glb(tmp_path / "a.glb", piece(positions, faces, uv=uv, picture=patchwork()), nodes=nodes)
    assert psnr(renderer.render(mesh_files.read_mesh_file(path), rendered[1])[0], rendered[0]) > 40


def test_texture_transforms_count(renderer, tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, 32:] = (250, 20, 20)  # the quarter with u > 0.5 and v < 0.5
    pbr = {"baseColorTexture": {"extensions": {"KHR_texture_transform": {"offset": [0.5, 0.25], "scale": [0.5, 0.5]}}}}
    path = write_glb(
        tmp_path / "a.glb",
        piece(*BOX, uv=np.full((8, 2), 0.25), picture=picture, material={"pbrMetallicRoughness": pbr}),
        extensionsUsed=["KHR_texture_transform"],
    )
    assert center_color(renderer, path)[0] > 0.9  # at (0.625, 0.375), where without it (0.25, 0.25) is black


def test_ply_and_obj(renderer, tmp_path):
    positions, faces = BOX
    lines = [f"v {x} {y} {z}" for x, y, z in positions] + ["vt 0.5 0.5", "usemtl a"]
    lines += [f"f {a + 1}/1 {b + 1}/1 {c + 1}/1" for a, b, c in faces]
    (tmp_path / "a.obj").write_text("\n".join(["mtllib a.mtl", *lines]))
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 0.5 0.02 0.2\n")
    np.testing.assert_allclose(center_color(renderer, tmp_path / "a.obj"), [*srgb(0.5, 0.02, 0.2), 1], atol=4 / 255)
    Image.fromarray(PICTURE[..., :3]).save(tmp_path / "a.png")
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 0 0 0\nmap_Kd a.png\n")
    np.testing.assert_allclose(center_color(renderer, tmp_path / "a.obj")[0], 200 / 255, atol=3 / 255)
    header = "ply\nformat ascii 1.0\nelement vertex 8\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    header += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    header += "element face 12\nproperty list uchar int vertex_indices\nend_header\n"
    body = [f"{x} {y} {z} 200 100 50" for x, y, z in positions] + [f"3 {a} {b} {c}" for a, b, c in faces]
    (tmp_path / "a.ply").write_text(header + "\n".join(body))
    expected = [200 / 255, 100 / 255, 50 / 255, 1]  # a PLY's colours are what is displayed
    np.testing.assert_allclose(center_color(renderer, tmp_path / "a.ply"), expected, atol=3 / 255)


def test_textures_of_any_size(renderer, tmp_path):
    path = write_glb(
        tmp_path / "a.glb",
        piece(*BOX, uv=np.full((8, 2), 0.3), picture=np.full((7, 300, 3), (10, 200, 90), np.uint8)),
        piece(*box((2, 0, 0), (3, 1, 1)), uv=np.full((8, 2), 0.3), picture=np.full((9, 2100, 3), 99, np.uint8)),
    )
    mesh = mesh_files.read_mesh_file(path)
    assert [part.texture.shape for part in mesh.parts] == [(7, 300, 4), (8, 2048, 4)]
    assert renderer.render(mesh, orbit_cameras()[:1])[0][0, ..., 1].max() > 150


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.glb", b"", "not a glTF file"),
        ("a.glb", b"glTF\2\0\0\0", "not a glTF file"),
        ("a.gltf", b"{}", "a.gltf"),
        ("a.gltf", b"[]", "not a glTF file"),
        ("a.obj", b"v 0 0 0\nv 1 1 1\n", "a.obj"),
        ("a.obj", b"\0\1\2", "a.obj"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
                  b"property float z\nend_header\n1 2 3\n", "no triangles"),
        ("a.ply", b"no ply", "could not be read"),
    ],
)  # fmt: skip
def test_meshes_that_can_not_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LGMError, match=words) as caught:
        mesh_files.read_mesh_file(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize(
    ("positions", "header", "words"),
    [
        (BOX[0] * np.nan, {}, "not numbers"),
        (BOX[0] * 0, {}, "no extent"),
        (BOX[0], {"extensionsUsed": ["KHR_draco_mesh_compression"]}, "Blender"),
    ],
)
def test_meshes_that_can_not_be_rendered(tmp_path, positions, header, words):
    path = write_glb(tmp_path / "a.glb", piece(positions, BOX[1]), **header)
    with pytest.raises(LGMError, match=words):
        mesh_files.read_mesh_file(path)


def test_linear_light():
    np.testing.assert_allclose(to_linear(np.array([0.5, 0.02, 1, 0.3])), [0.21404, 0.00155, 1, 0.3], atol=1e-5)


# The command


@pytest.fixture
def meshes(tmp_path, ball):
    """A folder with a good mesh, one in a folder of its own, one without faces and one that is no mesh."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    (folder / "Red Box 7.glb").write_bytes(ball.read_bytes())
    write_glb(folder / "more" / "box.glb", piece(*BOX))
    (folder / "points.obj").write_text("v 0 0 0\nv 1 1 1\n")
    (folder / "broken.glb").write_bytes(b"no mesh")
    (folder / "readme.txt").write_text("")
    return folder


def run(*arguments) -> int:
    return main(["views", *map(str, arguments), "--size", str(SIZE), "--processes", "1"])


def test_command(meshes, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(meshes, "--output", out, "--views", 8) == 0
    told = capsys.readouterr()
    summary = json.loads(told.out)
    assert (summary["made"], summary["skipped"], sorted(summary["left_out"])) == (2, 0, ["broken", "points"])
    assert "broken is left out: " in told.err
    assert sorted(path.name for path in out.iterdir()) == ["Red Box 7", "more_box"]
    result = load(*find_objects(out))
    assert (result.counts.tolist(), result.captions) == ([8, 8], ["red box", "box"])
    np.testing.assert_allclose(result.poses[:8], view_poses("Red Box 7", 8)[0], atol=1e-6)
    assert run(meshes, "--output", out, "--views", 8) == 0  # resumes where it stopped
    assert json.loads(capsys.readouterr().out)["skipped"] == 2


def test_command_on_an_objects_zip(tmp_path, capsys):
    positions, faces = box((-0.4, -0.4, -0.4), (0.4, 0.4, 0.4))
    file = io.BytesIO()
    arrays = {
        "vertices": positions.astype(np.float16), "uv": np.zeros((8, 2), np.float16), "faces": faces.astype(np.uint16),
        "face_material": np.zeros(12, np.uint8), "material_color": np.array([[200, 9, 9, 255]], np.uint8),
        "material_texture": np.array([-1], np.int16),
    }  # fmt: skip
    np.savez(file, **arrays)
    with zipfile.ZipFile(tmp_path / "objects.zip", "w") as archive:
        archive.writestr("x1.npz", file.getvalue())
        archive.writestr("x2.npz", file.getvalue()[:99])
        index = [{"id": name, "caption": "red cube", "split": "val"} for name in ("x1", "x2", "x3")]
        archive.writestr("index.json", json.dumps(index))
    assert run(tmp_path / "objects.zip", "--output", tmp_path / "out", "--views", 4) == 0
    assert sorted(json.loads(capsys.readouterr().out)["left_out"]) == ["x2", "x3"]
    assert find_objects(tmp_path / "out", "val") == [tmp_path / "out" / "x1"]
    assert load(tmp_path / "out" / "x1", least=4).captions == ["red cube"]


def test_a_machine_that_can_not_render(monkeypatch, tmp_path):
    monkeypatch.setattr(make, "ViewRenderer", lambda size, **options: 1 / 0)
    with pytest.raises(LGMError, match="Nothing can be rendered here"):
        make._make(make.Source("a", tmp_path / "a.glb"), tmp_path, SIZE, 4, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--output", "out"], "no file or folder"),
        (["EMPTY", "--output", "out"], "holds no mesh files"),
        (["x.txt", "--output", "out"], "no mesh file that can be read"),
        (["x.zip", "--output", "out"], "not an objects.zip"),
        (["a.glb", "--output", "out", "--views", "99"], "--views 4 to 36"),
        (["a.glb", "--output", "x.txt/out"], "is not a folder"),
        (["broken.glb", "--output", "out"], "None of the 1 objects"),
    ],
)
def test_command_that_can_not_do_anything(tmp_path, monkeypatch, arguments, words, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("x.txt", "x.zip", "broken.glb"):
        (tmp_path / name).write_text("")
    write_glb(tmp_path / "a.glb", piece(*BOX))
    (tmp_path / "empty").mkdir()
    assert run(*["empty" if argument == "EMPTY" else argument for argument in arguments]) == 1
    assert words in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else [])
