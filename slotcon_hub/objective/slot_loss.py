"""The slot loss over all processes (section 3.3, equations 6 and 7).

Dimensions: B images on this process, K prototypes, D embedding channels.
"""

from typing import Literal

import torch
from torch import Tensor

from slotcon_hub import distributed
from slotcon_hub import functional as SF
from slotcon_hub.models.layers import SlotPredictor

__all__ = ["SlotLoss", "slot_loss"]

SlotLoss = Literal["contrastive", "regression"]


def slot_loss(
    predictor: SlotPredictor,
    student: Tensor,
    teacher: Tensor,
    queries: Tensor,
    keys: Tensor,
    kind: SlotLoss,
    temperature: float,
) -> Tensor:
    """Slot loss of one direction: active slots of the student's view predict the teacher's of the other view.

    Args:
        predictor: q, which sees the queries of this process as one batch.
        student: B x K x D slots of the student's view.
        teacher: B x K x D slots of the teacher's view; they get no gradient.
        queries: B x K booleans, slots active in both views.
        keys: B x K booleans, slots active in the teacher's view.
        kind: "contrastive", with all active teacher slots of all processes as keys; or "regression" to the
            teacher's slot of the same prototype.
        temperature: tau of the contrast.

    Returns:
        A scalar: the mean over the queries of this process; the loss is its mean over the processes.
    """
    # Queries and keys of every process, on the host, since they are shapes.
    counts = distributed.gather_counts(torch.stack([queries.sum(), keys.sum()]))
    num_queries, num_keys = ([count[i] for count in counts] for i in (0, 1))
    rows = _rows(queries, num_queries)
    # In float32: torch's SyncBatchNorm assumes half precision for a process without queries.
    with torch.autocast(student.device.type, enabled=False):
        predicted = predictor(student.flatten(0, 1)[rows], num_queries)
        slots = teacher.flatten(0, 1)
        if kind == "regression":
            return SF.regression(predicted, slots[rows])
        gathered = distributed.gather_rows(slots[_rows(keys, num_keys)], num_keys)
        positives = _places(keys, rows) + sum(num_keys[: distributed.rank()])
        return SF.contrast(predicted, gathered, positives, temperature)


def _rows(chosen: Tensor, counts: list[int]) -> Tensor:
    """Flat indices of the chosen of B x K slots."""
    return torch.nonzero_static(chosen.flatten(), size=counts[distributed.rank()])[:, 0]


def _places(chosen: Tensor, rows: Tensor) -> Tensor:
    """Positions of these flat indices among the chosen slots of this process."""
    return chosen.flatten().cumsum(0)[rows] - 1
