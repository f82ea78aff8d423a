"""Checkpoints of a run: written atomically, verified when read, and read without running code in them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from slotcon_hub.files import sha256
from training.engine.errors import first_line, is_lost_worker

__all__ = ["load", "newest", "save"]

MODEL, OPTIMIZER, STATE = FILES = "model.safetensors", "optimizer.pt", "state.json"
SUMS = "SHA256SUMS"
"""Written last, in the form that ``sha256sum --check`` reads."""


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: dict[str, Any],
    state: dict[str, Any],
    *,
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write ``folder/checkpoints/step-<step>`` atomically, then remove old checkpoints.

    Args:
        folder: of the run.
        step: optimisation steps taken.
        model: unwrapped.
        optimizer: state of optimiser and gradient scaler, tensors and plain values.
        state: plain values, for JSON.
        keep: number of newest checkpoints to keep, at least 1.
        keep_every: checkpoints at multiples of this step are never removed; 0 for none.

    Raises:
        OSError: it could not be written; earlier checkpoints are unchanged.
    """
    folder = folder / "checkpoints"
    target, staging = folder / f"step-{step:08d}", folder / f".step-{step:08d}"
    try:
        _sweep(folder)
        staging.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, staging / MODEL)
        with (staging / OPTIMIZER).open("wb") as file:  # reports a full disk, which torch.save to a path may not
            torch.save(optimizer, file)
        (staging / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n")
        (staging / SUMS).write_text("".join(f"{sha256(staging / file)}  {file}\n" for file in FILES))
        for path in (*staging.iterdir(), staging):  # on disk before the rename
            _flush(path)
        if target.exists():
            _remove(target)
        staging.rename(target)
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        if is_lost_worker(error):
            raise  # not a disk error
        raise OSError(
            f"the checkpoint {target} could not be written ({first_line(error)}): free disk space, then continue "
            "with --resume from the previous one"
        ) from None
    past = [path for path in _found(folder) if _step(path) <= step]
    for path in past[:-keep]:
        if not (keep_every and _step(path) % keep_every == 0):
            _remove(path)
    return target


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest intact checkpoint of a run.

    Returns:
        Its path, or None if the run has no checkpoint; and the problem of each newer, damaged one.

    Raises:
        ValueError: the run has some, and all of them are damaged.
    """
    problems: list[str] = []
    for path in reversed(_found(folder / "checkpoints")):
        problem = _problem(path)
        if problem is None:
            return path, problems
        problems.append(f"the checkpoint {path} is damaged: {problem}")
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}; no intact checkpoint is left: start a new run, with another --output"
        )
    return None, []


def load(path: Path, model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a checkpoint's weights into a model, strictly.

    Returns:
        The states given to :func:`save` as ``optimizer`` and ``state``.

    Raises:
        ValueError: it cannot be read here, or its model has other names or shapes.
    """
    try:
        weights = load_file(path / MODEL)
        optimizer = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
        state = json.loads((path / STATE).read_text())
    except OSError as error:
        reason = f"the checkpoint {path} cannot be read here ({first_line(error)})"
        raise ValueError(f"{reason}: all machines must share --output, in one folder that each can read") from None
    except Exception as error:
        reason = f"the checkpoint {path} cannot be read ({first_line(error)})"
        raise ValueError(
            f"{reason}, though its SHA-256 is right: resume with the versions in run.json, where all "
            "machines share --output"
        ) from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(
            f"the checkpoint {path} is of another model ({reason}): resume with the recipe and options of its run"
        ) from None
    return optimizer, state


def _problem(path: Path) -> str | None:
    """Problem of a damaged checkpoint, or None."""
    try:
        pairs = (line.split("  ", 1) for line in (path / SUMS).read_text().splitlines())
        sums = {file: digest for digest, file in pairs}
    except (OSError, ValueError):
        return f"{SUMS} is missing or unreadable"
    for file in FILES:
        try:
            digest = sha256(path / file)
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
        if digest != sums.get(file):
            return f"{file} does not match {SUMS}"
    return None


def _found(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _remove(path: Path) -> None:
    """Remove a checkpoint; rename it first, so that a partly removed one is never read."""
    doomed = path.rename(path.with_name(f".{path.name}-old"))
    shutil.rmtree(doomed)


def _sweep(folder: Path) -> None:
    """Remove temporary folders of an interrupted save or removal."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
