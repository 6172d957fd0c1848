"""How long a job may still take. Run: pytest tests/blender/test_run_times.py"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lgm_blender.blender.run_times import KEPT, RunTimes
from lgm_blender.core.messages import GenerateRequest, MeshRequest, Progress

ASKED = GenerateRequest(job="a", output="/o", image="/i.png")


def result(views=10.0, load=1.0, **settings):
    settings = {"steps": 20, "guidance": 4.0, "view_samples": 4} | settings
    timings = {"matting": 0.5, "load": load, "views": views, "gaussians": 2.0, "save": 0.5}
    return SimpleNamespace(timings=timings | {"total": sum(timings.values())}, settings=settings)


def at(stage, step=0, steps=0):
    return Progress("a", stage, 0, 5, step, steps)


def remaining(times, request=ASKED, warm=True, stage=None, step=0, steps=0, now=0.0):
    forecast = times.forecast(request, warm, 0.0)
    if stage:
        forecast.hear(at(stage, step, steps), 0.0)
        forecast.hear(at(stage, step, steps), now)
    return forecast.remaining(now)


def test_first_run_knows_nothing(tmp_path):
    times = RunTimes(tmp_path / "times.json")
    assert remaining(times) is None
    times.add(ASKED, result(), 15.0, True)
    assert remaining(times, MeshRequest("b", "/p", "/o")) is None
    for other in ({"preset": "lgm"}, {"output_kind": "mesh"}, {"device": "cpu"}, {"image": None, "prompt": "x"}):
        assert remaining(times, GenerateRequest(**{"job": "a", "output": "/o", "image": "/i.png"} | other)) is None


def test_the_same_again_takes_as_long(tmp_path):
    RunTimes(tmp_path / "deep" / "times.json").add(ASKED, result(), 15.0, True)  # 14 of the worker's, 1 on the way
    times = RunTimes(tmp_path / "deep" / "times.json")  # another Blender, another day
    assert remaining(times) == pytest.approx(15.0)
    assert remaining(times, now=0.5) == pytest.approx(14.5)
    assert remaining(times, stage="views", now=3.0) == pytest.approx(7.0 + 2.5)
    assert remaining(times, stage="views", now=30.0) == pytest.approx(2.5)
    assert remaining(times, stage="save", now=0.2) == pytest.approx(0.3)
    assert remaining(times, stage="bake") is None  # never heard of


def test_median_of_the_last_runs():
    times = RunTimes(None)
    for views in (1000.0, *[10.0] * KEPT, 12.0, 90.0):
        times.add(ASKED, result(views), 4.0 + views, True)
    assert remaining(times, stage="views") == pytest.approx(10.0 + 2.5)


def test_views_are_scaled_by_what_is_asked_for():
    times = RunTimes(None)
    times.add(ASKED, result(), 15.0, True)

    def asked(**options):
        request = GenerateRequest(job="a", output="/o", image="/i.png", **options)
        return remaining(times, request, stage="views") - 2.5

    assert asked(steps=40) == pytest.approx(20.0)
    assert asked(view_samples=1) == pytest.approx(2.5)
    assert asked(guidance=1.0) == pytest.approx(5.0)
    assert asked(steps=20, guidance=7.0, view_samples=4) == pytest.approx(10.0)
    times.add(ASKED, result(20.0, steps=40), 25.0, True)
    assert asked() == pytest.approx(20.0)  # the preset's own are as they were last
    assert asked(steps=20) == pytest.approx(10.0)


def test_a_worker_that_starts_takes_longer_than_one_that_waits():
    times = RunTimes(None)
    times.add(ASKED, result(load=6.0), 22.0, False)
    assert remaining(times, warm=True) == pytest.approx(22.0)  # nothing better is known
    times.add(ASKED, result(load=0.1), 13.2, True)
    assert remaining(times, warm=True) == pytest.approx(13.2)
    assert remaining(times, warm=False) == pytest.approx(22.0)


def test_steps_that_are_slower_count_the_more_the_more_are_done():
    times = RunTimes(None)
    times.add(ASKED, result(), 15.0, True)
    told = [remaining(times, stage="views", step=step, steps=20, now=2.0 * step) - 2.5 for step in (5, 10, 15, 19, 20)]
    assert told == pytest.approx(
        [0.75 * 17.5, 0.5 * 25.0, 0.25 * 32.5, 0.05 * 38.5, 0.0]
    )  # 30, 20, 10, 2 and 0 were it
    assert remaining(times, stage="views", step=5, steps=20, now=1.0) == pytest.approx(9.0 + 2.5)
    assert remaining(times, stage="views", step=1, steps=20, now=3.0) == pytest.approx(7.0 + 2.5)  # one may be slow


@pytest.mark.parametrize(
    "content", ["", "nonsense", "[]", '{"a": 1}', '{"a": [{"seconds": {"x": "y"}}]}', '{"a": [3]}']
)
def test_a_damaged_file_is_begun_anew(tmp_path, content):
    path = tmp_path / "times.json"
    path.write_text(content)
    times = RunTimes(path)
    assert remaining(times) is None
    times.add(ASKED, result(), 15.0, True)
    assert remaining(RunTimes(path)) == pytest.approx(15.0)
    assert [file.name for file in tmp_path.iterdir()] == ["times.json"]


def test_a_folder_that_can_not_be_written_to_is_no_problem(tmp_path):
    (tmp_path / "file").write_text("")
    times = RunTimes(tmp_path / "file" / "times.json")
    times.add(ASKED, result(), 15.0, True)
    assert remaining(times) == pytest.approx(15.0)


def test_two_blenders_keep_each_others_runs(tmp_path):
    one, two = RunTimes(tmp_path / "times.json"), RunTimes(tmp_path / "times.json")
    one.add(ASKED, result(), 15.0, True)
    two.add(MeshRequest("b", "/p", "/o"), result(), 15.0, True)
    three = RunTimes(tmp_path / "times.json")
    assert remaining(three) is not None
    assert remaining(three, MeshRequest("b", "/p", "/o")) is not None
