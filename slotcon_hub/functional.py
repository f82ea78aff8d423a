"""The equations of SlotCon: tensors in, tensors out, no state, no processes.

Dimensions: B images, K prototypes, D embedding channels, H x W cells, Q queries, M keys.
Sections are those of Wen et al., "Self-Supervised Visual Representation Learning with Semantic Grouping",
NeurIPS 2022 (arXiv 2205.15288).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

__all__ = [
    "active_slots",
    "align",
    "assign",
    "contrast",
    "cosine_scores",
    "group_slots",
    "grouping_loss",
    "regression",
    "teacher_momentum",
]


def cosine_scores(z: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarity of every cell with every prototype (section 3.2): the raw scores.

    Args:
        z: B x D x H x W projections.
        prototypes: K x D.

    Returns:
        B x K x H x W in [-1, 1].
    """
    # A matrix product: unlike a convolution, it is in full float32 on GPUs by default.
    return torch.einsum("bdhw,kd->bkhw", F.normalize(z, dim=1), F.normalize(prototypes, dim=1))


def assign(scores: Tensor, temperature: float, eps: float = 1e-6) -> Tensor:
    """Soft assignment of every cell to the prototypes: ``softmax_k(scores / temperature) + eps``.

    Args:
        scores: B x K x H x W raw scores.
        temperature: the teacher's, used for the student too.
        eps: keeps the weights of a slot that no cell chooses away from zero.

    Returns:
        B x K x H x W, positive.
    """
    return (scores / temperature).softmax(dim=1) + eps


def group_slots(z: Tensor, assignments: Tensor) -> Tensor:
    """Slot k of an image: the mean of its projections, weighted by their assignment to k (section 3.2).

    Args:
        z: B x D x H x W projections, not normalised.
        assignments: B x K x H x W, positive.

    Returns:
        B x K x D slots.
    """
    weights = assignments / assignments.sum(dim=(2, 3), keepdim=True)
    return weights.flatten(2) @ z.flatten(2).transpose(1, 2)


def active_slots(scores: Tensor) -> Tensor:
    """Which slots of an image are the first choice of at least one of its cells (equation 6).

    Args:
        scores: B x K x H x W raw scores, unaligned.

    Returns:
        B x K booleans.
    """
    active = torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device)
    return active.scatter_(1, scores.argmax(dim=1).flatten(1), True)


def align(maps: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Undo crop and flip: cut the shared box out of a view's map, resize it to H x W, mirror flipped views.

    The inverse augmentation of supplementary A.1. In the aligned maps of two views, equal cells show the same place
    of the image.

    Args:
        maps: B x C x H x W, such as raw scores or projections.
        boxes: B x 4, ``(x1, y1, x2, y2)`` in the unit square of the view, after its flip.
        flips: B booleans, true where the view was mirrored.

    Returns:
        B x C x H x W.
    """
    images, _, height, width = maps.shape
    index = torch.arange(images, device=maps.device, dtype=maps.dtype)
    x1, y1, x2, y2 = boxes.to(maps).unbind(1)
    rois = torch.stack([index, x1 * width, y1 * height, x2 * width, y2 * height], dim=1)
    aligned = roi_align(maps, rois, output_size=(height, width), aligned=True)
    return torch.where(flips[:, None, None, None], aligned.flip(-1), aligned)


def grouping_loss(
    student: Tensor, teacher: Tensor, center: Tensor, *, student_temp: float, teacher_temp: float
) -> Tensor:
    """Grouping loss of one direction (equation 3): the student predicts the teacher's assignment of each cell.

    ``mean over images and cells of  - sum_k softmax((t - c) / teacher_temp)_k  log_softmax(s / student_temp)_k``

    Args:
        student: B x K x H x W aligned raw scores of view a.
        teacher: B x K x H x W aligned raw scores of view b; gets no gradient.
        center: 1 x K running mean of the teacher's raw scores.
        student_temp: temperature of the student's prediction.
        teacher_temp: temperature of the teacher's target.

    Returns:
        A scalar.
    """
    target = ((teacher - center[:, :, None, None]) / teacher_temp).softmax(dim=1).detach()
    return -(target * (student / student_temp).log_softmax(dim=1)).sum(dim=1).mean()


def contrast(queries: Tensor, keys: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of one direction: of slots (equation 7), or of whole images (supplementary C, ablation d).

    ``2 tau * mean over queries of  - log softmax(<q, keys> / tau)[positive]``, all vectors l2-normalised.

    Args:
        queries: Q x D predictions of the student.
        keys: M x D vectors of the teacher, of the whole global batch.
        positives: Q row numbers into ``keys``.
        temperature: tau.

    Returns:
        A scalar; an exact zero that is still connected to ``queries`` when there are none.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    total = F.cross_entropy(logits, positives, reduction="sum")
    return 2 * temperature * total / max(len(queries), 1)


def regression(queries: Tensor, keys: Tensor) -> Tensor:
    """Regression loss of one direction, instead of the contrastive loss (supplementary C, ablation b, after BYOL).

    ``mean over queries of  2 - 2 <q, key>``, all vectors l2-normalised.

    Args:
        queries: Q x D predictions of the student.
        keys: Q x D vectors of the teacher, row by row the targets of ``queries``.

    Returns:
        A scalar in [0, 4]; an exact zero that is still connected to ``queries`` when there are none.
    """
    cosines = (F.normalize(queries, dim=1) * F.normalize(keys, dim=1)).sum(dim=1)
    return (2 - 2 * cosines).sum() / max(len(queries), 1)


def teacher_momentum(step: int, total_steps: int, base: float) -> float:
    """EMA momentum of the teacher at a step: from ``base`` at step 0 to 1 at the end, on a cosine.

    ``1 - (1 - base) * (cos(pi * step / total_steps) + 1) / 2``

    Args:
        step: optimisation steps taken, from 0.
        total_steps: optimisation steps of the run.
        base: momentum at step 0, in [0, 1].
    """
    return 1 - (1 - base) * (math.cos(math.pi * step / total_steps) + 1) / 2
