"""Recipes of pre-training: ``RECIPES`` has every published run, and the demo.

Derived numbers: the learning rate follows from the global batch (linear scaling, section 4.1), the steps from the
data.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from slotcon_hub import SlotConConfig
from training.data.layouts import LayoutName
from training.engine.cli import parse_recipe
from training.engine.optim import OptimizerName
from training.engine.run import Schedule
from training.engine.settings import RunSettings

__all__ = ["RECIPES", "SCENES", "Recipe", "parse"]

SCENES = "scenes"


@dataclass(frozen=True)
class Recipe(RunSettings):
    """Settings of a pre-training run: data, model, objective, optimisation, and evaluation.

    Raises:
        ValueError: a value is invalid; the message names the fix.
    """

    RESUMABLE: ClassVar[frozenset[str]] = RunSettings.RESUMABLE | {
        "data",  # the location; the images themselves may not change
        "split",
        "layout",
        "save_every",
        "keep_every",
        "show_every",
        "probe",
        "label_column",
        "grad_checkpointing",
        "compile",
    }
    BF16_ON_CPU: ClassVar[bool] = True

    data: str | None = None
    """Folder of images (searched at any depth), Parquet file, URL or folder of them, hf:<name> for a data set of
    the Hugging Face Hub, or hf:<name>:<configuration>, or "scenes" for the embedded synthetic ones."""
    split: str = "train"
    """Split of a Hub data set or of Parquet files."""
    image_column: str = "image"
    """Column of a table with the images, for --data and --probe."""
    streaming: bool = False
    """Stream a data set of the Hub or Parquet files, without a copy on disk."""
    layout: LayoutName | None = None
    """Known data set: if --data is its folder, its training images are found and their number is checked. All
    images of other folders are used; None never looks for a known layout."""

    backbone: str = "slotcon_r50"
    """Any timm model with a feature map: convolutional, or a transformer (created for the size of the views). With
    a tag, such as resnet18.a1_in1k, training starts from these pretrained weights, else from random ones."""
    slotcon: Annotated[SlotConConfig, tyro.conf.arg(name="")] = field(default_factory=SlotConConfig)

    view_size: int = 224
    """Side of a view, in pixels."""
    min_crop: float = 0.08
    """Smallest area of a crop, as a fraction of the image."""
    geometric: bool = True
    """Crop and flip the views independently; without it, both views are the same crop in two colours (ablation)."""

    epochs: int = 800
    """Passes over the data."""
    accumulation_steps: int = 1
    """Micro-batches per process and step; the slot loss contrasts within one, and centre and BatchNorm are updated
    by each."""
    optimizer: OptimizerName = "lars"
    """LARS with trust coefficient 0.001, or SGD; momentum 0.9."""
    base_lr: float = 1.0
    """Peak learning rate for a batch of 256; the peak used is base_lr * batch_size / 256."""
    weight_decay: float = 1e-5
    """Weight decay of all parameters except biases and norms."""
    warmup_epochs: float = 5
    """Epochs of linear learning-rate warm-up."""
    channels_last: bool = True
    """Memory format of the network, where it works: on the CPU not with the stems of FastViT, MobileOne and RepVGG,
    whose strided 1 x 1 convolutions of the image crash in it; the numbers stay the same."""
    grad_checkpointing: bool = False
    """Recompute the student's activations in the backward: less memory, more time, the same numbers."""
    compile: bool = False
    """Compile student and teacher with torch.compile: slow start, faster steps, slightly different rounding."""

    continue_from: Path | None = None
    """Start a new run from the folder of a run, one of its checkpoints, or an authors' full checkpoint: student,
    teacher, predictor and centre are loaded, but not the optimiser's momentum."""
    continue_at: int | None = None
    """Epoch of the schedule to start at with --continue-from: 0 starts a new schedule; by default that of the
    checkpoint, or 0 if it has none."""

    save_every: int = 5
    """Epochs between checkpoints; there is always one at the end."""
    keep_every: int = 0
    """Checkpoints at multiples of this epoch are never removed; a multiple of --save-every, or 0 for none."""
    show_every: int = 5
    """Epochs between drawings of the groups, slots/epoch-*.png; 0 for none."""
    probe: str | None = None
    """Labelled images for a nearest-neighbour probe at the same epochs: a folder with train and validation splits
    of class folders or Parquet files, each of at most 100,000 images."""
    label_column: str = "label"
    """Column of a table with the labels of --probe: integers from 0, text or booleans."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("view_size", "epochs", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.base_lr <= 0:
            raise ValueError(f"base_lr={self.base_lr} must be positive")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} is longer than epochs={self.epochs}: use fewer --warmup-epochs"
            )
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop={self.min_crop} must be a fraction in (0, 1]")
        if self.show_every < 0:
            raise ValueError(f"show_every={self.show_every} must not be negative; 0 draws none")
        if self.probe and not self.show_every:
            raise ValueError("--probe is measured every --show-every epochs: make that at least 1")
        if self.keep_every < 0:
            raise ValueError(f"keep_every={self.keep_every} must not be negative; 0 for none")
        if self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every={self.keep_every} must be a multiple of save_every={self.save_every}, "
                "since checkpoints are only written then: change one of them"
            )
        if self.continue_at is not None and not 0 <= self.continue_at < self.epochs:
            raise ValueError(f"continue_at={self.continue_at} must be an epoch from 0 to {self.epochs - 1}")
        if self.continue_at is not None and self.continue_from is None:
            raise ValueError("--continue-at needs --continue-from, the checkpoint to start from")

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of the global batch."""
        return self.base_lr * self.batch_size / 256

    def steps_per_epoch(self, images: int) -> int:
        """Optimisation steps per epoch of this many images; an incomplete last batch is dropped.

        Raises:
            ValueError: there are fewer images than a batch.
        """
        if images < self.batch_size:
            raise ValueError(
                f"{images} images do not fill a batch: use --batch-size {images // 2 * 2} or less"
                if images > 3
                else f"{images} images are too few to pre-train on"
            )
        return images // self.batch_size

    def schedule(self, images: int) -> Schedule:
        """Schedule of a run over this many images."""
        epoch = self.steps_per_epoch(images)
        return Schedule(self.epochs * epoch, self.save_every * epoch, self.keep_every * epoch)


