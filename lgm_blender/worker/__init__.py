"""The second process: everything that needs torch. Nothing here is imported by Blender."""

import os

# What Apple's GPUs lack is computed on the CPU. torch reads this once, when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

# torch's threads wait for each other thousands of times in a job. By default they do it at full speed, on cores that
# Blender needs: beside other work LGM takes twice as long so, and alone no less (docs/reliability.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
