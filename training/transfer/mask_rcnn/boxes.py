"""Box operations: matching, sampling, clipping, non-maximum suppression.

Boxes are N x 4, (left, top, right, bottom) in pixels, float32 under any mixed precision, as in Detectron2.
G objects, N boxes of an image.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import batched_nms, box_iou

__all__ = ["clip", "match", "nonempty", "sample", "suppress"]


def match(objects: Tensor, boxes: Tensor, low: float, high: float, low_quality: bool) -> tuple[Tensor, Tensor]:
    """Match each box with the object of the largest IoU.

    Args:
        objects: G x 4.
        boxes: N x 4.
        low: boxes with a smaller IoU are background.
        high: boxes with at least this IoU are objects; in between they are neither.
        low_quality: the boxes with the largest IoU with an object are objects, below ``high``, too.

    Returns:
        N indices of objects (0 for boxes that are not objects); N labels: 1 object, 0 background, -1 neither.
    """
    if not len(objects) or not len(boxes):
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return nothing, nothing.clone()
    found = Matcher(high, low, allow_low_quality_matches=low_quality)(box_iou(objects, boxes))
    labels = torch.where(found >= 0, 1, torch.where(found == Matcher.BETWEEN_THRESHOLDS, -1, 0))
    return found.clamp(min=0), labels


def sample(labels: Tensor, number: int, fraction: float) -> Tensor:
    """Sample indices for the losses, objects first.

    Args:
        labels: N, above 0 object, 0 background, below 0 neither.
        number: maximum number of samples.
        fraction: maximum fraction of objects.
    """
    objects, background = torch.where(labels > 0)[0], torch.where(labels == 0)[0]
    wanted = min(len(objects), int(number * fraction))
    some = objects[torch.randperm(len(objects), device=labels.device)[:wanted]]
    rest = torch.randperm(len(background), device=labels.device)[: number - wanted]
    return torch.cat([some, background[rest]])


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip ... x 4 boxes to an image of (height, width)."""
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


def nonempty(boxes: Tensor) -> Tensor:
    """Whether each of N boxes has an area."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, most: int) -> Tensor:
    """Apply non-maximum suppression within groups; returns the kept indices, best first."""
    dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
    return batched_nms(boxes.to(dtype), scores.to(dtype), groups, threshold)[:most]
