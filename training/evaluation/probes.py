"""Shared code of the probes: settings, loading of models, results as table and JSON file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from rich.table import Table
from timm.data import resolve_data_config

from slotcon_hub.cli.table import shorten
from training.engine.words import show
from training.evaluation import command
from training.evaluation.comparison import compare_models
from training.evaluation.features import Labeled, open_parts, recalibrate
from training.evaluation.models import load
from training.evaluation.stored import StoredPooled, is_stored

__all__ = ["Probe", "run"]


@dataclass(frozen=True)
class Probe:
    """A comparison of frozen timm models on labelled images.

    Raises:
        ValueError: an option is out of range.
    """

    models: tuple[str, ...]
    """timm models with weights, export folders of runs, or files of `slotcon-hub embed --images DATA`."""
    data: str
    """Folder of class folders, or of Parquet files, or hf:<name>[:<configuration>]."""
    train_split: str = "train"
    """Training split."""
    test_split: str = "validation"
    """Test split."""
    image_column: str = "image"
    """Image column of a table."""
    label_column: str = "label"
    """Label column of a table: integers from 0, text or booleans."""
    baseline: bool = False
    """Add a random-init baseline of each model, BatchNorm statistics re-estimated on the images."""
    batch_size: int = 64
    """Batch size per process."""
    workers: int = 2
    """Data-loader workers per process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the models; the probes use float32."""
    output: Path | None = None
    """JSON file of results, protocol and settings."""

    def __post_init__(self) -> None:
        """Validate."""
        command.check_positive(self, "batch_size")
        if not self.models:
            raise ValueError("--models: name at least one")


Measure = Callable[[Any, Labeled, Labeled, Accelerator, Any], dict[str, float]]
"""Maps (model, train, test, accelerator, settings) to accuracies in [0, 1] by name."""


def run(
    name: str,
    description: str,
    probe: type[Probe],
    measure: Measure,
    protocol: Callable[[Any], dict[str, Any]],
) -> None:
    """Run a probe command: measure each model, print the results and write the JSON file.

    Args:
        name: of the command.
        description: for ``--help``.
        probe: class of its settings.
        measure: measures a model.
        protocol: describes the protocol for the JSON file.
    """
    command.run(name, description, probe, lambda chosen: _evaluate(name, chosen, measure, protocol))


def _evaluate(name: str, settings: Probe, measure: Measure, protocol: Callable[[Any], dict[str, Any]]) -> None:
    command.check_outputs(settings.output, None)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():
        splits = settings.train_split, settings.test_split
        train, test = open_parts(settings.data, *splits, settings.image_column, settings.label_column)
    classes = int(train.labels.max()) + 1
    if int(test.labels.max()) >= classes:
        raise ValueError(
            f"{settings.test_split} has label {int(test.labels.max())}, which is not in {settings.train_split}: "
            "use splits with the same classes"
        )
    facts = {"train": len(train), "test": len(test), "classes": classes} | protocol(settings)
    compare_models(
        settings.models,
        lambda name, pretrained: _load(name, pretrained).to(accelerator.device),
        lambda model: measure(model, train, test, accelerator, settings),
        _describe,
        lambda results, features: _report(name, settings, results, facts | {"features": features}),
        recalibrate=(lambda model: recalibrate(model, train, accelerator.device)) if settings.baseline else None,
    )


def _load(name: str, pretrained: bool) -> Any:
    return (StoredPooled if is_stored(name) else load)(name, pretrained=pretrained)


def _describe(model: Any) -> dict[str, Any]:
    if isinstance(model, StoredPooled):
        return model.describe()
    return {"channels": model.head_hidden_size, "preprocessing": resolve_data_config({}, model=model)}


def _report(probe: str, settings: Probe, results: dict[str, dict[str, float]], protocol: dict[str, Any]) -> None:
    command.write(settings.output, probe, settings, protocol=protocol, accuracy=results)
    print(
        f"{probe} on {settings.data}: {protocol['train']:,} training and {protocol['test']:,} test images, "
        f"{protocol['classes']} classes"
    )
    columns = list(next(iter(results.values())))
    table = Table("top-1 accuracy, %", *columns)
    for name, numbers in results.items():
        table.add_row(shorten(name), *(f"{100 * numbers[column]:.2f}" for column in columns))
    show(table)
