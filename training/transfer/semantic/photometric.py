"""MMSegmentation's photometric distortion of 8-bit images, with the rounding of OpenCV's colour conversions.

Dimensions: H x W pixels.
"""

import numpy as np

__all__ = ["distort", "hsv_to_rgb", "rgb_to_hsv", "scale_levels", "scale_saturation", "shift_hue"]

BRIGHTNESS = 32  # maximum change in levels
FACTORS = (0.5, 1.5)  # of contrast and of saturation
HUE = 18  # maximum change, in 180ths of the colour circle
SHIFT = 12  # bits of OpenCV's fixed-point reciprocals
HUES = 180


def _reciprocals(numerator: float) -> np.ndarray:
    levels = np.arange(1, 256)
    return np.concatenate([[0], np.rint(numerator * 2**SHIFT / levels)]).astype(np.int32)


OF_VALUE, OF_CHROMA = _reciprocals(255), _reciprocals(HUES / 6)


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distort brightness, contrast, saturation and hue, each with probability 0.5; contrast either second or last.

    Args:
        image: uint8 H x W x 3, RGB.
        rng: the source of all randomness.
    """
    if rng.integers(2):
        image = scale_levels(image, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.integers(2)
    factor = rng.uniform(*FACTORS) if rng.integers(2) else None
    if contrast_first and factor is not None:
        image = scale_levels(image, factor)
    if rng.integers(2):
        image = scale_saturation(image, rng.uniform(*FACTORS))
    if rng.integers(2):
        image = shift_hue(image, int(rng.integers(-HUE, HUE)))
    if not contrast_first and factor is not None:
        image = scale_levels(image, factor)
    return image


def scale_levels(levels: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    """Compute ``levels * factor + offset`` of uint8 levels, clipped to [0, 255] and truncated."""
    changed = levels.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return changed.clip(0, 255).astype(np.uint8)


def scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the saturation of a uint8 H x W x 3 image."""
    hsv = rgb_to_hsv(image)
    hsv[..., 1] = scale_levels(hsv[..., 1], factor)
    return hsv_to_rgb(hsv)


def shift_hue(image: np.ndarray, steps: int) -> np.ndarray:
    """Rotate the hues of a uint8 H x W x 3 image by ``steps`` 180ths of the colour circle."""
    hsv = rgb_to_hsv(image)
    hsv[..., 0] = (hsv[..., 0].astype(int) + steps) % HUES
    return hsv_to_rgb(hsv)


def rgb_to_hsv(image: np.ndarray) -> np.ndarray:
    """Convert uint8 RGB to uint8 hue in [0, 180), saturation and value, H x W x 3."""
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    half = 1 << (SHIFT - 1)
    saturation = (chroma * OF_VALUE[value] + half) >> SHIFT
    sixths = np.where(
        value == red, green - blue, np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    hue = (sixths * OF_CHROMA[chroma] + half) >> SHIFT
    return np.stack([np.where(hue < 0, hue + HUES, hue), saturation, value], axis=-1).astype(np.uint8)


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Convert back from :func:`rgb_to_hsv`, within 8-bit rounding.

    Truncates like OpenCV's vectorised code; one value in 4,000 differs from it, by one level.
    """
    hue, saturation, value = np.moveaxis(hsv.astype(np.float32), -1, 0)
    saturation, value = saturation * np.float32(1 / 255), value * np.float32(1 / 255)
    sixths = hue * np.float32(6 / HUES)
    sector = sixths.astype(np.int32)
    part = sixths - sector
    low = value * (1 - saturation)
    falling, rising = value * (1 - saturation * part), value * (1 - saturation * (1 - part))
    levels = np.stack([value, low, falling, rising])
    order = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])[sector % 6]
    rgb = np.take_along_axis(levels, np.moveaxis(order, -1, 0), axis=0)
    return np.moveaxis((rgb * np.float32(255)).astype(np.uint8), 0, -1)
