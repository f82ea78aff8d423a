"""Slot activity (SlotCon, supplementary D): which prototypes are active, how often, and in both views of an image.

``python -m training.evaluation.activity --model slotcon_r50_proto --data /data/coco/val2017``

Dimensions: B images, K prototypes, h x w cells of the map, S side of an image in pixels, E examples.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from slotcon_hub.concepts.inference import load_prototypes
from slotcon_hub.functional import active_slots
from slotcon_hub.images import decode, limit_aspect_ratio
from training.data import color
from training.data.images import Images, UnreadableImage, open_images
from training.data.views import TwoViews, stack
from training.evaluation import command
from training.evaluation.activity_report import report
from training.evaluation.models import similarities, standardize

__all__ = ["Activity", "ImagesAndViews", "Settings", "main", "measure_activity"]

EXAMPLES = 5


@dataclass(frozen=True)
class Settings:
    """Options of the command.

    Raises:
        ValueError: an option is out of range.
    """

    model: str
    """Prototype model with weights, such as slotcon_r50_proto, or the folder of a run."""
    data: str
    """Folder of images (searched at any depth), Parquet file or folder of them, or hf:<name>[:<configuration>]."""
    split: str = "train"
    """Split of a Hub data set, or of Parquet files named after splits."""
    image_column: str = "image"
    """Image column of a table."""
    seed: int = 0
    """Seed of the views."""
    batch_size: int = 64
    """Batch size per process."""
    workers: int = 2
    """Data-loader workers per process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of backbone and projector; similarities are in float32."""
    output: Path | None = None
    """JSON file of results, protocol and settings."""
    figures: Path | None = None
    """Folder for the images activity.png and segments.png."""

    def __post_init__(self) -> None:
        """Validate."""
        command.check_positive(self, "batch_size")


class ImagesAndViews(Dataset[dict[str, Tensor]]):
    """Images with the model's preprocessing, and two views of each as in pre-training."""

    def __init__(self, images: Images, model: Any, seed: int) -> None:
        """Get size and preprocessing from the model; ``seed`` is of the views."""
        self.config = resolve_data_config({}, model=model)
        self.images, self.seed = images, seed
        self.cut = create_transform(**self.config, normalize=False)
        self.views = TwoViews(self.config["input_size"][-1])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the cropped ``image``, uint8 3 x S x S, its ``number`` (index), and ``views`` and ``color``.

        The views are drawn from (seed, index), see ``stack``. Raises UnreadableImage.
        """
        image = self._read(index)
        _, height, width = image.shape
        drawn = self.views.draw(height, width, np.random.default_rng([self.seed, index]))
        reduced = image if drawn.reduction == 1 else self._read(index, drawn.reduction)
        views = stack([self.views.cut(reduced, drawn)])
        return {
            "number": torch.tensor(index),
            "image": self.cut(limit_aspect_ratio(image)),
            "views": views["views"][:, 0],
            "color": views["color"][:, 0],
        }

    def whole(self, index: int) -> Tensor:
        """Read and crop an image, uint8 3 x S x S."""
        return self.cut(limit_aspect_ratio(self._read(index)))

    def _read(self, index: int, reduction: int = 1) -> Tensor:
        try:
            return decode(self.images.read(index), reduction=reduction)
        except OSError as error:
            raise UnreadableImage.of(self.images.name(index), error) from None


@dataclass(frozen=True)
class Activity:
    """Slot activity on a data set: a slot is active if its prototype is nearest to some cell (equation 6)."""

    images: int
    usage: Tensor
    """int K: number of images in which each slot is active."""
    histogram: Tensor
    """int K + 1: number of images with 0, 1, ..., K active slots."""
    in_views: float
    """Mean number of active slots in a view."""
    pairs: float
    """Mean number of slots active in both views: the positive pairs of the slot loss."""
    examples: Tensor
    """int K x E: image indices, most similar segment first, padded with -1."""


@torch.inference_mode()
def measure_activity(
    model: Any, data: ImagesAndViews, accelerator: Accelerator, *, batch_size: int, workers: int
) -> Activity:
    """Measure activity on this process's shard, and reduce over processes.

    Args:
        model: of :func:`load_prototypes`, on the accelerator's device.
        data: the images.
        accelerator: determines device, precision and shard.
        batch_size: per process.
        workers: data-loader workers per process.

    Returns:
        The same on all processes.
    """
    device, number = accelerator.device, model.num_classes
    counts = torch.zeros(3 + 2 * number, dtype=torch.long, device=device)
    in_views, pairs, usage, histogram = counts.split([1, 1, number, number + 1])
    nearest = torch.full((number, EXAMPLES), -torch.inf, device=device)
    examples = torch.full((number, EXAMPLES), -1, device=device)

    def scores(images: Tensor) -> Tensor:
        with accelerator.autocast():
            return similarities(model, images)

    for batch in command.stream(data, _stack, accelerator, batch_size=batch_size, workers=workers):
        whole = scores(standardize(model, batch["image"]))
        active = active_slots(whole)
        usage += active.sum(0)
        histogram += active.sum(1).bincount(minlength=number + 1)
        numbers = batch["number"].to(device).expand(number, -1)
        nearest, examples = _keep_most_similar(
            torch.cat([nearest, _segment_similarity(whole).T], 1), torch.cat([examples, numbers], 1)
        )
        one, other = (
            active_slots(scores(color.apply(view.to(device), parameters)))
            for view, parameters in zip(batch["views"].unbind(1), batch["color"].unbind(1), strict=True)
        )
        in_views += one.sum() + other.sum()
        pairs += (one & other).sum()
    counts.copy_(accelerator.reduce(counts, "sum"))
    everyone = (
        accelerator.gather(mine).unflatten(0, (-1, number)).transpose(0, 1).flatten(1)
        for mine in (nearest, examples)
    )
    images = int(histogram.sum())
    return Activity(
        images=images,
        usage=usage.cpu(),
        histogram=histogram.cpu(),
        in_views=int(in_views) / 2 / images,
        pairs=int(pairs) / images,
        examples=_keep_most_similar(*everyone)[1].cpu(),
    )


def _stack(samples: list[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    return default_collate([sample for _, sample in samples])


def _segment_similarity(scores: Tensor) -> Tensor:
    """Mean similarity of the cells assigned to each slot, B x K; -inf for slots without cells."""
    best = scores.max(1)
    cells, groups = best.values.flatten(1), best.indices.flatten(1)
    empty = torch.zeros_like(scores[:, :, 0, 0])
    sums, counts = (empty.scatter_add(1, groups, values) for values in (cells, torch.ones_like(cells)))
    return torch.where(counts > 0, sums / counts, -torch.inf)


def _keep_most_similar(similarity: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the E largest similarities of each row and their image indices; ties by lower index."""
    numbers = numbers.where(similarity > -torch.inf, -1)
    order = numbers.argsort(dim=1, stable=True)
    order = order.gather(1, similarity.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order[:, :EXAMPLES]
    return similarity.gather(1, order), numbers.gather(1, order)


def main(settings: Settings) -> None:
    """Run the command."""
    command.check_outputs(settings.output, settings.figures)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    model = load_prototypes(settings.model).to(accelerator.device)
    with accelerator.main_process_first():
        images = open_images(settings.data, settings.split, settings.image_column)
    data = ImagesAndViews(images, model, settings.seed)
    found = measure_activity(model, data, accelerator, batch_size=settings.batch_size, workers=settings.workers)
    if accelerator.is_main_process:
        report(settings, model, data, found)


if __name__ == "__main__":
    command.run("activity", "Measure which prototypes are active, how often, and in both views.", Settings, main)
