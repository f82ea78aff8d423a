"""Training's transforms: OpenCV's numbers, and slow versions that do one obvious thing after the other."""

import colorsys
import math

import numpy as np
import pytest
import torch

from training.transfer.semantic.photometric import distort, hsv_to_rgb, rgb_to_hsv
from training.transfer.semantic.transforms import Augmentation, Box, crop_labels, crop_pixels, fit, normalize

GREY = torch.tensor([[0, 2, 8, 18], [32, 50, 72, 98], [128, 162, 200, 242]], dtype=torch.uint8)


def draw_scene(height, width, classes=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)
    blocks = torch.randint(0, classes, (math.ceil(height / 8), math.ceil(width / 8)), generator=rng)
    truth = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].byte()
    truth[0, 0] = 255
    return image, truth


def test_resized_values_are_those_of_opencv():
    """``cv2.resize`` 4.8.1 of GREY, by INTER_LINEAR and INTER_NEAREST."""
    larger = [
        [0, 1, 3, 7, 13, 18],
        [13, 17, 23, 31, 42, 50],
        [32, 41, 54, 68, 85, 98],
        [90, 103, 122, 143, 166, 184],
        [128, 145, 168, 194, 221, 242],
    ]
    nearest = [[0, 0, 2, 8, 8, 18], [32, 32, 50, 72, 72, 98], [128, 128, 162, 200, 200, 242]]
    found = crop_pixels(GREY.expand(3, 3, 4), (5, 6)).int()
    assert (found - torch.tensor(larger)).abs().max() <= 1
    assert (
        crop_pixels(GREY.expand(3, 3, 4), (2, 3)).int() - torch.tensor([[9, 19, 35], [109, 151, 200]])
    ).abs().max() <= 1
    labels = crop_labels(GREY, (5, 6), Box(0, 0, 5, 6))
    assert labels.tolist() == [nearest[0], nearest[0], nearest[1], nearest[1], nearest[2]]
    assert crop_labels(GREY, (2, 3), Box(0, 0, 2, 3)).tolist() == [[0, 2, 8], [32, 50, 72]]


