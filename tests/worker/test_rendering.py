"""The Gaussian renderer. Run with `python build.py test tests/worker/test_rendering.py`.

What needs a GPU is skipped without one; LGM_BLENDER_RENDERER=gsplat lets gsplat compile first.
"""

import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lgm_blender.core import cameras
from lgm_blender.core.errors import LGMError
from lgm_blender.worker import rendering
from lgm_blender.worker.rendering import backend_for, gsplat_backend, render, torch_backend


def random_gaussians(count, seed=0, scale=(0.01, 0.1), dtype=torch.float32):
    r = torch.Generator().manual_seed(seed)
    positions = torch.rand(count, 3, generator=r) * 1.2 - 0.6
    opacities = torch.rand(count, 1, generator=r)
    scales = torch.rand(count, 3, generator=r) * (scale[1] - scale[0]) + scale[0]
    rotations = torch.randn(count, 4, generator=r)
    return torch.cat([positions, opacities, scales, rotations, torch.rand(count, 3, generator=r)], 1).to(dtype)


def orbit(views=2, elevation=20.0, dtype=torch.float32):
    poses = cameras.orbit_cameras(elevation, [i * 360 / views for i in range(views)])
    return torch.from_numpy(cameras.view_matrices(poses)).to(dtype)


def pinhole(size, dtype=torch.float32):
    return torch.from_numpy(cameras.intrinsics(size)).to(dtype)


def dense_reference(gaussians, view, pinhole, height, width, near=0.5, far=2.5):
    """One picture [H, W, 5] (rgb, z, alpha over nothing), every Gaussian at every pixel, straight from the formulas."""
    dtype = gaussians.dtype
    fx, fy, cx, cy = pinhole[0, 0], pinhole[1, 1], pinhole[0, 2], pinhole[1, 2]
    rows, columns = torch.arange(height, dtype=dtype) + 0.5, torch.arange(width, dtype=dtype) + 0.5
    py, px = torch.meshgrid(rows, columns, indexing="ij")
    through = torch.ones(height, width, dtype=dtype)
    stopped = torch.zeros(height, width, dtype=torch.bool)
    out = torch.zeros(height, width, 5, dtype=dtype)
    camera = gaussians[:, :3] @ view[:3, :3].T + view[:3, 3]
    for i in camera[:, 2].argsort():
        (x, y, z), (opacity, scale, q, color) = camera[i], gaussians[i, 3:].split((1, 3, 4, 3))
        if not near <= z <= far:
            continue
        w, a, b, c = q / q.norm()
        cross = torch.stack([0 * w, -c, b, c, 0 * w, -a, -b, a, 0 * w]).reshape(3, 3)
        rotation = torch.eye(3, dtype=dtype) + 2 * w * cross + 2 * cross @ cross
        margin_x, margin_y = 0.3 * width / (2 * fx), 0.3 * height / (2 * fy)
        tx = z * (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
        ty = z * (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
        zero = torch.zeros_like(z)
        jacobian = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2]).reshape(2, 3)
        half = jacobian @ view[:3, :3] @ rotation @ scale.diag()
        conic = torch.linalg.inv(half @ half.T + 0.3 * torch.eye(2, dtype=dtype))
        d = torch.stack([px - (fx * x / z + cx), py - (fy * y / z + cy)], -1)
        alpha = (opacity * torch.exp(-0.5 * (d @ conic * d).sum(-1))).clamp(max=0.999)
        alpha = torch.where(alpha < 1 / 255, 0, alpha)
        stopped = stopped | (through * (1 - alpha) <= 1e-4)
        alpha = torch.where(stopped, 0, alpha)
        out = out + (through * alpha)[..., None] * torch.cat([color, z[None], torch.ones(1, dtype=dtype)])
        through = through * (1 - alpha)
    return out


@pytest.fixture(scope="session")
def gsplat_render(golden):
    return {k: v.float() for k, v in load_file(golden / "gsplat_render.safetensors").items()}


