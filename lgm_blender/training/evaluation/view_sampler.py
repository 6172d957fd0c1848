"""A preset's multi-view model, as a user's request runs it, with a cache of what it made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.files import replacing
from ...worker.matting import matte, recenter
from ...worker.outputs import encode_png, make_folder, side_by_side
from ...worker.presets import Mode, Preset
from ...worker.reconstruct import finish_frames, load_multiview, preset_settings, sample_frames
from ...worker.weights import CheckedFiles
from ..data.render_views import straight
from .ground_truth import GroundTruth


class ViewSampler:
    """The multi-view model of a preset's mode, with the preset's own settings.

    The seed follows from what is asked for. Views are rounded to 8 bits, as they are in a file, so that those from the
    cache are the same as those that were just made.

    Args:
        preset, mode: Which model.
        device: As `devices.resolve_device` gives it.
        cache: Folder that keeps the views; None for none.
        checked: Of which weights the SHA-256 is known.

    Raises:
        LGMError: If the weights are missing or damaged.
    """

    def __init__(self, preset: Preset, mode: Mode, device: str, cache: Path | None, checked: CheckedFiles):
        self.cache, self.settings = cache, preset_settings(preset, mode)
        folder = preset.locate(mode)
        preset.verify(mode, checked)
        self.model = load_multiview(preset, mode, device)
        weights = {name: checked.sha256(folder / name) for name in sorted(preset.weights[mode].files)}
        self.state = json.dumps([weights, preset.scheduler, asdict(self.settings)]).encode()

    def __call__(
        self, name: str, prompt: str = "", image: np.ndarray | None = None, elevation: float = 0.0
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Four views [4, S, S, 3] in LGM's order, 0 to 1, and the seconds they took, if they were not in the cache."""
        wish = json.dumps([prompt, round(elevation, 3)]).encode() + (b"" if image is None else image.tobytes())
        digest = hashlib.sha256(self.state + wish).hexdigest()
        path = self.cache / f"{digest[:24]}.png" if self.cache is not None else None
        if path is not None and (views := _read_views(path)) is not None:
            return views, {}
        began = time.perf_counter()
        seed = zlib.crc32(name.encode())
        (frames,) = sample_frames(self.model, self.settings, prompt, image, seeds=[seed], elevations=elevation)
        seconds = time.perf_counter() - began
        pixels = np.uint8(finish_frames(frames, image, self.settings) * 255 + 0.5)
        if path is not None:
            make_folder(path.parent)
            with replacing(path) as file:
                file.write(encode_png(side_by_side(pixels) / np.float32(255)))
        return np.float32(pixels) / 255, {"views": seconds}


def _read_views(path: Path) -> np.ndarray | None:
    with contextlib.suppress(OSError, ValueError, SyntaxError):  # missing, or damaged: they are made again
        pixels = np.asarray(Image.open(path).convert("RGB"))
        return np.float32(np.stack(np.split(pixels, 4, axis=1))) / 255
    return None


def photo_input(target: GroundTruth) -> np.ndarray:
    """What the pipeline makes of an object's photo: [256, 256, 3] in 0 to 1, cut out and recentred, on white."""
    return recenter(matte(straight(target.photo))[0])
