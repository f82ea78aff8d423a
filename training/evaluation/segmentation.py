"""Semantic segmentation: by prototypes with Hungarian matching (SlotCon, supplementary A.3), or by a trained head.

Dimensions: B pictures, K prototypes, C classes, H x W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

__all__ = ["LabeledPictures", "Segmentation", "confusion_matrix", "evaluate", "score", "segment"]

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


def score(confusion: Tensor, match: Sequence[int] | None = None) -> Segmentation:
    """Measure how well groups fit the classes that they are matched with.

    Args:
        confusion: K x C counts.
        match: the class of each group, all different; ``range(C)`` for a head that was trained with labels. None
            matches them one to one so that the most pixels agree.
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
    """Give every pixel the group of the highest score: the most similar prototype (supplementary, equation 1).

    Args:
        model: a prototype model with ``global_pool=''``, or any that gives B x K x h x w scores; in eval mode.
        pictures: uint8 B x 3 x H x W.

    Returns:
        B x H x W group numbers.
    """
    device = next(model.parameters()).device
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    scores = model(normalize(pictures.to(device).float() / 255, mean, std))
    return F.interpolate(scores, pictures.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


class LabeledPictures(Dataset[tuple[Tensor, Tensor]]):
    """The pictures of a folder, uint8 3 x H x W, each with the mask of the same name, uint8 H x W."""

    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """One of ``torchvision.transforms.v2``, for picture and mask alike."""

    def __init__(self, images: Path, masks: Path) -> None:
        """List the files.

        Raises:
            ValueError: there is no picture, or a picture has no mask.
        """
        self.images = sorted(images.iterdir()) if images.is_dir() else []
        if not self.images:
            raise ValueError(f"there are no pictures in {images}")
        self.masks = [masks / f"{path.stem}.png" for path in self.images]
        for path, mask in zip(self.images, self.masks, strict=True):
            if not mask.is_file():
                raise ValueError(f"{path} has no mask {mask}")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read a picture and its mask, and transform them."""
        with Image.open(self.images[index]) as image, Image.open(self.masks[index]) as labels:
            picture, mask = pil_to_tensor(image.convert("RGB")), pil_to_tensor(labels)[0]
        if self.transform is not None:
            picture, mask = self.transform(tv_tensors.Image(picture), tv_tensors.Mask(mask))
        return picture, mask


def evaluate(
    model: nn.Module,
    pictures: Iterable[tuple[Tensor, Tensor]],
    groups: int,
    classes: int,
    match: Sequence[int] | None = None,
) -> Segmentation:
    """Segment labelled pictures one by one, and measure over all of their pixels together.

    Args:
        model: as for :func:`segment`.
        pictures: uint8 3 x H x W, each with its labels, integers H x W.
        groups: K.
        classes: C.
        match: as for :func:`score`.
    """
    confusion = torch.zeros(groups, classes, dtype=torch.long)
    for picture, truth in pictures:
        prediction = segment(model, picture[None])[0].cpu()
        confusion += confusion_matrix(prediction, truth, groups, classes)
    return score(confusion, match)
