"""Draw segments: coloured maps, and pages of prototypes with their nearest segments.

Dimensions: K prototypes, H x W pixels.
"""

import colorsys
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from slotcon_hub.concepts.segments import Segment

__all__ = [
    "colors",
    "cut_row",
    "draw_index",
    "draw_map",
    "draw_page",
    "draw_segment",
    "heat",
    "overlay_colors",
]

_OPACITY = 0.5
_MARGIN, _GAP, _THUMB, _TITLE = 24, 6, 128, 148  # of a page, in pixels
_LABELED = 0.01  # fraction of an image above which a segment is labelled
_HEAT = np.array([*bytes.fromhex("440154 3b528b 21918c 5ec962 fde725")]).reshape(-1, 3)  # viridis


def colors(number: int) -> np.ndarray:
    """Distinct colours, uint8 number x 3; row k is the same for any ``number``."""
    hues = (np.arange(number) * 0.618) % 1  # the golden ratio keeps neighbours apart
    values = np.where(np.arange(number) % 2, 0.95, 0.7)
    rgb = [colorsys.hsv_to_rgb(hue, 0.65, value) for hue, value in zip(hues, values, strict=True)]
    return (np.array(rgb).reshape(-1, 3) * 255).astype(np.uint8)


def draw_map(
    image: np.ndarray, groups: np.ndarray, segments: Iterable[Segment], palette: np.ndarray
) -> Image.Image:
    """Overlay an image with the colours and outlines of its segments, and label the larger ones.

    Labels do not overlap: a segment without free space for its label gets none.

    Args:
        image: uint8 H x W x 3.
        groups: H x W prototype indices.
        segments: its segments, the largest first.
        palette: uint8 K x 3.
    """
    canvas = overlay_colors(image, palette[groups], groups)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(min(groups.shape) // 20, 10))
    free = np.ones(groups.shape, dtype=bool)  # pixels that no label covers
    for segment in segments:
        if segment.pixels >= _LABELED * groups.size:
            number: Any = {"text": str(segment.prototype), "font": font, "anchor": "mm", "stroke_width": 2}
            left, top, right, bottom = pen.textbbox((0, 0), **number)
            reach = math.ceil(max(-left, right)), math.ceil(max(-top, bottom))
            if place := _label_position(groups == segment.prototype, _free_centers(free, *reach)):
                pen.text(place, fill="white", stroke_fill="black", **number)
                columns, rows = (slice(max(at - by, 0), at + by + 1) for at, by in zip(place, reach, strict=True))
                free[rows, columns] = False
    return canvas


def overlay_colors(
    image: np.ndarray, color: np.ndarray, groups: np.ndarray, opacity: float = _OPACITY
) -> Image.Image:
    """Overlay an image with colours, and draw borders of groups as a white line beside a black one.

    Args:
        image: uint8 H x W x 3.
        color: uint8 H x W x 3.
        groups: H x W indices.
        opacity: of the colours, in [0, 1].
    """
    canvas = Image.blend(Image.fromarray(image), Image.fromarray(color), opacity)
    for line, shift in (("black", 1), ("white", 0)):
        edges: np.ndarray = np.zeros(groups.shape, dtype=bool)
        edges[:, 1:] = groups[:, 1:] != groups[:, :-1]
        edges[1:] |= groups[1:] != groups[:-1]
        edges[shift:, shift:] = edges[: len(edges) - shift, : edges.shape[1] - shift]
        canvas.paste(line, mask=Image.fromarray(edges))
    return canvas


def _free_centers(free: np.ndarray, x: int, y: int) -> np.ndarray:
    """Pixels around which a box of 2 x + 1 by 2 y + 1 pixels lies within the image and on free pixels."""
    taken = np.pad(~free, ((y, y), (x, x)), constant_values=True).cumsum(0).cumsum(1)
    sums = np.pad(taken, ((1, 0), (1, 0)))
    height, width = 2 * y + 1, 2 * x + 1
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width] == 0


def _label_position(mask: np.ndarray, room: np.ndarray) -> tuple[int, int] | None:
    """The free pixel x, y of a mask with most of the mask around it; None if there is none."""
    if not (mask & room).any():
        return None
    reach = min(mask.shape) // 4 + 1
    padded = Image.fromarray(np.pad(mask, 2 * reach).astype(np.uint8) * 255)
    blurred = padded.filter(ImageFilter.BoxBlur(reach)).filter(ImageFilter.BoxBlur(reach))
    around = np.asarray(blurred, dtype=float)[2 * reach : -2 * reach, 2 * reach : -2 * reach]
    y, x = np.unravel_index(np.argmax(np.where(mask & room, around, -1)), mask.shape)
    return int(x), int(y)


def draw_index(groups: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Draw prototype indices as a palette image, or as 16-bit grey for more than 256 prototypes.

    Args:
        groups: H x W prototype indices.
        palette: uint8 K x 3.
    """
    if len(palette) > 256:
        return Image.fromarray(groups.astype(np.uint16))
    image = Image.fromarray(groups.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return image


def draw_segment(image: np.ndarray, mask: np.ndarray | None) -> Image.Image:
    """Draw the thumbnail of a crop with a segment in red and its outline.

    Args:
        image: uint8 S x S x 3.
        mask: S x S booleans; None for the crop alone.
    """
    small = Image.fromarray(image).resize((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    if mask is None:
        return small
    inside = np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))
    drawn = np.asarray(small)
    red = np.where(inside[..., None], np.array([255, 0, 0], np.uint8), drawn)
    return overlay_colors(drawn, red, inside)


def draw_page(rows: Sequence[tuple[str, str, Sequence[Image.Image]]], columns: int) -> Image.Image:
    """Draw rows of thumbnails, each with a title and a subtitle at its left.

    Args:
        rows: title, subtitle and images of each.
        columns: largest number of images in a row.
    """
    step = _THUMB + _GAP
    size = (2 * _MARGIN + _TITLE + columns * step - _GAP, 2 * _MARGIN + len(rows) * step - _GAP)
    page = Image.new("RGB", size, "white")
    pen, large, small = ImageDraw.Draw(page), ImageFont.load_default(30), ImageFont.load_default(15)
    for row, (title, below, images) in enumerate(rows):
        top = _MARGIN + row * step
        pen.text((_MARGIN, top + 28), title, "black", large)
        pen.multiline_text((_MARGIN, top + 68), below, "dimgray", small, spacing=5)
        for column, image in enumerate(images):
            page.paste(image, (_MARGIN + _TITLE + column * step, top))
    return page


def cut_row(page: Image.Image, row: int, number: int) -> list[Image.Image]:
    """The first thumbnails in a row of a page that :func:`draw_page` drew.

    Args:
        page: the page.
        row: its row, from 0.
        number: of thumbnails.
    """
    step, top = _THUMB + _GAP, _MARGIN + row * (_THUMB + _GAP)
    lefts = (_MARGIN + _TITLE + column * step for column in range(number))
    return [page.crop((left, top, left + _THUMB, top + _THUMB)) for left in lefts]


def heat(values: np.ndarray) -> Image.Image:
    """Colours of values in [0, 1], from dark violet to bright yellow: H x W to an RGB image."""
    table = np.stack([np.interp(np.arange(256), np.linspace(0, 255, len(_HEAT)), c) for c in _HEAT.T], axis=1)
    return Image.fromarray(table.astype(np.uint8)[(values * 255).astype(np.uint8)])
