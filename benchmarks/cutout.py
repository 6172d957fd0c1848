"""How well objects are cut out of pictures whose true alpha is known: python benchmarks/cutout.py [--folder DIR]

Prints, for each group of tests/worker/cutout_pictures.py, how many are cut as they should be (intersection over union
above 0.95; a street: not without a word), how many end in a sentence, and the rest by name. --folder keeps
the cut-outs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests" / "worker")]
import cutout_pictures as pictures  # noqa: E402

from lgm_blender.core.errors import LGMError  # noqa: E402
from lgm_blender.worker.matting import matte  # noqa: E402

GOOD = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    folder = parser.parse_args().folder
    for group in (pictures.gradients, pictures.eaten, pictures.bars):
        good, refused, wrong, seconds = 0, [], [], []
        for name, image, true in group():
            began = time.perf_counter()
            try:
                doubts = []
                rgba, _ = matte(image, warn=doubts.append)
                value = float(bool(doubts)) if true is None else pictures.overlap(rgba[..., 3] / 255, true)
            except LGMError:
                rgba, value = None, 1.0 if true is None else None
            seconds.append(time.perf_counter() - began)
            if value is None:
                refused.append(name)
            elif value > GOOD:
                good += 1
            else:
                wrong.append(f"{name} ({value:.2f})")
            if folder and rgba is not None:
                folder.mkdir(parents=True, exist_ok=True)
                on_green = Image.new("RGBA", image.size, (0, 200, 0, 255))
                on_green.alpha_composite(Image.fromarray(rgba))
                both = np.concatenate([np.asarray(image.convert("RGB")), np.asarray(on_green)[..., :3]], axis=1)
                Image.fromarray(both).save(folder / f"{name}.png")
        count = len(seconds)
        print(f"{group.__name__}: {good} of {count} right, {len(refused)} refused, {len(wrong)} wrong; ", end="")
        print(f"{np.median(seconds):.2f} s, at most {max(seconds):.2f}")
        for label, names in (("refused", refused), ("wrong", wrong)):
            if names:
                print(f"  {label}: {'; '.join(names)}")


if __name__ == "__main__":
    main()
