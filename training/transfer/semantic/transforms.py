"""Random scale, crop, flip and photometric distortion, in MMSegmentation's order, and normalisation.

Dimensions: B images, H x W pixels of an image, S pixels of a crop's side.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.data.masks import IGNORE
from training.transfer.semantic.photometric import distort

__all__ = ["Augmentation", "Crop", "crop_labels", "crop_pixels", "fit", "normalize"]

DRAWS = 10  # further crops tried if one class has too large a share


class Crop(NamedTuple):
    """A square of an image and of its mask."""

    image: Tensor
    """uint8 3 x S x S, smaller images padded with zeros at the bottom and right."""
    truth: Tensor
    """uint8 S x S, padded with 255."""
    size: Tensor
    """int64 (2,): height and width without padding."""


class Box(NamedTuple):
    """A rectangle of whole pixels in a resized image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Augmentation:
    """Training augmentation of an image and its mask."""

    crop: int
    """S."""
    scale: tuple[int, int]
    """Maximum long and short side after resizing, before the random factor."""
    ratios: tuple[float, float] = (0.5, 2.0)
    """Range of the random factor."""
    max_share: float = 1.0
    """Maximum fraction of labelled pixels of one class; otherwise up to ten other crops are tried."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue."""

    def __call__(self, image: Tensor, truth: Tensor, rng: np.random.Generator) -> Crop:
        """Draw a crop of an image, uint8 3 x H x W, and its mask, uint8 H x W; only the crop is resized."""
        height, width = truth.shape
        ratio = rng.uniform(*self.ratios)
        size = fit(height, width, (int(self.scale[0] * ratio), int(self.scale[1] * ratio)))
        box, labels = self._draw(truth, size, rng)
        pixels = crop_pixels(image, size, box)
        if rng.random() < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        if self.photometric:
            pixels = torch.from_numpy(distort(pixels.permute(1, 2, 0).numpy(), rng)).permute(2, 0, 1)
        padded = pixels.new_zeros(3, self.crop, self.crop)
        padded[:, : box.height, : box.width] = pixels
        without = labels.new_full((self.crop, self.crop), IGNORE)
        without[: box.height, : box.width] = labels
        return Crop(padded, without, torch.tensor([box.height, box.width]))

    def _draw(self, truth: Tensor, size: tuple[int, int], rng: np.random.Generator) -> tuple[Box, Tensor]:
        for _ in range(DRAWS + 1):
            sides = [min(side, self.crop) for side in size]
            corner = [int(rng.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True)]
            box = Box(*corner, *sides)
            labels = crop_labels(truth, size, box)
            if self.max_share >= 1:
                break
            counts = labels[labels != IGNORE].long().bincount()
            if (counts > 0).sum() > 1 and counts.max() / counts.sum() < self.max_share:
                break
        return box, labels


def fit(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Return the largest height and width with the image's aspect ratio that fit a long and a short side."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def crop_pixels(image: Tensor, size: tuple[int, int], box: Box | None = None) -> Tensor:
    """Resize an image bilinearly without antialiasing, computing only a part of it.

    Args:
        image: uint8 3 x H x W.
        size: height and width of the whole image after resizing.
        box: the part; None: everything.

    Returns:
        uint8 3 x height x width, within one level of OpenCV.
    """
    box = box or Box(0, 0, *size)
    if tuple(image.shape[1:]) == tuple(size):
        return image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    (above, below, down), (left, right, across) = (
        _neighbours(first, count, old, new, image.device)
        for first, count, old, new in zip(box[:2], box[2:], image.shape[1:], size, strict=True)
    )
    rows = torch.lerp(image[:, above].float(), image[:, below].float(), down[:, None])
    return torch.lerp(rows[:, :, left], rows[:, :, right], across).round_().byte()


def _neighbours(first: int, count: int, old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each new pixel, the two neighbouring old pixels and the weight of the second."""
    place = ((torch.arange(first, first + count, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    lower = place.floor()
    parts = lower.long(), (lower + 1).clamp(max=old - 1).long(), (place - lower).float()
    return parts[0].to(device), parts[1].to(device), parts[2].to(device)


def crop_labels(truth: Tensor, size: tuple[int, int], box: Box) -> Tensor:
    """Resize a mask, H x W, by OpenCV's nearest neighbour (coordinates rounded down), computing only ``box``."""
    rows, columns = (
        torch.arange(first, first + count) * old // new
        for first, count, old, new in zip(box[:2], box[2:], truth.shape, size, strict=True)
    )
    return truth[rows[:, None], columns]


def normalize(images: Tensor, cfg: dict[str, Any], sizes: Tensor | None = None) -> Tensor:
    """Normalise uint8 images, B x 3 x H x W, to float32 by a backbone's mean and standard deviation.

    Args:
        images: on any device.
        cfg: with ``mean`` and ``std``, of values in [0, 1].
        sizes: int64 B x 2, height and width without padding, which becomes 0; None: no padding.
    """
    mean, std = (torch.tensor(cfg[name], device=images.device).view(-1, 1, 1) for name in ("mean", "std"))
    values = images.float().div_(255).sub_(mean).div_(std)
    if sizes is not None:
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
        heights, widths = sizes.to(images.device).T
        inside = (rows < heights[:, None])[:, :, None] & (columns < widths[:, None])[:, None]
        values.masked_fill_(~inside[:, None], 0)
    return values
