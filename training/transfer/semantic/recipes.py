"""The paper's recipes (supplementary A.2.2), as its authors ran them on MMSegmentation, and the command line."""

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
"""Of a recipe, and no option."""


FCN_16 = Head(256, dilation=6)


@dataclass(frozen=True)
class Recipe(RunSettings):
    """How a network is made, trained and tested.

    Raises:
        ValueError: for values that cannot work, naming the fix.
    """

    RESUMABLE = RunSettings.RESUMABLE | {"data", "masks", "classes", "test_every", "save_every", "keep_every"}

    data: Path | None = None
    """Folder of the data set in its published layout; with --masks, of any images, in a folder for train and one
    for val, such as train2017 and val2017."""
    masks: Path | None = None
    """Folder of masks for images of any kind: PNGs of the class of each pixel, 255 for none, at the places of the
    images, and classes.txt."""
    classes: Path | None = None
    """Text file of the names of the classes of --masks, one a line; None takes classes.txt there."""

    backbone: str = "slotcon_r50"
    """Name of a timm model with weights, or the folder of a pre-training run or of its export."""
    scratch: bool = False
    """Begin with random weights, for comparison."""
    average: Average = "all"
    """Pixels that the loss is averaged over: all, those without a label counting as zero, as MMSegmentation does
    and the paper's recipes were trained; or labelled, as torch's mean."""
    batch_size: int = 16
    """Images in an optimisation step, over all processes and accumulation steps."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision of the layers (losses stay in float32): no is float32, as the paper; auto takes what accelerate was
    told, else bf16 on GPUs that have it, and fp16 on others."""
    steps: int = 30_000
    """Optimisation steps."""
    lr: float = 0.003
    """Learning rate at the beginning, of SGD with momentum 0.9."""
    weight_decay: float = 1e-4
    """Of all parameters."""
    policy: Literal["step", "poly"] = "step"
    """Learning rate: a tenth after 70 % and again after 90 % of the steps, or (1 - share of the steps) ** 0.9."""
    min_lr: float = 0.0
    """Where poly ends."""

    crop: int = 513
    """Side of the crops, in pixels."""
    scale: tuple[int, int] = (2049, 513)
    """Long and short side, in pixels, within which images are resized before the random factor."""
    ratios: tuple[float, float] = (0.5, 2.0)
    """Range of the random factor of the scale."""
    max_share: float = 1.0
    """Of a crop's labelled pixels that one class may have: other crops are tried, up to ten; 1 takes any."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue."""

    test_scale: tuple[int, int] | None = None
    """Long and short side within which a test image is resized; None keeps its size."""
    window: int | None = None
    """Side of the windows that a test image is covered with, in pixels; None takes it whole."""
    window_stride: int | None = None
    """Pixels from one window to the next; None is that of --window."""
    test_every: int = 5_000
    """Steps between two tests on the images of val; 0 tests at the end alone."""
    shown: int = 8
    """Test images in grid.png."""
    save_every: int = 1_000
    """Steps between two checkpoints; there is always one at the end."""
    keep_every: int = 0
    """Steps between two checkpoints that are kept for good, besides; a multiple of --save-every, or 0 for none."""

    output_stride: Hidden[int] = 16
    """Pixels of an image for a cell of the last map: stages beyond are dilated."""
    head: Hidden[Head] = FCN_16
    """On the last map."""
    auxiliary: Hidden[Head | None] = None
    """On the map before."""
    auxiliary_weight: float = 0.4
    """Of the loss of the auxiliary head, where the recipe has one."""
    align_corners: Hidden[bool] = True
    """Of the resizing of scores."""

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
            raise ValueError(f"ratios={self.ratios} must rise, from above 0")
        if self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every={self.keep_every} is no multiple of save_every={self.save_every}: change one"
            )
        for name in ("scale", "test_scale"):
            value = getattr(self, name)
            if value is not None and min(value) < 1:
                raise ValueError(f"{name}={value} must be at least 1 pixel")
        if self.window_stride is not None and self.window_stride > (self.window or 0):
            raise ValueError(
                f"window_stride={self.window_stride} leaves pixels out between windows of {self.window}: "
                "make it at most --window"
            )

    def schedule(self) -> Schedule:
        """The steps of a run, and those at which it is saved."""
        return Schedule(self.steps, self.save_every, self.keep_every)


def lr_at(step: int, recipe: Recipe) -> float:
    """The learning rate of the step that has ``step`` steps before it."""
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
    """Read the name of a recipe and the options that override it."""
    return parse_recipe(argv, RECIPES, HELP, "segmentation.py")