def check_golden(golden, device, backend):
    gaussians = golden["gaussians"].to(device).requires_grad_()
    size = golden["rgb"].shape[1]
    result = render(gaussians, golden["viewmats"].to(device), golden["Ks"].to(device), size, backend=backend)
    for name, limit in (("rgb", 2e-4), ("depth", 2e-4), ("alpha", 2e-4)):
        step = size // golden[name].shape[1]  # the packed copy holds every second pixel of some, the original all
        every = len(golden["viewmats"]) // len(golden[name])  # and of some every second view
        found = getattr(result, name).cpu()[::every, ::step, ::step]
        assert (found - golden[name]).abs().mean() < limit, name  # they are stored in half floats
    (result.rgb * golden["grad_weight"].to(device)).mean().backward()
    step = len(gaussians) // len(golden["grad_gaussians"])  # every fourth, of the original all
    for part in (slice(0, 14), slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 11), slice(11, 14)):
        ours, theirs = gaussians.grad[::step, part].cpu().flatten(), golden["grad_gaussians"][:, part].flatten()
        assert torch.cosine_similarity(ours, theirs, 0) > 0.9999
        assert torch.isclose(ours.norm(), theirs.norm(), rtol=1e-3)


def test_golden(gsplat_render):
    check_golden(gsplat_render, "cpu", "torch")


HEIGHT, WIDTH = 21, 26


def uneven_camera(dtype):
    return torch.tensor([[24.0, 0, 10.5], [0, 28, 11], [0, 0, 1]], dtype=dtype)


def difficult_gaussians():
    """Before near, beyond far, off to the side, behind the camera, needles, dots, opaque ones, crowds of faint ones."""
    gaussians = random_gaussians(150, scale=(0.005, 0.2), dtype=torch.float64)
    gaussians[:60, 3] = 0.03 * gaussians[:60, 3] + 0.003
    gaussians[60:80, 3] = 1
    gaussians[80:90, :3] *= 4
    gaussians[90:100, 4:7] *= torch.tensor([4, 0.02, 1], dtype=torch.float64)
    gaussians[100:110, 4:7] = 1e-4
    return gaussians


def picture_and_gradients(rendered):
    inputs = difficult_gaussians(), orbit(1, dtype=torch.float64), uneven_camera(torch.float64)
    inputs = [t.requires_grad_() for t in inputs]
    picture = rendered(*inputs)
    weight = torch.rand(picture.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (picture * weight).sum().backward()
    return picture, [t.grad for t in inputs]


@pytest.fixture(scope="module")
def reference():
    return picture_and_gradients(lambda g, v, k: dense_reference(g, v[0], k, HEIGHT, WIDTH))


@pytest.mark.parametrize(("chunk", "listed"), [(32, 2**20), (7, 2**20), (7, 40)])
def test_dense_reference(monkeypatch, reference, chunk, listed):
    def rendered(gaussians, views, camera):
        sums = torch_backend.rasterize(gaussians[None], views[None], camera[None, None], HEIGHT, WIDTH, 0.5, 2.5)
        return torch.cat(sums, dim=-1)[0, 0]

    monkeypatch.setattr(torch_backend, "CHUNK", chunk)
    monkeypatch.setattr(torch_backend, "LISTED", listed)
    picture, gradients = picture_and_gradients(rendered)
    assert picture[..., 4].max() > 0.99
    torch.testing.assert_close(picture, reference[0], rtol=0, atol=1e-9)
    for ours, theirs in zip(gradients, reference[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_behind_a_wall(monkeypatch):
    """A wall fills the first of four tiles; what is behind it there is not rendered, though others are still open."""
    monkeypatch.setattr(torch_backend, "LISTED", 10)
    wall = torch.tensor([-0.25, -0.25, 1, 1, 0.3, 0.3, 0.3, 1, 0, 0, 0, 1, 0, 0]).repeat(40, 1)
    behind = torch.tensor([-0.5, -0.5, 2, 1, 0.01, 0.01, 0.01, 1, 0, 0, 0, 0, 1, 0]).repeat(40, 1)
    camera = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]])
    expected = render(wall, torch.eye(4)[None], camera, 16, backend="torch")
    result = render(torch.cat([behind, wall]), torch.eye(4)[None], camera, 16, backend="torch")
    assert expected.alpha[:, :8, :8].min() > 0.99
    assert expected.alpha.min() < 0.5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


