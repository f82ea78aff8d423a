"""Images of evaluations: confusion of prototypes and classes, activity of slots, segments.

Dimensions: K prototypes, C classes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

__all__ = ["draw_activity", "draw_confusion", "draw_groups", "draw_segments", "matched_colors"]


def draw_confusion(confusion: np.ndarray, match: Sequence[int], names: Sequence[str], target: Path) -> None:
    """Draw which share of a class's pixels each matched prototype has, into a PNG.

    Rows are the prototypes in the order of their classes, so that the diagonal is the accuracy of each class; the
    last row is all other prototypes. Columns sum to 1.

    Args:
        confusion: K x C counts.
        match: the class of each prototype, or -1.
        names: of the classes.
        target: of the PNG.
    """
    shares = confusion / confusion.sum(0).clip(1)
    rows, labels = [], []
    for c, name in enumerate(names):
        groups = [k for k, one in enumerate(match) if one == c]
        rows.append(shares[groups].sum(0))
        labels.append(f"{name}  {groups[0] if groups else 'none'}")
    if len(confusion) > len(names):
        rows.append(shares[[k for k, one in enumerate(match) if one < 0]].sum(0))
        labels.append("all others")
    side = 1.5 + 0.28 * len(names)
    figure, axis = plt.subplots(figsize=(side + 2, side + 0.5), layout="constrained")
    image = axis.imshow(np.stack(rows), cmap="viridis", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xlabel("true class")
    axis.set_ylabel("class and number of the prototype")
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of the class's pixels")
    figure.savefig(target, dpi=120)
    plt.close(figure)


def draw_activity(usage: np.ndarray, histogram: np.ndarray, target: Path) -> None:
    """Draw how often each slot is active, and how many are in an image, into a PNG.

    Args:
        usage: K counts of images, the largest first.
        histogram: images with 0, 1, ... active slots.
        target: of the PNG.
    """
    images, live = histogram.sum(), int((usage > 0).sum())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(2, 1))
    left.bar(range(len(usage)), usage, width=1)
    mean = usage.sum() / max(live, 1)
    left.axhline(mean, color="black", linewidth=0.8, linestyle="--", label=f"mean of the {live} live: {mean:,.1f}")
    if live < len(usage):
        left.axvspan(live - 0.5, len(usage) - 0.5, color="0.9", label=f"{len(usage) - live} dead")
    left.set_xlim(-0.5, len(usage) - 0.5)
    left.set_xlabel("slots, the most active first")
    left.set_ylabel("images in which it is active")
    left.legend(frameon=False)
    numbers = np.arange(len(histogram))
    most = int(numbers[histogram > 0].max())
    right.bar(numbers[: most + 1], histogram[: most + 1], width=0.9)
    right.axvline((numbers * histogram).sum() / images, color="black", linewidth=0.8, linestyle="--")
    right.set_xlabel(f"active slots of an image (mean {(numbers * histogram).sum() / images:.2f})")
    right.set_ylabel("images")
    figure.savefig(target, dpi=120)
    plt.close(figure)


def draw_segments(blocks: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]], target: Path) -> None:
    """Draw examples of segments into a PNG, a line for each slot, the blocks side by side.

    Args:
        blocks: title to lines, which are title to images, uint8 S x S x 3, each with its pixels that are the
            slot's, S x S booleans: they keep their colours.
        target: of the PNG.
    """
    blocks = {title: lines for title, lines in blocks.items() if lines}
    rows = max(len(lines) for lines in blocks.values())
    columns = max(len(images) for lines in blocks.values() for images in lines.values())
    whole = plt.figure(figsize=(1.15 * columns * len(blocks) + 0.3, 1.35 * rows + 0.4), layout="constrained")
    for part, (block, lines) in zip(np.atleast_1d(whole.subfigures(1, len(blocks))), blocks.items(), strict=True):
        part.suptitle(block, fontsize=10)
        axes = part.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for line, (title, images) in zip(axes, lines.items(), strict=False):
            line[0].set_title(title, loc="left", fontsize=8)
            for axis, (image, inside) in zip(line, images, strict=False):
                faded = image.mean(2, keepdims=True) * 0.35 + 150
                axis.imshow(np.where(inside[..., None], image, faded.astype(np.uint8)))
                if inside.any() and not inside.all():
                    axis.contour(inside, [0.5], colors="black", linewidths=0.6)
    whole.savefig(target, dpi=130)
    plt.close(whole)


def draw_groups(
    rows: dict[str, Sequence[np.ndarray]], target: Path, legend: dict[str, np.ndarray] | None = None
) -> None:
    """Draw rows of images, one column a scene, into a PNG.

    Args:
        rows: title to uint8 H x W x 3 images, the same number in each row.
        target: of the PNG.
        legend: name to uint8 colour, for a line below.
    """
    columns = len(next(iter(rows.values())))
    height, width = next(iter(rows.values()))[0].shape[:2]
    lines = math.ceil(len(legend or ()) / columns)
    size = (1.5 * columns, 1.5 * height / width * len(rows) + 0.25 * len(rows) + 0.2 * lines)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, layout="constrained", squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image)
            axis.axis("off")
        line[0].set_title(title, loc="left", fontsize=9)
    if legend:
        patches = [Patch(facecolor=color / 255, edgecolor="0.7", label=name) for name, color in legend.items()]
        figure.legend(handles=patches, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)
    try:
        figure.savefig(target, dpi=130)
    finally:
        plt.close(figure)


def matched_colors(match: Sequence[int], palette: np.ndarray) -> np.ndarray:
    """The colour of each group: that of its class, or a grey.

    Args:
        match: the class of each group, or -1.
        palette: uint8 C x 3 colours of the classes.

    Returns:
        uint8 K x 3.
    """
    grey = np.linspace(60, 200, len(match)).astype(np.uint8)[:, None].repeat(3, axis=1)
    classes = np.array(match)[:, None]
    return np.where(classes >= 0, palette[classes[:, 0]], grey)
