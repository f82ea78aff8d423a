"""Options and model loop of all protocols on dense features of frozen models.

Dimensions: S side of an image in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from slotcon_hub.models.maps import MapModel
from training.engine.batchnorm import recalibrate_batchnorm
from training.evaluation import command

__all__ = ["Comparison", "compare_maps", "compare_models"]


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


def compare_models(
    names: Sequence[str],
    load: Callable[..., Any],
    measure: Callable[[Any], dict[str, Any]],
    describe: Callable[[Any], dict[str, Any]],
    *,
    recalibrate: Callable[[Any], None] | None = None,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Measure each model and optionally its random-init baseline.

    Args:
        names: of the models.
        load: takes a name and ``pretrained``.
        measure: measures a model.
        describe: describes its features.
        recalibrate: re-estimates the BatchNorm statistics of a baseline; None: no baselines.
        seed: of random weights, and of what the protocol draws.

    Returns:
        Results by title, and descriptions of the features by model name.
    """
    results, features = {}, {}
    for name in names:
        for pretrained in (True, False) if recalibrate else (True,):
            set_seed(seed)
            model = load(name, pretrained=pretrained)
            if recalibrate and not pretrained:
                recalibrate(model)
            results[name if pretrained else f"{name}, random"] = measure(model)
        features[name] = describe(model)
    return results, features


def compare_maps(
    settings: Comparison,
    accelerator: Accelerator,
    images: Any,
    load: Callable[..., MapModel],
    measure: Callable[[MapModel], dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Call :func:`compare_models` for models of feature maps.

    Args:
        settings: of the command.
        accelerator: determines the device.
        images: a data set whose samples begin with an image, uint8 3 x S x S; BatchNorm statistics of baselines
            are estimated on it.
        load: takes name, size and ``pretrained``.
        measure: measures a model.
    """

    def recalibrate(model: MapModel) -> None:
        batches = command.draw_batches(images, settings.batch_size, collate=_images)
        recalibrate_batchnorm(model.model, (model.standardize(batch) for batch in batches))

    return compare_models(
        settings.models,
        lambda name, pretrained: load(name, settings.size, pretrained=pretrained).to(accelerator.device),
        measure,
        lambda model: model.describe(settings.size),
        recalibrate=recalibrate if settings.baseline else None,
        seed=settings.seed,
    )


def _images(samples: list[Any]) -> torch.Tensor:
    return torch.stack([sample[0] for sample in samples])
