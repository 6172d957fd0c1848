"""Evaluation: metrics, protocol, sheets, what is written and what is refused. Run: python build.py test tests/worker"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import box, write_archive
from PIL import Image
from tiny_multiview import golden_state
from tiny_preset import LGM_CONFIG, write_preset

from lgm_blender.core.cameras import orbit_camera, orbit_cameras, view_poses
from lgm_blender.core.errors import LGMError
from lgm_blender.core.formats.transforms import file_name, write_transforms
from lgm_blender.training.__main__ import main
from lgm_blender.training.data import objects, placement
from lgm_blender.training.data.orbits import placed_mesh
from lgm_blender.training.evaluation import ground_truth, metrics
from lgm_blender.training.evaluation.contact_sheet import Row, contact_sheet, error_picture, evenly, four_in_one, tile
from lgm_blender.training.evaluation.evaluate import evaluate, read_prompts
from lgm_blender.training.evaluation.metrics import alpha_iou, psnr, scores, ssim
from lgm_blender.training.evaluation.pictures import Pictures, blank, nearest, on_white
from lgm_blender.training.evaluation.report import table
from lgm_blender.training.evaluation.text_scores import ClipScore, Retrieval
from lgm_blender.training.evaluation.view_sampler import photo_input
from lgm_blender.training.loops.lpips import LPIPS
from lgm_blender.worker import presets
from lgm_blender.worker.lgm import LGM
from lgm_blender.worker.multiview.pipeline import MultiViewPipeline
from lgm_blender.worker.quantization import load_file, save_file

ROOT = Path(__file__).parents[2]
# Half sides: one that may fill the frame, one as long as a bus, one that stands aside.
BOXES = {"cube": (0.4, 0.4, 0.4), "bus": (0.15, 0.15, 0.6), "tower": (0.15, 0.6, 0.2)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("objects") / "objects.zip"
    shifts = {"tower": (0.1, -0.1, 0)}
    boxes = {name: box(half, shifts.get(name, (0, 0, 0))) for name, half in BOXES.items()}
    return write_archive(path, boxes, *["val"] * len(boxes))


@pytest.fixture(scope="module")
def source(archive) -> ground_truth.ObjectsZip:
    return ground_truth.ObjectsZip(archive)


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    folder = write_preset(tmp_path_factory.mktemp("presets") / "tiny")
    save_file(small_gaussians("tiny"), folder / "lgm" / "model.safetensors")
    settings = json.loads((folder / "preset.json").read_text())
    (folder / "preset.json").write_text(json.dumps(settings | {"files": presets.file_table(folder)}))
    return folder


def small_gaussians(salt: str) -> dict[str, torch.Tensor]:
    """Weights of an LGM whose Gaussians are small, so that they are quick to render."""
    state = golden_state(LGM(LGM_CONFIG), salt)
    state["conv.bias"][4:7] -= 3  # the scales, before softplus
    return state


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))


def random_lpips() -> LPIPS:
    torch.manual_seed(0)
    network = LPIPS()
    for lin in network.lins:
        lin.data.fill_(1.0)
    return network


# Metrics


def test_psnr_of_a_known_difference():
    a = torch.full((2, 3, 8, 8), 0.5)
    b = a.clone()
    b[1] += 0.1
    torch.testing.assert_close(psnr(a, b), torch.tensor([metrics.CEILING, 20.0]), atol=1e-4, rtol=0)


def test_ssim_is_scikit_images():
    i = np.arange(48)
    x = (i[:, None] * 7 + i * 3) % 32 / 31
    y = np.where(i[:, None] > 24, x, 1 - 0.8 * x)
    a, b = (torch.from_numpy(np.stack([z, z.T, w])).float()[None] for z, w in ((x, 1 - x), (y, 1 - y)))
    # scikit-image 0.26: structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    # data_range=1, channel_axis=-1)
    assert ssim(a, b).item() == pytest.approx(-0.015953600246, abs=1e-5)
    assert ssim(a, a).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(ssim(a, b), ssim(b, a))


def test_translucency_is_of_what_is_seen():
    alpha = torch.zeros(2, 4, 4)
    alpha[0, 0], alpha[1, 1], alpha[1, 2, 0] = 1.0, 0.5, 0.05
    assert metrics.translucency(alpha) == 0.5
    assert metrics.translucency(torch.zeros(1, 4, 4)) == 0


def test_iou_counts_pixels_of_all_views():
    a, b = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    assert alpha_iou(a, b) == 1
    a[0, :2] = 0.9
    assert alpha_iou(a, b) == 0
    b[0, 1:3] = 0.6
    b[1, 0, :4] = 0.4  # not above a half
    assert alpha_iou(a, b).item() == pytest.approx(4 / 12)
    b[1, 0, :4] = 0.6
    assert alpha_iou(a, b).item() == pytest.approx(4 / 16)


def test_scores_of_contenders_with_few_pictures():
    """A contender that repeats its pictures gets what it would get if they were given one by one."""
    torch.manual_seed(1)
    wanted = Pictures(torch.rand(3, 3, 32, 32), torch.rand(3, 32, 32))
    few, few_alpha = torch.rand(2, 3, 32, 32), torch.rand(2, 32, 32)
    views = torch.tensor([1, 0, 1])
    network = random_lpips()
    found = scores(
        wanted,
        {
            "same": wanted,
            "few": Pictures(few, few_alpha, views),
            "all": Pictures(few[views], few_alpha[views]),
            "without alpha": Pictures(few[views]),
        },
        network,
    )
    assert found["same"] == pytest.approx(
        {"psnr": metrics.CEILING, "ssim": 1, "lpips": 0, "iou": 1, "translucency": 0}, abs=1e-5
    )
    assert found["few"] == pytest.approx(found["all"])
    assert found["few"]["lpips"] == pytest.approx(network(few[views], wanted.rgb).mean().item(), rel=1e-5)
    assert found["few"]["lpips"] > 0
    assert found["without alpha"].keys() == {"psnr", "ssim", "lpips"}
    assert scores(wanted, {"same": wanted}, None)["same"].keys() == {"psnr", "ssim", "iou", "translucency"}


def test_the_input_that_is_nearest():
    poses = np.stack([orbit_camera(20, 22.5 + 45 * i) for i in range(8)])
    assert nearest(poses, orbit_cameras()).tolist() == [0, 1, 1, 2, 2, 3, 3, 0]


# The protocol


def frame(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels."""
    rows, columns = np.flatnonzero((alpha > 12).any(1)), np.flatnonzero((alpha > 12).any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_the_cameras_are_those_of_the_docs(source):
    shown = source.ground_truth(0, placed=False)
    elevations = (0, 0, 0, 0, 0, 20, -10, 30, 10, 20, 0, 30)
    azimuths = (0, 90, 180, 270, 22.5, 67.5, 112.5, 157.5, 202.5, 247.5, 292.5, 337.5)
    for pose, elevation, azimuth in zip(shown.poses, elevations, azimuths, strict=True):
        np.testing.assert_allclose(pose, orbit_camera(elevation, azimuth), atol=1e-6)


@pytest.mark.parametrize("number", [0, 2])
def test_a_placed_objects_front_view_is_the_recentred_photo(source, number):
    """At more than 60 dB: as near as 8 bits allow."""
    placed = source.ground_truth(number, placed=True)
    assert not placed.smaller
    rgb, *_ = on_white(placed.pixels[:1], "cpu")
    seen = torch.from_numpy(photo_input(placed)).movedim(-1, 0)[None]
    assert psnr(seen, rgb).item() > 60
    left, top, right, bottom = frame(placed.pixels[0, ..., 3])
    assert max(right - left, bottom - top) == round(0.8 * placement.SIZE)
    assert abs(left + right - placement.SIZE) <= 1
    assert abs(top + bottom - placement.SIZE) <= 1


def plainly_placed(source: ground_truth.ObjectsZip, name: str) -> tuple[objects.ObjectMesh, placement.Placement]:
    mesh = objects.read_mesh(source.archive, name)
    return mesh, placement.place(mesh.corners[:, :3], lambda placement: source.front_alpha(mesh, placement))


def test_a_placed_object_is_the_object_scaled_in_3d(source):
    """The same picture comes from the object as it was, seen by a camera that is moved the other way."""
    mesh, placement = plainly_placed(source, "tower")
    placed = source.ground_truth(2, placed=True)
    poses = placed.poses.copy()
    poses[:, :3, 3] = poses[:, :3, 3] / placement.scale + placement.center
    again, _ = source.renderer.render(mesh, poses)
    assert (np.abs(again.astype(int) - placed.pixels).max(-1) > 8).mean() < 0.005
    assert not np.array_equal(placed.pixels, source.ground_truth(2, placed=False).pixels)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_object_can_be_placed_by_its_corners_alone(source, number):
    """As near as a box of corners and one of rendered pixels are: a third of a pixel, a hundredth of the size."""
    name, _ = source.objects[number]
    mesh, placement = plainly_placed(source, name)
    found = placed_mesh(mesh)
    np.testing.assert_allclose(found.corners[:, :3], placement(mesh.corners[:, :3]), atol=0.01)
    np.testing.assert_array_equal(found.corners[:, 3:], mesh.corners[:, 3:])
    seen = source.renderer.render(found, orbit_camera(0, 0)[None])[0][0, ..., 3]
    wanted = source.ground_truth(number, placed=True).pixels[0, ..., 3]
    assert np.abs(np.subtract(frame(seen), frame(wanted))).max() <= 1


def test_a_long_object_is_placed_smaller_and_its_photo_is_not(source):
    placed = source.ground_truth(1, placed=True)
    assert placed.smaller
    for view in placed.pixels[:4, ..., 3]:
        left, top, right, bottom = frame(view)
        assert (
            min(left, top, placement.SIZE - right, placement.SIZE - bottom)
            >= 0.5 * (1 - placement.REACH) * placement.SIZE - 2
        )
    sides = [right - left for left, _, right, _ in (frame(view) for view in placed.pixels[:4, ..., 3])]
    assert sides[1] == pytest.approx(placement.REACH * placement.SIZE, abs=3)
    assert sides[0] < 0.5 * placement.SIZE
    left, top, right, bottom = frame(placed.photo[..., 3])
    assert max(right - left, bottom - top) == pytest.approx(0.8 * placement.SIZE, abs=2)
    picture = photo_input(placed)
    assert picture.shape == (256, 256, 3)
    assert (picture < 0.95).any(-1).any(0).sum() == pytest.approx(0.8 * placement.SIZE, abs=2)


def test_a_longer_lens_enlarges_the_picture_and_nothing_else(source):
    mesh = objects.read_mesh(source.archive, "cube")
    pose = orbit_camera(10, 30)
    (plain, near), _ = source.renderer.render(mesh, np.stack([pose, placement.zoomed(pose, 2.0, (0.25, -0.125))]))
    # Twice as large about (0.25, -0.125): a quarter of the picture, centred there.
    x, y = int((1 + 0.25) * 128), int((1 + 0.125) * 128)
    cut = Image.fromarray(plain[y - 64 : y + 64, x - 64 : x + 64, :3]).resize((256, 256), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(cut, int) - near[..., :3]).mean() < 2  # at edges: one is rendered, the other enlarged
    (other,), _ = source.renderer.render(mesh, placement.zoomed(pose, 2.0, (0.22, -0.125))[None])
    assert np.abs(np.asarray(cut, int) - other[..., :3]).mean() > 5


def test_what_cannot_be_seen_is_left_out(tmp_path):
    thin = box((0.5, 0.5, 0.0))  # from the side, nothing
    flat = dict(thin, vertices=thin["vertices"] * np.float16([1, 0, 0]))  # a line
    boxes = {"line": flat, "cube": box((0.4, 0.4, 0.4))}
    found = ground_truth.ObjectsZip(write_archive(tmp_path / "o.zip", boxes, "val", "val"))
    for placed in (False, True):
        with pytest.raises(placement.LeftOut, match=r"seen|nothing"):
            found.ground_truth(0, placed)
    assert found.ground_truth(1, placed=True).photo.any()


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory) -> Path:
    """The archive's objects as a data set of views; one of them is broken."""
    output = tmp_path_factory.mktemp("views")
    for name, caption in source.objects:
        folder = output / name
        folder.mkdir()
        poses = view_poses(name)[0]
        pixels, _ = source.renderer.render(objects.read_mesh(source.archive, name), poses)
        for i, view in enumerate(pixels):
            Image.frombuffer("RGBa", (256, 256), view.tobytes()).convert("RGBA").save(folder / file_name(i))
        write_transforms(folder, poses, 256, caption, "val")
    (output / "broken").mkdir()
    (output / "broken" / "transforms.json").write_text('{"split": "val", "frames": []}')
    return output


