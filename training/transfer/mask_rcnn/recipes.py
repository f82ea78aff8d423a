"""The paper's Detectron2 recipes (supplementary A.2.1), and the command line."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from training.engine.cli import parse_recipe
from training.engine.run import Schedule
from training.engine.settings import RunSettings

__all__ = ["RECIPES", "Recipe", "lr_at", "parse"]


@dataclass(frozen=True)
class Recipe(RunSettings):
    """Settings of detector, training and test.

    Raises:
        ValueError: a value is invalid.
    """

    RESUMABLE = RunSettings.RESUMABLE | {"data", "save_every", "keep_every", "shown"}
    FIXED_SIZE = False

    data: Path | None = None
    """Folder of a data set in COCO's format: annotations/instances_train2017.json and val2017, with or without the
    year, and folders of images; or a folder of each split with its _annotations.coco.json."""
    backbone: str = "slotcon_r50"
    """Name of a timm model with weights, or the folder of a pre-training run or of its export."""
    scratch: bool = False
    """Start from random weights, as baseline."""
    batch_size: int = 16
    """Images per optimisation step, over all processes and accumulation steps."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision of the layers (losses use float32): no is float32, as in the paper; auto uses accelerate's setting,
    else bf16 on GPUs that support it, and fp16 on others."""
    steps: int = 90_000
    """Optimisation steps; the learning rate is multiplied by 0.1 after 2/3 and 8/9 of them."""
    lr: float = 0.02
    """Learning rate of SGD with momentum 0.9."""
    warmup_steps: int = 1_000
    """Steps of linear warmup, from 0.001 of the learning rate."""
    weight_decay: float = 1e-4
    """Weight decay of all parameters except those of norms."""
    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Short sides of training images in pixels, one drawn per image."""
    test_side: int = 800
    """Short side of test images in pixels."""
    longest_side: int = 1333
    """Maximum long side in pixels, in training and test."""

    channels: int = 256
    """Channels of the pyramid and the heads."""
    proposals: int = 1_000
    """Maximum proposals per image."""
    regions: int = 512
    """Regions sampled per image for the losses of the heads."""
    recalibration_steps: int = 200
    """Training batches for re-estimating BatchNorm statistics before each test; 0 to skip."""
    test_every: int = 0
    """Steps between tests on val; 0: only at the end."""
    shown: int = 24
    """Test images in detections.html."""
    save_every: int = 1_000
    """Steps between checkpoints; the last step always has one."""
    keep_every: int = 0
    """Steps between checkpoints that are never deleted; a multiple of --save-every, or 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = {f"short_sides={self.short_sides}": min(self.short_sides, default=0)}
        names = ("steps", "test_side", "longest_side", "channels", "proposals", "regions", "save_every", "shown")
        for what, value in {**sides, **{f"{n}={getattr(self, n)}": getattr(self, n) for n in names}}.items():
            if value < 1:
                raise ValueError(f"{what} must be at least 1")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be positive")
        for name in ("weight_decay", "warmup_steps", "recalibration_steps", "test_every", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every={self.keep_every} is no multiple of save_every={self.save_every}: change one"
            )

    def schedule(self) -> Schedule:
        """Return the total steps and the checkpoint intervals."""
        return Schedule(self.steps, self.save_every, self.keep_every)


def lr_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step, counted from 0."""
    lr = recipe.lr * 0.1 ** sum(9 * step >= ninths * recipe.steps for ninths in (6, 8))
    if step < recipe.warmup_steps:
        done = step / recipe.warmup_steps
        lr *= 0.001 * (1 - done) + done
    return lr


COCO_1X = Recipe()
RECIPES: dict[str, tuple[str, Recipe]] = {
    "coco_1x": (
        "Mask R-CNN R50-FPN on COCO train2017, 90,000 steps of 16 images. Reported for slotcon_r50.coco_800ep: "
        "41.0 box AP, 37.0 mask AP on val2017.",
        COCO_1X,
    ),
    "coco_2x": ("The same for 180,000 steps.", replace(COCO_1X, steps=180_000)),
}

HELP = """\
usage: python training/transfer/detection.py coco_1x|coco_2x --data DIR [options]
       accelerate launch training/transfer/detection.py coco_1x|coco_2x --data DIR [options]

Recipes, each with its own --help:
"""


def parse(argv: list[str]) -> tuple[str, Recipe]:
    """Parse the name of a recipe and the options that override it."""
    return parse_recipe(argv, RECIPES, HELP, "detection.py")
