"""What the probes share: their settings, the models they compare, and the table and JSON file they end in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich import print as show
from rich.table import Table

from training.evaluation import command
from training.evaluation.features import Labeled, settle
from training.evaluation.models import load

__all__ = ["Probe", "run"]


@dataclass(frozen=True)
class Probe:
    """A comparison of frozen timm models on labelled pictures."""

    models: tuple[str, ...]
    """timm models with weights, or folders that runs exported."""
    data: str
    """Folder of class folders, or of Parquet files, or hf:<name>; columns image and label."""
    train_split: str = "train"
    """Split that is learned from."""
    test_split: str = "validation"
    """Split that is measured."""
    baseline: bool = False
    """Measure each model with random weights too, and BatchNorm statistics of the pictures."""
    batch_size: int = 64
    """Pictures that a process takes at a time."""
    workers: int = 2
    """Processes that load pictures, for each process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the models; the probes are in float32."""
    output: Path | None = None
    """JSON file of the numbers and the settings."""


Measure = Callable[[Any, Labeled, Labeled, Accelerator, Any], dict[str, float]]
"""Accuracies in [0, 1] by name, of a model on pictures to learn from and to measure, with the settings."""


def run(name: str, description: str, probe: type[Probe], measure: Measure) -> None:
    """Read the settings from the command line, measure each model, and print and write the numbers."""

    def main(settings: Probe) -> None:
        if results := _results(settings, measure):
            _report(name, settings, results)

    command.run(name, description, probe, main)


def _results(settings: Probe, measure: Measure) -> dict[str, dict[str, float]]:
    """The numbers of each model; empty on other processes than the main one."""
    command.check_folder(settings.output, "--output")
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():
        train = Labeled(settings.data, settings.train_split)
        test = Labeled(settings.data, settings.test_split)
    if int(test.labels.max()) > int(train.labels.max()):
        raise ValueError(
            f"{settings.test_split} has label {int(test.labels.max())}, which {settings.train_split} lacks"
        )
    results = {}
    for name in settings.models:
        for pretrained in (True, False) if settings.baseline else (True,):
            set_seed(0)
            model = load(name, pretrained=pretrained).to(accelerator.device)
            if not pretrained:
                settle(model, train, accelerator.device)
            results[name if pretrained else f"{name}, random"] = measure(model, train, test, accelerator, settings)
    return results if accelerator.is_main_process else {}


def _report(probe: str, settings: Probe, results: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(results.values())))
    table = Table("top-1 accuracy, %", *columns, title=f"{probe} on {settings.data}", title_justify="left")
    for name, numbers in results.items():
        table.add_row(name, *(f"{100 * numbers[column]:.2f}" for column in columns))
    show(table)
    command.write(settings.output, probe, settings, accuracy=results)
