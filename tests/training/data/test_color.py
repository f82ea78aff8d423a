"""The batched colours: against torchvision image by image, PIL and scipy; frequencies; independence."""

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2 import functional as F

from training.data import color
from training.data.color import Column

SIZE = 24
UNTOUCHED = np.zeros(len(Column), dtype=np.float32)
UNTOUCHED[Column.FIRST : Column.GRAY] = -1
REFERENCES = {
    color.brightness: F.adjust_brightness,
    color.contrast: F.adjust_contrast,
    color.saturation: F.adjust_saturation,
    color.hue: F.adjust_hue,
}
SOME = {Column.BRIGHTNESS: 1.4, Column.CONTRAST: 0.6, Column.SATURATION: 0.8, Column.HUE: 0.1}


def make_images(count: int, seed: int = 0) -> torch.Tensor:
    """Noise, except for smooth colours in the first, greys in the second, pure colours in the third."""
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    ramp = torch.linspace(0, 255, SIZE)
    images[0] = torch.stack((ramp.expand(SIZE, -1), ramp.expand(SIZE, -1).T, ramp.flip(0).expand(SIZE, -1)))
    if count > 2:
        images[1] = images[1, :1]
        images[2] = torch.arange(8).repeat(SIZE * SIZE // 8).view(SIZE, SIZE) >> torch.arange(3).view(3, 1, 1) & 1
        images[2] *= 255
    return images.to(torch.uint8)


def row(**columns: float) -> torch.Tensor:
    parameters = UNTOUCHED.copy()
    for name, value in columns.items():
        parameters[Column[name]] = value
    return torch.from_numpy(parameters)


def undo_normalize(images: torch.Tensor) -> torch.Tensor:
    return images * torch.tensor(color.STD).view(3, 1, 1) + torch.tensor(color.MEAN).view(3, 1, 1)


def draw_rows(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([color.draw(1 + index % 2, rng) for index in range(count)]))


@pytest.mark.parametrize("operation", REFERENCES, ids=lambda operation: operation.__name__)
def test_jitter_equals_torchvision_image_by_image(operation):
    images = make_images(9) / 255
    amounts = torch.linspace(-0.5, 0.5, 9) if operation is color.hue else torch.linspace(0, 2, 9)
    expected = [REFERENCES[operation](image, float(amount)) for image, amount in zip(images, amounts, strict=True)]
    torch.testing.assert_close(operation(images, amounts), torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("operation", "low", "high", "mean", "most"),
    [
        (color.brightness, 0.6, 1.4, 0.5, 1.0),
        (color.contrast, 0.6, 1.4, 0.5, 1.1),
        (color.saturation, 0.8, 1.2, 0.5, 1.2),
        (color.hue, -0.1, 0.1, 1.4, 13),  # Pillow knows 256 hues and 256 saturations
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_jitter_is_close_to_8_bit_arithmetic(operation, low, high, mean, most):
    """Over the amounts that are drawn, in grey levels: torchvision's on tensors, which cuts off, and Pillow's."""
    images, amounts = make_images(9), torch.linspace(low, high, 9)
    levels = operation(images / 255, amounts) * 255
    for pil_image, amount, ours in zip(images, amounts.tolist(), levels, strict=True):
        image = Image.fromarray(pil_image.permute(1, 2, 0).numpy())
        pillows = torch.from_numpy(np.array(REFERENCES[operation](image, amount))).permute(2, 0, 1)
        for other, bounds in ((REFERENCES[operation](pil_image, amount), (1, 1.3)), (pillows, (mean, most))):
            difference = (ours - other).abs()
            assert difference.mean() < bounds[0] + 1e-2
            assert difference.max() < bounds[1] + 1e-2


def test_grey_equals_torchvision():
    images = make_images(4) / 255
    torch.testing.assert_close(color.gray(images), F.rgb_to_grayscale(images, 3), rtol=0, atol=1e-6)


def test_solarise_inverts_the_grey_levels_pil_inverts():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(levels), threshold=128))
    images = torch.from_numpy(levels).expand(1, 3, 16, 16)
    changed = undo_normalize(color.apply(images, row(SOLARIZE=1)[None])) * 255
    assert np.array_equal(changed[0, 0].round().numpy(), expected)


def test_blur_equals_scipy_with_repeated_borders():
    images = make_images(5) / 255
    sigmas = torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0])
    blurred = color.blur(images, sigmas)
    for image, sigma, result in zip(images, sigmas.tolist(), blurred, strict=True):
        for channel, expected in zip(image, result, strict=True):
            line = gaussian_filter(channel.double().numpy(), sigma, mode="nearest", radius=8)
            np.testing.assert_allclose(expected.numpy(), line, rtol=0, atol=2e-6)


