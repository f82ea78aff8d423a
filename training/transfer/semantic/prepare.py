"""Preparation of a run: data, network, optimiser, and the checkpoint to resume from."""

import sys
from dataclasses import dataclass
from typing import Any

import timm
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed

from slotcon_hub.distributed import synchronize_batchnorm
from slotcon_hub.images import names_digest
from training.engine.errors import first_line
from training.engine.memory_format import make_channels_last
from training.engine.run import Run
from training.transfer.semantic.datasets import SegmentationData, open_data
from training.transfer.semantic.evaluation import Predictor
from training.transfer.semantic.model import FCN, create_backbone
from training.transfer.semantic.recipes import Recipe
from training.transfer.semantic.transforms import Augmentation

__all__ = ["Segmentation", "build", "prepare"]

CHECKED = 2_000  # masks per split checked before training; the others are checked on use


@dataclass(frozen=True)
class Segmentation:
    """A training ready to start or resume."""

    recipe: Recipe
    run: Run
    data: SegmentationData
    net: FCN
    """On the run's device, not wrapped."""
    cfg: dict[str, Any]
    """The backbone's ``mean`` and ``std``."""

    @property
    def augmentation(self) -> Augmentation:
        """The recipe's training augmentation."""
        recipe = self.recipe
        return Augmentation(recipe.crop, recipe.scale, recipe.ratios, recipe.max_share, recipe.photometric)

    @property
    def predictor(self) -> Predictor:
        """The network, set to eval mode, with the recipe's test protocol."""
        recipe = self.recipe
        return Predictor(self.net.eval(), self.cfg, recipe.test_scale, recipe.window, recipe.window_stride)


def prepare(name: str, recipe: Recipe) -> Segmentation:
    """Open the data, build the network, and load the checkpoint to resume from; nothing is written.

    Raises:
        ValueError: an error of the user, with its fix.
    """
    run = Run(name, recipe)
    assert recipe.data is not None
    data = open_data(name, recipe.data.expanduser(), recipe.masks, recipe.classes)
    images = len(data.train)
    if images < recipe.batch_size:
        raise ValueError(f"{images} training images do not fill a batch: use --batch-size {images} or less")
    if run.is_main:
        for note in data.notes:
            print(f"warning: {note}", file=sys.stderr)
    _check_masks(data, run.is_main)
    pretrained = not run.find_checkpoint() and not recipe.scratch
    with run.processes.main_process_first():  # weights are downloaded once
        net, cfg = build(recipe, len(data.classes), run.processes, pretrained=pretrained)
    optimizer = torch.optim.SGD(net.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    names = (f"{image.parent.name}/{image.name}" for image, _ in data.train.files)
    identity = {
        "images": images,
        "digest": names_digest(names),
        "class_names": list(data.classes),
    }
    run.attach(net, optimizer, recipe.schedule(), identity=identity)
    return Segmentation(recipe, run, data, net, cfg)


def build(recipe: Recipe, classes: int, processes: PartialState, *, pretrained: bool) -> tuple[FCN, dict[str, Any]]:
    """Build the network of a recipe on the CPU, and return it with the ``mean`` and ``std`` of its input.

    Args:
        recipe: of the run.
        classes: C.
        processes: of the run; with several, BatchNorm is synchronised.
        pretrained: load the backbone's weights.

    Raises:
        ValueError: there is no such backbone, it has no weights, or no map of the stride.
    """
    set_seed(recipe.seed)
    backbone = create_backbone(recipe.backbone, recipe.output_stride, pretrained=pretrained)
    net = FCN(backbone, classes, recipe.head, recipe.auxiliary, recipe.align_corners)
    _check_sizes(net, recipe)
    make_channels_last(net, processes.device)
    if processes.num_processes > 1:
        synchronize_batchnorm(net, processes.device.type)
    cfg = timm.data.resolve_data_config({}, model=backbone)
    return net, {name: cfg[name] for name in ("mean", "std")}


@torch.inference_mode()
def _check_sizes(net: FCN, recipe: Recipe) -> None:
    """Check that the network accepts training crops, and test windows or images of any size."""
    sizes = {f"crops of {recipe.crop}": (recipe.crop, recipe.crop)}
    if recipe.window:
        sizes[f"windows of {recipe.window}"] = (recipe.window, recipe.window)
    else:
        sizes["test images of any number of"] = (recipe.crop + 13, recipe.crop + 3)  # no multiples of a patch
    for what, (height, width) in sizes.items():
        try:
            net.eval()(torch.zeros(1, 3, height, width))
        except (AssertionError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"{recipe.backbone} does not accept {what} pixels ({first_line(error)}): give a valid --crop and "
                "--window, or another --backbone"
            ) from None


def _check_masks(data: SegmentationData, is_main: bool) -> None:
    """Check masks and images before training, on the main process, and name the few unreadable ones of train.

    Raises:
        ValueError: on all processes: a mask is invalid, or a test image or its mask is unreadable.
    """
    problem = None
    if is_main:
        try:
            for error in data.train.check(CHECKED):
                print(f"warning: {error}; training takes another image in its place", file=sys.stderr)
            if unreadable := data.val.check(CHECKED):
                problem = f"{unreadable[0]}: repair it, since no test image may be left out"
        except ValueError as error:
            problem = str(error)
    if problem := broadcast_object_list([problem])[0]:
        raise ValueError(problem)
