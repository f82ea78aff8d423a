"""A training step of the detector beside torchvision's Mask R-CNN of the same backbone."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

from training.data.coco import rasterize
from training.engine.memory_format import make_channels_last
from training.engine.words import show
from training.tools.benchmark.contenders import Contender, compare
from training.tools.benchmark.step import describe_machine
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.target import Target

__all__ = ["benchmark"]

CLASSES, OBJECTS = 80, 8


def benchmark(image: tuple[int, int] = (320, 480), batch_size: int = 2, rounds: int = 5) -> None:
    """Print what a training step costs beside torchvision's ``maskrcnn_resnet50_fpn_v2``.

    Both have random weights, every norm in training, the same images and eight objects in each, in float32, and SGD
    with momentum; rounds alternate between them. "GB of tensors" counts all storages that live at the peak of a
    step: weights, gradients, momentum, activations.

    Args:
        image: height and width in pixels, as the networks see it.
        batch_size: images.
        rounds: of each, whose median is shown.

    Raises:
        ValueError: a number is too small.
    """
    if rounds < 1 or batch_size < 1 or min(image) < 64:
        raise ValueError("measure 1 round or more, of 1 image or more, of 64 pixels a side or more")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = [torch.randint(0, 256, (3, *image), dtype=torch.uint8, device=device) for _ in range(batch_size)]
    targets = [_target(rng, *image) for _ in images]
    ours = MaskRCNN(MaskRCNNConfig.numbered(CLASSES))
    make_channels_last(ours, device)
    theirs = maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=min(image), max_size=max(image)
    )
    floats = [one / 255 for one in images]
    bitmaps = [_as_tensors(one, image, device) for one in targets]
    contenders = {
        "ours": Contender(ours.to(device), partial(_loss, ours, images, targets), images),
        "maskrcnn_resnet50_fpn_v2": Contender(
            theirs.to(device),
            partial(_loss, theirs, floats, bitmaps),
            [*floats, *(one["masks"] for one in bitmaps)],
        ),
    }
    table = compare(contenders, rounds, device)
    show(f"{batch_size} images of {image[1]} x {image[0]} px, {rounds} rounds, {describe_machine(device)}", table)


def _loss(net: nn.Module, images: list[Tensor], targets: list[Any]) -> Tensor:
    return torch.stack(list(net(images, targets).values())).sum()


def _target(rng: np.random.Generator, height: int, width: int) -> Target:
    """Rectangles of any size."""
    sides = rng.uniform(0.05, 0.6, (OBJECTS, 2)) * [width, height]
    corners = rng.random((OBJECTS, 2)) * ([width, height] - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    polygons: list[Any] = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].astype(np.float64)] for box in boxes]
    return Target(boxes, rng.integers(0, CLASSES, OBJECTS), polygons)


def _as_tensors(target: Target, size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """The same objects as torchvision takes them; its class 0 is the background."""
    boxes, labels = target.tensors(device)
    masks = np.stack([rasterize(polygons, *size) for polygons in target.masks if isinstance(polygons, list)])
    return {"boxes": boxes, "labels": labels + 1, "masks": torch.from_numpy(masks).to(device)}
