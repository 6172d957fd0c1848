"""Splats from and to files in Blender: operators, axes, transforms, and Blender's own importers as readers."""

from __future__ import annotations

import json
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Matrix
from test_splat_files import ERRORS, assert_close, covariances, gaussians_of, reordered

from lgm_blender.blender import compat
from lgm_blender.blender.scene import splats, webp
from lgm_blender.blender.ui import files
from lgm_blender.core.affine import UPRIGHT, from_upright, transformed, upright
from lgm_blender.core.cameras import from_blender, to_blender
from lgm_blender.core.formats.ply import read_ply, write_ply
from lgm_blender.core.formats.splat_files import FORMATS, WRITTEN, read_splat_file, write_splat_file
from lgm_blender.core.gaussians import Gaussians, joined


def assert_same(read: Gaussians, wanted: Gaussians, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(read.positions, wanted.positions, atol=tolerance)
    np.testing.assert_allclose(covariances(read), covariances(wanted), atol=tolerance)
    np.testing.assert_allclose(read.colors, wanted.colors, atol=tolerance)
    np.testing.assert_allclose(read.opacities, wanted.opacities, atol=tolerance)
    np.testing.assert_allclose(read.harmonics, wanted.harmonics, atol=3 * tolerance)


def bottom(made: bpy.types.Object) -> float:
    """Where the lowest of an object's solid splats is in the world."""
    seen = to_blender(splats.read_splats(made, world=True))
    return float(splats.extent(seen.positions, seen.opacities)[0][2])


@pytest.fixture
def source(tmp_path) -> Gaussians:
    """In a.ply: taller than wide, not about its origin, with harmonics and colours beyond 0 to 1."""
    plain = gaussians_of(15, 400)
    positions = plain.positions * np.float32([0.5, 1, 0.7]) + np.float32([0.3, 2, 0.1])
    colors = plain.colors * 1.8 - 0.4
    made = Gaussians(positions, plain.opacities, plain.scales, plain.rotations, colors, plain.harmonics)
    write_ply(tmp_path / "a.ply", made)
    return made


@pytest.mark.parametrize("up", [item[0] for item in files.UP_AXES])
def test_import_stands_upright_on_the_ground(worker, tmp_path, source, up):
    """The fault of old: it was put on the ground and then turned, so that 'Y down' lay below it."""
    write_ply(tmp_path / "turned.ply", from_upright(source, up.lower()))
    assert bpy.ops.lgm.import_splats(filepath=str(tmp_path / "turned.ply"), up=up) == {"FINISHED"}
    made = bpy.context.object
    assert made.name == "turned"
    assert bottom(made) == pytest.approx(0, abs=1e-4)
    assert tuple(made.rotation_euler) == (0, 0, 0)
    assert_same(splats.read_splats(made), source)


@pytest.mark.parametrize(("size", "side"), [(0, None), (3.0, 3.0)])
def test_size_on_import(worker, tmp_path, source, size, side):
    bpy.ops.lgm.import_splats(filepath=str(tmp_path / "a.ply"), size=size)
    seen = splats.read_splats(bpy.context.object, world=True)
    low, high = splats.extent(seen.positions, seen.opacities)
    before = np.subtract(*reversed(splats.extent(source.positions, source.opacities))).max()
    assert (high - low).max() == pytest.approx(side or before, rel=1e-3)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_not_touched_comes_out_as_it_went_in(worker, tmp_path, source, name):
    path = tmp_path / f"wieder öffnen{FORMATS[name].suffix}"
    bpy.ops.lgm.import_splats(filepath=str(tmp_path / "a.ply"), size=1.5)
    assert bpy.ops.lgm.export_splats(filepath=str(path)) == {"FINISHED"}
    read = read_splat_file(path, webp=webp)
    held = source.harmonics[:, : read.harmonics.shape[1]]
    assert held.shape[1] == (0 if name == "splat" else 15)
    colors = np.clip(source.colors, *FORMATS[name].colors)
    wanted = Gaussians(source.positions, source.opacities, source.scales, source.rotations, colors, held)
    if name not in ("compressed", "sog"):
        tolerance = max(2e-4, 4 * max(ERRORS[name][:3]), ERRORS[name][3])
        np.testing.assert_allclose(read.positions, wanted.positions, atol=1e-5)
        np.testing.assert_allclose(read.colors, wanted.colors, atol=tolerance)
        np.testing.assert_allclose(read.harmonics, wanted.harmonics, atol=max(ERRORS[name][4], 1e-4))
        np.testing.assert_allclose(np.log(read.scales), np.log(wanted.scales), atol=tolerance)
    else:
        assert sorted(read.opacities) == pytest.approx(sorted(wanted.opacities), abs=3e-3)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_is_imported(worker, tmp_path, name):
    gaussians = gaussians_of(8)
    path = tmp_path / f"b{FORMATS[name].suffix}"
    write_splat_file(path, gaussians, webp=webp)
    assert bpy.ops.lgm.import_splats(filepath=str(path)) == {"FINISHED"}
    read = splats.read_splats(bpy.context.object)
    wanted = reordered(name, gaussians)
    np.testing.assert_allclose(read.positions, wanted.positions, atol=1e-3)
    assert read.harmonics.shape[1] == (0 if name == "splat" else 8)


def test_pictures_of_pillow_and_blender_are_the_same():
    import webp as pillow

    pixels = np.random.default_rng(0).integers(0, 256, (37, 52, 4), dtype=np.uint8)
    pixels[..., 3] = np.maximum(pixels[..., 3], 1)
    np.testing.assert_array_equal(webp.decode(pillow.encode(pixels)), pixels)
    np.testing.assert_array_equal(pillow.decode(webp.encode(pixels)), pixels)
    assert not bpy.data.images


TRANSFORM = Matrix.LocRotScale((1, 2, 3), Matrix.Rotation(0.7, 3, (1, 2, 3)), (2, 2, 2))


def test_the_transform_is_applied_on_export(worker, tmp_path, source):
    """Case F3: moved, turned and doubled."""
    bpy.ops.lgm.import_splats(filepath=str(tmp_path / "a.ply"))
    made = bpy.context.object
    standing = Matrix.Translation((0, 0, made[splats.FRAME][3]))
    made.matrix_world = TRANSFORM
    bpy.context.view_layer.update()
    bpy.ops.lgm.export_splats(filepath=str(tmp_path / "b.ply"))
    matrix = np.array(standing.inverted() @ TRANSFORM @ standing)
    wanted = from_blender(transformed(to_blender(source), matrix))
    assert_same(read_ply(tmp_path / "b.ply"), wanted, 1e-4)
    np.testing.assert_allclose(np.sort(wanted.scales, 1), 2 * np.sort(source.scales, 1), rtol=1e-4)

    bpy.ops.lgm.export_splats(filepath=str(tmp_path / "c.ply"), apply_transform=False)
    assert_same(read_ply(tmp_path / "c.ply"), source)


def test_export_of_what_another_program_added_is_the_world(worker, tmp_path, source):
    """Blender's own native splats, and ours without a note of how they came in."""
    made = splats.add_splats(source, "x", stand=False)
    del made[splats.FRAME]
    made.matrix_world = TRANSFORM
    bpy.context.view_layer.update()
    bpy.ops.object.select_all(action="DESELECT")
    bpy.context.view_layer.objects.active = made
    bpy.ops.lgm.export_splats(filepath=str(tmp_path / "b.ply"))
    wanted = from_blender(transformed(to_blender(source), np.array(TRANSFORM)))
    assert_same(read_ply(tmp_path / "b.ply"), wanted, 1e-4)


@pytest.mark.parametrize("up", [item[0] for item in files.UP_AXES])
@pytest.mark.parametrize("name", ["ply", "spz", "glb"])
def test_export_in_the_axes_asked_for(worker, tmp_path, source, name, up):
    path = tmp_path / f"b{FORMATS[name].suffix}"
    bpy.ops.lgm.import_splats(filepath=str(tmp_path / "a.ply"))
    bpy.ops.lgm.export_splats(filepath=str(path), up=up)
    read = upright(read_splat_file(path), up.lower())
    np.testing.assert_allclose(read.positions, source.positions, atol=1e-5)
    np.testing.assert_allclose(covariances(read), covariances(source), atol=4e-3)
    np.testing.assert_allclose(read.harmonics, source.harmonics, atol=0.015)


@pytest.mark.parametrize("up", UPRIGHT)
def test_upright_and_back(source, up):
    assert_same(from_upright(upright(source, up), up), source)


def two_objects(tmp_path, source: Gaussians) -> list[bpy.types.Object]:
    first = splats.add_splats(source, "first: one", size=2.0)
    second = splats.add_splats(source.select(np.arange(100)), "second", size=1.0, location=(3, 0, 0))
    bpy.context.view_layer.update()
    for thing in (first, second):
        thing.select_set(True)
    bpy.context.view_layer.objects.active = first
    return [first, second]


def test_selected_objects_in_one_file_keep_their_places(worker, tmp_path, source):
    first, second = two_objects(tmp_path, source)
    assert bpy.ops.lgm.export_splats(filepath=str(tmp_path / "b.ply"), which="JOINED") == {"FINISHED"}
    read = read_ply(tmp_path / "b.ply")
    assert len(read) == 500
    assert_same(read.select(np.arange(400)), source)  # the active one as it came in
    world = joined([splats.read_splats(thing, world=True) for thing in (first, second)])
    factor = first[splats.FRAME][0]
    distances = np.linalg.norm(world.positions[400:] - world.positions[:100], axis=1) / factor
    np.testing.assert_allclose(
        np.linalg.norm(read.positions[400:] - read.positions[:100], axis=1), distances, rtol=1e-4
    )


def test_selected_objects_in_a_file_each(worker, tmp_path, source):
    two_objects(tmp_path, source)
    assert bpy.ops.lgm.export_splats(filepath=str(tmp_path / "b.spz"), which="EACH") == {"FINISHED"}
    made = sorted(path.name for path in tmp_path.glob("*.spz"))
    assert made == ["b_first_ one.spz", "b_second.spz"]
    assert [len(read_splat_file(tmp_path / name)) for name in made] == [400, 100]
    with pytest.raises(RuntimeError, match="is there already"):
        bpy.ops.lgm.export_splats(filepath=str(tmp_path / "b.spz"), which="EACH")
    assert bpy.ops.lgm.export_splats(filepath=str(tmp_path / "b.spz"), which="EACH", check_existing=False) == {
        "FINISHED"
    }


def test_what_was_edited_is_exported(worker, tmp_path, source):
    bpy.ops.lgm.import_splats(filepath=str(tmp_path / "a.ply"))
    made = bpy.context.object
    bpy.ops.object.mode_set(mode="EDIT")
    if made.type == "MESH":
        bpy.ops.mesh.select_all(action="DESELECT")
        bpy.ops.object.mode_set(mode="OBJECT")
        for vertex in made.data.vertices[:150]:
            vertex.select = True
        bpy.ops.object.mode_set(mode="EDIT")
        bpy.ops.mesh.delete(type="VERT")
    else:
        chosen = made.data.attributes.new(".selection", "BOOLEAN", "POINT")
        chosen.data.foreach_set("value", np.arange(400) < 150)
        bpy.ops.pointcloud.delete()
    bpy.ops.lgm.export_splats(filepath=str(tmp_path / "b.ply"))
    assert_same(read_ply(tmp_path / "b.ply"), source.select(np.arange(150, 400)))


def test_export_needs_splats(worker):
    bpy.ops.mesh.primitive_cube_add()
    assert not bpy.ops.lgm.export_splats.poll()


def test_import_of_another_ply_is_a_sentence(worker, tmp_path):
    path = tmp_path / "mesh.ply"
    path.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n")
    with pytest.raises(RuntimeError, match=r"mesh\.ply"):
        bpy.ops.lgm.import_splats(filepath=str(path))


def test_several_files_one_of_them_damaged(worker, tmp_path, source):
    (tmp_path / "b.spz").write_bytes(b"\x1f\x8bnothing")
    write_splat_file(tmp_path / "c.spz", source)
    names = [{"name": name} for name in ("a.ply", "b.spz", "c.spz")]
    with pytest.raises(RuntimeError, match=r"b\.spz"):
        bpy.ops.lgm.import_splats(directory=str(tmp_path), files=names)
    assert sorted(thing.name for thing in bpy.data.objects) == ["a", "c"]


def test_the_older_names_work_for_scripts(worker, tmp_path, source):
    assert bpy.ops.lgm.import_ply(filepath=str(tmp_path / "a.ply"), up="-Y") == {"FINISHED"}
    assert bpy.ops.lgm.export_ply(filepath=str(tmp_path / "b.ply"), up="-Y", pad=True) == {"FINISHED"}
    assert_same(read_ply(tmp_path / "b.ply"), source)
    assert b"property float nx\n" in (tmp_path / "b.ply").read_bytes()


def test_a_name_without_a_suffix_gets_the_formats(worker, tmp_path, source):
    bpy.ops.lgm.import_splats(filepath=str(tmp_path / "a.ply"))
    bpy.ops.lgm.export_splats(filepath=str(tmp_path / "pot 1.5"), format="spz")
    assert len(read_splat_file(tmp_path / "pot 1.5.spz")) == 400


class _Dialog:
    """An export operator's properties, as the file browser changes them."""

    check = files._Export.check

    def __init__(self, filepath):
        self.filepath, self.format, self.last_format = filepath, "ply", ""


def test_menu_and_suffix_keep_in_step():
    dialog = _Dialog("/x/pot")
    assert dialog.check(None)
    assert dialog.filepath == "/x/pot.ply"
    dialog.format = "compressed"
    assert dialog.check(None)
    assert dialog.filepath == "/x/pot.compressed.ply"
    dialog.format = "spz"
    assert dialog.check(None)
    assert dialog.filepath == "/x/pot.spz"
    dialog.filepath = "/x/pot.sog"
    assert dialog.check(None)
    assert (dialog.format, dialog.filepath) == ("sog", "/x/pot.sog")
    assert not dialog.check(None)


def test_every_suffix_can_be_dropped():
    suffixes = files.LGM_FH_splats.bl_file_extensions.split(";")
    assert {".ply", ".spz", ".sog", ".splat", ".ksplat", ".glb", ".gltf"} == {*suffixes}


# ------------------------------------------------------------------------------ Blender's own importers, from 5.3 on

native = pytest.mark.skipif(not compat.has_native_splats(), reason="this Blender has no splats of its own")


@native
@pytest.mark.parametrize("coefficients", [0, 3, 8, 15])
@pytest.mark.parametrize("name", ["ply", "spz"])
def test_blender_reads_what_is_written_here(tmp_path, name, coefficients):
    gaussians, path = gaussians_of(coefficients), tmp_path / f"a{FORMATS[name].suffix}"
    write_splat_file(path, gaussians)
    if name == "ply":
        bpy.ops.wm.ply_import(filepath=str(path), forward_axis="NEGATIVE_Z", up_axis="Y")
    else:
        bpy.ops.wm.spz_import(filepath=str(path))
    (made,) = bpy.data.objects
    assert made.type == "POINTCLOUD"
    read = splats.read_splats(made, world=True)
    assert read.harmonics.shape[1] == coefficients
    assert_close(name, read, gaussians, slack=2e-6)


@native
@pytest.mark.parametrize("version", [2, 3, 4])
def test_blender_and_this_read_the_same_of_spz(tmp_path, version):
    from test_splat_files import spz_file

    (tmp_path / "a.spz").write_bytes(spz_file(gaussians_of(8), version))
    bpy.ops.wm.spz_import(filepath=str(tmp_path / "a.spz"))
    theirs = splats.read_splats(bpy.data.objects[0], world=True)
    ours = read_splat_file(tmp_path / "a.spz")
    assert_same(theirs, ours, 2e-3)


def test_settings_say_where_it_came_from(worker, tmp_path, source):
    bpy.ops.lgm.import_splats(filepath=str(tmp_path / "a.ply"), up="-Y")
    kept = json.loads(bpy.context.object["lgm_json"])
    assert (Path(kept["file"]).name, kept["up"]) == ("a.ply", "-Y")
