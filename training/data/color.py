"""Colour augmentation (SlotCon, section 3): drawn by a data-loader worker, applied in batches on any device.

The augmentations and their probabilities are those of BYOL: jitter, grey scale, Gaussian blur, solarise. The
usual 8-bit pipeline rounds to whole grey levels after each of them; here pixels stay float32 throughout. The
distribution is the same; pixels differ by about one grey level.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# B images, n of them changed by an operation, S x S pixels, P parameters of an image.
# Every operation takes float32 (n, 3, S, S) in [0, 1] and returns the same; amounts are float32 (n,).

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB
STD = (0.229, 0.224, 0.225)

JITTER, GRAY = 0.8, 0.2  # probabilities, equal in both views
BLUR = {1: 1.0, 2: 0.1}  # probabilities by view
SOLARIZE = {1: 0.0, 2: 0.2}
LOWEST = np.array([0.6, 0.6, 0.8, -0.1])  # brightness, contrast, saturation, hue
HIGHEST = np.array([1.4, 1.4, 1.2, 0.1])
SIGMAS = (0.1, 2.0)  # pixels
RADIUS = 8  # of the blur in pixels: four times the largest sigma
CACHED = 8  # images per chunk on the CPU, small enough for its cache


class Column(IntEnum):
    """The columns of an image's parameters, float32 (P,)."""

    BRIGHTNESS = 0  # factor, 1 changes nothing
    CONTRAST = 1  # factor
    SATURATION = 2  # factor
    HUE = 3  # turns of the colour circle, 0 changes nothing
    FIRST = 4  # which of the four columns above is applied first; -1 for no jitter
    SECOND = 5
    THIRD = 6
    FOURTH = 7
    GRAY = 8  # 1 or 0
    SIGMA = 9  # of the Gaussian blur in pixels; 0 for no blur
    SOLARIZE = 10  # 1 or 0


TURNS = (Column.FIRST, Column.SECOND, Column.THIRD, Column.FOURTH)


