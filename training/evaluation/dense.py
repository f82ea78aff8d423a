"""What the protocols on dense features share: their settings, images and masks, the models' maps, tables and JSON.

Dimensions: B images, C channels, S side of an image in pixels, h x w cells of a map.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.table import Column, Table
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from slotcon_hub.cli.table import shorten
from slotcon_hub.models.maps import MapModel, load_map
from training.data.masks import IGNORE, CenterSquare, LabeledImages
from training.engine.batchnorm import recalibrate_batchnorm
from training.engine.words import show
from training.evaluation import command
from training.evaluation.benchmarks import read_names
from training.evaluation.metrics import Segmentation

__all__ = ["Dense", "Parts", "as_numbers", "cells_of", "evaluate", "maps", "run"]


@dataclass(frozen=True)
class Dense:
    """A comparison of the frozen maps of timm models on images with masks.

    Raises:
        ValueError: a number is impossible.
    """

    models: tuple[str, ...]
    """timm models with weights, or folders that runs exported; of a prototype model the projections are taken."""
    data: Path
    """Folder with a folder of images for each split."""
    masks: Path
    """Folder with a folder for each split of grey or palette PNGs, named as the images: a pixel is the number of
    its class, or 255 for none."""
    train_split: str = "train"
    """Split that is learned from, such as train2017."""
    test_split: str = "val"
    """Split that is measured."""
    classes: Path | None = None
    """Text file of class names, one a line; without it, classes are what the masks show."""
    size: int = 448
    """Pixels that the short side of images and masks is resized to; the central square of this side is taken, and
    all numbers are of its pixels."""
    baseline: bool = False
    """Measure each model with random weights too, and BatchNorm statistics of the images."""
    batch_size: int = 8
    """Images that a process takes at a time."""
    workers: int = 2
    """Processes that load images, for each process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the models; all that follows them is in float32."""
    seed: int = 0
    """Of what is drawn: random weights, and what the protocol draws."""
    output: Path | None = None
    """JSON file of the numbers, the protocol and the settings."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        command.check_positive(self, "size", "batch_size")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: give at least 0")
        if not self.models:
            raise ValueError("--models: name at least one")


@dataclass(frozen=True)
class Parts:
    """What is learned from, and what is measured."""

    train: LabeledImages
    test: LabeledImages
    names: tuple[str, ...] | None
    """Of the classes; None for what the masks show."""

    @property
    def classes(self) -> int:
        """How many labels the masks can have."""
        return len(self.names) if self.names else IGNORE


def _open(settings: Dense) -> Parts:
    names = read_names(settings.classes) if settings.classes else None
    labels = {i: i for i in range(len(names))} if names else None
    train, test = (
        LabeledImages(
            settings.data / split, settings.masks / split, labels=labels, transform=CenterSquare(settings.size)
        )
        for split in (settings.train_split, settings.test_split)
    )
    return Parts(train, test, names)


Measure = Callable[[MapModel, Parts, Accelerator, Any], dict[str, dict[str, Any]]]
"""Numbers by the title of a column, as :func:`as_numbers` gives them, of a model with the settings."""


def run(
    name: str,
    description: str,
    settings: type[Dense],
    measure: Measure,
    protocol: Callable[[Any], dict[str, Any]],
) -> None:
    """Read the settings from the command line, measure each model, and print and write the numbers.

    Args:
        name: of the command.
        description: of what it does, for ``--help``.
        settings: its settings.
        measure: a model.
        protocol: says of settings how is measured, for the JSON file.
    """
    command.run(name, description, settings, lambda chosen: evaluate(name, chosen, measure, protocol))


def evaluate(name: str, settings: Dense, measure: Measure, protocol: Callable[[Any], dict[str, Any]]) -> None:
    """Measure each model, and print and write the numbers."""
    command.check_outputs(settings.output, None)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():
        parts = _open(settings)
    results, features = {}, {}
    for model_name in settings.models:
        for pretrained in (True, False) if settings.baseline else (True,):
            set_seed(settings.seed)
            model = load_map(model_name, settings.size, pretrained=pretrained).to(accelerator.device)
            if not pretrained:
                _recalibrate(model, parts.train, settings.batch_size)
            title = model_name if pretrained else f"{model_name}, random"
            results[title] = measure(model, parts, accelerator, settings)
        features[model_name] = model.describe(settings.size)
    if accelerator.is_main_process:
        _report(name, settings, parts, results, features, protocol(settings))