COCO = Recipe(layout="coco")
IN1K = replace(COCO, layout="imagenet", slotcon=SlotConConfig(num_prototypes=2048), save_every=1)  # epochs are long

# For small networks, small data, and some thousand steps instead of 180,000: sharper targets, a faster teacher, a
# higher learning rate.
IMAGENETTE = Recipe(
    backbone="slotcon_nano",
    slotcon=SlotConConfig(num_prototypes=64, hidden_dim=512, out_dim=128, teacher_temp=0.04, teacher_momentum=0.97),
    view_size=96,
    epochs=20,
    batch_size=64,
    base_lr=8.0,
    warmup_epochs=1,
    workers=1,
    log_every=20,
    show_every=1,
    save_every=2,
)

DEMO = replace(
    IMAGENETTE,
    data=SCENES,
    backbone="slotcon_nano.imagenette_80ep",  # weights in the package; the later ones give no better groups here
    slotcon=replace(IMAGENETTE.slotcon, num_prototypes=16, hidden_dim=256, teacher_momentum=0.95),
    epochs=3,
    batch_size=32,
    base_lr=16.0,
    warmup_epochs=0.5,
    threads=1,  # of two cores, the other one loads the images
    log_every=5,
    save_every=1,
)

RECIPES: dict[str, tuple[str, Recipe]] = {
    "demo": (
        "The package's small ResNet learns the groups of synthetic scenes: minutes on two CPU cores, nothing to "
        "download. With --backbone slotcon_nano it starts from random weights.",
        DEMO,
    ),
    "imagenette_80ep": (
        "A small ResNet on Imagenette, 160 px (9,469 images): the weights that the demo starts from. An hour "
        "and a half on one core of a CPU with bf16.",
        replace(
            IMAGENETTE,
            slotcon=replace(IMAGENETTE.slotcon, teacher_momentum=0.99),
            epochs=80,
            warmup_epochs=2,
        ),
    ),
    "imagenette_20ep": (
        "The same in a quarter of the time: the first weights that came with the package.",
        IMAGENETTE,
    ),
    "coco_800ep": (
        "COCO train2017 (118,287 images). Reported: 41.0 box AP, 37.0 mask AP (Mask R-CNN R50-FPN 1x); "
        "143 s an epoch and 16.0 GB a GPU on 8 x RTX 3090 at batch 1024.",
        COCO,
    ),
    "cocoplus_800ep": (
        "COCO train2017 + unlabeled2017 (241,690 images). Reported: 41.8 box AP, 37.8 mask AP.",
        replace(COCO, layout="coco+"),
    ),
    "in1k_100ep": (
        "ImageNet-1k train (1,281,167 images). Reported: 41.4 box AP, 37.2 mask AP.",
        replace(IN1K, epochs=100),
    ),
    "in1k_200ep": (
        "ImageNet-1k train (1,281,167 images). Reported: 41.8 box AP, 37.8 mask AP.",
        replace(IN1K, epochs=200),
    ),
    "bdd100k_800ep": (
        "BDD100K train (70,000 images). Reported: 73.9 mIoU on Cityscapes.",
        replace(COCO, layout="bdd100k", slotcon=SlotConConfig(num_prototypes=64)),
    ),
    "cocostuff27": (
        "COCO train2017 with 27 prototypes, for unsupervised segmentation. Reported: 42.36 pixel accuracy on "
        "COCO-Stuff-27; its length is not stated, 800 epochs here.",
        replace(COCO, slotcon=SlotConConfig(num_prototypes=27)),
    ),
}

HELP = """\
usage: python training/pretrain.py [recipe] [options]
       accelerate launch training/pretrain.py [recipe] [options]   (several processes)

Recipes, each with its own --help:
"""


def parse(argv: list[str]) -> tuple[str, Recipe]:
    """Read the name of a recipe, by default the demo, and the options that override it."""
    return parse_recipe(argv, RECIPES, HELP, "pretrain.py", default="demo")
