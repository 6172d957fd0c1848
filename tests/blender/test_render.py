"""Pictures of splats. Run: python build.py test tests/blender/test_render.py"""

from __future__ import annotations

import bpy
import numpy as np
import pytest
from mathutils import Matrix
from tensors import read_safetensors

from lgm_blender.blender import compat
from lgm_blender.blender.scene import render, splats
from lgm_blender.core.cameras import orbit_camera, pose_to_blender
from lgm_blender.core.errors import LGMError
from lgm_blender.core.gaussians import Gaussians, rotation_matrices


def one(color=(0.8, 0.4, 0.1), opacity=0.9, scale=(0.3, 0.1, 0.05), position=(0, 0, 0)) -> Gaussians:
    rotation = np.array([0.8, 0.3, 0.4, 0.33]) / np.linalg.norm([0.8, 0.3, 0.4, 0.33])
    return Gaussians([position], [opacity], [scale], [rotation], [color])


def read_picture(path) -> np.ndarray:
    """[H, W, 4] display values 0 to 1, the top row first."""
    image = bpy.data.images.load(str(path))
    width, height = image.size
    image.colorspace_settings.name = "Non-Color"
    pixels = np.array(image.pixels[:], np.float32).reshape(height, width, 4)[::-1]
    bpy.data.images.remove(image)
    return pixels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(((a - b) ** 2).mean()))


def blocks() -> set[str]:
    kinds = ("scenes", "objects", "meshes", "cameras", "worlds", "materials", "node_groups", "images", "collections")
    return {f"{kind}/{block.name}" for kind in kinds for block in getattr(bpy.data, kind)}


def exact(gaussian: Gaussians, pose: np.ndarray, size: int, fov_y: float) -> np.ndarray:
    """[size, size, 3]: one Gaussian on white, integrated along the ray through each pixel's centre."""
    ticks = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(ticks, -ticks)
    rays = np.stack([x, y, -np.ones_like(x) / np.tan(np.radians(fov_y) / 2)], -1) @ pose[:3, :3].T.astype(np.float64)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    axes = rotation_matrices(gaussian.rotations)[0] * gaussian.scales[0]
    whiten = np.linalg.inv(axes)
    o = whiten @ (pose[:3, 3] - gaussian.positions[0])
    d = rays @ whiten.T
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    distance = (o @ o) - (d @ o) ** 2
    alpha = np.minimum(gaussian.opacities[0] * np.exp(-distance / 2), 0.999)[..., None]
    return alpha * gaussian.colors[0] + 1 - alpha


