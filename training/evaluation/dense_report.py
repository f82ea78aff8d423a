"""The numbers of the protocols on dense features as tables and JSON."""

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


def as_numbers(found: Segmentation, confusion: Tensor, names: tuple[str, ...] | None) -> dict[str, Any]:
    """What is reported of a segmentation, shares in [0, 1]: mIoU, pixel accuracy, and the IoU of each class.

    Args:
        found: what :func:`training.evaluation.metrics.score` made of the counts.
        confusion: K x C counts.
        names: of the classes; None takes their numbers, up to the last that anything shows.

    Raises:
        ValueError: no pixel has a label.
    """
    pixels = confusion.sum(0)
    if not pixels.any():
        raise ValueError("no pixel of the masks has a label: there is nothing to measure")
    last = max(c for c, iou in enumerate(found.iou) if iou == iou)
    names = names or tuple(map(str, range(last + 1)))
    per_class = [{"name": name, "pixels": int(pixels[c]), "iou": found.iou[c]} for c, name in enumerate(names)]
    return {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy, "per_class": per_class}


def report(name: str, settings: Any, results: Mapping[str, Mapping[str, Any]], protocol: dict[str, Any]) -> None:
    """Print the tables, and write what the settings ask for.

    Args:
        name: of the command.
        settings: of the command.
        results: by model and by column, of :func:`as_numbers`.
        protocol: how was measured; its "features" say by model what its maps are.
    """
    print(
        f"{name} on {settings.data}: {protocol['train']:,} images to learn from, {protocol['test']:,} measured, "
        f"at {settings.size} x {settings.size} pixels"
    )
    columns = list(next(iter(results.values())))
    numbers = ("stride", *columns)
    table = Table("mIoU, %", *(Column(title, justify="right") for title in numbers))
    for title, found in results.items():
        stride = protocol["features"][title.removesuffix(", random")]["stride"]
        table.add_row(shorten(title), f"{stride:g}", *(_told(found[column]) for column in columns))
    show(table)
    show(_per_class({title: found[columns[-1]] for title, found in results.items()}))
    command.write(settings.output, name, settings, protocol=protocol, results=results)


def _told(found: dict[str, Any]) -> str:
    """mIoU in percent, and its deviation where there is one."""
    deviation = found.get("miou_deviation", math.nan)
    told = f"{100 * found['miou']:.2f}"
    return told if math.isnan(deviation) else f"{told} ± {100 * deviation:.2f}"


def _per_class(results: dict[str, dict[str, Any]]) -> Table:
    """IoU of each class for each model; those that no pixel shows are left out."""
    table = Table("IoU, %", *(Column(shorten(title, 32), justify="right") for title in results))
    several = list(results.values())
    for c, one in enumerate(several[0]["per_class"]):
        ious = [found["per_class"][c]["iou"] for found in several]
        if one["pixels"]:
            table.add_row(one["name"], *("" if iou != iou else f"{100 * iou:.2f}" for iou in ious))
    return table
