"""Errors whose message is a sentence for the user: what happened, and what to do about it."""

from __future__ import annotations

from typing import Literal

ErrorKind = Literal[
    "bad_input",  # the image, prompt, setting or file the user gave
    "output",  # the folder or disk the result goes to
    "weights",  # a preset's weights: missing, cut short, of another model
    "matting",  # the background could not be removed
    "out_of_memory",
    "device",  # the GPU failed: its worker is ended, and the next job gets a new one
    "worker",  # the worker's process or its Python environment
    "cancelled",
    "internal",  # ours; the log file says more
]


class LGMError(Exception):
    """A failure with a sentence for the user.

    Args:
        message: What happened and what to do, one or two sentences, shown as they are.
        kind: What the failure is about; Blender chooses the button it offers by it.
    """

    def __init__(self, message: str, kind: ErrorKind = "bad_input"):
        super().__init__(message)
        self.message = message
        self.kind: ErrorKind = kind


class Cancelled(LGMError):
    """The user cancelled the job."""

    def __init__(self):
        super().__init__("Cancelled.", "cancelled")
