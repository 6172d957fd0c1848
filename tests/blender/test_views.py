"""Candidates, the four views, cameras that render them, Live and the history, with a stand-in for the worker."""

from __future__ import annotations

import json
import time
from pathlib import Path

import bpy
import numpy as np
import pytest
from PIL import Image

from lgm_blender.blender import history, session, views
from lgm_blender.blender.scene import splats, view_images, view_rig
from lgm_blender.core.cameras import orbit_cameras, pose_to_blender
from lgm_blender.core.formats.ply import read_ply
from lgm_blender.core.messages import VIEW_NAMES


@pytest.fixture(autouse=True)
def own_history(monkeypatch, tmp_path):
    monkeypatch.setattr(history.settings, "user_folder", lambda: tmp_path / "user")


@pytest.fixture
def window(monkeypatch):
    """As if there were a window: operators return at once."""
    from lgm_blender.blender.ui import candidates, operators

    class App:
        background = False

        def __getattr__(self, name):
            return getattr(bpy.app, name)

    class Blender:
        app = App()

        def __getattr__(self, name):
            return getattr(bpy, name)

    for module in (candidates, operators):
        monkeypatch.setattr(module, "bpy", Blender())


def run_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        session.current().step()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def finish():
    run_until(lambda: not session.current().working)
    assert session.current().problem is None, session.current().problem


def fill(shades=(10, 20, 30, 40), size=32, generated=False):
    pictures = [np.full((size, size, 4), shade / 255, np.float32) for shade in shades]
    for picture in pictures:
        picture[..., 3] = 1
    views.fill(bpy.context.scene, pictures, generated=[generated] * 4, elevation=0.0, facts={})
    return bpy.context.scene.lgm.views


# ---- Images


def test_a_view_is_written_as_it_is(worker, tmp_path):
    values = np.arange(8 * 8 * 4, dtype=np.float32).reshape(8, 8, 4) / 255
    image = view_images.put_pixels(values, "x")
    file = view_images.view_file(image, tmp_path / "new", "front")
    written = np.asarray(Image.open(file))
    np.testing.assert_array_equal(written, np.uint8(values[::-1] * 255 + 0.5))
    np.testing.assert_allclose(view_images.read_pixels(file), values, atol=1e-6)


def test_pixels_go_into_the_image_that_is_there(worker):
    first = view_images.put_pixels(np.zeros((8, 8, 4), np.float32), "x")
    again = view_images.put_pixels(np.ones((8, 8, 4), np.float32), "x", first)
    assert again == first
    other = view_images.put_pixels(np.ones((16, 16, 4), np.float32), "x", first)
    assert other != first


