"""Assign pixels to prototypes, and describe the resulting segments.

Dimensions: B images, K prototypes, D channels, h x w cells of the map, H x W pixels, S segments.
Equation 1 and section A.4 are those of the supplementary material of the SlotCon paper (arXiv 2205.15288).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Segment", "describe_segments", "group_map", "pool_segments"]


class Segment(NamedTuple):
    """All pixels of an image that belong to one prototype."""

    prototype: int
    """Its number."""
    pixels: int
    """How many."""
    box: tuple[int, int, int, int]
    """Bounding box x0, y0, x1, y1 in pixels; x1 and y1 are exclusive."""
    similarity: float
    """Mean similarity of its pixels with the prototype, in [-1, 1]."""


_VALUES = 2**21  # upsampled at a time: 8 MiB of float32
_PARTS = 8  # at least, of the rows of pixels, grouped by their number of candidates
_TALL = 4  # height / width above which an image is transposed
_ROUNDING = 1e-6  # relative to the largest value: above the error of interpolation in float32


def group_map(scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Assign every pixel to its most similar prototype (equation 1).

    ``argmax over k of resize(scores)``, with bilinear resizing, without ``align_corners``. It works on some rows of
    pixels at a time, and only on the prototypes that can be the best there: the B x K x H x W values are never in
    memory.

    Args:
        scores: B x K x h x w similarities.
        size: H, W in pixels.

    Returns:
        B x H x W prototype indices (the lowest of ties), and the similarities with them.
    """
    if size[0] > _TALL * size[1]:  # the weights of the rows would dominate memory
        groups, similarities = group_map(scores.mT, (size[1], size[0]))
        return groups.mT, similarities.mT
    scores = scores.expand(-1, -1, max(scores.shape[2], 2), -1)  # a single row of cells is repeated
    batch, _, height, width = scores.shape
    candidates, numbers = (values.flatten(0, 1) for values in _candidates(scores))
    pairs = scores.unfold(2, 2, 1).permute(0, 2, 4, 3, 1).flatten(0, 1)  # S strips x 2 rows of cells x w x K
    pairs = pairs.gather(3, candidates[:, None, None].expand(-1, 2, width, -1))

    weights = _interpolation(height, size[0], scores)
    upper = (weights > 0).byte().argmax(1).clamp(max=height - 2)  # of the two rows of cells around a row of pixels
    share = weights.gather(1, upper[:, None] + 1)[:, 0].repeat(batch)
    strip = (torch.arange(batch, device=scores.device)[:, None] * (height - 1) + upper).flatten()
    order = numbers[strip].argsort()
    parts = order.split(max(min(len(order) // _PARTS, _VALUES // (candidates.shape[1] * size[1])), 1))
    most = numbers[strip[torch.stack([rows[-1] for rows in parts])]].tolist()

    groups = torch.empty(len(order), size[1], dtype=torch.long, device=scores.device)
    similarities = scores.new_empty(groups.shape)
    for rows, number in zip(parts, most, strict=True):
        two = pairs[strip[rows], :, :, :number]
        row = two[:, :1].lerp(two[:, 1:], share[rows, None, None, None]).permute(0, 3, 1, 2)  # channels last: fast
        best = F.interpolate(row, (1, size[1]), mode="bilinear", align_corners=False)[:, :, 0].max(1)
        groups[rows] = candidates[strip[rows]].gather(1, best.indices)
        similarities[rows] = best.values
    return groups.view(batch, *size), similarities.view(batch, *size)


def _candidates(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Find the prototypes that can be the best of a pixel in a strip, the pixels between two rows of cells.

    A pixel's similarity is a weighted mean over a square of four cells. So a prototype can only be the best if its
    maximum over the square reaches the largest of all prototypes' minima over it.

    Args:
        scores: B x K x h x w, h at least 2.

    Returns:
        B x (h - 1) x N prototypes, N the largest number of candidates in a strip: candidates in ascending order,
        then others; and B x (h - 1) numbers of candidates, at least 1 even for NaN.
    """
    square = [2, min(2, scores.shape[3])]
    lowest, highest = -F.max_pool2d(-scores, square, stride=1), F.max_pool2d(scores, square, stride=1)
    rounding = _ROUNDING * scores.abs().amax()
    possible = (highest >= lowest.amax(1, keepdim=True) - rounding).any(3).mT
    numbers = possible.sum(2).clamp(min=1)
    chosen = possible.byte().argsort(dim=2, descending=True, stable=True)
    return chosen[:, :, : int(numbers.max())], numbers


def pool_segments(z: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Average the projections over the pixels of each segment (section A.4).

    A segment is all pixels of an image with the same prototype. Its feature is the mean of the bilinearly resized
    projections over its pixels, computed as a weighted mean of cells.

    Args:
        z: B x D x h x w projections, not normalised.
        groups: B x H x W prototype indices.

    Returns:
        For each segment its image (S), prototype (S), number of pixels (S) and feature (S x D), sorted by image and
        prototype.
    """
    batch, height, width = groups.shape
    flat, area = groups.flatten(1), height * width
    present = torch.zeros(batch, int(groups.max()) + 1, dtype=torch.bool, device=groups.device)
    image, prototype = present.scatter_(1, flat, True).nonzero(as_tuple=True)
    segment = (present.flatten().cumsum(0) - 1).view_as(present).gather(1, flat)  # of each pixel
    pixels = segment.flatten().bincount()
    rows, columns = (_interpolation(n, N, z) for n, N in zip(z.shape[2:], (height, width), strict=True))
    place, first, features = torch.arange(area, device=z.device), 0, []
    for some in segment.split(max(_VALUES // (int(present.sum(1).max()) * area), 1)):
        end = int(some.max()) + 1
        mask = z.new_zeros((end - first) * area)
        mask[(some - first) * area + place] = 1
        weights = rows.T @ (mask.view(-1, height, width) @ columns)
        features.append(torch.einsum("shw,sdhw->sd", weights, z[image[first:end]]))
        first = end
    return image, prototype, pixels, torch.cat(features) / pixels[:, None]


def describe_segments(groups: Tensor, similarities: Tensor) -> list[Segment]:
    """Describe the segments of an image, the largest first.

    Args:
        groups: H x W prototype indices.
        similarities: H x W, of each pixel with its prototype.
    """
    groups, similarities = groups.cpu(), similarities.cpu().double()
    pixels = groups.flatten().bincount()
    means = groups.flatten().bincount(similarities.flatten()) / pixels
    (x0, x1), (y0, y1) = _extents(groups.T, len(pixels)), _extents(groups, len(pixels))
    boxes = torch.stack([x0, y0, x1, y1], dim=1).tolist()
    order = pixels.argsort(descending=True, stable=True)[: int((pixels > 0).sum())]
    return [Segment(k, int(pixels[k]), tuple(boxes[k]), float(means[k])) for k in order.tolist()]


def _extents(groups: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """First row in which each prototype occurs, and the one after the last."""
    occurs = torch.zeros(len(groups), number, dtype=torch.bool).scatter_(1, groups, True).byte()
    return occurs.argmax(0), len(groups) - occurs.flip(0).argmax(0)


def _interpolation(cells: int, pixels: int, like: Tensor) -> Tensor:
    """The matrix, pixels x cells, that resizes a row or column bilinearly; a pixel's weights sum to 1."""
    unit = torch.eye(cells, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], pixels, mode="linear", align_corners=False)[0].T
