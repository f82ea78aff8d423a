"""Preparation of a run: data, detector, optimiser, and the checkpoint to resume from."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slotcon_hub.distributed import synchronize_batchnorm
from slotcon_hub.images import names_digest
from training.data.coco import CocoImages, find_coco
from training.engine.memory_format import make_channels_last
from training.engine.run import Run
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.examples import Examples
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.recipes import Recipe

__all__ = ["Detection", "build", "make_optimizer", "prepare"]


@dataclass(frozen=True)
class Detection:
    """A training ready to start or resume."""

    recipe: Recipe
    run: Run
    train: Examples
    val: CocoImages
    detector: MaskRCNN
    """On the run's device, not wrapped."""


def prepare(name: str, recipe: Recipe) -> Detection:
    """Open the data, build the detector, and load the checkpoint to resume from; nothing is written.

    Raises:
        ValueError: an error of the user, with its fix.
    """
    run = Run(name, recipe)
    assert recipe.data is not None
    train, val = open_data(recipe.data.expanduser(), run.is_main)
    examples = Examples(train, recipe.short_sides, recipe.longest_side, recipe.seed)
    pretrained = not run.find_checkpoint() and not recipe.scratch
    with run.processes.main_process_first():  # weights are downloaded once
        detector = build(recipe, train, run.processes, pretrained=pretrained)
    if run.is_main and run.fresh:
        print("\n".join(detector.loaded))
    names = (f"{record.id} {record.path.name} {len(record.instances)}" for record in train)
    identity = {
        "images": len(examples),
        "digest": names_digest(names),
        "class_names": list(train.classes),
    }
    optimizer = make_optimizer(detector, recipe.lr, recipe.weight_decay)
    run.attach(detector, optimizer, recipe.schedule(), identity=identity)
    return Detection(recipe, run, examples, val, detector)


def open_data(root: Path, say: bool) -> tuple[CocoImages, CocoImages]:
    """Open the train and val images.

    Args:
        root: of the data set.
        say: print a warning about skipped objects.

    Raises:
        ValueError: a file is missing or invalid, or the splits have different classes.
    """
    train, val = (CocoImages(*find_coco(root, split)) for split in ("train", "val"))
    if (train.category_ids, train.classes) != (val.category_ids, val.classes):
        raise ValueError(f"{train.annotations} and {val.annotations} have other categories: give them the same")
    for images in (train, val):
        if images.dropped and say:
            print(
                f"warning: {images.dropped} objects of {images.annotations} are left out: their polygons have "
                "fewer than three corners",
                file=sys.stderr,
            )
    return train, val


def build(recipe: Recipe, images: CocoImages, processes: PartialState, *, pretrained: bool) -> MaskRCNN:
    """Build the detector of a recipe, on the CPU, with the ``mean`` and ``std`` of its backbone.

    Args:
        recipe: of the run.
        images: determine the classes.
        processes: of the run; with several, BatchNorm is synchronised.
        pretrained: load the backbone's weights.

    Raises:
        ValueError: there is no such backbone, it has no weights, or its maps have other strides.
    """
    set_seed(recipe.seed)
    config = MaskRCNNConfig(
        backbone=recipe.backbone,
        classes=images.classes,
        category_ids=images.category_ids,
        channels=recipe.channels,
        proposals=recipe.proposals,
        regions=recipe.regions,
        test_side=recipe.test_side,
        longest_side=recipe.longest_side,
    )
    detector = MaskRCNN(config, pretrained=pretrained)
    cfg = timm.data.resolve_data_config({}, model=detector.backbone.body)
    mean, std = (tuple(round(255 * value, 6) for value in cfg[name]) for name in ("mean", "std"))
    detector.config = replace(detector.config, mean=mean, std=std)
    make_channels_last(detector, processes.device)
    if processes.num_processes > 1:
        synchronize_batchnorm(detector, processes.device.type)
    return detector


def make_optimizer(detector: nn.Module, lr: float, weight_decay: float) -> torch.optim.SGD:
    """Create SGD with momentum 0.9, without weight decay for norms."""
    norms = {p for m in detector.modules() if isinstance(m, _BatchNorm | nn.LayerNorm) for p in m.parameters()}
    rest = [p for p in detector.parameters() if p not in norms]
    plain = [p for p in detector.parameters() if p in norms]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=weight_decay)
