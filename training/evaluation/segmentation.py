"""Unsupervised semantic segmentation by prototypes (SlotCon, supplementary A.3), with Hungarian matching.

Dimensions: B pictures, K prototypes, C classes, H x W pixels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from slotcon_hub.segments import group_map

__all__ = ["Segmentation", "confusion_matrix", "evaluate", "labeled_pictures", "score", "segment"]

IGNORE = 255


@dataclass(frozen=True)
class Segmentation:
    """How well groups of pixels coincide with classes. Accuracies and IoUs lie in [0, 1]."""

    miou: float
    """Mean over the classes of TP / (TP + FP + FN); a class that neither side shows does not count."""
    pixel_accuracy: float
    """Pixels whose group is matched with their class, of all labelled pixels."""
    majority_accuracy: float
    """The same where each group takes its most frequent class, many groups to one class."""
    iou: list[float]
    """IoU of each class; NaN for one that neither side shows."""
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
    valid = truth != IGNORE
    labels = truth[valid].long()
    if len(labels) and int(labels.max()) >= classes:
        raise ValueError(f"label {int(labels.max())} is unknown: there are {classes} classes, and 255 to ignore")
    cells = prediction[valid].long() * classes + labels
    return torch.bincount(cells, minlength=groups * classes).view(groups, classes)


def score(confusion: Tensor) -> Segmentation:
    """Match groups with classes one to one so that the most pixels agree, and measure.

    Args:
        confusion: K x C counts.
    """
    counts = confusion.cpu().double().numpy()
    rows, columns = linear_sum_assignment(counts, maximize=True)
    hits = np.zeros(counts.shape[1])
    hits[columns] = counts[rows, columns]
    claimed = np.zeros(counts.shape[1])
    claimed[columns] = counts.sum(1)[rows]
    union = counts.sum(0) + claimed - hits
    iou = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
    match = np.full(counts.shape[0], -1)
    match[rows] = columns
    total = max(counts.sum(), 1)
    return Segmentation(
        miou=float(np.nanmean(iou)) if (union > 0).any() else 0.0,
        pixel_accuracy=float(hits.sum() / total),
        majority_accuracy=float(counts.max(1).sum() / total),
        iou=iou.tolist(),
        match=match.tolist(),
    )


@torch.inference_mode()
def segment(model: nn.Module, pictures: Tensor) -> Tensor:
    """Give every pixel the prototype that is most similar to it (equation 1 of the supplementary).

    Args:
        model: a prototype model with ``global_pool=''``, in eval mode.
        pictures: uint8 B x 3 x H x W.

    Returns:
        B x H x W prototype numbers.
    """
    device = next(model.parameters()).device
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    scores = model(normalize(pictures.to(device).float() / 255, mean, std))
    return group_map(scores, (pictures.shape[2], pictures.shape[3]))[0]


def labeled_pictures(images: Path, masks: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pictures of a folder, uint8 3 x H x W, with the masks of the same name, uint8 H x W.

    Raises:
        ValueError: a picture has no mask.
    """
    for path in sorted(images.iterdir()):
        mask = masks / f"{path.stem}.png"
        if not mask.is_file():
            raise ValueError(f"{path} has no mask {mask}")
        with Image.open(path) as image, Image.open(mask) as labels:
            yield pil_to_tensor(image.convert("RGB")), pil_to_tensor(labels)[0]


def evaluate(
    model: nn.Module, pictures: Iterable[tuple[Tensor, Tensor]], groups: int, classes: int
) -> Segmentation:
    """Segment labelled pictures one by one, and measure over all of their pixels together."""
    confusion = torch.zeros(groups, classes, dtype=torch.long)
    for picture, truth in pictures:
        prediction = segment(model, picture[None])[0].cpu()
        confusion += confusion_matrix(prediction, truth, groups, classes)
    return score(confusion)
