"""A training's log as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from ...core.files import replacing

NAMES = ("psnr", "lpips", "iou", "off", "velocity_mse", "shape_mse", "l1", "loss", "norm")


def plot_log(log: Path, picture: Path) -> None:
    """Plot each of a log's figures over the steps, small panels in one PNG.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    curves = {name: [(e["step"], e[name]) for e in entries if name in e] for name in NAMES}
    judged = {name: [(e["step"], e[f"val_{name}"]) for e in entries if f"val_{name}" in e] for name in NAMES}
    shown = [name for name in NAMES if len(curves[name]) > 1]
    if not shown:
        return
    rows = -(-len(shown) // 3)
    figure = Figure(figsize=(9, 2.3 * rows), layout="constrained")
    for name, axes in zip(shown, figure.subplots(rows, 3, squeeze=False).flat, strict=False):
        axes.plot(*zip(*curves[name], strict=True), linewidth=1)
        if judged[name]:
            axes.plot(*zip(*judged[name], strict=True), "o", markersize=3)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    with replacing(picture) as file:
        figure.savefig(file, format="png", dpi=90)
