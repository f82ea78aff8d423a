"""The slot loss over all processes: which slots are compared, and with what (section 3.3, equations 6 and 7).

Dimensions: B images on this process, K prototypes, D embedding channels.
"""

from typing import Literal

import torch
from torch import Tensor

from slotcon_hub import distributed
from slotcon_hub import functional as SF
from slotcon_hub.models.layers import SlotPredictor

__all__ = ["SlotLoss", "slot_loss"]

Pair = tuple[Tensor, Tensor]
SlotLoss = Literal["contrastive", "regression"]


def slot_loss(
    predictor: SlotPredictor, students: Pair, teachers: Pair, active: Tensor, kind: SlotLoss, temperature: float
) -> Tensor:
    """Slot loss, sum of both directions: active slots of the student predict the teacher's of the other view.

    Args:
        predictor: q, which sees the queries of this process as one batch.
        students: two of B x K x D slots, one for each view.
        teachers: two of B x K x D slots; they get no gradient.
        active: 4 x B x K booleans: students of view 1 and 2, teachers of view 1 and 2.
        kind: "contrastive", against all active slots of the teacher, of all processes; or "regression", on the
            teacher's same slot alone.
        temperature: tau of the contrast.

    Returns:
        A scalar: the mean over the queries of this process, so that the mean of it over the processes is the loss.
    """
    keys = active[2:].flip(0)  # direction (1, 2) has the keys of the teacher's view 2, and the other way round
    queries = active[:2] & keys
    # The number of queries and keys of every process and direction: shapes that the host must know.
    counts = distributed.gather_counts(torch.cat([queries.sum((1, 2)), keys.sum((1, 2))]))
    loss = students[0].new_zeros(())
    for direction in (0, 1):
        num_queries, num_keys = [c[direction] for c in counts], [c[2 + direction] for c in counts]
        rows = _rows(queries[direction], num_queries)
        # In float32: torch's SyncBatchNorm takes a process without queries for one in half precision.
        with torch.autocast(active.device.type, enabled=False):
            predicted = predictor(students[direction].flatten(0, 1)[rows], num_queries)
            slots = teachers[1 - direction].flatten(0, 1)
            if kind == "regression":
                loss = loss + SF.regression(predicted, slots[rows])
            else:
                gathered = distributed.gather_rows(slots[_rows(keys[direction], num_keys)], num_keys)
                positives = _places(keys[direction], rows) + sum(num_keys[: distributed.rank()])
                loss = loss + SF.contrast(predicted, gathered, positives, temperature)
    return loss


def _rows(chosen: Tensor, counts: list[int]) -> Tensor:
    """Numbers of the chosen ones of B x K slots, as many as this process has."""
    return torch.nonzero_static(chosen.flatten(), size=counts[distributed.rank()])[:, 0]


def _places(chosen: Tensor, rows: Tensor) -> Tensor:
    """Where the slots of these numbers stand among the chosen ones of this process."""
    return chosen.flatten().cumsum(0)[rows] - 1
