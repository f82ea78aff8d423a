"""Read and plot the metrics of a run."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from training.pretraining.metric_names import words

__all__ = ["draw_curves", "read_metrics"]

PANELS = {
    "Loss": ("loss", "group_loss", "slot_loss", "image_loss"),
    "Slots of an image": ("active_slots", "positive_pairs"),
    "Dead prototypes": ("dead_slots",),
    "Entropy of prototype usage (1: uniform)": ("usage_entropy",),
    "Learning rate": ("lr",),
    "Teacher momentum": ("teacher_momentum",),
    "Gradient norm": ("grad_norm",),
    "kNN accuracy": ("knn",),
    "Images per second": ("images_per_second",),
    "Share of time waiting for data": ("data_wait",),
    "Memory, GB": ("memory_gb",),
}
"""Panel titles with their metrics; panels without values are left out."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``, without an incomplete last line.

    Raises:
        ValueError: there is none.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.parent} is no folder of a run: {error}") from None
    if not lines:
        raise ValueError(f"{path} holds no line yet: wait for the first")
    return lines


def draw_curves(metrics: Path, target: Path) -> None:
    """Plot the metrics of a run as PNG.

    Raises:
        ValueError: there are none.
    """
    lines = read_metrics(metrics)
    panels = {title: [n for n in names if any(n in line for line in lines)] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    rows = math.ceil(len(panels) / 3)
    figure, axes = plt.subplots(rows, 3, figsize=(11, 2.3 * rows), layout="constrained", sharex=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), label=words(name), linewidth=1.3)
        axis.set_title(title, loc="left", fontsize=9)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=8)
    figure.supxlabel("step", fontsize=9)
    figure.savefig(target, dpi=110)
    plt.close(figure)
