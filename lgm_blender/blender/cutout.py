"""The cut-out of the chosen image, asked of the worker whenever it has nothing else to do.

What is asked last counts: an older question that is on its way is given up. A job pushes it aside, and it is asked
again after the job.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import bpy

from ..core.errors import ErrorKind, LGMError
from ..core.messages import MatteRequest, MatteResult
from .engine import Engine, Job
from .scene import images


@dataclass(frozen=True)
class Refusal:
    """Why there is no cut-out: a sentence, and what it is about."""

    sentence: str
    kind: ErrorKind


class Cutout:
    """What is known of the cut-out of one image.

    Attributes:
        result: What the worker made of the image as it is set now, or None.
        refusal: Why it could not, or None.
    """

    def __init__(self):
        self.result: MatteResult | None = None
        self.refusal: Refusal | None = None
        self._wanted: MatteRequest | None = None  # what has no answer yet
        self._last: MatteRequest | None = None
        self._subject: tuple = ()
        self._job: Job | None = None
        self._folder: Path | None = None
        self._numbers = itertools.count(1)

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way, or to be asked for as soon as that is possible."""
        return self._wanted is not None

    @property
    def is_asked(self) -> bool:
        """Whether an answer is on its way."""
        return self._job is not None

    def want(self, scene: bpy.types.Scene, engine: Engine | None) -> None:
        """Has the scene's image cut out as it is set now; forgets the last cut-out where there is no image.

        Args:
            engine: That the last question went to, or None.
        """
        self.put_off(engine)
        self._wanted = None
        settings = scene.lgm
        self._subject = _subject(settings)
        if settings.image is None:
            self.forget(engine)
            return
        try:
            self._wanted = self._last = self._request(settings)
        except LGMError as error:
            self.result, self.refusal = None, Refusal(error.message, error.kind)

    def _request(self, settings) -> MatteRequest:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="lgm_cutout_", dir=bpy.app.tempdir))
        folder = self._folder / str(next(self._numbers))  # who reads a file never sees it change
        mask = settings.mask and images.image_file(settings.mask, folder, "mask")
        return MatteRequest(
            job="",
            image=str(images.image_file(settings.image, folder)),
            output=str(folder),
            matting=settings.matting,
            matting_threshold=settings.matting_threshold or None,
            mask=mask and str(mask),
            name="cutout",
            overwrite=True,
        )

    def is_of(self, scene: bpy.types.Scene) -> bool:
        """Whether this is about the scene's image as it is set now; an undo changes settings without a word."""
        return self._subject == _subject(scene.lgm)

    def ask_again(self) -> None:
        """Asks once more what was refused: there may be a network now."""
        if self.refusal:
            self._wanted = self._last

    def put_off(self, engine: Engine | None) -> None:
        """Gives up the question that is on its way, to ask it again later."""
        job, self._job = self._job, None
        if job and engine:
            engine.cancel(job)

    def ask(self, engine: Engine) -> None:
        """Sends the question that is waiting, if any."""
        if self._wanted and self._job is None:
            self._job = engine.submit(replace(self._wanted, job=""))

    def step(self) -> bool:
        """Takes the answer if it has come; whether it has."""
        if self._job is None or not self._job.ended:
            return False
        job, self._job = self._job, None
        if job.state == "cancelled":  # with its worker, which has made room for another
            return False
        self._wanted, old = None, self.result
        self.result = job.result if job.state == "done" else None
        self.refusal = None if self.result else Refusal(job.error, job.kind or "internal")
        if old:
            shutil.rmtree(Path(old.cutout).parent, ignore_errors=True)
        return True

    def forget(self, engine: Engine | None = None) -> None:
        """There is no image any more."""
        self.put_off(engine)
        self._wanted = self._last = self.result = self.refusal = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _subject(settings) -> tuple:
    """What a cut-out is made of."""
    names = [image and image.name_full for image in (settings.image, settings.mask)]
    return (*names, settings.matting, settings.matting_threshold)
