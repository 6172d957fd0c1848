"""What a worker brings along before its first job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Each takes a second or more, and none is needed for views and Gaussians.
SLOW = {"diffusers", "matplotlib", "scipy", "skimage", "sklearn", "sympy", "torch._dynamo", "transformers"}


def test_nothing_slow_is_imported():
    code = (
        "import json, sys\nfrom lgm_blender.worker import server\nfrom lgm_blender.worker.lgm import model\n"
        "from lgm_blender.worker.multiview import pipeline\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not SLOW & {*json.loads(done.stdout)}
