"""Two overlapping crops of an image and their intersection (SlotCon, section 3 and A.1)."""

import math
from typing import NamedTuple

import numpy as np

__all__ = [
    "RATIO",
    "SCALE",
    "Box",
    "Crop",
    "Range",
    "draw_crop",
    "draw_second_crop",
    "mirror",
    "overlap",
    "shared_boxes",
]

# H W pixels of the image.

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in a view's own unit square
Range = tuple[float, float]

SCALE: Range = (0.08, 1.0)
RATIO: Range = (3 / 4, 4 / 3)
DRAWS = 10
LEAST_OVERLAP = 0.01  # of the second crop's area


class Crop(NamedTuple):
    """A rectangle of whole pixels in the image."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(
    height: int, width: int, rng: np.random.Generator, *, scale: Range = SCALE, ratio: Range = RATIO
) -> Crop:
    """Draw a random resized crop, distributed as torchvision's `RandomResizedCrop`.

    The area is uniform over `scale`, the aspect ratio log-uniform over `ratio`, the position uniform. If ten
    draws do not fit the image, the result is the central crop of the nearest valid ratio.

    Args:
        height: H, pixels of the image, at least 1.
        width: W, likewise.
        rng: the source of all randomness.
        scale: smallest and largest area, as fractions of the image, in (0, 1].
        ratio: smallest and largest width / height.

    Returns:
        A crop of at least one pixel that lies inside the image.

    """
    for _ in range(DRAWS):
        _, crop = _draw(height, width, rng, scale, ratio)
        if crop is not None:
            return crop
    legal_height = min(height, max(1, round(width / ratio[0])))
    legal_width = min(width, max(1, round(height * ratio[1])))
    return Crop((height - legal_height) // 2, (width - legal_width) // 2, legal_height, legal_width)


def draw_second_crop(
    height: int,
    width: int,
    first: Crop,
    rng: np.random.Generator,
    *,
    scale: Range = SCALE,
    ratio: Range = RATIO,
) -> Crop:
    """Draw view 2's crop: as view 1's, given that it shares at least 1 % of its area with `first`.

    If ten draws are rejected, only the size is drawn as usual, and the position uniformly over those with enough
    overlap. Without such a position (only if `first` is tiny compared to the drawn size, impossible with the
    default ranges) the result is `first`. So two views always overlap, as their alignment (SlotCon, A.1) requires.

    Args:
        height: H, pixels of the image, at least 1.
        width: W, likewise.
        first: view 1's crop of the same image.
        rng: the source of all randomness.
        scale: smallest and largest area, as fractions of the image, in (0, 1].
        ratio: smallest and largest width / height.

    Returns:
        A crop inside the image whose intersection with `first` is at least one pixel.

    """
    for _ in range(DRAWS):
        area, crop = _draw(height, width, rng, scale, ratio)
        if crop is not None and overlap(first, crop) >= LEAST_OVERLAP * area:
            return crop
    size = draw_crop(height, width, rng, scale=scale, ratio=ratio)
    return _place_over(first, size.height, size.width, height, width, rng)


def shared_boxes(first: Crop, second: Crop) -> tuple[Box, Box]:
    """Express the intersection of two crops in the unit square of each, before any flip.

    Raises:
        ValueError: if the crops share no pixel.

    """
    if not overlap(first, second):
        raise ValueError(f"{first} and {second} share no pixel: draw the second with draw_second_crop.")
    top, left = max(first.top, second.top), max(first.left, second.left)
    bottom = min(first.top + first.height, second.top + second.height)
    right = min(first.left + first.width, second.left + second.width)

    def inside(crop: Crop) -> Box:
        return (
            (left - crop.left) / crop.width,
            (top - crop.top) / crop.height,
            (right - crop.left) / crop.width,
            (bottom - crop.top) / crop.height,
        )

    return inside(first), inside(second)


def mirror(box: Box) -> Box:
    """Return a box of the unit square after a horizontal flip."""
    x1, y1, x2, y2 = box
    return 1 - x2, y1, 1 - x1, y2


def _draw(
    height: int, width: int, rng: np.random.Generator, scale: Range, ratio: Range
) -> tuple[float, Crop | None]:
    """Draw an area in pixels and a crop of about this area, or None where it does not fit the image."""
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    if not (0 < h <= height and 0 < w <= width):
        return area, None
    return area, Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)


def overlap(first: Crop, second: Crop) -> int:
    """Count the pixels that two crops share."""
    rows = min(first.top + first.height, second.top + second.height) - max(first.top, second.top)
    columns = min(first.left + first.width, second.left + second.width) - max(first.left, second.left)
    return max(0, rows) * max(0, columns)


def _place_over(first: Crop, h: int, w: int, height: int, width: int, rng: np.random.Generator) -> Crop:
    """Place an h x w crop uniformly over positions with enough overlap with `first`; `first` if there are none."""
    rows = _overlaps(first.top, first.height, h, height)
    columns = _overlaps(first.left, first.width, w, width)
    least = math.ceil(LEAST_OVERLAP * h * w)
    # For each left edge the number of top edges with enough overlap: avoids an H x W table of positions.
    tops = len(rows) - np.searchsorted(np.sort(rows), -(-least // np.maximum(columns, 1)))
    tops = np.where(columns > 0, tops, 0)
    if not tops.any():
        return first
    left = int(rng.choice(len(tops), p=tops / tops.sum()))
    top = int(rng.choice(np.flatnonzero(rows * columns[left] >= least)))
    return Crop(top, left, h, w)


def _overlaps(start: int, length: int, moving: int, extent: int) -> np.ndarray:
    """Return, for each position of a segment of `moving` pixels, its overlap with [start, start + length)."""
    places = np.arange(extent - moving + 1)
    return np.maximum(0, np.minimum(places + moving, start + length) - np.maximum(places, start))
