"""The geometry of two views: distributions, overlap, boxes that fit the pixels, pixels that fit PIL's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.nn.functional import avg_pool2d
from torchvision.transforms.v2 import RandomResizedCrop

from training.data import color
from training.data.crops import LEAST_OVERLAP, Crop, draw_crop, draw_second_crop, mirror, shared_boxes
from training.data.views import TwoViews, stack

# H x W: ordinary, 2:1, panoramas, so narrow that no drawn crop ever fits, and a handful of pixels.
SIZES = [
    (480, 640),
    (300, 600),
    (240, 640),
    (640, 240),
    (50, 500),
    (300, 1),
    (1, 300),
    (1, 1),
    (2, 3),
    (7, 5),
]


def make_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth stripes under noise, uint8 (3, H, W)."""
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    stripes = torch.sin(torch.arange(width) / 9) + torch.cos(torch.arange(height) / 7)[:, None]
    return ((stripes / 2 + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def views_of(two_views: TwoViews, image: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    drawn = two_views.draw(*image.shape[1:], rng)
    reduced = avg_pool2d(image.float(), drawn.reduction, ceil_mode=True).round().to(torch.uint8)
    return {name: values[:, 0] for name, values in stack([two_views.cut(reduced, drawn)]).items()}


def pixels(crop: Crop) -> np.ndarray:
    """All pixels of a crop, one row each: row, column."""
    rows, columns = np.mgrid[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return np.stack((rows.ravel(), columns.ravel()), axis=1)


def overlap(first: Crop, second: Crop) -> int:
    rows = range(max(first.top, second.top), min(first.top + first.height, second.top + second.height))
    columns = range(max(first.left, second.left), min(first.left + first.width, second.left + second.width))
    return len(rows) * len(columns)


def assert_inside(crop: Crop, height: int, width: int) -> None:
    assert all(type(value) is int for value in crop)
    assert crop.height >= 1
    assert crop.width >= 1
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width


def test_areas_and_ratios_are_distributed_as_in_the_paper():
    """At most half the image at a mild ratio always fits, so that nothing is rejected."""
    rng = np.random.default_rng(1)
    crops = np.array([draw_crop(4000, 4000, rng, scale=(0.08, 0.5)) for _ in range(5000)])
    top, left, height, width = crops.T
    assert stats.kstest(height * width / 4000**2, "uniform", (0.08, 0.42)).pvalue > 1e-3
    low, high = math.log(3 / 4), math.log(4 / 3)
    assert stats.kstest(np.log(width / height), "uniform", (low, high - low)).pvalue > 1e-3
    assert stats.kstest(top / (4000 - height), "uniform").pvalue > 1e-3
    assert stats.kstest(left / (4000 - width), "uniform").pvalue > 1e-3


def test_default_crops_match_torchvisions():
    rng = np.random.default_rng(2)
    ours = np.array([draw_crop(240, 400, rng) for _ in range(3000)])
    reference = RandomResizedCrop(8)
    image = [torch.zeros(3, 240, 400)]
    names = ("top", "left", "height", "width")
    drawn = [reference.make_params(image) for _ in range(3000)]
    theirs = np.array([[params[name] for name in names] for params in drawn])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 10, Crop(43, 0, 13, 10)), (10, 100, Crop(0, 43, 10, 13)), (300, 1, Crop(149, 0, 1, 1))],
)
def test_where_nothing_fits_the_crop_is_central_and_of_the_nearest_legal_ratio(height, width, expected):
    assert draw_crop(height, width, np.random.default_rng(0), scale=(0.9, 1.0)) == expected


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_second_crop_always_meets_the_first(height, width):
    rng = np.random.default_rng(3)
    for _ in range(1000):
        first = draw_crop(height, width, rng)
        second = draw_second_crop(height, width, first, rng)
        assert_inside(first, height, width)
        assert_inside(second, height, width)
        # Sides are rounded to whole pixels, so the area drawn may be half a pixel smaller each way.
        assert overlap(first, second) >= LEAST_OVERLAP * (second.height - 0.5) * (second.width - 0.5)
        assert overlap(first, second) >= 1


def test_a_corner_crop_is_met_within_the_drawn_distribution():
    """Small second crops seldom reach a small corner: most take the way that follows ten rejections."""
    first = Crop(0, 0, 30, 30)
    rng = np.random.default_rng(4)
    seconds = [draw_second_crop(400, 400, first, rng, scale=(0.01, 0.02)) for _ in range(2000)]
    assert all(
        overlap(first, second) >= LEAST_OVERLAP * (second[2] - 0.5) * (second[3] - 0.5) for second in seconds
    )
    areas = np.array([second.height * second.width for second in seconds]) / 400**2
    assert areas.min() > 0.0095
    assert areas.max() < 0.0205
    assert sum(second == first for second in seconds) < 5
    assert len({second[:2] for second in seconds}) > 500


@pytest.mark.parametrize(
    ("first", "side"), [(Crop(0, 0, 3, 2), 10), (Crop(0, 0, 4, 4), 20), (Crop(97, 0, 3, 5), 24)]
)
def test_every_legal_place_is_as_likely(first, side):
    """Beside a tiny corner crop nearly all draws end up among the places that share enough."""
    rng, scale = np.random.default_rng(5), (side * side / 100**2,) * 2
    seconds = [draw_second_crop(100, 100, first, rng, scale=scale, ratio=(1.0, 1.0)) for _ in range(1200)]
    places, counts = np.unique(seconds, axis=0, return_counts=True)
    everywhere = [Crop(top, left, side, side) for top in range(101 - side) for left in range(101 - side)]
    legal = [crop for crop in everywhere if overlap(first, crop) >= LEAST_OVERLAP * side * side]
    assert [tuple(place) for place in places] == legal
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_first_crop_too_small_to_be_shared_enough_is_used_twice():
    first = Crop(50, 60, 1, 1)
    assert draw_second_crop(100, 100, first, np.random.default_rng(0), scale=(0.5, 1.0)) == first


def test_boxes_equal_the_shared_pixels_of_a_plain_count():
    rng = np.random.default_rng(6)
    for _ in range(50):
        first = draw_crop(40, 60, rng)
        second = draw_second_crop(40, 60, first, rng)
        shared = np.array(sorted(set(map(tuple, pixels(first))) & set(map(tuple, pixels(second)))))
        (top, left), (bottom, right) = shared.min(axis=0), shared.max(axis=0) + 1
        for crop, box in zip((first, second), shared_boxes(first, second), strict=True):
            in_pixels = np.array(box) * (crop.width, crop.height, crop.width, crop.height)
            corner = (crop.left, crop.top, crop.left, crop.top)
            np.testing.assert_allclose(in_pixels + corner, (left, top, right, bottom), atol=1e-9)
            assert min(box) >= 0
            assert max(box) <= 1


def test_boxes_of_disjoint_crops_are_refused():
    with pytest.raises(ValueError, match="draw_second_crop"):
        shared_boxes(Crop(0, 0, 5, 5), Crop(5, 0, 5, 5))


def test_mirror():
    assert mirror((0.0, 0.25, 0.5, 1.0)) == (0.5, 0.25, 1.0, 1.0)
    assert mirror(mirror((0.125, 0.0, 0.5, 0.75))) == (0.125, 0.0, 0.5, 0.75)


def test_boxes_show_the_same_place_of_the_image_in_both_views():
    """In an image that encodes its coordinates, the shared box spans the same ones in both views."""
    height = width = 250
    ramp = torch.arange(width, dtype=torch.uint8).expand(height, width)
    image = torch.stack((ramp, ramp.T, ramp))
    two_views = TwoViews(size=200)
    seen = set()
    for seed in range(60):
        sample = views_of(two_views, image, np.random.default_rng(seed))
        flips = sample["flips"].tolist()
        seen.add(tuple(flips))
        spans = []
        for view, box, flipped in zip(sample["views"].float(), sample["boxes"], flips, strict=True):
            x1, y1, x2, y2 = (box * 200).tolist()
            at_left, at_right = view[0, 100].numpy()[[0, -1]] if not flipped else view[0, 100].numpy()[[-1, 0]]
            assert at_left < at_right
            centres = np.arange(200) + 0.5
            columns = np.interp((x1, x2), centres, view[0, 100].numpy())
            rows = np.interp((y1, y2), centres, view[1, :, 100].numpy())
            spans.append((*sorted(columns), *rows))
        np.testing.assert_allclose(spans[0], spans[1], atol=2.0)
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_boxes_of_a_reduced_image_show_the_same_place_too(reduction):
    """As above, where the image is read at a part of its resolution; the ramps stay ramps."""
    side = 136 * reduction
    ramp = (torch.arange(side) / side * 255).round().to(torch.uint8).expand(side, -1)
    image, two_views = torch.stack((ramp, ramp.T, ramp)), TwoViews(size=32, scale=(0.3, 0.4))
    reduced = avg_pool2d(image.float(), reduction).round().to(torch.uint8)
    centres = np.arange(32) + 0.5
    for seed in range(20):
        drawn = two_views.draw(side, side, np.random.default_rng(seed))
        assert drawn.reduction == reduction
        pair, spans = two_views.cut(reduced, drawn), []
        for view, box, flipped in zip(pair.views, pair.boxes, pair.flips, strict=True):
            view, box = (view.flip(1), mirror(box)) if flipped else (view, box)
            x1, y1, x2, y2 = np.multiply(box, 32)
            columns = np.interp((x1, x2), centres, view[16, :, 0].numpy())
            spans.append((*columns, *np.interp((y1, y2), centres, view[:, 16, 1].numpy())))
        np.testing.assert_allclose(spans[0], spans[1], atol=4.0)


def test_images_are_read_at_the_resolution_that_both_crops_need():
    rng, two_views = np.random.default_rng(0), TwoViews(size=16)
    seen = set()
    for _ in range(300):
        height, width = rng.integers(100, 900, 2).tolist()
        seed = int(rng.integers(2**30))
        drawn = two_views.draw(height, width, np.random.default_rng(seed))
        whole = TwoViews(size=450).draw(height, width, np.random.default_rng(seed))
        assert whole.reduction == 1  # 450 pixels twice are more than any of these crops has
        finest = min(min(crop[2:]) for crop in whole.crops) / 32  # source pixels for each that is needed at least
        assert drawn.reduction == max(r for r in (1, 2, 4, 8) if r == 1 or r <= finest)
        for crop, original in zip(drawn.crops, whole.crops, strict=True):
            assert_inside(crop, -(-height // drawn.reduction), -(-width // drawn.reduction))
            assert np.abs(np.multiply(crop, drawn.reduction) - original).max() < drawn.reduction
        assert overlap(*drawn.crops) >= 1
        seen.add(drawn.reduction)
    assert seen == {1, 2, 4, 8}


def test_the_images_of_coco_are_read_in_full():
    rng = np.random.default_rng(0)
    assert {TwoViews().draw(640, 640, rng).reduction for _ in range(200)} == {1}


def test_flips_are_fair_and_independent():
    image, rng, two_views = make_image(8, 8), np.random.default_rng(8), TwoViews(size=4)
    flips = torch.stack([views_of(two_views, image, rng)["flips"] for _ in range(1000)])
    counts = torch.bincount(flips[:, 0] * 2 + flips[:, 1].long(), minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "crop", [Crop(3, 5, 100, 130), Crop(10, 0, 40, 31), Crop(0, 0, 128, 192), Crop(9, 9, 1, 2)]
)
def test_pixels_equal_pils_antialiased_bicubic(crop, monkeypatch):
    image = make_image(128, 192)
    monkeypatch.setattr("training.data.views.draw_crop", lambda *_, **__: crop)
    view = views_of(TwoViews(size=64, geometric=False), image, np.random.default_rng(0))["views"][0]
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(box)
    expected = np.asarray(pil_image.resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(view.numpy().astype(int) - expected).max() <= 1


def test_a_flipped_view_is_the_mirror_image_of_the_same_crop():
    image = make_image(32, 32)
    two_views = TwoViews(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    for seed in range(20):
        sample = views_of(two_views, image, np.random.default_rng(seed))
        for view, flipped in zip(sample["views"], sample["flips"], strict=True):
            assert torch.equal(view, image.flip(-1) if flipped else image)
        assert torch.equal(sample["boxes"], torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_sample_has_its_shapes_and_types_for_every_image(height, width):
    image = make_image(height, width)
    before = image.clone()
    sample = views_of(TwoViews(size=16), image, np.random.default_rng(0))
    described = {name: (tuple(value.shape), value.dtype) for name, value in sample.items()}
    assert described == {
        "views": ((2, 3, 16, 16), torch.uint8),
        "boxes": ((2, 4), torch.float32),
        "flips": ((2,), torch.bool),
        "color": ((2, len(color.Column)), torch.float32),
    }
    assert (sample["boxes"][:, 2:] > sample["boxes"][:, :2]).all()
    assert sample["color"][0, color.Column.SIGMA] > 0
    assert torch.equal(image, before)


def test_each_view_draws_its_own_colours():
    image, rng, two_views = make_image(8, 8), np.random.default_rng(0), TwoViews(size=4)
    drawn = torch.stack([views_of(two_views, image, rng)["color"] for _ in range(200)])
    assert (drawn[:, 0, color.Column.SIGMA] > 0).all()
    assert (drawn[:, 1, color.Column.SIGMA] > 0).sum() < 50
    assert not drawn[:, 0, color.Column.SOLARIZE].any()
    assert drawn[:, 1, color.Column.SOLARIZE].any()


def test_views_are_a_function_of_the_generator():
    image, two_views = make_image(60, 80), TwoViews(size=24)
    first, again, other = (views_of(two_views, image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["views"], other["views"])


def test_without_geometry_the_views_differ_in_colour_alone():
    image, two_views = make_image(60, 80), TwoViews(size=24, geometric=False)
    crops = set()
    for seed in range(20):
        sample = views_of(two_views, image, np.random.default_rng(seed))
        assert torch.equal(sample["views"][0], sample["views"][1])
        assert torch.equal(sample["boxes"], torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))
        assert not sample["flips"].any()
        assert not torch.equal(sample["color"][0], sample["color"][1])
        crops.add(sample["views"].numpy().tobytes())
    assert len(crops) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "at least 1 pixel"),
        ({"scale": (0.0, 1.0)}, "smallest, largest"),
        ({"scale": (0.5, 0.2)}, "smallest, largest"),
        ({"scale": (0.5, 1.2)}, "smallest, largest"),
        ({"ratio": (0.0, 1.0)}, "width / height"),
        ({"ratio": (2.0, 1.0)}, "width / height"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TwoViews(**options)


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(3, 0, 8, dtype=torch.uint8)],
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="decode it in RGB"):
        TwoViews().cut(image, TwoViews().draw(8, 8, np.random.default_rng(0)))


@pytest.mark.parametrize("size", [4, 8, 48])
def test_views_of_a_reduced_image_meet_however_thin_their_overlap(size):
    """Small views reduce an image more: a thin overlap may fall between its pixels."""
    views = TwoViews(size)
    for seed in range(800):
        rng = np.random.default_rng(seed)
        drawn = views.draw(int(rng.integers(200, 900)), int(rng.integers(200, 900)), rng)
        for box in shared_boxes(*drawn.crops):
            assert 0 <= box[0] < box[2] <= 1
            assert 0 <= box[1] < box[3] <= 1


def test_an_overlap_between_reduced_pixels_keeps_the_full_resolution():
    views = TwoViews(16)
    first, second = Crop(0, 0, 256, 257), Crop(0, 256, 256, 256)  # they share one column, and 257 // 8 == 256 // 8
    assert views._reduce_both(first, second)[0] == 1
    second = Crop(0, 240, 256, 256)
    assert views._reduce_both(first, second)[0] == 8
