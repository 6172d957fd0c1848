"""core/messages.py: what is sent is what arrives, and what doesn't fit is answered."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lgm_blender.core import messages
from lgm_blender.core.errors import LGMError
from lgm_blender.core.messages import (
    GenerateRequest,
    GenerateResult,
    Initialized,
    MeshRequest,
    MeshResult,
    PresetInfo,
    Progress,
)

REQUEST = GenerateRequest(job="1", output="/tmp/żółw 亀", image="/tmp/ü.png", seed=7)


def test_a_message_survives_its_line():
    line = messages.encode(messages.request(3, "generate", messages.to_params(REQUEST)))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    message = messages.decode(line)
    assert message["id"] == 3
    assert messages.from_params(GenerateRequest, message["params"]) == REQUEST


def test_newlines_in_a_prompt_stay_in_the_line():
    line = messages.encode(messages.notification("progress", {"message": "a\nb\u2028c"}))
    assert line.count(b"\n") == 1
    assert messages.decode(line)["params"]["message"] == "a\nb\u2028c"


def test_every_message_survives():
    result = GenerateResult(
        "1", "a.ply", "v.png", None, "a.json", 9, {"seed": 1}, {"python": "3"}, {"total": 1.5}, "cpu", ["w"]
    )
    ready = Initialized(1, "0", "3", "2", "cpu", "cpu", [PresetInfo("mini", "Mini", ["image"], True)], "log")
    meshes = MeshRequest("2", "a.ply", "out", "-y", faces=9), MeshResult("2", "a.glb", 9, 8, {}, {"save": 0.5}, "cpu")
    progress = Progress("1", "views", 2, 5, 3, 30, preview="p.png")
    for value in (REQUEST, result, replace(result, ply=None, glb="a.glb", faces=7), *meshes, ready, progress):
        line = messages.encode({"params": messages.to_params(value)})
        assert messages.from_params(type(value), messages.decode(line)["params"]) == value


def test_numbers_without_a_point_are_floats_where_floats_are_meant():
    request = messages.from_params(GenerateRequest, {"job": "1", "output": "o", "elevation": 30, "guidance": 5})
    assert isinstance(request.elevation, float)
    assert isinstance(request.guidance, float)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": "seven"}, "'seed' can't be 'seven'"),
        ({"seed": True}, "'seed' can't be True"),
        ({"seed": 1.5}, "'seed' can't be 1.5"),
        ({"image": 3}, "'image' can't be 3"),
        ({"overwrite": 1}, "'overwrite' can't be 1"),
        ({"output": None}, "'output' can't be None"),
        ({"elevation": "high"}, "'elevation' can't be 'high'"),
        ({"seed": "x" * 10_000}, "'seed' can't be 'xxx"),
        ({"colour": 1}, "no field 'colour'"),
    ],
)
def test_answers_fields_that_do_not_fit(change, sentence):
    with pytest.raises(LGMError) as caught:
        messages.from_params(GenerateRequest, messages.to_params(REQUEST) | change)
    assert sentence in caught.value.message
    assert len(caught.value.message) < 400


def test_numbers_beyond_all_others_are_infinite():
    """JSON has no largest number, and Python's own conversion would fail."""
    read = messages.from_params(GenerateRequest, messages.to_params(REQUEST) | {"elevation": 10**400})
    assert read.elevation == math.inf


@pytest.mark.parametrize("presets", [3.5, None, {}, [3], "all"])
def test_a_first_answer_without_presets(presets):
    values = {"protocol": 4, "presets": presets, "log": ""}
    values |= dict.fromkeys(("version", "python", "torch", "device", "device_name"), "")
    with pytest.raises(LGMError):
        messages.from_params(messages.Initialized, values)


def test_answers_what_is_missing_and_what_is_no_object():
    with pytest.raises(LGMError, match="needs 'job', 'output'"):
        messages.from_params(GenerateRequest, {"seed": 1})
    with pytest.raises(LGMError, match="needs a JSON object"):
        messages.from_params(GenerateRequest, [1])
    for line in (b"[1]", b"{", b"\xff\xfe", b""):
        with pytest.raises(ValueError, match=r"object|Expecting|decode"):
            messages.decode(line)


def test_progress_says_its_stage_in_words():
    assert Progress("1", "matting", 1, 5).label == "Cutting out the object"