def test_folders_give_the_views_nearest_to_the_fixed_cameras(folders, source):
    found = ground_truth.ViewFolders(folders)
    assert found.objects == [("bus", "a bus"), ("cube", "a cube"), ("tower", "a tower")]
    shown, wanted = found.ground_truth(1, placed=False), source.ground_truth(0, placed=False)
    assert len({pose.tobytes() for pose in shown.poses}) == 12
    same = [0, 1, 2, 3, 4, 10]  # those at elevation 0 are among the views
    np.testing.assert_allclose(shown.poses[same], wanted.poses[same], atol=1e-5)
    assert np.abs(shown.pixels[same].astype(int) - wanted.pixels[same]).max() <= 2
    off = (shown.poses[:, :3, 3] * wanted.poses[:, :3, 3]).sum(1) / 1.5**2
    assert np.degrees(np.arccos(off.clip(-1, 1))).max() < 30
    assert shown.elevation == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("name", "number"), [("bus", 0), ("cube", 1), ("tower", 2)])
def test_objects_of_folders_are_placed_as_those_of_archives(folders, source, name, number):
    """By their silhouettes alone, and to 2%: the hull is that much larger than what is in it."""
    found = ground_truth.ViewFolders(folders)
    plain, placed = (found.ground_truth(number, placed) for placed in (False, True))
    _, placement = plainly_placed(source, name)
    scale = np.linalg.norm(placed.poses[0, :3, 3] - placed.poses[2, :3, 3]) / 3
    assert scale == pytest.approx(placement.scale, rel=0.02)
    np.testing.assert_allclose(plain.poses[0, :3, 3] - placed.poses[0, :3, 3] / scale, placement.center, atol=0.01)
    np.testing.assert_array_equal(placed.pixels, plain.pixels)
    assert placed.smaller == (name == "bus")
    assert not placed.rerendered