@pytest.mark.parametrize("size", [(41, 67), (20, 33), (37, 53)])
def test_a_part_is_that_of_the_whole_resized(size):
    image, truth = draw_scene(37, 53)
    whole, labels = crop_pixels(image, size), crop_labels(truth, size, Box(0, 0, *size))
    box = Box(3, 5, 15, 17)
    assert torch.equal(crop_pixels(image, size, box), whole[:, 3:18, 5:22])
    assert torch.equal(crop_labels(truth, size, box), labels[3:18, 5:22])
    reference = torch.nn.functional.interpolate(image[None].float(), size, mode="bilinear")[0]
    assert (whole - reference).abs().max() <= 0.501
    for y, x in [(0, 0), (7, 11), (size[0] - 1, size[1] - 1)]:
        assert labels[y, x] == truth[y * 37 // size[0], x * 53 // size[1]]


def test_colours_are_those_of_opencv():
    """``cv2.cvtColor`` 4.8.1 by COLOR_RGB2HSV and COLOR_HSV2RGB, of rows of 64 pixels."""
    rgb = [[7, 7, 7], [255, 0, 0], [15, 163, 33], [215, 217, 130], [248, 189, 16], [69, 184, 232], [61, 125, 10]]
    hsv = [[0, 0, 7], [0, 255, 255], [64, 232, 163], [31, 102, 217], [22, 239, 248], [99, 179, 232], [47, 235, 125]]
    back = [[7, 7, 7], [255, 0, 0], [14, 163, 34], [214, 217, 130], [248, 186, 15], [69, 183, 232], [59, 125, 9]]
    found = rgb_to_hsv(np.array([rgb], dtype=np.uint8))
    assert found.tolist() == [hsv]
    assert hsv_to_rgb(found).tolist() == [back]


def slow_distort(image, rng):
    """As MMSegmentation's class reads, pixel by pixel, with the standard library's colours."""

    def each(function, image):
        return np.array([[function(*pixel) for pixel in row] for row in image.tolist()])

    def levels(image, alpha, beta):
        return each(lambda *p: [math.trunc(min(max(v * alpha + beta, 0), 255)) for v in p], image)

    def change_hsv(image, change):
        def one(r, g, b):
            h, s, v = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
            h, s, v = change(round(h * 180) % 180, round(s * 255), round(v * 255))
            return [math.trunc(x * 255 + 1e-4) for x in colorsys.hsv_to_rgb(h / 180, s / 255, v / 255)]

        return each(one, image)

    if rng.integers(2):
        image = levels(image, 1, rng.uniform(-32, 32))
    mode = rng.integers(2)
    alpha = rng.uniform(0.5, 1.5) if rng.integers(2) else 1
    if mode:
        image = levels(image, alpha, 0)
    if rng.integers(2):
        factor = rng.uniform(0.5, 1.5)
        image = change_hsv(image, lambda h, s, v: (h, math.trunc(min(s * factor, 255)), v))
    if rng.integers(2):
        turn = int(rng.integers(-18, 18))
        image = change_hsv(image, lambda h, s, v: ((h + turn) % 180, s, v))
    return image if mode else levels(image, alpha, 0)


def test_colours_are_distorted_as_mmsegmentation_does():
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    changed = 0
    for seed in range(40):
        found = distort(image, np.random.default_rng(seed))
        assert found.dtype == np.uint8
        difference = np.abs(found - slow_distort(image, np.random.default_rng(seed)))
        assert np.quantile(difference, 0.9) <= 2, seed  # a hue may round to its neighbour
        assert difference.max() <= 16, seed
        changed += (found != image).any()
    assert 30 < changed < 40


def slow_augment(image, truth, rng, crop, scale, max_share):
    """Resize all, then cut, flip and pad, pixel by pixel; the draws are those of the fast version."""
    ratio = rng.uniform(0.5, 2.0)
    height, width = truth.shape
    long, short = (int(side * ratio) for side in scale)
    factor = min(long / max(height, width), short / min(height, width))
    h, w = int(height * factor + 0.5), int(width * factor + 0.5)
    resized = torch.nn.functional.interpolate(image[None].float(), (h, w), mode="bilinear")[0]
    labels = torch.tensor([[int(truth[y * height // h, x * width // w]) for x in range(w)] for y in range(h)])
    for _ in range(11):
        top, left = int(rng.integers(max(h - crop, 0) + 1)), int(rng.integers(max(w - crop, 0) + 1))
        own = labels[top : top + crop, left : left + crop]
        counts = [int((own == label).sum()) for label in set(own.flatten().tolist()) - {255}]
        if max_share >= 1 or (len(counts) > 1 and max(counts) / sum(counts) < max_share):
            break
    pixels = resized[:, top : top + crop, left : left + crop]
    if rng.random() < 0.5:
        pixels, own = pixels.flip(2), own.flip(1)
    padded, without = torch.zeros(3, crop, crop), torch.full((crop, crop), 255)
    padded[:, : own.shape[0], : own.shape[1]] = pixels
    without[: own.shape[0], : own.shape[1]] = own
    return padded, without, list(own.shape)


@pytest.mark.parametrize("max_share", [1.0, 0.35])
def test_crops_are_those_of_the_slow_version(max_share):
    image, truth = draw_scene(24, 40)
    augment = Augmentation(24, (48, 24), max_share=max_share)
    padded = 0
    for seed in range(12):
        found = augment(image, truth, np.random.default_rng(seed))
        pixels, labels, size = slow_augment(image, truth, np.random.default_rng(seed), 24, (48, 24), max_share)
        assert found.size.tolist() == size
        assert torch.equal(found.truth.long(), labels)
        assert (found.image - pixels).abs().max() <= 0.502
        padded += size != [24, 24]
    assert padded > 2


def test_a_crop_full_of_one_class_is_drawn_again():
    """A stripe of the second class is seen by few crops: nearly all that are kept show it."""
    image, truth = torch.zeros(3, 32, 256, dtype=torch.uint8), torch.zeros(32, 256, dtype=torch.uint8)
    truth[:, 100:116] = 1

    def seen(share):
        augment = Augmentation(32, (256, 32), ratios=(1, 1), max_share=share)
        return np.mean([(augment(image, truth, np.random.default_rng(s)).truth == 1).any() for s in range(60)])

    assert seen(1.0) < 0.35
    assert seen(0.75) > 0.65


def test_images_and_masks_are_turned_alike():
    """An image that is its mask stays it, wherever it is cut and whether it is flipped or not."""
    _, truth = draw_scene(40, 60, classes=2)
    truth[0, 0] = 0
    image = (truth * 200).expand(3, -1, -1)
    augment = Augmentation(32, (60, 40))
    flips = set()
    for seed in range(10):
        crop = augment(image, truth, np.random.default_rng(seed))
        rows, columns = crop.size.tolist()
        same = (crop.image[0, :rows, :columns] > 100) == (crop.truth[:rows, :columns] == 1)
        assert same.float().mean() > 0.85
        rng = np.random.default_rng(seed)
        rng.uniform(), rng.integers(9), rng.integers(9)
        flips.add(rng.random() < 0.5)
    assert flips == {True, False}


@pytest.mark.parametrize(
    ("sides", "scale", "expected"),
    [
        ((375, 500), (2049, 513), (513, 684)),
        ((100, 1000), (2049, 513), (205, 2049)),
        ((1, 1000), (64, 32), (1, 64)),
    ],
)
def test_an_image_keeps_its_proportions(sides, scale, expected):
    assert fit(*sides, scale) == expected
    assert fit(*sides[::-1], scale) == expected[::-1]


def test_the_padding_is_zero_after_normalising():
    image, truth = draw_scene(20, 30)
    cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    crop = Augmentation(32, (30, 20), ratios=(1, 1))(image, truth, np.random.default_rng(0))
    assert crop.size.tolist() == [20, 30]
    found = normalize(crop.image[None], cfg, crop.size[None])[0]
    assert not found[:, 20:].any()
    assert not found[:, :, 30:].any()
    assert crop.truth[20:].eq(255).all()
    assert crop.truth[:, 30:].eq(255).all()
    expected = crop.image[:, :20, :30] / 255 - torch.tensor(cfg["mean"])[:, None, None]
    torch.testing.assert_close(found[:, :20, :30], expected / torch.tensor(cfg["std"])[:, None, None])
