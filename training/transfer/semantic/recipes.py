"""The paper's MMSegmentation recipes (supplementary A.2.2), and the command line."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from training.engine.cli import parse_recipe
from training.engine.run import Schedule
from training.engine.settings import RunSettings
from training.transfer.semantic.model import Average, Head

__all__ = ["ADE20K", "CITYSCAPES", "RECIPES", "VOC", "Recipe", "lr_at", "parse"]

T = TypeVar("T")
Hidden = Annotated[T, tyro.conf.Fixed, tyro.conf.Suppress]
"""A field that is not an option of the command line."""


FCN_16 = Head(256, dilation=6)


@dataclass(frozen=True)
class Recipe(RunSettings):
    """Settings of network, training and test.

    Raises:
        ValueError: a value is invalid.
    """

    RESUMABLE = RunSettings.RESUMABLE | {"data", "masks", "classes", "test_every", "save_every", "keep_every"}

    data: Path | None = None
    """Folder of the data set in its published layout; with --masks, a folder with any images in a train and a val
    folder, such as train2017 and val2017."""
    masks: Path | None = None
    """Folder of masks for your own images: PNGs of class indices, 255 for none, at the same relative paths as the
    images, and classes.txt."""
    classes: Path | None = None
    """Text file of class names for --masks, one per line; None: classes.txt in --masks."""

    backbone: str = "slotcon_r50"
    """Name of a timm model with weights, or the folder of a pre-training run or of its export."""
    scratch: bool = False
    """Start from random weights, as baseline."""
    average: Average = "all"
    """Average the loss over all pixels, with zero for those without label, as MMSegmentation and the paper; or over
    labelled pixels, as torch's mean."""
    batch_size: int = 16
    """Images per optimisation step, over all processes and accumulation steps."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision of the layers (losses use float32): no is float32, as in the paper; auto uses accelerate's setting,
    else bf16 on GPUs that support it, and fp16 on others."""
    steps: int = 30_000
    """Optimisation steps."""
    lr: float = 0.003
    """Initial learning rate of SGD with momentum 0.9."""
    weight_decay: float = 1e-4
    """Weight decay of all parameters."""
    policy: Literal["step", "poly"] = "step"
    """Learning-rate schedule: step multiplies by 0.1 after 70 % and 90 % of the steps; poly has power 0.9."""
    min_lr: float = 0.0
    """Final learning rate of poly."""

    crop: int = 513
    """Side of the crops, in pixels."""
    scale: tuple[int, int] = (2049, 513)
    """Maximum long and short side in pixels after resizing, before the random factor."""
    ratios: tuple[float, float] = (0.5, 2.0)
    """Range of the random factor of the scale."""
    max_share: float = 1.0
    """Maximum fraction of a crop's labelled pixels of one class; otherwise up to ten other crops are tried."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue."""

    test_scale: tuple[int, int] | None = None
    """Maximum long and short side of a resized test image; None keeps its size."""
    window: int | None = None
    """Side of the sliding test windows in pixels; None: whole images."""
    window_stride: int | None = None
    """Stride of the test windows in pixels; None: --window."""
    test_every: int = 5_000
    """Steps between tests on val; 0: only at the end."""
    shown: int = 8
    """Test images in grid.png."""
    save_every: int = 1_000
    """Steps between checkpoints; the last step always has one."""
    keep_every: int = 0
    """Steps between checkpoints that are never deleted; a multiple of --save-every, or 0 for none."""

    output_stride: Hidden[int] = 16
    """Stride of the last map in pixels; later stages are dilated."""
    head: Hidden[Head] = FCN_16
    """On the last map."""
    auxiliary: Hidden[Head | None] = None
    """On the map before the last."""
    auxiliary_weight: float = 0.4
    """Weight of the auxiliary loss, if the recipe has one."""
    align_corners: Hidden[bool] = True
    """Of the resizing of logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "crop", "save_every", "window", "window_stride", "shown"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("lr", "max_share"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("weight_decay", "min_lr", "test_every", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 < self.ratios[0] <= self.ratios[1]:
            raise ValueError(f"ratios={self.ratios} must be (smallest, largest), both above 0")
        if self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every={self.keep_every} is not a multiple of save_every={self.save_every}: change one"
            )
        for name in ("scale", "test_scale"):
            value = getattr(self, name)
            if value is not None and min(value) < 1:
                raise ValueError(f"{name}={value} must be at least 1 pixel")
        if self.window_stride is not None and self.window_stride > (self.window or 0):
            raise ValueError(
                f"window_stride={self.window_stride} skips pixels between windows of {self.window}: "
                "make it at most --window"
            )

    def schedule(self) -> Schedule:
        """Return the total steps and the checkpoint intervals."""
        return Schedule(self.steps, self.save_every, self.keep_every)


def lr_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step, counted from 0."""
    if recipe.policy == "poly":
        return (recipe.lr - recipe.min_lr) * (1 - step / recipe.steps) ** 0.9 + recipe.min_lr
    return recipe.lr * 0.1 ** sum(100 * step >= percent * recipe.steps for percent in (70, 90))


VOC = Recipe()
CITYSCAPES = replace(
    VOC, crop=769, scale=(2049, 1025), lr=0.01, steps=90_000, window=769, window_stride=513, test_every=15_000
)
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
    test_every=16_000,
)

RECIPES: dict[str, tuple[str, Recipe]] = {
    "voc": ("PASCAL VOC 2012, train_aug and val: FCN-16s, 30,000 steps. Reported: 71.6 mIoU.", VOC),
    "cityscapes": ("Cityscapes, fine train and val: FCN-16s, 90,000 steps. Reported: 76.2 mIoU.", CITYSCAPES),
    "ade20k": ("ADE20K, training and validation: FCN-8s, 80,000 steps. Reported: 39.0 mIoU.", ADE20K),
}

HELP = """\
usage: python training/transfer/segmentation.py voc|cityscapes|ade20k --data DIR [options]
       accelerate launch training/transfer/segmentation.py voc|cityscapes|ade20k --data DIR [options]

Recipes, each with its own --help:
"""


def parse(argv: list[str]) -> tuple[str, Recipe]:
    """Parse the name of a recipe and the options that override it."""
    return parse_recipe(argv, RECIPES, HELP, "segmentation.py")
