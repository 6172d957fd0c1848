"""worker/threads.py (python build.py test tests/worker/test_threads.py)."""

from __future__ import annotations

import threading

import pytest
import shapes
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lgm_blender.worker.meshing.fusion import fuse, surface
from lgm_blender.worker.meshing.quads import make_quads
from lgm_blender.worker.meshing.refine import fit_outlines
from lgm_blender.worker.meshing.topology import corner_normals, decimate
from lgm_blender.worker.meshing.views import render_views, sphere_poses
from lgm_blender.worker.threads import one_thread, parallel


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_and_then_as_many_as_before():
    def fail():
        with one_thread("cpu") as threads:
            assert (threads, torch.get_num_threads()) == (3, 1)
            raise RuntimeError("on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        fail()
    assert torch.get_num_threads() == 3


def test_tasks_work_side_by_side_each_in_one_thread():
    meet = threading.Barrier(3, timeout=60)  # breaks unless three are at work at once
    leaf = torch.ones(2, requires_grad=True)

    def task(number: int) -> tuple[int, int, bool]:
        meet.wait()
        return number, torch.get_num_threads(), (leaf * number).requires_grad

    with parallel("cpu") as (each, threads):
        assert threads == 3
        assert list(each(task, range(3))) == [(number, 1, False) for number in range(3)]
    assert torch.get_num_threads() == 3


def test_other_devices_keep_their_threads():
    with parallel("meta") as (each, threads):
        assert (each, threads, torch.get_num_threads()) == (map, 1, 3)


class Counted(TorchDispatchMode):
    """How many operations ran with so many threads."""

    def __init__(self):
        super().__init__()
        self.threads: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        number = torch.get_num_threads()
        self.threads[number] = self.threads.get(number, 0) + 1
        return func(*args, **(kwargs or {}))


def test_meshing_works_in_one_thread():
    """Thousands of small operations: with torch's own threads, on busy cores, they took ten times as long."""
    views = render_views(torch.from_numpy(shapes.torus().to_array()), sphere_poses(8), 64)
    vertices, faces = surface(fuse(views, 48))
    for work in (
        lambda: decimate(vertices, faces, 400),
        lambda: make_quads(vertices, faces),
        lambda: fit_outlines(vertices, faces, views),
        lambda: corner_normals(vertices, faces),
    ):
        with Counted() as counted:
            work()
        several = sum(count for threads, count in counted.threads.items() if threads > 1)
        assert counted.threads[1] > max(10, 20 * several), counted.threads
        assert torch.get_num_threads() == 3