def _recalibrate(model: MapModel, images: LabeledImages, batch_size: int, batches: int = 20) -> None:
    """Re-estimate the BatchNorm statistics of a random-init baseline from some of the images."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: batches * batch_size]
    loader = DataLoader(Subset(images, order.tolist()), batch_size, drop_last=len(order) > batch_size)
    recalibrate_batchnorm(model.model, (model.standardize(batch) for batch, _ in loader))


def _stack(samples: list[tuple[int, tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor, Tensor]:
    numbers, pairs = zip(*samples, strict=True)
    images, truths = zip(*pairs, strict=True)
    return torch.tensor(numbers), torch.stack(images), torch.stack(truths)


@torch.inference_mode()
def maps(
    model: MapModel, images: LabeledImages, accelerator: Accelerator, settings: Dense
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, for this process's share of the images batch by batch, on its device:

    their numbers (B), the model's maps (float32 B x C x h x w) and the masks (uint8 B x S x S).
    """
    batches = command.stream(images, _stack, accelerator, batch_size=settings.batch_size, workers=settings.workers)
    for numbers, batch, truths in batches:
        with accelerator.autocast():
            found = model(batch)
        yield numbers, found, truths.to(accelerator.device)


def cells_of(size: int, height: int, width: int, device: torch.device) -> Tensor:
    """The cell, 0 to h w - 1, that the centre of each pixel of an S x S image lies in: S x S."""
    middle = torch.arange(size, device=device) * 2 + 1
    rows, columns = (middle * cells // (2 * size) for cells in (height, width))
    return rows[:, None] * width + columns


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
    names = names or tuple(map(str, range(int(pixels.nonzero().max()) + 1)))
    per_class = [{"name": name, "pixels": int(pixels[c]), "iou": found.iou[c]} for c, name in enumerate(names)]
    return {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy, "per_class": per_class}


def _report(
    name: str,
    settings: Dense,
    parts: Parts,
    results: dict[str, dict[str, dict[str, Any]]],
    features: dict[str, Any],
    protocol: dict[str, Any],
) -> None:
    size = settings.size
    facts = {
        "train": len(parts.train),
        "test": len(parts.test),
        "classes": list(parts.names or ()) or None,
        "pixels": f"short side {size} (bilinear; labels nearest), central {size} x {size}",
        "resolution_of_comparison": [size, size],
        "ignored_label": IGNORE,
        "seed": settings.seed,
        "features": features,
    }
    print(
        f"{name} on {settings.data}: {len(parts.train):,} images to learn from, {len(parts.test):,} measured, "
        f"at {size} x {size} pixels"
    )
    columns = list(next(iter(results.values())))
    numbers = ("stride", *columns)
    table = Table("mIoU, %", *(Column(title, justify="right") for title in numbers))
    for title, found in results.items():
        stride = features[title.removesuffix(", random")]["stride"]
        table.add_row(shorten(title), f"{stride:g}", *(_told(found[column]) for column in columns))
    show(table)
    show(_per_class({title: found[columns[-1]] for title, found in results.items()}))
    command.write(settings.output, name, settings, protocol={**facts, **protocol}, results=results)


def _told(found: dict[str, Any]) -> str:
    deviation = f" ± {100 * found['miou_deviation']:.2f}" if "miou_deviation" in found else ""
    return f"{100 * found['miou']:.2f}{deviation}"


def _per_class(results: dict[str, dict[str, Any]]) -> Table:
    """IoU of each class for each model; those that no pixel shows are left out."""
    table = Table("IoU, %", *(Column(shorten(title, 32), justify="right") for title in results))
    several = list(results.values())
    for c, one in enumerate(several[0]["per_class"]):
        ious = [found["per_class"][c]["iou"] for found in several]
        if one["pixels"]:
            table.add_row(one["name"], *("" if iou != iou else f"{100 * iou:.2f}" for iou in ious))
    return table
