"""Crops of labelled images, by (epoch, index), for training."""

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
        """Take the images, what is drawn of them, and the seed."""
        self.images, self.augmentation, self.seed = images, augmentation, seed

    def __getitem__(self, key: tuple[int, int]) -> Crop:
        """Read an image and draw a crop of it.

        Raises:
            RunError: the image or its mask cannot be read, or do not belong together.
        """
        try:
            image, truth = self.images[key[1]]
        except (ValueError, OSError) as error:
            raise RunError(str(error)) from None
        return self.augmentation(image, truth, np.random.default_rng([self.seed, SAMPLES, *key]))


def make_loader(crops: Crops, steps: Steps, workers: int) -> DataLoader[Any]:
    """Load the micro-batches of a run as :class:`Crop` of B; the workers live as long as it does."""
    return DataLoader(crops, batch_sampler=steps, pin_memory=torch.cuda.is_available(), **loading(workers))
