"""Start a new run from a checkpoint: its weights and its epoch of the schedule."""

import json
from pathlib import Path

from slotcon_hub import SlotCon
from slotcon_hub.convert import from_official, recognise, unwrap_state_dict
from slotcon_hub.weights.reader import read_checkpoint
from slotcon_hub.weights.resolve import check_state_dict
from training.engine.checkpoint import MODEL, STATE, newest

__all__ = ["load"]


def load(path: Path, slotcon: SlotCon, *, epoch: int | None, epochs: int) -> int:
    """Load student, teacher, predictor and centre strictly, and find the epoch of the schedule.

    The state of the authors' optimiser is not loaded: it refers to parameters by their index in their model, and
    its momentum covers about ten steps.

    Args:
        path: an authors' full checkpoint; the folder of a run, for its newest intact checkpoint; the folder of a
            checkpoint, or its ``model.safetensors``.
        slotcon: the model to load into.
        epoch: of the schedule to start at; by default that of the checkpoint, or 0 if it has none.
        epochs: of the schedule.

    Returns:
        Epochs already trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, unsafe, no full checkpoint, of another model, or at the schedule's end.
    """
    path = _file(path)
    checkpoint = read_checkpoint(path)
    kind = recognise(checkpoint)
    if kind not in ("official", "slotcon"):
        raise ValueError(
            f"{path} holds {kind} only, from which training cannot continue: give --continue-from a full "
            "checkpoint, with student, teacher, predictor and centre"
        )
    state = from_official(checkpoint) if kind == "official" else unwrap_state_dict(checkpoint)
    try:
        check_state_dict(
            state, {k: tuple(v.shape) for k, v in slotcon.state_dict().items()}, "the model of this run"
        )
    except ValueError as error:
        raise ValueError(f"{error}: continue from {path} with its backbone and options") from None
    if epoch is None:
        named = checkpoint.get("epoch")  # of the authors' files: completed epochs
        epoch = named if isinstance(named, int) else _whole_epochs(path.with_name(STATE))
    if epoch >= epochs:
        raise ValueError(
            f"{path} was trained for {epoch} epochs, and this schedule ends at {epochs}: give more --epochs, "
            "or start a new schedule with its weights, with --continue-at 0"
        )
    slotcon.load_state_dict(state)
    return epoch


def _file(path: Path) -> Path:
    """The weights file of a path."""
    if not path.is_dir() or (path / MODEL).is_file():
        return path / MODEL if path.is_dir() else path
    found, _ = newest(path)
    if found is None:
        raise ValueError(
            f"{path} holds no checkpoint of a run: give --continue-from the folder of a run, or a file"
        )
    return found / MODEL


def _whole_epochs(state: Path) -> int:
    """Epochs of a run's checkpoint, from the state beside its weights; 0 if there is none."""
    try:
        facts = json.loads(state.read_text())
        return facts["step"] // (facts["settings"]["images"] // facts["settings"]["batch_size"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0
