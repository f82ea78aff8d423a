"""Training crops of labelled images, by (epoch, index)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.data.masks import LabeledImages
from training.data.plan import SAMPLES, Steps
from training.data.tolerant import Unreadable
from training.engine.signals import loading
from training.transfer.semantic.transforms import Augmentation, Crop

__all__ = ["Crops", "make_loader"]


class Crops(Dataset[Crop]):
    """A crop of an image and its mask, drawn from (seed, epoch, index)."""

    def __init__(self, images: LabeledImages, augmentation: Augmentation, seed: int) -> None:
        """Set images, augmentation and its seed."""
        self.images, self.augmentation, self.seed = images, augmentation, seed
        self._unreadable = Unreadable(len(images))

    def __getitem__(self, key: tuple[int, int]) -> Crop:
        """Read an image and draw a crop of it; of another image, drawn too, if it or its mask is unreadable.

        Raises:
            RunError: too many are unreadable, a label is unknown, or an image and its mask differ in size.
        """
        rng = np.random.default_rng([self.seed, SAMPLES, *key])
        _, (image, truth) = self._unreadable.read_first(self.images.__getitem__, self._numbers(key[1], rng))
        return self.augmentation(image, truth, rng)

    def _numbers(self, index: int, rng: np.random.Generator) -> Iterator[int]:
        yield index
        yield from rng.permutation(len(self.images)).tolist()


def make_loader(crops: Crops, steps: Steps, workers: int) -> DataLoader[Any]:
    """Load micro-batches as a :class:`Crop` of stacked tensors; workers persist over epochs."""
    return DataLoader(crops, batch_sampler=steps, pin_memory=torch.cuda.is_available(), **loading(workers))
