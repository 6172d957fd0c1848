"""What training says about an object: its caption in part, with the colour that it has.

Captions are file names of one to four words ('car police'). Whole, they name single objects; with words left out they
name kinds of objects. Colours stand in few of them, and mostly for teams of a game ('building castle red'), so they are
looked up in the picture.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ...core.color import WHITE, XYZ, srgb_to_linear

# sRGB of what most people give these names (Berlin and Kay's eleven basic colour terms).
COLORS = {
    "red": (0.75, 0.1, 0.1),
    "orange": (0.95, 0.5, 0.1),
    "yellow": (0.95, 0.85, 0.2),
    "green": (0.2, 0.6, 0.2),
    "blue": (0.15, 0.3, 0.75),
    "purple": (0.5, 0.2, 0.6),
    "pink": (0.95, 0.55, 0.7),
    "brown": (0.45, 0.28, 0.15),
    "black": (0.08, 0.08, 0.08),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.5, 0.5, 0.5),
}
# What stands before a caption: nothing, a colour, or the word that people use for brown furniture.
PREFIXES = ("", *COLORS, "wooden")
BROWN, WOODEN = PREFIXES.index("brown"), PREFIXES.index("wooden")
COLOR_WORDS = {*COLORS, "wooden", "gray", "beige", "gold", "silver", "dark", "light"}
CAPTION_LENGTH = 24  # tokens, the first and the last of them marks
SHARE = 0.5  # of an object's pixels that a colour must have to name it


def lab(rgb: Tensor) -> Tensor:
    """CIE L*a*b* (D65) of sRGB colours [..., 3] in 0 to 1."""
    xyz = srgb_to_linear(rgb) @ rgb.new_tensor(XYZ).T / rgb.new_tensor(WHITE)
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def color_prefixes(color: Tensor, alpha: Tensor) -> Tensor:
    """The index in PREFIXES [B] of the colour that most of each object has; 0 where no colour has half of it.

    Args:
        color: [B, 3, S, S], premultiplied.
        alpha: [B, 1, S, S].
    """
    names = lab(color.new_tensor(list(COLORS.values())))
    pixels = (color / alpha.clamp_min(1e-3)).clamp(0, 1).movedim(1, -1).flatten(1, 2)  # [B, P, 3]
    # Lightness counts half: a shaded side has the same name.
    weight = color.new_tensor([0.5, 1, 1])
    nearest = torch.cdist(lab(pixels) * weight, (names * weight).expand(len(pixels), -1, -1)).argmin(-1)
    solid = (alpha > 0.5).flatten(1).float()
    shares = torch.stack([(solid * (nearest == i)).sum(1) for i in range(len(names))], 1)
    most, which = (shares / solid.sum(1, keepdim=True).clamp_min(1)).max(1)
    return torch.where(most > SHARE, which + 1, 0)


def without_colors(caption: str) -> str:
    """A caption without words for colours; as it is, if there are no others."""
    return " ".join(word for word in caption.split() if word not in COLOR_WORDS) or caption


def caption_tokens(captions: list[str], tokenizer: CLIPTokenizer, ways: int = 4, seed: int = 0) -> Tensor:
    """Token ids [2·C, ways, len(PREFIXES), L] of C captions, in several ways and before each the prefixes.

    Rows from C on are the same captions without words for colours, for objects in other colours. Way 0 is the whole
    caption; in the others each word is missing with probability 0.3 (one always stays), and some begin with 'a'.
    """
    chance = random.Random(seed)
    begin, end, length = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length
    known: dict[str, list[int]] = {}

    def ids(words: list[str]) -> list[int]:
        for word in words:
            if word not in known:
                known[word] = tokenizer(word, add_special_tokens=False)["input_ids"]
        tokens = [token for word in words for token in known[word]][: length - 2]
        return [begin, *tokens, end] + [tokenizer.pad_token_id] * (length - 2 - len(tokens))

    table = []
    for caption in [*captions, *map(without_colors, captions)]:
        for way in range(ways):
            words = caption.split()
            if way:
                words = [word for word in words if chance.random() > 0.3] or [chance.choice(words)]
            article = ["a"] if way and chance.random() < 0.4 else []
            plain = without_colors(" ".join(words)).split()
            table += [ids([*article, prefix, *plain] if prefix else [*article, *words]) for prefix in PREFIXES]
    return torch.tensor(table).view(2 * len(captions), ways, len(PREFIXES), length)


def make_tokenizer(captions: list[str], folder: Path, vocabulary: int = 2048) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs come from the captions, saved as vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    vocab, merges = dict(model["vocab"]), model["merges"]
    for letter in alphabet:  # a lone last letter must have a token as well
        vocab.setdefault(letter, len(vocab))
        vocab.setdefault(letter + "</w>", len(vocab))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CAPTION_LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)
