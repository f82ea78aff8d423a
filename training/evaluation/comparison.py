"""Options and model loop of all protocols on dense features of frozen models.

Dimensions: S side of an image in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed

from slotcon_hub.models.loading import is_known, name_for_timm
from slotcon_hub.models.maps import MapModel
from training.engine.batchnorm import recalibrate_batchnorm
from training.evaluation import command
from training.evaluation.stored import is_stored

__all__ = ["Comparison", "compare_maps", "compare_models"]

Report = Callable[[dict[str, dict[str, Any]], dict[str, dict[str, Any]]], None]
"""Takes results by title, and descriptions of the features by model name."""


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
    report: Report,
    *,
    part: Literal["backbone", "prototypes"] = "backbone",
    recalibrate: Callable[[Any], None] | None = None,
    seed: int = 0,
) -> None:
    """Measure each model and optionally its random-init baseline, and report the results.

    Names are checked before the first model is measured. If a later model fails, the finished ones are reported
    before the error.

    Args:
        names: of the models.
        load: takes a name and ``pretrained``.
        measure: measures a model.
        describe: describes its features.
        report: called on the main process at the end, if there are results.
        part: that ``load`` takes from a run or its export.
        recalibrate: re-estimates the BatchNorm statistics of a baseline; None: no baselines.
        seed: of random weights, and of what the protocol draws.

    Raises:
        ValueError: there is no such model, or a feature file is not what ``load`` takes.
    """
    for name in names:
        if is_stored(name):
            load(name, pretrained=recalibrate is None)
        elif ":" not in name_for_timm(name, part) and not is_known(name):
            raise ValueError(f"{name} could not be loaded: choose one of timm.list_models(pretrained=True)")
    results: dict[str, dict[str, Any]] = {}
    features: dict[str, dict[str, Any]] = {}
    try:
        for name in names:
            for pretrained in (True, False) if recalibrate else (True,):
                set_seed(seed)
                model = load(name, pretrained=pretrained)
                if recalibrate and not pretrained:
                    recalibrate(model)
                found = measure(model)
                features[name] = describe(model)
                results[name if pretrained else f"{name}, random"] = found
    finally:
        if results and PartialState().is_main_process:
            report(results, features)


def compare_maps(
    settings: Comparison,
    accelerator: Accelerator,
    images: Any,
    load: Callable[..., MapModel],
    measure: Callable[[MapModel], dict[str, Any]],
    report: Report,
    part: Literal["backbone", "prototypes"] = "backbone",
) -> None:
    """Call :func:`compare_models` for models of feature maps.

    Args:
        settings: of the command.
        accelerator: determines the device.
        images: a data set whose samples begin with an image, uint8 3 x S x S; BatchNorm statistics of baselines
            are estimated on it.
        load: takes name, size and ``pretrained``.
        measure: measures a model.
        report: as of :func:`compare_models`.
        part: likewise.
    """

    def recalibrate(model: MapModel) -> None:
        batches = command.draw_batches(images, settings.batch_size, collate=_images)
        recalibrate_batchnorm(model.model, (model.standardize(batch) for batch in batches))

    compare_models(
        settings.models,
        lambda name, pretrained: load(name, settings.size, pretrained=pretrained).to(accelerator.device),
        measure,
        lambda model: model.describe(settings.size),
        report,
        part=part,
        recalibrate=recalibrate if settings.baseline else None,
        seed=settings.seed,
    )


def _images(samples: list[Any]) -> torch.Tensor:
    return torch.stack([sample[0] for sample in samples])
