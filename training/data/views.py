"""Two overlapping views of an image (SlotCon, section 3 and A.1), and batches of such pairs.

A data-loader worker draws the crops from the image size alone, so that the image is only decoded at the needed
resolution; then it cuts and resizes the 8-bit crops. Colours are augmented later, in batches, by
`training.data.color`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from training.data import color
from training.data.crops import (
    RATIO,
    SCALE,
    Box,
    Crop,
    Range,
    draw_crop,
    draw_second_crop,
    mirror,
    overlap,
    shared_boxes,
)

__all__ = ["Pair", "TwoCrops", "TwoViews", "stack"]

# H W pixels of the image, S pixels of a view, P parameters of a view's colours.

REDUCTIONS = (8, 4, 2)  # of the image's sides during decoding
DETAIL = 2  # minimum side of a crop in the reduced image, in sides of the view


class TwoCrops(NamedTuple):
    """The random parameters of an image's two views."""

    reduction: int
    """1, 2, 4 or 8: decode the image with its sides divided by this."""
    crops: tuple[Crop, Crop]
    """In pixels of the reduced image."""
    flips: tuple[bool, ...]
    color: np.ndarray
    """float32 (2, P), the parameters of `color.apply`."""


class Pair(NamedTuple):
    """The two views of an image."""

    views: list[Tensor]
    """uint8 (S, S, 3), before colour augmentation."""
    boxes: list[Box]
    """The intersection in each view, after flips."""
    flips: tuple[bool, ...]
    color: np.ndarray
    """float32 (2, P)."""


def stack(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Collate B pairs; in a data-loader worker directly in shared memory.

    Returns:
        `views` uint8 (2, B, 3, S, S), channels last in memory; `boxes` float32 (2, B, 4), the intersection as
        x1, y1, x2, y2 in each view's unit square; `flips` bool (2, B); `color` float32 (2, B, P), the parameters
        of `color.apply`.

    """
    views = default_collate([pair.views[number] for number in (0, 1) for pair in pairs])
    return {
        "views": views.unflatten(0, (2, -1)).permute(0, 1, 4, 2, 3),
        "boxes": torch.tensor([pair.boxes for pair in pairs], dtype=torch.float32).transpose(0, 1),
        "flips": torch.tensor([pair.flips for pair in pairs]).T,
        "color": torch.from_numpy(np.stack([pair.color for pair in pairs], axis=1)),
    }


@dataclass(frozen=True)
class TwoViews:
    """Make two views of an image (SlotCon, section 3): BYOL's augmentations on overlapping crops.

    Attributes:
        size: S, the side of a view in pixels.
        scale: smallest and largest area of a crop, as fractions of the image, in (0, 1].
        ratio: smallest and largest width / height of a crop.
        geometric: False uses the same crop without flips for both views, so that they differ only in colour:
            the paper's ablation of geometric augmentations.

    Raises:
        ValueError: if a size or a range is invalid.

    """

    size: int = 224
    scale: Range = SCALE
    ratio: Range = RATIO
    geometric: bool = True

    def __post_init__(self) -> None:
        """Validate."""
        if self.size < 1:
            raise ValueError(f"size={self.size}: a view needs at least 1 pixel, 224 in the paper.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: give (smallest, largest) area, as fractions in (0, 1].")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: give (smallest, largest) width / height, both above 0.")

    def draw(self, height: int, width: int, rng: np.random.Generator) -> TwoCrops:
        """Draw the parameters of two views.

        The reduction is the largest at which both crops have at least twice the side of a view; crop edges are
        then rounded to pixels of the reduced image. Images less than four views wide are never reduced, such as
        COCO's for views of 224 pixels. Reduction while decoding averages pixels, unlike bicubic interpolation:
        views of the same crop differ by 0.3 to 0.9 grey levels on average (measured on enlarged BSDS500).

        Args:
            height: H, pixels of the image, at least 1.
            width: W, likewise.
            rng: the source of all randomness: the same generator state gives the same views.
        """
        crops = self._draw_crops(height, width, rng)
        flips = tuple(self.geometric and bool(rng.random() < 0.5) for _ in crops)
        reduction, first, second = self._reduce_both(*crops)
        colors = np.stack([color.draw(view, rng) for view in (1, 2)])
        return TwoCrops(reduction, (first, second), flips, colors)

    def cut(self, image: Tensor, drawn: TwoCrops) -> Pair:
        """Cut, resize and flip the two views; colours stay unchanged.

        Args:
            image: uint8 (3, H, W), RGB, decoded at `drawn.reduction`.
            drawn: by `draw`.

        Raises:
            ValueError: if `image` is not a uint8 RGB image of at least one pixel.

        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(
                f"TwoViews takes a uint8 image of shape (3, H, W), not {image.dtype} of "
                f"{tuple(image.shape)}: decode it in RGB and do not scale it."
            )
        views, boxes = [], []
        for crop, box, flipped in zip(drawn.crops, shared_boxes(*drawn.crops), drawn.flips, strict=True):
            view = _resize(image, crop, self.size)
            views.append(view.flip(1) if flipped else view)
            boxes.append(mirror(box) if flipped else box)
        return Pair(views, boxes, drawn.flips, drawn.color)

    def _reduce_both(self, first: Crop, second: Crop) -> tuple[int, Crop, Crop]:
        """Choose the largest reduction with enough detail at which the crops still overlap.

        Rounded to pixels of the reduced image, a thin overlap can vanish.
        """
        side = min(first.height, first.width, second.height, second.width)
        for reduction in REDUCTIONS:
            if side >= reduction * DETAIL * self.size:
                reduced = _reduce(first, reduction), _reduce(second, reduction)
                if overlap(*reduced):
                    return reduction, *reduced
        return 1, first, second

    def _draw_crops(self, height: int, width: int, rng: np.random.Generator) -> tuple[Crop, Crop]:
        first = draw_crop(height, width, rng, scale=self.scale, ratio=self.ratio)
        if not self.geometric:
            return first, first
        return first, draw_second_crop(height, width, first, rng, scale=self.scale, ratio=self.ratio)


def _reduce(crop: Crop, reduction: int) -> Crop:
    """Convert a crop to pixels of the reduced image, its edges rounded down."""
    top, left = crop.top // reduction, crop.left // reduction
    bottom, right = (crop.top + crop.height) // reduction, (crop.left + crop.width) // reduction
    return Crop(top, left, bottom - top, right - left)


def _resize(image: Tensor, crop: Crop, size: int) -> Tensor:
    """Cut a crop and resize it to (S, S, 3): antialiased bicubic, in integers from uint8 to uint8.

    torch is fastest on a contiguous crop with channels last, the layout of decoders.
    """
    top, left, height, width = crop
    pixels = image.permute(1, 2, 0)[top : top + height, left : left + width].contiguous()
    pixels = interpolate(pixels[None].permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True)
    return pixels[0].permute(1, 2, 0)
