"""Linear segmentation, a 1 x 1 convolution on frozen maps: ``python -m training.evaluation.linear_segmentation``.

Dimensions: B images, C channels, h x w cells, K classes, M cells.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from slotcon_hub.models.maps import MapModel
from training.evaluation import command
from training.evaluation.cells import Cells, collect
from training.evaluation.dense import Dense, Parts, count, run
from training.evaluation.dense_report import as_numbers
from training.evaluation.metrics import score

__all__ = ["LinearSegmentation", "loss", "train"]

DESCRIPTION = "Segment images by a linear classifier (1 x 1 convolution) on frozen feature maps."


@dataclass(frozen=True, kw_only=True)
class LinearSegmentation(Dense):
    """Options of linear segmentation."""

    cells: int = 1_024_000
    """Maximum number of training cells, equally many from each image; they need 4 x cells x (channels + classes)
    bytes per process; without --classes there are 255."""
    epochs: int = 50
    """Training epochs of the classifier."""
    lr: float = 1e-3
    """Initial learning rate of Adam, with cosine decay to 0."""
    train_batch_size: int = 1024
    """Cells per batch of the classifier."""

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        command.check_positive(self, "cells", "epochs", "train_batch_size")
        if self.lr <= 0:
            raise ValueError(f"--lr {self.lr}: give one above 0")


def loss(scores: Tensor, counts: Tensor) -> Tensor:
    """Compute the mean cross-entropy of labelled pixels, each with the logits of its cell.

    Args:
        scores: B x K logits.
        counts: B x K, number of pixels of each class in the cell.
    """
    return -(counts * scores.log_softmax(1)).sum() / counts.sum()


def train(cells: Cells, settings: LinearSegmentation, *, quiet: bool = False) -> tuple[nn.Conv2d, list[int]]:
    """Train the classifier, identically on every process.

    Features are standardised per channel for training; the standardisation is then folded into the weights.

    Args:
        cells: of the training images; their features are standardised in place.
        settings: of the command.
        quiet: show no progress bar.

    Returns:
        A convolution from C channels to logits of the classes that occur in the cells, and their indices.
    """
    seen = cells.counts.any(0).nonzero()[:, 0]
    features, counts = cells.features, cells.counts[:, seen]
    std, mean = torch.std_mean(features, dim=0)
    std = std.nan_to_num().clamp(min=1e-6)  # NaN for a single cell
    features.sub_(mean).div_(std)
    random = torch.Generator().manual_seed(settings.seed)
    classifier = nn.Linear(features.shape[1], counts.shape[1]).to(features.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    batch = min(settings.train_batch_size, len(features))
    steps = settings.epochs * math.ceil(len(features) / batch)
    optimizer = torch.optim.Adam(classifier.parameters(), settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(settings.epochs), "classifier", leave=False, disable=quiet):
        for rows in torch.randperm(len(features), generator=random).to(features.device).split(batch):
            optimizer.zero_grad()
            loss(classifier(features[rows]), counts[rows]).backward()
            optimizer.step()
            schedule.step()
    convolution = nn.Conv2d(features.shape[1], len(seen), 1, device=features.device)
    with torch.no_grad():
        weight = classifier.weight / std
        convolution.weight.copy_(weight[:, :, None, None])
        convolution.get_parameter("bias").copy_(classifier.bias - weight @ mean)
    return convolution, seen.tolist()


def measure(
    model: MapModel, parts: Parts, accelerator: Accelerator, settings: LinearSegmentation
) -> dict[str, dict[str, Any]]:
    """Train the classifier, identically on every process, and segment."""
    cells = collect(model, parts.train, parts.classes, accelerator, settings, "--cells", [settings.cells])
    classifier, seen = train(cells, settings, quiet=not accelerator.is_main_process)

    def scores(found: Tensor) -> list[Tensor]:
        return [classifier(found)]

    (counts,) = count(model, parts.test, accelerator, settings, scores, [len(seen)], parts.classes)
    confusion = counts.new_zeros(parts.classes, parts.classes)
    confusion[seen] = counts
    numbers = as_numbers(score(confusion, range(len(confusion))), confusion, parts.shown(cells.seen, confusion))
    return {"linear": {"cells": cells.ends[-1], **numbers}}


def protocol(settings: LinearSegmentation) -> dict[str, Any]:
    """Describe the protocol for the JSON file."""
    return {
        "classifier": "1 x 1 convolution on features standardised over the training cells",
        "optimizer": f"Adam, learning rate {settings.lr}, cosine to 0, no weight decay",
        "loss": "mean cross-entropy of labelled pixels, each with the logits of its cell",
        "epochs": settings.epochs,
        "batch": f"{settings.train_batch_size} cells",
        "training_images": "central squares, without augmentation",
        "prediction": "argmax of scores, resized bilinearly to the pixels (align_corners=False)",
    }


if __name__ == "__main__":
    run("linear_segmentation", DESCRIPTION, LinearSegmentation, measure, protocol)
