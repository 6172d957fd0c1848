"""What is said to be left out of a prompt is what the tokenizer cuts. Run: pytest tests/worker/test_prompts.py"""

from __future__ import annotations

import random
import unicodedata

import pytest

from lgm_blender.core import prompts
from lgm_blender.worker.multiview.tokenizer import CLIPTokenizer
from lgm_blender.worker.presets import BUNDLED, find_preset, preset_infos

MINI = BUNDLED / "mini" / "multiview"
WORDS = (
    *(
        "a",
        "red",
        "car",
        "wooden",
        "chair",
        "RED",
        "it's",
        "don't",
        "we'll",
        "O'Neill",
        "x2",
        "1234",
        "3.5mm",
        "...",
        "--'s",
    ),
    *(
        "!?",
        "Käfer",
        "Ka\u0308fer",
        "猫の像",
        "ß",
        "İstanbul",
        "½",
        "²",
        "🦊",
        "_under_score_",
        "<|endoftext|>",
        "a<|endoftext|>b",
    ),
    *(
        "antidisestablishmentarianism",
        "semi-transparent",
        "(tiny)",
        "and/or",
        "'",
        "''s",
        "e\u0301\u0323",
        "नमस्ते",
        "\u00ad",
    ),
)


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer(MINI / "tokenizer")


def length_of(tokenizer, text: str) -> int:
    """Tokens of a text, its begin and end among them."""
    tokenizer._tokenizer.no_truncation()
    tokenizer._tokenizer.no_padding()
    return len(tokenizer._tokenizer.encode(text).ids)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_counted_as_the_tokenizer_does(tokenizer, word):
    tokens = prompts._count(unicodedata.normalize("NFC", word), prompts._ranks(MINI))
    assert length_of(tokenizer, word) == tokens + 2


def test_the_words_left_out_are_those_that_change_nothing(tokenizer):
    limit = prompts.token_limit(MINI)
    assert limit == 24
    cut = 0
    for seed in range(300):
        draw = random.Random(seed)
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, 30)))
        left_out = prompts.left_out(text, MINI)
        cut += bool(left_out)
        assert text.endswith(left_out)
        read = text.removesuffix(left_out).rstrip()
        assert length_of(tokenizer, read) <= limit
        if left_out:
            more = f"{read} {left_out.split()[0]}"
            assert length_of(tokenizer, more) > limit
            assert tokenizer([text], limit) == tokenizer([more], limit)
    assert 50 < cut < 300


def test_a_prompt_of_twenty_words_is_warned_of():
    """Case F4: the last words of a long prompt changed nothing, and nobody was told."""
    text = " ".join(f"word{i}" for i in range(20))
    warning = prompts.left_out_warning(text, MINI)
    assert warning.startswith("The prompt is too long for this preset. It leaves out: 'word")
    assert "word19'" in warning
    assert prompts.left_out_warning("a red car", MINI) == ""
    assert "negative prompt" in prompts.left_out_warning(text, MINI, "negative prompt")


def test_text_of_any_length_is_told_in_a_moment():
    for text in ("x" * 100_000, "word " * 100_000, "🦊" * 10_000, "'" * 10_000):
        assert len(prompts.left_out_warning(text, MINI)) < 250


def test_without_a_tokenizer_nothing_is_said(tmp_path):
    assert prompts.left_out("a " * 100, tmp_path) == ""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("[]")
    (tmp_path / "text_encoder" / "config.json").write_text("nonsense")
    assert prompts.left_out("a " * 100, tmp_path) == ""


def test_the_worker_tells_which_model_reads_prompts():
    mini = next(info for info in preset_infos() if info.name == "mini")
    assert mini.text_model == str(find_preset("mini").locate("text"))
