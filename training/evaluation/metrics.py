"""Metrics of unsupervised segmentation: confusion matrix, Hungarian matching, IoU, accuracy (supplementary A.3).

Dimensions: K prototypes (groups), C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from training.data.masks import IGNORE

__all__ = ["Segmentation", "confusion_matrix", "merge_majority", "score", "score_part"]


@dataclass(frozen=True)
class Segmentation:
    """Agreement of groups with classes. Accuracies and IoUs are in [0, 1]."""

    miou: float
    """Mean over classes of TP / (TP + FP + FN), without classes absent from both prediction and truth."""
    pixel_accuracy: float
    """Fraction of labelled pixels whose group is matched with their class."""
    majority_accuracy: float
    """Pixel accuracy with each group assigned to its most frequent class, many groups to one class."""
    iou: list[float]
    """IoU of each class; NaN if absent from both prediction and truth."""
    match: list[int]
    """The class matched with each group, or -1."""


def confusion_matrix(prediction: Tensor, truth: Tensor, groups: int, classes: int) -> Tensor:
    """Count labelled pixels by group and class.

    Args:
        prediction: integers in [0, groups), any shape.
        truth: integers in [0, classes), or 255 for pixels without a label; the same shape.
        groups: K.
        classes: C.

    Returns:
        K x C integers.

    Raises:
        ValueError: a label is unknown.
    """
    ignored, labels = truth == IGNORE, truth.long()
    highest = int(labels.masked_fill(ignored, -1).max()) if labels.numel() else -1
    if highest >= classes:
        raise ValueError(f"label {highest} is unknown: there are {classes} classes, and 255 to ignore")
    # The ignored pixels get a cell of their own: to select the others would take four times as long.
    cells = (prediction.long() * classes + labels).masked_fill_(ignored, groups * classes)
    counts = torch.bincount(cells.flatten(), minlength=groups * classes + 1)
    return counts[:-1].view(groups, classes)


def score(confusion: Tensor, match: Sequence[int] | None = None) -> Segmentation:
    """Compute the metrics of groups matched with classes.

    Args:
        confusion: K x C counts.
        match: distinct class of each group, such as ``range(C)`` for a supervised head; None: one-to-one Hungarian
            matching that maximises pixel accuracy.
    """
    counts = confusion.cpu().double().numpy()
    if match is None:
        rows, columns = linear_sum_assignment(counts, maximize=True)
    else:
        rows, columns = np.arange(len(match)), np.array(match)
    hits = np.zeros(counts.shape[1])
    hits[columns] = counts[rows, columns]
    claimed = np.zeros(counts.shape[1])
    claimed[columns] = counts.sum(1)[rows]
    union = counts.sum(0) + claimed - hits
    iou = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
    classes = np.full(counts.shape[0], -1)
    classes[rows] = columns
    total = max(counts.sum(), 1)
    return Segmentation(
        miou=float(np.nanmean(iou)) if (union > 0).any() else 0.0,
        pixel_accuracy=float(hits.sum() / total),
        majority_accuracy=float(counts.max(1).sum() / total),
        iou=iou.tolist(),
        match=classes.tolist(),
    )


def merge_majority(confusion: Tensor) -> Tensor:
    """Assign each group to its most frequent class, and add up the groups of a class.

    Args:
        confusion: K x C counts.

    Returns:
        C x C counts, predicted class x true class.
    """
    merged = confusion.new_zeros(confusion.shape[1], confusion.shape[1])
    return merged.index_add_(0, confusion.argmax(1), confusion)


def score_part(confusion: Tensor, found: Segmentation, classes: Sequence[int]) -> tuple[float, float]:
    """Measure a subset of the classes, such as the things, with the matching of all classes.

    Args:
        confusion: K x C counts.
        found: the result of :func:`score`.
        classes: the subset.

    Returns:
        Mean IoU and pixel accuracy; NaN if none of the classes occurs.
    """
    ious = [found.iou[c] for c in classes if found.iou[c] == found.iou[c]]
    hits = sum(int(confusion[group, c]) for group, c in enumerate(found.match) if c in classes)
    pixels = int(confusion[:, list(classes)].sum())
    return (sum(ious) / len(ious) if ious else np.nan, hits / pixels if pixels else np.nan)
