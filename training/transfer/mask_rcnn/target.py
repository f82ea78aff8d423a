"""Training targets of an image."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Mask", "Target"]

Mask: TypeAlias = "list[np.ndarray] | np.ndarray"
"""Polygons of an object, each x0, y0, x1, y1, ... in pixels of the image, or its H x W bitmap, uint8."""


@dataclass(frozen=True)
class Target:
    """The G objects of an image.

    NumPy arrays, since each tensor from a data-loader worker needs a file descriptor.

    Attributes:
        boxes: G x 4, float32, in pixels of the network's input.
        labels: G, int64, from 0.
        masks: G of them.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: list[Mask]

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return boxes and labels on a device."""
        boxes = torch.from_numpy(self.boxes).reshape(-1, 4)
        return boxes.to(device, torch.float32), torch.from_numpy(self.labels).to(device, torch.int64)
