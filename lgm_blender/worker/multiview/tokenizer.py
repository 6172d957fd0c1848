"""CLIP's tokenizer, from the files that transformers' CLIPTokenizer writes: vocab.json, merges.txt, its settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

END = "<|endoftext|>"
LENGTH = 77  # tokens of every published CLIP
# Contractions, words, single digits, runs of other signs.
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class CLIPTokenizer:
    """Texts to numbers.

    Args:
        folder: Holds vocab.json, merges.txt and, mostly, tokenizer_config.json.

    Attributes:
        length: How many tokens there may be.

    Raises:
        OSError, ValueError, KeyError, TypeError: If a file is missing or makes no sense.
    """

    def __init__(self, folder: Path):
        settings = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
        begin, end, pad, unknown = (
            _text(settings.get(f"{name}_token") or default)
            for name, default in (("bos", "<|startoftext|>"), ("eos", END), ("pad", END), ("unk", END))
        )
        self.length = min(int(settings.get("model_max_length") or LENGTH), 1 << 20)
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=unknown,
        )
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.add_special_tokens(list(dict.fromkeys([begin, end, pad, unknown])))
        numbers = {token: self._tokenizer.token_to_id(token) for token in (begin, end, pad)}
        self._tokenizer.post_processor = processors.RobertaProcessing(
            (end, numbers[end]), (begin, numbers[begin]), trim_offsets=False, add_prefix_space=False
        )
        self._pad = pad, numbers[pad]

    def __len__(self) -> int:
        """How many tokens there are."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """The numbers of each text's tokens between its begin and its end, cut or filled to `length`."""
        self._tokenizer.enable_truncation(length)
        pad, number = self._pad
        self._tokenizer.enable_padding(length=length, pad_id=number, pad_token=pad)
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]


def _read(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return values


def _text(token: str | dict[str, Any]) -> str:
    """A token as a file gives it: a text, or an object with one."""
    return str(token["content"] if isinstance(token, dict) else token)
