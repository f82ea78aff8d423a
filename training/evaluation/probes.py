"""What the probes share: their settings, the models they compare, and the table and JSON file they end in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.table import Table
from timm.data import resolve_data_config

from slotcon_hub.cli.table import shorten
from training.engine.words import show
from training.evaluation import command
from training.evaluation.features import Labeled, open_parts, recalibrate
from training.evaluation.models import load
from training.evaluation.stored import StoredPooled, is_stored

__all__ = ["Probe", "run"]


@dataclass(frozen=True)
class Probe:
    """A comparison of frozen timm models on labelled images.

    Raises:
        ValueError: a number is impossible.
    """

    models: tuple[str, ...]
    """timm models with weights, or folders that runs exported; or files of `slotcon-hub embed --images DATA`."""
    data: str
    """Folder of class folders, or of Parquet files, or hf:<name>[:<configuration>]."""
    train_split: str = "train"
    """Split that is learned from."""
    test_split: str = "validation"
    """Split that is measured."""
    image_column: str = "image"
    """Column of a table that holds the images."""
    label_column: str = "label"
    """Column of a table that holds the labels: integers from 0, text or booleans."""
    baseline: bool = False
    """Measure each model with random weights too, and BatchNorm statistics of the images."""
    batch_size: int = 64
    """Images that a process takes at a time."""
    workers: int = 2
    """Processes that load images, for each process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the models; the probes are in float32."""
    output: Path | None = None
    """JSON file of the numbers, the protocol and the settings."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        command.check_positive(self, "batch_size")
        if not self.models:
            raise ValueError("--models: name at least one")


Measure = Callable[[Any, Labeled, Labeled, Accelerator, Any], dict[str, float]]
"""Accuracies in [0, 1] by name, of a model on images to learn from and to measure, with the settings."""


def run(
    name: str,
    description: str,
    probe: type[Probe],
    measure: Measure,
    protocol: Callable[[Any], dict[str, Any]],
) -> None:
    """Read the settings from the command line, measure each model, and print and write the numbers.

    Args:
        name: of the command.
        description: of what it does, for ``--help``.
        probe: its settings.
        measure: a model.
        protocol: says of settings how is measured, for the JSON file.
    """

    def main(settings: Probe) -> None:
        results, facts = _results(settings, measure)
        if results:
            _report(name, settings, results, facts | protocol(settings))

    command.run(name, description, probe, main)


def _results(settings: Probe, measure: Measure) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """The numbers of each model, on the main process alone, and what they were measured on."""
    command.check_outputs(settings.output, None)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():
        splits = settings.train_split, settings.test_split
        train, test = open_parts(settings.data, *splits, settings.image_column, settings.label_column)
    classes = int(train.labels.max()) + 1
    if int(test.labels.max()) >= classes:
        raise ValueError(
            f"{settings.test_split} has label {int(test.labels.max())}, which {settings.train_split} lacks"
        )
    results, features = {}, {}
    for name in settings.models:
        for pretrained in (True, False) if settings.baseline else (True,):
            set_seed(0)
            stored = is_stored(name)
            model: Any = StoredPooled(name, pretrained=pretrained) if stored else load(name, pretrained=pretrained)
            model = model.to(accelerator.device)
            if not pretrained:
                recalibrate(model, train, accelerator.device)
            results[name if pretrained else f"{name}, random"] = measure(model, train, test, accelerator, settings)
        features[name] = model.describe() if stored else _describe(model)
    facts = {"train": len(train), "test": len(test), "classes": classes, "features": features}
    return (results if accelerator.is_main_process else {}), facts


def _describe(model: Any) -> dict[str, Any]:
    return {"channels": model.head_hidden_size, "preprocessing": resolve_data_config({}, model=model)}


def _report(probe: str, settings: Probe, results: dict[str, dict[str, float]], protocol: dict[str, Any]) -> None:
    print(
        f"{probe} on {settings.data}: {protocol['train']:,} images to learn from, {protocol['test']:,} measured, "
        f"{protocol['classes']} classes"
    )
    columns = list(next(iter(results.values())))
    table = Table("top-1 accuracy, %", *columns)
    for name, numbers in results.items():
        table.add_row(shorten(name), *(f"{100 * numbers[column]:.2f}" for column in columns))
    show(table)
    command.write(settings.output, probe, settings, protocol=protocol, accuracy=results)
