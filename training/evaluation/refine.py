"""Sharper group boundaries: similarity maps filtered by a guided filter with the image as guide.

The supplementary (G) names the low resolution of the feature map as a limitation. The filter is the colour-guided
one of He, Sun and Tang, "Guided Image Filtering" (TPAMI 2013).

Dimensions: P prototypes, h x w cells of the map, H x W pixels, r radius of a window with side 2 r + 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["EPS", "guided_filter", "refine"]

EPS = 1e-3  # windows with a smaller variance of the guide (in [0, 1]) are averaged
VALUES = 2**22  # values of filtered maps in memory at a time


def guided_filter(guide: Tensor, maps: Tensor, radius: int, eps: float) -> Tensor:
    """Filter maps by local linear models of the guide: ``q = a . guide + b``, a and b averaged over windows.

    In each window a and b minimise the sum over its pixels of ``(a . guide + b - map)^2 + eps |a|^2``. Windows are
    clipped at the image border.

    Args:
        guide: 3 x H x W in [0, 1].
        maps: P x H x W.
        radius: r.
        eps: the larger, the smoother.

    Returns:
        P x H x W.
    """
    mean, mean_maps = _box(guide, radius), _box(maps, radius)
    products = _box((guide[:, None] * guide[None]).flatten(0, 1), radius).unflatten(0, (3, 3))
    covariance = products - mean[:, None] * mean[None]
    with_maps = _box((guide[:, None] * maps[None]).flatten(0, 1), radius).unflatten(0, (3, len(maps)))
    with_maps = with_maps - mean[:, None] * mean_maps[None]
    ridge = covariance + eps * torch.eye(3, device=guide.device)[:, :, None, None]
    a = torch.linalg.solve(ridge.permute(2, 3, 0, 1), with_maps.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
    b = mean_maps - (a * mean[:, None]).sum(0)
    a = _box(a.flatten(0, 1), radius).unflatten(0, (3, len(maps)))
    return (a * guide[:, None]).sum(0) + _box(b, radius)


def _box(maps: Tensor, radius: int) -> Tensor:
    """Mean over the window of each pixel, clipped at the border; N x H x W."""
    return _mean_along_rows(_mean_along_rows(maps, radius).mT, radius).mT


def _mean_along_rows(maps: Tensor, radius: int) -> Tensor:
    """Differences of cumulative sums: the cost does not depend on the radius."""
    length = maps.shape[-1]
    sums = F.pad(maps.cumsum(-1), (1, 0))
    place = torch.arange(length, device=maps.device)
    first, end = (place - radius).clamp(min=0), (place + radius + 1).clamp(max=length)
    return (sums[..., end] - sums[..., first]) / (end - first)


def refine(scores: Tensor, image: Tensor, groups: Tensor) -> Tensor:
    """Reassign pixels by filtered similarities, with the image as guide and windows two cells wide.

    Only prototypes that occur in ``groups`` are considered, so that memory does not grow with K.

    Args:
        scores: K x h x w similarities.
        image: uint8 3 x H x W.
        groups: H x W, the prototype of each pixel without the filter.

    Returns:
        H x W prototype numbers.
    """
    guide = image.to(scores) / 255
    size = guide.shape[1:]
    radius = max(round(size[0] / scores.shape[1]), round(size[1] / scores.shape[2]), 1)
    best = torch.full(size, -torch.inf, device=scores.device)
    refined = torch.zeros_like(groups)
    for present in groups.unique().split(max(VALUES // groups.numel(), 1)):
        maps = F.interpolate(scores[None, present], size, mode="bilinear", align_corners=False)[0]
        values, index = guided_filter(guide, maps, radius, EPS).max(0)
        refined = torch.where(values > best, present[index], refined)
        best = torch.maximum(values, best)
    return refined