def test_batch_is_a_loop():
    gaussians = torch.stack([random_gaussians(200, seed) for seed in range(3)])
    views = torch.stack([orbit(2, elevation) for elevation in (-10.0, 0.0, 30.0)])
    background = torch.rand(3, 2, 3)
    batched = gaussians.clone().requires_grad_()
    together = render(batched, views, pinhole(40), (24, 40), background=background, backend="torch")
    together.rgb.square().mean().backward()
    assert together.rgb.shape == (3, 2, 24, 40, 3)
    assert together.depth.shape == together.alpha.shape == (3, 2, 24, 40, 1)
    for i in range(3):
        alone = gaussians[i].clone().requires_grad_()
        pinholes = pinhole(40).expand(2, 3, 3)
        result = render(alone, views[i], pinholes, (24, 40), background=background[i], backend="torch")
        for name in result._fields:
            torch.testing.assert_close(getattr(together, name)[i], getattr(result, name), rtol=1e-5, atol=1e-6)
        result.rgb.square().mean().backward()
        torch.testing.assert_close(batched.grad[i], alone.grad / 3, rtol=1e-3, atol=1e-8)


def test_many_images_are_rendered_in_parts(monkeypatch):
    gaussians, views = random_gaussians(50).expand(3, -1, -1), orbit(3)
    whole = torch.cat(torch_backend.rasterize(*spread(gaussians, views), 16, 16, 0.5, 2.5), dim=-1)
    for images in (1, 2, 5, 6):
        monkeypatch.setattr(torch_backend, "PROJECTED", 50 * images)
        parts = torch.cat(torch_backend.rasterize(*spread(gaussians, views), 16, 16, 0.5, 2.5), dim=-1)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def spread(gaussians, views):
    return gaussians, views.expand(len(gaussians), -1, 4, 4), pinhole(16).expand(len(gaussians), len(views), 3, 3)


def test_background():
    gaussians, views = random_gaussians(40), orbit(2)
    black = render(gaussians, views, pinhole(16), 16, background=0, backend="torch")
    for background in (0.3, torch.tensor([0.1, 0.5, 0.9]), torch.rand(2, 3)):
        result = render(gaussians, views, pinhole(16), 16, background=background, backend="torch")
        behind = torch.as_tensor(background)
        behind = behind[:, None, None] if behind.dim() == 2 else behind
        torch.testing.assert_close(result.rgb, black.rgb + (1 - black.alpha) * behind)
        torch.testing.assert_close(result.alpha, black.alpha)
    assert torch.equal(
        render(gaussians, views, pinhole(16), 16).rgb, render(gaussians, views, pinhole(16), 16, background=1.0).rgb
    )


@pytest.mark.parametrize(("z", "seen"), [(0.49, False), (0.51, True), (2.49, True), (2.51, False), (-1.0, False)])
def test_near_and_far(z, seen):
    gaussian = torch.tensor([[0, 0, z, 0.8, 0.1, 0.1, 0.1, 1, 0, 0, 0, 1, 0, 0]])
    result = render(gaussian, torch.eye(4)[None], pinhole(16), 16, backend="torch")
    assert bool(result.alpha.max() > 0.5) == seen
    if seen:
        torch.testing.assert_close(result.depth[result.alpha > 0], torch.full([int((result.alpha > 0).sum())], z))


