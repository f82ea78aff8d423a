"""SlotCon: joint learning of a backbone and semantic prototypes (Wen et al., NeurIPS 2022, arXiv 2205.15288).

Dimensions: B images on this process, K prototypes, D embedding channels, H x W cells, S pixels a view's side.
"""

import copy
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from slotcon_hub import distributed
from slotcon_hub import functional as SF
from slotcon_hub.layers import ProjectionHead, PrototypeNetwork, Prototypes, SlotPredictor, map_channels

__all__ = ["SlotCon", "SlotConConfig", "SlotConOutput"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SlotConConfig:
    """What defines the objective; the defaults are those of the COCO recipe.

    Raises:
        ValueError: for a value out of its range.
    """

    num_prototypes: int = 256
    """K, about the number of semantic categories one expects in the data; at least 2."""
    hidden_dim: int = 4096
    """Channels of the hidden layers of projector and predictor."""
    out_dim: int = 256
    """D, channels of projections, slots and prototypes."""
    student_temp: float = 0.1
    """Temperature of the student's grouping prediction."""
    teacher_temp: float = 0.07
    """Temperature of the teacher's grouping target, and of the soft assignments that form the slots."""
    contrast_temp: float = 0.2
    """Temperature of the contrast between slots."""
    group_loss_weight: float = 0.5
    """Weight of the grouping loss; the slot loss has the rest."""
    teacher_momentum: float = 0.99
    """Share of itself that the teacher keeps at the first step; it rises to 1 on a cosine."""
    center_momentum: float = 0.9
    """Share of itself that the centre of the teacher's scores keeps in a step."""

    def __post_init__(self) -> None:
        if self.num_prototypes < 2:
            raise ValueError(f"num_prototypes={self.num_prototypes} leaves nothing to group: use at least 2")
        for name in ("hidden_dim", "out_dim", "student_temp", "teacher_temp", "contrast_temp"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("group_loss_weight", "teacher_momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")


@dataclass
class SlotConOutput:
    """Losses of a step, and the statistics that show whether it goes well (supplementary D). All are tensors."""

    loss: Tensor
    """Scalar: ``group_loss_weight * group_loss + (1 - group_loss_weight) * slot_loss``."""
    group_loss: Tensor
    """Scalar: pixel-level deep clustering, sum of both directions."""
    slot_loss: Tensor
    """Scalar: group-level contrast, sum of both directions."""
    active_slots: Tensor
    """Scalar: teacher slots active in a view, mean over images and views of this process."""
    positive_pairs: Tensor
    """Scalar: slots active in both views of an image, mean over images and directions of this process."""
    excluded_terms: Tensor
    """Scalar: K - positive_pairs, the terms of an image that the slot loss leaves out."""
    usage: Tensor
    """K integers: teacher views of this process in which each slot is active."""


class SlotCon(nn.Module):
    """Student, teacher and slot predictor; the forward computes the losses of a batch of view pairs."""

    center: Tensor

    def __init__(self, backbone: nn.Module | str, config: SlotConConfig | None = None) -> None:
        """Build the student around a backbone, and the teacher as its copy.

        Args:
            backbone: a module that maps B x 3 x S x S to B x C x H x W, or the name of a timm model that does
                so once its head is removed.
            config: of the objective.

        Raises:
            ValueError: there is no such timm model, or the backbone does not return a map.
        """
        super().__init__()
        self.config = config = config or SlotConConfig()
        if isinstance(backbone, str):
            backbone = _create_backbone(backbone)
        projector = ProjectionHead(map_channels(backbone), config.hidden_dim, config.out_dim)
        prototypes = Prototypes(config.num_prototypes, config.out_dim)
        self.student = PrototypeNetwork(backbone, projector, prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = SlotPredictor(config.out_dim, config.hidden_dim)
        self.register_buffer("center", torch.zeros(1, config.num_prototypes))

    def forward(self, views: Pair, boxes: Pair, flips: Pair) -> SlotConOutput:
        """Compute the losses; in train mode also move the centre, and BatchNorm's running statistics.

        Args:
            views: two of B x 3 x S x S, normalised pictures.
            boxes: two of B x 4, the region that both views show, ``(x1, y1, x2, y2)`` in each view's own unit
                square, after its flip.
            flips: two of B booleans, true where the view was mirrored.
        """
        (z1, s1), (z2, s2) = (self.student(view) for view in views)
        with torch.no_grad():
            (zt1, t1), (zt2, t2) = (self.teacher(view) for view in views)

        with torch.autocast(z1.device.type, enabled=False):
            group_loss = self._grouping((s1, s2), (t1, t2), boxes, flips)
            if self.training:
                self._update_center(t1, t2)
            active = torch.stack([SF.active_slots(scores) for scores in (s1, s2, t1, t2)])

        students = self._slots(z1, s1), self._slots(z2, s2)
        teachers = self._slots(zt1, t1), self._slots(zt2, t2)
        slot_loss = self._contrast(students, teachers, active)

        weight = self.config.group_loss_weight
        pairs = (active[:2] & active[2:].flip(0)).sum(-1, dtype=s1.dtype).mean()
        return SlotConOutput(
            loss=weight * group_loss + (1 - weight) * slot_loss,
            group_loss=group_loss.detach(),
            slot_loss=slot_loss.detach(),
            active_slots=active[2:].sum(-1, dtype=s1.dtype).mean(),
            positive_pairs=pairs,
            excluded_terms=self.config.num_prototypes - pairs,
            usage=active[2:].sum(dim=(0, 1)),
        )

    def _grouping(self, students: Pair, teachers: Pair, boxes: Pair, flips: Pair) -> Tensor:
        """Grouping loss of both directions: the teacher's view b teaches the student's view a."""
        s1, s2 = (SF.align(s, box, flip) for s, box, flip in zip(students, boxes, flips, strict=True))
        t1, t2 = (SF.align(t, box, flip) for t, box, flip in zip(teachers, boxes, flips, strict=True))
        temps = {"student_temp": self.config.student_temp, "teacher_temp": self.config.teacher_temp}
        return SF.grouping_loss(s1, t2, self.center, **temps) + SF.grouping_loss(s2, t1, self.center, **temps)

    def _slots(self, z: Tensor, scores: Tensor) -> Tensor:
        """Slots of a view, B x K x D."""
        with torch.autocast(z.device.type, enabled=False):
            return SF.group_slots(z, SF.assign(scores, self.config.teacher_temp))

    def _contrast(self, students: Pair, teachers: Pair, active: Tensor) -> Tensor:
        """Slot loss of both directions.

        Args:
            students: two of B x K x D slots.
            teachers: two of B x K x D slots.
            active: 4 x B x K booleans: students of view 1 and 2, teachers of view 1 and 2.
        """
        keys = active[2:].flip(0)  # direction (1, 2) has the keys of the teacher's view 2, and the other way round
        queries = active[:2] & keys
        # The number of queries and keys of every process and direction: shapes that the host must know.
        counts = distributed.gather_counts(torch.cat([queries.sum((1, 2)), keys.sum((1, 2))]))
        loss = students[0].new_zeros(())
        for direction in (0, 1):
            num_queries = [c[direction] for c in counts]
            num_keys = [c[2 + direction] for c in counts]
            loss = loss + self._contrast_one(
                students[direction],
                teachers[1 - direction],
                queries[direction],
                keys[direction],
                num_queries,
                num_keys,
            )
        return loss

    def _contrast_one(
        self,
        student: Tensor,
        teacher: Tensor,
        is_query: Tensor,
        is_key: Tensor,
        num_queries: list[int],
        num_keys: list[int],
    ) -> Tensor:
        """Slot loss of one direction, over the keys of all processes."""
        rank = distributed.rank()
        query_rows = torch.nonzero_static(is_query.flatten(), size=num_queries[rank])[:, 0]
        key_rows = torch.nonzero_static(is_key.flatten(), size=num_keys[rank])[:, 0]
        keys = distributed.gather_rows(teacher.flatten(0, 1)[key_rows], num_keys)
        # A query's positive is the key of its own image and slot: its place among the keys of this process.
        place = is_key.flatten().cumsum(0)[query_rows] - 1 + sum(num_keys[:rank])
        slots = student.flatten(0, 1)[query_rows]
        # In float32: torch's SyncBatchNorm takes a process without queries for one in half precision.
        with torch.autocast(slots.device.type, enabled=False):
            predicted = self.predictor(slots, sum(num_queries))
            return SF.slot_contrast(predicted, keys, place, self.config.contrast_temp)

    @torch.no_grad()
    def _update_center(self, *scores: Tensor) -> None:
        """Move the centre towards the mean of the teacher's unaligned raw scores over cells, views, processes."""
        batch = torch.stack([s.mean(dim=(0, 2, 3)) for s in scores]).mean(dim=0)
        self.center.lerp_(distributed.mean(batch)[None], 1 - self.config.center_momentum)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's: ``teacher <- m teacher + (1 - m) student``.

        Once per optimisation step, before the forward. Buffers are not averaged: the teacher's BatchNorm
        statistics come from its own forwards. Nothing moves in eval mode.

        Args:
            momentum: m in [0, 1]; see :func:`slotcon_hub.functional.teacher_momentum`.
        """
        if self.training:
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)


def _create_backbone(name: str) -> nn.Module:
    """Make a timm model without its head; ValueError where timm cannot."""
    try:
        return timm.create_model(name, num_classes=0, global_pool="")
    except (RuntimeError, OSError, AssertionError, TypeError) as error:
        raise ValueError(
            f"timm cannot make the backbone {name!r} ({error}): timm.list_models() names those there are"
        ) from None
