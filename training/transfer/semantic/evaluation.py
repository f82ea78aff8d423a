"""Prediction of test images, whole or by sliding windows, and the confusion matrix of a data set.

Dimensions: B images, C classes, H x W pixels of an image, h x w of the network's input.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from training.data.masks import LabeledImages
from training.evaluation import command
from training.evaluation.metrics import confusion_matrix
from training.evaluation.segmentation_report import Example
from training.transfer.semantic.model import FCN
from training.transfer.semantic.transforms import crop_pixels, fit, normalize

__all__ = ["Predictor", "count", "windows"]

TOGETHER = 32  # classes resized at a time


@dataclass(frozen=True)
class Predictor:
    """A network with its single-scale test protocol."""

    net: FCN
    """In eval mode."""
    cfg: dict[str, Any]
    """With the input's ``mean`` and ``std``."""
    scale: tuple[int, int] | None = None
    """Maximum long and short side after resizing; None keeps the size."""
    window: int | None = None
    """Side of sliding windows in pixels; None: whole images."""
    stride: int | None = None
    """Stride of the windows in pixels."""

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Predict the class of each pixel, int64 H x W on the network's device, of a uint8 image 3 x H x W."""
        size = (image.shape[1], image.shape[2])
        image = image.to(next(self.net.parameters()).device)
        shown = crop_pixels(image, fit(*size, self.scale)) if self.scale else image
        x = normalize(shown[None], self.cfg)
        scores = self._whole(x) if self.window is None else self._sliding(x)
        return self._classes(scores, size)

    def _whole(self, x: Tensor) -> Tensor:
        """Logits 1 x C x h x w at the size of the input."""
        return self.net.upsample(self.net(x).logits.float(), x.shape[2:])

    def _sliding(self, x: Tensor) -> Tensor:
        """Logits 1 x C x h x w, the mean over windows."""
        assert self.window is not None
        total = x.new_zeros(1, self.net.classes, *x.shape[2:])
        times = x.new_zeros(x.shape[2:])
        for rows, columns in windows(x.shape[2], x.shape[3], self.window, self.stride or self.window):
            total[:, :, rows, columns] += self._whole(x[:, :, rows, columns])
            times[rows, columns] += 1
        return total.div_(times)

    def _classes(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the argmax after resizing, with a few classes in memory at a time."""
        best, found = torch.tensor(-math.inf), torch.tensor(0)
        for number, part in enumerate(scores.split(TOGETHER, dim=1)):
            resized = part if part.shape[2:] == size else self.net.upsample(part, size)
            highest, own = resized[0].max(0)
            own += number * TOGETHER
            if number:
                own, highest = own.where(highest > best, found), highest.maximum(best)
            best, found = highest, own
        return found


def windows(height: int, width: int, side: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of windows that cover an image; the last ones are shifted to end at its border."""
    ends = [
        [min(first * stride + side, length) for first in range(max(math.ceil((length - side) / stride), 0) + 1)]
        for length in (height, width)
    ]
    for bottom in ends[0]:
        for right in ends[1]:
            yield slice(max(bottom - side, 0), bottom), slice(max(right - side, 0), right)


@torch.inference_mode()
def count(
    predictor: Predictor, images: LabeledImages, accelerator: Accelerator, *, workers: int, shown: int = 0
) -> tuple[Tensor, list[Example]]:
    """Predict this process's shard, and reduce the confusion matrix over processes.

    Args:
        predictor: with a network on the accelerator's device.
        images: with masks.
        accelerator: determines precision and shard.
        workers: data-loader workers per process.
        shown: number of images kept as examples.

    Returns:
        C x C pixel counts, predicted x true class, and the examples; the same on all processes.

    Raises:
        ValueError: a mask is invalid, or an image or its mask is unreadable: none may be left out.
    """
    classes = predictor.net.classes
    confusion = torch.zeros(classes, classes, dtype=torch.long, device=accelerator.device)
    wanted = set(np.linspace(0, len(images) - 1, shown).astype(int).tolist())
    examples = []
    options: dict[str, Any] = {"batch_size": 1, "workers": workers, "strict": True}
    for number, (image, truth) in command.stream(images, _single, accelerator, **options):
        with accelerator.autocast():
            prediction = predictor(image)
        confusion += confusion_matrix(prediction, truth.to(prediction.device), classes, classes)
        if number in wanted:
            examples.append(Example(number, image, truth, {"predicted": prediction.byte().cpu()}))
    counts = accelerator.reduce(confusion, "sum").cpu()
    return counts, sorted(gather_object(examples), key=lambda example: example.number)


def _single(samples: list[tuple[int, tuple[Tensor, Tensor]]]) -> tuple[int, tuple[Tensor, Tensor]]:
    (sample,) = samples
    return sample
