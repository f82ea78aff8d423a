"""Going on from a checkpoint in a new run: weights and place in the schedule."""

from pathlib import Path

from slotcon_hub import SlotCon
from slotcon_hub.convert import from_official, named_values, recognise
from slotcon_hub.weights.reader import read_checkpoint
from slotcon_hub.weights.resolve import check

__all__ = ["load"]


def load(path: Path, slotcon: SlotCon, *, epoch: int | None, epochs: int) -> int:
    """Load student, teacher, predictor and centre, strictly, and find the place in the schedule.

    The rates of a step and the teacher's momentum follow from the epoch. The state of the authors' optimiser is
    left out: it names parameters by their number in their model, and the momentum that it holds is one of about
    ten steps.

    Args:
        path: an authors' full checkpoint, or ``model.safetensors`` of a run.
        slotcon: the model that is to train on.
        epoch: to go on at; None for the one that the checkpoint names, 0 if it names none.
        epochs: of the schedule.

    Returns:
        Epochs behind the run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, unsafe, no full checkpoint, of another model, or at the schedule's end.
    """
    checkpoint = read_checkpoint(path)
    kind = recognise(checkpoint)
    if kind not in ("official", "slotcon"):
        raise ValueError(
            f"{path} holds {kind} alone, from which training cannot go on: give --continue-from a full checkpoint, "
            "with student, teacher, predictor and centre"
        )
    state = from_official(checkpoint) if kind == "official" else named_values(checkpoint)
    try:
        check(state, {k: tuple(v.shape) for k, v in slotcon.state_dict().items()}, "the model of this run")
    except ValueError as error:
        raise ValueError(f"{error}: go on from {path} with the backbone and the options that it has") from None
    if epoch is None:
        named = checkpoint.get("epoch")  # of the authors' files; they count it when it is over
        epoch = named if isinstance(named, int) else 0
    if epoch >= epochs:
        raise ValueError(
            f"{path} has {epoch} epochs behind it, and this schedule ends at {epochs}: give more, with --epochs, "
            "or start a new schedule with its weights, with --continue-at 0"
        )
    slotcon.load_state_dict(state)
    return epoch