def test_blur_works_on_views_smaller_than_its_kernel():
    images = make_images(2)[..., :3, :3] / 255
    blurred = color.blur(images, torch.tensor([2.0, 2.0]))
    expected = gaussian_filter(images[0, 0].numpy(), 2.0, mode="nearest", radius=8)
    np.testing.assert_allclose(blurred[0, 0].numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_close_to_pil(sigma):
    pil_image = make_images(1)[0]
    image = Image.fromarray(pil_image.permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(image.filter(ImageFilter.GaussianBlur(sigma)))).permute(2, 0, 1)
    blurred = color.blur(pil_image[None] / 255, torch.tensor([sigma]))[0] * 255
    assert (blurred - expected).abs().mean() < 1


def test_jitter_follows_each_images_own_order():
    orders = list(permutations(SOME))
    image = make_images(1)[0]
    named = {column.name: amount for column, amount in SOME.items()}
    turns = [dict(zip(("FIRST", "SECOND", "THIRD", "FOURTH"), order, strict=True)) for order in orders]
    results = undo_normalize(
        color.apply(image.repeat(24, 1, 1, 1), torch.stack([row(**named, **t) for t in turns]))
    )
    for order, result in zip(orders, results, strict=True):
        expected = image / 255
        for column in order:
            expected = REFERENCES[color.OPERATIONS[column]](expected, SOME[column])
        torch.testing.assert_close(result, expected, rtol=0, atol=5e-6)
    assert len({tuple(result.flatten().mul(1e3).round().tolist()) for result in results}) > 12


def test_grey_blur_and_solarise_come_in_this_order_after_the_jitter():
    image = make_images(1)
    parameters = row(BRIGHTNESS=1.4, FIRST=Column.BRIGHTNESS, GRAY=1, SIGMA=1.5, SOLARIZE=1)[None]
    expected = F.rgb_to_grayscale(F.adjust_brightness(image / 255, 1.4), 3)
    expected = color.solarize(color.blur(expected, torch.tensor([1.5])))
    torch.testing.assert_close(undo_normalize(color.apply(image, parameters)), expected, rtol=0, atol=2e-6)


def test_a_batch_equals_its_images_one_by_one():
    images, parameters = make_images(40), draw_rows(40)
    alone = [color.apply(image[None], own[None])[0] for image, own in zip(images, parameters, strict=True)]
    torch.testing.assert_close(color.apply(images, parameters), torch.stack(alone), rtol=0, atol=1e-5)


def test_untouched_images_are_only_normalised():
    images = make_images(3)
    expected = F.normalize(images / 255, list(color.MEAN), list(color.STD))
    torch.testing.assert_close(color.apply(images, row().repeat(3, 1)), expected)


def test_output_is_float32_and_the_input_stays_as_it_was():
    images, parameters = make_images(8), draw_rows(8)
    before = images.clone(), parameters.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = color.apply(images, parameters)
    result = color.apply(images, parameters)
    assert result.dtype == torch.float32
    assert result.shape == images.shape
    assert torch.equal(result, under_autocast)
    assert torch.equal(images, before[0])
    assert torch.equal(parameters, before[1])


@pytest.mark.parametrize("operation", [*REFERENCES, color.blur], ids=lambda operation: operation.__name__)
def test_operations_do_not_write_to_their_images(operation):
    images = make_images(3) / 255
    before = images.clone()
    operation(images, torch.tensor([0.3, 0.4, 0.5]))
    color.gray(images), color.solarize(images)
    assert torch.equal(images, before)


def test_memory_layout_does_not_matter():
    images, parameters = make_images(6), draw_rows(6)
    strided = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(color.apply(strided, parameters), color.apply(images, parameters))


@pytest.mark.parametrize(("view", "blurred", "solarised"), [(1, 1.0, 0.0), (2, 0.1, 0.2)])
def test_parameters_are_distributed_as_in_the_paper(view, blurred, solarised):
    rng = np.random.default_rng(5)
    draws = np.stack([color.draw(view, rng) for _ in range(20_000)])
    assert draws.dtype == np.float32
    jittered = draws[:, Column.FIRST] >= 0
    sigma = draws[:, Column.SIGMA]
    grey, inverted = draws[:, Column.GRAY] == 1, draws[:, Column.SOLARIZE] == 1
    for expected, observed in [(0.8, jittered), (0.2, grey), (blurred, sigma > 0), (solarised, inverted)]:
        assert observed.mean() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5)
    for column, low, high in [(0, 0.6, 1.4), (1, 0.6, 1.4), (2, 0.8, 1.2), (3, -0.1, 0.1)]:
        assert stats.kstest(draws[:, column], "uniform", (low, high - low)).pvalue > 1e-3
    assert stats.kstest(sigma[sigma > 0], "uniform", (0.1, 1.9)).pvalue > 1e-3
    orders, counts = np.unique(draws[jittered, Column.FIRST : Column.GRAY], axis=0, return_counts=True)
    assert {tuple(order) for order in orders} == set(permutations(range(4)))
    assert stats.chisquare(counts).pvalue > 1e-3
    assert (draws[~jittered, Column.FIRST : Column.GRAY] == -1).all()


def test_draw_is_a_function_of_the_generator():
    first, again, other = (color.draw(2, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_errors_name_the_way_out():
    images, parameters = make_images(2), draw_rows(2)
    with pytest.raises(ValueError, match="numbered 1 and 2"):
        color.draw(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="uint8"):
        color.apply(images.float(), parameters)
    with pytest.raises(ValueError, match=r"\(B, 3, S, S\)"):
        color.apply(images[..., :-1], parameters)
    with pytest.raises(ValueError, match=r"one row of color\.draw per image"):
        color.apply(images, parameters[:1])
    with pytest.raises(ValueError, match="leave them on the CPU"):
        color.apply(images, parameters.to("meta"))


@pytest.mark.gpu
def test_the_device_agrees_with_the_cpu_and_is_not_waited_for():
    images, parameters = make_images(64), draw_rows(64)
    on_device = images.cuda()
    color.apply(on_device, parameters)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = color.apply(on_device, parameters)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), color.apply(images, parameters), rtol=0, atol=1e-4)
