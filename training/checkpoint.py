"""Checkpoints of a run: written whole or not at all, and read without running any code in them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

__all__ = ["latest", "load", "save"]

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


def save(
    folder: Path, step: int, model: nn.Module, optimizer: dict[str, Any], state: dict[str, Any], keep: int
) -> Path:
    """Write ``folder/checkpoints/step-<step>``, then remove all but the newest ``keep`` checkpoints.

    Args:
        folder: of the run.
        step: optimisation steps behind it.
        model: unwrapped.
        optimizer: state of optimiser and gradient scaler, tensors and plain values.
        state: plain values, for JSON.
        keep: at least 1.
    """
    folder = folder / "checkpoints"
    target, staging = folder / f"step-{step:08d}", folder / f".step-{step:08d}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, staging / MODEL)
    torch.save(optimizer, staging / OPTIMIZER)
    (staging / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n")
    for path in staging.iterdir():  # on the disk before the name says so
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path:
    """Find the newest checkpoint of a run.

    Raises:
        ValueError: there is none.
    """
    found = sorted((folder / "checkpoints").glob("step-*"))
    if not found:
        raise ValueError(f"{folder} holds no checkpoint to resume from: start the run without --resume")
    return found[-1]


def load(path: Path, model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a checkpoint's weights into a model, strictly.

    Returns:
        The states given to :func:`save` as ``optimizer`` and ``state``.

    Raises:
        ValueError: it is damaged, or of a model of other names or shapes.
    """
    try:
        weights = load_file(path / MODEL)
        optimizer = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
        state = json.loads((path / STATE).read_text())
    except Exception as error:
        raise ValueError(f"the checkpoint {path} is damaged ({str(error).splitlines()[0]}): remove it") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(
            f"the checkpoint {path} is of another model ({reason}): resume with the recipe and options of its run"
        ) from None
    return optimizer, state
