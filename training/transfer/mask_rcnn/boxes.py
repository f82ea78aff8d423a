"""Boxes against boxes: who matches whom, which ones are learnt from, which ones stay.

Boxes are N x 4, (left, top, right, bottom) in pixels, always float32, whatever the network computes in: as in
Detectron2. G objects, N boxes of an image.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import batched_nms, box_iou

__all__ = ["clip", "match", "nonempty", "sample", "suppress"]


def match(objects: Tensor, boxes: Tensor, low: float, high: float, low_quality: bool) -> tuple[Tensor, Tensor]:
    """Give each box the object that it overlaps most.

    Args:
        objects: G x 4.
        boxes: N x 4.
        low: a box that overlaps none by as much is background.
        high: a box that overlaps its object by as much is one of this object; between the two it is neither.
        low_quality: the boxes that overlap an object most are objects, however little that is.

    Returns:
        N indices of objects, 0 where they mean nothing; N labels, 1 object, 0 background, -1 neither.
    """
    if not len(objects) or not len(boxes):
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return nothing, nothing.clone()
    found = Matcher(high, low, allow_low_quality_matches=low_quality)(box_iou(objects, boxes))
    labels = torch.where(found >= 0, 1, torch.where(found == Matcher.BETWEEN_THRESHOLDS, -1, 0))
    return found.clamp(min=0), labels


def sample(labels: Tensor, number: int, fraction: float) -> Tensor:
    """Draw the indices that are learnt from, objects first.

    Args:
        labels: N, above 0 object, 0 background, below 0 neither.
        number: that is drawn, if there are as many.
        fraction: of these that may be objects.
    """
    objects, background = torch.where(labels > 0)[0], torch.where(labels == 0)[0]
    wanted = min(len(objects), int(number * fraction))
    some = objects[torch.randperm(len(objects), device=labels.device)[:wanted]]
    rest = torch.randperm(len(background), device=labels.device)[: number - wanted]
    return torch.cat([some, background[rest]])


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut ... x 4 boxes at the border of an image of a height and width."""
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


def nonempty(boxes: Tensor) -> Tensor:
    """Whether each of N boxes has an area."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, most: int) -> Tensor:
    """Indices of the boxes that no better one of their group overlaps by more than a threshold, best first."""
    dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
    return batched_nms(boxes.to(dtype), scores.to(dtype), groups, threshold)[:most]
