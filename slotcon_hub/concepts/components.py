"""Principal components of dense features as colours.

Dimensions: C channels, h x w cells of a map, H x W pixels, M cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Components", "fit_components", "fit_foreground"]

_OUTSIDE = 0.01  # share of the cells at either end of a component that get the same colour as the last within


@dataclass(frozen=True)
class Components:
    """The first three principal components of cells, and how they become red, green and blue."""

    mean: Tensor
    """float64 C."""
    directions: Tensor
    """float64 C x 3, of length 1, those of the largest variances first."""
    low: Tensor
    """float64 3: values of each component that become 0."""
    high: Tensor
    """float64 3: values that become 1."""
    explained: list[float]
    """Share of the variance that each has."""

    def project(self, features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Values of the components in [0, 1].

        Args:
            features: C x h x w.
            size: H, W that the values are resized to, bilinearly; without it they stay those of the cells.

        Returns:
            float64 3 x H x W.
        """
        values = torch.einsum("chw,ck->khw", features.double() - self.mean[:, None, None], self.directions)
        if size is not None:
            values = F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]
        low, high = self.low[:, None, None], self.high[:, None, None]
        return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def fit_components(maps: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> Components:
    """Find the components of all cells of some maps together.

    A direction and its opposite are as good: that one is taken whose largest entry is positive.

    Args:
        maps: each C x h x w, of any h and w, with at least 3 channels.
        masks: which cells count, bool h x w of each map.

    Raises:
        ValueError: fewer than two cells count.
    """
    counted = masks or [torch.ones(one.shape[1:], dtype=torch.bool) for one in maps]
    cells = torch.cat([one[:, mask].T for one, mask in zip(maps, counted, strict=True)]).double()
    if len(cells) < 2:
        if masks is None:
            raise ValueError("the maps have fewer than two cells: give a larger --size")
        raise ValueError("fewer than two cells are in the foreground: give a lower --foreground")
    mean = cells.mean(0)
    centered = cells - mean
    variances, directions = torch.linalg.eigh(centered.T @ centered / len(cells))
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)[:, :3]
    largest = directions.gather(0, directions.abs().argmax(0)[None])
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    ranked = (centered @ directions).sort(dim=0).values
    outside = int(_OUTSIDE * len(cells))
    explained = (variances[:3] / variances.sum().clamp(min=1e-300)).tolist()
    return Components(mean, directions, ranked[outside], ranked[len(cells) - 1 - outside], explained)


def fit_foreground(maps: Sequence[Tensor], threshold: float) -> tuple[Components, Components]:
    """Find the components of all cells, and then those of the foreground: where the first of them is high.

    The foreground is the side of the first component that the middles of images have more of than their borders.

    Args:
        maps: as for :func:`fit_components`.
        threshold: value of the first component in [0, 1] from which on a cell is foreground.

    Returns:
        The components of all cells, the first one turned to the foreground, and those of the foreground.
    """
    every = fit_components(maps)
    inside = [every.project(one)[0] for one in maps]
    if sum(float(one.mean() - one[_middle(one)].mean()) for one in inside) > 0:
        turn = torch.tensor([-1.0, 1, 1], dtype=torch.float64)
        low, high = torch.where(turn < 0, -every.high, every.low), torch.where(turn < 0, -every.low, every.high)
        every = Components(every.mean, every.directions * turn, low, high, every.explained)
    return every, fit_components(maps, [every.project(one)[0] >= threshold for one in maps])


def _middle(values: Tensor) -> tuple[slice, slice]:
    """The middle half of both sides, at least a cell."""
    height, width = values.shape
    rows, columns = (slice(n // 4, max(n - n // 4, n // 4 + 1)) for n in (height, width))
    return rows, columns
