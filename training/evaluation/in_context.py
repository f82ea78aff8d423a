"""In-context segmentation (Hummingbird, Balazevic et al. 2023): ``python -m training.evaluation.in_context``.

Dimensions: B images, C channels, h x w cells, S side of an image, K classes, M entries of the memory, Q queries.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from slotcon_hub.concepts.segments import group_map
from slotcon_hub.models.maps import MapModel
from training.data.masks import LabeledImages
from training.evaluation import command
from training.evaluation.dense import Dense, Parts, as_numbers, cells_of, maps, run
from training.evaluation.metrics import confusion_matrix, score
from training.evaluation.neighbors import nearest

__all__ = ["InContext", "Memory", "class_shares", "remember", "vote"]

QUERIES = 1024  # that are compared at a time

DESCRIPTION = "Segment images by the nearest cells of other images (Hummingbird): nothing is trained."


@dataclass(frozen=True)
class InContext(Dense):
    """In-context segmentation as of Hummingbird."""

    memory: tuple[int, ...] = (10_240, 102_400)
    """Cells in memory, a column each, the same number of every training image. The largest takes, on every process,
    4 bytes for each cell, and in it for each channel of the map and each class: 102,400 cells of a ResNet-50 and 27
    classes are 0.85 GB. Without --classes it is 255 classes."""
    neighbors: int = 30
    """Cells that vote."""
    temperature: float = 0.02
    """Of the votes: softmax(cosine / temperature)."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        super().__post_init__()
        command.check_positive(self, "neighbors")
        if not self.memory:
            raise ValueError("--memory: give at least one number of cells")
        if self.temperature <= 0:
            raise ValueError(f"--temperature {self.temperature}: give one above 0")


@dataclass(frozen=True)
class Memory:
    """Cells of training images: the first of every image, then the second of every image, and so on."""

    features: Tensor
    """float32 M x C, of length 1."""
    shares: Tensor
    """float32 M x K: what part of the labelled pixels of a cell each class has."""
    ends: tuple[int, ...]
    """How many entries each of the memories that are asked for takes: the last, M."""


def class_shares(truths: Tensor, height: int, width: int, classes: int) -> Tensor:
    """What part of the labelled pixels of each cell each class has; a pixel is of the cell that its centre is in.

    Args:
        truths: uint8 B x S x S, 255 for pixels without a label.
        height: h of the map.
        width: w of the map.
        classes: K.

    Returns:
        float32 B x (h w) x K; all zero for a cell without a labelled pixel.
    """
    cells = cells_of(truths.shape[1], height, width, truths.device)
    number = len(truths) * height * width
    cells = cells + torch.arange(len(truths), device=truths.device)[:, None, None] * height * width
    counts = confusion_matrix(cells, truths, number, classes).float().view(len(truths), -1, classes)
    return counts / counts.sum(2, keepdim=True).clamp(min=1)