def test_a_front_view_from_above_turns_the_cameras_to_it():
    poses = np.stack([orbit_camera(20, 200 + 30 * i) for i in range(12)] + [orbit_camera(60, 10 * i) for i in range(8)])
    order, turned, elevation = ground_truth.nearest_to_fixed(poses)
    assert elevation == pytest.approx(20, abs=1e-4)
    assert len(set(order.tolist())) == 12
    assert order[0] == 5  # at azimuth 350: the nearest to the front
    np.testing.assert_allclose(turned[order[:4]], orbit_cameras(20), atol=1e-5)


def test_a_data_set_is_judged_like_an_archive(folders, preset, tmp_path):
    results = evaluate(preset, folders, None, tmp_path / "out")
    for mode in ("reconstruct", "image"):
        section = results["modes"][mode]
        assert [entry["caption"] for entry in section["objects"]] == ["a bus", "a cube", "a tower"]
        assert section["left_out"] == []
    assert "views_scores" not in results["modes"]["image"]
    blank = {mode: section["scores"]["blank"] for mode, section in results["modes"].items()}
    assert blank["image"] == blank["reconstruct"]  # the judged views are the same in both


def test_what_is_broken_in_a_data_set_is_left_out(folders, preset, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(folders / "cube", broken / "a")
    shutil.copytree(folders / "cube", broken / "b")
    for i in range(30):
        (broken / "a" / file_name(i)).unlink()
    section = evaluate(preset, broken, ["reconstruct"], tmp_path / "out")["modes"]["reconstruct"]
    assert [entry["id"] for entry in section["objects"]] == ["b"]
    assert section["left_out"][0]["id"] == "a"
    assert "6 usable views, 12 are needed" in section["left_out"][0]["reason"]


# Texts


def test_retrieval_finds_each_object_by_its_own_views(source):
    objects = [on_white(source.ground_truth(i, placed=False).pixels[:, ::4, ::4], "cpu")[0] for i in range(3)]
    retrieval = Retrieval(random_lpips(), [rgb[:4] for rgb in objects])
    assert [retrieval.rank(rgb[:4], i) for i, rgb in enumerate(objects)] == [1, 1, 1]
    assert retrieval.rank(objects[0][:4], 1) > 1
    # From other cameras too.
    assert [retrieval.rank(rgb[4:], i) for i, rgb in enumerate(objects)] == [1, 1, 1]


def write_clip(folder: Path) -> Path:
    """A CLIP of random weights in transformers' layout."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from lgm_blender.training.data.captions import make_tokenizer

    tokenizer = make_tokenizer(["red car", "wooden chair"], folder)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = small | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "pad_token_id": 0}
    vision = small | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return folder


def test_clip_score_takes_the_clip_of_the_cache(tmp_path):
    assert ClipScore.find() is None
    cached = tmp_path / "hf" / "hub" / "models--openai--clip-vit-base-patch16"
    folder = write_clip(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    name, found = ClipScore.find()
    assert (name, found) == ("openai/clip-vit-base-patch16", folder)
    score = ClipScore(found, "cpu")
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 48, 48)
    output = score.model.get_image_features(
        score.processor(
            [np.uint8(p.permute(1, 2, 0).numpy() * 255 + 0.5) for p in pictures], return_tensors="pt"
        ).pixel_values
    )
    output = getattr(output, "pooler_output", output)  # transformers 5 wraps it
    tokens = score.tokenizer(["red car"], return_tensors="pt")
    text = score.model.get_text_features(**tokens)
    text = getattr(text, "pooler_output", text)
    cosine = torch.nn.functional.cosine_similarity(output, text)
    assert score(pictures, "red car") == pytest.approx(100 * cosine.clamp_min(0).mean().item(), abs=1e-3)

    state = load_file(folder / "model.safetensors")
    state.pop("text_projection.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(LGMError, match="does not fit"):
        ClipScore(folder, "cpu")


def test_prompts_are_the_lines_of_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffa red car\n\n  wooden chair \na red car\nBüro\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ["a red car", "wooden chair", "Büro"]
    (tmp_path / "latin").write_bytes("Büro".encode("latin-1"))
    (tmp_path / "empty").write_text("\n\n")
    for name, words in (("none", "can't be read"), ("latin", "UTF-8"), ("empty", "no prompts")):
        with pytest.raises(LGMError, match=words):
            read_prompts(tmp_path / name)


# Contact sheets


def test_rows_are_the_best_the_worst_and_some_between():
    rows = [Row(str(i), [], [], float(i)) for i in (3, 1, 4, 0, 2)]
    assert [(rank, row.name) for rank, row in evenly(rows, 3)] == [(1, "4"), (3, "2"), (5, "0")]
    assert [row.name for _, row in evenly(rows, 9)] == ["4", "3", "2", "1", "0"]
    assert [row.name for _, row in evenly(rows, 1)] == ["4"]


def test_error_is_white_for_none_and_dark_for_much():
    a = np.full((4, 4, 3), 0.25)
    np.testing.assert_allclose(error_picture(a, a), 1)
    much = error_picture(a, a + 0.6)
    assert much.max() < 0.2
    some = error_picture(a, a + 0.1)
    assert much.sum() < some.sum() < 48


def test_a_sheet_has_its_pictures_where_its_columns_are():
    rng = np.random.default_rng(0)
    red, green = np.zeros((64, 64, 3)), np.zeros((64, 64, 3))
    red[..., 0], green[..., 1] = 1, 1
    rows = [
        Row(f"a thing with a rather long name {i}", ["PSNR 20.0", "LPIPS 0.1"], [tile(p, 48) for p in (red, green)], i)
        for i in range(20)
    ]
    data = contact_sheet("Title", [("one", ["input"]), ("two", ["error"])], rows, size=48, count=5, note="note")
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    reds = (image - [255, 0, 0] == 0).all(-1)
    greens = (image - [0, 255, 0] == 0).all(-1)
    assert reds.sum() == greens.sum() == 5 * 48 * 48
    assert np.flatnonzero(reds.any(0)).max() < np.flatnonzero(greens.any(0)).min()
    assert 5 * 48 < image.shape[0] < 12 * 48 + 200
    # A sheet as evaluations make them, of pictures that don't compress, keeps to its size.
    noisy = [Row("x", [], [tile(rng.random((96, 96, 3)), 96) for _ in range(11)]) for _ in range(30)]
    assert len(contact_sheet("T", [("", [""] * 11)], noisy)) < 1.3e6


def test_four_in_one():
    four = np.arange(4.0)[:, None, None, None] * np.ones((4, 2, 2, 3))
    assert four_in_one(four)[::2, ::2, 0].tolist() == [[0, 1], [2, 3]]


# The whole


@pytest.fixture(scope="module")
def judged(archive, preset, tmp_path_factory) -> tuple[dict, Path]:
    """All three modes of the tiny preset, without LPIPS."""
    output = tmp_path_factory.mktemp("evaluation")
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(output / "data"))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(output / "hf" / "hub"))
        results = evaluate(
            preset,
            archive,
            ["reconstruct", "image", "text"],
            output / "a ż",
            views_cache=output / "views",
            progress=lambda *progress: told.append(progress),
        )
    assert [told[i][:3] for i in (0, 1, 2, 3, -1)] == [
        ("reconstruct", 1, 3),
        ("reconstruct", 2, 3),
        ("reconstruct", 3, 3),
        ("image", 1, 3),
        ("text", 3, 3),
    ]
    return results, output


def test_results_are_whole(judged, preset):
    results, output = judged
    folder = output / "a ż"
    assert sorted(path.name for path in folder.iterdir()) == [
        "image.png",
        "reconstruct.png",
        "results.json",
        "text.png",
    ]
    assert json.loads((folder / "results.json").read_text("utf-8")) == results
    assert results["preset"] == {"name": str(preset), "version": "7"}
    assert results["lpips"] is False
    assert results["modes"]["image"]["settings"] == {
        "steps": 3,
        "guidance": 2.0,
        "scheduler": "DDIMScheduler",
        "negative_prompt": "ugly",
        "match_colors": False,
        "matte_views": False,
        "level_first": False,
        "keep_image": False,
        "samples": 1,
        "refine": False,
        "tell_generated": False,
        "remove_floaters": False,
    }
    for mode in ("reconstruct", "image"):
        section = results["modes"][mode]
        assert len(section["cameras"]["inputs"]) == 4
        assert len(section["cameras"]["judged"]) == 8
        assert section["left_out"] == []
        assert [entry["id"] for entry in section["objects"]] == list(BOXES)
        assert section["scores"].keys() == {"prediction", "repeated_input", "blank"}
        for key in ("scores", *(("views_scores",) if mode == "image" else ())):
            for name, figures in section[key].items():
                assert figures.keys() == {"psnr", "ssim"} | ({"iou", "translucency"} if key == "scores" else set())
                for figure, value in figures.items():  # the mean over the objects
                    each = [entry[key][name][figure] for entry in section["objects"]]
                    assert value == pytest.approx(np.mean(each))
                    assert math.isfinite(value)
        assert section["scores"]["blank"]["iou"] == 0
        assert 0 < section["scores"]["repeated_input"]["iou"] < 1
    assert results["modes"]["image"]["smaller"] == pytest.approx(1 / 3)
    text = results["modes"]["text"]
    assert [entry["prompt"] for entry in text["objects"]] == ["a cube", "a bus", "a tower"]
    assert text["clip"] is None
    assert text["retrieval"] is None  # it needs LPIPS's network
    for mode in results["modes"]:
        with Image.open(folder / f"{mode}.png") as image:
            assert image.width > 500
        assert (folder / f"{mode}.png").stat().st_size < 300_000


def test_baselines_are_what_they_say(judged, source):
    scores = judged[0]["modes"]["reconstruct"]["objects"][0]["scores"]
    rgb, alpha, _ = on_white(source.ground_truth(0, placed=False).pixels, "cpu")
    white = [-10 * math.log10(((1 - view) ** 2).mean().item()) for view in rgb[4:]]
    assert scores["blank"]["psnr"] == pytest.approx(np.mean(white), abs=1e-3)
    near = torch.tensor([0, 1, 1, 2, 2, 3, 3, 0])
    repeated = [-10 * math.log10(((a - b) ** 2).mean().item()) for a, b in zip(rgb[near], rgb[4:], strict=True)]
    assert scores["repeated_input"]["psnr"] == pytest.approx(np.mean(repeated), abs=1e-3)
    shared = ((alpha[near] > 0.5) & (alpha[4:] > 0.5)).sum() / ((alpha[near] > 0.5) | (alpha[4:] > 0.5)).sum()
    assert scores["repeated_input"]["iou"] == pytest.approx(shared.item(), abs=1e-5)

    scores = judged[0]["modes"]["image"]["objects"][0]["scores"]
    placed = source.ground_truth(0, placed=True)
    rgb, *_ = on_white(placed.pixels, "cpu")
    picture = torch.from_numpy(photo_input(placed)).movedim(-1, 0)
    repeated = [-10 * math.log10(((picture - view) ** 2).mean().item()) for view in rgb[4:]]
    assert scores["repeated_input"]["psnr"] == pytest.approx(np.mean(repeated), abs=1e-3)
    assert blank(5, "cpu").rgb.min() == 1


def test_the_table_has_all_of_it(judged):
    lines = table(judged[0]).splitlines()
    assert lines[0].split() == ["reconstruct", "(3", "objects)", "PSNR", "SSIM", "IoU", "transl."]
    assert [line.split("  ")[1] for line in lines[1:4]] == ["prediction", "input view repeated", "blank white"]
    assert lines[4].startswith("image (3 objects)")
    assert lines[8].strip().startswith("generated views")
    assert any(line.startswith("text (3 prompts)") for line in lines)


def test_another_lgm_is_judged_on_the_same_views(judged, archive, preset, tmp_path, monkeypatch):
    """From the cache: the multi-view model does not run."""
    results, output = judged
    save_file(small_gaussians("another"), tmp_path / "other.safetensors")
    monkeypatch.setattr(MultiViewPipeline, "__call__", lambda *_, **__: pytest.fail("it ran"))
    options = {"views_cache": output / "views", "limit": 1}
    other = evaluate(preset, archive, ["image"], tmp_path / "o", lgm=tmp_path / "other.safetensors", **options)
    assert other["lgm"] == str(tmp_path / "other.safetensors")
    mine, theirs = results["modes"]["image"]["objects"][0], other["modes"]["image"]["objects"][0]
    assert theirs["views_scores"] == mine["views_scores"]
    assert theirs["scores"]["prediction"] != mine["scores"]["prediction"]
    assert theirs["scores"]["blank"] == mine["scores"]["blank"]
    # And the preset's own again gives the same figures as when the views were made.
    again = evaluate(preset, archive, None, tmp_path / "p", **options)
    assert again["modes"].keys() == {"reconstruct", "image"}
    assert again["modes"]["image"]["objects"][0]["scores"] == mine["scores"]


def test_a_damaged_view_in_the_cache_is_made_again(judged, archive, preset, tmp_path):
    results, output = judged
    for path in (output / "views").glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:50])
    again = evaluate(preset, archive, ["image"], tmp_path / "out", views_cache=tmp_path, limit=1)
    assert again["modes"]["image"]["objects"][0]["scores"] == results["modes"]["image"]["objects"][0]["scores"]
    assert len([path for path in tmp_path.glob("*.png") if path.stat().st_size > 50]) == 1


def test_lpips_and_retrieval(archive, preset, tmp_path):
    network = random_lpips()
    save_file(network.state_dict(), tmp_path / "lpips.safetensors")
    options = {"lpips": tmp_path / "lpips.safetensors"}
    results = evaluate(preset, archive, ["reconstruct"], tmp_path / "one", limit=1, **options)
    results["modes"] |= evaluate(preset, archive, ["text"], tmp_path / "two", limit=2, **options)["modes"]
    found = results["modes"]["reconstruct"]["scores"]
    assert all(figures["lpips"] > 0 for figures in found.values())
    retrieval = results["modes"]["text"]["retrieval"]
    assert retrieval["objects"] == 2
    assert retrieval["chance_median_rank"] == 1.5
    assert {entry["rank"] for entry in results["modes"]["text"]["objects"]} <= {1, 2}
    assert "LPIPS" in table(results)


def test_prompts_of_ones_own_need_no_objects(preset, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red car\nwooden chair\n")
    results = evaluate(preset, None, ["text"], tmp_path / "out", prompts=tmp_path / "prompts.txt", limit=1)
    assert [entry["prompt"] for entry in results["modes"]["text"]["objects"]] == ["a red car"]
    assert 0 <= results["modes"]["text"]["non_empty"] <= 1


def test_the_command(archive, preset, tmp_path, capsys):
    arguments = ["evaluate", "--data", str(archive), "--preset", str(preset), "--output", str(tmp_path / "o")]
    arguments += ["--mode", "reconstruct", "--limit", "1", "--device", "cpu"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "blank white" in captured.out
    assert captured.out.splitlines()[-1] == str(tmp_path / "o" / "results.json")
    assert captured.err.splitlines()[0].startswith("reconstruct 1/1 a cube: PSNR")
    assert "--fetch-lpips" in captured.err.splitlines()[-1]
    assert main(arguments) == 1  # what is there is not replaced
    assert "already holds results (reconstruct.png, results.json)" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "none.zip"], "There is no none.zip"),
        (["--data", "text.zip"], "not an objects.zip"),
        (["--data", "empty.zip"], "not an objects.zip"),
        (["--data", "train.zip"], "no objects of the split 'val'"),
        (["--data", "hollow.zip"], "No object can be judged; of the first one: cube: its file is missing"),
        (["--data", "folder"], "folder holds no objects"),
        ([], "There are no objects to judge on"),
        (["--data", "GOOD", "--preset", "maxi"], "no preset 'maxi'"),
        (["--data", "GOOD", "--preset", "lgm"], "models --download lgm"),
        (["--data", "GOOD", "--preset", "TEXTLESS", "--mode", "text"], "can't start from text alone"),
        (["--data", "GOOD", "--limit", "0"], "At least one object"),
        (["--data", "GOOD", "--lpips", "none"], "none is missing"),
        (["--data", "GOOD", "--lpips", "other.safetensors"], "no LPIPS weights"),
        (["--data", "GOOD", "--lgm", "none"], "none is missing"),
        (["--data", "GOOD", "--lgm", "other.safetensors"], "holds another model"),
        (["--data", "GOOD", "--output", "text.zip/out"], "is not a folder"),
        (["--data", "GOOD", "--views-cache", "text.zip/cache"], "is not a folder"),
        (["--mode", "text", "--prompts", "none"], "can't be read"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(arguments, words, archive, preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.zip").write_text("no zip")
    with zipfile.ZipFile("empty.zip", "w"):
        pass
    write_archive(Path("train.zip"), {"cube": box((0.4, 0.4, 0.4))}, "train")
    with zipfile.ZipFile("hollow.zip", "w") as file:
        file.writestr("index.json", '[{"id": "cube", "split": "val", "caption": ""}]')
    Path("folder").mkdir()
    save_file({"a": torch.zeros(3)}, "other.safetensors")
    textless = write_preset(tmp_path / "textless", text=False) if "TEXTLESS" in arguments else None
    names = {"GOOD": archive, "TEXTLESS": textless}
    arguments = [str(names.get(argument, argument)) for argument in arguments]
    defaults = [("--preset", str(preset)), ("--output", "out"), ("--mode", "reconstruct")]
    for option, value in defaults:
        arguments += [option, value] if option not in arguments else []
    assert main(["evaluate", *arguments]) == 1
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert words in last
    assert not captured.out
    assert not Path("out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to the whole console")
def test_ctrl_c(archive, preset, tmp_path):
    arguments = ["--data", archive, "--preset", preset, "--output", "out", "--mode", "text", "--device", "cpu"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {i}" for i in range(10_000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "lgm_blender.training", "evaluate", *map(str, arguments), "--prompts", str(prompts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        text=True,
    )
    for line in process.stderr:
        if line.startswith("text 2/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Cancelled."
    assert out == ""
    assert not (tmp_path / "out").exists()
