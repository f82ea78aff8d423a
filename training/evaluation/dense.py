"""What the protocols on dense features share: their settings, images and masks, the models' maps, tables and JSON.

Dimensions: B images, C channels, S side of an image in pixels, h x w cells of a map.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from slotcon_hub.concepts.segments import group_map
from slotcon_hub.models.maps import MapModel
from training.data.masks import IGNORE, CenterSquare, LabeledImages
from training.evaluation import command
from training.evaluation.benchmarks import read_names
from training.evaluation.comparison import Comparison, compare
from training.evaluation.dense_report import report
from training.evaluation.metrics import confusion_matrix
from training.evaluation.stored import StoredMaps, StoredSamples, load_maps

__all__ = ["Dense", "Parts", "count", "evaluate", "maps", "open_parts", "run"]


@dataclass(frozen=True, kw_only=True)
class Dense(Comparison):
    """A comparison of the frozen maps of timm models on images with masks."""

    models: tuple[str, ...]
    """timm models with weights, or folders that runs exported; of a prototype model the projections are taken. Or
    files of `slotcon-hub embed --dense --size SIZE --images DATA`."""
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


def open_parts(settings: Dense) -> Parts:
    """List both splits.

    Raises:
        ValueError: one cannot be opened.
    """
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
        parts = open_parts(settings)
    results, features = compare(
        settings, accelerator, parts.train, load_maps, lambda model: measure(model, parts, accelerator, settings)
    )
    if accelerator.is_main_process:
        facts = _facts(settings, parts) | {"features": features} | protocol(settings)
        report(name, settings, results, facts)


def _facts(settings: Dense, parts: Parts) -> dict[str, Any]:
    """What is measured on what."""
    size = settings.size
    return {
        "train": len(parts.train),
        "test": len(parts.test),
        "classes": list(parts.names or ()) or None,
        "pixels": f"short side {size} (bilinear; labels nearest), central {size} x {size}",
        "resolution_of_comparison": [size, size],
        "ignored_label": IGNORE,
        "seed": settings.seed,
    }


def _stack(samples: list[tuple[int, tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor, Tensor]:
    numbers, pairs = zip(*samples, strict=True)
    images, truths = zip(*pairs, strict=True)
    return torch.tensor(numbers), torch.stack(images), torch.stack(truths)


@torch.no_grad()
def maps(
    model: Any, images: Any, accelerator: Accelerator, settings: Comparison
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, for this process's share of the images batch by batch, on its device:

    their numbers (B), the model's maps (float32 B x C x h x w) and the masks (uint8 B x S x S).
    """
    data = StoredSamples(images, model, settings.data) if isinstance(model, StoredMaps) else images
    batches = command.stream(data, _stack, accelerator, batch_size=settings.batch_size, workers=settings.workers)
    for numbers, batch, truths in batches:
        with accelerator.autocast():
            found = batch.to(accelerator.device) if data is not images else model(batch)
        yield numbers, found, truths.to(accelerator.device)


@torch.no_grad()
def count(
    model: MapModel,
    images: LabeledImages,
    accelerator: Accelerator,
    settings: Dense,
    score: Callable[[Tensor], Sequence[Tensor]],
    groups: Sequence[int],
    classes: int,
) -> list[Tensor]:
    """Segment all images, those of this process, and add up the counts of all.

    Args:
        model: that makes the maps.
        images: with their masks.
        accelerator: says device and share.
        settings: of the command.
        score: B x C x h x w maps to scores B x K x h x w of K groups, in one or several ways; they are resized
            bilinearly to the pixels, which take the group of the highest.
        groups: K of each way.
        classes: of the masks.

    Returns:
        For each way K x classes counts of labelled pixels.
    """
    counts = [torch.zeros(k, classes, dtype=torch.long, device=accelerator.device) for k in groups]
    for _, found, truths in maps(model, images, accelerator, settings):
        for total, scores in zip(counts, score(found), strict=True):
            predicted = group_map(scores, (truths.shape[1], truths.shape[2]))[0]
            total += confusion_matrix(predicted, truths, *total.shape)
    return [accelerator.reduce(total, "sum").cpu() for total in counts]
