"""Sharper groups: similarity maps that follow the edges of the image, by a guided filter.

The supplementary (G) names the coarse map as what limits the method. The filter is that of He, Sun and Tang,
"Guided Image Filtering" (TPAMI 2013), with a colour image as the guide.

Dimensions: P prototypes, h x w cells of the map, H x W pixels, r radius of a window of 2 r + 1 pixels a side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["EPS", "guided_filter", "refine"]

EPS = 1e-3  # variance of a guide in [0, 1] below which a window counts as flat
VALUES = 2**22  # of filtered maps at a time


def guided_filter(guide: Tensor, maps: Tensor, radius: int, eps: float) -> Tensor:
    """Replace maps by what is locally linear in a guide: ``q = a . guide + b``, a and b averaged over windows.

    In each window a and b minimise the sum over its pixels of ``(a . guide + b - map)^2 + eps |a|^2``. At the
    border of the image, windows are what is left of them.

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
    """Mean over the pixels of each window that lie in the image; N x H x W."""
    return _mean_along_rows(_mean_along_rows(maps, radius).mT, radius).mT


def _mean_along_rows(maps: Tensor, radius: int) -> Tensor:
    """Differences of running sums: what a mean costs does not grow with the radius."""
    length = maps.shape[-1]
    sums = F.pad(maps.cumsum(-1), (1, 0))
    place = torch.arange(length, device=maps.device)
    first, end = (place - radius).clamp(min=0), (place + radius + 1).clamp(max=length)
    return (sums[..., end] - sums[..., first]) / (end - first)


def refine(scores: Tensor, image: Tensor, groups: Tensor) -> Tensor:
    """Assign pixels anew, by similarities filtered with the image as the guide, windows two cells wide.

    Only prototypes that some pixel has without the filter take part: the memory does not grow with their number,
    and none appears out of nothing.

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
