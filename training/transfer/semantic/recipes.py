"""The paper's recipes (supplementary A.2.2), as its authors ran them on MMSegmentation."""

from dataclasses import dataclass, replace
from typing import Literal

from training.transfer.semantic.model import Head

__all__ = ["ADE20K", "CITYSCAPES", "RECIPES", "VOC", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a network is made, trained and tested."""

    output_stride: int
    """Pixels of an image for a cell of the last map: stages beyond are dilated."""
    head: Head
    """On the last map."""
    auxiliary: Head | None
    """On the map before."""
    align_corners: bool
    """Of the resizing of scores."""
    crop: int
    """Side of the crops, in pixels."""
    scale: tuple[int, int]
    """Long and short side, in pixels, within which images are enlarged or reduced before the random factor."""
    lr: float
    """At the beginning, of SGD with momentum 0.9."""
    weight_decay: float
    """Of all parameters."""
    steps: int
    """Of training."""
    policy: Literal["step", "poly"] = "step"
    """Learning rate: a tenth after 70 and again after 90 % of the steps, or (1 - share of the steps) ** 0.9."""
    min_lr: float = 0.0
    """Where poly ends."""
    auxiliary_weight: float = 0.4
    """Of the auxiliary head's loss."""
    ratios: tuple[float, float] = (0.5, 2.0)
    """Range of the random factor of the scale."""
    max_share: float = 1.0
    """Of a crop's labelled pixels that one class may have: other crops are tried, up to ten."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue."""
    test_scale: tuple[int, int] | None = None
    """Long and short side within which a test image is resized; None keeps its size."""
    window: int | None = None
    """Side of the windows a test image is covered with, in pixels; None takes it whole."""
    window_stride: int | None = None
    """From one window to the next."""


VOC = Recipe(
    output_stride=16,
    head=Head(256, dilation=6),
    auxiliary=None,
    align_corners=True,
    crop=513,
    scale=(2049, 513),
    lr=0.003,
    weight_decay=1e-4,
    steps=30_000,
)
CITYSCAPES = replace(VOC, crop=769, scale=(2049, 1025), lr=0.01, steps=90_000, window=769, window_stride=513)
ADE20K = Recipe(
    output_stride=8,
    head=Head(512, concat_input=True, dropout=0.1),
    auxiliary=Head(256, convs=1, dropout=0.1),
    align_corners=False,
    crop=512,
    scale=(2048, 512),
    lr=0.01,
    weight_decay=5e-4,
    steps=80_000,
    policy="poly",
    min_lr=1e-4,
    max_share=0.75,
    photometric=True,
    test_scale=(2048, 512),
)

RECIPES: dict[str, Recipe] = {"voc": VOC, "cityscapes": CITYSCAPES, "ade20k": ADE20K}
