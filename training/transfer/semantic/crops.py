"""Training crops of labelled images, by (epoch, index)."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.data.masks import LabeledImages
from training.data.plan import SAMPLES, Steps
from training.engine.errors import RunError
from training.engine.signals import loading
from training.transfer.semantic.transforms import Augmentation, Crop

__all__ = ["Crops", "make_loader"]


class Crops(Dataset[Crop]):
    """A crop of an image and its mask, drawn from (seed, epoch, index)."""

    def __init__(self, images: LabeledImages, augmentation: Augmentation, seed: int) -> None:
        """Set images, augmentation and its seed."""
        self.images, self.augmentation, self.seed = images, augmentation, seed

    def __getitem__(self, key: tuple[int, int]) -> Crop:
        """Read an image and draw a crop of it.

        Raises:
            RunError: the image or its mask cannot be read, or their sizes differ.
        """
        try:
            image, truth = self.images[key[1]]
        except (ValueError, OSError) as error:
            raise RunError(str(error)) from None
        return self.augmentation(image, truth, np.random.default_rng([self.seed, SAMPLES, *key]))


def make_loader(crops: Crops, steps: Steps, workers: int) -> DataLoader[Any]:
    """Load micro-batches as a :class:`Crop` of stacked tensors; workers persist over epochs."""
    return DataLoader(crops, batch_sampler=steps, pin_memory=torch.cuda.is_available(), **loading(workers))
