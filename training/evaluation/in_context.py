"""In-context segmentation (Hummingbird, Balazevic et al. 2023): ``python -m training.evaluation.in_context``.

Dimensions: B images, C channels, h x w cells, S side of an image, K classes, M entries of the memory, Q queries.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from slotcon_hub.models.maps import MapModel
from training.evaluation import command
from training.evaluation.cells import Cells, collect
from training.evaluation.dense import Dense, Parts, count, run
from training.evaluation.dense_report import as_numbers
from training.evaluation.metrics import score
from training.evaluation.neighbors import nearest

__all__ = ["InContext", "vote"]

QUERIES = 1024  # per matrix product

DESCRIPTION = "Segment images by the nearest cells of other images (Hummingbird): nothing is trained."


@dataclass(frozen=True, kw_only=True)
class InContext(Dense):
    """Options of in-context segmentation."""

    memory: tuple[int, ...] = (10_240, 102_400)
    """Numbers of cells in memory, one column each, equally many from each training image. The largest needs
    4 x cells x (channels + classes) bytes per process, 0.85 GB for 102,400 cells of a ResNet-50 and 27 classes;
    without --classes there are 255."""
    neighbors: int = 30
    """Nearest cells that vote."""
    temperature: float = 0.02
    """Votes are softmax(cosine / temperature)."""

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        command.check_positive(self, "neighbors")
        if not self.memory:
            raise ValueError("--memory: give at least one number of cells")
        if self.temperature <= 0:
            raise ValueError(f"--temperature {self.temperature}: give one above 0")


def normalize_memory(cells: Cells) -> Cells:
    """L2-normalise the features and turn counts into class fractions, in place."""
    cells.features.div_(cells.features.norm(dim=1, keepdim=True).clamp(min=1e-12))
    cells.counts.div_(cells.counts.sum(1, keepdim=True))
    return cells


def vote(cells: Tensor, memory: Cells, k: int, temperature: float) -> list[Tensor]:
    """Average the class fractions of the k nearest entries, weighted by softmax(cosine / temperature).

    Args:
        cells: float32 Q x C, L2-normalised.
        memory: of :func:`normalize_memory`.
        k: entries, at most the size of the memory.
        temperature: of the softmax.

    Returns:
        For each of ``memory.ends`` the class probabilities, Q x K.
    """
    return [
        torch.einsum("qk,qkc->qc", (similarities / temperature).softmax(1), memory.counts[entries])
        for similarities, entries in nearest(cells, memory.features, k, memory.ends)
    ]


def _scores(found: Tensor, memory: Cells, settings: InContext) -> list[Tensor]:
    """Classify the cells of B x C x h x w maps: B x K x h x w for each of ``memory.ends``."""
    cells = F.normalize(found.flatten(2).mT.flatten(0, 1), dim=1)
    voted = [vote(some, memory, settings.neighbors, settings.temperature) for some in cells.split(QUERIES)]
    shape = len(found), *found.shape[2:], memory.counts.shape[1]
    return [torch.cat(votes).view(shape).permute(0, 3, 1, 2) for votes in zip(*voted, strict=True)]


def measure(
    model: MapModel, parts: Parts, accelerator: Accelerator, settings: InContext
) -> dict[str, dict[str, Any]]:
    """Fill the memory, and segment with each memory size."""
    sizes = sorted(settings.memory)
    memory = normalize_memory(collect(model, parts.train, parts.classes, accelerator, settings, "--memory", sizes))
    classify = functools.partial(_scores, memory=memory, settings=settings)
    counts = count(model, parts.test, accelerator, settings, classify, [parts.classes] * len(sizes), parts.classes)
    names, results = parts.shown(memory.seen, counts[0]), {}
    for size, end, confusion in zip(sizes, memory.ends, counts, strict=True):
        numbers = as_numbers(score(confusion, range(len(confusion))), confusion, names)
        row = memory.features.shape[1] + memory.counts.shape[1]
        results[f"memory {size:,}"] = {"entries": end, "megabytes": round(4e-6 * end * row, 3), **numbers}
    return results


def protocol(settings: InContext) -> dict[str, Any]:
    """Describe the protocol for the JSON file."""
    return {
        "memory": sorted(settings.memory),
        "memory_drawn": "uniformly among cells with a labelled pixel, equally many from each image",
        "memory_labels": "class fractions of the labelled pixels of a cell",
        "neighbors": settings.neighbors,
        "temperature": settings.temperature,
        "votes": "softmax(cosine / temperature) of the exact nearest neighbours",
        "prediction": "argmax of votes, resized bilinearly to the pixels (align_corners=False)",
    }


if __name__ == "__main__":
    run("in_context", DESCRIPTION, InContext, measure, protocol)
