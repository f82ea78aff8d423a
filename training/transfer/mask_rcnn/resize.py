"""Resizing by the short side, as in Detectron2: Pillow, bilinear, rounded sizes."""

import numpy as np
from PIL import Image

__all__ = ["resize", "resized_size"]


def resized_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return height and width for a short side of ``short``, or less if the long side would exceed ``longest``.

    Rounded to whole pixels, half up.
    """
    scale = short / min(height, width)
    new: tuple[float, float] = (short, scale * width) if height < width else (scale * height, short)
    if max(new) > longest:
        scale = longest / max(new)
        new = (new[0] * scale, new[1] * scale)
    return int(new[0] + 0.5), int(new[1] + 0.5)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 H x W x 3 image to ``size`` (height, width)."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
