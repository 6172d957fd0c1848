"""What training says about an object."""

from __future__ import annotations

import pytest
import torch

from lgm_blender.training.data.captions import (
    COLORS,
    PREFIXES,
    caption_tokens,
    color_prefixes,
    lab,
    make_tokenizer,
    without_colors,
)

CAPTIONS = ["red car", "wooden kitchen chair", "tower"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(CAPTIONS * 3, tmp_path_factory.mktemp("tokenizer"))


def test_lab_is_the_standard_s():
    # sRGB red and white in CIE L*a*b* under D65.
    values = lab(torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 0]]))
    expected = torch.tensor([[53.24, 80.09, 67.20], [100, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(values, expected, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", COLORS)
@pytest.mark.parametrize("shade", [0.85, 1.0])
def test_a_plain_object_has_the_colour_s_name(name, shade):
    if name == "white" and shade < 1:
        pytest.skip("a shade of white is grey at some point")
    alpha = torch.zeros(1, 1, 8, 8)
    alpha[..., 2:6, 2:6] = 1
    color = torch.tensor(COLORS[name]).view(1, 3, 1, 1) * shade * alpha
    assert PREFIXES[color_prefixes(color, alpha)] == name


def test_many_colours_and_no_object_have_no_name():
    alpha = torch.ones(2, 1, 6, 6)
    alpha[1] = 0
    color = torch.zeros(2, 3, 6, 6)
    for i, name in enumerate(("red", "green", "blue")):
        color[0, :, 2 * i : 2 * i + 2] = torch.tensor(COLORS[name])[:, None, None]
    assert color_prefixes(color, alpha).tolist() == [0, 0]


def test_words_for_colours_go_unless_nothing_else_is_there():
    assert [without_colors(text) for text in ("red car", "building castle red", "gold")] == [
        "car",
        "building castle",
        "gold",
    ]


def test_tokens_are_those_of_the_prompt_that_a_user_types(tokenizer):
    table = caption_tokens(CAPTIONS, tokenizer, ways=3)
    assert table.shape == (6, 3, len(PREFIXES), tokenizer.model_max_length)

    def typed(text):
        ids = tokenizer([text], padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
        return torch.tensor(ids["input_ids"])[0]

    assert torch.equal(table[0, 0, 0], typed("red car"))
    assert torch.equal(table[0, 0, PREFIXES.index("blue")], typed("blue car"))
    assert torch.equal(table[3, 0, 0], typed("car"))  # in another colour than its caption says
    assert torch.equal(table[4, 0, PREFIXES.index("wooden")], typed("wooden kitchen chair"))
    assert torch.equal(caption_tokens([""], tokenizer, ways=1)[0, 0, 0], typed(""))
    parts = {text: typed(text) for text in ("tower", "a tower")}
    for way in range(3):
        assert any(torch.equal(table[2, way, 0], tokens) for tokens in parts.values())


def test_some_ways_leave_words_out(tokenizer):
    rows = caption_tokens(["wooden kitchen chair"], tokenizer, ways=12)[0, :, 0]
    assert len({tuple(row.tolist()) for row in rows}) > 3
    again = caption_tokens(["wooden kitchen chair"], tokenizer, ways=12)[0, :, 0]
    assert torch.equal(rows, again)


def test_a_caption_that_is_too_long_is_cut(tokenizer):
    row = caption_tokens(["chair " * 50], tokenizer, ways=1)[0, 0, 0]
    assert len(row) == tokenizer.model_max_length
    assert row[-1] == tokenizer.eos_token_id
