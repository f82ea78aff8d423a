"""Shared code of the evaluation commands: settings, errors without traceback, sharded batches, the JSON file."""

import functools
import importlib.metadata
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from slotcon_hub.cpu import keep_freed_memory, use_cores
from slotcon_hub.distributed import shard_batches
from training.data.images import UnreadableImage, are_too_many
from training.data.tolerant import Tolerant
from training.engine.cli import cli
from training.engine.errors import RunError, explain_lost_workers
from training.engine.launcher import told_threads
from training.engine.outputs import unwritable
from training.engine.signals import loading

__all__ = ["check_outputs", "check_positive", "draw_batches", "finite", "run", "stream", "write"]

Settings = TypeVar("Settings")


def run(name: str, description: str, settings: type[Settings], main: Callable[[Settings], None]) -> None:
    """Parse the command line and run ``main``; ValueError, OSError and RunError exit without traceback."""
    chosen = cli(settings, prog=f"python -m training.evaluation.{name}", description=description)
    keep_freed_memory()
    use_cores(told_threads())
    try:
        with explain_lost_workers("start again"):
            main(chosen)
    except (ValueError, OSError, RunError) as error:
        raise SystemExit(f"error: {error}") from None


def check_positive(settings: Any, *names: str) -> None:
    """Check that the named settings are at least 1 or None.

    Raises:
        ValueError: one is below 1.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give at least 1")


def check_outputs(file: Path | None, figures: Path | None) -> None:
    """Check before any computation that the results can be written.

    Args:
        file: of --output, or None.
        figures: folder of --figures, or None; it is not created here.

    Raises:
        ValueError: one cannot be written.
    """
    for target, option in ((file, "--output"), (figures, "--figures")):
        if target and (problem := unwritable(target, option)):
            raise ValueError(problem)
    if file and file.is_dir():
        raise ValueError(f"{file} is a folder: name a JSON file in it, --output {file / 'results.json'}")
    if figures and figures.exists() and not figures.is_dir():
        raise ValueError(f"{figures} is a file: choose another --figures, a folder")


def write(target: Path | None, command: str, settings: Any, **facts: Any) -> None:
    """Write settings and results as JSON; NaN and Inf become null."""
    if target is None:
        return
    versions = {p: importlib.metadata.version(p) for p in ("torch", "torchvision", "timm")}
    whole = {"command": command, "settings": asdict(settings), **facts, "versions": versions}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(finite(whole), indent=2, default=str) + "\n")


def finite(value: Any) -> Any:
    """Replace NaN and Inf at any depth by None."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Caught(Dataset[tuple[int, Any]]):
    """Return (index, sample) or (index, error): errors raised in a worker would include its traceback."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.data[index]
        except (ValueError, OSError) as error:
            return index, error


def _collate(
    samples: list[tuple[int, Any]], join: Callable[[list[tuple[int, Any]]], Any]
) -> tuple[list[Exception], Any]:
    """Return the errors, and the batch of the other samples; None if there are none."""
    good = [(index, sample) for index, sample in samples if not isinstance(sample, Exception)]
    return [sample for _, sample in samples if isinstance(sample, Exception)], join(good) if good else None


def stream(
    data: Any,
    join: Callable[[list[tuple[int, Any]]], Any],
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    strict: bool = False,
) -> Iterator[Any]:
    """Yield the batches of this process's shard of a data set.

    Args:
        data: a map-style data set.
        join: collates a list of (index, sample), in the workers.
        accelerator: determines the shard.
        batch_size: maximum samples per batch.
        workers: data-loader workers per process.
        strict: an unreadable image is an error, too.

    Raises:
        ValueError, OSError: of a sample; but a few unreadable images are reported and skipped, unless ``strict``.
    """
    batches: Any = shard_batches(len(data), batch_size, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        _Caught(data), batch_sampler=batches, collate_fn=functools.partial(_collate, join=join), **loading(workers)
    )
    unreadable = 0
    for errors, batch in tqdm(loader, "images", unit="batch", disable=not accelerator.is_main_process, leave=False):
        for error in errors:
            if strict or not isinstance(error, UnreadableImage):
                raise error
            unreadable += 1
            if are_too_many(unreadable, len(data)):
                raise ValueError(
                    f"{error}; at least {unreadable} of {len(data)} images are unreadable: repair or remove them"
                ) from None
            tqdm.write(f"skipped: {error}", file=sys.stderr)
        if batch is not None:
            yield batch


def draw_batches(
    data: Any, batch_size: int, *, batches: int = 20, collate: Callable[[list[Any]], Any] | None = None
) -> DataLoader[Any]:
    """Load some random samples, the same at every call, such as those for a baseline's BatchNorm statistics.

    Samples are as of :class:`training.data.tolerant.Tolerant`, which replaces unreadable ones.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: batches * batch_size]
    some: Any = Subset(Tolerant(data), order.tolist())
    return DataLoader(some, batch_size, drop_last=len(order) > batch_size, collate_fn=collate)
