"""Results of the protocols on dense features as tables and JSON."""

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table
from torch import Tensor

from slotcon_hub.cli.table import shorten
from training.engine.words import show
from training.evaluation import command
from training.evaluation.metrics import Segmentation

__all__ = ["as_numbers", "report"]


def as_numbers(found: Segmentation, confusion: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """Return mIoU, pixel accuracy, and pixels and IoU of each class; metrics in [0, 1].

    Args:
        found: the result of :func:`training.evaluation.metrics.score`.
        confusion: K x C counts.
        names: of the classes; those beyond have neither pixels nor predictions.

    Raises:
        ValueError: no pixel has a label.
    """
    pixels = confusion.sum(0)
    if not pixels.any():
        raise ValueError("no pixel of the masks has a label: check --masks")
    per_class = [{"name": name, "pixels": int(pixels[c]), "iou": found.iou[c]} for c, name in enumerate(names)]
    return {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy, "per_class": per_class}


def report(name: str, settings: Any, results: Mapping[str, Mapping[str, Any]], protocol: dict[str, Any]) -> None:
    """Write ``settings.output``, and print the tables.

    Args:
        name: of the command.
        settings: of the command.
        results: by model and column, of :func:`as_numbers`.
        protocol: of the JSON file; its "features" describe the feature maps of each model.
    """
    command.write(settings.output, name, settings, protocol=protocol, results=results)
    print(
        f"{name} on {settings.data}: {protocol['train']:,} training and {protocol['test']:,} test images, "
        f"at {settings.size} x {settings.size} pixels"
    )
    columns = list(next(iter(results.values())))
    numbers = ("stride", *columns)
    table = Table("mIoU, %", *(Column(title, justify="right") for title in numbers))
    for title, found in results.items():
        stride = protocol["features"][title.removesuffix(", random")]["stride"]
        table.add_row(shorten(title), f"{stride:g}", *(_format_miou(found[column]) for column in columns))
    show(table)
    show(_make_class_table({title: found[columns[-1]] for title, found in results.items()}))


def _format_miou(found: dict[str, Any]) -> str:
    """Format the mIoU in percent, with its standard deviation if there is one."""
    deviation = found.get("miou_deviation", math.nan)
    miou = f"{100 * found['miou']:.2f}"
    return miou if math.isnan(deviation) else f"{miou} ± {100 * deviation:.2f}"


def _make_class_table(results: dict[str, dict[str, Any]]) -> Table:
    """Make the table of IoUs by class and model, without classes that have no pixels."""
    table = Table("IoU, %", *(Column(shorten(title, 32), justify="right") for title in results))
    several = list(results.values())
    for c, one in enumerate(several[0]["per_class"]):
        ious = [found["per_class"][c]["iou"] for found in several]
        if one["pixels"]:
            table.add_row(one["name"], *("" if iou != iou else f"{100 * iou:.2f}" for iou in ious))
    return table
