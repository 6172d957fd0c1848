"""The second process: everything that needs torch. Nothing here is imported by Blender."""

import os

# What Apple's GPUs lack is computed on the CPU. torch reads this once, when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
