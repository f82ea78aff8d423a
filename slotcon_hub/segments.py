"""Groups of pixels: which prototype each pixel belongs to, and the segments that they form.

Dimensions: B pictures, K prototypes, D channels, h x w cells of the map, H x W pixels, S segments.
Equation 1 and section A.4 are those of the supplementary material of the SlotCon paper (arXiv 2205.15288).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Segment", "describe_segments", "group_map", "pool_segments"]


class Segment(NamedTuple):
    """All pixels of a picture that belong to one prototype."""

    prototype: int
    """Its number."""
    pixels: int
    """How many."""
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels: the first column and row, and those after the last."""
    similarity: float
    """Mean over the pixels of their similarity with the prototype, in [-1, 1]."""


_VALUES = 2**23  # at a time while maps are blown up: 32 MiB of float32
_ROUNDING = 1e-6  # of the largest value: more than what interpolation loses in float32


def group_map(scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Give every pixel the prototype that is most similar to it (equation 1).

    ``argmax over k of resize(scores)``, where the resizing is bilinear, without ``align_corners``. It is done for
    some rows at a time, and only for the prototypes that can win somewhere: the B x K x H x W values never exist.

    Args:
        scores: B x K x h x w similarities.
        size: H, W in pixels.

    Returns:
        B x H x W prototype numbers (the lowest where several are equal), and the similarities with them.
    """
    contenders = _contenders(scores)
    scores = scores.gather(1, contenders[:, :, None, None].expand(-1, -1, *scores.shape[2:]))
    batch, number, height, width = scores.shape
    cells = scores.permute(0, 2, 3, 1).flatten(2)  # channels last, which is faster here
    groups, similarities = [], []
    for rows in _interpolation(height, size[0], scores).split(max(_VALUES // (batch * number * size[1]), 1)):
        tall = (rows @ cells).unflatten(2, (width, number)).permute(0, 3, 1, 2)
        best = F.interpolate(tall, (len(rows), size[1]), mode="bilinear", align_corners=False).max(1)
        groups.append(contenders.gather(1, best.indices.flatten(1)).view_as(best.indices))
        similarities.append(best.values)
    return torch.cat(groups, dim=1), torch.cat(similarities, dim=1)


def _contenders(scores: Tensor) -> Tensor:
    """Number the prototypes that can be the best of some pixel, in ascending order: B x N, N the most of a picture.

    A pixel's similarity is a weighted mean of those in four neighbouring cells, a square. So the best prototype
    of a pixel is at least as similar as the largest of the prototypes' minima over the square, which one whose
    maximum is less never reaches. Pictures with fewer than N contenders are filled up with others, as are those
    whose values are no numbers.
    """
    square = [min(2, n) for n in scores.shape[2:]]
    lowest, highest = -F.max_pool2d(-scores, square, stride=1), F.max_pool2d(scores, square, stride=1)
    rounding = _ROUNDING * scores.abs().amax()
    possible = (highest >= lowest.amax(1, keepdim=True) - rounding).flatten(2).any(2)
    chosen = possible.byte().argsort(dim=1, descending=True)[:, : max(int(possible.sum(1).max()), 1)]
    return chosen.sort(dim=1).values


def pool_segments(z: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Average the projections over the pixels of each segment (section A.4).

    A segment is all pixels of a picture with the same prototype. Its feature is the mean over them of the
    projections, resized bilinearly to the pixels; that is, a mean of the cells, each weighted by what the pixels
    take of it.

    Args:
        z: B x D x h x w projections, not normalised.
        groups: B x H x W prototype numbers.

    Returns:
        Of each segment the picture (S), the prototype (S), the pixels (S) and the feature (S x D), in the order
        of pictures and prototypes.
    """
    batch, height, width = groups.shape
    present = torch.zeros(batch, int(groups.max()) + 1, dtype=torch.bool, device=groups.device)
    picture, prototype = present.scatter_(1, groups.flatten(1), True).nonzero(as_tuple=True)
    rows, columns = (_interpolation(n, N, z) for n, N in zip(z.shape[2:], (height, width), strict=True))
    numbers = groups.int()  # less to move than 64 bits
    pixels, features = [], []
    for b, k in zip(*(s.split(max(_VALUES // (height * width), 1)) for s in (picture, prototype)), strict=True):
        mask = (numbers[b] == k.int()[:, None, None]).to(z)
        weights = rows.T @ (mask @ columns)
        pixels.append(mask.sum((1, 2)))
        features.append(torch.einsum("shw,sdhw->sd", weights, z[b]) / pixels[-1][:, None])
    return picture, prototype, torch.cat(pixels).long(), torch.cat(features)


def describe_segments(groups: Tensor, similarities: Tensor) -> list[Segment]:
    """Measure the segments of a picture, the largest first.

    Args:
        groups: H x W prototype numbers.
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
    """The first line in which each prototype occurs, and the one after the last."""
    occurs = torch.zeros(len(groups), number, dtype=torch.bool).scatter_(1, groups, True).byte()
    return occurs.argmax(0), len(groups) - occurs.flip(0).argmax(0)


def _interpolation(cells: int, pixels: int, like: Tensor) -> Tensor:
    """The matrix, pixels x cells, that resizes a row or column bilinearly; a pixel's weights sum to 1."""
    unit = torch.eye(cells, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], pixels, mode="linear", align_corners=False)[0].T
