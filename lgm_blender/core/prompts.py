"""Which words of a prompt a model reads: CLIP's byte pair encoding, as far as counting needs it.

The worker encodes prompts with the library `tokenizers` (worker/multiview/tokenizer.py), which Blender's Python lacks.
What is left out is said while the user types, so it is counted here, from the same files, and for the worker's warnings
too; tests/worker/test_prompts.py holds the two together.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from .paths import read_regular

LENGTH = 77  # tokens of every published CLIP, those of a text's begin and end among them
LARGEST = 64 << 20  # bytes of a file that is read
LONGEST = 1024  # bytes of a word; what is longer, no model reads
_MARKS = re.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def left_out(text: str, model: Path) -> str:
    """What of a text a multi-view model does not read: from the first word on that it doesn't read to its end.

    Args:
        text: A prompt.
        model: The model's folder, in diffusers' layout; without a tokenizer nothing can be said, and '' is returned.
    """
    try:
        room, ranks = token_limit(model) - 2, _ranks(model)
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
    for word in re.finditer(r"\S+", text):
        room -= _count(unicodedata.normalize("NFC", word[0]), ranks)
        if room < 0:
            return text[word.start() :].strip()
    return ""


def left_out_warning(text: str, model: Path, what: str = "prompt") -> str:
    """A sentence that names the words of a text that a model does not read, or ''. `what` the text is to the user."""
    words = left_out(text, model)
    if not words:
        return ""
    few = words if len(words) <= 100 else f"{words[:48]} ... {words[-48:]}"
    return f"The {what} is too long for this preset. It leaves out: '{few}'. Shorten it."


@lru_cache(maxsize=8)
def token_limit(model: Path) -> int:
    """How many tokens a multi-view model reads, those of a text's begin and end among them.

    Raises:
        OSError, ValueError, TypeError: If it has no tokenizer that can be read.
    """
    tokenizer = _settings(model / "tokenizer" / "tokenizer_config.json")
    encoder = _settings(model / "text_encoder" / "config.json")
    return min(int(tokenizer.get("model_max_length") or LENGTH), int(encoder.get("max_position_embeddings") or LENGTH))


def _settings(path: Path) -> dict[str, Any]:
    return json.loads(read_regular(path, LARGEST))


@lru_cache(maxsize=4)
def _ranks(model: Path) -> dict[tuple[str, str], int]:
    """The pairs that are merged, and which of them first."""
    lines = read_regular(model / "tokenizer" / "merges.txt", LARGEST).decode().split("\n")
    pairs = (line.split(" ") for line in lines if line and not line.startswith("#version"))
    return {(left, right): rank for rank, (left, right) in enumerate(pairs)}


@lru_cache(maxsize=1)
def _letters() -> tuple[str, ...]:
    """The letter that stands for each byte in the files: itself where it can be printed, else one from 256 on."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in plain else chr(next(others)) for byte in range(256))


def _count(word: str, ranks: dict[tuple[str, str], int]) -> int:
    """How many tokens a text without white space becomes."""
    parts = [part for part in _MARKS.split(word) if part]
    return sum(1 if _MARKS.fullmatch(part) else sum(_merged(p, ranks) for p in _pieces(part.lower())) for part in parts)


def _pieces(text: str) -> list[str]:
    """What is never merged: contractions, runs of letters, single digits, runs of other signs."""
    pieces = []
    while text:
        found = next((c for c in _CONTRACTIONS if text.startswith(c)), "")
        if not found:
            kind, run = next(groupby(text, _kind))
            found = text[0] if kind == "N" else "".join(run)
        pieces.append(found)
        text = text[len(found) :]
    return pieces


def _kind(letter: str) -> str:
    kind = unicodedata.category(letter)[0]
    return kind if kind in "LN" else "other"


def _merged(piece: str, ranks: dict[tuple[str, str], int]) -> int:
    """How many tokens are left of a piece when all pairs are merged, those first that come first in the file."""
    letters = _letters()
    tokens = [letters[byte] for byte in piece.encode(errors="replace")[:LONGEST]]
    tokens[-1] += "</w>"
    while len(tokens) > 1:
        pair = min(pairwise(tokens), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        merged, i = [], 0
        while i < len(tokens):
            both = tuple(tokens[i : i + 2]) == pair
            merged.append("".join(pair) if both else tokens[i])
            i += 1 + both
        tokens = merged
    return len(tokens)