@pytest.mark.parametrize("view", [0, 2])
def test_cycles_agrees_with_gsplat(golden, tmp_path, view):
    """3,000 overlapping Gaussians of all sizes, against gsplat's own picture on white: 30 dB or more."""
    tensors = read_safetensors(golden / "gsplat_render.safetensors")
    stored = tensors["rgb"]  # of every second view, of the original golden data all
    expected = stored[view * len(stored) // len(tensors["viewmats"])].astype(np.float32)
    size = expected.shape[0]
    pose = np.linalg.inv(tensors["viewmats"][view].astype(np.float64))
    pose[:3, 1:3] *= -1  # OpenCV's axes to OpenGL's
    fov_y = 2 * np.degrees(np.arctan(size / 2 / tensors["Ks"][view][1, 1]))
    made = splats.add_splats(Gaussians.from_array(tensors["gaussians"]), "golden", stand=False)
    picture = render.render_objects(
        made, tmp_path / "golden.png", size=(size, size), pose=pose, fov_y=fov_y, near=0.5, far=2.5
    )
    found = psnr(read_picture(picture)[..., :3], expected)
    print(f"camera {view}: {found:.1f} dB against gsplat")
    assert found >= 30


def test_no_speckles_where_many_faint_splats_overlap(tmp_path):
    """240 of them, one behind the other, let 1% through; each pixel shows nearly what its neighbours do."""
    number = 240
    positions = np.zeros((number, 3))
    positions[:, 2] = np.linspace(-0.4, 0.4, number)
    colors = np.where(np.arange(number)[:, None] % 2, (0.9, 0.2, 0.1), (0.1, 0.3, 0.9))
    rotations = np.tile((1.0, 0, 0, 0), (number, 1))
    stack = Gaussians(positions, np.full(number, 0.02), np.full((number, 3), (0.5, 0.5, 0.01)), rotations, colors)
    made = splats.add_splats(stack, "stack", stand=False)
    render.render_objects(made, tmp_path / "a.png", size=(48, 48), samples=3, pose=orbit_camera(0, 0), fov_y=20)
    middle = read_picture(tmp_path / "a.png")[16:32, 16:32, :3]
    assert np.abs(np.diff(middle, axis=1)).max() < 0.02


@pytest.mark.parametrize(("elevation", "azimuth"), [(0, 0), (35, 130), (-60, 250), (85, 10)])
def test_the_integral_is_exact_from_every_side(tmp_path, elevation, azimuth):
    gaussian = one()
    made = splats.add_splats(gaussian, "one", stand=False)
    pose = orbit_camera(elevation, azimuth)
    render.render_objects(made, tmp_path / "one.png", size=(48, 48), samples=16, pose=pose, fov_y=49.1)
    assert psnr(read_picture(tmp_path / "one.png")[..., :3], exact(gaussian, pose, 48, 49.1)) > 40


def test_the_object_may_be_turned_moved_and_scaled(tmp_path):
    made = splats.add_splats(one(), "one", stand=False)
    pose = orbit_camera(20, 40)
    render.render_objects(made, tmp_path / "still.png", size=(48, 48), samples=16, pose=pose)
    move = Matrix.Translation((0.5, -2, 1)) @ Matrix.Rotation(1.2, 4, (1, 2, 3)) @ Matrix.Scale(2, 4)
    made.matrix_world = move
    # The camera moves with it: what it sees stays the same.
    to_blender = pose_to_blender(np.eye(4))
    moved = np.linalg.inv(to_blender) @ np.array(move) @ to_blender @ pose.astype(np.float64)
    moved[:3, :3] /= 2
    render.render_objects(made, tmp_path / "moved.png", size=(48, 48), samples=16, pose=moved)
    still, moved = read_picture(tmp_path / "still.png"), read_picture(tmp_path / "moved.png")
    assert still.std() > 0.05
    np.testing.assert_allclose(moved, still, atol=2 / 255)


def test_a_mirror_shows_what_a_camera_behind_it_would_see():
    """Rays that are not the camera's meet the points, not the quads that face the camera."""
    scene = bpy.context.scene
    made = splats.add_splats(one(position=(0, 0, -1.5), scale=(0.3, 0.1, 0.1)), "one", stand=False)
    splats.set_display(made, display="Exact", shadows="Soft")
    camera = render.camera_from_pose(orbit_camera(0, 0, 1.5))
    scene.collection.objects.link(camera)
    scene.camera = camera
    direct = render_scene(scene)
    bpy.ops.mesh.primitive_plane_add(size=20, location=(0, 0, 0), rotation=(np.pi / 2, 0, 0))
    mirror = bpy.data.materials.new("mirror")
    tree = compat.node_tree(mirror)
    tree.nodes.clear()
    glossy = tree.nodes.new("ShaderNodeBsdfGlossy")
    glossy.inputs["Roughness"].default_value = 0
    glossy.inputs["Color"].default_value = (1, 1, 1, 1)
    tree.links.new(glossy.outputs[0], tree.nodes.new("ShaderNodeOutputMaterial").inputs["Surface"])
    bpy.context.object.data.materials.append(mirror)
    # The Gaussian was 3 in front of the camera; now the mirror halfway sends rays back to where it was put.
    made.scale = (1, -1, 1)  # its mirror image, so that the reflection is the same
    camera.location = (0, -1.5, 0)
    mirrored = render_scene(scene)
    assert direct.std() > 0.03
    assert psnr(direct, mirrored) > 32


def render_scene(scene) -> np.ndarray:
    """[32, 32, 3] display values, of the scene as a user would render it, on white."""
    scene.world = scene.world or bpy.data.worlds.new("World")
    background = next(n for n in compat.node_tree(scene.world).nodes if n.type == "BACKGROUND")
    background.inputs["Color"].default_value = (1, 1, 1, 1)
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = 32
    scene.render.resolution_percentage = 100
    scene.cycles.samples = 16
    scene.cycles.use_denoising = scene.cycles.use_adaptive_sampling = False
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format = "PNG"
    scene.render.filepath = bpy.app.tempdir + "scene.png"
    bpy.ops.render.render(write_still=True)
    return read_picture(scene.render.filepath)[..., :3]


def test_linear_colors_show_as_trained_under_the_standard_view():
    color = (0.8, 0.4, 0.1)
    made = splats.add_splats(one(color, 1.0, (3, 3, 3)), "one", stand=False)
    camera = render.camera_from_pose(orbit_camera(0, 0, 1.5), 5.0)
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    assert compat.get_modifier_input(splats.set_display(made, display="Exact"), "Colors") == "Linear"
    # A thousandth of the white behind it shines through.
    np.testing.assert_allclose(render_scene(bpy.context.scene)[16, 16], color, atol=0.01)


def test_the_user_s_file_is_left_as_it_was(tmp_path):
    made = splats.add_splats(one(), "one")
    made.hide_render = True
    before = blocks()
    engine = bpy.context.scene.render.engine
    render.render_objects([made], tmp_path / "Bild 家.png", size=(8, 6), samples=1)
    assert blocks() == before
    assert bpy.context.scene.render.engine == engine
    assert compat.get_modifier_input(made.modifiers[0], "Colors") == "Linear"
    assert [p.name for p in tmp_path.iterdir()] == ["Bild 家.png"]
    assert read_picture(tmp_path / "Bild 家.png").shape == (6, 8, 4)


@pytest.mark.parametrize("azimuth", [0, 30, 200])
@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_all_of_it_is_in_the_picture_and_fills_it(tmp_path, azimuth, size):
    random = np.random.default_rng(0)
    count = 200
    many = Gaussians(
        random.uniform(-1, 1, (count, 3)) * (0.2, 0.5, 0.3),
        np.full(count, 0.9),
        np.full((count, 3), 0.01),
        np.tile([1.0, 0, 0, 0], (count, 1)),
        np.zeros((count, 3)),
    )
    made = splats.add_splats(many, "many", size=7.0, location=(3, -2, 1))
    render.render_objects(made, tmp_path / "a.png", size=size, samples=1, azimuth=azimuth)
    dark = read_picture(tmp_path / "a.png")[..., 0] < 0.9
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    assert rows[0] > 0
    assert columns[0] > 0
    assert rows[-1] < size[1] - 1
    assert columns[-1] < size[0] - 1
    assert max(np.ptp(rows) / size[1], np.ptp(columns) / size[0]) > 0.7


def test_transparent_background(tmp_path):
    made = splats.add_splats(one(opacity=0.5, scale=(0.1, 0.1, 0.1)), "one", stand=False)
    pose = orbit_camera(0, 0)
    render.render_objects(made, tmp_path / "a.png", size=(33, 33), samples=4, background=None, pose=pose)
    alpha = read_picture(tmp_path / "a.png")[..., 3]
    assert alpha[0, 0] == 0
    assert alpha.max() == pytest.approx(0.5, abs=0.03)


def test_nothing_to_render(tmp_path):
    with pytest.raises(LGMError, match="no splats"):
        render.render_objects([], tmp_path / "a.png")
    with pytest.raises(LGMError, match="no splats"):
        render.render_objects(bpy.data.objects.new("empty", None), tmp_path / "a.png")


def test_a_folder_that_is_not_there(tmp_path):
    made = splats.add_splats(one(), "one")
    (tmp_path / "file").write_text("")
    before = blocks()
    with pytest.raises(LGMError, match="could not be written") as caught:
        render.render_objects(made, tmp_path / "file" / "a.png", size=(8, 8), samples=1)
    assert caught.value.kind == "output"
    assert blocks() == before


@pytest.mark.parametrize("fov_y", [20.0, 49.1])
def test_camera_from_pose(fov_y):
    camera = render.camera_from_pose(orbit_camera(30, 90, 2.0), fov_y, near=0.5, far=2.5)
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.render.resolution_x, bpy.context.scene.render.resolution_y = 300, 100
    bpy.context.view_layer.update()
    np.testing.assert_allclose(camera.matrix_world.translation, [2 * np.cos(np.pi / 6), 0, 1], atol=1e-6)
    assert camera.data.angle_y == pytest.approx(np.radians(fov_y))
    assert (camera.data.clip_start, camera.data.clip_end) == (0.5, 2.5)
    projection = np.array(camera.calc_matrix_camera(bpy.context.evaluated_depsgraph_get(), x=300, y=100))
    assert projection[1, 1] == pytest.approx(1 / np.tan(np.radians(fov_y) / 2), rel=1e-5)


@pytest.mark.slow
def test_eevee_agrees_with_cycles(tmp_path):
    """EEVEE picks splats at random: with 256 samples it comes to the same picture, noise aside."""
    random = np.random.default_rng(0)
    count = 300
    many = Gaussians(
        random.uniform(-0.4, 0.4, (count, 3)),
        random.uniform(0.2, 1, count),
        np.exp(random.normal(np.log(0.03), 0.4, (count, 3))),
        np.tile([1.0, 0, 0, 0], (count, 1)),
        random.uniform(0, 1, (count, 3)),
    )
    made = splats.add_splats(many, "many", stand=False)
    render.render_objects(made, tmp_path / "c.png", size=(64, 64), pose=orbit_camera(20, 30))
    render.render_objects(
        made, tmp_path / "e.png", size=(64, 64), engine="EEVEE", samples=256, pose=orbit_camera(20, 30)
    )
    assert psnr(read_picture(tmp_path / "c.png")[..., :3], read_picture(tmp_path / "e.png")[..., :3]) > 26
