"""A comparison of the maps of frozen models: what all protocols on dense features are told, and the models.

Dimensions: S side of an image in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Subset

from slotcon_hub.models.maps import MapModel
from training.engine.batchnorm import recalibrate_batchnorm
from training.evaluation import command

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of the frozen maps of timm models on images of one size.

    Raises:
        ValueError: a number is impossible.
    """

    models: tuple[str, ...]
    """timm models with weights, or folders that runs exported; of a prototype model the projections are taken."""
    data: Path
    """Folder of images."""
    size: int = 448
    """Pixels that the short side of images and masks is resized to; the central square of this side is taken, and
    all numbers are of its pixels."""
    baseline: bool = False
    """Measure each model with random weights too, and BatchNorm statistics of the images."""
    batch_size: int = 8
    """Images that a process takes at a time."""
    workers: int = 2
    """Processes that load images, for each process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the models; all that follows them is in float32."""
    seed: int = 0
    """Of what is drawn: random weights, and what the protocol draws."""
    output: Path | None = None
    """JSON file of the numbers, the protocol and the settings."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        command.check_positive(self, "size", "batch_size")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: give at least 0")
        if not self.models:
            raise ValueError("--models: name at least one")


def compare(
    settings: Comparison,
    accelerator: Accelerator,
    images: Any,
    load: Callable[..., MapModel],
    measure: Callable[[MapModel], dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Measure each model and, where it is asked for, the same with random weights.

    Args:
        settings: of the command.
        accelerator: says the device.
        images: a data set whose samples begin with an image, uint8 3 x S x S, for the statistics of random models.
        load: makes a model by name, of a size, with weights or without.
        measure: one.

    Returns:
        What was measured by title, and by the name of a model what its maps are.
    """
    results, features = {}, {}
    for name in settings.models:
        for pretrained in (True, False) if settings.baseline else (True,):
            set_seed(settings.seed)
            model = load(name, settings.size, pretrained=pretrained).to(accelerator.device)
            if not pretrained:
                _recalibrate(model, images, settings.batch_size)
            results[name if pretrained else f"{name}, random"] = measure(model)
        features[name] = model.describe(settings.size)
    return results, features


def _recalibrate(model: MapModel, images: Any, batch_size: int, batches: int = 20) -> None:
    """Re-estimate the BatchNorm statistics of a random-init baseline from some of the images."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: batches * batch_size]
    loader: DataLoader[Any] = DataLoader(
        Subset(images, order.tolist()), batch_size, drop_last=len(order) > batch_size, collate_fn=_images
    )
    recalibrate_batchnorm(model.model, (model.standardize(batch) for batch in loader))


def _images(samples: list[Any]) -> torch.Tensor:
    return torch.stack([sample[0] for sample in samples])