@pytest.mark.parametrize("which", ["none", "behind", "transparent", "beside"])
def test_nothing_in_view(which):
    gaussians = random_gaussians(20)
    if which == "none":
        gaussians = gaussians[:0]
    elif which == "transparent":
        gaussians[:, 3] = 1e-3
    else:
        gaussians[:, :3] = torch.tensor([0, 0, 9.0] if which == "behind" else [50.0, 0, 0])
    gaussians.requires_grad_()
    result = render(gaussians, orbit(2, 0.0), pinhole(16), 16, background=0.25)
    assert (result.rgb == 0.25).all()
    assert (result.alpha == 0).all()
    assert (result.depth == 0).all()
    if which != "none":
        result.rgb.sum().backward()
        assert (gaussians.grad == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_a_number_is_left_out(bad):
    good = random_gaussians(14)
    spoilt = random_gaussians(14, seed=1)
    spoilt[range(14), range(14)] = bad
    spoilt = torch.cat([spoilt, random_gaussians(1, seed=2)])
    spoilt[-1, 7:11] = 0
    gaussians = torch.cat([spoilt, good]).requires_grad_()
    result = render(gaussians, orbit(2), pinhole(16), 16, backend="torch")
    expected = render(good, orbit(2), pinhole(16), 16, backend="torch")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))
    result.rgb.sum().backward()
    assert (gaussians.grad[:15] == 0).all()
    assert gaussians.grad[15:].isfinite().all()
    assert (gaussians.grad[15:] != 0).any()


def test_arrays_and_half_floats():
    gaussians, views = random_gaussians(30), orbit(2)
    expected = render(gaussians.half().float(), views, pinhole(16), 16)
    result = render(gaussians.half(), views.numpy(), cameras.intrinsics(16), 16, background=np.ones(3))
    assert result.rgb.dtype == torch.float32
    torch.testing.assert_close(result.rgb, expected.rgb)


def test_autocast_changes_nothing():
    gaussians, views = random_gaussians(30), orbit(2)
    grads = []
    for enabled in (False, True):
        leaf = gaussians.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            render(leaf, views, pinhole(16), 16, backend="torch").rgb.square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_inference_mode_changes_nothing():
    arguments = random_gaussians(30), orbit(4), pinhole(16), 16
    expected = render(*arguments, backend="torch")
    with torch.inference_mode():
        result = render(*arguments, backend="torch")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


def test_leaves_torch_its_threads():
    threads = torch.get_num_threads()
    gaussians = random_gaussians(30).requires_grad_()
    render(gaussians, orbit(4), pinhole(16), 16, backend="torch").rgb.sum().backward()
    assert torch.get_num_threads() == threads


def test_wrong_shapes():
    with pytest.raises(ValueError, match="14"):
        render(torch.zeros(5, 13), orbit(1), pinhole(16), 16)
    with pytest.raises(ValueError, match="pixels"):
        render(random_gaussians(5), orbit(1), pinhole(16), (0, 16))


# Which backend: gsplat's CUDA part is never compiled unasked.


@pytest.fixture
def fresh(monkeypatch):
    """Nothing decided yet, and no wish in the environment."""
    monkeypatch.delenv(rendering.VARIABLE, raising=False)
    for cached in (rendering._backend_for, rendering._gsplat):
        cached.cache_clear()
    yield monkeypatch
    for cached in (rendering._backend_for, rendering._gsplat):
        cached.cache_clear()


@pytest.fixture
def pretended_gsplat(fresh, tmp_path):
    """CUDA and an installed gsplat 1.5.3 that has not been compiled, and that fails when imported."""
    site = tmp_path / "site"
    (site / "gsplat").mkdir(parents=True)
    (site / "gsplat" / "__init__.py").write_text("print('Setting up CUDA')\nraise RuntimeError('ninja: build stopped')")
    (site / "gsplat-1.5.3.dist-info").mkdir()
    (site / "gsplat-1.5.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gsplat\nVersion: 1.5.3\n")
    fresh.syspath_prepend(site)
    fresh.setattr(torch.cuda, "is_available", lambda: True)
    fresh.setattr(torch.version, "hip", None)
    fresh.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        fresh.delitem(sys.modules, name)
    return tmp_path


