"""Figures of evaluations: confusion matrix, slot activity, segments.

Dimensions: K prototypes, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from slotcon_hub.concepts.drawing import overlay_colors

__all__ = [
    "NO_CLASS",
    "draw_activity",
    "draw_confusion",
    "draw_groups",
    "draw_segments",
    "matched_colors",
    "paint",
    "paint_over",
]

NO_CLASS = np.array([[20, 20, 20], [235, 235, 235]], np.uint8)
"""Stripe colours of pixels without class."""

_OPACITY = 0.65
_SMALL = 200  # pixels; images up to this long are drawn eight per row


def draw_confusion(confusion: np.ndarray, match: Sequence[int], names: Sequence[str], target: Path) -> None:
    """Draw the fraction of each class's pixels assigned to each matched prototype, into a PNG.

    Rows are prototypes in the order of their classes, so that the diagonal is the accuracy per class; the last row
    sums all other prototypes. Columns sum to 1.

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
    """Draw how often each slot is active, and the number of active slots per image, into a PNG.

    Args:
        usage: K counts of images, descending.
        histogram: number of images with 0, 1, ... active slots.
        target: of the PNG.
    """
    images, live = histogram.sum(), int((usage > 0).sum())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(2, 1))
    left.bar(range(len(usage)), usage, width=1)
    mean = usage.sum() / max(live, 1)
    left.axhline(mean, color="black", linewidth=0.8, linestyle="--", label=f"mean of the {live} live: {mean:,.1f}")
    if live < len(usage):
        left.axvspan(
            live - 0.5, len(usage) - 0.5, facecolor="0.92", edgecolor="0.5", label=f"{len(usage) - live} dead"
        )
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
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(target, dpi=120)
    plt.close(figure)


def draw_segments(blocks: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]], target: Path) -> None:
    """Draw examples of segments into a PNG, one row per slot, blocks side by side.

    Args:
        blocks: maps block title to rows; a row maps its title to images, uint8 S x S x 3, each with the slot's
            mask, bool S x S. Pixels outside the mask are faded.
        target: of the PNG.
    """
    blocks = {title: lines for title, lines in blocks.items() if lines}
    rows = max(len(lines) for lines in blocks.values())
    columns = max(2, *(len(images) for lines in blocks.values() for images in lines.values()))  # a title needs two
    whole = plt.figure(figsize=(1.15 * columns * len(blocks) + 0.3, 1.35 * rows + 0.4), layout="constrained")
    for part, (block, lines) in zip(
        whole.subfigures(1, len(blocks), squeeze=False)[0], blocks.items(), strict=True
    ):
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
                    for color, width in (("black", 1.6), ("white", 0.6)):  # visible on dark and bright images
                        axis.contour(inside, [0.5], colors=color, linewidths=width)
    whole.savefig(target, dpi=130)
    plt.close(whole)


def draw_groups(
    rows: Mapping[str, Sequence[np.ndarray]], target: Path, legend: dict[str, np.ndarray] | None = None
) -> None:
    """Draw rows of images into a PNG, one column per scene: four columns for large images, eight for small ones.

    Args:
        rows: maps title to uint8 H x W x 3 images, the same number in each row.
        target: of the PNG.
        legend: maps name to uint8 2 x 3 colours of :func:`matched_colors`.
    """
    every = list(next(iter(rows.values())))
    columns = min(4 if min(max(image.shape[:2]) for image in every) > _SMALL else 8, len(every))
    blocks = math.ceil(len(every) / columns)
    width = 12 / max(columns, 4)
    height = width * max(image.shape[0] / image.shape[1] for image in every)
    per_line = max(int(width * columns / (0.6 + 0.08 * max(map(len, legend or ("",))))), 1)
    lines = math.ceil(len(legend or ()) / per_line)
    size = (width * columns, (height + 0.27) * len(rows) * blocks + 0.2 * lines)
    # Reserves space for titles, which would otherwise widen their column.
    layout = ConstrainedLayoutEngine(h_pad=0.1, rect=(0, 0, 1, 1 - 0.12 / size[1]))
    figure, axes = plt.subplots(len(rows) * blocks, columns, figsize=size, layout=layout, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
        axis.set_anchor("NW")
    for block in range(blocks):
        for row, (title, images) in enumerate(rows.items()):
            line = axes[block * len(rows) + row]
            for axis, image in zip(line, images[block * columns :], strict=False):
                axis.imshow(image)
            place: Any = {
                "xy": (0, 1),
                "xycoords": "axes fraction",
                "xytext": (0, 4),
                "textcoords": "offset points",
            }
            line[0].annotate(title, **place, fontsize=9).set_in_layout(False)
    if legend:
        patches = [
            Patch(facecolor=first / 255, edgecolor=second / 255 if (first != second).any() else "0.7", label=name)
            for name, (first, second) in legend.items()
        ]
        for patch, (first, second) in zip(patches, legend.values(), strict=True):
            patch.set_hatch("" if (first == second).all() else "/////")
        figure.legend(
            handles=patches, loc="outside lower left", ncols=per_line, frameon=False, fontsize=8, borderpad=0
        )
    try:
        figure.savefig(target, dpi=130)
    finally:
        plt.close(figure)


def matched_colors(match: Sequence[int], palette: np.ndarray) -> np.ndarray:
    """Return the stripe colours of each group: twice that of its class, or black and white for no class.

    Unlike a plain grey, such stripes cannot be confused with a class of any palette.

    Args:
        match: the class of each group, or -1.
        palette: uint8 C x 3 colours of the classes.

    Returns:
        uint8 K x 2 x 3.
    """
    classes = np.array(match, dtype=int)
    return np.where(classes[:, None, None] >= 0, palette[classes][:, None], NO_CLASS)


def paint(groups: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Colour a map of groups, with diagonal stripes if a group has two colours.

    Args:
        groups: H x W numbers.
        colors: uint8 K x 2 x 3.

    Returns:
        uint8 H x W x 3.
    """
    y, x = np.indices(groups.shape)
    return colors[groups, (x + y) // max(min(groups.shape) // 40, 2) % 2]


def paint_over(image: np.ndarray, groups: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Blend an image with the colours and outlines of its groups: uint8 H x W x 3; arguments: :func:`paint`."""
    return np.asarray(overlay_colors(image, paint(groups, colors), groups, _OPACITY))
