"""Frozen features of labelled images, extracted by one or several processes.

Dimensions: N images, C channels.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2.functional import to_pil_image

from slotcon_hub.distributed import shard_batches
from slotcon_hub.images import decode, limit_aspect_ratio
from training.data.images import UnreadableImage
from training.data.labels import draw_share, open_labeled
from training.engine.batchnorm import recalibrate_batchnorm
from training.evaluation import command
from training.evaluation.stored import StoredPooled

__all__ = ["Features", "Labeled", "extract", "open_parts", "recalibrate"]


@dataclass(frozen=True)
class Features:
    """Pooled features in the order of the data set, without unreadable images, the same on every process.

    In half of the memory of float32, 5.2 GB for ImageNet with 2048 channels, at any scale of the features.
    """

    directions: Tensor
    """float16 N x C, the L2-normalised features; a row with NaN if the feature has NaN/Inf."""
    norms: Tensor
    """float32 N, of the features; NaN/Inf if the feature has."""
    labels: Tensor
    """int64 N, in [0, classes)."""

    @classmethod
    def of(cls, values: Tensor, labels: Tensor) -> "Features":
        """Keep N x C features."""
        return cls(*_normalize(values), labels)

    def values(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Features of some images, float32."""
        return self.directions[rows].float() * self.norms[rows, None]

    def finite(self) -> Tensor:
        """Whether the features of an image are finite, N booleans."""
        return self.norms.isfinite()

    def select(self, rows: Tensor) -> "Features":
        """Features of some images: N booleans or indices."""
        return Features(self.directions[rows], self.norms[rows], self.labels[rows])

    def to(self, device: torch.device) -> "Features":
        """On a device."""
        return Features(self.directions.to(device), self.norms.to(device), self.labels.to(device))


def _normalize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions of :class:`Features`, and the norms."""
    values = values.float()
    norms = values.norm(dim=1)  # zero below 1e-19, whose square is
    return (values / norms.clamp(min=1e-19)[:, None]).half(), norms


class Labeled(Dataset[tuple[int, Any]]):
    """Labelled images: a folder with a folder for each class, Parquet files, or a data set of the Hub."""

    def __init__(self, data: str, split: str, image_column: str = "image", label_column: str = "label") -> None:
        """Open a split; arguments and errors as of :func:`training.data.labels.open_labeled`."""
        opened = open_labeled(data, split, image_column, label_column)
        self.data = data
        self.images, self.classes = opened.images, opened.classes
        self.labels = torch.tensor(opened.labels)
        self.transform: Any = None
        self.epoch: int | None = None
        self.trimmed = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """Return index and image; random transforms are keyed by (epoch, index). Raises UnreadableImage."""
        if self.epoch is not None:
            random.seed(f"{self.epoch} {index}")
            torch.manual_seed(random.getrandbits(63))
        try:
            image = decode(self.images.read(index))
        except OSError as error:
            raise UnreadableImage.of(self.images.name(index), error) from None
        return index, self.transform(to_pil_image(limit_aspect_ratio(image) if self.trimmed else image))

    def draw(self, share: float) -> Subset[tuple[int, Any]]:
        """A share of each class's images; see :func:`training.data.labels.draw_share`."""
        return Subset(self, draw_share(self.labels.tolist(), share))

    def prepare(self, model: Any, epoch: int | None = None) -> None:
        """Use the model's evaluation preprocessing; with ``epoch``, random resized crops and flips."""
        config = resolve_data_config({}, model=model)
        self.epoch = epoch
        self.trimmed = epoch is None and config["crop_mode"] != "squash"  # random crops need the whole image
        create: Any = create_transform  # its type hints do not allow color_jitter=None
        self.transform = create(**config, is_training=epoch is not None, color_jitter=None)


