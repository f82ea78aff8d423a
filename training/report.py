"""Pictures of a finished run: its curves, and the groups it discovered."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["draw_curves", "draw_groups"]


def draw_curves(metrics: Path, target: Path) -> None:
    """Draw loss parts, slot activity and schedule over the steps of a ``metrics.jsonl`` into a PNG."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    panels = {
        "Loss": ("loss", "group_loss", "slot_loss", *(["image_loss"] if "image_loss" in lines[0] else [])),
        "Slots": ("active_slots", "positive_pairs", "dead_slots"),
        "Learning rate": ("lr",),
        "Teacher momentum": ("teacher_momentum",),
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.5), layout="constrained", sharex=True)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        for name in names:
            axis.plot(steps, [line[name] for line in lines], label=name.replace("_", " "), linewidth=1.5)
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.savefig(target, dpi=110)
    plt.close(figure)


def draw_groups(rows: dict[str, Sequence[np.ndarray]], target: Path) -> None:
    """Draw rows of pictures, one column a scene, into a PNG.

    Args:
        rows: title to uint8 H x W x 3 pictures, the same number in each row.
        target: of the PNG.
    """
    columns = len(next(iter(rows.values())))
    height, width = next(iter(rows.values()))[0].shape[:2]
    size = (1.5 * columns, 1.5 * height / width * len(rows) + 0.25 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, layout="constrained", squeeze=False)
    for line, (title, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture)
            axis.axis("off")
        line[0].set_title(title, loc="left", fontsize=9)
    figure.savefig(target, dpi=130)
    plt.close(figure)


def colors(number: int) -> np.ndarray:
    """Distinct colours, uint8 number x 3."""
    hues = (np.arange(number) * 0.618) % 1  # the golden ratio keeps neighbours apart
    values = np.where(np.arange(number) % 2, 0.95, 0.7)
    hsv = np.stack([hues, np.full(number, 0.65), values], axis=1)
    return (matplotlib.colors.hsv_to_rgb(hsv) * 255).astype(np.uint8)
