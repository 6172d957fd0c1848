"""Models' configurations: JSON that comes with weights, and may be damaged or made to do harm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import LGMError
from ..core.paths import read_regular

LARGEST = 1 << 20  # bytes of a file, and the largest whole number in it: no model has a million of anything
MOST_LAYERS = 256  # numbers of these decide how long a model takes to build
_LAYERS = ("layers", "blocks", "depth")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file, whose numbers are those of a model.

    Raises:
        LGMError: (kind 'weights') If the file is missing, damaged, holds no object, or numbers that no model has.
    """
    try:
        values = json.loads(read_regular(path, LARGEST))
    except OSError as error:
        sentence = f"The model's file {path} is missing or can't be read ({error.strerror or error}). Fetch it again."
        raise LGMError(sentence, "weights") from error
    except (ValueError, RecursionError) as error:
        raise LGMError(f"The model's file {path} is damaged: it is no JSON. Fetch it again.", "weights") from error
    if not isinstance(values, dict):
        raise LGMError(f"The model's file {path} is damaged: it holds no JSON object. Fetch it again.", "weights")
    waiting = list(values.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, each) for each in value]
        elif isinstance(value, int | float):
            most = MOST_LAYERS if any(word in str(name) for word in _LAYERS) else LARGEST
            if not abs(value) <= most:
                raise LGMError(
                    f"{path} describes no model known here ({name} is {str(value)[:20]}). Fetch it again.", "weights"
                )
    return values


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Makes a sentence of what goes wrong while a model is built as the configuration `path` describes it."""
    try:
        yield
    except LGMError:
        raise
    except Exception as error:  # libraries raise whatever they like on values that they don't know
        reason = " ".join(str(error).split())[:200]
        raise LGMError(f"{path} describes no model known here ({reason}). Fetch it again.", "weights") from error
