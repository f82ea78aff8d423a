"""Unsupervised semantic segmentation by prototypes (SlotCon, supplementary A.3), with Hungarian matching.

``python -m training.evaluation.segmentation --model slotcon_r50_proto.cocostuff27 --data coco-stuff:/data/coco``

Dimensions: B images, K prototypes, C classes, H x W pixels, h x w cells of the map.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from slotcon_hub.concepts.inference import load_prototypes
from slotcon_hub.concepts.segments import group_map
from slotcon_hub.models.sizes import resize_to_model
from training.data.masks import IGNORE, LabeledImages
from training.evaluation import command
from training.evaluation.benchmarks import open_benchmark
from training.evaluation.metrics import Segmentation, confusion_matrix, score
from training.evaluation.models import similarities, standardize
from training.evaluation.refine import refine
from training.evaluation.segmentation_report import Example, report

__all__ = ["Settings", "count", "evaluate", "main", "segment"]


@dataclass(frozen=True)
class Settings:
    """Options of the command.

    Raises:
        ValueError: an option is out of range.
    """

    model: str
    """Prototype model with weights, such as slotcon_r50_proto, or the folder of a run."""
    data: str
    """"scenes" for the demo's held-out scenes, coco-stuff:FOLDER for COCO-Stuff-27 in a folder of COCO, or a folder
    of images, with --masks."""
    masks: Path | None = None
    """Folder of grey or palette PNGs, named as the images: a pixel is its class index, or 255 for none."""
    classes: Path | None = None
    """Text file of class names, one per line, for a folder of images; default: the classes in the masks."""
    split: Literal["val", "train"] = "val"
    """Split of COCO."""
    size: int | None = None
    """Resize the short side to this many pixels, and measure the central square; default: 320 for COCO-Stuff-27,
    whole images for other data."""
    refine: bool = False
    """Also report results with similarities filtered by a guided filter."""
    batch_size: int = 16
    """Batch size per process."""
    workers: int = 2
    """Data-loader workers per process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of backbone and projector; similarities are in float32."""
    output: Path | None = None
    """JSON file of results, protocol and settings."""
    figures: Path | None = None
    """Folder for the images confusion.png and examples.png."""
    shown: int = 8
    """Number of images in examples.png."""

    def __post_init__(self) -> None:
        """Validate."""
        command.check_positive(self, "size", "batch_size", "shown")


@torch.inference_mode()
def segment(model: nn.Module, images: Tensor) -> Tensor:
    """Assign every pixel to its most similar prototype (equation 1 of the supplementary).

    Args:
        model: a prototype model with ``global_pool=''``, in eval mode.
        images: uint8 B x 3 x H x W, resized if the size is not valid for the model.

    Returns:
        B x H x W prototype indices.
    """
    scores = model(resize_to_model(model, standardize(model, images)))
    return group_map(scores, (images.shape[2], images.shape[3]))[0]


def evaluate(
    model: nn.Module,
    images: Iterable[tuple[Tensor, Tensor]],
    groups: int,
    classes: int,
    match: Sequence[int] | None = None,
) -> Segmentation:
    """Segment labelled images one by one, and ``score`` the confusion matrix of all pixels."""
    confusion = torch.zeros(groups, classes, dtype=torch.long)
    for image, truth in images:
        prediction = segment(model, image[None])[0].cpu()
        confusion += confusion_matrix(prediction, truth, groups, classes)
    return score(confusion, match)


def _stack_by_size(
    samples: list[tuple[int, tuple[Tensor, Tensor]]],
) -> list[tuple[tuple[int, ...], Tensor, Tensor]]:
    """Stack images and masks of equal size: indices, B x 3 x H x W, B x H x W."""
    sizes: dict[torch.Size, list[tuple[int, Tensor, Tensor]]] = {}
    for number, (image, truth) in samples:
        sizes.setdefault(truth.shape, []).append((number, image, truth))
    lists = (zip(*same, strict=True) for same in sizes.values())
    return [(numbers, torch.stack(images), torch.stack(truths)) for numbers, images, truths in lists]


@torch.inference_mode()
def count(
    model: Any,
    images: LabeledImages,
    classes: int,
    accelerator: Accelerator,
    *,
    refined: bool,
    shown: int,
    batch_size: int,
    workers: int,
) -> tuple[dict[str, Tensor], list[Example]]:
    """Segment this process's shard, and reduce the counts over processes.

    Args:
        model: of ``load_prototypes``, on the accelerator's device.
        images: with masks.
        classes: C.
        accelerator: determines device, precision and shard.
        refined: also count with filtered similarities.
        shown: number of images kept as examples.
        batch_size: per process.
        workers: data-loader workers per process.

    Returns:
        K x C counts, "plain" and optionally "refined", and the examples; the same on all processes.
    """
    groups, device = model.num_classes, accelerator.device
    confusions = {"plain": torch.zeros(groups, classes, dtype=torch.long, device=device)}
    if refined:
        confusions["refined"] = confusions["plain"].clone()
    wanted = set(np.linspace(0, len(images) - 1, shown).astype(int).tolist())
    examples = []
    batches = command.stream(images, _stack_by_size, accelerator, batch_size=batch_size, workers=workers)
    for numbers, batch, truths in itertools.chain.from_iterable(batches):
        with accelerator.autocast():
            scores = similarities(model, standardize(model, batch))
        found = {"plain": group_map(scores, (batch.shape[2], batch.shape[3]))[0]}
        if refined:
            each = zip(scores, batch.to(device), found["plain"], strict=True)
            found["refined"] = torch.stack([refine(*one) for one in each])
        for name, prediction in found.items():
            confusions[name] += confusion_matrix(prediction, truths.to(device), groups, classes)
        for i in (i for i, number in enumerate(numbers) if number in wanted):
            maps = {name: prediction[i].cpu() for name, prediction in found.items()}
            examples.append(Example(numbers[i], batch[i], truths[i], maps))
    counts = {name: accelerator.reduce(confusion, "sum").cpu() for name, confusion in confusions.items()}
    return counts, sorted(gather_object(examples), key=lambda example: example.number)


def main(settings: Settings) -> None:
    """Run the command."""
    command.check_outputs(settings.output, settings.figures)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    model = load_prototypes(settings.model).to(accelerator.device)
    with accelerator.main_process_first():
        benchmark = open_benchmark(
            settings.data,
            masks=settings.masks,
            names=settings.classes,
            split=settings.split,
            size=settings.size,
        )
    classes = len(benchmark.classes) if benchmark.classes else IGNORE
    counts, examples = count(
        model,
        benchmark.images,
        classes,
        accelerator,
        refined=settings.refine,
        shown=settings.shown if settings.figures else 0,
        batch_size=settings.batch_size,
        workers=settings.workers,
    )
    if accelerator.is_main_process:
        report(settings, benchmark, model, counts, examples)


if __name__ == "__main__":
    command.run("segmentation", "Segment images by prototypes, and compare with their masks.", Settings, main)