def draw(view: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the colour parameters of one view.

    Args:
        view: 1 (always blurred, never solarised) or 2 (rarely blurred, sometimes solarised).
        rng: the source of all randomness.

    Returns:
        float32 (P,), the columns as in `Column`.

    Raises:
        ValueError: if `view` is neither 1 nor 2.

    """
    if view not in BLUR:
        raise ValueError(f"view={view}: the views are numbered 1 and 2.")
    parameters = np.zeros(len(Column), dtype=np.float32)
    parameters[: Column.FIRST] = LOWEST + (HIGHEST - LOWEST) * rng.random(4)
    parameters[Column.FIRST : Column.GRAY] = rng.permutation(4) if rng.random() < JITTER else -1
    parameters[Column.GRAY] = rng.random() < GRAY
    parameters[Column.SIGMA] = rng.uniform(*SIGMAS) if rng.random() < BLUR[view] else 0
    parameters[Column.SOLARIZE] = rng.random() < SOLARIZE[view]
    return parameters


@torch.no_grad()
def apply(images: Tensor, parameters: Tensor) -> Tensor:
    """Apply jitter, grey scale, blur and solarisation by each image's parameters, then normalise.

    The parameters stay on the CPU, where the images of each operation are selected: no device-to-host sync, and
    each operation only processes its own images. Autocast is disabled.

    Args:
        images: uint8 (B, 3, S, S), RGB, on any device; not modified.
        parameters: float32 (B, P) on the CPU, rows of `draw`.

    Returns:
        float32 (B, 3, S, S) on the device of `images`, standardised with ImageNet's mean and deviation.

    Raises:
        ValueError: if a shape, a dtype or the device of the parameters is wrong.

    """
    _check(images, parameters)
    pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    together = CACHED if images.device.type == "cpu" else len(images)
    parts = (tensor.split(together) for tensor in (pixels, images, parameters))
    with torch.autocast(images.device.type, enabled=False):
        for part, levels, own in zip(*parts, strict=True):
            part.copy_(levels).div_(255)
            _change_(part, own)
            for channel, mean, std in zip(part.unbind(1), MEAN, STD, strict=True):
                channel.sub_(mean).div_(std)
    return pixels


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale each image by its factor."""
    return (images * _per_image(factor)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its mean grey: factor 0 gives the mean, 1 the image."""
    factor = _per_image(factor)
    return (images * factor).add_((1 - factor) * _luma(images).mean((-2, -1), keepdim=True)).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its grey scale: factor 0 gives the grey scale, 1 the image."""
    factor = _per_image(factor)
    return (images * factor).add_(_luma(images).mul_(1 - factor)).clamp_(0, 1)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of each image by a fraction of the colour circle, in [-0.5, 0.5].

    The hue h is in sixths of the circle: 0 red, 2 green, 4 blue. With red, green and blue stretched to [0, 1], the
    distance of h from red is `1 - red + green + blue`, towards green or blue; and the channel at hue c is
    `min + (max - min) * clip(2 - distance(h, c), 0, 1)`.
    """
    red, green, blue = images.unbind(1)
    low, high = images.amin(1), images.amax(1)
    h = high.sub(low, alpha=2).add_(green).add_(blue).sub_(red).copysign_(green - blue)
    chroma = high.sub_(low)
    h.div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny)).add_(6 * turns.view(-1, 1, 1))
    h.sub_(h.div(6).floor_(), alpha=6)
    channels = torch.stack(((h - 3).abs_().sub_(1), 2 - (h - 2).abs_(), 2 - (h - 4).abs_()), dim=1)
    return channels.clamp_(0, 1).mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1))


def gray(images: Tensor) -> Tensor:
    """Set all channels to the ITU-R 601-2 grey value, with torchvision's weights."""
    return _luma(images).expand_as(images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with a Gaussian of its own sigma in pixels, with replicate padding.

    Separable: one depthwise convolution per axis; each image has its own normalised kernel of radius `RADIUS`.
    """
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=sigma.device)
    kernels = torch.softmax(-(offsets**2) / (2 * sigma.view(-1, 1) ** 2), dim=1).repeat_interleave(3, dim=0)
    planes = F.pad(images.flatten(0, 1).unsqueeze(0), [RADIUS] * 4, mode="replicate")
    if planes.device.type == "cpu":  # a third faster
        planes = planes.contiguous(memory_format=torch.channels_last)
    for kernel in (kernels[:, None, None, :], kernels[:, None, :, None]):
        planes = F.conv2d(planes, kernel, groups=len(kernels))
    return planes.reshape(images.shape)


def solarize(images: Tensor) -> Tensor:
    """Invert pixels above 0.5: on whole grey levels those from 128 to 255, as PIL does."""
    return torch.minimum(images, 1 - images)


OPERATIONS = {
    Column.BRIGHTNESS: brightness,
    Column.CONTRAST: contrast,
    Column.SATURATION: saturation,
    Column.HUE: hue,
}


def _change_(pixels: Tensor, parameters: Tensor) -> None:
    """Apply the operations to their images, in place."""
    operations, columns, chosen = zip(*_steps(parameters), strict=True)
    rows = _send(torch.cat(chosen), pixels.device).split([len(rows) for rows in chosen])
    amounts = _send(parameters, pixels.device)
    for operation, column, own in zip(operations, columns, rows, strict=True):
        amount = [] if column is None else [amounts[:, column]]
        if pixels.device.type == "cpu" and operation is not blur:  # views of single images avoid copies
            for row in own.tolist():
                image = pixels[row : row + 1]
                image.copy_(operation(image, *(a[row : row + 1] for a in amount)))
        elif len(own):
            changed = operation(pixels.index_select(0, own), *(a.index_select(0, own) for a in amount))
            pixels.index_copy_(0, own, changed)


def _steps(parameters: Tensor) -> Iterator[tuple[Callable[..., Tensor], Column | None, Tensor]]:
    """Yield the operations in order, each with the column of its amount, if any, and the rows it applies to."""
    for turn in TURNS:
        for column, operation in OPERATIONS.items():
            yield operation, column, _rows(parameters[:, turn] == column)
    yield gray, None, _rows(parameters[:, Column.GRAY] > 0)
    yield blur, Column.SIGMA, _rows(parameters[:, Column.SIGMA] > 0)
    yield solarize, None, _rows(parameters[:, Column.SOLARIZE] > 0)


def _rows(chosen: Tensor) -> Tensor:
    return chosen.nonzero().flatten()


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _per_image(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without a sync, which on CUDA needs pinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _check(images: Tensor, parameters: Tensor) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise ValueError(f"images must be uint8 (B, 3, S, S), not {images.dtype} {shape}: crop them first.")
    if parameters.shape != (shape[0], len(Column)):
        raise ValueError(
            f"parameters must be ({shape[0]}, {len(Column)}), one row of color.draw per image, "
            f"not {tuple(parameters.shape)}."
        )
    if parameters.device.type != "cpu":
        raise ValueError(f"parameters are on {parameters.device}: leave them on the CPU, move the images only.")
