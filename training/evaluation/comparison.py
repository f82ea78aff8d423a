"""Options and model loop of all protocols on dense features of frozen models.

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
    """A comparison of frozen feature maps of timm models.

    Raises:
        ValueError: an option is out of range.
    """

    models: tuple[str, ...]
    """timm models with weights, or export folders of runs; for prototype models the projections are used."""
    data: Path
    """Folder of images."""
    size: int = 448
    """Resize the short side of images and masks to this many pixels, then measure on the central square."""
    baseline: bool = False
    """Add a random-init baseline of each model, BatchNorm statistics re-estimated on the images."""
    batch_size: int = 8
    """Batch size per process."""
    workers: int = 2
    """Data-loader workers per process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the models; everything else uses float32."""
    seed: int = 0
    """Seed of random weights and of the protocol."""
    output: Path | None = None
    """JSON file of results, protocol and settings."""

    def __post_init__(self) -> None:
        """Validate."""
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
    """Measure each model and optionally its random-init baseline.

    Args:
        settings: of the command.
        accelerator: determines the device.
        images: a data set whose samples begin with an image, uint8 3 x S x S; BatchNorm statistics of baselines
            are estimated on it.
        load: takes name, size and ``pretrained``.
        measure: measures a model.

    Returns:
        Results by title, and descriptions of the feature maps by model name.
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
