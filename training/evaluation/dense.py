"""Shared code of the protocols on dense features: settings, images and masks, feature maps, confusion matrices.

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
from training.evaluation.comparison import Comparison, compare_maps
from training.evaluation.dense_report import report
from training.evaluation.metrics import confusion_matrix
from training.evaluation.stored import StoredMaps, StoredSamples, load_maps

__all__ = ["Dense", "Parts", "count", "evaluate", "maps", "open_parts", "run"]


@dataclass(frozen=True, kw_only=True)
class Dense(Comparison):
    """A comparison of frozen feature maps of timm models on images with masks."""

    models: tuple[str, ...]
    """timm models with weights, or export folders of runs (for prototype models the projections are used), or files
    of `slotcon-hub embed --dense --size SIZE --images DATA`."""
    data: Path
    """Folder with a folder of images for each split."""
    masks: Path
    """Folder with a folder for each split of grey or palette PNGs, named as the images: a pixel is its class index,
    or 255 for none."""
    train_split: str = "train"
    """Training split, such as train2017."""
    test_split: str = "val"
    """Test split."""
    classes: Path | None = None
    """Text file of class names, one per line; default: the classes in the masks."""


@dataclass(frozen=True)
class Parts:
    """The training and test split."""

    train: LabeledImages
    test: LabeledImages
    names: tuple[str, ...] | None
    """Class names; None: the classes in the masks."""

    @property
    def classes(self) -> int:
        """Number of possible labels: 255 without names."""
        return len(self.names) if self.names else IGNORE

    def shown(self, seen: int, counts: Tensor) -> tuple[str, ...]:
        """Names of the classes in the results; without names their indices, up to the last in the masks.

        Args:
            seen: of the training masks, see :class:`training.evaluation.cells.Cells`.
            counts: K x classes of the test masks.
        """
        return self.names or tuple(map(str, range(max([seen - 1, *counts.any(0).nonzero()[:, 0].tolist()]) + 1)))


def open_parts(settings: Dense) -> Parts:
    """Open both splits.

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
"""Maps (model, parts, accelerator, settings) to results of :func:`as_numbers` by column title."""


def run(
    name: str,
    description: str,
    settings: type[Dense],
    measure: Measure,
    protocol: Callable[[Any], dict[str, Any]],
) -> None:
    """Run a command: measure each model, print the results and write the JSON file.

    Args:
        name: of the command.
        description: for ``--help``.
        settings: class of its settings.
        measure: measures a model.
        protocol: describes the protocol for the JSON file.
    """
    command.run(name, description, settings, lambda chosen: evaluate(name, chosen, measure, protocol))


def evaluate(name: str, settings: Dense, measure: Measure, protocol: Callable[[Any], dict[str, Any]]) -> None:
    """Measure each model, print the results and write the JSON file."""
    command.check_outputs(settings.output, None)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():
        parts = open_parts(settings)
    facts = _facts(settings, parts) | protocol(settings)
    compare_maps(
        settings,
        accelerator,
        parts.train,
        load_maps,
        lambda model: measure(model, parts, accelerator, settings),
        lambda results, features: report(name, settings, results, facts | {"features": features}),
    )


def _facts(settings: Dense, parts: Parts) -> dict[str, Any]:
    """Describe data and preprocessing for the JSON file."""
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
    """Yield batches of this process's shard: indices B, features float32 B x C x h x w, masks uint8 B x S x S."""
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
    """Segment this process's shard, and reduce the confusion matrices over processes.

    Args:
        model: returns feature maps.
        images: with masks.
        accelerator: determines device and shard.
        settings: of the command.
        score: maps B x C x h x w features to one or several scores B x K x h x w of K groups; pixels get the argmax
            of scores resized bilinearly.
        groups: K of each score.
        classes: of the masks.

    Returns:
        For each score the K x classes counts of labelled pixels.
    """
    counts = [torch.zeros(k, classes, dtype=torch.long, device=accelerator.device) for k in groups]
    for _, found, truths in maps(model, images, accelerator, settings):
        for total, scores in zip(counts, score(found), strict=True):
            predicted = group_map(scores, (truths.shape[1], truths.shape[2]))[0]
            total += confusion_matrix(predicted, truths, *total.shape)
    return [accelerator.reduce(total, "sum").cpu() for total in counts]