def test_backend_without_cuda(fresh):
    name, reason = backend_for("cpu")
    assert name == "torch"
    assert "GPU" in reason
    with pytest.raises(LGMError, match="GPU") as error:
        render(random_gaussians(3), orbit(1), pinhole(16), 16, backend="gsplat")
    assert error.value.kind == "worker"


def test_backend_not_compiled(pretended_gsplat, capsys):
    name, reason = backend_for("cuda")
    assert name == "torch"
    assert "not been compiled" in reason
    assert "gsplat" not in sys.modules
    assert not (pretended_gsplat / "extensions").exists()
    assert capsys.readouterr().out == ""


def test_backend_that_fails_to_compile(pretended_gsplat, fresh, capsys):
    fresh.setenv(rendering.VARIABLE, "gsplat")
    name, reason = backend_for("cuda")
    assert name == "torch"
    assert "build stopped" in reason
    assert capsys.readouterr().out == ""


def test_backend_with_a_broken_library(pretended_gsplat):
    folder = pretended_gsplat / "extensions" / "gsplat_cuda"
    folder.mkdir(parents=True)
    (folder / "gsplat_cuda.so").write_bytes(b"of another torch")
    name, reason = backend_for("cuda")
    assert name == "torch"
    assert "ImportError" in reason


def test_backend_by_environment(fresh):
    fresh.setenv(rendering.VARIABLE, "torch")
    name, reason = backend_for("cuda")
    assert name == "torch"
    assert rendering.VARIABLE in reason


def test_the_trial_picture(monkeypatch):
    """`prepare` accepts the right picture, here torch's, and no other."""
    monkeypatch.setattr(gsplat_backend, "rasterize", torch_backend.rasterize)
    gsplat_backend._try(torch.device("cpu"))
    monkeypatch.setattr(gsplat_backend, "rasterize", lambda *a: [0 * t for t in torch_backend.rasterize(*a)])
    with pytest.raises(gsplat_backend.UnavailableError):
        gsplat_backend._try(torch.device("cpu"))


# Twins: the same pictures and gradients from both.

needs_gsplat = pytest.mark.skipif(
    not torch.cuda.is_available() or backend_for("cuda")[0] != "gsplat", reason="needs CUDA and a compiled gsplat"
)


@needs_gsplat
def test_golden_with_gsplat(gsplat_render):
    check_golden(gsplat_render, "cuda", "gsplat")


@needs_gsplat
def test_golden_with_torch_on_cuda(gsplat_render):
    check_golden(gsplat_render, "cuda", "torch")


@needs_gsplat
@pytest.mark.parametrize("scale", [(0.002, 0.01), (0.02, 0.2)])
def test_twins(scale):
    gaussians = torch.stack([random_gaussians(2000, seed, scale) for seed in range(2)]).cuda()
    gaussians[0, :5] = math.nan
    arguments = [t.cuda() for t in (orbit(3), pinhole(100))]
    results = {}
    for backend in ("torch", "gsplat"):
        leaf = gaussians.clone().requires_grad_()
        result = render(leaf, *arguments, (70, 100), background=0.5, backend=backend)
        (result.rgb.square().mean() + result.depth.mean() + result.alpha.square().mean()).backward()
        results[backend] = result, leaf.grad
    (ours, our_grad), (theirs, their_grad) = results["torch"], results["gsplat"]
    for name in ours._fields:
        assert (getattr(ours, name) - getattr(theirs, name)).abs().mean() < 1e-4, name
    assert torch.cosine_similarity(our_grad.flatten(), their_grad.flatten(), 0) > 0.999


@needs_gsplat
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_in_view_with_gsplat(count):
    gaussians = random_gaussians(count).cuda() + torch.tensor([9.0] + [0] * 13).cuda()
    result = render(gaussians, orbit(2).cuda(), pinhole(16).cuda(), 16, background=0.25, backend="gsplat")
    assert (result.rgb == 0.25).all()
    assert (result.depth == 0).all()
