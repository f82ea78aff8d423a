"""k-means on the device: k-means++ and Lloyd's iterations, the same for a seed on any number of processes.

Dimensions: M points, C channels, K clusters.
"""

import torch
from torch import Tensor

__all__ = ["affinities", "draw_centers", "kmeans", "lloyd"]

_CHUNK = 2**14  # points that are compared at a time


def kmeans(points: Tensor, clusters: int, seed: int, iterations: int = 50) -> Tensor:
    """Cluster points by squared distance.

    Args:
        points: float32 M x C.
        clusters: K, at most M.
        seed: of the first centres.
        iterations: at most, of Lloyd's.

    Returns:
        float32 K x C centres.

    Raises:
        ValueError: there are fewer points than clusters.
    """
    if len(points) < clusters:
        raise ValueError(f"{clusters} clusters of {len(points)} cells: ask for fewer clusters, or give more images")
    return lloyd(points, draw_centers(points, clusters, seed), iterations)


def affinities(points: Tensor, centers: Tensor) -> Tensor:
    """Half the negative squared distance of each point from each centre, without the part that all centres share.

    It is linear in the points: that of a mean of points is the mean of theirs.

    Args:
        points: ... x C.
        centers: K x C.

    Returns:
        ... x K; a point belongs to the centre with the highest, the first of equals.
    """
    return points @ centers.T - centers.square().sum(1) / 2


def draw_centers(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Draw K of the points by k-means++: each with the square of its distance from those drawn before."""
    random = torch.Generator().manual_seed(seed)
    draws = torch.rand(clusters, generator=random, dtype=torch.float64).tolist()  # of the host, for any device
    squares = points.square().sum(1)
    chosen = [int(draws[0] * len(points))]
    nearest = torch.full_like(squares, torch.inf)
    for draw in draws[1:]:
        last = points[chosen[-1]]
        nearest = torch.minimum(nearest, (squares - 2 * points @ last + last @ last).clamp(min=0))
        nearest[chosen[-1]] = 0  # whatever rounding says
        total = nearest.double().cumsum(0)
        place = torch.searchsorted(total, total[-1:] * draw, right=True)
        chosen.append(int(place.clamp(max=len(points) - 1)))
    return points[chosen]


def lloyd(points: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Move centres to the means of their points until none moves, or so many times.

    A centre without points takes the place of the point that is farthest from its own.

    Args:
        points: float32 M x C.
        centers: float32 K x C.
        iterations: at most.
    """
    squares = points.square().sum(1)
    for _ in range(iterations):
        sums = torch.zeros_like(centers, dtype=torch.float64)  # so that the order of a GPU's sums does not matter
        closest, assigned = zip(*(affinities(some, centers).max(1) for some in points.split(_CHUNK)), strict=True)
        for some, groups in zip(points.split(_CHUNK), assigned, strict=True):
            sums.index_add_(0, groups, some.double())
        sizes = torch.cat(assigned).bincount(minlength=len(centers))
        moved = (sums / sizes.clamp(min=1)[:, None]).float()
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            distances = squares - 2 * torch.cat(closest)
            moved[empty] = points[distances.argsort(descending=True, stable=True)[: len(empty)]]
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers
