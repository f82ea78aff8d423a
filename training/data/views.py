"""Two views of an image that show a region in common (SlotCon, section 3 and A.1), and batches of such pairs.

A data-loader worker draws two views knowing no more of an image than its size, so that the image need not be
decoded in more detail than they show; then it cuts and resizes their 8-bit crops. The colours are changed later,
in batches, by `training.data.color`.
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

REDUCTIONS = (8, 4, 2)  # of an image's sides while it is decoded
DETAIL = 2  # least side of a crop of a reduced image, in sides of the view


class TwoCrops(NamedTuple):
    """All that is drawn of an image's two views."""

    reduction: int
    """1, 2, 4 or 8: to read the image at this part of its resolution."""
    crops: tuple[Crop, Crop]
    """In the image so read."""
    flips: tuple[bool, ...]
    color: np.ndarray
    """float32 (2, P), what `color.apply` is to do with the views."""


class Pair(NamedTuple):
    """The two views of an image."""

    views: list[Tensor]
    """uint8 (S, S, 3), not yet coloured."""
    boxes: list[Box]
    """The region that both show, flips included."""
    flips: tuple[bool, ...]
    color: np.ndarray
    """float32 (2, P)."""


def stack(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Make a batch of B pairs, in a data-loader worker at once in shared memory.

    Returns:
        `views` uint8 (2, B, 3, S, S), pixel after pixel in memory (channels last); `boxes` float32 (2, B, 4), the
        region that both show as x1, y1, x2, y2 in each view's unit square; `flips` bool (2, B); `color` float32
        (2, B, P), what `color.apply` is to do with the views.

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
    """Turn an image into two views (SlotCon, section 3): the augmentations of BYOL, on crops that meet.

    Attributes:
        size: S, the side of a view in pixels.
        scale: smallest and largest area of a crop, as fractions of the image, in (0, 1].
        ratio: smallest and largest width / height of a crop.
        geometric: False makes both views one identical crop without flips, so that they differ in colour
            alone: the paper's ablation of geometric augmentations.

    Raises:
        ValueError: if a size or a range is impossible.

    """

    size: int = 224
    scale: Range = SCALE
    ratio: Range = RATIO
    geometric: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        if self.size < 1:
            raise ValueError(f"size={self.size}: a view needs at least 1 pixel, 224 in the paper.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: give (smallest, largest) area, as fractions in (0, 1].")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: give (smallest, largest) width / height, both above 0.")

    def draw(self, height: int, width: int, rng: np.random.Generator) -> TwoCrops:
        """Draw the two views of an image of some size.

        The image is to be read at the lowest resolution at which both crops still have twice as many pixels as
        their views along each side; their edges are then moved to its whole pixels. Images of less than four
        views across are always read in full: those of COCO, for views of 224 pixels. Averaging a
        photograph while it is decoded is not quite what bicubic interpolation does: views of the same place
        differ by 0.3 to 0.9 grey levels on average (of BSDS500, enlarged and side by side).

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
        """Make the two views that were drawn, but for their colours.

        Args:
            image: uint8 (3, H, W), RGB, reduced as `drawn` says.
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
        """Take the largest reduction that leaves detail enough, and a pixel that both crops show.

        Whole pixels of the reduced image are coarser: an overlap thinner than one can lie between them.
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
    """Move the edges of a crop up and left to whole pixels of the reduced image, and count in those."""
    top, left = crop.top // reduction, crop.left // reduction
    bottom, right = (crop.top + crop.height) // reduction, (crop.left + crop.width) // reduction
    return Crop(top, left, bottom - top, right - left)


def _resize(image: Tensor, crop: Crop, size: int) -> Tensor:
    """Cut a crop and resize it to (S, S, 3): antialiased bicubic, in integers from uint8 to uint8.

    A contiguous crop with the channels last, as decoders leave them, takes the fastest way through torch.
    """
    top, left, height, width = crop
    pixels = image.permute(1, 2, 0)[top : top + height, left : left + width].contiguous()
    pixels = interpolate(pixels[None].permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True)
    return pixels[0].permute(1, 2, 0)
