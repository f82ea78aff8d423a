"""Frozen features of labelled pictures, extracted for the probes on them by one or several processes.

Dimensions: N pictures, C channels.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2.functional import to_pil_image

from slotcon_hub.pictures import decode
from training.evaluation import command
from training.pictures import ImageTable

__all__ = ["Features", "Labeled", "extract", "settle"]


@dataclass(frozen=True)
class Features:
    """Pooled features of a data set in its order, the same on every process."""

    values: Tensor
    """float32 N x C, on the CPU."""
    labels: Tensor
    """int64 N, in [0, classes)."""


class Labeled:
    """Labelled pictures: a folder with a folder for each class, Parquet files, or a data set of the Hub."""

    def __init__(self, data: str, split: str) -> None:
        """Open a split, such as "train" or "validation"; class folders may stand in folders named after splits.

        Raises:
            ValueError: it cannot be opened, or has no column ``image`` of pictures or no integers in ``label``.
        """
        path = Path(data).expanduser()
        if data.startswith("hf:"):
            source: tuple[str, ...] = (data.removeprefix("hf:"),)
            where: dict[str, str] = {}
        elif path.is_dir():
            source = ("parquet" if any(path.rglob("*.parquet")) else "imagefolder",)
            where = {"data_dir": str(path)}
        else:
            raise ValueError(f"there is no folder {path}: give class folders, Parquet files, or hf:<name>")
        try:
            table = datasets.load_dataset(*source, split=split, **where)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(
                f"{data}, split {split!r}, could not be loaded: {' '.join(str(error).split())}"
            ) from None
        if not {"image", "label"} <= set(table.column_names):
            raise ValueError(
                f"{data} needs the columns image and label, and has {', '.join(table.column_names)}: give a table "
                "that has them, or a folder with a folder of pictures for each class"
            )
        self.labels = torch.as_tensor(table["label"][:])
        if self.labels.is_floating_point() or not len(table) or int(self.labels.min()) < 0:
            raise ValueError(f"{data}, split {split!r}, has no labels: they are integers from 0")
        self.pictures = ImageTable(table, "image")
        self.transform: Any = None
        self.epoch: int | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """The number, and the transformed picture; what is random in it is keyed by epoch and number.

        Raises ValueError where the picture cannot be read.
        """
        if self.epoch is not None:
            random.seed(f"{self.epoch} {index}")
            torch.manual_seed(random.getrandbits(63))
        try:
            picture = decode(self.pictures.read(index), upright=True)
        except OSError as error:
            raise ValueError(f"{self.pictures.name(index)} cannot be read: {error}") from None
        return index, self.transform(to_pil_image(picture))

    def prepare(self, model: Any, epoch: int | None = None) -> None:
        """Preprocess as the model is configured; in an epoch, with random resized crops and flips instead."""
        config = resolve_data_config({}, model=model)
        self.epoch = epoch
        self.transform = create_transform(**config, is_training=epoch is not None, color_jitter=None)


@torch.inference_mode()
def extract(
    model: Any,
    pictures: Labeled,
    accelerator: Accelerator,
    *,
    epoch: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
) -> Features:
    """Run every picture through a frozen model once.

    Args:
        model: on the accelerator's device; gives N x C features.
        pictures: to be preprocessed for the model.
        accelerator: says the device and the precision.
        epoch: of training, for random crops and flips; None for the evaluation's centre crops.
        batch_size: of each process.
        workers: that load pictures for each process.

    Returns:
        The features of all processes' shares, in the order of the data set, each picture once.

    Raises:
        ValueError, OSError: a picture cannot be read.
    """
    pictures.prepare(model, epoch)
    device = accelerator.device
    numbers = [torch.zeros(0, dtype=torch.long, device=device)]
    values = [torch.zeros(0, model.num_features, device=device)]
    batches = command.stream(pictures, _stack, accelerator, batch_size=batch_size, workers=workers)
    for index, images in batches:
        with accelerator.autocast():
            values.append(model(images.to(device)).float())
        numbers.append(index.to(device))
    index = accelerator.gather(accelerator.pad_across_processes(torch.cat(numbers), pad_index=len(pictures)))
    found = accelerator.gather(accelerator.pad_across_processes(torch.cat(values)))
    order = index.argsort()[: len(pictures)]  # the padding comes last
    return Features(found[order].cpu(), pictures.labels)


def _stack(samples: list[tuple[int, tuple[int, Tensor]]]) -> tuple[Tensor, Tensor]:
    numbers, pictures = zip(*(sample for _, sample in samples), strict=True)
    return torch.tensor(numbers), torch.stack(pictures)


@torch.no_grad()
def settle(model: Any, pictures: Labeled, device: torch.device, *, batches: int = 20, batch_size: int = 64) -> None:
    """Give a random model BatchNorm statistics of the pictures: a fairer baseline than mean 0 and variance 1."""
    pictures.prepare(model)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[: batches * batch_size]
    model.train()
    for _, images in DataLoader(Subset(pictures, order.tolist()), batch_size, drop_last=len(order) > batch_size):
        model(images.to(device))
    model.eval()