def open_parts(
    data: str,
    train: str,
    test: str,
    image_column: str,
    label_column: str,
    kind: Callable[..., Labeled] = Labeled,
) -> tuple[Labeled, Labeled]:
    """Open the training and the test split, and check that their classes are equal.

    Args:
        data: as of :class:`Labeled`.
        train: training split.
        test: test split.
        image_column: of a table.
        label_column: of a table.
        kind: class of the data sets.

    Raises:
        ValueError: one cannot be opened, or their classes differ.
    """
    parts = tuple(kind(data, split, image_column, label_column) for split in (train, test))
    first, second = (part.classes for part in parts)
    # Tables of integer labels have no names: a split may lack the last classes.
    bare = all(names == [str(number) for number in range(len(names))] for names in (first, second))
    if bare and len(second) > len(first):
        raise ValueError(
            f"{data}: {test} has label {len(second) - 1}, which is not in {train}: use splits with the same classes"
        )
    if not bare and first != second:
        alone = ", ".join(sorted({*first} ^ {*second})[:5])
        raise ValueError(f"{data}: {train} and {test} have different classes, only one of them has {alone}")
    return parts[0], parts[1]


@torch.inference_mode()
def extract(
    model: Any,
    images: Labeled,
    accelerator: Accelerator,
    *,
    epoch: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
) -> Features:
    """Extract the features of all images with a frozen model; a collective call.

    Args:
        model: on the accelerator's device; returns N x C features.
        images: their transform is set to the model's preprocessing.
        accelerator: determines device, precision and shard.
        epoch: for random crops and flips; None for centre crops.
        batch_size: per process.
        workers: data-loader workers per process.

    Returns:
        The features of all readable images, gathered from all processes.

    Raises:
        ValueError: too many images cannot be read.
    """
    if isinstance(model, StoredPooled):
        if epoch is not None:
            raise ValueError(
                "--augment needs features of new crops, which a file does not have: leave --augment out"
            )
        batches = model.batches(getattr(images.images, "paths", None), images.data)
        numbers, directions, norms = _collect(batches, len(images), model.head_hidden_size, torch.device("cpu"))
        return Features(directions, norms, images.labels[numbers])
    images.prepare(model, epoch)
    device, processes = accelerator.device, accelerator.num_processes
    shard = sum(map(len, shard_batches(len(images), batch_size, accelerator.process_index, processes)))
    loaded = command.stream(images, _stack, accelerator, batch_size=batch_size, workers=workers)
    batches = ((index, _forward(model, batch, accelerator)) for index, batch in loaded)
    numbers, directions, norms = _collect(batches, shard, model.head_hidden_size, device)
    if processes > 1:
        numbers = accelerator.gather(accelerator.pad_across_processes(numbers, pad_index=len(images)))
        directions = accelerator.gather(accelerator.pad_across_processes(directions))
        norms = accelerator.gather(accelerator.pad_across_processes(norms))
        numbers, order = numbers.sort()
        read = numbers < len(images)  # without padding
        numbers, directions, norms = numbers[read], directions[order[read]], norms[order[read]]
    return Features(directions.cpu(), norms.cpu(), images.labels[numbers.cpu()])


def _forward(model: Any, batch: Tensor, accelerator: Accelerator) -> Tensor:
    with accelerator.autocast():
        return model(batch.to(accelerator.device))


def _collect(
    batches: Iterable[tuple[Tensor, Tensor]], number: int, channels: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices, directions and norms of batches of (indices, features) of at most ``number`` images."""
    numbers = torch.empty(number, dtype=torch.long, device=device)
    directions = torch.empty(number, channels, dtype=torch.half, device=device)  # may fill most of the memory
    norms = torch.empty(number, device=device)
    filled = 0
    for index, values in batches:
        rows = slice(filled, filled + len(index))
        numbers[rows], filled = index.to(device), rows.stop
        directions[rows], norms[rows] = _normalize(values.to(device))
    return numbers[:filled], directions[:filled], norms[:filled]


def _stack(samples: list[tuple[int, tuple[int, Tensor]]]) -> tuple[Tensor, Tensor]:
    numbers, images = zip(*(sample for _, sample in samples), strict=True)
    return torch.tensor(numbers), torch.stack(images)


def recalibrate(
    model: Any, images: Labeled, device: torch.device, *, batches: int = 20, batch_size: int = 64
) -> None:
    """Re-estimate the BatchNorm statistics of a random-init baseline from some of the images."""
    images.prepare(model)
    loader = command.draw_batches(images, batch_size, batches=batches)
    recalibrate_batchnorm(model, (batch.to(device) for _, batch, _ in loader))
