"""Going on from a checkpoint in a new run: weights and place in the schedule."""

import json
from pathlib import Path

from slotcon_hub import SlotCon
from slotcon_hub.convert import from_official, recognise, unwrap_state_dict
from slotcon_hub.weights.reader import read_checkpoint
from slotcon_hub.weights.resolve import check_state_dict
from training.engine.checkpoint import MODEL, STATE, newest

__all__ = ["load"]


def load(path: Path, slotcon: SlotCon, *, epoch: int | None, epochs: int) -> int:
    """Load student, teacher, predictor and centre, strictly, and find the place in the schedule.

    The rates of a step and the teacher's momentum follow from the epoch. The state of the authors' optimiser is
    left out: it names parameters by their number in their model, and the momentum that it holds is one of about
    ten steps.

    Args:
        path: an authors' full checkpoint; or the folder of a run, whose newest good checkpoint is taken, a
            checkpoint's folder, or its ``model.safetensors``.
        slotcon: the model that is to train on.
        epoch: to go on at; None for the one that the checkpoint names, 0 if it names none.
        epochs: of the schedule.

    Returns:
        Epochs behind the run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, unsafe, no full checkpoint, of another model, or at the schedule's end.
    """
    path = _file(path)
    checkpoint = read_checkpoint(path)
    kind = recognise(checkpoint)
    if kind not in ("official", "slotcon"):
        raise ValueError(
            f"{path} holds {kind} alone, from which training cannot go on: give --continue-from a full checkpoint, "
            "with student, teacher, predictor and centre"
        )
    state = from_official(checkpoint) if kind == "official" else unwrap_state_dict(checkpoint)
    try:
        check_state_dict(
            state, {k: tuple(v.shape) for k, v in slotcon.state_dict().items()}, "the model of this run"
        )
    except ValueError as error:
        raise ValueError(f"{error}: go on from {path} with the backbone and the options that it has") from None
    if epoch is None:
        named = checkpoint.get("epoch")  # of the authors' files; they count it when it is over
        epoch = named if isinstance(named, int) else _whole_epochs(path.with_name(STATE))
    if epoch >= epochs:
        raise ValueError(
            f"{path} has {epoch} epochs behind it, and this schedule ends at {epochs}: give more, with --epochs, "
            "or start a new schedule with its weights, with --continue-at 0"
        )
    slotcon.load_state_dict(state)
    return epoch


def _file(path: Path) -> Path:
    """The file of the weights that a path stands for."""
    if not path.is_dir() or (path / MODEL).is_file():
        return path / MODEL if path.is_dir() else path
    found, _ = newest(path)
    if found is None:
        raise ValueError(
            f"{path} holds no checkpoint of a run: give --continue-from the folder of a run, or a file"
        )
    return found / MODEL


def _whole_epochs(state: Path) -> int:
    """Epochs behind the checkpoint of a run, by the state beside its weights; 0 where there is none."""
    try:
        facts = json.loads(state.read_text())
        return facts["step"] // (facts["settings"]["images"] // facts["settings"]["batch_size"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0
