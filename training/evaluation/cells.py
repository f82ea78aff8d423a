"""Training data of the dense protocols: cells of feature maps with the class counts of their pixels.

Dimensions: B images, C channels, h x w cells of a map, S side of an image, K classes, M cells collected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from slotcon_hub.models.maps import MapModel
from training.evaluation.comparison import Comparison
from training.evaluation.dense import maps
from training.evaluation.metrics import confusion_matrix

__all__ = ["Cells", "class_counts", "collect"]

_ROWS = 1024  # rows moved at a time


@dataclass(frozen=True)
class Cells:
    """Cells of training images: the first drawn cell of every image, then the second of every image, and so on."""

    features: Tensor
    """float32 M x C."""
    counts: Tensor
    """float32 M x K: number of pixels of each class in a cell; at least one is positive."""
    ends: tuple[int, ...]
    """Number of cells for each requested size; the last is M."""
    seen: int
    """Number of classes up to the last in the masks, drawn or not: the same for every model."""


def class_counts(truths: Tensor, height: int, width: int, classes: int) -> Tensor:
    """Count the pixels of each class in each cell; a pixel belongs to the cell that contains its centre.

    Args:
        truths: uint8 B x S x S, 255 for pixels without a label.
        height: h of the map.
        width: w of the map.
        classes: K.

    Returns:
        int64 B x (h w) x K.
    """
    middle = torch.arange(truths.shape[1], device=truths.device) * 2 + 1
    rows, columns = (middle * cells // (2 * len(middle)) for cells in (height, width))
    images = torch.arange(len(truths), device=truths.device)[:, None, None]
    cells = (images * height + rows[:, None]) * width + columns
    number = len(truths) * height * width
    return confusion_matrix(cells, truths, number, classes).view(len(truths), -1, classes)


@torch.no_grad()
def collect(
    model: MapModel,
    images: Any,
    classes: int,
    accelerator: Accelerator,
    settings: Comparison,
    option: str,
    sizes: Sequence[int],
) -> Cells:
    """Collect cells with a labelled pixel, equally many from each image, drawn by (seed, image index).

    Every process gets all of them and needs M x (C + K) x 4 bytes, and the memory of a batch.

    Args:
        model: returns feature maps.
        images: a data set of images, each with its mask, that all have one size.
        classes: K.
        accelerator: determines the shard.
        settings: of the command.
        option: name of the option of the sizes, for errors.
        sizes: numbers of cells, ascending; smaller sets are prefixes of larger ones.

    Raises:
        ValueError: a size is less than one cell per image, or no cell has a label.
    """
    if sizes[0] < len(images):
        raise ValueError(f"{option} {sizes[0]} is less than one cell per image: give at least {len(images)}")
    height, width = model.cells(settings.size)
    wanted = [min(size // len(images), height * width) for size in sizes]  # cells of an image
    features, counts = (
        torch.zeros(len(images) * wanted[-1], n, device=accelerator.device) for n in (model.channels, classes)
    )
    seen = torch.zeros(classes, dtype=torch.long, device=accelerator.device)
    for numbers, found, truths in maps(model, images, accelerator, settings):
        cells, labels = found.flatten(2).mT, class_counts(truths, height, width, classes)
        seen += labels.sum((0, 1))
        for i, number in enumerate(numbers.tolist()):
            chosen = _draw(labels[i].any(1).cpu(), settings.seed, number)[: wanted[-1]].to(cells.device)
            places = torch.arange(len(chosen), device=cells.device) * len(images) + number
            features[places], counts[places] = cells[i, chosen], labels[i, chosen].float()
    if accelerator.num_processes > 1:  # each process has its rows, other rows are zero
        dist.all_reduce(features)
        dist.all_reduce(counts)
        dist.all_reduce(seen)
    filled = counts.any(1)
    if not filled.any():
        raise ValueError("no pixel of the training masks has a label: check --masks and --train-split")
    ends = tuple(int(filled[: n * len(images)].sum()) for n in wanted)
    return Cells(_compact(features, filled), _compact(counts, filled), ends, int(seen.nonzero().max()) + 1)


def _draw(valid: Tensor, seed: int, number: int) -> Tensor:
    """Return the valid cells of an image in random order, drawn from (seed, image index)."""
    order = torch.from_numpy(np.random.default_rng([seed, number]).permutation(len(valid)))
    return order[valid[order]]


def _compact(rows: Tensor, filled: Tensor) -> Tensor:
    """Move the filled rows to the front, in place to save memory."""
    end = 0
    for some, kept in zip(rows.split(_ROWS), filled.split(_ROWS), strict=True):
        moved = some[kept]
        rows[end : end + len(moved)] = moved
        end += len(moved)
    return rows[:end]
