"""k-means on the device: k-means++ and Lloyd's iterations, deterministic for a seed.

Dimensions: M points, C channels, K clusters.
"""

import torch
from torch import Tensor

__all__ = ["affinities", "draw_centers", "kmeans", "lloyd"]

_CHUNK = 2**14  # points per chunk


def kmeans(points: Tensor, clusters: int, seed: int, iterations: int = 50) -> Tensor:
    """Cluster points by squared distance.

    Args:
        points: float32 M x C.
        clusters: K, at most M.
        seed: of the initial centres.
        iterations: maximum number of Lloyd's iterations.

    Returns:
        float32 K x C centres.

    Raises:
        ValueError: there are fewer points than clusters.
    """
    if len(points) < clusters:
        raise ValueError(f"{clusters} clusters of {len(points)} cells: ask for fewer clusters, or give more images")
    return lloyd(points, draw_centers(points, clusters, seed), iterations)


def affinities(points: Tensor, centers: Tensor) -> Tensor:
    """Compute half the negative squared distance of each point to each centre, up to a term equal for all centres.

    It is linear in the points: the affinity of a mean of points is the mean of their affinities.

    Args:
        points: ... x C.
        centers: K x C.

    Returns:
        ... x K; the argmax is the nearest centre.
    """
    return points @ centers.T - centers.square().sum(1) / 2


def draw_centers(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Draw K of the points by k-means++: with probability proportional to the squared distance to those drawn."""
    random = torch.Generator().manual_seed(seed)
    draws = torch.rand(
        clusters, generator=random, dtype=torch.float64
    ).tolist()  # on the CPU: equal for all devices
    squares = points.square().sum(1)
    chosen = [int(draws[0] * len(points))]
    nearest = torch.full_like(squares, torch.inf)
    for draw in draws[1:]:
        last = points[chosen[-1]]
        nearest = torch.minimum(nearest, (squares - 2 * points @ last + last @ last).clamp(min=0))
        nearest[chosen[-1]] = 0  # exactly, despite rounding
        total = _double(nearest).cumsum(0)
        place = torch.searchsorted(total, total[-1:] * draw, right=True)
        chosen.append(int(place.clamp(max=len(points) - 1)))
    return points[chosen]


def lloyd(points: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Run Lloyd's iterations until the centres are unchanged.

    An empty cluster is moved to the point farthest from its centre.

    Args:
        points: float32 M x C.
        centers: float32 K x C.
        iterations: maximum number.
    """
    squares = points.square().sum(1)
    for _ in range(iterations):
        sums = _double(torch.zeros_like(centers))  # insensitive to a GPU's order of summation
        closest, assigned = zip(*(affinities(some, centers).max(1) for some in points.split(_CHUNK)), strict=True)
        for some, groups in zip(points.split(_CHUNK), assigned, strict=True):
            sums.index_add_(0, groups.to(sums.device), _double(some))
        sizes = torch.cat(assigned).bincount(minlength=len(centers))
        moved = (sums / sizes.to(sums.device).clamp(min=1)[:, None]).to(centers)
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            distances = squares - 2 * torch.cat(closest)
            moved[empty] = points[distances.argsort(descending=True, stable=True)[: len(empty)]]
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


def _double(values: Tensor) -> Tensor:
    """float64, on the CPU for Apple's GPUs, which have no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()