def test_an_image_of_the_users_is_never_written_to(worker, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mine.png")
    mine = bpy.data.images.load(str(tmp_path / "mine.png"))
    assert view_images.put_pixels(np.zeros((8, 8, 4), np.float32), "x", mine) != mine
    assert mine.pixels[0] == 1.0


def test_the_checksum_changes_with_the_picture(worker):
    image = view_images.put_pixels(np.zeros((8, 8, 4), np.float32), "x")
    before = view_images.checksum(image)
    assert view_images.checksum(image) == before
    image.pixels[5] = 1.0
    assert view_images.checksum(image) != before
    assert view_images.checksum(None) == 0


def test_painted_views_survive_saving(worker, tmp_path):
    found = fill()
    found.front.pixels[0] = 0.5
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    found = bpy.context.scene.lgm.views
    assert tuple(found.back.size) == (32, 32)
    assert found.back.pixels[0] == pytest.approx(30 / 255)


# ---- Candidates


def test_candidates_are_chosen_from(worker, window, tmp_path):
    settings = bpy.context.scene.lgm
    settings.prompt, settings.seed, settings.candidates, settings.output = "a cup", 7, 3, str(tmp_path / "out")
    assert bpy.ops.lgm.generate() == {"FINISHED"}
    finish()
    choice = session.current().choice
    assert [candidate.seed for candidate in choice.result.candidates] == [9, 8, 7]
    assert not bpy.data.objects
    assert not (tmp_path / "out").exists()  # nothing of the user's folders yet
    for seed in ("8", "7"):  # both clicked, one after the other
        assert bpy.ops.lgm.make_candidate(seed=seed) == {"FINISHED"}
    assert session.current().queued == 1
    finish()
    first, second = (thing for thing in bpy.context.scene.objects if splats.is_splats(thing))
    assert first.location.x == 0
    assert second.location.x > 0.9
    assert [splats.read_settings(thing)["seed"] for thing in (first, second)] == [8, 7]
    assert splats.read_settings(first)["prompt"] == "a cup"
    assert choice.made == {7, 8}
    bpy.ops.lgm.views_from_candidate(seed="9")
    assert settings.views.front.pixels[0] == pytest.approx(9 / 255)
    assert settings.views.left.pixels[0] == pytest.approx(39 / 255)
    bpy.ops.lgm.drop_candidates()
    assert session.current().choice is None


def test_an_unknown_candidate_is_a_sentence(worker, window, tmp_path):
    bpy.context.scene.lgm.candidates = 2
    bpy.ops.lgm.generate(prompt="x", output=str(tmp_path))
    finish()
    with pytest.raises(RuntimeError, match="no candidate of seed 99"):
        bpy.ops.lgm.make_candidate(seed="99")


def test_without_a_window_the_best_is_made(worker, tmp_path):
    assert bpy.ops.lgm.generate(prompt="x", candidates=3, output=str(tmp_path)) == {"FINISHED"}
    assert session.current().choice is None
    assert session.current().outcome.result.settings["candidates"] == 3


def test_cancel_drops_what_waits(worker, window, tmp_path):
    worker("slow")
    bpy.context.scene.lgm.candidates, bpy.context.scene.lgm.output = 2, str(tmp_path)
    bpy.ops.lgm.generate(prompt="x")
    finish()
    bpy.ops.lgm.make_candidate(seed="0")
    bpy.ops.lgm.make_candidate(seed="1")
    bpy.ops.lgm.cancel()
    finish()
    assert session.current().queued == 0
    assert session.current().choice.made == set()  # none of them is
    assert not bpy.data.objects


# ---- The four views


def test_views_are_reconstructed(worker, tmp_path, golden):
    fill()
    assert bpy.ops.lgm.reconstruct(output=str(tmp_path / "out")) == {"FINISHED"}
    assert len(splats.read_splats(bpy.context.object)) == len(read_ply(golden / "lgm.ply"))
    asked = session.current().outcome.result.settings
    assert (asked["framed"], asked["generated"], asked["mode"]) == (True, [False] * 4, "views")
    bpy.context.scene.lgm.views.cut_out = True
    bpy.ops.lgm.reconstruct(output=str(tmp_path / "out"))
    assert session.current().outcome.result.settings["framed"] is False


def test_a_missing_view_is_named(worker):
    fill()
    bpy.context.scene.lgm.views.back = None
    assert not bpy.ops.lgm.reconstruct.poll()
    assert views.missing(bpy.context.scene) == "There is no view from the back. Choose one."


def test_the_others_are_sampled_around_what_is_pinned(worker, tmp_path):
    found = fill((100, 101, 102, 103))
    settings = bpy.context.scene.lgm
    settings.prompt, settings.seed = "a cup", 3
    with pytest.raises(RuntimeError, match="with their pins"):
        bpy.ops.lgm.sample_others()
    found.keep_right = True
    assert bpy.ops.lgm.sample_others() == {"FINISHED"}
    finish()
    shades = [round(image.pixels[0] * 255) for image in found.images()]
    assert shades == [3, 101, 23, 33]
    assert [bool(image.get(views.GENERATED)) for image in found.images()] == [True, False, True, True]


def test_views_come_from_a_result(worker, tmp_path):
    bpy.ops.lgm.generate(prompt="x", output=str(tmp_path / "out"))
    made = bpy.context.object
    assert bpy.ops.lgm.views_from_result() == {"FINISHED"}
    found = bpy.context.scene.lgm.views
    assert all(found.images())
    assert found.target == made
    assert found.right.pixels[0] == pytest.approx(250 / 255)


def test_without_a_result_it_says_so(worker):
    with pytest.raises(RuntimeError, match="no result whose views"):
        bpy.ops.lgm.views_from_result()


# ---- Cameras


def coloured_cube(size=1.0, location=(0.0, 0.0, 0.0)):
    """A cube, red in front (-y), green to +x, blue behind, white to -x."""
    bpy.ops.mesh.primitive_cube_add(size=size, location=location)
    cube = bpy.context.object
    for color, normal in (
        ((1, 0, 0), (0, -1, 0)),
        ((0, 1, 0), (1, 0, 0)),
        ((0, 0, 1), (0, 1, 0)),
        ((1, 1, 1), (-1, 0, 0)),
    ):
        material = bpy.data.materials.new("m")
        material.use_nodes = True
        shader = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
        shader.inputs["Base Color"].default_value = (*color, 1)
        cube.data.materials.append(material)
        for polygon in cube.data.polygons:
            if np.dot(polygon.normal, normal) > 0.9:
                polygon.material_index = len(cube.data.materials) - 1
    return cube


@pytest.mark.parametrize("elevation", [0.0, 20.0])
def test_cameras_stand_where_lgms_do(worker, elevation):
    rig = view_rig.add_rig(bpy.context.scene, [], 0.0)
    rig.lgm_rig.elevation = elevation
    bpy.context.view_layer.update()
    for camera, pose in zip(view_rig.cameras(rig), orbit_cameras(elevation), strict=True):
        np.testing.assert_allclose(np.array(camera.matrix_world), pose_to_blender(pose), atol=1e-5)
        assert camera.data.angle_y == pytest.approx(np.radians(49.1))


def test_the_scene_is_rendered_from_four_sides(worker, tmp_path):
    cube = coloured_cube(2.0, (3.0, 1.0, 0.5))
    other = coloured_cube(1.0, (3.0, -4.0, 0.5))  # in the way, and not chosen
    cube.select_set(True)
    other.select_set(False)
    bpy.context.view_layer.objects.active = cube
    assert bpy.ops.lgm.add_view_cameras() == {"FINISHED"}
    bpy.context.view_layer.update()
    before = {kind: len(getattr(bpy.data, kind)) for kind in ("scenes", "objects", "meshes", "materials", "cameras")}
    assert bpy.ops.lgm.render_views() == {"FINISHED"}
    assert {kind: len(getattr(bpy.data, kind)) for kind in before} == before
    found = bpy.context.scene.lgm.views
    colors = []
    for image in found.images():
        pixels = np.array(image.pixels).reshape(256, 256, 4)
        assert pixels[0, 0, 3] == 0
        assert 0.1 < (pixels[..., 3] > 0.5).mean() < 0.6
        colors.append(pixels[128, 128, :3] > 0.5)
    np.testing.assert_array_equal(colors, [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
    assert not any(image.get(views.GENERATED) for image in found.images())


def test_what_the_cameras_saw_comes_back_in_its_place(worker, tmp_path):
    cube = coloured_cube(2.0, (3.0, 1.0, 0.5))
    bpy.ops.lgm.add_view_cameras()
    bpy.context.view_layer.update()
    bpy.ops.lgm.render_views()
    assert bpy.ops.lgm.reconstruct(output=str(tmp_path / "out")) == {"FINISHED"}
    made = bpy.context.object
    rig = bpy.context.scene.lgm.views.rig
    assert made != cube
    np.testing.assert_allclose(np.array(made.matrix_world), np.array(rig.matrix_world), atol=1e-6)
    assert tuple(made.location) == pytest.approx((3.0, 1.0, 0.5))


def test_cameras_without_anything_to_see(worker):
    bpy.ops.lgm.add_view_cameras()
    with pytest.raises(RuntimeError, match="nothing that the cameras could see"):
        bpy.ops.lgm.render_views()
    bpy.data.objects.remove(view_rig.cameras(bpy.context.scene.lgm.views.rig)[0])
    assert not bpy.ops.lgm.render_views.poll()


# ---- Live


def seen(folder) -> list[str]:
    file = Path(folder) / "live_seen.txt"
    return file.read_text().splitlines() if file.is_file() else []


def test_live_follows_the_views(worker, golden):
    found, now = fill(), session.current()
    found.live = True
    run_until(lambda: found.target is not None)
    target, count = found.target, len(bpy.data.objects)
    assert len(splats.read_splats(target)) == len(read_ply(golden / "lgm.ply"))
    target.location.x = 5.0  # the user has put it elsewhere
    for shade in (0.3, 0.6, 0.9):  # three strokes while one is being made: the last one wins
        found.left.pixels[0] = shade
        now.step()
    expected = len(seen(now.live_folder()))
    run_until(lambda: len(seen(now.live_folder())) > expected and not now.live.working)
    time.sleep(0.3)
    now.step()
    assert len(seen(now.live_folder())) <= expected + 2
    assert len({*seen(now.live_folder())}) >= 2
    assert (found.target, len(bpy.data.objects), target.location.x) == (target, count, 5.0)
    assert now.live.seconds > 0
    found.live = False
    done = len(seen(now.live_folder()))
    found.left.pixels[0] = 0.1
    for _ in range(30):
        now.step()
        time.sleep(0.01)
    assert len(seen(now.live_folder())) == done
    assert not now.live.on


def test_live_waits_for_a_job(worker, tmp_path):
    worker("slow")
    found, now = fill(), session.current()
    now.begin(views.reconstruct_request(bpy.context.scene, tmp_path), bpy.context.scene)
    found.live = True
    run_until(lambda: now.job is None)
    assert not seen(now.live_folder())
    run_until(lambda: found.target is not None)


def test_live_ends_with_an_error(worker):
    worker("refuses")
    found, now = fill(), session.current()
    found.live = True
    run_until(lambda: now.problem is not None)
    assert now.problem.sentence == "The view from the back is empty. Choose another one."
    assert not found.live
    assert not now.live.on


def test_live_follows_what_the_cameras_see(worker):
    cube, now = coloured_cube(2.0), session.current()
    bpy.ops.lgm.add_view_cameras()
    bpy.context.view_layer.update()
    bpy.ops.lgm.render_views()
    found = bpy.context.scene.lgm.views
    found.live = True
    run_until(lambda: found.target is not None and not now.live.working)
    before = len({*seen(now.live_folder())})
    cube.rotation_euler.z = 0.5
    bpy.context.view_layer.update()
    run_until(lambda: len({*seen(now.live_folder())}) > before)
    np.testing.assert_allclose(np.array(found.target.matrix_world), np.array(found.rig.matrix_world), atol=1e-6)
    found.live = False
    assert now.live._after_update not in bpy.app.handlers.depsgraph_update_post


def test_live_is_off_in_a_file_that_is_opened(worker, tmp_path):
    found = fill()
    found.live = True
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    assert not bpy.context.scene.lgm.views.live
    assert not session.current().live.on


# ---- History


def test_results_are_remembered(worker, tmp_path):
    for seed in (1, 2):
        bpy.ops.lgm.generate(prompt="a cup", seed=seed, output=str(tmp_path / "out"))
    first, second = history.paths()
    assert [history.read(path).result.settings["seed"] for path in (first, second)] == [1, 2]
    bpy.ops.wm.read_homefile(use_empty=True)
    assert bpy.ops.lgm.restore_result(path=str(first)) == {"FINISHED"}
    assert bpy.context.object["lgm"]["seed"] == 1
    bpy.ops.lgm.repeat_result(path=str(first))
    again = session.current().outcome.result.settings
    assert again["prompt"] == "a cup"
    assert again["seed"] not in (1, 2)
    assert len(history.paths()) == 3
    assert bpy.ops.lgm.delete_result(path=str(second)) == {"FINISHED"}
    assert second not in history.paths()
    assert not [path for path in (tmp_path / "out").iterdir() if path.stem.removesuffix("_views") == second.stem]
    assert first.is_file()


def test_what_was_deleted_by_hand_is_forgotten(worker, tmp_path):
    bpy.ops.lgm.generate(prompt="a cup", output=str(tmp_path / "out"))
    (path,) = history.paths()
    Path(session.current().outcome.result.ply).unlink()
    assert history.read(path) is None
    with pytest.raises(RuntimeError, match="is gone"):
        bpy.ops.lgm.restore_result(path=str(path))
    assert history.paths() == []


@pytest.mark.parametrize("content", ["", "{", "[1, null]", '{"a": 1}'])
def test_a_damaged_history_is_an_empty_one(worker, content):
    history.history_file().parent.mkdir(parents=True)
    history.history_file().write_text(content)
    assert history.paths() == []
    history.add("/x/y.json")
    assert history.paths() == [Path("/x/y.json")]


def test_only_files_of_the_result_are_deleted(worker, tmp_path):
    bpy.ops.lgm.generate(prompt="a cup", output=str(tmp_path / "out"))
    (path,) = history.paths()
    other = tmp_path / "out" / "precious.png"
    other.write_bytes(b"x")
    values = json.loads(path.read_text())
    values["views"] = str(other)
    path.write_text(json.dumps(values))
    history.delete(history.read(path))
    assert other.exists()


def test_view_names_are_blenders(worker):
    assert [view for view in VIEW_NAMES if hasattr(bpy.context.scene.lgm.views, view)] == list(VIEW_NAMES)
