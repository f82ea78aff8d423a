"""Segments as images: maps in colours, and pages of prototypes with their nearest segments.

Dimensions: K prototypes, H x W pixels.
"""

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from slotcon_hub.concepts.segments import Segment

__all__ = ["colors", "draw_index", "draw_map", "draw_page", "mark"]

_OPACITY = 0.5
_MARGIN, _GAP, _THUMB, _TITLE = 24, 6, 128, 148  # of a page, in pixels
_LABELED = 0.01  # the share of an image from which on a segment gets its number


def colors(number: int) -> np.ndarray:
    """Distinct colours, uint8 number x 3; that of a number is always the same."""
    hues = (np.arange(number) * 0.618) % 1  # the golden ratio keeps neighbours apart
    values = np.where(np.arange(number) % 2, 0.95, 0.7)
    rgb = [colorsys.hsv_to_rgb(hue, 0.65, value) for hue, value in zip(hues, values, strict=True)]
    return (np.array(rgb).reshape(-1, 3) * 255).astype(np.uint8)


def draw_map(
    image: np.ndarray, groups: np.ndarray, segments: Iterable[Segment], palette: np.ndarray
) -> Image.Image:
    """An image under the colours of its segments, with white borders and the numbers of the larger ones.

    Args:
        image: uint8 H x W x 3.
        groups: H x W prototype numbers.
        segments: its segments.
        palette: uint8 K x 3.
    """
    canvas = Image.blend(Image.fromarray(image), Image.fromarray(palette[groups]), _OPACITY)
    borders = np.zeros(groups.shape, dtype=bool)
    borders[:, 1:] = groups[:, 1:] != groups[:, :-1]
    borders[1:] |= groups[1:] != groups[:-1]
    canvas.paste("white", mask=Image.fromarray(borders))
    size = max(min(groups.shape) // 20, 10)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for segment in segments:
        if segment.pixels >= _LABELED * groups.size:
            places = zip(_inside(groups == segment.prototype), canvas.size, strict=True)
            place = tuple(min(max(pixel, size), side - size) for pixel, side in places)
            number = str(segment.prototype)
            pen.text(place, number, "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return canvas


def _inside(mask: np.ndarray) -> tuple[int, int]:
    """The pixel x, y of a mask with the most of it around."""
    reach = min(mask.shape) // 2 + 1
    padded = Image.fromarray(np.pad(mask, reach).astype(np.uint8) * 255)
    around = np.asarray(padded.filter(ImageFilter.BoxBlur(reach)), dtype=float)[reach:-reach, reach:-reach]
    y, x = np.unravel_index(np.argmax(np.where(mask, around, -1)), mask.shape)
    return int(x), int(y)


def draw_index(groups: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Prototype numbers as an image: the entries of a palette, or above 256 prototypes 16 bits of grey.

    Args:
        groups: H x W prototype numbers.
        palette: uint8 K x 3.
    """
    if len(palette) > 256:
        return Image.fromarray(groups.astype(np.uint16))
    image = Image.fromarray(groups.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return image


def mark(image: np.ndarray, mask: np.ndarray | None) -> Image.Image:
    """A crop with a segment in red, as small as a page shows it.

    Args:
        image: uint8 S x S x 3.
        mask: S x S booleans; None for the crop as it is.
    """
    canvas = Image.fromarray(image)
    if mask is not None:
        red = Image.blend(canvas, Image.new("RGB", canvas.size, "red"), _OPACITY)
        canvas.paste(red, mask=Image.fromarray(mask))
    return canvas.resize((_THUMB, _THUMB), Image.Resampling.LANCZOS)


def draw_page(rows: Sequence[tuple[str, str, Sequence[Image.Image]]], columns: int) -> Image.Image:
    """Rows of small images, each behind a title and what there is to say below it.

    Args:
        rows: title, what is below it, and images of each.
        columns: the most images of a row.
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
