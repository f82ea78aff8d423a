"""What images of segments show."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from prototype_models import painted

from slotcon_hub.concepts.drawing import colors, draw_index, draw_map, draw_page, draw_segment
from slotcon_hub.concepts.segments import Segment


def test_a_number_has_one_colour():
    assert np.array_equal(colors(300)[:7], colors(7))
    assert colors(0).shape == (0, 3)
    assert len({tuple(color) for color in colors(64)}) == 64


@pytest.mark.parametrize(("prototypes", "mode"), [(3, "P"), (256, "P"), (257, "I;16"), (2048, "I;16")])
def test_an_index_keeps_the_numbers(tmp_path, prototypes, mode):
    groups = np.random.default_rng(0).integers(0, prototypes, (23, 17))
    groups[0, 0] = prototypes - 1
    draw_index(groups, colors(prototypes)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), groups)
        if mode == "P":
            assert np.array_equal(np.asarray(image.convert("RGB")), colors(prototypes)[groups])


def test_a_map_shows_image_colours_borders_and_numbers():
    groups = np.zeros((60, 80), dtype=int)
    groups[:, 40:] = 1
    groups[5, 5] = 2  # too small for its number
    image, palette = (
        np.full((60, 80, 3), 100, np.uint8),
        np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8),
    )
    segments = [
        Segment(0, 2399, (0, 0, 40, 60), 0.5),
        Segment(1, 2400, (40, 0, 80, 60), 0.5),
        Segment(2, 1, (5, 5, 6, 6), 0.5),
    ]
    drawn = np.asarray(draw_map(image, groups, segments, palette))
    assert drawn.shape == (60, 80, 3)
    assert drawn[2, 2].tolist() == [150, 50, 50]
    assert drawn[2, 77].tolist() == [50, 150, 50]
    assert (drawn[10:50, 40] == 255).all()
    plain = np.asarray(draw_map(image, groups, [], palette))
    changed = (drawn != plain).any(2)
    assert changed[20:40, 10:30].any()  # the number of each half stands in its middle
    assert changed[20:40, 50:70].any()
    assert not changed[:15].any()


def test_numbers_do_not_overlap_and_stay_within_the_image(monkeypatch):
    """A hundred and more segments side by side, all of them large enough for a number."""
    boxes, write = [], ImageDraw.ImageDraw.text

    def keep(self, place, text, fill, **how):
        boxes.append(self.textbbox(place, text, **{key: how[key] for key in ("font", "anchor", "stroke_width")}))
        write(self, place, text, fill, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep)
    groups = np.indices((120, 160))
    groups = groups[0] // 14 * 12 + groups[1] // 14 + 1000
    numbers, pixels = np.unique(groups, return_counts=True)
    whole = (0, 0, 160, 120)
    segments = [Segment(int(k), int(n) + 200, whole, 0.5) for k, n in zip(numbers, pixels, strict=True)]
    draw_map(np.zeros((120, 160, 3), np.uint8), groups, segments, colors(1200))
    assert 10 < len(boxes) < len(segments)
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert min(left, top) >= 0
        assert right <= 160
        assert bottom <= 120
        assert all(right <= a or c <= left or bottom <= b or d <= top for a, b, c, d in boxes[:i])


def test_red_on_red_shows():
    mask = np.zeros((128, 128), bool)
    mask[32:96, 32:96] = True
    for color in ((255, 0, 0), (0, 0, 0), (255, 255, 255)):
        marked = np.asarray(draw_segment(np.full((128, 128, 3), color, np.uint8), mask)).astype(int)
        along = marked[64, 20:50]
        assert (along.max(1) < 60).any()
        assert (along.min(1) > 200).any()
        assert (abs(np.diff(along, axis=0)).sum(1) > 300).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3)])
def test_a_map_of_a_tiny_image(size):
    drawn = draw_map(
        np.zeros((*size, 3), np.uint8), np.zeros(size, int), [Segment(0, 1, (0, 0, 1, 1), 0.1)], colors(1)
    )
    assert drawn.size == size[::-1]


def test_a_segment_is_red_and_the_rest_as_it_was():
    image = painted(3, 128, 128)
    mask = np.zeros((128, 128), bool)
    mask[:, :64] = True
    marked = np.asarray(draw_segment(image, mask)).astype(int)
    assert np.array_equal(marked[:, 70:], image[:, 70:])
    assert np.array_equal(marked[:, :58, 0], (image[:, :58, 0].astype(int) + 255) // 2)
    assert np.array_equal(marked[:, :58, 1], image[:, :58, 1] // 2)
    assert np.array_equal(np.asarray(draw_segment(image, None)), image)


def test_a_page_has_a_row_for_each_prototype():
    thumbs = [draw_segment(painted(seed), None) for seed in range(3)]
    page = draw_page([("17", "3 segments", thumbs), ("4", "1 segments", thumbs[:1])], columns=3)
    pixels = np.asarray(page)
    found = [
        (y, x)
        for thumb in thumbs
        for y, x in [(24, 172), (24, 306), (24, 440), (158, 172)]
        if np.array_equal(pixels[y : y + 128, x : x + 128], np.asarray(thumb))
    ]
    assert sorted(found) == [(24, 172), (24, 306), (24, 440), (158, 172)]
    assert (pixels[158:, 306:] == 255).all()  # the second row is shorter
    assert (pixels[:, :150] < 100).any()  # the numbers
