"""What build.py calls. Standard library only: nothing need be installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD, DIST = ROOT / "build", ROOT / "dist"