@torch.inference_mode()
def remember(
    model: MapModel, images: LabeledImages, classes: int, accelerator: Accelerator, settings: InContext
) -> Memory:
    """Fill the memory from the training images: of each some cells that have a label, drawn by seed and number.

    Every process gets the whole memory; what is beside it is that of a batch.

    Raises:
        ValueError: a memory is smaller than the number of images, or no cell has a label.
    """
    if min(settings.memory) < len(images):
        raise ValueError(
            f"--memory {min(settings.memory)} is less than a cell of each of the {len(images)} images: give more"
        )
    height, width = model.cells(settings.size)
    wanted = [min(size // len(images), height * width) for size in sorted(settings.memory)]  # cells of an image
    features, shares = (
        torch.zeros(len(images) * wanted[-1], n, device=accelerator.device) for n in (model.channels, classes)
    )
    for numbers, found, truths in maps(model, images, accelerator, settings):
        cells = F.normalize(found.flatten(2).mT, dim=2)
        parts = class_shares(truths, height, width, classes)
        for i, number in enumerate(numbers.tolist()):
            chosen = _draw(parts[i].any(1).cpu(), settings.seed, number)[: wanted[-1]].to(cells.device)
            places = torch.arange(len(chosen), device=cells.device) * len(images) + number
            features[places], shares[places] = cells[i, chosen], parts[i, chosen]
    if accelerator.num_processes > 1:  # each has other rows, and zeros for the rest
        dist.all_reduce(features)
        dist.all_reduce(shares)
    filled = shares.any(1)
    if not filled.any():
        raise ValueError("no pixel of the masks to learn from has a label: there is nothing to remember")
    ends = tuple(int(filled[: n * len(images)].sum()) for n in wanted)
    return Memory(_compact(features, filled), _compact(shares, filled), ends)


def _compact(rows: Tensor, filled: Tensor) -> Tensor:
    """Move the filled rows to the front, in place, since there may be no room for a second memory."""
    end = 0
    for some, kept in zip(rows.split(QUERIES), filled.split(QUERIES), strict=True):
        moved = some[kept]
        rows[end : end + len(moved)] = moved
        end += len(moved)
    return rows[:end]


def _draw(valid: Tensor, seed: int, number: int) -> Tensor:
    """The cells of an image that are valid, in an order that seed and number of the image decide."""
    order = torch.from_numpy(np.random.default_rng([seed, number]).permutation(len(valid)))
    return order[valid[order]]


def vote(cells: Tensor, memory: Memory, k: int, temperature: float) -> list[Tensor]:
    """Let the k most similar entries vote for the classes of each cell, with softmax(cosine / temperature).

    Args:
        cells: float32 Q x C, of length 1.
        memory: of :func:`remember`.
        k: entries; fewer vote where the memory has fewer.
        temperature: of the softmax.

    Returns:
        For each of ``memory.ends`` the shares of the votes, Q x K; they sum to 1.
    """
    return [
        torch.einsum("qk,qkc->qc", (similarities / temperature).softmax(1), memory.shares[entries])
        for similarities, entries in nearest(cells, memory.features, k, memory.ends)
    ]


@torch.inference_mode()
def count(
    model: MapModel, images: LabeledImages, memory: Memory, accelerator: Accelerator, settings: InContext
) -> list[Tensor]:
    """Segment all images, those of this process, and add up the counts of all.

    Returns:
        For each of ``memory.ends`` the K x K counts of pixels, by predicted and true class.
    """
    classes = memory.shares.shape[1]
    confusions = [torch.zeros(classes, classes, dtype=torch.long, device=accelerator.device) for _ in memory.ends]
    for _, found, truths in maps(model, images, accelerator, settings):
        cells = F.normalize(found.flatten(2).mT.flatten(0, 1), dim=1)
        voted = [vote(some, memory, settings.neighbors, settings.temperature) for some in cells.split(QUERIES)]
        for confusion, votes in zip(confusions, zip(*voted, strict=True), strict=True):
            scores = torch.cat(votes).view(len(found), *found.shape[2:], classes).permute(0, 3, 1, 2)
            predicted = group_map(scores, (truths.shape[1], truths.shape[2]))[0]
            confusion += confusion_matrix(predicted, truths, classes, classes)
    return [accelerator.reduce(confusion, "sum").cpu() for confusion in confusions]


def measure(
    model: MapModel, parts: Parts, accelerator: Accelerator, settings: InContext
) -> dict[str, dict[str, Any]]:
    """Fill the memory, and segment with each size of it."""
    memory = remember(model, parts.train, parts.classes, accelerator, settings)
    counts = count(model, parts.test, memory, accelerator, settings)
    results = {}
    for size, end, confusion in zip(sorted(settings.memory), memory.ends, counts, strict=True):
        numbers = as_numbers(score(confusion, range(len(confusion))), confusion, parts.names)
        row = memory.features.shape[1] + memory.shares.shape[1]
        results[f"memory {size:,}"] = {"entries": end, "megabytes": round(4e-6 * end * row, 3), **numbers}
    return results


def protocol(settings: InContext) -> dict[str, Any]:
    """How is measured."""
    return {
        "memory": sorted(settings.memory),
        "memory_drawn": "uniformly among the cells with a labelled pixel, as many of every image",
        "memory_labels": "shares of the classes among the labelled pixels of a cell",
        "neighbors": settings.neighbors,
        "temperature": settings.temperature,
        "votes": "softmax(cosine / temperature) of the nearest, exact; of equal ones the first",
        "prediction": "argmax of votes, resized bilinearly to the pixels (align_corners=False)",
    }


if __name__ == "__main__":
    run("in_context", DESCRIPTION, InContext, measure, protocol)
