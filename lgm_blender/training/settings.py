"""What a training can be told: the fields of these classes, which are the options of its command as well."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


def setting(default: Any, about: str, *aliases: str) -> Any:
    """A field with a sentence on what it is, and further names of its option."""
    return field(default=default, metadata={"about": about, "aliases": aliases})


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Of every training."""

    seconds: float = setting(math.inf, "the run's length, without compilation")
    until: float | None = setting(None, "when it ends instead, in seconds since 1970; on lent machines")
    steps: int | None = setting(None, "the run's length in steps instead; such a run gives the same numbers each time")
    batch: int = setting(8, "samples a step and process; the less, the less memory")
    learning_rate: float = setting(4e-4, "its largest value", "--rate")
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "'muon' for the matrices and kernels between the first and the last layer (muon.py)"
    )
    init: Path | None = setting(None, "weights to start from; vae, multiview: a preset's multiview/")  # noqa: RUF009
    seed: int = setting(0, "of everything random")
    resume: bool = setting(False, "continue from the folder's last checkpoint, if there is one")
    compile: bool = setting(True, "torch.compile the networks: faster after a minute or two")
    graphs: bool = setting(True, "record steps as CUDA graphs, where there is one GPU")


@dataclass(frozen=True, kw_only=True)
class LGMSettings(RunSettings):
    """Of LGM's."""

    lpips_weight: float = setting(0.2, "of the LPIPS loss")
    generated_lpips_weight: float | None = setting(None, "the same on generated views, if it is another one there")
    lpips_from: float = setting(0.4, "part of the run before LPIPS comes in; from the start the training can collapse")
    lpips_views: int = setting(4, "of each object, how many of the other views LPIPS sees")
    supervised_inputs: int = setting(4, "how many of the four input views are supervised (the paper: 4)")
    supervised_others: int = setting(4, "how many other views are (the paper: 4)")
    # Colours alone take very long to say where a surface is.
    surface_weight: float = setting(
        0.3, "of a Gaussian's distance from the point that its pixel sees; falls to a tenth"
    )
    level_first: bool = setting(
        False, "turn an object's cameras as a whole until its first input is level; as published"
    )
    # Otherwise what generated views disagree about becomes translucent, the mean of what may be there.
    translucency_weight: float = setting(0.0, "of what is half transparent, alpha · (1 - alpha), on generated views")
    augmentation: bool = setting(True, "distort and jitter the input views (augment.py)")
    # In half of the other steps the ground truth of the same objects goes in, which may be of another size.
    generated_share: float = setting(0.5, "of the steps, those on generated views, where there are some")
    # Told so LGM makes the mean of what may be there; single samples are not averaged, and in use it is not told.
    told_share: float = setting(1.0, "of the steps on generated views, those where LGM is told that they are averaged")


@dataclass(frozen=True, kw_only=True)
class VAESettings(RunSettings):
    """Of the VAE's."""

    batch: int = setting(32, "views a step and process")
    learning_rate: float = setting(5e-4, "its largest value", "--rate")
    lpips_weight: float = setting(0.3, "of the LPIPS loss")
    kl_weight: float = setting(1e-8, "of the latents' divergence from normal ones")
    chroma_weight: float = setting(2.0, "of the colours less their brightness")
    decoder_only: bool = setting(False, "leave the latents as they are: a model that makes them stays of use")


@dataclass(frozen=True, kw_only=True)
class MultiViewSettings(RunSettings):
    """Of the multi-view model's."""

    batch: int = setting(128, "samples a step and process")


def add_options(parser: Any, kind: type[RunSettings], names: Iterable[str] = ()) -> None:
    """Add options for fields of a class of settings to a parser or a group of one; those not given are left out.

    Args:
        parser: Gets them.
        kind: The class.
        names: Which fields; all without.
    """
    types = get_type_hints(kind)
    for each in fields(kind):
        if names and each.name not in names:
            continue
        hint, known = types[each.name], each.default not in (None, math.inf)
        told = {"help": each.metadata["about"] + f" (default: {each.default})" * known}
        if get_origin(hint) is Literal:
            told["choices"] = get_args(hint)
        elif hint is bool:
            told["action"] = argparse.BooleanOptionalAction
        else:
            told["type"] = (get_args(hint) or (hint,))[0]  # of `type | None` the type
        flags = [f"--{each.name.replace('_', '-')}", *each.metadata["aliases"]]
        parser.add_argument(*flags, default=argparse.SUPPRESS, **told)
