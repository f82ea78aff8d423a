"""Results of a segmentation network as JSON, tables, and a grid of images.

Dimensions: C classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from torch import Tensor

from training.engine.words import show
from training.evaluation.metrics import score
from training.evaluation.segmentation_report import Example, as_percent, draw_examples

__all__ = ["draw_grid", "measure", "print_tables"]


def measure(confusion: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute metrics in [0, 1] of C x C pixel counts, predicted x true class.

    Returns:
        ``miou``, ``pixel_accuracy``, ``mean_accuracy`` (over classes with pixels), and ``per_class``: name, pixels,
        IoU (NaN if absent from truth and prediction) and accuracy (NaN if absent from truth).
    """
    found = score(confusion, range(len(names)))
    pixels = confusion.sum(0).tolist()
    hits = confusion.diagonal().tolist()
    accuracies = [hit / whole if whole else float("nan") for hit, whole in zip(hits, pixels, strict=True)]
    known = [one for one in accuracies if one == one]
    columns = zip(names, pixels, found.iou, accuracies, strict=True)
    return {
        "miou": found.miou,
        "pixel_accuracy": found.pixel_accuracy,
        "mean_accuracy": sum(known) / max(len(known), 1),
        "per_class": [dict(zip(("name", "pixels", "iou", "accuracy"), row, strict=True)) for row in columns],
    }


def print_tables(numbers: dict[str, Any]) -> None:
    """Print the results of :func:`measure`, in percent."""
    whole = Table("%", Column("", justify="right"))
    for name, label in (
        ("miou", "mIoU"),
        ("pixel_accuracy", "pixel accuracy"),
        ("mean_accuracy", "mean accuracy of classes"),
    ):
        whole.add_row(label, as_percent(numbers[name]))
    show(whole)
    total = max(sum(one["pixels"] for one in numbers["per_class"]), 1)
    longest = max(len(one["name"]) for one in numbers["per_class"])
    table = Table(
        Column("%", min_width=longest), *(Column(t, justify="right") for t in ("pixels", "IoU", "accuracy"))
    )
    for one in numbers["per_class"]:
        shares = (one["pixels"] / total, one["iou"], one["accuracy"])
        table.add_row(one["name"], *(as_percent(share) for share in shares))
    show(table)


def draw_grid(examples: Sequence[Example], names: Sequence[str], target: Path) -> None:
    """Draw images, true and predicted classes into a PNG."""
    draw_examples(examples, {"predicted": ("predicted classes", range(len(names)))}, names, target)
